"""Studies of training from the folders of its runs: curves over samples, several seeds as one.

Runs of `triptych train` that differ in nothing but their seed are one curve: the mean over seeds, and a band from the
lowest to the highest. Curves go over samples (texts and pictures), since a step of one recipe is not a step of another.
What was not measured is said, and never drawn as a number. The paper's table is in paper.py.

The paper's table from folders of `triptych eval`: a line for each way to draw, up to each number of turns.

A line that nobody has measured is there and says so. Numbers of other models, the paper's own too, are not mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.errors import ConfigError, OutputError
from triptych.eval.results import OVERALL, cell
from triptych.eval.run_folder import RunFolder
from triptych.eval.statistics import Estimate
from triptych.eval.validation import Validation
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES
from triptych.rl.train_state import FREE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"sketch": "Tree-RL", "trajectory": "full trajectory", "reason-only": "Reason only"}
SOFT = "#6a665d"
COLORS = ("#1e7f78", "#b0701a", "#4b53b5", "#b23b2a", "#5b6b2f", "#7a4b8c")
SMOOTH = 10  # most points that a training reward is averaged over, at both ends fewer


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run of training, as its folder tells it."""

    folder: Path
    name: str
    settings: Mapping[str, Any]  # run.json
    steps: tuple[Mapping[str, Any], ...]  # steps.jsonl
    evaluations: tuple[Mapping[str, Any], ...]  # those with the settings of the newest one
    others: int = 0  # evaluations with other settings, which are left out

    @staticmethod
    def read(folder: Path, label: str | None = None) -> TrainingRun:
        """Raises OutputError if it is no folder of `triptych train`."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{folder}/run.json cannot be read; expected a folder of `triptych train`") from error
        every = Validation(folder / "evaluations.jsonl").rows()
        kept = [row for row in every if row["watch"] == every[-1]["watch"]]
        name = label or name_of(settings)
        return TrainingRun(folder, name, settings, _lines(folder / "steps.jsonl"), tuple(kept), len(every) - len(kept))

    def of_steps(self, name: str) -> np.ndarray:
        """`[point 2]`, samples and value, from the steps that begin at a prompt: Reason, or whole chains."""
        rows = [row for row in self.steps if row["stage"] != "refine" and name in row]
        return np.array([(row["samples"], row[name]) for row in rows], float).reshape(-1, 2)

    def of_evaluations(self, name: str) -> np.ndarray:
        """`[point 2]`, samples and value."""
        rows = [row for row in self.evaluations if name in row]
        return np.array([(row["samples"], row[name]) for row in rows], float).reshape(-1, 2)

    @property
    def turns(self) -> int | None:
        """Most turns of its evaluations."""
        return self.evaluations[-1]["watch"]["turns"] if self.evaluations else None


@dataclass(frozen=True, eq=False)
class Curve:
    """Mean, lowest and highest of some runs `[point]`, over the samples that all of them have."""

    samples: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


def name_of(settings: Mapping[str, Any]) -> str:
    """The recipe that a run.json holds, whatever its seed and budget, by the title of its curve; or its kind."""
    known = _fixed(settings)
    for recipe, (config, _) in RECIPES.items():
        if known == _fixed(json.loads(json.dumps(asdict(config)))):
            return TITLES.get(recipe, recipe)
    tree = settings["tree"]
    kind = "trajectory" if tree["kind"] == "trajectory" else "reason-only" if not tree["depth"] else "sketch"
    return f"{TITLES[kind]}, own settings"


def grouped(courses: Iterable[TrainingRun]) -> dict[str, list[TrainingRun]]:
    """Runs by their name. Raises ConfigError where runs of one name differ in more than their seed and budget."""
    groups: dict[str, list[TrainingRun]] = {}
    for course in courses:
        first = groups.setdefault(course.name, [course])[0]
        if first is course:
            continue
        one, other = _fixed(first.settings), _fixed(course.settings)
        changed = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if changed:
            raise ConfigError(
                f"{course.folder} and {first.folder} are both {course.name!r} and differ in {', '.join(changed)}; "
                "expected runs that differ in their seed alone: name one of them, as NAME=DIR"
            )
        if any(course.settings["seed"] == known.settings["seed"] for known in groups[course.name]):
            raise ConfigError(
                f"{course.folder} has seed {course.settings['seed']}, as another run of {course.name!r}; expected "
                "different seeds: leave one out, or name it, as NAME=DIR"
            )
        groups[course.name].append(course)
    return groups


def curve(series: Sequence[np.ndarray]) -> Curve | None:
    """One curve of several runs `[point 2]`; between its points each is taken as straight. None without a point in
    common: a run that has none is not left out in silence."""
    if not series or any(not len(points) for points in series):
        return None
    series = [points[np.argsort(points[:, 0], kind="stable")] for points in series]
    start, end = max(points[0, 0] for points in series), min(points[-1, 0] for points in series)
    samples = np.unique(np.concatenate([points[:, 0] for points in series]))
    samples = samples[(samples >= start) & (samples <= end)]
    if not len(samples):
        return None
    values = np.stack([np.interp(samples, points[:, 0], points[:, 1]) for points in series])
    return Curve(samples, values.mean(0), values.min(0), values.max(0), len(series))


def smooth(points: np.ndarray, width: int = SMOOTH) -> np.ndarray:
    """`[point 2]` with each value the mean of itself and its neighbours, `width` in all where there are so many."""
    width = max(1, min(width, len(points) // 5))
    before = (width - 1) // 2
    value = [points[max(0, i - before) : i - before + width, 1].mean() for i in range(len(points))]
    return np.column_stack([points[:, 0], value]) if len(points) else points


def panels(courses: Sequence[TrainingRun]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What the figure shows: a title, and (source, metric, what a dashed line stands for) of each line in it."""
    turns = max((course.turns or 0 for course in courses), default=0)
    counts = {0: "first picture", turns: f"after up to {turns} turn{'' if turns == 1 else 's'}"} if turns else {0: ""}
    return [
        ("V in training", [("step", "v", "")]),
        *(
            (f"right {title}, held out", [("evaluation", f"{way}_right_{turn}", told) for turn, told in counts.items()])
            for way, title in (("at_once", "at once"), ("planned", "with a plan"))
        ),
        ("ITA, own pictures", [("evaluation", "ita", "all"), ("evaluation", "ita_balanced", "right and wrong alike")]),
        ("VQA, own pictures", [("evaluation", "vqa", "")]),
        (
            "mistakes on fixed pictures",
            [("evaluation", "fixed_false_stop", "false stops"), ("evaluation", "fixed_false_edit", "false edits")],
        ),
    ]


def curves(courses: Sequence[TrainingRun]) -> dict[str, dict[str, Curve | None]]:
    """Every curve of the figure, by its metric and the name of its runs; None where it was not measured."""
    groups, found = grouped(courses), {}
    for _, lines in panels(courses):
        for source, name, _ in lines:
            found[name] = {title: curve(_series(runs, source, name)) for title, runs in groups.items()}
    return found


def figure(courses: Sequence[TrainingRun]) -> Figure:
    """Six panels of curves over samples."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups, found = grouped(courses), curves(courses)
    colors = {group: COLORS[place % len(COLORS)] for place, group in enumerate(groups)}
    drawn = Figure((13, 7.2), layout="constrained")
    for axes, (title, lines) in zip(drawn.subplots(2, 3).flat, panels(courses), strict=True):
        _panel(axes, title, [(told, found[name]) for _, name, told in lines], colors)
    seeds = {group: "1 seed" if len(runs) == 1 else f"{len(runs)} seeds" for group, runs in groups.items()}
    handles = [Line2D([], [], color=colors[group], linewidth=2, label=f"{group} ({seeds[group]})") for group in groups]
    drawn.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    told = f"lines: mean over seeds; bands: lowest to highest; V in training: mean of up to {SMOOTH} steps"
    drawn.supxlabel(told, fontsize=9, color=SOFT)
    return drawn


def _panel(axes: Any, title: str, lines: Sequence[tuple[str, Mapping[str, Curve | None]]], colors: Mapping[str, str]):
    """One panel; of two lines of a colour the first is dashed. It begins at 0 and is as high as there is to see."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e2ddd2", linewidth=0.8)
    axes.set_xlabel("samples", fontsize=9)
    axes.tick_params(labelsize=9)
    measured = [one for _, groups in lines for one in groups.values() if one is not None]
    top = min(1.0, 1.2 * max((float(one.high.max()) for one in measured), default=1.0) + 0.02)
    axes.set_ylim(-0.02 * top, 1.02 * top)
    if not measured:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=SOFT)
        return
    for dash, (told, groups) in zip(("--", "-")[-len(lines) :], lines, strict=True):
        for group, one in groups.items():
            if one is None:
                continue
            mark = "o" if len(one.samples) < 12 else None
            axes.plot(one.samples, one.mean, dash, color=colors[group], marker=mark, markersize=3.5, linewidth=1.6)
            if one.runs > 1:
                axes.fill_between(one.samples, one.low, one.high, color=colors[group], alpha=0.16, linewidth=0)
        if told:
            known = any(one is not None for one in groups.values())
            axes.plot([], [], dash, color=SOFT, label=told if known else f"{told}: not measured")
    if any(told for told, _ in lines):
        axes.legend(frameon=False, fontsize=8.5)


def notes(courses: Sequence[TrainingRun]) -> list[str]:
    """What a reader of the figure has to know: what was not measured, differs or is left out."""
    told = []
    for course in courses:
        if not course.steps:
            told.append(f"{course.folder}: no step was logged")
        if not course.evaluations:
            told.append(f"{course.folder}: no evaluation; train with --evaluate.every")
        if course.others:
            told.append(
                f"{course.folder}: {course.others} evaluations with other settings than the newest are left out"
            )
    kinds = {json.dumps(course.evaluations[-1]["watch"]) for course in courses if course.evaluations}
    if len(kinds) > 1:
        told.append(f"evaluations differ in their settings and cannot be compared: {'; '.join(sorted(kinds))}")
    starts = {(course.settings["model"], course.settings.get("start")) for course in courses}
    if len(starts) > 1 and all(model != "tiny" for model, _ in starts):  # tiny models are drawn by the seed
        told.append("runs start from different weights: " + ", ".join(sorted({model for model, _ in starts})))
    for name, runs in grouped(courses).items():
        told += [
            f"{name}: {metric} is in some of its runs only, and has no curve"
            for _, lines in panels(courses)
            for source, metric, _ in lines
            if 0 < sum(len(points) > 0 for points in _series(runs, source, metric)) < len(runs)
        ]
        if len(runs) == 1:
            told.append(f"{name}: one seed, so there is no band")
    return told


def _series(runs: Sequence[TrainingRun], source: str, name: str) -> list[np.ndarray]:
    if source == "step":
        return [smooth(run.of_steps(name)) for run in runs]
    return [run.of_evaluations(name) for run in runs]


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What fixes a run beside its seed and its first weights; a setting newer than the run has its default."""
    known = json.loads(json.dumps(asdict(TrainConfig()))) | dict(settings)
    return {key: value for key, value in known.items() if key not in (*FREE, "seed", "start")}


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:  # torn by a kill
            continue
    return tuple(found)


# Rows of the table: title, the label of the folder, whether it plans, most turns.
SLOTS = tuple(
    (f"{title}, {'planned' if plan else 'at once'}, <= {turn} turns", label, plan, turn)
    for title, label, turns in (("lessons", "lessons", 5), ("Reason only", "reason-only", 1), ("R3", "r3", 5))
    for plan in (False, True)
    for turn in range(turns)
)


@dataclass(frozen=True)
class PaperRow:
    """A row of the table; no cells where it was not measured."""

    title: str
    cells: Mapping[str, Estimate]
    rows: int = 0  # traces it was counted on
    left: int = 0  # jobs that were not played yet


def paper_table(evaluated: Sequence[tuple[str, Path]]) -> dict[str, list[PaperRow]]:
    """The lines of each benchmark's table: the paper's rows first, from folders of `triptych eval` with the labels
    lessons, reason-only and r3; then every other folder under its own label.

    Raises OutputError if a folder is none, ConfigError if two folders would fill one row or a benchmark's prompts or
    judges differ.
    """
    tables: dict[str, list[tuple[str, RunFolder]]] = {}
    for label, folder in evaluated:
        ledger = RunFolder.read(folder)
        rows = tables.setdefault(ledger.manifest["benchmark"], [])
        _expect_comparable(rows, ledger)
        rows.append((label, ledger))
    return {benchmark: _table(rows) for benchmark, rows in tables.items()}


def markdown(benchmark: str, lines: Sequence[PaperRow]) -> str:
    """A table for a page; strict accuracy, with the 95 % interval of Overall."""
    columns = list(next((line.cells for line in lines if line.cells), {}))
    head = ["", *columns, "traces"]
    told = [[line.title, *_cells(line, columns), str(line.rows or "-")] for line in lines]
    body = [head, ["---", *["---:"] * (len(columns) + 1)], *told]
    return f"## {benchmark}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in body) + "\n"


def missing(lines: Sequence[PaperRow]) -> list[str]:
    """The rows that nobody has measured, and those that are not finished."""
    told = [f"{line.title}: not measured" for line in lines if not line.cells]
    return told + [f"{line.title}: {line.left} traces are not played yet" for line in lines if line.left]


def _table(rows: Sequence[tuple[str, RunFolder]]) -> list[PaperRow]:
    found: dict[tuple[str, bool], RunFolder] = {}
    for label, ledger in rows:
        key = (label, ledger.manifest.get("plan", True))
        if key in found:
            raise ConfigError(f"{ledger.folder} and {found[key].folder} are both {label!r}; expected different names")
        found[key] = ledger
    reports = {key: ledger.report() for key, ledger in found.items()}

    def line(title: str, key: tuple[str, bool], turn: int) -> PaperRow:
        if key not in reports or turn > found[key].manifest["turns"]:
            return PaperRow(title, {})
        report = reports[key]
        cells = {column: turns[turn] for column, turns in report.accuracy.items()}
        return PaperRow(title, cells, report.rows, report.open)

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


def _expect_comparable(rows: Sequence[tuple[str, RunFolder]], ledger: RunFolder) -> None:
    for _, other in rows[:1]:
        for key in ("prompts_sha256", "judge", "seeds"):
            if other.manifest.get(key) != ledger.manifest.get(key):
                raise ConfigError(
                    f"{ledger.folder} and {other.folder} differ in their {key}: expected the same prompts, judge and "
                    "seeds in one table; play one of them again, or leave it out"
                )


def _cells(line: PaperRow, columns: Sequence[str]) -> list[str]:
    return [cell(line.cells[name], with_interval=name == OVERALL) if name in line.cells else "-" for name in columns]
