"""Where stickers go: nine cells of 32 px on a canvas of 96 px, filled by a few templates; shift and jitter on request.

x runs right and y runs down, in pixels from the top left corner. Cells are numbered in reading order. Layouts have low
entropy on purpose: free placement takes a small model far longer to learn than a few templates filled in reading order.
A sticker in the middle of its cell meets the model's patches of 16 px the same way every time; one that is moved by a
few pixels is another picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from triptych.bounds import NonNegativeFloat, Share, check_bounds
from triptych.errors import ConfigError
from triptych.trace import Spec

# Three cells a side, each of 2 x 2 patches of the vision tower (16 px).
CANVAS = 96  # px
CELL = 32  # px
SIZES = {"smaller": 16, "normal": 24, "larger": 32}  # side of a sticker's box in px
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
REGION_CELLS = {"left": (0, 3, 6), "right": (2, 5, 8), "above": (0, 1, 2), "below": (6, 7, 8)}
RELATIONS = ("left of", "right of", "above", "below")
MAX_ATTEMPTS = 500  # arrangements that are tried before a spec is said not to fit

# Canonical subsets of the cells for n stickers, the usual one first. Few of them: each is a whole layout to be learned.
TEMPLATES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((4,), *((cell,) for cell in (0, 1, 2, 3, 5, 6, 7, 8))),
    2: ((3, 5), (0, 2), (6, 8), (0, 6), (1, 7), (2, 8), (0, 8), (2, 6)),
    3: ((3, 4, 5), (0, 1, 2), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)),
    4: ((0, 2, 6, 8), (0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8), (1, 3, 5, 7)),
    5: ((0, 2, 4, 6, 8), (1, 3, 4, 5, 7), (0, 1, 2, 3, 5), (3, 5, 6, 7, 8)),
    6: ((0, 1, 2, 6, 7, 8), (0, 1, 2, 3, 4, 5), (3, 4, 5, 6, 7, 8), (0, 2, 3, 5, 6, 8)),
    7: ((0, 1, 2, 4, 6, 7, 8), (0, 2, 3, 4, 5, 6, 8), (0, 1, 2, 3, 4, 5, 7)),
    8: ((0, 1, 2, 3, 5, 6, 7, 8), (0, 1, 2, 3, 4, 5, 6, 8)),
    9: ((0, 1, 2, 3, 4, 5, 6, 7, 8),),
}
# Likewise: which of the three cells of a region n stickers take, as indices into REGION_CELLS.
REGION_TEMPLATES = {1: ((1,), (0,), (2,)), 2: ((0, 2), (0, 1), (1, 2)), 3: ((0, 1, 2),)}

_ALL_CELLS = range(len(CELLS))


@dataclass(frozen=True)
class Layout:
    """How freely stickers are placed.

    `canonical` is the share of layouts that follow a template, `usual` the share of these that take the first template
    (the others are any, evenly). `shift` moves the whole picture, `jitter` each sticker, both in px. Together they stay
    under half a cell, so that a sticker's nearest cell is always the one it was put in; ConfigError otherwise.
    """

    canonical: Share = 0.9  # freer SFT layouts made plans miscount (LOG.md E77)
    usual: Share = 0.6
    jitter: NonNegativeFloat = 0.0
    shift: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_bounds(self, "layout")
        if self.jitter + self.shift >= CELL / 2:
            raise ConfigError(f"jitter={self.jitter}, shift={self.shift}: expected under {CELL // 2} px together")


DEFAULT_LAYOUT = Layout()
FREE_LAYOUT = Layout(canonical=0.8, jitter=2.0, shift=4.0)  # the harder world: no two pictures alike


def arrange(spec: Spec, rng: Random, layout: Layout) -> list[list[int]]:
    """Cells for the stickers of each item, in spec order, so that regions and relations hold.

    Raises ConfigError if the counts do not fit nine cells, or no arrangement is found in MAX_ATTEMPTS.
    """
    counts = [item.count for item in spec.include]
    if not counts or sum(counts) > len(CELLS) or min(counts) < 1:
        raise ConfigError(f"counts {counts}: expected 1 or more of each item, and {len(CELLS)} at most in all")
    has_regions = any(item.region for item in spec.include)
    has_relations = any(item.position for item in spec.include)
    canonical = rng.random() < layout.canonical
    for attempt in range(MAX_ATTEMPTS):
        # Templates may contradict a spec (a relation, a full region): the second half of the attempts takes any cells.
        usual = layout.usual if canonical and attempt < MAX_ATTEMPTS // 2 else None
        groups = _by_region(spec, rng, usual) if has_regions else _by_template(counts, rng, usual, has_relations)
        if groups is not None and (not has_relations or _relations_hold(spec, groups)):
            return groups
    raise ConfigError(f"no layout found for {counts} stickers on nine cells: at most 3 fit on one side of the canvas")


def scatter(places: Sequence[tuple[int, int]], rng: Random, layout: Layout) -> list[tuple[float, float]]:
    """Centers (x, y) for (cell, side) pairs with the layout's shift and jitter, on the canvas and without overlap."""
    across = _shift([(cell % 3, side) for cell, side in places], rng, layout.shift)
    down = _shift([(cell // 3, side) for cell, side in places], rng, layout.shift)
    jitter = [(rng.uniform(-1, 1) * layout.jitter, rng.uniform(-1, 1) * layout.jitter) for _ in places]
    for strength in (1.0, 0.5, 0.25):  # less jitter where neighbors would touch
        boxes = []
        for (cell, side), (dx, dy) in zip(places, jitter, strict=True):
            x, y = middle(cell % 3) + across + strength * dx, middle(cell // 3) + down + strength * dy
            boxes.append((clamp(x, side), clamp(y, side), side))
        if not any(overlap(box, other) for index, box in enumerate(boxes) for other in boxes[:index]):
            return [(x, y) for x, y, _ in boxes]
    return [(middle(cell % 3) + across, middle(cell // 3) + down) for cell, _ in places]


def reach(relation: str, these: Sequence[tuple[float, float]], those: Sequence[tuple[float, float]]) -> float:
    """How far the nearest of `these` (x, y) lies beyond the farthest of `those` in the direction of the relation."""
    axis = 0 if relation in ("left of", "right of") else 1
    if relation in ("left of", "above"):
        return min(point[axis] for point in those) - max(point[axis] for point in these)
    return min(point[axis] for point in these) - max(point[axis] for point in those)


def middle(line: int) -> float:
    """Center of a row or column of cells in px."""
    return CELL * (line + 0.5)


def clamp(center: float, side: int) -> float:
    """The center nearest to this one that keeps a box of that side on the canvas, along one axis."""
    return min(max(center, side / 2), CANVAS - side / 2)


def overlap(box: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    """Whether two boxes (x, y, side) share more than an edge."""
    distance = (box[2] + other[2]) / 2
    return abs(box[0] - other[0]) < distance and abs(box[1] - other[1]) < distance


def _shift(lines: list[tuple[int, int]], rng: Random, limit: float) -> float:
    """One offset for all (line, side) pairs along one axis, within `limit` px, that keeps every box on the canvas."""
    low = max([-limit, *(side / 2 - middle(line) for line, side in lines)])
    high = min([limit, *(CANVAS - side / 2 - middle(line) for line, side in lines)])
    return rng.uniform(low, high)


def _by_template(counts: list[int], rng: Random, usual: float | None, shuffle: bool) -> list[list[int]]:
    """Cells of a template, the usual one with that share; any cells at all for None."""
    total = sum(counts)
    cells = rng.sample(_ALL_CELLS, total) if usual is None else list(_choose(TEMPLATES[total], rng, usual))
    order = list(range(len(counts)))
    # Relations need items in any order of the cells; without them, items fill the cells in reading order.
    if shuffle:
        rng.shuffle(order)
    groups: list[list[int]] = [[] for _ in counts]
    for index in order:
        groups[index], cells = cells[: counts[index]], cells[counts[index] :]
    return groups


def _by_region(spec: Spec, rng: Random, usual: float | None) -> list[list[int]] | None:
    """Cells in each item's region, the usual ones with that share; any free ones for None. None if they run out."""
    groups: list[list[int]] = [[] for _ in spec.include]
    occupied: set[int] = set()
    # Items without a region come last, so that they take no cell that another item needs.
    for index in sorted(range(len(groups)), key=lambda index: spec.include[index].region is None):
        item = spec.include[index]
        region = REGION_CELLS[item.region] if item.region else tuple(_ALL_CELLS)
        free = [cell for cell in region if cell not in occupied]
        if len(free) < item.count:
            return None
        cells: list[int] = []
        if item.region and usual is not None and item.count in REGION_TEMPLATES:
            cells = [region[place] for place in _choose(REGION_TEMPLATES[item.count], rng, usual)]
        groups[index] = cells if cells and occupied.isdisjoint(cells) else sorted(rng.sample(free, item.count))
        occupied.update(groups[index])
    return groups


def _choose(templates: Sequence[tuple[int, ...]], rng: Random, usual: float) -> tuple[int, ...]:
    return templates[0] if rng.random() < usual else rng.choice(templates)


def _relations_hold(spec: Spec, groups: list[list[int]]) -> bool:
    points = [[(cell % 3, cell // 3) for cell in cells] for cells in groups]
    return all(
        reach(item.position[0], points[index], points[item.position[1]]) > 0
        for index, item in enumerate(spec.include)
        if item.position is not None
    )
