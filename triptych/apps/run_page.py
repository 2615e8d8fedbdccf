"""The page of a benchmark run or a quiz: headline, table, plots, and a gallery of right and wrong images, in one file.

Plots are SVG in the page's own colors, so that they follow light and dark mode. Images are inlined up to a byte budget
that the columns share evenly; the page says how many are left out.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from triptych.apps.trace_page import THUMBNAIL_SIDE, flat_settings, png_uri, template, thumbnail
from triptych.errors import PictureError
from triptych.eval.compare import compare
from triptych.eval.quiz import ColumnAccuracy, Quiz, accuracy_by_column, caption
from triptych.eval.results import OVERALL, Report, Row
from triptych.eval.run_folder import RunFolder
from triptych.eval.statistics import Estimate
from triptych.model.images import read_image
from triptych.model.templates import CLOSE, parse_thought
from triptych.trace import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BYTES = 9_000_000  # of inlined images: a page that a phone still opens
MAX_CARDS = 12  # of each column; fewer where there are many columns
OUTCOMES = ("wrong", "right", "missing")
# matplotlib knows no CSS variables: a color that nothing else has stands for each until `_svg` replaces it.
INK, SOFT, LINE, HUE, DRAW = "#010101", "#020202", "#030303", "#040404", "#050505"
COLOR_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", HUE: "--reason", DRAW: "--draw"}


@dataclass(frozen=True)
class PictureView:
    """One judged image of a row: a data URI where the file is there and the byte budget allows it."""

    picture: str | None
    verdict: Verdict | None
    edits: int


@dataclass(frozen=True)
class RowCard:
    """One row on the page. `outcome` is that of its last image."""

    row: Row
    outcome: str
    pictures: tuple[PictureView, ...]
    texts: tuple[tuple[str, str], ...]  # thought, instruction; plan first, then reflections

    @property
    def failed(self) -> tuple[str, ...]:
        verdict = self.pictures[-1].verdict if self.pictures else None
        return () if verdict is None else verdict.failed

    @property
    def pixelated(self) -> bool:
        return any(view.picture is not None and view.picture.startswith("data:image/png") for view in self.pictures)


@dataclass(frozen=True)
class GallerySection:
    """One column of the gallery, and how many rows of each outcome it has in all."""

    column: str
    cards: tuple[RowCard, ...]
    totals: dict[str, int]


def run_page(run_folder: RunFolder, report: Report, quiz: Quiz | None = None) -> str:
    """The page of a run's rows so far; `quiz` where it asked questions instead of drawing."""
    rows, manifest = run_folder.rows(), run_folder.manifest
    columns = {} if quiz is None else accuracy_by_column(quiz, rows)
    sections = list(gallery(run_folder, rows, list(report.accuracy)))
    inlined = sum(view.picture is not None for section in sections for card in section.cards for view in card.pictures)
    return template("run.html").render(
        report=report,
        manifest=manifest,
        settings=flat_settings(manifest),
        overall=report.accuracy.get(OVERALL, (Estimate(None, None, None),)),
        score=report.score.get(OVERALL, (Estimate(None, None, None),))[-1],
        gain=edit_gain(rows, [column for column in report.accuracy if column != OVERALL], len(report.edits) - 1),
        by_turn=plot_by_turn(report) if len(report.edits) > 1 else None,
        by_column=plot_by_column(report, columns),
        quiz=quiz,
        columns=columns,
        notices=() if quiz is None else caption(quiz, columns)[1:],
        sections=sections,
        shown=sum(len(section.cards) for section in sections),
        inlined=inlined,
        pictures=sum(len(row.verdicts) for row in rows),
        kept=(run_folder.folder / "pictures").is_dir(),
        pixelated=False,
    )


def edit_gain(rows: Sequence[Row], columns: Sequence[str], turns: int) -> Estimate:
    """The share right after the last turn minus that of the first images, paired by prompt."""
    first = [replace(row, verdicts=row.verdicts[:1]) for row in rows]
    return compare(first, rows, columns, turns).differences.get(OVERALL, Estimate(None, None, None))


# --- gallery ----------------------------------------------------------------------------------------------------------


def gallery(run_folder: RunFolder, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[GallerySection]:
    """A section per column: cards evenly spaced over its rows, two wrong ones for each right one."""
    by_column = {column: [row for row in rows if row.column == column] for column in columns if column != OVERALL}
    by_column = {column: own for column, own in by_column.items() if own}
    if not by_column:
        return
    # at most 120 cards in all, unless there are more than 40 columns
    most, budget = max(3, min(MAX_CARDS, 120 // len(by_column))), MAX_BYTES // len(by_column)
    for column, own in by_column.items():
        outcomes = {outcome: [row for row in own if outcome_of(row) == outcome] for outcome in OUTCOMES}
        chosen = [
            row
            for outcome, weight in zip(OUTCOMES, (2, 1, 1), strict=True)
            for row in evenly_spaced(outcomes[outcome], most * weight // 3)
        ]
        byte_budget = ByteBudget(budget)  # of each column, or the first ones would use it up
        cards = tuple(_row_card(row, run_folder, byte_budget) for row in chosen)
        yield GallerySection(column, cards, {outcome: len(members) for outcome, members in outcomes.items()})


def _row_card(row: Row, run_folder: RunFolder, byte_budget: ByteBudget) -> RowCard:
    pictures = tuple(
        PictureView(byte_budget.picture(run_folder.picture_path(row, turn)), verdict, turn)
        for turn, verdict in enumerate(row.verdicts)
    )
    return RowCard(row, outcome_of(row), pictures, tuple(_texts(text) for text in row.said if text is not None))


def outcome_of(row: Row) -> str:
    """Whether the last image of a row is right, wrong, or has no verdict."""
    score = row.score(row.edits)
    return "missing" if score is None else "right" if score == 1 else "wrong"


def evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` of the rows, evenly spaced, so that nobody chose them."""
    total = len(rows)
    return list(rows) if total <= count else [rows[index * total // count] for index in range(count)]


class ByteBudget:
    """Bytes that may still be spent on inlined images."""

    def __init__(self, left: int):
        self.left = left

    def picture(self, path: Path) -> str | None:
        """The image as a data URI; None where the file is absent or unreadable, or the budget is used up."""
        if path.is_symlink() or not path.is_file():  # a link may lead to a file that is not of this run
            return None
        try:
            uri = _inlined(path)
        except PictureError:
            return None
        if len(uri) > self.left:
            return None
        self.left -= len(uri)
        return uri


def _inlined(path: Path) -> str:
    """A data URI: small images as PNG, large ones as JPEG thumbnails."""
    image = read_image(path)
    if max(image.shape[:2]) <= THUMBNAIL_SIDE:
        return png_uri(image)
    buffer = io.BytesIO()
    Image.fromarray(thumbnail(image)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _texts(text: str) -> tuple[str, str]:
    return parse_thought(text), text.rsplit(CLOSE, 1)[1].strip() if CLOSE in text else ""


# --- plots ------------------------------------------------------------------------------------------------------------


def plot_by_turn(report: Report) -> str:
    """Share of right images after at most 0, 1, ... edits, with its 95 % band; columns as thin lines behind it."""
    figure, axes = _axes(6.4, 3.5)
    turns = range(len(report.edits))
    for column, estimates in report.accuracy.items():
        if column != OVERALL:
            values = [_number(each.value) for each in estimates]
            axes.plot(turns, values, color=SOFT, linewidth=1, alpha=0.3)
    overall = report.accuracy[OVERALL]
    lows, highs = [_number(each.low) for each in overall], [_number(each.high) for each in overall]
    axes.fill_between(turns, lows, highs, color=HUE, alpha=0.16, linewidth=0)
    axes.plot(turns, [_number(each.value) for each in overall], color=HUE, linewidth=2.4, marker="o", markersize=5)
    axes.set_xticks(list(turns), [str(turn) for turn in turns])
    axes.set_xlabel("maximum number of edits", color=SOFT)
    _shares(axes.yaxis, axes.set_ylim)
    return _svg(figure, "Share of right pictures by number of edits")


def plot_by_column(report: Report, accuracies: Mapping[str, ColumnAccuracy] | None = None) -> str:
    """Share of right pictures of each column with its 95 % interval: of the first picture, and after the last turn.

    Of a quiz, the share of right answers, and lines at chance (long) and majority (short).
    """
    columns = [*(column for column in report.accuracy if column != OVERALL), OVERALL]
    turns = len(report.edits) - 1
    figure, axes = _axes(6.4, 0.8 + 0.42 * len(columns))
    for place, column in enumerate(reversed(columns)):
        points = [(turns, HUE, 6.5)] if not turns else [(0, DRAW, 5), (turns, HUE, 6.5)]
        for shift, (turn, color, size) in enumerate(points):
            estimate = report.accuracy[column][turn]
            if estimate.value is None:
                continue
            # first and last turn of a column stand a fifth of a row apart
            level = place + (0.11 - 0.22 * shift if turns else 0)
            axes.plot([estimate.low, estimate.high], [level] * 2, color=color, linewidth=2, alpha=0.55)
            axes.plot([estimate.value], [level], color=color, marker="o", markersize=size)
        accuracy = (accuracies or {}).get(column)
        for chance, reach in () if accuracy is None else ((accuracy.chance, 0.34), (accuracy.majority, 0.17)):
            if chance is not None:
                axes.plot([chance] * 2, [place - reach, place + reach], color=SOFT, linewidth=1.4)
    axes.set_yticks(range(len(columns)))
    axes.set_yticklabels(list(reversed(columns)), parse_math=False)  # a "$" in a name is no formula
    axes.set_ylim(-0.6, len(columns) - 0.4)
    _shares(axes.xaxis, axes.set_xlim)
    return _svg(figure, f"Share of right {'answers' if accuracies else 'pictures'} by column")


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")  # without pyplot, which would choose a backend for a screen
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, colors=SOFT, labelsize=10)
    axes.set_axisbelow(True)
    return figure, axes


def _shares(axis: Any, set_limits: Any) -> None:
    set_limits(-0.03, 1.03)  # room for half a marker at 0 and at 1
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
    axis.grid(color=LINE, linewidth=1)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of the page: text stays text, colors are the page's, and nothing in it is random."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Without width and height the page sets the width, and the viewBox keeps the aspect ratio.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    for color, name in COLOR_VARIABLES.items():
        svg = svg.replace(color, f"var({name})")
    return svg


def _number(value: float | None) -> float:
    return float("nan") if value is None else value  # matplotlib leaves a gap
