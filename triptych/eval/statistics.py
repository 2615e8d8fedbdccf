"""The one cluster bootstrap: means by column, their 95 % intervals, and means of columns.

Correlated observations form a cluster, which is drawn as a whole: all seeds of a prompt, since they share its
difficulty, and all questions about the pictures of one prompt. A draw takes as many clusters of a column as there
are, with replacement. The interval runs from the 2.5th to the 97.5th percentile of RESAMPLES such means (percentile
bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000  # the ends of an interval then move by less than a point from seed to seed
DRAWS_AT_ONCE = 4_000_000  # numbers held while resampling: 32 MB

Means = Float[np.ndarray, "draw *value"]  # the mean as it is, then that of each resample; NaN where nothing counts


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval, all None where there was nothing to count, and what the mean leaves out."""

    value: float | None
    low: float | None
    high: float | None
    missing: int = 0  # verdicts


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """Of a column: by cluster, the sum of each measured value, and the number of observations in it."""

    clusters: tuple[Hashable, ...]
    total: Float[np.ndarray, "cluster value"]
    count: Float[np.ndarray, "cluster value"]

    @staticmethod
    def of(observations: Iterable[tuple[Hashable, Sequence[float], Sequence[float]]], values: int) -> ClusterSums:
        """From the cluster, totals and counts (`values` of each) of every observation; clusters as they first come."""
        sums: dict[Hashable, np.ndarray] = {}
        for cluster, total, count in observations:
            sums.setdefault(cluster, np.zeros((2, values)))[:] += (total, count)
        total, count = np.stack([*sums.values()], 1) if sums else np.zeros((2, 0, values))
        return ClusterSums(tuple(sums), total, count)


def bootstrap(columns: Mapping[str, ClusterSums], seed: int = 0) -> dict[str, Means]:
    """The mean of every value of each column `[1 + RESAMPLES, value]`: sum over sum, as it is and then of each draw.

    A cluster that is in several columns counts as often in each of them: questions of several kinds about one picture
    stand or fall together. Columns that share none are drawn apart, so that each keeps its size.
    """
    rng = np.random.default_rng(seed)
    clusters = {cluster for sums in columns.values() for cluster in sums.clusters}
    # No cluster is in two columns, as in every benchmark that is drawn.
    if len(clusters) == sum(len(sums.clusters) for sums in columns.values()):
        return {column: _means(_weights(len(sums.clusters), rng), sums) for column, sums in columns.items()}
    # Sorted, since a set of texts has another order in every process.
    place = {cluster: index for index, cluster in enumerate(sorted(clusters))}  # pyright: ignore[reportArgumentType]
    weights = np.concatenate([*_weights(len(place), rng)])
    return {
        column: _means([weights[:, [place[cluster] for cluster in sums.clusters]]], sums)
        for column, sums in columns.items()
    }


def mean_of_columns(columns: Sequence[Means]) -> Means:
    """The mean of those columns that are known, draw by draw; NaN where none is. Raises ValueError without a column."""
    stacked = np.stack(columns)
    finite = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(finite, stacked, 0).sum(0) / finite.sum(0)


def estimate(means: Float[np.ndarray, "draw"], missing: int = 0) -> Estimate:
    """From the mean as it is, followed by those of the resamples."""
    if np.isnan(means[0]):
        return Estimate(None, None, None, missing)
    # A draw may hold no cluster with a verdict; such a draw has no mean and is left out.
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(low), float(high), missing)


def _weights(clusters: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each cluster counts, `[draw, clusters]`, in parts: first each once, then drawn with replacement."""
    at_once = max(1, DRAWS_AT_ONCE // max(clusters, 1))
    once = np.ones((1, clusters))
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        # multinomial refuses no categories at all; a column without a cluster has no mean in any draw
        drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size) if clusters else np.ones((size, 0))
        yield np.concatenate([once, drawn]) if not start else drawn.astype(float)


def _means(weights: Iterable[np.ndarray], sums: ClusterSums) -> Means:
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing to count
        return np.concatenate([(part @ sums.total) / (part @ sums.count) for part in weights])
