"""What several commands ask for: which weights, how a trace is drawn, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

Open = Callable[..., "Bagel"]  # called as triptych.model.weights.load is

Json = Annotated[FlagCreatePairsOff[bool], arg(name="json")]
Folder = Annotated[Path | None, arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which weights, where."""

    model: str = "sketch"
    """A packaged name, a checkpoint folder, or a hub name such as ByteDance-Seed/BAGEL-7B-MoT."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of compute; auto is float32 on a CPU and bfloat16 on a GPU."""

    def load(self, open_model: Open) -> Bagel:
        """The model, in memory."""
        from triptych.apps.arguments import device_of, dtype_of

        return open_model(self.model, device_of(self.device), dtype_of(self.dtype))


@dataclass(frozen=True, kw_only=True)
class PlayChoice(ModelChoice):
    """How a trace is drawn and where it goes."""

    seed: int = 0
    """Of the first trace; the next ones count up from it."""
    turns: int = 4
    """Most Reflect-Refine turns; the model may stop earlier."""
    steps: int | None = None
    """Flow steps per picture; the model's own number if not given."""
    guidance: float | None = None
    """Scale of text guidance, 1 is off; the model's own if not given."""
    temperature: float | None = None
    """Of all that the model says, 0 is greedy; the model's own if not given."""
    best_of: int = 1
    """Draw so many and keep the judge's favourite; only where there is a judge."""
    batch: int = 16
    """Traces drawn at once."""
    out: Folder = None
    """A new folder; traces/PROMPT-SEED if not given."""
    as_json: Json = False
    """Print the result as JSON on stdout, and the rest on stderr."""
