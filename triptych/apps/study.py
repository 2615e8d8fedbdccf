"""`triptych study`: folders of runs as training curves and the paper's table, with notes on what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from triptych.apps.commands import StudyOptions
from triptych.apps.console import open_console
from triptych.apps.options import OpenModel
from triptych.errors import ConfigError
from triptych.eval import studies
from triptych.eval.results import OVERALL, format_estimate
from triptych.eval.studies import Curve, PaperRow, TrainingRun
from triptych.files import check_writable, new_folder, write_json, write_text


def run(options: StudyOptions, open_model: OpenModel) -> int:
    """Read the runs, write the folder, print the tables; returns the exit code."""
    check_writable(options.out)
    training_runs, evaluations = read_runs(options.runs)
    tables = studies.paper_table(evaluations)
    notes = [*studies.notes(training_runs), *(note for rows in tables.values() for note in studies.missing(rows))]
    record = {
        "curves": _curve_records(training_runs),
        "tables": {benchmark: [asdict(row) for row in rows] for benchmark, rows in tables.items()},
        "notes": notes,
    }
    write_study(options.out, training_runs, tables, notes, record)
    console = open_console(options.as_json)
    for benchmark, rows in tables.items():
        console.print(overall_table(benchmark, rows))
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)
    console.print(f"{options.out}/", style="bold", soft_wrap=True)
    if options.as_json:
        print(json.dumps(record), flush=True)
    return 0


def read_runs(runs: Sequence[str]) -> tuple[list[TrainingRun], list[tuple[str, Path]]]:
    """Folders by what they hold: runs of training, and named runs of a benchmark. ConfigError for other folders."""
    training_runs, evaluations = [], []
    for text in runs:
        # A folder whose own name has a "=" in it is taken as it is.
        label, _, name = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        folder = Path(name)
        if (folder / "run.json").is_file():
            training_runs.append(TrainingRun.read(folder, label or None))
        elif (folder / "manifest.json").is_file():
            evaluations.append((label or folder.name, folder))
        else:
            raise ConfigError(
                f"{text}: expected a folder with run.json (`triptych train`) or manifest.json (`triptych eval`), "
                "found neither; name one as DIR or NAME=DIR"
            )
    if not runs:
        raise ConfigError("nothing to study; expected folders of `triptych train` or `triptych eval`, as [NAME=]DIR")
    return training_runs, evaluations


def write_study(
    folder: Path,
    training_runs: Sequence[TrainingRun],
    tables: Mapping[str, Sequence[PaperRow]],
    notes: Sequence[str],
    record: Mapping[str, Any],
) -> None:
    """Write figure, text and numbers into a new folder, whole or not at all. Raises OutputError."""
    from matplotlib import rc_context

    parts = ["# Study\n"]
    parts += ["![Curves](curves.svg)\n"] if training_runs else []
    parts += [studies.markdown(benchmark, rows) for benchmark, rows in tables.items()]
    parts += ["\n".join(f"- {note}" for note in notes) + "\n"] if notes else []
    with new_folder(folder) as part:
        if training_runs:
            # Text stays text in the SVG, and no file holds a date or a random id, so that the same runs give the same
            # bytes.
            with rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
                figure = studies.figure(training_runs)
                figure.savefig(part / "curves.svg", metadata={"Date": None})
                figure.savefig(part / "curves.png", dpi=130)
        write_text(part / "study.md", "\n".join(parts))
        write_json(part / "study.json", record)


def overall_table(benchmark: str, rows: Sequence[PaperRow]) -> Table:
    """A table for the terminal: the overall score with its interval."""
    table = Table("", "overall", "traces", title=benchmark)
    for row in rows:
        table.add_row(row.title, format_estimate(row.cells[OVERALL]) if row.cells else "-", str(row.rows or "-"))
    return table


def _curve_records(training_runs: Sequence[TrainingRun]) -> dict[str, Any]:
    return {
        name: {title: None if curve is None else _curve_record(curve) for title, curve in groups.items()}
        for name, groups in studies.curves(training_runs).items()
    }


def _curve_record(curve: Curve) -> dict[str, Any]:
    arrays = {name: getattr(curve, name).tolist() for name in ("samples", "mean", "low", "high")}
    return {**arrays, "runs": curve.runs}
