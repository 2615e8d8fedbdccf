"""From recorded verdicts to tables: right of asked per column, means of columns, and their intervals.

A column's accuracy is right / asked over all its questions. Means of columns and of groups of columns weigh each member
alike, as GenEval and TIIF do. Missing verdicts are in neither count and are told beside them. Intervals are 95 %
percentile bootstraps over the prompts of each column: pictures of one prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from triptych.eval.recorded import LENGTHS, Recorded
from triptych.eval.report import OVERALL, RESAMPLES, Estimate, Row

DRAWS_AT_ONCE = 4_000_000  # numbers held while resampling: 32 MB
Means = Float[np.ndarray, "resample"]  # the mean as it is, then of each resample; NaN where nothing was asked

# TIIF-Bench's own groups of attributes (arXiv 2506.02161); the nine of them together make up its overall score
_BASIC = {
    "Attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "Relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "Reasoning": ("numeracy", "negation", "differentiation", "comparison"),
}
_KINDS = ("numeracy", "comparison", "differentiation", "negation")
_ADVANCED = {
    "Attribute+Relation": (
        *("action+color", "action+texture"),
        *(f"{kind}+{axis}" for kind in ("color", "shape", "texture") for axis in ("2d", "3d")),
    ),
    "Attribute+Reasoning": tuple(f"{kind}+{look}" for kind in _KINDS for look in ("color", "texture")),
    "Relation+Reasoning": tuple(f"{kind}+{axis}" for kind in _KINDS for axis in ("2d", "3d")),
    "Text": ("text",),
    "Style": ("style",),
}
TIIF_GROUPS: dict[str, tuple[str, ...]] = {**_BASIC, **_ADVANCED, "Real World": ("real_world",)}
TIIF_LEVELS: dict[str, tuple[str, ...]] = {
    "Basic Following": sum(_BASIC.values(), ()),
    "Advanced Following": sum(_ADVANCED.values(), ()),
}


@dataclass(frozen=True)
class Cell:
    """The counts of one column; `missing` counts pictures, the others questions."""

    right: int
    asked: int
    missing: int


def cells(rows: Iterable[Recorded]) -> dict[str, Cell]:
    """The counts of each column, in the order in which columns first appear."""
    found: dict[str, Cell] = {}
    for row in rows:
        cell = found.get(row.column, Cell(0, 0, 0))
        missing = cell.missing + (row.missing is not None)
        found[row.column] = Cell(cell.right + row.right, cell.asked + row.asked, missing)
    return found


def played(rows: Iterable[Row], turn: int, folder: str = "") -> list[Recorded]:
    """Rows of a run as recorded verdicts: right of asked questions about the picture after `turn` edits at most."""
    return [_played(row, turn, folder, number) for number, row in enumerate(rows, 1)]


def _played(row: Row, turn: int, folder: str, number: int) -> Recorded:
    verdict = row.verdicts[min(turn, row.edits)] if row.verdicts else None
    if verdict is None:
        why = "the judge gave no verdict" if row.verdicts else "nothing was drawn"
        return Recorded(folder, number, row.column, 0, 0, str(row.prompt), missing=why)
    right, wrong = len(verdict.passed), len(verdict.failed)
    return Recorded(folder, number, row.column, right, right + wrong, str(row.prompt), verdict.failed)


def totals(counted: Mapping[str, Cell]) -> tuple[int, int]:
    """Right and asked over all columns."""
    return sum(cell.right for cell in counted.values()), sum(cell.asked for cell in counted.values())


def resampled(rows: Sequence[Recorded], seed: int = 0) -> dict[str, Means]:
    """Accuracy of each column: as it is, then in RESAMPLES draws of its prompts."""
    rng = np.random.default_rng(seed)
    members: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        counts = members.setdefault(row.column, {}).setdefault(row.prompt or row.where, [0, 0])
        counts[0] += row.right
        counts[1] += row.asked
    return {column: _column(np.array(list(prompts.values()), float), rng) for column, prompts in members.items()}


def _column(counts: Float[np.ndarray, "prompt 2"], rng: np.random.Generator) -> Means:
    total = len(counts)
    sums = [counts.sum(0, keepdims=True)]
    at_once = max(1, DRAWS_AT_ONCE // total)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        sums.append(rng.multinomial(total, np.full(total, 1 / total), size=size) @ counts)
    right, asked = np.concatenate(sums).T
    return _ratio(right, asked)


def mean(members: Sequence[Means]) -> Means:
    """Mean over those members that are known; NaN where none is."""
    if not members:
        return np.full(RESAMPLES + 1, np.nan)
    stacked = np.stack(members)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0).sum(0), known.sum(0))


def estimate(means: Means) -> Estimate:
    """The mean and its interval; all None where nothing was asked."""
    if np.isnan(means[0]):
        return Estimate(None, None, None)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(low), float(high))


def tiif_groups(columns: Mapping[str, Means]) -> dict[str, dict[str, Means]]:
    """By name and length: TIIF's nine groups, the two levels that hold several, and OVERALL, the mean of the nine.

    A group is the mean of those of its attributes that were asked, as in TIIF's own summary.
    """
    found: dict[str, dict[str, Means]] = {
        name: {length: mean([columns[key] for key in _keys(members, length) if key in columns]) for length in LENGTHS}
        for name, members in {**TIIF_GROUPS, **TIIF_LEVELS}.items()
    }
    found[OVERALL] = {length: mean([found[name][length] for name in TIIF_GROUPS]) for length in LENGTHS}
    return found


def tiif_columns() -> list[str]:
    """Every column of the benchmark: 39 attributes, short and long."""
    return [key for length in LENGTHS for members in TIIF_GROUPS.values() for key in _keys(members, length)]


def _keys(attributes: Iterable[str], length: str) -> list[str]:
    return [f"{attribute}/{length}" for attribute in attributes]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
