"""The small world: a Scene of stickers that meets a spec, the exact check of it, and an endless stream of specs.

x runs right and y runs down, in pixels from the top left corner; a sticker's x and y are its centre. The canvas has
nine cells of 32 px with names in reading order (`layout.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from triptych.data.layout import (
    CANVAS,
    CELL,
    CELLS,
    DEFAULT_LAYOUT,
    RELATIONS,
    REGION_CELLS,
    SIZES,
    Layout,
    arrange,
    reach,
    scatter,
)
from triptych.data.lexicon import number_word, plural
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.trace import Spec

BACKGROUND = (196, 206, 212)  # grey enough that white stays visible
REGION_BAND = 4  # px from the midline that a sticker of a region must keep
POSITION_BAND = 6  # px between centres before one counts as beside the other

_RANK = {size: rank for rank, size in enumerate(SIZES)}
_PALETTE = tuple(COLORS)
_FREE = tuple(name for name in COLORS if name != "white")  # white shows least: it is for those who ask for it


@dataclass(frozen=True, slots=True)
class Sticker:
    """One silhouette: what it is, its colour, its centre in px, and its size (a key of `SIZES`)."""

    name: str
    color: str
    x: float
    y: float
    size: str = "normal"

    @property
    def side(self) -> int:
        """Side of the box in px."""
        return SIZES[self.size]

    @property
    def place(self) -> int:
        """Index of the nearest cell in `CELLS`."""
        column, row = int(self.x // CELL), int(self.y // CELL)
        return min(max(row, 0), 2) * 3 + min(max(column, 0), 2)

    @property
    def cell(self) -> str:
        """Name of the nearest cell."""
        return CELLS[self.place]


@dataclass(frozen=True)
class Scene:
    """Stickers on the canvas; later ones cover earlier ones."""

    stickers: tuple[Sticker, ...]

    @staticmethod
    def sample(spec: Spec, seed: int, layout: Layout = DEFAULT_LAYOUT) -> Scene:
        """A scene that meets the spec: every check holds, no boxes overlap, none leaves the canvas.

        The same spec, seed and layout give the same scene. Raises ConfigError if the spec cannot fit nine cells, or
        names a class or colour outside this world.
        """
        _expect_known(spec)
        rng = Random(8 * seed + 1)
        groups = arrange(spec, rng, layout)
        blanks = []
        for index, (item, cells) in enumerate(zip(spec.include, groups, strict=True)):
            size = item.size or "normal"
            palette = _free_colors(spec, index)
            own = rng.random() < 0.1  # most items have one colour: less to guess for a model that learns to draw them
            shared = rng.choice(palette)
            blanks += [(item.name, rng.choice(palette) if own else shared, cell, size) for cell in cells]
        centres = scatter([(cell, SIZES[size]) for _, _, cell, size in blanks], rng, layout)
        placed = zip(blanks, centres, strict=True)
        scene = Scene(tuple(Sticker(name, color, x, y, size) for (name, color, _, size), (x, y) in placed))
        failed = [fact.text for fact in check(scene, spec) if not fact.held]
        if failed:
            raise ConfigError(f"the spec contradicts itself: {failed[0]}; items of one class need different colours")
        return scene

    @property
    def cells(self) -> dict[str, Sticker]:
        """The first sticker of each cell that has one, in reading order."""
        return {sticker.cell: sticker for sticker in reversed(self.ordered())}

    def ordered(self) -> list[Sticker]:
        """The stickers in reading order of their cells; within a cell from top to bottom."""
        return sorted(self.stickers, key=lambda sticker: (sticker.place, sticker.y, sticker.x))


def _free_colors(spec: Spec, index: int) -> Sequence[str]:
    """The colours an item's stickers may have: its own, or any but white that does not make them another item's."""
    item = spec.include[index]
    if item.color is not None:
        return (item.color,)
    claimed = {other.color for other in spec.include if other.name == item.name}
    return [color for color in _FREE if color not in claimed]


@lru_cache(maxsize=4096)
def _expect_known(spec: Spec) -> None:
    for item in spec.include:
        if item.name not in CLASSES:
            raise ConfigError(f"class {item.name!r} is not in this world; expected one of stickers.CLASSES")
        if item.color is not None and item.color not in COLORS:
            raise ConfigError(f"color {item.color!r} is not in this world; expected one of {', '.join(COLORS)}")
        if item.region is not None and item.region not in REGION_CELLS:
            raise ConfigError(f"region {item.region!r}: expected one of {', '.join(REGION_CELLS)}")
        if item.size not in (None, "smaller", "larger"):
            raise ConfigError(f"size {item.size!r}: expected smaller or larger")
        relation, other = item.position or ("above", 0)
        if relation not in RELATIONS or not 0 <= other < len(spec.include):
            raise ConfigError(f"position {item.position!r}: expected {', '.join(RELATIONS)}, and an item's index")


@dataclass(frozen=True, slots=True)
class Check:
    """One demand of a spec and whether the scene meets it, in plain words: "three clocks: found two"."""

    text: str
    held: bool
    item: int  # index in spec.include; of the last check, "extra", the number of items
    kind: Literal["count", "color", "region", "size", "position", "extra"]


def check(scene: Scene, spec: Spec) -> tuple[Check, ...]:
    """One check per demanded fact in spec order, and a last one for stickers that no item asks for; exact.

    A demand about stickers that are absent fails. A larger item must outrank every smaller one, or, alone, be larger
    than normal.
    """
    stickers = scene.ordered()  # what is said of a scene must not depend on the order that its stickers were put down
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    checks: list[Check] = []
    for index, (item, found) in enumerate(zip(spec.include, groups, strict=True)):
        name = item.name if item.count == 1 else plural(item.name)
        verb = "is" if item.count == 1 else "are"
        rivals = sum(other.name == item.name for other in spec.include) > 1
        what = f"{item.color} {name}" if rivals and item.color else name
        asked, number = number_word(item.count), number_word(len(found))
        checks.append(_checked(index, "count", f"{asked} {what}", number, len(found) == item.count))
        if item.color is not None:
            wrong = [sticker.color for sticker in found if sticker.color != item.color]
            checks.append(_checked(index, "color", f"{name} {verb} {item.color}", *_verdict(found, wrong)))
        if item.region is not None:
            wrong = [_side_of(sticker, item.region) for sticker in found if not in_region(sticker, item.region)]
            side = f"on the {item.region}" if item.region in ("left", "right") else item.region
            checks.append(_checked(index, "region", f"{name} {side}", *_verdict(found, wrong)))
        if item.size is not None:
            wrong = [sticker.size for sticker in found if not size_holds(sticker, item.size, spec, groups)]
            told = ["same" if size == item.size else size for size in wrong]  # as its rival, or there is no rival
            checks.append(_checked(index, "size", f"{name} {verb} {item.size}", *_verdict(found, told)))
        if item.position is not None:
            relation, other = item.position
            wrong = _wrong_relation(relation, found, groups[other])
            demand = f"{name} {relation} {spec.include[other].name}"
            checks.append(_checked(index, "position", demand, *_verdict(found and groups[other], wrong)))
    asked = {id(sticker) for group in groups for sticker in group}
    extra = [f"{sticker.color} {sticker.name}" for sticker in stickers if id(sticker) not in asked]
    checks.append(_checked(len(groups), "extra", "nothing else", extra[0] if extra else "none", not extra))
    return tuple(checks)


def members(stickers: Sequence[Sticker], spec: Spec, index: int) -> list[Sticker]:
    """The stickers that count for an item: of its class and, where items share the class, of its colour and region."""
    item = spec.include[index]
    found = [sticker for sticker in stickers if sticker.name == item.name]
    rivals = [other for other in spec.include if other.name == item.name and other is not item]
    if not rivals:
        return found
    if item.color is not None:
        found = [sticker for sticker in found if sticker.color == item.color]
    else:
        found = [sticker for sticker in found if sticker.color not in {other.color for other in rivals}]
    if item.region is not None and any(other.region not in (None, item.region) for other in rivals):
        found = [sticker for sticker in found if in_region(sticker, item.region)]
    return found


def in_region(sticker: Sticker, region: str) -> bool:
    """Whether the sticker's centre keeps `REGION_BAND` px or more on that side of the canvas midline."""
    offset = (sticker.x if region in ("left", "right") else sticker.y) - CANVAS / 2
    return (-offset if region in ("left", "above") else offset) >= REGION_BAND


def _checked(item: int, kind, demand: str, found: str, held: bool) -> Check:
    return Check(demand if held else f"{demand}: found {found}", held, item, kind)


def _verdict(found: Sequence[Sticker], wrong: Sequence[str]) -> tuple[str, bool]:
    """What was found instead, and whether the demand holds: nothing wrong, and not nothing at all."""
    return (wrong[0] if wrong else "none"), bool(found) and not wrong


def _side_of(sticker: Sticker, region: str) -> str:
    for side in ("left", "right") if region in ("left", "right") else ("above", "below"):
        if in_region(sticker, side):
            return side
    return "center"


def size_holds(sticker: Sticker, size: str, spec: Spec, groups: list[list[Sticker]]) -> bool:
    """Whether a sticker of a larger or smaller item has that size, given the stickers of every item."""
    opposite = "smaller" if size == "larger" else "larger"
    rivals = [group for item, group in zip(spec.include, groups, strict=True) if item.size == opposite]
    others = [other for group in rivals for other in group]
    if not rivals:
        return sticker.size == size
    if size == "larger":
        return bool(others) and all(_RANK[sticker.size] > _RANK[other.size] for other in others)
    return bool(others) and all(_RANK[sticker.size] < _RANK[other.size] for other in others)


def _wrong_relation(relation: str, found: Sequence[Sticker], others: Sequence[Sticker]) -> list[str]:
    """Empty if every pair stands in the relation, else how the first pair that does not stands instead."""
    for sticker in found:
        for other in others:
            if reach(relation, [(sticker.x, sticker.y)], [(other.x, other.y)]) > POSITION_BAND:
                continue
            right, down = sticker.x - other.x, sticker.y - other.y
            if max(abs(right), abs(down)) <= POSITION_BAND:
                return ["same cell"]
            if abs(right) > abs(down):
                return ["right of" if right > 0 else "left of"]
            return ["below" if down > 0 else "above"]
    return []
