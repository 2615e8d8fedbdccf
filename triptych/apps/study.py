"""`triptych study`: folders of runs to one figure of curves and the paper's table, and to a word on what is missing."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from triptych.errors import ConfigError
from triptych.eval.studies import PaperRow, TrainingRun


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare runs: curves of training over samples, and the paper's rows from evaluations."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME=]DIR...")] = ()
    """Folders of `triptych train` and `triptych eval`; lessons=DIR, reason-only=DIR, r3=DIR fill the paper's rows."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("study")
    """A new folder: curves.svg, curves.png, study.md and study.json."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print study.json on stdout."""

    def run(self, open_model: object) -> int:
        """Read, write, print; returns the exit code."""
        from triptych.apps.output import check_writable
        from triptych.apps.terminal import open_console
        from triptych.eval import studies
        from triptych.eval import studies as paper

        check_writable(self.out)
        courses, evaluated = sorted_out(self.runs)
        tables = paper.paper_table(evaluated)
        told = [*studies.notes(courses), *(note for lines in tables.values() for note in paper.missing(lines))]
        record = {"curves": _curves(courses), "tables": _tables(tables), "notes": told}
        hang(self.out, courses, tables, told, record)
        console = open_console(self.as_json)
        for benchmark, lines in tables.items():
            console.print(printed(benchmark, lines))
        for note in told:
            console.print(note, style="yellow", soft_wrap=True)
        console.print(f"{self.out}/", style="bold", soft_wrap=True)
        if self.as_json:
            print(json.dumps(record), flush=True)
        return 0


def sorted_out(asked: tuple[str, ...]) -> tuple[list[TrainingRun], list[tuple[str, Path]]]:
    """Folders by what they hold: runs of training, and labelled runs of a benchmark. ConfigError for other folders."""
    from triptych.eval.studies import TrainingRun as Course

    courses, evaluated = [], []
    for text in asked:
        label, _, name = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        folder = Path(name)
        if (folder / "run.json").is_file():
            courses.append(Course.read(folder, label or None))
        elif (folder / "manifest.json").is_file():
            evaluated.append((label or folder.name, folder))
        else:
            raise ConfigError(
                f"{text}: expected a folder with run.json (`triptych train`) or manifest.json (`triptych eval`), "
                "found neither; name one as DIR or NAME=DIR"
            )
    if not asked:
        raise ConfigError("nothing to study; expected folders of `triptych train` or `triptych eval`, as [NAME=]DIR")
    return courses, evaluated


def hang(
    folder: Path, courses: list[TrainingRun], tables: dict[str, list[PaperRow]], told: list[str], record: dict[str, Any]
) -> None:
    """Write the folder, whole or not at all. Raises OutputError."""
    from triptych.apps.output import naming_errors, taken
    from triptych.eval import studies
    from triptych.eval import studies as paper

    with naming_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            inside = Path(temporary) / folder.name
            inside.mkdir()
            if courses:
                draw(studies.figure(courses), inside)
            text = [*(["![Curves](curves.svg)\n"] if courses else [])]
            text += [paper.markdown(benchmark, lines) for benchmark, lines in tables.items()]
            text += ["\n".join(f"- {note}" for note in told) + "\n"] if told else []
            (inside / "study.md").write_text("# Study\n\n" + "\n".join(text), encoding="utf-8")
            (inside / "study.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if folder.exists():
                raise taken(folder)
            os.rename(inside, folder)


def draw(figure: Any, folder: Path) -> None:
    """The figure as SVG, with its words as words, and as PNG."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        figure.savefig(folder / "curves.svg", metadata={"Date": None})
        figure.savefig(folder / "curves.png", dpi=130)


def printed(benchmark: str, lines: list[PaperRow]) -> Any:
    """A table for the terminal: Overall, with its interval."""
    from rich.table import Table

    from triptych.eval.results import OVERALL, format_estimate

    table = Table("", "overall", "traces", title=benchmark)
    for line in lines:
        table.add_row(line.title, format_estimate(line.cells[OVERALL]) if line.cells else "-", str(line.rows or "-"))
    return table


def _curves(courses: list[TrainingRun]) -> dict[str, Any]:
    from triptych.eval import studies

    return {
        name: {
            title: None
            if one is None
            else {
                "samples": one.samples.tolist(),
                "mean": one.mean.tolist(),
                "low": one.low.tolist(),
                "high": one.high.tolist(),
                "runs": one.runs,
            }
            for title, one in groups.items()
        }
        for name, groups in studies.curves(courses).items()
    }


def _tables(tables: dict[str, list[PaperRow]]) -> dict[str, Any]:
    return {benchmark: [asdict(line) for line in lines] for benchmark, lines in tables.items()}
