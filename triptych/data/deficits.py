"""How far a scene is from a spec, check by check: what an edit has to bring down to zero."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.data.layout import reach
from triptych.data.lexicon import number_word
from triptych.data.scene import POSITION_BAND, Scene, Sticker, in_region, members, size_holds
from triptych.trace import Spec

YES, NO, EXTRA = "yes", "no", "extra"


def deficits(scene: Scene, spec: Spec) -> list[int]:
    """How far each check of `check(scene, spec)`, in the same order, is from holding: 0 where it holds.

    Counts what is missing or too much, and stickers with the wrong colour, size or side (a wrong side or
    relation is twice as far as one in between); more than 0 where there is no sticker to judge.
    """
    stickers = scene.ordered()
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    left: list[int] = []
    for item, found in zip(spec.include, groups, strict=True):
        absent = int(not found)
        left.append(abs(len(found) - item.count))
        if item.color is not None:
            left.append(absent or sum(sticker.color != item.color for sticker in found))
        if item.region is not None:
            left.append(absent or sum(_side_deficit(sticker, item.region) for sticker in found))
        if item.size is not None:
            left.append(absent or sum(not size_holds(sticker, item.size, spec, groups) for sticker in found))
        if item.position is not None:
            relation, others = item.position[0], groups[item.position[1]]
            gone = 2 * max(item.count - len(found), 0)
            left.append(gone + sum(_relation_deficit(relation, sticker, others) for sticker in found))
    left.append(len(stickers) - len({id(sticker) for group in groups for sticker in group}))
    return left


def remarks(scene: Scene, spec: Spec) -> list[str]:
    """What to say of each sticker, in reading order: its number within its item, and each fact that is asked of it.

    Such as "two", "one red no left yes" (it is on the left, and not red), "four extra" where three were asked for, or
    "extra" where no item asks for it.
    """
    stickers = scene.ordered()
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    said = {id(sticker): EXTRA for sticker in stickers}
    for item, found in zip(spec.include, groups, strict=True):
        for number, sticker in enumerate(found, start=1):
            facts: list[tuple[str, bool]] = []
            if item.color is not None:
                facts.append((item.color, sticker.color == item.color))
            if item.region is not None:
                facts.append((item.region, in_region(sticker, item.region)))
            if item.size is not None:
                facts.append((item.size, size_holds(sticker, item.size, spec, groups)))
            if item.position is not None:
                relation, other = item.position
                facts.append((relation, not _relation_deficit(relation, sticker, groups[other])))
            words = [f"{fact} {YES if holds else NO}" for fact, holds in facts]
            said[id(sticker)] = " ".join([number_word(number), *words, *[EXTRA] * (number > item.count)])
    return [said[id(sticker)] for sticker in stickers]


def demands(spec: Spec) -> list[tuple[str, int]]:
    """(kind, item) of each check, in the order of `check`."""
    kinds = ("color", "region", "size", "position")
    demands = []
    for index, item in enumerate(spec.include):
        demands.append(("count", index))
        demands += [(kind, index) for kind in kinds if getattr(item, kind) is not None]
    return [*demands, ("extra", len(spec.include))]


def _side_deficit(sticker: Sticker, region: str) -> int:
    if in_region(sticker, region):
        return 0
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[region]
    return 2 if in_region(sticker, opposite) else 1


def _relation_deficit(relation: str, sticker: Sticker, others: Sequence[Sticker]) -> int:
    if not others:
        return 2
    beyond = reach(relation, [(sticker.x, sticker.y)], [(other.x, other.y) for other in others])
    return 0 if beyond > POSITION_BAND else 1 if beyond > -POSITION_BAND else 2
