"""Static pages of traces: one trace, or many, as a single HTML file that opens without a server and without a network.

Style and script are inline, images are data URIs, and the page forbids itself everything else (its content security
policy). Whatever a prompt or a model said is text: jinja2 escapes it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from triptych.apps.trace_view import TraceView
from triptych.model.templates import parse_thought
from triptych.trace import Trace, Verdict

if TYPE_CHECKING:
    import jinja2

PIXELATED_BELOW = 256  # pixels; a smaller image is enlarged without smoothing
THUMBNAIL_SIDE = 256  # pixels; cards and galleries show no more
PAGE_IMAGE_SIDE = 1024  # pixels; a trace page shows no more, and the folder holds the whole image
BEATS = ("plan", "draw", "reflect", "edit")
RGBImage = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class TurnPanel:
    """One turn as the page shows it; `picture` and `before` are numbers into the page's images."""

    number: int
    thought: str | None  # the plan or reflection, without tags and without the instruction
    instruction: str | None
    picture: int | None
    before: int | None
    verdict: Verdict | None  # of `picture`; of the image that was looked at in a turn that stopped
    seconds: Mapping[str, float]

    @property
    def kind(self) -> str:
        if self.picture is None:
            return "stop"
        return "reason" if self.before is None else "refine"


@dataclass(frozen=True)
class TraceCard:
    """One trace on the page of many: its folder's name, its prompt, how it went, its last image as a data URI."""

    folder: str
    prompt: str
    seed: int
    edits: int
    verdict: Verdict | None
    picture: str | None
    pixelated: bool


def trace_page(view: TraceView) -> str:
    """The page of one trace."""
    trace = view.trace
    images = trace.images
    return template("trace.html").render(
        view=view,
        trace=trace,
        panels=turn_panels(trace, view.verdicts),
        pictures=[png_uri(thumbnail(image, PAGE_IMAGE_SIDE)) for image in images],
        shape=images[-1].shape if images else (1, 1, 3),
        pixelated=bool(images) and is_small(images[-1]),
        given=trace.prompt.image is not None,
        seconds=[(name, sum(turn.seconds.get(name, 0.0) for turn in trace.turns)) for name in BEATS],
        settings=flat_settings(view.settings),
    )


def trace_index(title: str, cards: Sequence[TraceCard]) -> str:
    """The page of many traces, each a link to its own page."""
    verdicts = [card.verdict for card in cards if card.verdict is not None]
    right = sum(verdict.score == 1.0 for verdict in verdicts)
    return template("trace_index.html").render(
        title=title, cards=cards, pixelated=False, judged=len(verdicts), right=right
    )


def trace_card(folder: str, view: TraceView) -> TraceCard:
    """What the page of many keeps of a trace in `folder` beside it."""
    image = view.trace.image
    return TraceCard(
        folder=folder,
        prompt=view.user_prompt,
        seed=view.trace.seed,
        edits=view.edits,
        verdict=view.verdict,
        picture=None if image is None else png_uri(thumbnail(image)),
        pixelated=image is not None and is_small(image),
    )


def turn_panels(trace: Trace, verdicts: Sequence[Verdict] = ()) -> list[TurnPanel]:
    """The turns of a trace, each with its image's number, the one before it, and its verdict."""
    panels, picture = [], (None if trace.prompt.image is None else 0)  # a given image is the first of the trace's
    for number, turn in enumerate(trace.turns):
        before = picture
        if turn.drew is not None:
            picture = 0 if picture is None else picture + 1
        new = picture if turn.drew is not None else None
        verdict = verdicts[picture] if verdicts and picture is not None else None
        thought = None if turn.said is None else parse_thought(turn.said.text)
        panels.append(TurnPanel(number, thought, turn.instruction, new, before, verdict, turn.seconds))
    return panels


def png_uri(image: RGBImage) -> str:
    """The image as a PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: RGBImage, side: int = THUMBNAIL_SIDE) -> RGBImage:
    """The image, at most so many pixels a side."""
    if max(image.shape[:2]) <= side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    return np.asarray(small)


def is_small(image: np.ndarray) -> bool:
    """Whether a page enlarges the image without smoothing."""
    return max(image.shape[:2]) < PIXELATED_BELOW


def flat_settings(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += flat_settings(value, f"{above}{name}.")
        else:
            flat.append((f"{above}{name}", str(value)))
    return flat


@cache
def template(name: str) -> jinja2.Template:
    """A page of this folder, by its file name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # prompts and model texts are never markup
        undefined=jinja2.StrictUndefined,  # a misspelled variable is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
