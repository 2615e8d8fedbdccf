"""The record of a drawing: a Prompt, then Turns, each with a text and an image.

Every room reads or extends traces. Records are built whole and never changed; `trace + turn` is a new trace.
A trace folder holds `trace.json`, `turn-0.png`, `turn-1.png`, ..., `final.png`, and `input.png` when the prompt brought
an image. Pixels are uint8 RGB, height by width by 3.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.files import new_folder, write_json, write_text

FORMAT = 1  # of trace.json; raised when a field changes meaning


@dataclass(frozen=True)
class Item:
    """One line of a spec: `count` objects called `name`, with what must be true of them (GenEval's metadata).

    `region` is left, right, above or below; `size` is larger or smaller; `position` is (relation, index of the item
    that it is relative to), the relation being "left of", "right of", "above" or "below".
    """

    name: str
    count: int = 1
    color: str | None = None
    region: str | None = None
    size: str | None = None
    position: tuple[str, int] | None = None

    def to_metadata(self) -> dict[str, Any]:
        """GenEval's own keys, absent where nothing is asked."""
        record: dict[str, Any] = {"class": self.name, "count": self.count}
        for key in ("color", "region", "size"):
            if getattr(self, key) is not None:
                record[key] = getattr(self, key)
        if self.position is not None:
            record["position"] = list(self.position)
        return record

    @staticmethod
    def from_metadata(record: Mapping[str, Any]) -> Item:
        position = record.get("position")  # GenEval: [relation, index], a list in JSON
        return Item(
            name=record["class"],
            count=int(record.get("count", 1)),
            color=record.get("color"),
            region=record.get("region"),
            size=record.get("size"),
            position=None if position is None else (str(position[0]), int(position[1])),
        )


@dataclass(frozen=True)
class Spec:
    """What must be true of an image: a GenEval or GenEval++ metadata record without its sentence."""

    tag: str
    include: tuple[Item, ...]
    exclude: tuple[Item, ...] = ()

    def to_metadata(self) -> dict[str, Any]:
        record: dict[str, Any] = {"tag": self.tag, "include": [item.to_metadata() for item in self.include]}
        if self.exclude:
            record["exclude"] = [item.to_metadata() for item in self.exclude]
        return record

    @staticmethod
    def from_metadata(record: Mapping[str, Any]) -> Spec:
        return Spec(
            tag=record["tag"],
            include=tuple(Item.from_metadata(item) for item in record["include"]),
            exclude=tuple(Item.from_metadata(item) for item in record.get("exclude", ())),
        )


# eq=False here and below: arrays in a record have no single truth value to compare by, and no hash.
@dataclass(frozen=True, eq=False)
class Prompt:
    """The text to draw, its spec where there is one, and an image to start from where there is one."""

    text: str
    spec: Spec | None = None
    image: np.ndarray | None = None
    source: str = ""  # name of the benchmark or file that it is from


@dataclass(frozen=True, eq=False)
class Completion:
    """A sampled text: `tokens [time] int64` from the first sampled token to the end token included, and
    `logprobs [time] float32` under the distribution that each token was really drawn from."""

    text: str
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # nats
    # For each token the sorted ids (int32) that top-p or top-k left to draw from; None without a filter. Training data:
    # a ratio of two probabilities is defined only over one set of tokens.
    kept: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True, eq=False)
class SDESteps:
    """The SDE steps of one drawing, as FlowGRPO re-scores them: float32, never rounded.

    `before`, `after` `[step patch latent]`; `time`, `dt`, `logprob` `[step]`; `index [step]` is the number of the flow
    step. `mean [step patch latent]` is that of the Gaussian from which `after` was drawn.
    """

    before: np.ndarray
    after: np.ndarray  # with `before`, a pair for each step: the steps need not follow each other
    time: np.ndarray  # 1 is noise
    dt: np.ndarray
    logprob: np.ndarray
    index: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True, eq=False)
class Drawing:
    """An image `[height width 3] uint8`, and its SDE steps where `Sampling.sde_indices` has any."""

    image: np.ndarray
    sde_steps: SDESteps | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """One beat's outcome: what was `said` (None without a plan) and what it `drew` (None means it stopped)."""

    said: Completion | None
    drew: Drawing | None
    instruction: str | None = None  # of the edit; None in the first turn and in a stop
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall clock by beat: plan, draw, reflect, edit


@dataclass(frozen=True)
class Verdict:
    """A judge's score of an image in [0, 1], and the checks that it passed or failed, in words."""

    score: float
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        return {"score": self.score, "passed": list(self.passed), "failed": list(self.failed)}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Verdict:
        """Undo `to_record`. Raises ValueError, KeyError or TypeError for what is no verdict."""
        if not 0 <= record["score"] <= 1:  # NaN, too
            raise ValueError("expected a score from 0 to 1")
        passed, failed = tuple(record["passed"]), tuple(record["failed"])
        if not all(isinstance(check, str) for check in (*passed, *failed)):
            raise ValueError("expected checks in words")
        return Verdict(record["score"], passed, failed)


@dataclass(frozen=True, eq=False)
class Trace:
    """A prompt and the turns taken on it so far."""

    prompt: Prompt
    turns: tuple[Turn, ...] = ()
    seed: int = 0
    lost: str = ""  # why the next turn has no result, where the model's numbers were not finite: it has no verdict

    def __add__(self, turn: Turn) -> Trace:
        return replace(self, turns=(*self.turns, turn))

    @property
    def images(self) -> list[np.ndarray]:
        """Every image in order, the given one first where there is one."""
        drawn = [turn.drew.image for turn in self.turns if turn.drew is not None]
        return drawn if self.prompt.image is None else [self.prompt.image, *drawn]

    @property
    def image(self) -> np.ndarray | None:
        """The newest image: the only one that later beats see (the chain is Markov)."""
        images = self.images
        return images[-1] if images else None

    @property
    def before(self) -> np.ndarray | None:
        """The image before the newest one."""
        images = self.images
        return images[-2] if len(images) > 1 else None

    @property
    def finished(self) -> bool:
        """True once the model has said that no further edit is needed."""
        return bool(self.turns) and self.turns[-1].drew is None  # only a stop draws nothing

    def __repr__(self) -> str:
        """One line without pixels, such as Trace('two red apples', seed=0, 2 pictures, finished)."""
        count = len(self.images)
        parts = [repr(_cut(self.prompt.text)), f"seed={self.seed}", f"{count} picture{'' if count == 1 else 's'}"]
        parts += ["finished"] if self.finished else []
        parts += [f"lost: {_cut(self.lost)}"] if self.lost else []
        return f"Trace({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the pictures in order, each over the text that led to it. It needs no other file."""
        # All texts are escaped: a prompt or a reply of a model is no markup.
        cells = [] if self.prompt.image is None else [_cell(self.prompt.image, "input", None)]
        for index, turn in enumerate(self.turns):
            said = None if turn.said is None else turn.said.text
            cells.append(_cell(None if turn.drew is None else turn.drew.image, f"turn {index}", said))
        cells += [f"<div>lost: {html.escape(self.lost)}</div>"] if self.lost else []
        style = "display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start"
        title = f"<b>{html.escape(self.prompt.text)}</b>, seed {self.seed}"
        return f'<div>{title}<div style="{style}">{"".join(cells)}</div></div>'

    def show(self) -> None:
        """Show the pictures in a row: in a notebook inline, elsewhere in the system's viewer. No picture, no window."""
        images = self.images
        if not images:
            return
        # Pictures of a trace may differ in size, where the first one was given: they share their upper edge.
        strip = Image.new(
            "RGB", (sum(each.shape[1] for each in images), max(each.shape[0] for each in images)), "white"
        )
        left = 0
        for each in images:
            strip.paste(Image.fromarray(each), (left, 0))
            left += each.shape[1]
        strip.show()  # IPython registers itself as Pillow's first viewer

    def save(
        self, folder: Path, extra: Mapping[str, Any] | None = None, pages: Mapping[str, str] | None = None
    ) -> Path:
        """Write the trace to a new `folder`, whole or not at all.

        `extra` joins trace.json (verdicts, settings); `pages` are texts to write beside it, by file name. Raises
        OutputError if the folder exists or cannot be written.
        """
        # In a new folder only: a second trace would leave images of the first one beside its own.
        with new_folder(folder) as part:
            for name, image in self.named_images().items():
                Image.fromarray(image).save(part / name)
            if self.image is not None:  # a copy of the last one, under a name that needs no counting
                Image.fromarray(self.image).save(part / "final.png")
            write_json(part / "trace.json", {**self.to_record(), **(extra or {})})
            for name, text in (pages or {}).items():
                write_text(part / name, text)
        return Path(folder)

    def to_record(self) -> dict[str, Any]:
        """The trace without its pixels, as JSON values."""
        return {
            "format": FORMAT,
            "prompt": self.prompt.text,
            "spec": None if self.prompt.spec is None else self.prompt.spec.to_metadata(),
            "source": self.prompt.source,
            "seed": self.seed,
            "finished": self.finished,  # for readers of the file; `from_record` sees it in the turns
            "input": None if self.prompt.image is None else "input.png",
            "turns": [_turn_record(index, turn) for index, turn in enumerate(self.turns)],
        }

    def named_images(self) -> dict[str, np.ndarray]:
        """The images by the names that `to_record` refers to: "input.png", "turn-0.png", ..."""
        # By the number of the turn, so that a name stays with its turn where another one drew nothing.
        drawn = [(f"turn-{index}.png", turn.drew) for index, turn in enumerate(self.turns)]
        given = {} if self.prompt.image is None else {"input.png": self.prompt.image}
        return given | {name: drew.image for name, drew in drawn if drew is not None}

    @staticmethod
    def from_record(record: Mapping[str, Any], read_image: Callable[[str], np.ndarray]) -> Trace:
        """Undo `to_record`; `read_image` returns the pixels of a name of `named_images`. SDE steps are not kept."""
        spec = record["spec"]
        prompt = Prompt(
            text=record["prompt"],
            spec=None if spec is None else Spec.from_metadata(spec),
            image=None if record["input"] is None else read_image(record["input"]),
            source=record["source"],
        )
        turns = tuple(_turn_from_record(turn, read_image) for turn in record["turns"])
        return Trace(prompt=prompt, turns=turns, seed=record["seed"])

    @staticmethod
    def load(folder: Path) -> Trace:
        """Read a trace folder."""
        record = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))
        return Trace.from_record(record, lambda name: _pixels(Path(folder) / name))


MAX_INLINE = 512  # pixels of the longer side of a picture in a notebook, which keeps every picture in its file


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _cell(image: np.ndarray | None, name: str, said: str | None) -> str:
    """One turn as HTML."""
    parts = [f"<div>{name}</div>"]
    if image is not None:
        picture, buffer = Image.fromarray(image), io.BytesIO()
        picture.thumbnail((MAX_INLINE, MAX_INLINE))
        picture.save(buffer, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts.append(f'<img src="{source}" alt="{name}" style="width:192px;max-width:100%">')
    if said is not None:
        parts.append(f'<div style="width:192px;white-space:pre-wrap">{html.escape(said)}</div>')
    return f"<div>{''.join(parts)}</div>"


def _turn_record(index: int, turn: Turn) -> dict[str, Any]:
    said = turn.said
    return {
        "said": None if said is None else said.text,
        "tokens": [] if said is None else said.tokens.tolist(),
        "logprobs": [] if said is None else [float(value) for value in said.logprobs],  # JSON knows no float32
        "instruction": turn.instruction,
        "drew": None if turn.drew is None else f"turn-{index}.png",
        "seconds": dict(turn.seconds),
    }


def _turn_from_record(record: Mapping[str, Any], read_image: Callable[[str], np.ndarray]) -> Turn:
    said = None
    if record["said"] is not None:
        tokens, logprobs = np.asarray(record["tokens"], np.int64), np.asarray(record["logprobs"], np.float32)
        said = Completion(record["said"], tokens, logprobs)  # without `kept`: such a text can be read, not trained on
    drew = None if record["drew"] is None else Drawing(read_image(record["drew"]))
    return Turn(said=said, drew=drew, instruction=record["instruction"], seconds=record["seconds"])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))  # decoded here, before the file is closed
