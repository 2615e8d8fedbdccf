"""`triptych report`: the folder of a run as a table, files and a page; or several runs compared prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.apps.commands import ReportOptions
from triptych.apps.console import open_console, say
from triptych.apps.options import OpenModel
from triptych.apps.run_page import run_page
from triptych.errors import ConfigError
from triptych.eval import lm_eval_export
from triptych.eval.compare import SAME_PROMPTS, RunComparison, compare, differences
from triptych.eval.quiz import Quiz, accuracy_by_column, accuracy_table
from triptych.eval.results import Report, format_estimate, report_table
from triptych.eval.run_folder import RunFolder, read_manifest
from triptych.files import write_json, write_text

MAX_PAIRS = 12  # wins and losses printed one by one; --json lists all


def run(options: ReportOptions, open_model: OpenModel) -> int:
    """Print one run, compare several, or check two manifests; returns the exit code."""
    if not options.folders:
        raise ConfigError("no folder was given; expected one or more folders of `triptych eval`")
    run_folders = [RunFolder.read(folder) for folder in options.folders]
    if options.check is not None:
        return check_manifest(run_folders, options.check, options.as_json)
    if len(run_folders) > 1:
        return compare_runs(run_folders, options)
    record = print_run(run_folders[0], open_console(options.as_json))
    if options.as_json:
        print(json.dumps(record), flush=True)
    return 0


def print_run(run_folder: RunFolder, console: Console) -> dict[str, Any]:
    """Print one run's table, and write what `publish` writes; returns all of it as JSON values."""
    report, quiz = run_folder.report(), Quiz.read(run_folder)
    extra = {}
    if quiz is None:
        console.print(report_table(report))
    else:
        columns = accuracy_by_column(quiz, run_folder.rows())
        console.print(accuracy_table(quiz, columns))
        extra = {"accuracies": {column: asdict(accuracy) for column, accuracy in columns.items()}}
    console.print(str(publish(run_folder, report)), style="bold", soft_wrap=True)
    return {
        "folder": str(run_folder.folder),
        **extra,
        "report": report.to_record(),
        "manifest": run_folder.manifest,
    }


def publish(run_folder: RunFolder, report: Report) -> Path:
    """Write report.html from the rows so far and, once no job is open, report.json and lm-eval's two files.

    Returns the page. Each file is written whole or not at all. Raises OutputError where the folder cannot be written.
    """
    manifest, rows, quiz = run_folder.manifest, run_folder.rows(), Quiz.read(run_folder)
    if not report.open:  # lm-eval knows no unfinished run
        samples = lm_eval_export.samples(manifest, rows, quiz)
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        write_text(run_folder.folder / lm_eval_export.SAMPLES, lines)
        results = lm_eval_export.results(manifest, rows, run_folder.columns(rows), quiz)
        write_json(run_folder.folder / lm_eval_export.RESULTS, results)
        run_folder.finish(report)  # report.json comes last: where it is, the other two are whole
    return write_text(run_folder.folder / "report.html", run_page(run_folder, report, quiz))


def check_manifest(run_folders: Sequence[RunFolder], other: Path, as_json: bool) -> int:
    """Print each difference between a run's manifest and another; returns 1 if one rules out a comparison, else 0."""
    if len(run_folders) > 1:
        raise ConfigError(
            f"--check with {len(run_folders)} folders; expected one folder and the manifest of another run"
        )
    other = other / "manifest.json" if other.is_dir() else other
    changes = differences(run_folders[0].manifest, read_manifest(other))
    forbidden = any(change.forbids for change in changes)
    if as_json:
        record = {"comparable": not forbidden, "differences": [asdict(change) for change in changes]}
        print(json.dumps(record), flush=True)
        return int(forbidden)
    for change in changes:
        say(f"{'forbids' if change.forbids else 'tells  '}  {change}")
    say("not comparable" if forbidden else "comparable" if changes else "comparable: the manifests are the same")
    return int(forbidden)


def compare_runs(run_folders: Sequence[RunFolder], options: ReportOptions) -> int:
    """Print the runs side by side, and each against the first: paired differences, and prompts won and lost."""
    console = open_console(options.as_json)
    warnings = comparison_warnings(run_folders, options.anyway)
    turn = common_turn(run_folders, options.turn)
    first, *others = [run_folder.rows() for run_folder in run_folders]
    columns = run_folders[0].columns(first)
    comparisons = [compare(first, rows, columns, turn) for rows in others]
    reports = [run_folder.report() for run_folder in run_folders]
    console.print(comparison_table(run_folders, reports, comparisons, turn))
    for name, comparison in zip(short_names(run_folders)[1:], comparisons, strict=True):
        for line in comparison_lines(name, comparison):
            console.print(line, soft_wrap=True)
    for run_folder, report in zip(run_folders, reports, strict=True):
        if report.open:
            warnings.append(f"{run_folder.folder}: {report.open} samples still to be played")
    for line in warnings:
        console.print(line, style="yellow", soft_wrap=True)
    if options.as_json:
        print(json.dumps(comparison_record(run_folders, reports, comparisons)), flush=True)
    return 0


def common_turn(run_folders: Sequence[RunFolder], turn: int | None) -> int:
    """`turn`, or the last one that all runs have. Raises ConfigError for one that they do not."""
    last = min(run_folder.manifest["turns"] for run_folder in run_folders)
    if turn is None:
        return last
    if not 0 <= turn <= last:
        raise ConfigError(f"--turn {turn}: expected 0 to {last}, the last turn that all these runs have")
    return turn


def comparison_record(
    run_folders: Sequence[RunFolder], reports: Sequence[Report], comparisons: Sequence[RunComparison]
) -> dict[str, Any]:
    """Runs and comparisons as JSON values, with every prompt that is won, lost, tied or not in both."""
    first, *others = run_folders
    return {
        "runs": [
            {"folder": str(run_folder.folder), "report": report.to_record(), "manifest": run_folder.manifest}
            for run_folder, report in zip(run_folders, reports, strict=True)
        ],
        "comparisons": [
            {"first": str(first.folder), "second": str(run_folder.folder), **comparison.to_record()}
            for run_folder, comparison in zip(others, comparisons, strict=True)
        ],
    }


def comparison_warnings(run_folders: Sequence[RunFolder], anyway: bool) -> list[str]:
    """What rules out a comparison with the first run, one line each. Raises ConfigError unless --anyway overrules it.

    Runs on different prompts have no pairs, so nothing overrules that.
    """
    first, *others = run_folders
    warnings = []
    for run_folder in others:
        forbidding = [change for change in differences(first.manifest, run_folder.manifest) if change.forbids]
        firm = [change for change in forbidding if change.key in SAME_PROMPTS or not anyway]
        if firm:
            changes = "; ".join(map(str, firm))
            remedy = "expected runs of the same prompts" if anyway else "compare other runs, or overrule it: --anyway"
            raise ConfigError(f"{first.folder} and {run_folder.folder} are not comparable: {changes}; {remedy}")
        warnings += [f"compared anyway: {run_folder.folder}: {change}" for change in forbidding]
    return warnings


def comparison_table(
    run_folders: Sequence[RunFolder], reports: Sequence[Report], comparisons: Sequence[RunComparison], turn: int
) -> Table:
    """A line per column: each run's mean, then each later run's difference to the first."""
    is_quiz = "drawn" in run_folders[0].manifest  # only a quiz names the run whose images it asks about
    shares = "share of right answers" if is_quiz else f"after {turn} edits at most: share of right pictures"
    table = Table(title=f"{reports[0].benchmark}, {shares} [95 %]")
    table.add_column("column")
    names = short_names(run_folders)
    for name in [*names, *(f"{name} minus {names[0]}" for name in names[1:])]:
        table.add_column(name, justify="right", overflow="fold")
    for column in reports[0].accuracy:
        means = [
            format_estimate(report.accuracy[column][turn]) if column in report.accuracy else "-" for report in reports
        ]
        changes = [format_estimate(comparison.differences[column], sign="+") for comparison in comparisons]
        table.add_row(column, *means, *changes)
    return table


def short_names(run_folders: Sequence[RunFolder]) -> list[str]:
    """A short name for each run: that of its folder, or the whole path where two folders share theirs."""
    names = [run_folder.folder.resolve().name for run_folder in run_folders]
    return names if len({*names}) == len(names) else [str(run_folder.folder) for run_folder in run_folders]


def comparison_lines(name: str, comparison: RunComparison) -> list[str]:
    """How many prompts are won, lost, tied and unpaired, and the first of those won and lost."""
    sign = "" if comparison.sign_p is None else f", sign test p = {comparison.sign_p:.3g}"
    lines = [
        f"{name}: {len(comparison.wins)} prompts won, {len(comparison.losses)} lost, {len(comparison.ties)} tied, "
        f"{len(comparison.unpaired)} not in both{sign}"
    ]
    for word, pairs in (("won", comparison.wins), ("lost", comparison.losses)):
        lines += [f"  {word:4} {pair.first:.2f} to {pair.second:.2f}  {pair.text}" for pair in pairs[:MAX_PAIRS]]
        if len(pairs) > MAX_PAIRS:
            lines.append(f"  {word:4} and {len(pairs) - MAX_PAIRS} more: --json lists all")
    return lines
