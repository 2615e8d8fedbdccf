"""The stream of training prompts: endless, reproducible, and without a single prompt that is tested on."""

import pytest

from triptych.data.annotations import instruction_text, plan_text
from triptych.data.edits import Edit, apply, fix, random_edit, spoil
from triptych.data.language import prompt_text
from triptych.data.layout import FREE_LAYOUT
from triptych.data.prompts import benchmark
from triptych.data.scene import Scene
from triptych.data.specs import StickerPrompts, random_spec, spec_key
from triptych.errors import ConfigError
from triptych.eval.suites import dev_set
from triptych.trace import Item, Spec

PLACES = 600


def test_no_benchmark_prompt_is_ever_trained_on():
    """Neither as words nor as a spec in other words; there are but 80 single objects, which recur."""
    held_out = [prompt for name in ("geneval", "genevalpp") for prompt in benchmark(name)]
    words = {prompt.text.lower() for prompt in held_out if prompt.spec.tag != "single_object"}
    specs = {spec_key(prompt.spec.include) for prompt in held_out if prompt.spec.tag != "single_object"}
    stream = StickerPrompts(0)
    for place in range(PLACES):
        prompt = stream(place)
        assert prompt.text.lower() not in words
        assert spec_key(prompt.spec.include) not in specs


def test_no_dev_prompt_is_trained_on():
    specs = [prompt.spec for prompt in dev_set().prompts]
    plain = StickerPrompts(0)
    taken = [plain(place).spec for place in range(20)]
    stream = StickerPrompts.without(0, [*specs, *taken])
    keys = {spec_key(spec.include) for spec in [*specs, *taken]}
    assert all(spec_key(stream(place).spec.include) not in keys for place in range(60))


def test_a_place_has_one_prompt_and_seeds_differ():
    one, again, other = (StickerPrompts(seed) for seed in (0, 0, 1))
    assert [one(place).text for place in range(9)] == [again(place).text for place in range(9)]
    assert [one(place).text for place in range(9)] != [other(place).text for place in range(9)]
    assert len({one(place).text for place in range(100)}) > 90


def test_tags_choose_kinds():
    stream = StickerPrompts(0, ("counting",))
    assert {stream(place).spec.tag for place in range(20)} == {"counting"}
    with pytest.raises(ConfigError, match="poetry"):
        StickerPrompts(0, ("poetry",))(0)


def test_published_draws_do_not_move():
    """Known answers of every use of a seed: figures and recorded runs hang on them."""
    spec = random_spec(11)
    assert prompt_text(spec) == "A photo of one skateboards on the above and one trucks on the below"
    scene = Scene.sample(spec, 11, FREE_LAYOUT)
    assert plan_text(scene) == "top left yellow skateboard, bottom purple truck"
    assert [round(sticker.x, 3) for sticker in scene.stickers] == [19.893, 52.609]
    flawed = spoil(scene, spec, 11, 2)
    assert plan_text(flawed) == "top left yellow skateboard, top purple truck, right brown backpack"
    assert instruction_text(fix(flawed, spec, 11)) == "move the truck at top to bottom left"
    added = [instruction_text(fix(Scene(()), Spec("single_object", (Item("cat"),)), seed)) for seed in range(2)]
    assert added == ["add a green cat at top left", "add a brown cat at top left"]
    edits = [instruction_text(random_edit(scene, seed)) for seed in range(2)]
    assert edits == ["add a red tie at left", "replace the sticker at top left with a clock"]
    (cat,) = apply(Scene(()), Edit("add", "top", "cat", "red"), 11, FREE_LAYOUT).stickers
    assert (round(cat.x, 3), round(cat.y, 3)) == (46.334, 14.689)
    assert StickerPrompts(1)(5).text == "A photo of yellow sheep on the above and green potted plant on the below"
