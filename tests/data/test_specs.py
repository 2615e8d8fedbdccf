"""The stream of training prompts: endless, reproducible, and without a single prompt that is tested on."""

import pytest

from triptych.data.prompts import benchmark
from triptych.data.specs import StickerPrompts, spec_key
from triptych.errors import ConfigError
from triptych.eval.suites import dev_set

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
