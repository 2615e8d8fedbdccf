"""Laws of lessons on own pictures."""

from triptych.data.layout import FREE_LAYOUT
from triptych.data.scene import Scene, Sticker
from triptych.rl.own import settled
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
