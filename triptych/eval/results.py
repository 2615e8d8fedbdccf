"""From rows to a report: strict accuracy per column and turn, with intervals, and how the turns were used.

A row is one prompt played with one seed. Turn 0 is the first picture, turn t the one after t edits; a trace that
stopped keeps its last picture for later turns, as a user would. A picture is right when its score is exactly 1. A
missing verdict counts neither as right nor as wrong; how many are missing is reported.
Overall is the mean of the columns, as GenEval defines it (the columns of GenEval++ are equally long). Intervals are
95 % percentile bootstraps over prompts within columns: all seeds of a prompt are drawn together, since they share its
difficulty, and so are all questions about the pictures of one prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from triptych.eval.statistics import Estimate, drawn_together, estimate, mean_of_known, ratio
from triptych.trace import Verdict

OVERALL = "Overall"


@dataclass(frozen=True)
class Row:
    """One finished trace without pixels: `verdicts[t]` on its picture after t edits, None where the judge had none."""

    prompt: int  # index into Benchmark.prompts
    text: str
    column: str
    seed: int
    verdicts: tuple[Verdict | None, ...]
    stopped: bool  # the model said that no further edit is needed, rather than running out of turns
    said: tuple[str | None, ...]  # plan, then reflections
    seconds: float  # this trace's share of its batch's wall clock, judging left out
    pictures: tuple[str, ...] = ()  # `pixels_sha256` of each judged picture, in the order of `verdicts`
    group: int | None = None  # of a quiz, the prompt whose picture it asks about

    @property
    def unit(self) -> int:
        """What a bootstrap draws: rows that share their luck, those of one prompt or of one group, go together."""
        return self.prompt if self.group is None else self.group

    @property
    def edits(self) -> int:
        return max(len(self.verdicts) - 1, 0)

    @property
    def whole(self) -> bool:
        """Whether every picture has its verdict; other rows are played again when a run is resumed."""
        return bool(self.verdicts) and None not in self.verdicts

    def score(self, turn: int) -> float | None:
        """Score of the picture that stands after `turn` edits at most."""
        verdict = self.verdicts[min(turn, self.edits)] if self.verdicts else None
        return None if verdict is None else verdict.score

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Row:
        """Read back; raises ValueError, KeyError or TypeError for what is no row."""
        verdicts = tuple(None if each is None else _verdict(each) for each in record["verdicts"])
        told = {"said": tuple(record["said"]), "pictures": tuple(record.get("pictures", ()))}
        row = Row(**{**record, **told, "verdicts": verdicts})
        texts = (row.text, row.column, *row.pictures, *(each for each in row.said if each is not None))
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("expected texts for text, column, pictures and what was said")
        if not all(type(each) is int for each in (row.prompt, row.seed, row.unit)) or not math.isfinite(row.seconds):
            raise ValueError("expected whole numbers for prompt, seed and group, and seconds")
        return row


def _verdict(record: Mapping[str, Any]) -> Verdict:
    if not 0 <= record["score"] <= 1:  # NaN, too
        raise ValueError("expected a score from 0 to 1")
    passed, failed = tuple(record["passed"]), tuple(record["failed"])
    if not all(isinstance(each, str) for each in (*passed, *failed)):
        raise ValueError("expected checks in words")
    return Verdict(record["score"], passed, failed)


@dataclass(frozen=True)
class Report:
    """What a run showed. `accuracy` (share of right pictures) and mean `score` hold an Estimate per column and turn."""

    benchmark: str
    prompts: int
    rows: int
    accuracy: Mapping[str, tuple[Estimate, ...]]
    score: Mapping[str, tuple[Estimate, ...]]
    edits: tuple[int, ...]  # rows that used 0, 1, ... edits
    improved: int  # last score above the first
    worsened: int
    fixed: int  # wrong at first, right at last
    broken: int
    stop_precision: float | None  # share of right pictures among those that it stopped on
    stop_recall: float | None  # share stopped among right pictures that it reflected on
    seconds_per_picture: float | None
    missing: int  # pictures without a verdict
    open: int = 0  # jobs without a row: the run is not at its end

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def load(path: Path) -> Report:
        """Read a report.json."""
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("accuracy", "score"):
            record[name] = {column: tuple(Estimate(**each) for each in turns) for column, turns in record[name].items()}
        return Report(**{**record, "edits": tuple(record["edits"])})


def summarize(
    benchmark: str, rows: Iterable[Row], columns: Sequence[str], turns: int, seed: int = 0, open_jobs: int = 0
) -> Report:
    """The report of `rows`, with `columns` in this order and turns 0 to `turns`; `seed` fixes the bootstrap."""
    rows = list(rows)
    stopped_on, kept_on = _decisions(rows)
    changes = [(row.score(0), row.score(row.edits)) for row in rows]
    known = [(first, last) for first, last in changes if first is not None and last is not None]
    pictures = sum(len(row.verdicts) for row in rows)
    return Report(
        benchmark=benchmark,
        prompts=len({row.prompt for row in rows}),
        rows=len(rows),
        accuracy=_estimates(rows, columns, turns, seed, strict=True),
        score=_estimates(rows, columns, turns, seed, strict=False),
        edits=tuple(sum(row.edits == count for row in rows) for count in range(turns + 1)),
        improved=sum(last > first for first, last in known),
        worsened=sum(last < first for first, last in known),
        fixed=sum(first < 1 == last for first, last in known),
        broken=sum(last < 1 == first for first, last in known),
        stop_precision=_share(sum(stopped_on), len(stopped_on)),
        stop_recall=_share(sum(stopped_on), sum(stopped_on) + sum(kept_on)),
        seconds_per_picture=_share(sum(row.seconds for row in rows), pictures),
        missing=sum(verdict is None for row in rows for verdict in row.verdicts),
        open=open_jobs,
    )


def table(report: Report) -> Table:
    """A line per column, a number for the first picture and after each edit, and the last one's 95 % interval.

    Overall has its interval under every number.
    """
    printed = Table(title=f"{report.benchmark}: {report.rows} rows, {report.prompts} prompts", caption=_caption(report))
    turns = len(report.edits)
    printed.add_column("column", overflow="fold")
    for title in ["no edit", *(f"<= {turn}" for turn in range(1, turns))] if turns > 1 else ["right"]:
        printed.add_column(title, justify="right")
    printed.add_column("95 %", justify="right")
    for column, estimates in report.accuracy.items():
        if column == OVERALL:
            printed.add_section()
        means = [cell(each, with_interval=False).replace(" (", "\n(") for each in estimates]
        printed.add_row(column, *means, _ends(estimates[-1]))
        if column == OVERALL and turns > 1:
            for title, ends in (("from", [each.low for each in estimates]), ("to", [each.high for each in estimates])):
                printed.add_row(f"  95 % {title}", *("-" if end is None else f"{end:.3f}" for end in ends))
    return printed


def _decisions(rows: Sequence[Row]) -> tuple[list[bool], list[bool]]:
    """Of the reflections that stopped, and of those that went on: was the picture right? Unjudged ones are left out."""
    stopped_on: list[bool] = []
    kept_on: list[bool] = []
    for row in rows:
        reflected = row.verdicts if row.stopped else row.verdicts[:-1]
        for turn, verdict in enumerate(reflected):
            if verdict is not None:
                (stopped_on if row.stopped and turn == row.edits else kept_on).append(verdict.score == 1)
    return stopped_on, kept_on


def _estimates(
    rows: Sequence[Row], columns: Sequence[str], turns: int, seed: int, strict: bool
) -> dict[str, tuple[Estimate, ...]]:
    means = resampled(rows, columns, turns, seed, strict)
    lost = {column: _missing(rows, turns, column) for column in columns}
    lost[OVERALL] = np.sum([lost[column] for column in columns], axis=0)
    return {
        column: tuple(estimate(mean[:, turn], int(lost[column][turn])) for turn in range(turns + 1))
        for column, mean in means.items()
    }


def resampled(
    rows: Sequence[Row], columns: Sequence[str], turns: int, seed: int = 0, strict: bool = True
) -> dict[str, np.ndarray]:
    """Per column and OVERALL, means `[1 + RESAMPLES, turns + 1]`: as they are, then of each draw of the prompts."""
    own = {column: [row for row in rows if row.column == column] for column in columns}
    units = {column: sorted({row.unit for row in own[column]}) for column in columns}
    weights = drawn_together(units, np.random.default_rng(seed))
    means: dict[str, np.ndarray] = {}
    for column in columns:
        total, count = sums(own[column], units[column], turns, strict)
        means[column] = ratio(weights[column], total, count)
    if means:
        means[OVERALL] = mean_of_known(np.stack(list(means.values())))
    return means


def sums(rows: Sequence[Row], units: Sequence[int], turns: int, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sum of what is measured, and number of verdicts: two arrays `[unit turn]`, in the order of `units`."""
    place = {unit: index for index, unit in enumerate(units)}
    total, count = np.zeros((2, len(place), turns + 1))
    for row in rows:
        for turn in range(turns + 1):
            score = row.score(turn)
            if score is not None:
                total[place[row.unit], turn] += float(score == 1) if strict else score
                count[place[row.unit], turn] += 1
    return total, count


def _missing(rows: Sequence[Row], turns: int, column: str) -> np.ndarray:
    """Rows of the column without a verdict, by turn."""
    own = [row for row in rows if row.column == column]
    return np.array([sum(row.score(turn) is None for row in own) for turn in range(turns + 1)], int)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def cell(estimate: Estimate, with_interval: bool = True, sign: str = "") -> str:
    """A mean as it is printed, never without what it leaves out."""
    missing = f" ({estimate.missing} missing)" if estimate.missing else ""
    if estimate.value is None:
        return f"-{missing}"
    interval = f" {_ends(estimate, sign)}" if with_interval else ""
    return f"{estimate.value:{sign}.3f}{interval}{missing}"


def _ends(estimate: Estimate, sign: str = "") -> str:
    return "-" if estimate.value is None else f"[{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _caption(report: Report) -> str:
    used = " ".join(f"{count}:{rows}" for count, rows in enumerate(report.edits))
    stops = [("right stops", report.stop_precision), ("right pictures stopped on", report.stop_recall)]
    parts = [f"{name}: {share:.2f}" for name, share in stops if share is not None]
    if len(report.edits) > 1:
        parts = [
            f"rows by edits used: {used}",
            f"improved {report.improved}, worsened {report.worsened}",
            f"fixed {report.fixed}, broken {report.broken}",
            *parts,
        ]
    if report.seconds_per_picture is not None:
        parts.append(f"{report.seconds_per_picture:.2f} s a picture")
    if report.missing:
        parts.append(f"verdicts missing: {report.missing}")
    if report.open:
        parts.append(f"still to be played: {report.open}")
    return "\n".join(parts)
