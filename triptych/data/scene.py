"""A picture of the sticker world as data: a Scene of stickers that meets a spec, and the exact check of any scene.

x runs right and y runs down, in pixels from the top left corner; a sticker's x and y are its center. The canvas has
nine cells of 32 px with names in reading order (`layout.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from triptych.data.layout import (
    CANVAS,
    CELL,
    CELLS,
    DEFAULT_LAYOUT,
    REGION_CELLS,
    RELATIONS,
    SIZES,
    Layout,
    arrange,
    reach,
    scatter,
)
from triptych.data.lexicon import number_word, plural
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.seeds import sticker_rng
from triptych.trace import Spec

BACKGROUND = (196, 206, 212)  # gray enough that white stays visible
REGION_BAND = 4  # px from the midline that a sticker of a region must keep
POSITION_BAND = 6  # px between centers before one counts as beside the other

_RANK = {size: rank for rank, size in enumerate(SIZES)}
# White shows least, so that a sticker is white only where the spec says so.
# With white among the free colors .542 of planned size and side prompts were right, without .867 (LOG.md E18).
_OPEN_COLORS = tuple(name for name in COLORS if name != "white")


@dataclass(frozen=True, slots=True)
class Sticker:
    """One silhouette: its class and color, its center in px, and its size (a key of `SIZES`)."""

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
        # Clamped: a detector may see a center a little beyond the canvas.
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
        names a class or color outside this world.
        """
        _check_words(spec)
        rng = sticker_rng("scene", seed)
        groups = arrange(spec, rng, layout)
        drafts: list[tuple[str, str, int, str]] = []  # class, color, cell, size
        for index, (item, cells) in enumerate(zip(spec.include, groups, strict=True)):
            size = item.size or "normal"
            palette = _allowed_colors(spec, index)
            # Most items have one color: less to guess for a model that learns to draw them.
            mixed = rng.random() < 0.1
            common = rng.choice(palette)
            drafts += [(item.name, rng.choice(palette) if mixed else common, cell, size) for cell in cells]
        centers = scatter([(cell, SIZES[size]) for _, _, cell, size in drafts], rng, layout)
        pairs = zip(drafts, centers, strict=True)
        scene = Scene(tuple(Sticker(name, color, x, y, size) for (name, color, _, size), (x, y) in pairs))
        # Two items of one class without colors of their own claim each other's stickers: no scene meets such a spec.
        failed = [fact.text for fact in check(scene, spec) if not fact.held]
        if failed:
            raise ConfigError(f"the spec contradicts itself: {failed[0]}; items of one class need different colors")
        return scene

    @property
    def cells(self) -> dict[str, Sticker]:
        """The first sticker of each cell that has one, in reading order."""
        return {sticker.cell: sticker for sticker in reversed(self.ordered())}

    def ordered(self) -> list[Sticker]:
        """The stickers in reading order of their cells; within a cell from top to bottom."""
        return sorted(self.stickers, key=lambda sticker: (sticker.place, sticker.y, sticker.x))


@dataclass(frozen=True, slots=True)
class Check:
    """One demand of a spec and whether the scene meets it, in plain words: "three clocks: found two"."""

    text: str
    held: bool
    item: int  # index in spec.include; of the last check, "extra", the number of items
    kind: Literal["count", "color", "region", "size", "position", "extra"]


def check(scene: Scene, spec: Spec) -> tuple[Check, ...]:
    """One check per demanded fact in spec order, and a last one for stickers that belong to no item; exact.

    A demand about stickers that are absent fails. A larger item must outrank every smaller one, or, alone, be larger
    than normal.
    """
    stickers = scene.ordered()  # what is said of a scene must not depend on the order that its stickers were put down
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    checks: list[Check] = []
    for index, (item, group) in enumerate(zip(spec.include, groups, strict=True)):
        name = item.name if item.count == 1 else plural(item.name)
        verb = "is" if item.count == 1 else "are"
        # "three red cats" and not "three cats", where the spec has cats of another color, too.
        has_rival = sum(other.name == item.name for other in spec.include) > 1
        thing = f"{item.color} {name}" if has_rival and item.color else name
        demand, number = f"{number_word(item.count)} {thing}", number_word(len(group))
        checks.append(_check_of(index, "count", demand, number, len(group) == item.count))
        if item.color is not None:
            wrong = [sticker.color for sticker in group if sticker.color != item.color]
            checks.append(_check_of(index, "color", f"{name} {verb} {item.color}", *_outcome(group, wrong)))
        if item.region is not None:
            wrong = [_region_of(sticker, item.region) for sticker in group if not in_region(sticker, item.region)]
            side = f"on the {item.region}" if item.region in ("left", "right") else item.region
            checks.append(_check_of(index, "region", f"{name} {side}", *_outcome(group, wrong)))
        if item.size is not None:
            sizes = [sticker.size for sticker in group if not size_holds(sticker, item.size, spec, groups)]
            wrong = ["same" if size == item.size else size for size in sizes]  # as its rival, or there is no rival
            checks.append(_check_of(index, "size", f"{name} {verb} {item.size}", *_outcome(group, wrong)))
        if item.position is not None:
            relation, other = item.position
            wrong = _wrong_relation(relation, group, groups[other])
            demand = f"{name} {relation} {spec.include[other].name}"
            checks.append(_check_of(index, "position", demand, *_outcome(group and groups[other], wrong)))
    extra = [f"{sticker.color} {sticker.name}" for sticker in extras(stickers, groups)]
    checks.append(_check_of(len(groups), "extra", "nothing else", extra[0] if extra else "none", not extra))
    return tuple(checks)


def members(stickers: Sequence[Sticker], spec: Spec, index: int) -> list[Sticker]:
    """The stickers that count for an item: of its class and, where items share the class, of its color and region."""
    item = spec.include[index]
    group = [sticker for sticker in stickers if sticker.name == item.name]
    rivals = [other for other in spec.include if other.name == item.name and other is not item]
    if not rivals:
        return group  # of any color: a blue cat, where a red one is asked for, is that cat in a wrong color
    if item.color is not None:
        group = [sticker for sticker in group if sticker.color == item.color]
    else:
        group = [sticker for sticker in group if sticker.color not in {other.color for other in rivals}]
    if item.region is not None and any(other.region not in (None, item.region) for other in rivals):
        group = [sticker for sticker in group if in_region(sticker, item.region)]
    return group


def extras(stickers: Sequence[Sticker], groups: Sequence[Sequence[Sticker]]) -> list[Sticker]:
    """The stickers that are in no item's group."""
    members_of_items = {id(sticker) for group in groups for sticker in group}  # by identity: two may be equal
    return [sticker for sticker in stickers if id(sticker) not in members_of_items]


def in_region(sticker: Sticker, region: str) -> bool:
    """Whether the sticker's center keeps `REGION_BAND` px or more on that side of the canvas midline."""
    offset = (sticker.x if region in ("left", "right") else sticker.y) - CANVAS / 2
    return (-offset if region in ("left", "above") else offset) >= REGION_BAND


def size_holds(sticker: Sticker, size: str, spec: Spec, groups: Sequence[Sequence[Sticker]]) -> bool:
    """Whether a sticker of a larger or smaller item has that size, given the stickers of every item."""
    opposite = "smaller" if size == "larger" else "larger"
    rivals = [group for item, group in zip(spec.include, groups, strict=True) if item.size == opposite]
    others = [other for group in rivals for other in group]
    # A comparison needs something to compare with; alone, the size itself decides.
    if not rivals:
        return sticker.size == size
    if size == "larger":
        return bool(others) and all(_RANK[sticker.size] > _RANK[other.size] for other in others)
    return bool(others) and all(_RANK[sticker.size] < _RANK[other.size] for other in others)


def clearance(relation: str, sticker: Sticker, others: Sequence[Sticker]) -> float:
    """How far a sticker lies beyond the farthest of some others, in px; above POSITION_BAND the relation holds."""
    return reach(relation, [(sticker.x, sticker.y)], [(other.x, other.y) for other in others])


@lru_cache(maxsize=4096)  # training samples scenes of the same specs again and again
def _check_words(spec: Spec) -> None:
    """Raise ConfigError for a class, color, region, size or relation that is not of this world."""
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


def _allowed_colors(spec: Spec, index: int) -> Sequence[str]:
    """The colors of an item's stickers: its own, or any but white that does not make them another item's."""
    item = spec.include[index]
    if item.color is not None:
        return (item.color,)
    rival_colors = {other.color for other in spec.include if other.name == item.name}
    return [color for color in _OPEN_COLORS if color not in rival_colors]


def _check_of(item: int, kind, demand: str, instead: str, held: bool) -> Check:
    return Check(demand if held else f"{demand}: found {instead}", held, item, kind)


def _outcome(group: Sequence[Sticker], wrong: Sequence[str]) -> tuple[str, bool]:
    """What there is instead, and whether the demand holds: nothing wrong, and not nothing at all."""
    return (wrong[0] if wrong else "none"), bool(group) and not wrong


def _region_of(sticker: Sticker, region: str) -> str:
    for side in ("left", "right") if region in ("left", "right") else ("above", "below"):
        if in_region(sticker, side):
            return side
    return "center"


def _wrong_relation(relation: str, group: Sequence[Sticker], others: Sequence[Sticker]) -> list[str]:
    """Empty if every pair stands in the relation, else how the first pair that does not stands instead."""
    for sticker in group:
        for other in others:
            if clearance(relation, sticker, [other]) > POSITION_BAND:
                continue
            right, down = sticker.x - other.x, sticker.y - other.y
            if max(abs(right), abs(down)) <= POSITION_BAND:  # too near to be said to stand anywhere
                return ["same cell"]
            # Said of the axis along which they lie farther apart, as a person would.
            if abs(right) > abs(down):
                return ["right of" if right > 0 else "left of"]
            return ["below" if down > 0 else "above"]
    return []
