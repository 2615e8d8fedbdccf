"""Static pages: one trace, or many, as a single HTML file that opens without a server and without a network.

Style and script are inline, pictures are data URIs, and the page forbids itself everything else (its content security
policy). Whatever a prompt or a model said is text: jinja2 escapes it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from triptych.apps.output import TraceView
from triptych.model.templates import parse_thought
from triptych.trace import Trace, Turn, Verdict

SMALL = 256  # pixels; smaller pictures are enlarged without smoothing, larger ones become thumbnails of this side
LARGE = 1024  # pixels; most of a picture that a page shows: the folder holds it whole
BEATS = ("plan", "draw", "reflect", "edit")


@dataclass(frozen=True)
class TurnPanel:
    """One turn as the page shows it; `picture` and `before` are numbers into the page's pictures."""

    number: int
    thought: str | None
    instruction: str | None
    picture: int | None
    before: int | None
    verdict: Verdict | None  # of `picture`; of the picture looked at in a turn that stopped
    seconds: Mapping[str, float]

    @property
    def kind(self) -> str:
        if self.picture is None:
            return "stop"
        return "reason" if self.before is None else "refine"


@dataclass(frozen=True)
class TraceCard:
    """One trace on the page of many: its folder's name, what was asked, how it went, its last picture as a data URI."""

    folder: str
    asked: str
    seed: int
    edits: int
    verdict: Verdict | None
    picture: str | None
    pixelated: bool


def page(exhibit: TraceView) -> str:
    """The page of one trace."""
    trace = exhibit.trace
    images = trace.images
    return template("trace.html").render(
        exhibit=exhibit,
        trace=trace,
        panels=panels(trace, exhibit.verdicts),
        pictures=[data_uri(thumbnail(image, LARGE)) for image in images],
        shape=images[-1].shape if images else (1, 1, 3),
        pixelated=bool(images) and max(images[-1].shape[:2]) < SMALL,
        given=trace.prompt.image is not None,
        seconds=[(name, sum(turn.seconds.get(name, 0.0) for turn in trace.turns)) for name in BEATS],
        settings=list(rows(exhibit.settings)),
    )


def index(title: str, cards: Sequence[TraceCard]) -> str:
    """The page of many traces, each a link to its own page."""
    judged = [card.verdict for card in cards if card.verdict is not None]
    right = sum(verdict.score == 1.0 for verdict in judged)
    return template("index.html").render(title=title, cards=cards, pixelated=False, judged=len(judged), right=right)


def card(folder: str, exhibit: TraceView) -> TraceCard:
    """What the page of many keeps of a trace in `folder` beside it."""
    image = exhibit.trace.image
    return TraceCard(
        folder=folder,
        asked=exhibit.asked,
        seed=exhibit.trace.seed,
        edits=exhibit.edits,
        verdict=exhibit.verdict,
        picture=None if image is None else data_uri(thumbnail(image)),
        pixelated=image is not None and max(image.shape[:2]) < SMALL,
    )


def panels(trace: Trace, verdicts: Sequence[Verdict] = ()) -> list[TurnPanel]:
    """The turns of a trace, each with its picture's number, the one before it, and its verdict."""
    shown, picture = [], (None if trace.prompt.image is None else 0)
    for number, turn in enumerate(trace.turns):
        before = picture
        if turn.drew is not None:
            picture = 0 if picture is None else picture + 1
        drawn = picture if turn.drew is not None else None
        verdict = verdicts[picture] if verdicts and picture is not None else None
        shown.append(TurnPanel(number, thought(turn), turn.instruction, drawn, before, verdict, turn.seconds))
    return shown


def thought(turn: Turn) -> str | None:
    """What the model thought aloud in a turn, without tags and without the instruction."""
    return None if turn.said is None else parse_thought(turn.said.text)


def data_uri(image: np.ndarray) -> str:
    """`[height width 3] uint8` as a PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: np.ndarray, side: int = SMALL) -> np.ndarray:
    """The picture, at most so many pixels a side."""
    if max(image.shape[:2]) <= side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    return np.asarray(small)


def rows(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += rows(value, f"{above}{name}.")
        else:
            flat.append((f"{above}{name}", str(value)))
    return flat


@cache
def template(name: str) -> jinja2.Template:
    """A page of this folder, by its file name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
