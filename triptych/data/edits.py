"""Edits of a scene: one change, made to a scene, chosen at random, chosen to repair a flaw, or chosen to make one.

An edit names its place by the cell and nothing else, as a sentence would: "remove the red clock at top left". Where two
stickers share a cell, the one that fits the edit's words is meant, else the first in reading order. `deficits` measures
how far a scene is from a spec, check by check; a repair brings it down to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from random import Random
from typing import Literal

from triptych.data.layout import (
    CELL,
    CELLS,
    DEFAULT_LAYOUT,
    FREE_LAYOUT,
    REGION_CELLS,
    SIZES,
    Layout,
    clamp,
    middle,
    overlap,
)
from triptych.data.scene import POSITION_BAND, Scene, Sticker, clearance, extras, in_region, members, size_holds
from triptych.data.stickers import CLASSES, COLORS
from triptych.seeds import sticker_rng
from triptych.trace import Spec


@dataclass(frozen=True, slots=True)
class Edit:
    """One change: add `name` in `color` and `size` at `cell`, or change the sticker in `cell`.

    recolor to `color`, move to the cell `to`, resize to `size`, swap for `name` in `color` (None keeps the color) and
    `size` (None keeps it). In remove, recolor, move and resize `name` says what stands there, in remove `color` too.
    """

    kind: Literal["add", "remove", "recolor", "move", "swap", "resize"]
    cell: str
    name: str | None = None
    color: str | None = None
    size: str | None = None
    to: str | None = None


def apply(scene: Scene, edit: Edit, seed: int, layout: Layout = DEFAULT_LAYOUT) -> Scene:
    """The scene after the edit; other stickers keep their place and order.

    A new place takes over the shift of the other stickers and the layout's jitter. Raises ValueError if the edit cannot
    be made: nothing in the cell, no room in the cell, or a word missing or unknown.
    """
    _check_words(edit)
    rng = sticker_rng("apply", seed)  # places alone are random: what is put there is in the edit
    goal = edit.cell if edit.kind == "add" else edit.to if edit.kind == "move" else None
    if goal is not None and any(sticker.cell == goal for sticker in scene.stickers):
        raise ValueError(f"{edit.kind}: the cell {goal!r} is taken; expected a free one")
    if edit.kind == "add":
        size = edit.size or "normal"
        x, y = _place(scene.stickers, edit.cell, SIZES[size], rng, layout)
        return Scene((*scene.stickers, Sticker(str(edit.name), str(edit.color), x, y, size)))
    old = _target(scene, edit)
    others = tuple(sticker for sticker in scene.stickers if sticker is not old)
    if edit.kind == "remove":
        return Scene(others)
    if edit.kind == "move":
        x, y = _place(others, str(edit.to), old.side, rng, layout)
        new = replace(old, x=x, y=y)
    elif edit.kind == "recolor":
        new = replace(old, color=str(edit.color))
    else:
        name = old.name if edit.kind == "resize" else str(edit.name)
        new = _resized(replace(old, name=name, color=edit.color or old.color), edit.size or old.size)
    return Scene(tuple(new if sticker is old else sticker for sticker in scene.stickers))


def fix(scene: Scene, spec: Spec, seed: int) -> Edit | None:
    """The edit that repairs the first failed check that one edit can bring nearer, and sets no check back.

    None if and only if all checks hold. A sticker of no item is replaced or repainted before anything is added or
    removed, and the first cell in reading order wins. Seeds choose colors that the spec leaves open. If every edit sets
    some check back (a crowded canvas), the one that leaves the smallest deficit is taken.
    """
    before = deficits(scene, spec)  # one number for each check, so that a repair can be seen to set none back
    if not any(before):
        return None
    # Without relations the remedies of a check come in the order of their worth, and the first good one is taken. With
    # relations a move may serve one and break another: all are tried, and the smallest deficit wins.
    has_relations = any(item.position for item in spec.include)
    candidates: list[tuple[int, Edit]] = []  # deficit that an edit leaves, the edit
    for index, deficit in enumerate(before):
        improvements: list[tuple[int, Edit]] = []
        for edit in _remedies(scene, spec, index, sticker_rng("fix", seed)) if deficit else ():
            after = deficits(apply(scene, edit, seed), spec)
            candidates.append((sum(after), edit))
            if after[index] < deficit and all(new <= old for new, old in zip(after, before, strict=True)):
                improvements.append(candidates[-1])
                if not has_relations:
                    return edit
        if improvements:
            return min(improvements, key=itemgetter(0))[1]
    if candidates and min(candidates, key=itemgetter(0))[0] < sum(before):
        return min(candidates, key=itemgetter(0))[1]
    # A crowded canvas, on which no edit helps: room is made, and what is then missing is added by later repairs.
    return _removal(_least_needed(scene, spec))


def random_edit(scene: Scene, seed: int) -> Edit:
    """Any edit that can be made to the scene and changes it."""
    rng = sticker_rng("random_edit", seed)
    stickers, free = scene.ordered(), _free_cells(scene)
    kinds = [*["remove", "recolor", "swap", "resize"] * bool(stickers), *["add"] * bool(free)]
    kind = rng.choice([*kinds, *["move"] * bool(free and stickers)])
    if kind == "add":
        size = None if rng.random() < 0.7 else rng.choice(("smaller", "larger"))
        return Edit("add", rng.choice(free), rng.choice(CLASSES), rng.choice(list(COLORS)), size)
    # The first sticker of a cell, which is the one that an edit without more words means.
    old = rng.choice(list(scene.cells.values()))
    if kind == "remove":
        return _removal(old)
    if kind == "recolor":
        return Edit("recolor", old.cell, old.name, _other(COLORS, old.color, rng))
    if kind == "move":
        return Edit("move", old.cell, old.name, to=rng.choice(free))
    if kind == "resize":
        return Edit("resize", old.cell, old.name, size=_other(SIZES, old.size, rng))
    color = _other(COLORS, old.color, rng) if rng.random() < 0.5 else None
    return Edit("swap", old.cell, _other(CLASSES, old.name, rng), color)


def spoil(scene: Scene, spec: Spec, seed: int, edits: int = 1) -> Scene:
    """The scene with that many plausible mistakes, each of which takes it farther from the spec: never meets the spec.

    Something is missing, there twice, foreign, of the wrong class, in the wrong color, on the wrong side, or in the
    wrong size. Wrong classes and colors are often those of another item, as in a model's own mistakes. Raises
    ValueError if 40 attempts break nothing of a scene that met the spec.
    """
    rng = sticker_rng("spoil", seed)
    for _ in range(edits):
        before = sum(deficits(scene, spec))
        # Some mistakes break nothing (a color that the spec leaves open), so another one is drawn.
        for attempt in range(40):
            mistake = _mistake(scene, spec, rng)
            # A seed of its own for every attempt, or all would land on the same spot.
            spoiled = apply(scene, mistake, rng.getrandbits(32)) if mistake is not None else scene
            if sum(deficits(spoiled, spec)) > before:
                scene = spoiled
                break
            if attempt == 39 and before == 0:
                raise ValueError(f"no mistake found that breaks {spec}")
    return scene


def deficits(scene: Scene, spec: Spec) -> list[int]:
    """How far each check of `check(scene, spec)`, in the same order, is from holding: 0 where it holds.

    Counts what is missing or too much, and stickers with the wrong color, size or side (a wrong side or relation is
    twice as far as one in between); more than 0 where there is no sticker to judge.
    """
    stickers = scene.ordered()
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    amounts: list[int] = []
    for item, group in zip(spec.include, groups, strict=True):
        absent = int(not group)  # nothing to judge is one away from right, and never right
        # Missing and surplus stickers weigh alike: each is one edit from right.
        amounts.append(abs(len(group) - item.count))
        if item.color is not None:
            amounts.append(absent or sum(sticker.color != item.color for sticker in group))
        if item.region is not None:
            amounts.append(absent or sum(_side_deficit(sticker, item.region) for sticker in group))
        if item.size is not None:
            amounts.append(absent or sum(not size_holds(sticker, item.size, spec, groups) for sticker in group))
        if item.position is not None:
            relation, others = item.position[0], groups[item.position[1]]
            # As far as on the opposite side: to add a sticker there is no worse than not to add it.
            missing = 2 * max(item.count - len(group), 0)
            amounts.append(missing + sum(_relation_deficit(relation, sticker, others) for sticker in group))
    amounts.append(len(extras(stickers, groups)))
    return amounts


def demands(spec: Spec) -> list[tuple[str, int]]:
    """(kind, item) of each check, in the order of `check`."""
    kinds = ("color", "region", "size", "position")
    demands = []
    for index, item in enumerate(spec.include):
        demands.append(("count", index))
        demands += [(kind, index) for kind in kinds if getattr(item, kind) is not None]
    return [*demands, ("extra", len(spec.include))]


def _mistake(scene: Scene, spec: Spec, rng: Random) -> Edit | None:
    """One edit that probably breaks a demand of the spec; None where the kind that was drawn has no place."""
    items = spec.include
    # Weights: 6 for a wrong count or class, which any picture can have, and 3 for each attribute that the spec names.
    kinds = ["missing", "missing", "copy", "copy", "foreign", "class"]
    kinds += ["color"] * 3 * any(item.color for item in items)
    kinds += ["move"] * 3 * any(item.region or item.position for item in items)
    kinds += ["size"] * 3 * any(item.size for item in items)
    kind, free = rng.choice(kinds), _free_cells(scene)
    present = list(scene.cells.values())
    old = rng.choice(present) if present else None
    if kind == "foreign":
        return Edit("add", rng.choice(free), _other(CLASSES, "", rng), rng.choice(list(COLORS))) if free else None
    if old is None:
        return None
    if kind == "missing":
        return _removal(old)
    if kind == "copy":
        return Edit("add", rng.choice(free), old.name, old.color, old.size) if free else None
    if kind == "move":
        return Edit("move", old.cell, old.name, to=rng.choice(free)) if free else None
    if kind == "size":
        return Edit("resize", old.cell, old.name, size=_other(SIZES, old.size, rng))
    borrows = rng.random() < 0.5  # from another item, as in a model's own mistakes
    if kind == "color":
        others = [item.color for item in items if item.color not in (None, old.color)] if borrows else []
        return Edit("recolor", old.cell, old.name, rng.choice(others) if others else _other(COLORS, old.color, rng))
    names = [item.name for item in items if item.name != old.name] if borrows else []
    return Edit("swap", old.cell, rng.choice(names) if names else _other(CLASSES, old.name, rng))


def _remedies(scene: Scene, spec: Spec, check_index: int, rng: Random) -> Iterator[Edit]:
    """Edits that may bring a failed check nearer, the best first; the caller tries them."""
    kind, index = demands(spec)[check_index]
    stickers = scene.ordered()
    groups = [members(stickers, spec, item) for item in range(len(spec.include))]
    if kind == "extra":
        yield from (_removal(sticker) for sticker in extras(stickers, groups))
        return
    item, group = spec.include[index], groups[index]
    if kind == "count" and len(group) < item.count:
        yield from _supplies(scene, spec, index, groups, rng)
    elif kind == "count":
        # One swap may mend two checks: a sticker too many of this item becomes one that another item lacks.
        spare = _spare(spec, index, group)
        missing = [other for other, each in enumerate(groups) if len(each) < spec.include[other].count]
        yield from (_exchange(sticker, spec, other) for other in missing for sticker in spare)
        yield from (_removal(sticker) for sticker in spare)
    elif kind == "color":
        yield from (Edit("recolor", one.cell, one.name, item.color) for one in group if one.color != item.color)
    elif kind == "size":
        yield from (Edit("resize", one.cell, one.name, size=item.size) for one in group if one.size != item.size)
        yield from _other_sizes(spec, index, groups)
    else:
        # A relation may be mended from either side: by the placed thing, or by what it is placed by.
        movable = [*group, *(groups[item.position[1]] if item.position and kind == "position" else ())]
        goals = _free_cells(scene)
        if kind == "region":  # cells of the region first; the others only serve where these are full
            movable = [one for one in group if not in_region(one, str(item.region))]
            goals = sorted(goals, key=lambda cell: CELLS.index(cell) not in REGION_CELLS[str(item.region)])
        yield from (Edit("move", one.cell, one.name, to=goal) for one in movable for goal in goals)


def _supplies(scene: Scene, spec: Spec, index: int, groups: list[list[Sticker]], rng: Random) -> Iterator[Edit]:
    """Ways to get one more sticker of an item: repaint or replace one that is too many, else add one."""
    item = spec.include[index]
    spare = extras(scene.ordered(), groups)
    for other, group in enumerate(groups):
        if len(group) > spec.include[other].count:
            spare += _spare(spec, other, group)
    spare.sort(key=lambda sticker: item.region is not None and not in_region(sticker, item.region))  # right side first
    # Repainting changes least, then a swap in place; an added sticker needs a free cell.
    same_class = [one for one in spare if one.name == item.name and item.color is not None]
    yield from (Edit("recolor", one.cell, one.name, item.color) for one in same_class)
    yield from (_exchange(sticker, spec, index) for sticker in spare)
    rival_colors = {other.color for other in spec.include if other.name == item.name}
    open_colors = [color for color in COLORS if color not in rival_colors]
    # An open color follows the item's other stickers, as in rendered scenes.
    color = item.color or (groups[index][0].color if groups[index] else rng.choice(open_colors))
    free = _free_cells(scene)
    if item.region is not None:
        free.sort(key=lambda cell: CELLS.index(cell) not in REGION_CELLS[str(item.region)])
    yield from (Edit("add", cell, item.name, color, item.size) for cell in free)


def _exchange(sticker: Sticker, spec: Spec, index: int) -> Edit:
    """Replace a sticker by one of an item, in the color and size that the item demands."""
    item = spec.include[index]
    color = item.color if item.color != sticker.color else None  # not said where it stays: the shorter order
    size = item.size or "normal"
    return Edit("swap", sticker.cell, item.name, color, size if size != sticker.size else None)


def _other_sizes(spec: Spec, index: int, groups: list[list[Sticker]]) -> Iterator[Edit]:
    """Resize the stickers that an item is compared with."""
    for item, group in zip(spec.include, groups, strict=True):
        if item.size is not None and item.size != spec.include[index].size:
            yield from (Edit("resize", one.cell, one.name, size=item.size) for one in group if one.size != item.size)


def _spare(spec: Spec, index: int, group: Sequence[Sticker]) -> list[Sticker]:
    """The stickers of an item that has too many, in the order in which they may go: wrong ones, then the last ones."""
    item = spec.include[index]

    def wrong(sticker: Sticker) -> bool:
        misplaced = item.region is not None and not in_region(sticker, item.region)
        return misplaced or sticker.color != (item.color or sticker.color)

    return sorted(
        reversed(group), key=wrong, reverse=True
    )  # True before False; sorting is stable, so the last come first


def _least_needed(scene: Scene, spec: Spec) -> Sticker:
    """The sticker to remove when nothing else helps: the last whose removal leaves the smallest deficit."""
    by_loss = {
        position: sum(deficits(Scene(tuple(one for one in scene.stickers if one is not sticker)), spec))
        for position, sticker in enumerate(scene.stickers)
    }
    return scene.stickers[min(reversed(by_loss), key=lambda position: by_loss[position])]


def _removal(sticker: Sticker) -> Edit:
    return Edit("remove", sticker.cell, sticker.name, sticker.color)


def _free_cells(scene: Scene) -> list[str]:
    """Cells that are nobody's nearest, in reading order; those with room for a small sticker first."""
    occupied = {sticker.place for sticker in scene.stickers}
    boxes = [(sticker.x, sticker.y, sticker.side) for sticker in scene.stickers]

    def crowded(place: int) -> bool:
        here = (middle(place % 3), middle(place // 3), SIZES["smaller"])
        return any(overlap(here, box) for box in boxes)

    free = [place for place in range(len(CELLS)) if place not in occupied]
    return [CELLS[place] for place in sorted(free, key=crowded)]


def _other(words, old: str, rng: Random) -> str:
    return rng.choice([word for word in words if word != old])


def _target(scene: Scene, edit: Edit) -> Sticker:
    """The sticker that an edit changes. Raises ValueError if its cell is empty."""
    here = [sticker for sticker in scene.ordered() if sticker.cell == edit.cell]
    if not here:
        raise ValueError(f"{edit.kind}: there is no sticker in the cell {edit.cell!r}")
    if edit.kind == "swap":  # its words are those of the new sticker
        return here[0]
    matches = [sticker for sticker in here if sticker.name == edit.name] or here
    if edit.kind == "recolor":
        return next((sticker for sticker in matches if sticker.color != edit.color), matches[0])
    if edit.kind == "resize":
        return next((sticker for sticker in matches if sticker.size != edit.size), matches[0])
    return next((sticker for sticker in matches if sticker.color == edit.color), matches[0])


def _place(others: Sequence[Sticker], cell: str, side: int, rng: Random, layout: Layout) -> tuple[float, float]:
    """A center in the cell, shifted as the other stickers are and jittered; nearer the middle if that would touch."""
    place = CELLS.index(cell)
    home_x, home_y = middle(place % 3), middle(place // 3)
    limit = FREE_LAYOUT.shift  # of a rendered scene; a model's own picture may lie farther off
    count = max(len(others), 1)
    across = sum(one.x - middle(one.place % 3) for one in others) / count
    down = sum(one.y - middle(one.place // 3) for one in others) / count
    across, down = min(max(across, -limit), limit), min(max(down, -limit), limit)
    jitter_x, jitter_y = (rng.uniform(-layout.jitter, layout.jitter) for _ in "xy")
    # The same jitter at full and half strength and none, so that a crowded scene keeps its look as far as it can.
    offsets = [(across + strength * jitter_x, down + strength * jitter_y) for strength in (1.0, 0.5, 0.0)]
    # In a crowded cell: the free spot that is nearest to its middle, to a pixel.
    steps = range(-CELL // 3, CELL // 3 + 1)
    offsets += sorted(product(steps, steps), key=lambda step: step[0] ** 2 + step[1] ** 2)
    # The first offset at which no boxes overlap wins.
    for dx, dy in offsets:
        x, y = clamp(home_x + dx, side), clamp(home_y + dy, side)
        if not any(overlap((x, y, side), (one.x, one.y, one.side)) for one in others):
            return x, y
    return home_x, home_y  # overlapping, where even the crowded cell has no free spot


def _resized(sticker: Sticker, size: str) -> Sticker:
    # A larger box at the edge moves inward, so that nothing leaves the canvas.
    side = SIZES[size]
    return replace(sticker, size=size, x=clamp(sticker.x, side), y=clamp(sticker.y, side))


def _check_words(edit: Edit) -> None:
    """Raise ValueError for a word that is missing or unknown."""
    needed = {"add": ("name", "color"), "recolor": ("color",), "move": ("to",), "swap": ("name",), "resize": ("size",)}
    for field in needed.get(edit.kind, ()):
        if getattr(edit, field) is None:
            raise ValueError(f"{edit.kind}: expected a {field}")
    vocabulary = (("cell", CELLS), ("to", CELLS), ("name", CLASSES), ("color", COLORS), ("size", SIZES))
    for field, words in vocabulary:
        word = getattr(edit, field)
        if word is not None and word not in words:
            raise ValueError(f"{edit.kind}: {field} {word!r} is unknown; expected one of {', '.join(words)}")


def _side_deficit(sticker: Sticker, region: str) -> int:
    if in_region(sticker, region):
        return 0
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[region]
    return 2 if in_region(sticker, opposite) else 1


def _relation_deficit(relation: str, sticker: Sticker, others: Sequence[Sticker]) -> int:
    if not others:
        return 2  # as far as on the opposite side, as for a sticker that is absent
    distance = clearance(relation, sticker, others)  # px; negative on the opposite side
    return 0 if distance > POSITION_BAND else 1 if distance > -POSITION_BAND else 2
