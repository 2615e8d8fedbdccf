"""The bootstrap: known answers of its draws, clusters that stand or fall together, and what is left out."""

import numpy as np
import pytest

from triptych.eval.statistics import DRAWS_AT_ONCE, RESAMPLES, ClusterSums, bootstrap, estimate, mean_of_columns


def sums(values, first=0):
    """One observation per cluster; None is no observation."""
    observations = [(first + i, [float(value or 0)], [value is not None]) for i, value in enumerate(values)]
    return ClusterSums.of(observations, 1)


def test_observations_of_a_cluster_are_added():
    found = ClusterSums.of([("a", [1, 2], [1, 1]), ("b", [5, 0], [1, 0]), ("a", [3, 4], [1, 1])], 2)
    assert found.clusters == ("a", "b")
    assert found.total.tolist() == [[4, 6], [5, 0]] and found.count.tolist() == [[2, 2], [1, 0]]


@pytest.mark.parametrize("clusters", [7, 3000])
def test_draws_are_one_stream_however_many_parts_they_come_in(clusters):
    assert (clusters * RESAMPLES > DRAWS_AT_ONCE) == (clusters == 3000)
    values = np.arange(clusters) % 5
    means = bootstrap({"a": sums(values)}, seed=3)["a"][:, 0]
    weights = np.random.default_rng(3).multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES)
    assert means[0] == values.mean() and np.array_equal(means[1:], weights @ values / clusters)


def test_a_cluster_counts_as_often_in_every_column():
    values = [0, 1, 1, 0, 1]
    shared = bootstrap({"a": sums(values), "b": sums(values)})
    apart = bootstrap({"a": sums(values), "b": sums(values, first=5)})
    assert np.array_equal(shared["a"], shared["b"]) and not np.array_equal(apart["a"], apart["b"])


def test_what_was_not_observed_is_in_no_mean():
    means = bootstrap({"a": sums([1, None, 0]), "b": sums([None, None], first=3), "c": sums([])})
    assert means["a"][0, 0] == 0.5 and np.isnan(means["b"]).all() and np.isnan(means["c"]).all()
    assert mean_of_columns([means["a"], means["b"]])[0, 0] == 0.5
    nothing = estimate(means["b"][:, 0], missing=2)
    assert (nothing.value, nothing.low, nothing.high, nothing.missing) == (None, None, None, 2)


def test_an_interval_leaves_out_a_fortieth_at_either_end():
    even = np.concatenate([[0.5], np.linspace(0, 1, 2001)])
    found = estimate(even)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))


def test_two_thousand_resamples_and_none_missing():
    """Published intervals were drawn so."""
    means = bootstrap({"a": sums([0, 1])})["a"][:, 0]
    assert len(means) == 2001 and set(means) == {0, 0.5, 1} and estimate(means).missing == 0
