"""Laws of lessons on own pictures."""

import numpy as np

from triptych.data.annotations import plan_text
from triptych.data.layout import FREE_LAYOUT
from triptych.data.lexicon import UNKNOWN, build_tokenizer
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.sft_samples import DataMix, SFTSample
from triptych.sft.joint import JointConfig, sft_batch
from triptych.sft.self_generated import self_generated_samples, settled
from triptych.trace import Item, Spec


def test_a_settled_scene_is_the_same_inventory_in_the_middle_of_its_cells():
    free = Scene.sample(Spec("free", (Item("cat", 3), Item("dog", 2))), 5, FREE_LAYOUT)
    tidy = settled(free)
    assert [(one.cell, one.name, one.color, one.size) for one in free.stickers] == [
        (one.cell, one.name, one.color, one.size) for one in tidy.stickers
    ]
    assert all((one.x % 32, one.y % 32) == (16, 16) for one in tidy.stickers)
    crowded = Scene((Sticker("cat", "red", 10, 10, "smaller"), Sticker("cat", "red", 22, 22, "smaller")))
    assert settled(crowded) == crowded  # two in one cell keep apart


def test_stops_on_own_pictures_are_as_frequent_as_in_other_lessons():
    content = [SFTSample("reflect", "a", "all is well") for _ in range(9)]
    own = [*content, SFTSample("reflect", "a", "one is missing", "add a red cat at left")]
    config = JointConfig(pictures=0, edits=0, words=400, answers=0.0, own=1.0)
    (said,) = [group for group in sft_batch(config, 0, 0, own).groups if group]
    share = sum(one.reply is None for one in said) / len(said)
    assert abs(share - config.mix.correct_pictures) < 0.1  # four deviations of 400 draws


def test_own_pictures_are_asked_about_and_whether_they_fit():
    spec = Spec("free", (Item("cat", 2),))
    scenes = [Scene.sample(spec, 0), Scene.sample(Spec("free", (Item("cat", 1),)), 1)]
    own = self_generated_samples([spec, spec], render(scenes).numpy(), lambda _: scenes, 0, DataMix(list_first=True))
    one, other = [lesson for lesson in own if lesson.kind == "answer"]
    assert one.thought == plan_text(scenes[0]) and one.picture is not None
    assert other.prompt.startswith("does the picture show") and other.reply == "no" and "two cats" in other.thought
    config = JointConfig(pictures=0, edits=0, words=40, answers=1.0, own=1.0)
    (asked,) = [group for group in sft_batch(config, 0, 0, own).groups if group]
    assert {id(lesson) for lesson in asked} == {id(one), id(other)}


def test_a_picture_of_more_stickers_than_anyone_can_count_makes_lessons_in_known_words():
    """A model that learns to draw may draw ten clocks where one was asked for, on top of each other or not."""
    chance, known = np.random.default_rng(0), build_tokenizer()
    scenes = [
        Scene(tuple(Sticker(name, "red", float(x), float(y)) for x, y in chance.uniform(12, 84, (count, 2))))
        for name in ("clock", "cat")
        for count in (9, 10, 16)
    ]
    specs = [Spec("counting", (Item("clock", 1, "red"),))] * len(scenes)
    pictures = np.zeros((len(scenes), 96, 96, 3), np.uint8)
    lessons = self_generated_samples(specs, pictures, lambda images: scenes, 0, DataMix())
    said = [text for lesson in lessons for text in (lesson.prompt, lesson.thought, lesson.reply) if text]
    assert any("red clock more red yes extra" in text for text in said)
    assert not any(UNKNOWN in known.encode(text).tokens for text in said)
