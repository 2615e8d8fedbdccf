"""Studies: runs of training as curves, several seeds as one, and the paper's table from runs of a benchmark.

Runs of `triptych train` that differ in nothing but their seed are one curve: the mean over seeds, and a band from the
lowest to the highest. Curves go over samples (texts and pictures), since a step of one recipe is not a step of another.
The paper's table (arXiv 2602.15772) has a line for each way to draw, up to each number of turns. What was not
measured is said, and never given as a number. Numbers of other models, the paper's own too, are not mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.errors import ConfigError, OutputError
from triptych.eval.results import OVERALL, format_estimate
from triptych.eval.run_folder import RunFolder
from triptych.eval.statistics import Estimate
from triptych.eval.validation import ValidationLog
from triptych.files import JsonLog
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES
from triptych.rl.train_state import FACTS, FREE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"sketch": "Tree-RL", "trajectory": "full trajectory", "reason-only": "Reason only"}
MUTED = "#6a665d"  # of words that explain
CURVE_COLORS = ("#1e7f78", "#b0701a", "#4b53b5", "#b23b2a", "#5b6b2f", "#7a4b8c")
_FREE_OF_OLD = ("every", "micro", "recompute")  # 0.1's names of settings in train_state.FREE
SMOOTH = 10  # most points that a training reward is averaged over, at both ends fewer


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run of training, as its folder holds it."""

    folder: Path
    name: str
    settings: Mapping[str, Any]  # run.json
    steps: tuple[Mapping[str, Any], ...]  # steps.jsonl
    validations: tuple[Mapping[str, Any], ...]  # those with the settings of the newest one
    others: int = 0  # validations with other settings, which are left out

    @staticmethod
    def read(folder: Path, label: str | None = None) -> TrainingRun:
        """Raises OutputError if it is no folder of `triptych train`."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{folder}/run.json cannot be read; expected a folder of `triptych train`") from error
        validations = ValidationLog(folder / "evaluations.jsonl").rows()
        newest = [row for row in validations if row["settings"] == validations[-1]["settings"]]
        steps = tuple(JsonLog(folder / "steps.jsonl").read())
        others = len(validations) - len(newest)
        return TrainingRun(folder, label or name_of(settings), settings, steps, tuple(newest), others)

    def points(self, source: str, metric: str) -> np.ndarray:
        """`[point 2]`, samples and value, from the validations or from the steps.

        Of steps those count that begin at a prompt, Reason or whole chains: pictures of Refine have other parents.
        """
        rows = self.validations if source == "validation" else [row for row in self.steps if row["stage"] != "refine"]
        return np.array([(row["samples"], row[metric]) for row in rows if metric in row], float).reshape(-1, 2)

    @property
    def turns(self) -> int | None:
        """Most turns of its validations."""
        return self.validations[-1]["settings"]["turns"] if self.validations else None


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
    own = _compared_settings(settings)
    for recipe, (config, _) in RECIPES.items():
        if own == _compared_settings(json.loads(json.dumps(asdict(config)))):  # tuples are lists in run.json
            return TITLES.get(recipe, recipe)
    tree = settings["tree"]
    kind = "trajectory" if tree["kind"] == "trajectory" else "reason-only" if not tree["depth"] else "sketch"
    return f"{TITLES[kind]}, own settings"


def grouped(runs: Iterable[TrainingRun]) -> dict[str, list[TrainingRun]]:
    """Runs by their name. Raises ConfigError where runs of one name differ in more than their seed and budget."""
    groups: dict[str, list[TrainingRun]] = {}
    for run in runs:
        group = groups.setdefault(run.name, [])
        for other in group:  # with each, so that no seed counts twice
            _expect_one_curve(run, other)
        group.append(run)
    return groups


def _expect_one_curve(run: TrainingRun, other: TrainingRun) -> None:
    own, others = _compared_settings(run.settings), _compared_settings(other.settings)
    changed = [key for key in {**others, **own} if own.get(key) != others.get(key)]
    if changed:
        raise ConfigError(
            f"{run.folder} and {other.folder} are both {run.name!r} and differ in {', '.join(changed)}; "
            "expected runs that differ in their seed alone: name one of them, as NAME=DIR"
        )
    if run.settings["seed"] == other.settings["seed"]:
        raise ConfigError(
            f"{run.folder} has seed {run.settings['seed']}, as another run of {run.name!r}; expected different "
            "seeds: leave one out, or name it, as NAME=DIR"
        )


def curve(series: Sequence[np.ndarray]) -> Curve | None:
    """One curve of several runs `[point 2]`, each interpolated linearly between its points. None where they have no
    samples in common, or one has no points: a run is not left out in silence."""
    if not series or any(not len(points) for points in series):
        return None
    # Interpolated, since the runs of a curve were not measured after the same numbers of samples.
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
    width = max(1, min(width, len(points) // 5))  # short runs keep their shape
    before = (width - 1) // 2
    value = [points[max(0, i - before) : i - before + width, 1].mean() for i in range(len(points))]
    return np.column_stack([points[:, 0], value]) if len(points) else points


def figure_panels(runs: Sequence[TrainingRun]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What the figure shows: a title, and (source, metric, label) of each line in it."""
    turns = max((run.turns or 0 for run in runs), default=0)
    labels = {0: "first picture", turns: f"after up to {turns} turn{'' if turns == 1 else 's'}"} if turns else {0: ""}
    return [
        ("V in training", [("step", "v", "")]),
        *(
            (
                f"right {title}, held out",
                [("validation", f"{mode}_right_{turn}", label) for turn, label in labels.items()],
            )
            for mode, title in (("one_shot", "one-shot"), ("planned", "with a plan"))
        ),
        ("ITA, own pictures", [("validation", "ita", "all"), ("validation", "ita_balanced", "right and wrong alike")]),
        ("VQA, own pictures", [("validation", "vqa", "")]),
        (
            "mistakes on fixed pictures",
            [("validation", "fixed_false_stop", "false stops"), ("validation", "fixed_false_edit", "false edits")],
        ),
    ]


def curves(runs: Sequence[TrainingRun]) -> dict[str, dict[str, Curve | None]]:
    """Every curve of the figure, by its metric and the name of its runs; None where it was not measured."""
    groups = grouped(runs)
    return {
        metric: {name: curve(_series(group, source, metric)) for name, group in groups.items()}
        for _, lines in figure_panels(runs)
        for source, metric, _ in lines
    }


def figure(runs: Sequence[TrainingRun]) -> Figure:
    """Six panels of curves over samples."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups, by_metric = grouped(runs), curves(runs)
    colors = {name: CURVE_COLORS[place % len(CURVE_COLORS)] for place, name in enumerate(groups)}
    whole = Figure((13, 7.2), layout="constrained")  # inches
    for axes, (title, lines) in zip(whole.subplots(2, 3).flat, figure_panels(runs), strict=True):
        _draw_panel(axes, title, [(label, by_metric[metric]) for _, metric, label in lines], colors)
    seeds = {name: "1 seed" if len(group) == 1 else f"{len(group)} seeds" for name, group in groups.items()}
    handles = [Line2D([], [], color=colors[name], linewidth=2, label=f"{name} ({seeds[name]})") for name in groups]
    whole.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    legend = f"lines: mean over seeds; bands: lowest to highest; V in training: mean of up to {SMOOTH} steps"
    whole.supxlabel(legend, fontsize=9, color=MUTED)
    return whole


def _draw_panel(
    axes: Any, title: str, lines: Sequence[tuple[str, Mapping[str, Curve | None]]], colors: Mapping[str, str]
) -> None:
    """One panel; of two lines of a color the first is dashed. Its axis begins at 0 and ends above the highest band."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e2ddd2", linewidth=0.8)
    axes.set_xlabel("samples", fontsize=9)
    axes.tick_params(labelsize=9)
    measured = [each for _, groups in lines for each in groups.values() if each is not None]
    # Shares of a few percent would be a flat line on an axis to 1.
    top = min(1.0, 1.2 * max((float(each.high.max()) for each in measured), default=1.0) + 0.02)
    axes.set_ylim(-0.02 * top, 1.02 * top)  # a line at 0 or at the top stays whole
    if not measured:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
        return
    for dash, (label, groups) in zip(("--", "-")[-len(lines) :], lines, strict=True):
        for name, each in groups.items():
            if each is None:
                continue
            marker = "o" if len(each.samples) < 12 else None  # markers hide a long curve
            axes.plot(each.samples, each.mean, dash, color=colors[name], marker=marker, markersize=3.5, linewidth=1.6)
            if each.runs > 1:
                axes.fill_between(each.samples, each.low, each.high, color=colors[name], alpha=0.16, linewidth=0)
        if label:
            is_measured = any(each is not None for each in groups.values())
            axes.plot([], [], dash, color=MUTED, label=label if is_measured else f"{label}: not measured")
    if any(label for label, _ in lines):
        axes.legend(frameon=False, fontsize=8.5)


def notes(runs: Sequence[TrainingRun]) -> list[str]:
    """What a reader of the figure has to know: what was not measured, differs or is left out."""
    lines = []
    for run in runs:
        if not run.steps:
            lines.append(f"{run.folder}: no step was logged")
        if not run.validations:
            lines.append(f"{run.folder}: no evaluation; train with --evaluate.every")
        if run.others:
            lines.append(f"{run.folder}: {run.others} evaluations with other settings than the newest are left out")
    kinds = {json.dumps(run.validations[-1]["settings"]) for run in runs if run.validations}
    if len(kinds) > 1:
        lines.append(f"evaluations differ in their settings and cannot be compared: {'; '.join(sorted(kinds))}")
    starts = {(run.settings["model"], run.settings.get("start")) for run in runs}
    if len(starts) > 1 and all(model != "tiny" for model, _ in starts):  # tiny models are drawn by the seed
        lines.append("runs start from different weights: " + ", ".join(sorted({model for model, _ in starts})))
    for name, group in grouped(runs).items():
        lines += [
            f"{name}: {metric} is in some of its runs only, and has no curve"
            for _, panel in figure_panels(runs)
            for source, metric, _ in panel
            if 0 < sum(len(points) > 0 for points in _series(group, source, metric)) < len(group)
        ]
        if len(group) == 1:
            lines.append(f"{name}: one seed, so there is no band")
    return lines


def _series(runs: Sequence[TrainingRun], source: str, metric: str) -> list[np.ndarray]:
    series = [run.points(source, metric) for run in runs]
    return [smooth(points) for points in series] if source == "step" else series


def _compared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What fixes a run beside its seed and its first weights; a setting newer than the run has its default."""
    complete = json.loads(json.dumps(asdict(TrainConfig()))) | dict(settings)
    return {key: value for key, value in complete.items() if key not in (*FREE, *_FREE_OF_OLD, *FACTS, "seed")}


# --- the paper's table ------------------------------------------------------------------------------------------------

# Rows of the table: title, the label of the folder, whether it plans, most turns. From no turn to four, the paper's
# limit; a model that learned Reason alone has no turns to show.
SLOTS = tuple(
    (f"{title}, {'planned' if plan else 'one-shot'}, <= {turn} turns", label, plan, turn)
    for title, label, turns in (("SFT", "sft", 5), ("Reason only", "reason-only", 1), ("R3", "r3", 5))
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


def paper_table(evaluations: Sequence[tuple[str, Path]]) -> dict[str, list[PaperRow]]:
    """The rows of each benchmark's table: the paper's first, from folders of `triptych eval` with the labels sft,
    reason-only and r3; then every other folder under its own label.

    Raises OutputError if a folder is none, ConfigError if two folders would fill one row or a benchmark's prompts or
    judges differ.
    """
    benchmarks: dict[str, list[tuple[str, RunFolder]]] = {}
    for label, folder in evaluations:
        run_folder = RunFolder.read(folder)
        members = benchmarks.setdefault(run_folder.manifest["benchmark"], [])
        # With the first alone: what all share with one, they share with each other.
        for _, other in members[:1]:
            _expect_comparable(run_folder, other)
        members.append(("sft" if label == "lessons" else label, run_folder))  # 0.1's name of sft
    return {benchmark: _table(members) for benchmark, members in benchmarks.items()}


def markdown(benchmark: str, rows: Sequence[PaperRow]) -> str:
    """A table for a page; strict accuracy, with the 95 % interval of Overall."""
    columns = list(next((row.cells for row in rows if row.cells), {}))
    head = [["", *columns, "traces"], ["---", *["---:"] * (len(columns) + 1)]]
    body = [[row.title, *_cells(row, columns), str(row.rows or "-")] for row in rows]
    return f"## {benchmark}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in head + body) + "\n"


def missing(rows: Sequence[PaperRow]) -> list[str]:
    """The rows that nobody has measured, and those that are not finished."""
    unmeasured = [f"{row.title}: not measured" for row in rows if not row.cells]
    return unmeasured + [f"{row.title}: {row.left} traces are not played yet" for row in rows if row.left]


def _table(members: Sequence[tuple[str, RunFolder]]) -> list[PaperRow]:
    run_folders: dict[tuple[str, bool], RunFolder] = {}
    for label, run_folder in members:
        key = (label, run_folder.manifest.get("plan", True))
        if key in run_folders:
            other = run_folders[key].folder
            raise ConfigError(f"{run_folder.folder} and {other} are both {label!r}; expected different names")
        run_folders[key] = run_folder
    reports = {key: run_folder.report() for key, run_folder in run_folders.items()}

    def row(title: str, key: tuple[str, bool], turn: int) -> PaperRow:
        if key not in reports or turn > run_folders[key].manifest["turns"]:
            return PaperRow(title, {})
        report = reports[key]
        cells = {column: estimates[turn] for column, estimates in report.accuracy.items()}
        return PaperRow(title, cells, report.rows, report.open)

    labels = {label for _, label, _, _ in SLOTS}
    rows = []
    if any(label in labels for label, _ in run_folders):
        rows += [row(title, (label, plan), turn) for title, label, plan, turn in SLOTS]
    for (label, plan), run_folder in run_folders.items():
        if label not in labels:
            mode = "" if plan else ", one-shot"
            turns = range(run_folder.manifest["turns"] + 1)
            rows += [row(f"{label}{mode}, <= {turn} turns", (label, plan), turn) for turn in turns]
    return rows


def _expect_comparable(run_folder: RunFolder, other: RunFolder) -> None:
    for key in ("prompts_sha256", "judge", "seeds"):
        if other.manifest.get(key) != run_folder.manifest.get(key):
            raise ConfigError(
                f"{run_folder.folder} and {other.folder} differ in their {key}: expected the same prompts, judge and "
                "seeds in one table; play one of them again, or leave it out"
            )


def _cells(row: PaperRow, columns: Sequence[str]) -> list[str]:
    return [
        format_estimate(row.cells[column], with_interval=column == OVERALL) if column in row.cells else "-"
        for column in columns
    ]
