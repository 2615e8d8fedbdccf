"""`triptych report`: the folder of a run made into its table, files and page; or several runs beside one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from triptych.errors import ConfigError
from triptych.eval.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.table import Table

    from triptych.eval.compare import RunComparison
    from triptych.eval.results import Report

LISTED = 12  # wins and losses told one by one; --json lists all


@dataclass(frozen=True, kw_only=True)
class ReportRuns:
    """Merge a run's folder into its table and page, or compare runs prompt by prompt."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")] = ()
    """One folder of `triptych eval`, or several: the first is what the others are compared with."""
    check: Annotated[Path | None, arg(metavar="MANIFEST")] = None
    """Say what differs from another run's manifest.json, and whether it forbids a comparison (exit code 1)."""
    turn: int | None = None
    """Compare the pictures after so many edits at most; the last turn that all runs have if not given."""
    anyway: FlagCreatePairsOff[bool] = False
    """Compare runs of the same prompts although another setting forbids it."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print JSON on stdout, and the rest on stderr."""

    def run(self, open_model: object) -> int:
        from triptych.eval.run_folder import RunFolder as Ledger

        if not self.folders:
            raise ConfigError("no folder was given; expected one or more folders of `triptych eval`")
        ledgers = [Ledger.read(folder) for folder in self.folders]
        if self.check is not None:
            return check(ledgers, self.check, self.as_json)
        if len(ledgers) == 1:
            return show(ledgers[0], self.as_json)
        return contrast(ledgers, self.turn, self.anyway, self.as_json)


def show(ledger: RunFolder, as_json: bool) -> int:
    """Print one run's table, and write what `publish` writes."""
    from triptych.apps.terminal import open_console
    from triptych.eval import quiz as standings
    from triptych.eval import results as reports
    from triptych.eval.quiz import Quiz

    report, quiz, console = ledger.report(), Quiz.read(ledger), open_console(as_json)
    found = None if quiz is None else standings.accuracy_by_column(quiz, ledger.played())
    console.print(reports.report_table(report) if quiz is None or found is None else standings.accuracy_table(quiz, found))
    page = publish(ledger, report)
    console.print(str(page), style="bold", soft_wrap=True)
    if as_json:
        told = {} if found is None else {"standings": {column: asdict(each) for column, each in found.items()}}
        _print({"folder": str(ledger.folder), **told, "report": report.to_record(), "manifest": ledger.manifest})
    return 0


def publish(ledger: RunFolder, report: Report | None = None) -> Path:
    """Write report.html anew from the rows so far and, once no job is open, report.json and lm-eval's two files.

    Returns the page. Each file is written whole or not at all. Raises OutputError where the folder cannot be written.
    """
    from triptych.apps.run_page import page
    from triptych.eval import lm_eval_export as exports
    from triptych.eval.quiz import Quiz

    manifest, rows, quiz = ledger.manifest, ledger.played(), Quiz.read(ledger)
    report = ledger.report() if report is None else report
    if not report.open:
        samples = exports.samples(manifest, rows, quiz)
        ledger.replace(exports.SAMPLES, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
        results = exports.results(manifest, rows, ledger.columns, quiz)
        ledger.replace(exports.RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        ledger.finish(report)
    return ledger.replace("report.html", page(ledger, report, quiz))


def check(ledgers: Sequence[RunFolder], other: Path, as_json: bool) -> int:
    """Print each difference between a run's manifest and another; 1 if one forbids to compare the runs, else 0."""
    from triptych.eval.compare import differences
    from triptych.eval.run_folder import read_manifest

    if len(ledgers) > 1:
        raise ConfigError(f"--check with {len(ledgers)} folders; expected one folder and the manifest of another run")
    found = differences(ledgers[0].manifest, read_manifest(other / "manifest.json" if other.is_dir() else other))
    forbidden = any(each.forbids for each in found)
    if as_json:
        told = [asdict(each) for each in found]
        _print({"comparable": not forbidden, "differences": told})
        return int(forbidden)
    for each in found:
        print(f"{'forbids' if each.forbids else 'tells  '}  {each}")
    print("not comparable" if forbidden else "comparable" if found else "comparable: the manifests are the same")
    return int(forbidden)


def contrast(ledgers: Sequence[RunFolder], turn: int | None, anyway: bool, as_json: bool) -> int:
    """Print the runs side by side, and each against the first: paired differences, and prompts won and lost."""
    from triptych.apps.terminal import open_console
    from triptych.eval.compare import compare

    console = open_console(as_json)
    warnings = barred(ledgers, anyway)
    turn = common_turn(ledgers, turn)
    columns, (first, *others) = ledgers[0].columns, [ledger.played() for ledger in ledgers]
    comparisons = [compare(first, rows, columns, turn) for rows in others]
    reports = [ledger.report() for ledger in ledgers]
    console.print(beside(ledgers, reports, comparisons, turn))
    lines = [line for name, found in zip(named(ledgers)[1:], comparisons, strict=True) for line in told(name, found)]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    warnings += [
        f"{ledger.folder}: {report.open} samples still to be played"
        for ledger, report in zip(ledgers, reports, strict=True)
        if report.open
    ]
    for line in warnings:
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    if as_json:
        _print(record(ledgers, reports, comparisons))
    return 0


def common_turn(ledgers: Sequence[RunFolder], turn: int | None) -> int:
    """`turn`, or the last one that all runs have. Raises ConfigError for one that they do not."""
    last = min(ledger.manifest["turns"] for ledger in ledgers)
    if turn is None:
        return last
    if not 0 <= turn <= last:
        raise ConfigError(f"--turn {turn}: expected 0 to {last}, the last turn that all these runs have")
    return turn


def record(ledgers: Sequence[RunFolder], reports: Sequence[Report], found: Sequence[RunComparison]) -> dict[str, Any]:
    """Runs and comparisons as JSON values, with every prompt that is won, lost, tied or not in both."""
    return {
        "runs": [
            {"folder": str(ledger.folder), "report": report.to_record(), "manifest": ledger.manifest}
            for ledger, report in zip(ledgers, reports, strict=True)
        ],
        "comparisons": [
            {"first": str(ledgers[0].folder), "second": str(ledger.folder), **comparison.to_record()}
            for ledger, comparison in zip(ledgers[1:], found, strict=True)
        ],
    }


def barred(ledgers: Sequence[RunFolder], anyway: bool) -> list[str]:
    """What forbids to compare the runs with the first, in lines. Raises ConfigError unless that is overruled."""
    from triptych.eval.compare import SAME_PROMPTS, differences

    found = []
    for ledger in ledgers[1:]:
        forbidding = [each for each in differences(ledgers[0].manifest, ledger.manifest) if each.forbids]
        firm = [each for each in forbidding if each.key in SAME_PROMPTS or not anyway]
        if firm:
            told = "; ".join(str(each) for each in firm)
            what = (
                "expected runs of the same prompts" if anyway else "compare other runs, or look all the same: --anyway"
            )
            raise ConfigError(f"{ledgers[0].folder} and {ledger.folder} are not comparable: {told}; {what}")
        found += [f"compared anyway: {ledger.folder}: {each}" for each in forbidding]
    return found


def beside(ledgers: Sequence[RunFolder], reports: Sequence[Report], found: Sequence[RunComparison], turn: int) -> Table:
    """A line per column: each run's mean, then each later run's difference to the first."""
    from rich.table import Table

    from triptych.eval.results import format_estimate

    asked = "drawn" in ledgers[0].manifest  # a quiz
    shares = "share of right answers" if asked else f"after {turn} edits at most: share of right pictures"
    printed = Table(title=f"{reports[0].benchmark}, {shares} [95 %]")
    printed.add_column("column")
    names = named(ledgers)
    for name in [*names, *(f"{name} minus {names[0]}" for name in names[1:])]:
        printed.add_column(name, justify="right", overflow="fold")
    for column in reports[0].accuracy:
        means = [format_estimate(report.accuracy[column][turn]) if column in report.accuracy else "-" for report in reports]
        changes = [format_estimate(comparison.differences[column], sign="+") for comparison in found]
        printed.add_row(column, *means, *changes)
    return printed


def named(ledgers: Sequence[RunFolder]) -> list[str]:
    """A short name for each run: that of its folder, or the whole path where two folders share theirs."""
    short = [ledger.folder.resolve().name for ledger in ledgers]
    return short if len({*short}) == len(short) else [str(ledger.folder) for ledger in ledgers]


def told(name: str, found: RunComparison) -> list[str]:
    """How many prompts are won, lost, tied and unpaired, and the first of those won and lost."""
    sign = "" if found.sign_p is None else f", sign test p = {found.sign_p:.3g}"
    lines = [
        f"{name}: {len(found.wins)} prompts won, {len(found.losses)} lost, {len(found.ties)} tied, "
        f"{len(found.unpaired)} not in both{sign}"
    ]
    for word, pairs in (("won", found.wins), ("lost", found.losses)):
        lines += [f"  {word:4} {pair.first:.2f} to {pair.second:.2f}  {pair.text}" for pair in pairs[:LISTED]]
        if len(pairs) > LISTED:
            lines.append(f"  {word:4} and {len(pairs) - LISTED} more: --json lists all")
    return lines


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)
