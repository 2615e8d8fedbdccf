"""The one bootstrap: means over resampled prompts, their 95 % intervals, and means of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000  # the ends of an interval then move by less than a point from seed to seed


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval, all None where there was nothing to count, and what the mean leaves out."""

    value: float | None
    low: float | None
    high: float | None
    missing: int = 0  # verdicts


def draws(units: int, rng: np.random.Generator) -> np.ndarray:
    """How often each unit counts, `[1 + RESAMPLES, units]`: first each once, then drawn with replacement."""
    once = np.ones((1, units))
    if not units:
        return np.ones((RESAMPLES + 1, 0))
    return np.concatenate([once, rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)])


def drawn_together(units: Mapping[str, Sequence[int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`draws` for each column of its `units`; a unit that is in several columns counts as often in each of them.

    Columns that share none are drawn apart, so that each keeps its size.
    """
    every = sorted({unit for column in units.values() for unit in column})
    if len(every) == sum(map(len, units.values())):
        return {column: draws(len(own), rng) for column, own in units.items()}
    weights, place = draws(len(every), rng), {unit: index for index, unit in enumerate(every)}
    return {column: weights[:, [place[unit] for unit in own]] for column, own in units.items()}


def ratio(weights: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Weighted mean over units `[draw turn]` from the `sums` of each; NaN where there is nothing to count."""
    with np.errstate(invalid="ignore"):
        return (weights @ total) / (weights @ count)


def mean_of_known(means: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(means)
    with np.errstate(invalid="ignore"):
        return np.where(known, means, 0).sum(0) / known.sum(0)


def estimate(means: np.ndarray, missing: int = 0) -> Estimate:
    """From the mean, followed by the means of the resamples."""
    if np.isnan(means[0]):
        return Estimate(None, None, None, missing)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(low), float(high), missing)
