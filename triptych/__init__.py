"""Triptych: Reason, Reflect, Refine. One model draws, looks at its picture and corrects it.

Names are loaded when they are first used, so that `import triptych` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.data.language import parse_prompt
    from triptych.data.render import render
    from triptych.data.scene import Scene
    from triptych.errors import TriptychError
    from triptych.eval.benchmark import Benchmark
    from triptych.loop import draw, play, reason, refine
    from triptych.model.bagel import Bagel
    from triptych.model.config import BAGEL_7B, SKETCH, Sampling
    from triptych.model.templates import parse_answer
    from triptych.model.weights import load
    from triptych.rewards.judge import Judge
    from triptych.rewards.sticker_judge import WorldJudge
    from triptych.trace import Completion, Drawing, Item, Prompt, Spec, Trace, Turn, Verdict

__all__ = [  # noqa: RUF022  (plain order)
    "BAGEL_7B",
    "Bagel",
    "Benchmark",
    "Completion",
    "Drawing",
    "Item",
    "Judge",
    "Prompt",
    "SKETCH",
    "Sampling",
    "Scene",
    "Spec",
    "Trace",
    "TriptychError",
    "Turn",
    "Verdict",
    "WorldJudge",
    "draw",
    "load",
    "parse_answer",
    "parse_prompt",
    "play",
    "reason",
    "refine",
    "render",
]

__version__ = "0.2.0"

_HOMES = {
    "triptych.data.language": ("parse_prompt",),
    "triptych.data.render": ("render",),
    "triptych.data.scene": ("Scene",),
    "triptych.errors": ("TriptychError",),
    "triptych.eval.benchmark": ("Benchmark",),
    "triptych.loop": ("draw", "play", "reason", "refine"),
    "triptych.model.bagel": ("Bagel",),
    "triptych.model.config": ("BAGEL_7B", "SKETCH", "Sampling"),
    "triptych.model.weights": ("load",),
    "triptych.model.templates": ("parse_answer",),
    "triptych.rewards.judge": ("Judge",),
    "triptych.rewards.sticker_judge": ("WorldJudge",),
    "triptych.trace": ("Completion", "Drawing", "Item", "Prompt", "Spec", "Trace", "Turn", "Verdict"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
