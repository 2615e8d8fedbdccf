"""The paper's table from folders of `triptych eval`: a line for each way to draw, up to each number of turns.

A line that nobody has measured is there and says so. Numbers of other models, the paper's own too, are not mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import ConfigError
from triptych.eval.ledger import Ledger
from triptych.eval.report import OVERALL, Estimate, cell

# Rows of the table: title, the label of the folder, whether it plans, most turns.
SLOTS = tuple(
    (f"{title}, {'planned' if plan else 'at once'}, <= {turn} turns", label, plan, turn)
    for title, label, turns in (("lessons", "lessons", 5), ("Reason only", "reason-only", 1), ("R3", "r3", 5))
    for plan in (False, True)
    for turn in range(turns)
)


@dataclass(frozen=True)
class Line:
    """A row of the table; no cells where it was not measured."""

    title: str
    cells: Mapping[str, Estimate]
    rows: int = 0  # traces it was counted on
    left: int = 0  # jobs that were not played yet


def table(evaluated: Sequence[tuple[str, Path]]) -> dict[str, list[Line]]:
    """The lines of each benchmark's table: the paper's rows first, from folders of `triptych eval` with the labels
    lessons, reason-only and r3; then every other folder under its own label.

    Raises OutputError if a folder is none, ConfigError if two folders would fill one row or a benchmark's prompts or
    judges differ.
    """
    tables: dict[str, list[tuple[str, Ledger]]] = {}
    for label, folder in evaluated:
        ledger = Ledger.read(folder)
        rows = tables.setdefault(ledger.manifest["benchmark"], [])
        _expect_comparable(rows, ledger)
        rows.append((label, ledger))
    return {benchmark: _table(rows) for benchmark, rows in tables.items()}


def markdown(benchmark: str, lines: Sequence[Line]) -> str:
    """A table for a page; strict accuracy, with the 95 % interval of Overall."""
    columns = list(next((line.cells for line in lines if line.cells), {}))
    head = ["", *columns, "traces"]
    told = [[line.title, *_cells(line, columns), str(line.rows or "-")] for line in lines]
    body = [head, ["---", *["---:"] * (len(columns) + 1)], *told]
    return f"## {benchmark}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in body) + "\n"


def missing(lines: Sequence[Line]) -> list[str]:
    """The rows that nobody has measured, and those that are not finished."""
    told = [f"{line.title}: not measured" for line in lines if not line.cells]
    return told + [f"{line.title}: {line.left} traces are not played yet" for line in lines if line.left]


def _table(rows: Sequence[tuple[str, Ledger]]) -> list[Line]:
    found: dict[tuple[str, bool], Ledger] = {}
    for label, ledger in rows:
        key = (label, ledger.manifest.get("plan", True))
        if key in found:
            raise ConfigError(f"{ledger.folder} and {found[key].folder} are both {label!r}; expected different names")
        found[key] = ledger
    reports = {key: ledger.report() for key, ledger in found.items()}

    def line(title: str, key: tuple[str, bool], turn: int) -> Line:
        if key not in reports or turn > found[key].manifest["turns"]:
            return Line(title, {})
        report = reports[key]
        cells = {column: turns[turn] for column, turns in report.accuracy.items()}
        return Line(title, cells, report.rows, report.open)

    labels = {label for _, label, _, _ in SLOTS}
    lines = []
    if any(label in labels for label, _ in found):
        lines += [line(title, (label, plan), turn) for title, label, plan, turn in SLOTS]
    for (label, plan), ledger in found.items():
        if label not in labels:
            how = "" if plan else ", at once"
            lines += [
                line(f"{label}{how}, <= {turn} turns", (label, plan), turn)
                for turn in range(ledger.manifest["turns"] + 1)
            ]
    return lines


def _expect_comparable(rows: Sequence[tuple[str, Ledger]], ledger: Ledger) -> None:
    for _, other in rows[:1]:
        for key in ("prompts_sha256", "judge", "seeds"):
            if other.manifest.get(key) != ledger.manifest.get(key):
                raise ConfigError(
                    f"{ledger.folder} and {other.folder} differ in their {key}: expected the same prompts, judge and "
                    "seeds in one table; play one of them again, or leave it out"
                )


def _cells(line: Line, columns: Sequence[str]) -> list[str]:
    return [cell(line.cells[name], with_interval=name == OVERALL) if name in line.cells else "-" for name in columns]
