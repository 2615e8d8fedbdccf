"""Runs beside one another: may they be compared at all, and what is the difference, prompt by prompt?

Two runs share their prompts, so their difference is estimated on pairs: only prompts that both have a verdict on count,
and each bootstrap draw takes the same prompts from both. This removes the spread between easy and hard prompts, which
the two separate intervals still hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from triptych.eval.results import OVERALL, Row, row_sums
from triptych.eval.statistics import ClusterSums, Estimate, bootstrap, estimate, mean_of_columns

# Settings that may differ between runs that are compared, and why; any other that differs forbids it.
HARMLESS = {
    "model": "usually what is compared",
    "sampling": "how the pictures were drawn",
    "plan": "how the pictures were drawn",
    "seeds": "the means are over other samples of the same prompts",
    "device": "rounding differs a little",
    "dtype": "rounding differs a little",
    "code_sha256": "another state of the code: see its changes",
    "versions": "other versions of what computes",
}
FORBIDS = {
    "benchmark": "not the same task",
    "columns": "the overall mean is over other columns",
    "prompts": "not the same task",
    "prompts_sha256": "other texts, specs or pictures were asked",
    "judge": "scores of two judges are not on one scale",
    "turns": "the tables end after different numbers of edits",
}
SAME_PROMPTS = ("benchmark", "columns", "prompts", "prompts_sha256")  # without these there are no pairs at all
UNRECORDED = "not recorded"  # stands for a setting that one of the manifests lacks
ROUNDING = 1e-9  # a difference of shares below this is rounding


@dataclass(frozen=True)
class Difference:
    """One setting that two manifests do not share; `key` is dotted."""

    key: str
    here: Any
    there: Any
    forbids: bool
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {self.here} here, {self.there} there ({self.why})"


@dataclass(frozen=True)
class PromptPair:
    """One prompt in both runs: the shares of right pictures over its seeds, None where there is no verdict.

    `cluster` is what the bootstrap draws as a whole: the prompt itself, or in a quiz the prompt whose picture is asked
    about.
    """

    prompt: int
    cluster: int
    text: str
    column: str
    first: float | None
    second: float | None

    @property
    def outcome(self) -> str:
        """win, loss or tie of the second run; unpaired where either is unknown."""
        if self.first is None or self.second is None:
            return "unpaired"
        # Exact: equal fractions are equal floats, as division rounds correctly; only sums of them need ROUNDING.
        return "tie" if self.first == self.second else "win" if self.second > self.first else "loss"


@dataclass(frozen=True)
class RunComparison:
    """The second run against the first after `turn` edits at most; estimates are of second minus first."""

    turn: int
    differences: Mapping[str, Estimate]  # per column and OVERALL; `missing` counts prompts that are not in both
    pairs: tuple[PromptPair, ...]

    @property
    def wins(self) -> tuple[PromptPair, ...]:
        return self._with("win")

    @property
    def losses(self) -> tuple[PromptPair, ...]:
        return self._with("loss")

    @property
    def ties(self) -> tuple[PromptPair, ...]:
        return self._with("tie")

    @property
    def unpaired(self) -> tuple[PromptPair, ...]:
        return self._with("unpaired")

    @property
    def sign_p(self) -> float | None:
        """p of the two-sided exact sign test of wins against losses (McNemar's with one seed); None without either.

        Questions about one picture are not independent: they win or lose together, by the sum of their differences.
        """
        from scipy.stats import binomtest  # here: SciPy is half a second of imports, which no other part of it needs

        # Shares of thirds do not add up exactly: within ROUNDING of 0 is a tie, and the sign test leaves ties out.
        differences: dict[int, float] = {}
        for pair in self.pairs:
            if pair.first is not None and pair.second is not None:
                differences[pair.cluster] = differences.get(pair.cluster, 0.0) + pair.second - pair.first
        wins = sum(difference > ROUNDING for difference in differences.values())
        losses = sum(difference < -ROUNDING for difference in differences.values())
        return float(binomtest(wins, wins + losses).pvalue) if wins + losses else None

    def to_record(self) -> dict[str, Any]:
        """Whole, as JSON values: every prompt is listed."""
        kinds = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "unpaired": self.unpaired}
        return {
            "turn": self.turn,
            "differences": {column: asdict(each) for column, each in self.differences.items()},
            "sign_p": self.sign_p,
            **{kind: [asdict(pair) for pair in pairs] for kind, pairs in kinds.items()},
        }

    def _with(self, outcome: str) -> tuple[PromptPair, ...]:
        return tuple(pair for pair in self.pairs if pair.outcome == outcome)


def compare(
    first: Sequence[Row], second: Sequence[Row], columns: Sequence[str], turn: int, seed: int = 0
) -> RunComparison:
    """The second run against the first, both of the same prompts; `seed` fixes the bootstrap."""
    prompts = {row.prompt: row for row in (*second, *first)}  # a prompt of either run; one that is in both pairs up
    judged = [_judged_rows(rows, turn) for rows in (first, second)]
    pairs = tuple(
        PromptPair(prompt, row.cluster, row.text, row.column, *(_share(rows.get(prompt), turn) for rows in judged))
        for prompt, row in sorted(prompts.items())
    )
    members = {column: [pair for pair in pairs if pair.column == column] for column in columns}
    paired = {column: [pair.prompt for pair in own if pair.outcome != "unpaired"] for column, own in members.items()}
    missing = {column: len(members[column]) - len(paired[column]) for column in columns}
    missing[OVERALL] = sum(missing.values())

    def sums(column: str) -> ClusterSums:
        """Both runs side by side, so that each draw of the bootstrap takes the same prompts from both."""
        one, other = (row_sums([row for prompt in paired[column] for row in rows[prompt]], (turn,)) for rows in judged)
        # Both hold the same prompts, sorted, and with them the same clusters in one order.
        return ClusterSums(one.clusters, np.hstack([one.total, other.total]), np.hstack([one.count, other.count]))

    # One draw gives both means, so that what all its prompts have in common cancels in the difference.
    means = {column: both[:, 1] - both[:, 0] for column, both in bootstrap({c: sums(c) for c in columns}, seed).items()}
    if means:
        means[OVERALL] = mean_of_columns([*means.values()])
    return RunComparison(turn, {column: estimate(mean, missing[column]) for column, mean in means.items()}, pairs)


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """Every setting that two manifests do not share, those that forbid a comparison first.

    A setting that is not known to be harmless forbids it, too: a benchmark may record what only it knows.
    """
    order = list({**here, **there})
    flat_here, flat_there = dict(_flat(here)), dict(_flat(there))
    changes = []
    for key in {**flat_here, **flat_there}:
        value, other = flat_here.get(key, UNRECORDED), flat_there.get(key, UNRECORDED)
        if value != other:
            top = key.split(".")[0]  # sampling.steps is as harmless as sampling
            why = HARMLESS.get(top) or FORBIDS.get(top, "not known to be harmless")
            changes.append(Difference(key, value, other, top not in HARMLESS, why))
    return sorted(changes, key=lambda each: (not each.forbids, order.index(each.key.split(".")[0])))


def _flat(manifest: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _judged_rows(rows: Sequence[Row], turn: int) -> dict[int, list[Row]]:
    """The rows of each prompt that have a verdict after `turn` edits at most."""
    by_prompt: dict[int, list[Row]] = {}
    for row in rows:
        if row.score(turn) is not None:
            by_prompt.setdefault(row.prompt, []).append(row)
    return by_prompt


def _share(rows: Sequence[Row] | None, turn: int) -> float | None:
    # Of the seeds that have a verdict: one that a judge missed does not unpair its prompt.
    return sum(row.score(turn) == 1 for row in rows) / len(rows) if rows else None
