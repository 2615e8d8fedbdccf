"""The page of a run, drawn or asked: headline, table, plots, and a gallery of hits and misses, as one static file
without a network.

Plots are SVG in the page's own colours, so that they follow light and dark. Pictures are inlined up to a budget that is
shared evenly by the columns; what is left out is said.
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

from triptych.apps.trace_page import SMALL, data_uri, rows, template, thumbnail
from triptych.errors import PictureError
from triptych.eval.compare import compare
from triptych.eval.quiz import ColumnAccuracy, Quiz, accuracy_by_column, caption
from triptych.eval.results import OVERALL, Report, Row
from triptych.eval.run_folder import RunFolder
from triptych.eval.statistics import Estimate
from triptych.model.images import read_picture
from triptych.model.templates import CLOSE, parse_thought
from triptych.trace import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 9_000_000  # of inlined pictures: a page that a phone still opens
MOST_CARDS = 12  # of each column; fewer where there are many columns
KINDS = ("wrong", "right", "missing")
INK, SOFT, LINE, HUE, DRAW = "#010101", "#020202", "#030303", "#040404", "#050505"  # replaced by the page's own colours
COLORS = {INK: "--ink", SOFT: "--soft", LINE: "--line", HUE: "--reason", DRAW: "--draw"}


@dataclass(frozen=True)
class PictureView:
    """One judged picture of a row: a data URI where it was kept and there is room for it."""

    picture: str | None
    verdict: Verdict | None
    edits: int


@dataclass(frozen=True)
class RowCard:
    """One row on the page. `kind` is that of its last picture."""

    row: Row
    kind: str
    shots: tuple[PictureView, ...]
    said: tuple[tuple[str, str], ...]  # thought, instruction; plan first, then reflections

    @property
    def failed(self) -> tuple[str, ...]:
        verdict = self.shots[-1].verdict if self.shots else None
        return () if verdict is None else verdict.failed

    @property
    def pixelated(self) -> bool:
        return any(shot.picture is not None and shot.picture.startswith("data:image/png") for shot in self.shots)


@dataclass(frozen=True)
class GallerySection:
    """One column of the gallery, and how many rows of each kind it has in all."""

    column: str
    cards: tuple[RowCard, ...]
    totals: dict[str, int]


def page(ledger: RunFolder, report: Report, quiz: Quiz | None = None) -> str:
    """The page of a run's rows so far; `quiz` where it asked rather than drew."""
    played, manifest = ledger.played(), ledger.manifest
    found = {} if quiz is None else accuracy_by_column(quiz, played)
    shelves = list(gallery(ledger, played, list(report.accuracy)))
    shots = [shot for shelf in shelves for card in shelf.cards for shot in card.shots]
    inlined = sum(shot.picture is not None for shot in shots)
    return template("report.html").render(
        report=report,
        manifest=manifest,
        settings=list(rows(manifest)),
        overall=report.accuracy.get(OVERALL, (Estimate(None, None, None),)),
        score=report.score.get(OVERALL, (Estimate(None, None, None),))[-1],
        gain=gain(played, [column for column in report.accuracy if column != OVERALL], len(report.edits) - 1),
        by_turn=by_turn(report) if len(report.edits) > 1 else None,
        by_column=by_column(report, found),
        quiz=quiz,
        found=found,
        about=() if quiz is None else caption(quiz, found)[1:],
        shelves=shelves,
        shown=sum(len(shelf.cards) for shelf in shelves),
        inlined=inlined,
        pictures=sum(len(row.verdicts) for row in played),
        kept=(ledger.folder / "pictures").is_dir(),
        pixelated=False,
    )


def gain(played: Sequence[Row], columns: Sequence[str], turns: int) -> Estimate:
    """What the turns add: the share right after the last one minus that of the first pictures, paired by prompt."""
    first = [replace(row, verdicts=row.verdicts[:1]) for row in played]
    return compare(first, played, columns, turns).differences.get(OVERALL, Estimate(None, None, None))


# --- gallery ----------------------------------------------------------------------------------------------------------


def gallery(ledger: RunFolder, played: Sequence[Row], columns: Sequence[str]) -> Iterator[GallerySection]:
    """A shelf per column: cards evenly spread over its rows, more of what went wrong than of what went right."""
    found = {column: [row for row in played if row.column == column] for column in columns if column != OVERALL}
    found = {column: own for column, own in found.items() if own}
    if not found:
        return
    most, budget = max(3, min(MOST_CARDS, 120 // len(found))), MOST_BYTES // len(found)
    for column, own in found.items():
        kinds = {kind: [row for row in own if kind_of(row) == kind] for kind in KINDS}
        chosen = [
            row for kind, share in zip(KINDS, (2, 1, 1), strict=True) for row in spread(kinds[kind], most * share // 3)
        ]
        purse, cards = ByteBudget(budget), []
        for row in chosen:
            shots = tuple(
                PictureView(purse.picture(ledger.place(row, turn)), verdict, turn)
                for turn, verdict in enumerate(row.verdicts)
            )
            cards.append(
                RowCard(row, kind_of(row), shots, tuple(_spoken(text) for text in row.said if text is not None))
            )
        yield GallerySection(column, tuple(cards), {kind: len(members) for kind, members in kinds.items()})


def kind_of(row: Row) -> str:
    """Whether the last picture of a row is right, wrong, or was not judged."""
    score = row.score(row.edits)
    return "missing" if score is None else "right" if score == 1 else "wrong"


def spread(members: Sequence[Row], count: int) -> list[Row]:
    """About `count` of them, evenly spread, as nobody's favourites."""
    total = len(members)
    return list(members) if total <= count else [members[index * total // count] for index in range(count)]


class ByteBudget:
    """Bytes that may still be spent on pictures."""

    def __init__(self, left: int):
        self.left = left

    def picture(self, path: Path) -> str | None:
        """The picture as a data URI; None where it was not kept, cannot be read, or does not fit any more."""
        if path.is_symlink() or not path.is_file():  # what lies elsewhere is not copied into a page
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
    """Small pictures to the pixel, large ones as JPEG thumbnails."""
    image = read_picture(path)
    if max(image.shape[:2]) <= SMALL:
        return data_uri(image)
    buffer = io.BytesIO()
    Image.fromarray(thumbnail(image)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _spoken(text: str) -> tuple[str, str]:
    return parse_thought(text), text.rsplit(CLOSE, 1)[1].strip() if CLOSE in text else ""


# --- plots ------------------------------------------------------------------------------------------------------------


def by_turn(report: Report) -> str:
    """Share of right pictures after 0, 1, ... edits at most, with its 95 % band; columns as thin lines behind it."""
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
    axes.set_xlabel("edits at most", color=SOFT)
    _shares(axes.yaxis, axes.set_ylim)
    return _svg(figure, "Share of right pictures by number of edits")


def by_column(report: Report, found: Mapping[str, ColumnAccuracy] | None = None) -> str:
    """Share of right pictures of each column with its 95 % interval: of the first picture, and after the last turn.

    Of a quiz, the share of right answers, and strokes where a coin is (long) and the best constant answer (short).
    """
    columns = [*(column for column in report.accuracy if column != OVERALL), OVERALL]
    turns = len(report.edits) - 1
    figure, axes = _axes(6.4, 0.8 + 0.42 * len(columns))
    for place, column in enumerate(reversed(columns)):
        looks = [(turns, HUE, 6.5)] if not turns else [(0, DRAW, 5), (turns, HUE, 6.5)]
        for shift, (turn, color, size) in enumerate(looks):
            estimate = report.accuracy[column][turn]
            if estimate.value is None:
                continue
            level = place + (0.11 - 0.22 * shift if turns else 0)
            axes.plot([estimate.low, estimate.high], [level] * 2, color=color, linewidth=2, alpha=0.55)
            axes.plot([estimate.value], [level], color=color, marker="o", markersize=size)
        standing = (found or {}).get(column)
        for chance, reach in () if standing is None else ((standing.coin, 0.34), (standing.constant, 0.17)):
            if chance is not None:
                axes.plot([chance] * 2, [place - reach, place + reach], color=SOFT, linewidth=1.4)
    axes.set_yticks(range(len(columns)))
    axes.set_yticklabels(list(reversed(columns)), parse_math=False)
    axes.set_ylim(-0.6, len(columns) - 0.4)
    _shares(axes.xaxis, axes.set_xlim)
    return _svg(figure, f"Share of right {'answers' if found else 'pictures'} by column")


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, colors=SOFT, labelsize=10)
    axes.set_axisbelow(True)
    return figure, axes


def _shares(axis: Any, set_limits: Any) -> None:
    set_limits(-0.03, 1.03)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
    axis.grid(color=LINE, linewidth=1)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of the page: text stays text, colours are the page's, and nothing in it is random."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', drawn, count=1)
    for color, name in COLORS.items():
        drawn = drawn.replace(color, f"var({name})")
    return drawn


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
