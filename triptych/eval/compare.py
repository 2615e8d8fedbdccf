"""Runs beside one another: may they be compared at all, and what is the difference, prompt by prompt?

Two runs share their prompts, so their difference is estimated on pairs: only prompts that both have a verdict on count,
and each bootstrap draw takes the same prompts from both. This removes the spread between easy and hard prompts, which
the two separate intervals still hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from triptych.eval.results import OVERALL, Row, sums
from triptych.eval.statistics import Estimate, drawn_together, estimate, mean_of_known, ratio

# Settings that may differ between runs that are compared, and why; any other that differs forbids it
TELLS = {
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
PAIRS = ("benchmark", "columns", "prompts", "prompts_sha256")  # without these there are no pairs at all
UNRECORDED = "not recorded"
NOTHING = 1e-9  # a difference of shares below this is rounding


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
class Pair:
    """One prompt in both runs: the shares of right pictures over its seeds, None where no verdict is known.

    `unit` is what shares its luck: the prompt itself, or in a quiz the prompt whose picture is asked about.
    """

    prompt: int
    unit: int
    text: str
    column: str
    first: float | None
    second: float | None

    @property
    def outcome(self) -> str:
        """win, loss or tie of the second run; unpaired where either is unknown."""
        if self.first is None or self.second is None:
            return "unpaired"
        return "tie" if self.first == self.second else "win" if self.second > self.first else "loss"


@dataclass(frozen=True)
class Comparison:
    """The second run against the first after `turn` edits at most; estimates are of second minus first."""

    turn: int
    differences: Mapping[str, Estimate]  # per column and OVERALL; `missing` counts prompts that are not in both
    pairs: tuple[Pair, ...]

    @property
    def wins(self) -> tuple[Pair, ...]:
        return self._with("win")

    @property
    def losses(self) -> tuple[Pair, ...]:
        return self._with("loss")

    @property
    def ties(self) -> tuple[Pair, ...]:
        return self._with("tie")

    @property
    def unpaired(self) -> tuple[Pair, ...]:
        return self._with("unpaired")

    @property
    def sign_p(self) -> float | None:
        """Two-sided exact sign test of wins against losses (McNemar's with one seed); None without either.

        Questions about one picture are not independent: they win or lose together, by the sum of their shares.
        """
        gains: dict[int, float] = {}
        for pair in self.pairs:
            if pair.first is not None and pair.second is not None:
                gains[pair.unit] = gains.get(pair.unit, 0.0) + pair.second - pair.first
        won, lost = sum(gain > NOTHING for gain in gains.values()), sum(gain < -NOTHING for gain in gains.values())
        more, total = max(won, lost), won + lost
        if not total:
            return None
        tail = sum(math.comb(total, count) for count in range(more, total + 1))
        return min(1.0, 2 * tail / 2**total)

    def to_record(self) -> dict[str, Any]:
        """Whole, as JSON values: every prompt is listed."""
        kinds = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "unpaired": self.unpaired}
        return {
            "turn": self.turn,
            "differences": {column: asdict(each) for column, each in self.differences.items()},
            "sign_p": self.sign_p,
            **{kind: [asdict(pair) for pair in pairs] for kind, pairs in kinds.items()},
        }

    def _with(self, outcome: str) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.outcome == outcome)


def compare(
    first: Sequence[Row], second: Sequence[Row], columns: Sequence[str], turn: int, seed: int = 0
) -> Comparison:
    """The second run against the first, both of the same prompts; `seed` fixes the bootstrap."""
    asked = {row.prompt: row for row in (*second, *first)}
    ours, theirs = _by_prompt(first, turn), _by_prompt(second, turn)
    pairs = tuple(
        Pair(prompt, row.unit, row.text, row.column, _share(ours.get(prompt), turn), _share(theirs.get(prompt), turn))
        for prompt, row in sorted(asked.items())
    )
    paired = {pair.prompt for pair in pairs if pair.outcome != "unpaired"}
    own = {column: [pair.prompt for pair in pairs if pair.column == column] for column in columns}
    known = {column: [prompt for prompt in own[column] if prompt in paired] for column in columns}
    units = {column: sorted({asked[prompt].unit for prompt in known[column]}) for column in columns}
    weights = drawn_together(units, np.random.default_rng(seed))
    lost = {column: len(own[column]) - len(known[column]) for column in columns}
    means: dict[str, np.ndarray] = {}
    for column in columns:
        mean, other_mean = (
            ratio(
                weights[column],
                *sums([row for prompt in known[column] for row in rows[prompt]], units[column], turn, strict=True),
            )[:, turn]
            for rows in (ours, theirs)
        )
        means[column] = other_mean - mean
    if means:
        means[OVERALL] = mean_of_known(np.stack(list(means.values())))
        lost[OVERALL] = sum(lost.values())
    found = {column: estimate(mean, lost[column]) for column, mean in means.items()}
    return Comparison(turn, found, pairs)


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """Every setting that two manifests do not share, those that forbid a comparison first.

    A setting that is not known to be harmless forbids it, too: a benchmark may record what only it knows.
    """
    order = list({**here, **there})
    flat_here, flat_there = dict(_flat(here)), dict(_flat(there))
    found = []
    for key in {**flat_here, **flat_there}:
        one, other = flat_here.get(key, UNRECORDED), flat_there.get(key, UNRECORDED)
        if one != other:
            top = key.split(".")[0]
            why = TELLS.get(top) or FORBIDS.get(top, "not known to be harmless")
            found.append(Difference(key, one, other, top not in TELLS, why))
    return sorted(found, key=lambda each: (not each.forbids, order.index(each.key.split(".")[0])))


def _flat(manifest: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _by_prompt(rows: Sequence[Row], turn: int) -> dict[int, list[Row]]:
    """The rows of each prompt that have a verdict after `turn` edits at most."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.score(turn) is not None:
            found.setdefault(row.prompt, []).append(row)
    return found


def _share(rows: Sequence[Row] | None, turn: int) -> float | None:
    return sum(row.score(turn) == 1 for row in rows) / len(rows) if rows else None
