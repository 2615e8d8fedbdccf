"""`triptych score`: recorded verdicts of any system, counted by each benchmark's own rules; nothing is drawn or asked.

The numbers go to stdout; what is missing, or disputed between a file and the rules, goes to stderr line by line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from triptych.errors import ConfigError, JudgeError

if TYPE_CHECKING:
    from rich.table import Table

    from triptych.eval.recorded import RecordedVerdict
    from triptych.eval.statistics import Estimate, Means
    from triptych.eval.tiif import ColumnCounts

LISTED = 20  # missing verdicts told one by one on stderr; --json lists all


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score recorded verdicts: GenEval detections or results, TIIF replies, GenEval++ verdicts."""

    benchmark: Positional[Literal["geneval", "tiif", "genevalpp"]]
    """Whose rules count."""
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...")] = ()
    """JSON lines, one picture each, gzipped or not; several files are counted together, and each for itself."""
    missing: Literal["exclude", "fail"] = "exclude"
    """Pictures without a verdict: leave them out and list them, or refuse to score. They are never counted as wrong."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print JSON on stdout."""

    def run(self, open_model: object) -> int:
        rows = [list(rows) for rows in read(self.benchmark, self.files)]
        every = list(chain.from_iterable(rows))
        lost = [row for row in every if row.missing]
        if lost and self.missing == "fail":
            first = f"the first is {lost[0].where}: {lost[0].missing}"
            raise JudgeError(f"{len(lost)} of {len(every)} verdicts are missing, {first}; see --missing")
        tell(every)
        each = dict(zip(map(str, self.files), rows, strict=True)) if len(rows) > 1 else {}
        if self.as_json:
            record = scored(self.benchmark, every)
            if each:
                record["files"] = {file: scored(self.benchmark, own) for file, own in each.items()}
            print(json.dumps(record), flush=True)
            return 0
        for title, own in {**each, f"{len(rows)} files together" if each else str(self.files[0]): every}.items():
            show(self.benchmark, title, scored(self.benchmark, own), own)
        return 0


def read(benchmark: str, files: Sequence[Path]) -> list[list[RecordedVerdict]]:
    """The rows of each file. Raises JudgeError for a damaged line, ConfigError if a file is named twice."""
    from triptych.eval import recorded

    if not files:
        raise ConfigError("no file was given; expected one or more files of JSON lines")
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise ConfigError("a file was named twice; expected each once, or its pictures would count double")
    readers = {"geneval": recorded.read_geneval, "tiif": recorded.read_tiif, "genevalpp": recorded.read_genevalpp}
    return [list(readers[benchmark](path)) for path in files]


def scored(benchmark: str, rows: Sequence[RecordedVerdict]) -> dict[str, Any]:
    """The result as JSON values. Accuracies are shares, None where nothing is known; cells count right and asked."""
    from triptych.eval import tiif as tally

    cells, columns = tally.column_counts(rows), tally.column_means(rows)
    record = tiif(columns, cells) if benchmark == "tiif" else by_tag(columns, rows)
    lost = [{"file": row.file, "line": row.line, "cell": row.column, "why": row.missing} for row in rows if row.missing]
    return {
        "benchmark": benchmark,
        **record,
        "cells": {name: {"right": cell.right, "asked": cell.asked} for name, cell in cells.items()},
        "pictures": len(rows),
        "missing": lost,
    }


def by_tag(columns: Mapping[str, Means], rows: Sequence[RecordedVerdict]) -> dict[str, Any]:
    """GenEval and GenEval++: overall is the mean of the tags; beside it, the shares of pictures and of prompts."""
    from triptych.eval.statistics import estimate, mean_of_columns

    overall = estimate(mean_of_columns(list(columns.values())))
    tags = {tag: estimate(means) for tag, means in columns.items()}
    known = [row for row in rows if row.missing is None]
    prompts: dict[tuple[str, str], bool] = {}
    for row in known:
        key = (row.column, row.prompt or row.where)
        prompts[key] = prompts.get(key, False) or bool(row.correct)
    return {
        "overall": overall.value,
        "interval": _ends(overall),
        "tags": {tag: each.value for tag, each in tags.items()},
        "intervals": {tag: _ends(each) for tag, each in tags.items()},
        "pictures_right": _share(sum(bool(row.correct) for row in known), len(known)),
        "prompts_right": _share(sum(prompts.values()), len(prompts)),
        "disputed": [{"file": row.file, "line": row.line, "recorded": row.claimed} for row in rows if row.disputed],
        "results": [
            {"correct": row.correct, "reasons": [row.missing] if row.missing else list(row.reasons)} for row in rows
        ],
    }


def tiif(columns: Mapping[str, Means], cells: Mapping[str, ColumnCounts]) -> dict[str, Any]:
    """TIIF: overall is the mean of nine groups, for short and for long prompts; beside it, the share of questions."""
    from triptych.eval import tiif as tally
    from triptych.eval.statistics import estimate

    groups = {
        name: {length: estimate(means) for length, means in lengths.items()}
        for name, lengths in tally.group_means(columns).items()
    }
    overall = groups.pop(tally.OVERALL)
    known = [each.value for each in overall.values() if each.value is not None]
    expected = tally.tiif_columns()
    return {
        "overall": {length: each.value for length, each in overall.items()},
        "interval": {length: _ends(each) for length, each in overall.items()},
        "mean": _share(sum(known), len(known)),
        "groups": {name: {length: each.value for length, each in own.items()} for name, own in groups.items()},
        "intervals": {name: {length: _ends(each) for length, each in own.items()} for name, own in groups.items()},
        "questions_right": _share(sum(cell.right for cell in cells.values()), sum(cell.asked for cell in cells.values())),
        "absent": [name for name in expected if name not in cells],
        "ungrouped": [name for name in cells if name not in expected],
    }


def _ends(estimate: Estimate) -> list[float | None]:
    return [estimate.low, estimate.high]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# --- for people -----------------------------------------------------------------------------------------------------


def tell(rows: Sequence[RecordedVerdict]) -> None:
    """What is missing or disputed, one line each, on stderr."""
    lost = [f"missing: {row.where}: {row.missing}" for row in rows if row.missing]
    disputed = [
        f"disputed: {row.where}: the file says {_word(row.claimed)}, the rules say {_word(row.correct)}"
        for row in rows
        if row.disputed
    ]
    for lines in (lost, disputed):
        more = [f"... and {len(lines) - LISTED} more; --json lists all"] if len(lines) > LISTED else []
        for line in lines[:LISTED] + more:
            print(line, file=sys.stderr)


def show(benchmark: str, title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict]) -> None:
    """The table on stdout."""
    from triptych.apps.terminal import open_console

    table = _tag_table(benchmark, title, record, rows) if benchmark != "tiif" else tiif_table(title, record, rows)
    open_console(as_json=False).print(table)


def _tag_table(benchmark: str, title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict]) -> Table:
    from triptych.eval import suites
    from triptych.eval import tiif as tally

    titles = suites.GENEVAL_COLUMNS if benchmark == "geneval" else suites.GENEVAL_PLUS_COLUMNS
    name = "GenEval" if benchmark == "geneval" else "GenEval++"
    table = _table(f"{name}: {_plain(title)}", "", "right", "asked", "accuracy", "95 %", "missing")
    cells = tally.column_counts(rows)
    for tag in sorted(cells, key=lambda tag: list(titles).index(tag) if tag in titles else len(titles)):
        cell, interval = cells[tag], record["intervals"][tag]
        counts = (str(cell.right), str(cell.asked))
        table.add_row(_plain(titles.get(tag, tag)), *counts, *_shown(record["tags"][tag], interval), str(cell.missing))
    table.add_section()
    table.add_row("Overall (mean of the columns)", "", "", *_shown(record["overall"], record["interval"]), "")
    table.add_row("all pictures", "", "", *_shown(record["pictures_right"]), str(len(record["missing"])))
    table.add_row("prompts with a right picture", "", "", *_shown(record["prompts_right"]), "")
    return table


def tiif_table(title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict]) -> Table:
    """TIIF's groups, levels and overall, for short and for long prompts."""
    from triptych.eval import tiif as tally

    heads = [f"{length}{head}" for length in tally.LENGTHS for head in ("", " 95 %")]
    table = _table(f"TIIF: {_plain(title)}", "", *heads)
    for name, lengths in record["groups"].items():
        if name in tally.TIIF_LEVELS:
            continue
        ends = record["intervals"][name]
        table.add_row(name, *(part for length in lengths for part in _shown(lengths[length], ends[length])))
    table.add_section()
    for name, lengths, ends in [
        *((name, record["groups"][name], record["intervals"][name]) for name in tally.TIIF_LEVELS),
        ("Overall (mean of the nine groups)", record["overall"], record["interval"]),
    ]:
        table.add_row(name, *(part for length in lengths for part in _shown(lengths[length], ends[length])))
    right, asked = sum(row.right for row in rows), sum(row.asked for row in rows)
    absent, columns, odd = len(record["absent"]), len(tally.tiif_columns()), map(_plain, record["ungrouped"])
    lines = [
        f"{right} of {asked} questions right, over {len(rows)} pictures; replies missing: {len(record['missing'])}"
    ]
    lines += [f"nothing is recorded for {absent} of {columns} columns"] if absent else []
    lines += [f"in no group, so not in the means: {', '.join(odd)}"] if record["ungrouped"] else []
    table.caption = "\n".join(lines)
    return table


def _table(title: str, *heads: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    return table


def _shown(value: float | None, interval: Sequence[float | None] = (None, None)) -> tuple[str, str]:
    ends = "" if interval[0] is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return shown(value), ends


def shown(value: float | None) -> str:
    """A share to four places, or a dash where nothing is known."""
    return "-" if value is None else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text of a file, without what a terminal would obey or rich would read as markup."""
    shown = text if text.isprintable() else ascii(text)
    return (shown if len(shown) <= 60 else f"{shown[:60]}...").replace("[", "(").replace("]", ")")


def _word(correct: bool | None) -> str:
    return "right" if correct else "wrong"
