"""`triptych score`: recorded verdicts of any system, counted by each benchmark's own rules; nothing is drawn or asked.

The numbers go to stdout; what is missing, or disputed between a file and the rules, goes to stderr line by line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table

from triptych.apps.commands import ScoreOptions
from triptych.apps.console import open_console, say
from triptych.apps.options import OpenModel
from triptych.errors import ConfigError, JudgeError
from triptych.eval import recorded, suites, tiif
from triptych.eval.completeness import (
    Completeness,
    Duplicates,
    Expected,
    completeness,
    each_picture_once,
    one_spelling,
)
from triptych.eval.recorded import RecordedVerdict
from triptych.eval.results import OVERALL
from triptych.eval.statistics import Estimate, Means, estimate, mean_of_columns
from triptych.eval.tiif import ColumnCounts
from triptych.rewards.vlm_prompts import LENGTHS

NAMES = {"geneval": "GenEval", "genevalpp": "GenEval++", "tiif": "TIIF"}
MAX_LINES = 20  # missing verdicts printed one by one on stderr; --json lists all


def run(options: ScoreOptions, open_model: OpenModel) -> int:
    """Read the files, print missing verdicts and the scores; returns the exit code."""
    sets = [
        settled(options.benchmark, rows, options.duplicates) for rows in read_files(options.benchmark, options.files)
    ]
    files = [rows for rows, _ in sets]
    rows = list(chain.from_iterable(files))
    whole = together(options.benchmark, rows, [odd for _, odd in sets])
    if options.incomplete == "fail" and not whole.is_complete:
        raise JudgeError(f"{'; '.join(whole.lines(NAMES[options.benchmark]))}; see --incomplete")
    missing = [row for row in rows if row.missing]
    if missing and options.missing == "fail":
        first = f"the first is {missing[0].where}: {missing[0].missing}"
        raise JudgeError(f"{len(missing)} of {len(rows)} verdicts are missing, {first}; see --missing")
    print_faults(rows)
    print_oddities(options.benchmark, whole)
    by_file = dict(zip(map(str, options.files), files, strict=True)) if len(files) > 1 else {}
    if options.as_json:
        record = score_record(options.benchmark, rows) | {"set": whole.to_record()}
        if by_file:
            record["files"] = {file: score_record(options.benchmark, own) for file, own in by_file.items()}
        print(json.dumps(record), flush=True)
        return 0
    total = f"{len(files)} files together" if by_file else str(options.files[0])
    for title, own in {**by_file, total: rows}.items():
        lacking = completeness(own, expected_set(options.benchmark))
        print_scores(options.benchmark, title, score_record(options.benchmark, own), own, lacking)
    return 0


def settled(
    benchmark: str, rows: Sequence[RecordedVerdict], duplicates: Duplicates
) -> tuple[list[RecordedVerdict], Completeness]:
    """The rows of one file with one spelling of each tag and one verdict on each picture, and what was odd."""
    spelled, labels = one_spelling(rows, tags_of(benchmark))
    once, sentences = each_picture_once(spelled, duplicates)
    return once, Completeness(duplicates=tuple(sentences), labels=labels)


def together(benchmark: str, rows: Sequence[RecordedVerdict], sets: Sequence[Completeness]) -> Completeness:
    """What is odd about all rows, and about each of the sets that they come from."""
    labels: dict[str, tuple[str, ...]] = {}
    for odd in sets:
        labels |= {tag: tuple(sorted({*labels.get(tag, ()), *found})) for tag, found in odd.labels.items()}
    sentences = [sentence for odd in sets for sentence in odd.duplicates]
    return completeness(rows, expected_set(benchmark), sentences, labels)


def tags_of(benchmark: str) -> list[str]:
    """The tags of a benchmark, in the paper's order."""
    if benchmark == "tiif":
        return tiif.tiif_columns()
    return [*(suites.GENEVAL_COLUMNS if benchmark == "geneval" else suites.GENEVAL_PLUS_COLUMNS)]


def expected_set(benchmark: str) -> Expected:
    """What a whole set holds; of TIIF the columns alone, for its prompts are in the user's own copy."""
    if benchmark == "tiif":
        return Expected(NAMES[benchmark], frozenset(), tuple(tags_of(benchmark)))
    suite = suites.GENEVAL if benchmark == "geneval" else suites.GENEVAL_PLUS
    return Expected(NAMES[benchmark], frozenset(prompt.text for prompt in suite.prompts), tuple(tags_of(benchmark)))


def read_files(benchmark: str, files: Sequence[Path]) -> list[list[RecordedVerdict]]:
    """The rows of each file. Raises JudgeError for a damaged line, ConfigError if a file is named twice."""
    if not files:
        raise ConfigError("no file was given; expected one or more files of JSON lines")
    # by the real path, so that a link does not hide it
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise ConfigError("a file was named twice; expected each once, or its pictures would count double")
    readers = {"geneval": recorded.read_geneval, "tiif": recorded.read_tiif, "genevalpp": recorded.read_genevalpp}
    return [list(readers[benchmark](path)) for path in files]


def score_record(benchmark: str, rows: Sequence[RecordedVerdict]) -> dict[str, Any]:
    """The scores as JSON values. Accuracies are shares, None without a verdict; cells count right and asked."""
    cells, columns = tiif.column_counts(rows), tiif.column_means(rows)
    record = tiif_record(columns, cells) if benchmark == "tiif" else tag_record(columns, rows)
    missing = [row for row in rows if row.missing]
    return {
        "benchmark": benchmark,
        **record,
        "cells": {name: {"right": cell.right, "asked": cell.asked} for name, cell in cells.items()},
        "pictures": len(rows),
        "missing": [{"file": row.file, "line": row.line, "cell": row.column, "why": row.missing} for row in missing],
    }


def tag_record(columns: Mapping[str, Means], rows: Sequence[RecordedVerdict]) -> dict[str, Any]:
    """GenEval and GenEval++: overall is the mean of the tags; beside it, the shares of pictures and of prompts."""
    overall = estimate(mean_of_columns(list(columns.values())))  # as in GenEval's summary_scores.py
    tags = {tag: estimate(means) for tag, means in columns.items()}
    judged = [row for row in rows if row.missing is None]
    prompts: dict[tuple[str, str], bool] = {}  # whether one of its pictures is right
    for row in judged:
        key = (row.column, row.prompt or row.where)  # a file without prompts counts every picture as one
        prompts[key] = prompts.get(key, False) or bool(row.correct)
    return {
        "overall": overall.value,
        "interval": _ends(overall),
        "tags": {tag: each.value for tag, each in tags.items()},
        "intervals": {tag: _ends(each) for tag, each in tags.items()},
        "pictures_right": _share(sum(bool(row.correct) for row in judged), len(judged)),
        "prompts_right": _share(sum(prompts.values()), len(prompts)),
        "disputed": [{"file": row.file, "line": row.line, "recorded": row.claimed} for row in rows if row.disputed],
        "results": [
            {"correct": row.correct, "reasons": [row.missing] if row.missing else list(row.reasons)} for row in rows
        ],
    }


def tiif_record(columns: Mapping[str, Means], cells: Mapping[str, ColumnCounts]) -> dict[str, Any]:
    """TIIF: overall is the mean of nine groups, for short and for long prompts; beside it, the share of questions."""
    groups = {
        name: {length: estimate(means) for length, means in lengths.items()}
        for name, lengths in tiif.group_means(columns).items()
    }
    overall = groups.pop(OVERALL)
    values = [each.value for each in overall.values() if each.value is not None]
    expected = tiif.tiif_columns()
    right, asked = sum(cell.right for cell in cells.values()), sum(cell.asked for cell in cells.values())
    return {
        "overall": {length: each.value for length, each in overall.items()},
        "interval": {length: _ends(each) for length, each in overall.items()},
        "mean": _share(sum(values), len(values)),
        "groups": {name: {length: each.value for length, each in own.items()} for name, own in groups.items()},
        "intervals": {name: {length: _ends(each) for length, each in own.items()} for name, own in groups.items()},
        "questions_right": _share(right, asked),
        "absent": [name for name in expected if name not in cells],
        "ungrouped": [name for name in cells if name not in expected],
    }


def _ends(estimate: Estimate) -> list[float | None]:
    return [estimate.low, estimate.high]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# --- tables ---------------------------------------------------------------------------------------------------------


def print_faults(rows: Sequence[RecordedVerdict]) -> None:
    """Verdicts that are missing, or that the rules dispute: one line each, on stderr."""
    missing = [f"missing: {row.where}: {row.missing}" for row in rows if row.missing]
    words = {True: "right", False: "wrong", None: "wrong"}
    disputed = [
        f"disputed: {row.where}: the file says {words[row.claimed]}, the rules say {words[row.correct]}"
        for row in rows
        if row.disputed
    ]
    for lines in (missing, disputed):
        more = [f"... and {len(lines) - MAX_LINES} more; --json lists all"] if len(lines) > MAX_LINES else []
        for line in lines[:MAX_LINES] + more:
            say(line, error=True)


def print_oddities(benchmark: str, whole: Completeness) -> None:
    """What is odd about the set, one line each, on stderr."""
    for line in whole.lines(NAMES[benchmark]):
        say(f"note: {line}", error=True)


def print_scores(
    benchmark: str, title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict], whole: Completeness
) -> None:
    """The table on stdout; under it, what the set lacks."""
    table = _tag_table(benchmark, title, record, rows) if benchmark != "tiif" else tiif_table(title, record, rows)
    lacking = [line for line in whole.lines(NAMES[benchmark]) if line.startswith("incomplete")]
    if lacking and benchmark != "tiif":  # whose table says it in its own words
        table.caption = "\n".join([*([str(table.caption)] if table.caption else []), *lacking])
    open_console(as_json=False).print(table)


def _tag_table(benchmark: str, title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict]) -> Table:
    titles = suites.GENEVAL_COLUMNS if benchmark == "geneval" else suites.GENEVAL_PLUS_COLUMNS
    table = _table(f"{NAMES[benchmark]}: {_short(title)}", "", "right", "asked", "accuracy", "95 %", "missing")
    cells = tiif.column_counts(rows)
    # in the paper's order, and then tags that the paper does not have
    for tag in sorted(cells, key=lambda tag: list(titles).index(tag) if tag in titles else len(titles)):
        cell, interval = cells[tag], record["intervals"][tag]
        counts = (str(cell.right), str(cell.asked))
        table.add_row(_short(titles.get(tag, tag)), *counts, *_cells(record["tags"][tag], interval), str(cell.missing))
    table.add_section()
    table.add_row("Overall (mean of the columns)", "", "", *_cells(record["overall"], record["interval"]), "")
    table.add_row("all pictures", "", "", *_cells(record["pictures_right"]), str(len(record["missing"])))
    table.add_row("prompts with a right picture", "", "", *_cells(record["prompts_right"]), "")
    return table


def tiif_table(title: str, record: Mapping[str, Any], rows: Sequence[RecordedVerdict]) -> Table:
    """TIIF's groups, levels and overall, for short and for long prompts."""
    headings = [f"{length}{head}" for length in LENGTHS for head in ("", " 95 %")]
    table = _table(f"TIIF: {_short(title)}", "", *headings)
    groups = {name: (shares, record["intervals"][name]) for name, shares in record["groups"].items()}
    levels = {name: groups.pop(name) for name in tiif.TIIF_LEVELS}
    levels["Overall (mean of the nine groups)"] = (record["overall"], record["interval"])
    for section in (groups, levels):
        for name, (shares, ends) in section.items():
            table.add_row(name, *(cell for length in shares for cell in _cells(shares[length], ends[length])))
        table.add_section()
    right, asked = sum(row.right for row in rows), sum(row.asked for row in rows)
    absent, columns, odd = len(record["absent"]), len(tiif.tiif_columns()), map(_short, record["ungrouped"])
    lines = [
        f"{right} of {asked} questions right, over {len(rows)} pictures; replies missing: {len(record['missing'])}"
    ]
    lines += [f"nothing is recorded for {absent} of {columns} columns"] if absent else []
    lines += [f"in no group, so not in the means: {', '.join(odd)}"] if record["ungrouped"] else []
    table.caption = "\n".join(lines)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for index, head in enumerate(headings):
        table.add_column(head, justify="right" if index else "left")
    return table


def _cells(value: float | None, interval: Sequence[float | None] = (None, None)) -> tuple[str, str]:
    ends = "" if interval[0] is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return format_share(value), ends


def format_share(value: float | None) -> str:
    """A share to four places, or a dash where nothing is known."""
    return "-" if value is None else f"{value:.4f}"


def _short(text: str) -> str:
    """Text of a file, at most 60 characters of it: a longer one would push the figures off the line."""
    return text if len(text) <= 60 else f"{text[:60]}..."
