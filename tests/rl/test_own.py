"""Laws of lessons on own pictures."""

from triptych.data.layout import FREE_LAYOUT
from triptych.data.lessons import Lesson
from triptych.data.scene import Scene, Sticker
from triptych.rl.own import settled
from triptych.rl.teach import ModelLessons, sheet
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
    content = [Lesson("reflect", "a", "all is well") for _ in range(9)]
    own = [*content, Lesson("reflect", "a", "one is missing", "add a red cat at left")]
    config = ModelLessons(pictures=0, edits=0, words=400, answers=0.0, own=1.0)
    (said,) = [group for group in sheet(config, 0, 0, own).groups if group]
    share = sum(one.reply is None for one in said) / len(said)
    assert abs(share - config.mix.right) < 0.1  # four deviations of 400 draws
