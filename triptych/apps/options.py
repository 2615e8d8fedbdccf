"""Options that several commands share, as records without behavior; those of one command stand in commands.py.

Bounds stand beside their fields, and `bounds.check_bounds` holds them. Nothing here imports torch, so that
`triptych --help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval
from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from triptych.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share
from triptych.model.config import Guidance, Steps, Temperature

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

OpenModel = Callable[..., "Bagel"]  # called as triptych.model.weights.load is
JudgeKind = Literal["world", "templates", "detector", "vlm"]
STICKER_JUDGES = ("world", "templates")  # judges that know the sticker world and nothing else

MAX_TRACES = 100_000  # lines of one file of prompts, and traces of one prompt
Count = Annotated[int, Interval(ge=1, le=MAX_TRACES)]

Flag = FlagCreatePairsOff[bool]
JsonFlag = Annotated[FlagCreatePairsOff[bool], arg(name="json")]
OutFolder = Annotated[Path | None, arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model, and where it runs."""

    model: str = "sketch"
    """Name of packaged weights, a checkpoint folder, or a Hugging Face name such as ByteDance-Seed/BAGEL-7B-MoT."""
    base: str = ""
    """Model from which --model was fine-tuned: parts and files that its checkpoint leaves out are taken from there."""
    device: str = "auto"
    """Device as torch names it (cpu, cuda, cuda:1); auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto is float32 on a CPU and bfloat16 on a GPU."""
    threads: NonNegativeInt = 0
    """CPU threads of torch; 0 is one for a model of SKETCH's size, and torch's own number for a larger one."""


@dataclass(frozen=True, kw_only=True)
class SamplingChoice(ModelChoice):
    """A model, and how it samples."""

    steps: Steps | None = None
    """Flow-matching steps per image; None is the model's own number."""
    guidance: Guidance | None = None
    """Text guidance scale, where 1 is off; None is the model's own."""
    temperature: Temperature | None = None
    """Sampling temperature of all generated text, where 0 is greedy; None is the model's own."""


@dataclass(frozen=True, kw_only=True)
class PlayChoice(SamplingChoice):
    """How traces are drawn, and where they are written."""

    seed: NonNegativeInt = 0
    """Seed of the first trace; each later trace adds 1."""
    turns: NonNegativeInt = 4
    """Maximum number of Reflect-Refine turns; the model may stop earlier."""
    best_of: Count = 1
    """Draw this many candidates and keep the one that the judge scores highest (sticker models only)."""
    batch: PositiveInt = 16
    """Traces drawn in one batch."""
    out: OutFolder = None
    """New folder for the result; None is traces/PROMPT-SEED."""
    as_json: JsonFlag = False
    """Print the result as JSON on stdout, and progress on stderr."""


@dataclass(frozen=True, kw_only=True)
class VlmChoice:
    """Where a vision-language model answers, and how it is asked."""

    address: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL")] = ()
    """Base URL of an OpenAI-compatible server of the vlm (vision-language model); repeat it for several servers."""
    judge_model: str = ""
    """Name of the vlm on those servers."""
    ask: Literal["auto", "strict", "yesno", "tiif"] = "auto"
    """Question format: one verdict (strict), the probability of yes (yesno), or TIIF's list of questions (tiif)."""
    wording: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text file that replaces the judge's prompt; it holds {prompt}, {metadata} or {questions}."""
    key: Annotated[str, arg(metavar="VARIABLE")] = "TRIPTYCH_JUDGE_KEY"
    """Environment variable that holds the API key."""
    cache: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of cached replies, which are not requested again; several processes may share it."""
    record: Annotated[Path | None, arg(metavar="FILE")] = None
    """File to which replies are recorded, for `triptych score`."""
    concurrency: PositiveInt = 8
    """Maximum number of concurrent requests, over all addresses."""
    judge_tokens: NonNegativeInt = 0
    """Longest answer in tokens, thoughts included; 0 is the question's own. A cut one is asked for again with more."""
    judge_thinking: Literal["auto", "on", "off"] = "auto"
    """Let the judge think first, where its chat template has the switch enable_thinking; auto leaves it alone."""
    judge_temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judge."""
    judge_extra: Annotated[str, arg(metavar="JSON")] = ""
    """Further fields of each request, as a JSON object, such as '{"seed": 1}'."""
    timeout: PositiveFloat = 60.0
    """Seconds before a request times out, from its first byte to the last of the answer."""
    tries: PositiveInt = 5
    """Attempts per request, with exponential backoff."""


@dataclass(frozen=True, kw_only=True)
class JudgeChoice(VlmChoice):
    """Which judge scores images."""

    judge: Literal["auto", "world", "templates", "detector", "vlm"] = "auto"
    """Of stickers: world (trained detector) or templates (slow); of any image: detector (GenEval's) or vlm."""
    max_missing: Share = 0.2
    """Stop when a larger share of the verdicts is missing."""
