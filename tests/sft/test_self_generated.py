"""Laws of samples from the model's own pictures."""

import numpy as np

from triptych.data.annotations import plan_text
from triptych.data.layout import FREE_LAYOUT
from triptych.data.lexicon import UNKNOWN, build_tokenizer
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.sft_samples import DataMix
from triptych.sft.joint import JointData, sft_batch
from triptych.sft.self_generated import centered, load_pictures, save_pictures, self_generated_samples
from triptych.trace import Item, Spec


def test_a_centered_scene_is_the_same_inventory_in_the_middle_of_its_cells():
    free = Scene.sample(Spec("free", (Item("cat", 3), Item("dog", 2))), 5, FREE_LAYOUT)
    tidy = centered(free)
    assert [(one.cell, one.name, one.color, one.size) for one in free.stickers] == [
        (one.cell, one.name, one.color, one.size) for one in tidy.stickers
    ]
    assert all((one.x % 32, one.y % 32) == (16, 16) for one in tidy.stickers)
    crowded = Scene((Sticker("cat", "red", 10, 10, "smaller"), Sticker("cat", "red", 22, 22, "smaller")))
    assert centered(crowded) == crowded  # two in one cell keep apart


def test_own_pictures_are_asked_about_and_whether_they_fit():
    spec = Spec("free", (Item("cat", 2),))
    scenes = [Scene.sample(spec, 0), Scene.sample(Spec("free", (Item("cat", 1),)), 1)]
    own = self_generated_samples([spec, spec], render(scenes).numpy(), lambda _: scenes, 0, DataMix(list_first=True))
    one, other = [sample for sample in own if sample.kind == "answer"]
    assert one.thought == plan_text(scenes[0]) and one.picture is not None
    assert other.prompt.startswith("does the picture show") and other.reply == "no" and "two cats" in other.thought
    data = JointData(pictures=0, edits=0, words=40, answer_share=1.0)
    (group,) = [group for group in sft_batch(data, 0, 0, own, 1.0).groups if group]
    assert {id(sample) for sample in group} == {id(one), id(other)}


def test_a_picture_of_more_stickers_than_anyone_can_count_makes_samples_in_known_words():
    """A model that learns to draw may draw ten clocks where one was asked for, on top of each other or not."""
    rng, tokenizer = np.random.default_rng(0), build_tokenizer()
    scenes = [
        Scene(tuple(Sticker(name, "red", float(x), float(y)) for x, y in rng.uniform(12, 84, (count, 2))))
        for name in ("clock", "cat")
        for count in (9, 10, 16)
    ]
    specs = [Spec("counting", (Item("clock", 1, "red"),))] * len(scenes)
    pictures = np.zeros((len(scenes), 96, 96, 3), np.uint8)
    samples = self_generated_samples(specs, pictures, lambda images: scenes, 0, DataMix())
    texts = [text for one in samples for text in (one.prompt, one.thought, one.reply) if text]
    assert any("red clock more red yes extra" in text for text in texts)
    assert not any(UNKNOWN in tokenizer.encode(text).tokens for text in texts)


def test_pictures_come_back_from_disk_as_they_were(tmp_path):
    specs = [Spec("counting", (Item("clock", count, "red"),)) for count in (1, 2)]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    assert load_pictures(tmp_path / "own") is None
    save_pictures(tmp_path / "own", specs, pictures)
    loaded = load_pictures(tmp_path / "own")
    assert loaded is not None and loaded[0] == specs and np.array_equal(loaded[1], pictures)
