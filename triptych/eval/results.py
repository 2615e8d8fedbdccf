"""From rows to a report: strict accuracy per column and turn, with intervals, and how the turns were used.

A row is one prompt played with one seed. Turn 0 is the first picture, turn t the one after t edits; a trace that
stopped keeps its last picture for later turns, as a user would. A picture is right when its score is exactly 1 (strict
accuracy). A missing verdict counts neither as right nor as wrong; how many are missing is reported. Overall is the mean
of the columns, as GenEval defines it (arXiv 2310.11513; the columns of GenEval++ are equally long). Intervals are those
of `statistics.bootstrap`, with the prompts of each column as clusters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from triptych.eval.statistics import ClusterSums, Estimate, Means, bootstrap, estimate, mean_of_columns
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
    lost: str = ""  # why the model gave no result: numbers that are not finite; all verdicts are then missing

    @property
    def cluster(self) -> int:
        """What the bootstrap draws as a whole: the rows of one prompt or, of a quiz, those of one group."""
        return self.prompt if self.group is None else self.group

    @property
    def edits(self) -> int:
        return max(len(self.verdicts) - 1, 0)

    @property
    def complete(self) -> bool:
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
        verdicts = tuple(None if each is None else Verdict.from_record(each) for each in record["verdicts"])
        tuples = {"said": tuple(record["said"]), "pictures": tuple(record.get("pictures", ())), "verdicts": verdicts}
        row = Row(**{**record, **tuples})
        texts = (row.text, row.column, *row.pictures, *(text for text in row.said if text is not None))
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("expected texts for text, column, pictures and what was said")
        # `type is int`: JSON's true is an instance of int, and would be read as prompt 1
        if not all(type(each) is int for each in (row.prompt, row.seed, row.cluster)) or not math.isfinite(row.seconds):
            raise ValueError("expected whole numbers for prompt, seed and group, and seconds")
        return row


@dataclass(frozen=True)
class Report:
    """What a run showed. `accuracy` (share of right pictures) and mean `score` hold an Estimate per column and turn."""

    benchmark: str
    prompts: int
    rows: int
    accuracy: Mapping[str, tuple[Estimate, ...]]
    score: Mapping[str, tuple[Estimate, ...]]
    edits: tuple[int, ...]  # rows that used 0, 1, ... edits
    improved: int  # last score above the first, be it right or not
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
    # Precision and recall of stopping, with a right picture as the positive class.
    stops, edits = _decisions(rows)
    scores = [(row.score(0), row.score(row.edits)) for row in rows]  # of the first and the last picture
    changes = [(first, last) for first, last in scores if first is not None and last is not None]
    return Report(
        benchmark=benchmark,
        prompts=len({row.prompt for row in rows}),
        rows=len(rows),
        accuracy=_estimates(rows, columns, turns, seed, strict=True),
        score=_estimates(rows, columns, turns, seed, strict=False),
        edits=tuple(sum(row.edits == count for row in rows) for count in range(turns + 1)),
        improved=sum(last > first for first, last in changes),
        worsened=sum(last < first for first, last in changes),
        fixed=sum(first < 1 == last for first, last in changes),
        broken=sum(last < 1 == first for first, last in changes),
        stop_precision=_ratio(sum(stops), len(stops)),
        stop_recall=_ratio(sum(stops), sum(stops) + sum(edits)),
        seconds_per_picture=_ratio(sum(row.seconds for row in rows), sum(len(row.verdicts) for row in rows)),
        missing=sum(verdict is None for row in rows for verdict in row.verdicts),
        open=open_jobs,
    )


def _decisions(rows: Sequence[Row]) -> tuple[list[bool], list[bool]]:
    """Was the picture right, for each reflection that stopped and each that asked for an edit; unjudged ones left out.

    The last picture of a trace that ran out of turns was never reflected on, and is in neither.
    """
    stops: list[bool] = []
    edits: list[bool] = []
    for row in rows:
        for turn, verdict in enumerate(row.verdicts if row.stopped else row.verdicts[:-1]):
            if verdict is not None:
                (stops if row.stopped and turn == row.edits else edits).append(verdict.score == 1)
    return stops, edits


def _estimates(
    rows: Sequence[Row], columns: Sequence[str], turns: int, seed: int, strict: bool
) -> dict[str, tuple[Estimate, ...]]:
    missing = {
        column: [sum(row.score(turn) is None for row in rows if row.column == column) for turn in range(turns + 1)]
        for column in columns
    }
    missing[OVERALL] = [sum(counts) for counts in zip(*missing.values(), strict=True)]
    return {
        column: tuple(estimate(means[:, turn], missing[column][turn]) for turn in range(turns + 1))
        for column, means in resampled_means(rows, columns, turns, seed, strict).items()
    }


def resampled_means(
    rows: Sequence[Row], columns: Sequence[str], turns: int, seed: int = 0, strict: bool = True
) -> dict[str, Means]:
    """Per column and OVERALL, means `[1 + RESAMPLES, turns + 1]`: as they are, then of each draw of the prompts.

    They are of the share of right pictures if `strict`, else of the score.
    """
    sums = {
        column: row_sums([row for row in rows if row.column == column], range(turns + 1), strict) for column in columns
    }
    means = bootstrap(sums, seed)
    # Every column weighs alike, however many prompts it has: GenEval's own overall score.
    return {**means, OVERALL: mean_of_columns([*means.values()])} if means else {}


def row_sums(rows: Iterable[Row], turns: Sequence[int], strict: bool = True) -> ClusterSums:
    """Sum of what is measured after each of `turns`, and number of verdicts, by cluster in ascending order."""
    observations = []
    # A fixed order of clusters: the seed then gives the same draws in whatever order shards wrote their rows.
    for row in sorted(rows, key=lambda row: row.cluster):
        scores = [row.score(turn) for turn in turns]
        # Exactly 1, since a score is checks that hold over checks: n / n has no rounding.
        values = [0.0 if score is None else float(score == 1) if strict else score for score in scores]
        observations.append((row.cluster, values, [score is not None for score in scores]))
    return ClusterSums.of(observations, len(turns))


def report_table(report: Report) -> Table:
    """A line per column, a number for the first picture and after each edit, and the last one's 95 % interval.

    Overall has its interval under every number.
    """
    table = Table(title=f"{report.benchmark}: {report.rows} rows, {report.prompts} prompts", caption=_caption(report))
    turns = len(report.edits)
    table.add_column("column", overflow="fold")
    for title in ["no edit", *(f"<= {turn}" for turn in range(1, turns))] if turns > 1 else ["right"]:
        table.add_column(title, justify="right")
    table.add_column("95 %", justify="right")
    for column, estimates in report.accuracy.items():
        if column == OVERALL:
            table.add_section()
        # What a mean leaves out goes below it, or seven columns would not fit 80 characters.
        means = [format_estimate(each, with_interval=False).replace(" (", "\n(") for each in estimates]
        table.add_row(column, *means, _interval(estimates[-1]))
        if column == OVERALL and turns > 1:
            for title, ends in (("from", [each.low for each in estimates]), ("to", [each.high for each in estimates])):
                table.add_row(f"  95 % {title}", *("-" if end is None else f"{end:.3f}" for end in ends))
    return table


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def format_estimate(estimate: Estimate, with_interval: bool = True, sign: str = "") -> str:
    """A mean as it is printed, never without what it leaves out."""
    missing = f" ({estimate.missing} missing)" if estimate.missing else ""
    if estimate.value is None:
        return f"-{missing}"
    interval = f" {_interval(estimate, sign)}" if with_interval else ""
    return f"{estimate.value:{sign}.3f}{interval}{missing}"


def _interval(estimate: Estimate, sign: str = "") -> str:
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
