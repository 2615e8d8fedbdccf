"""The exact judge of sticker pictures: find the stickers, then check them against the spec, fact by fact.

The score is the share of checks that hold, so a dense reward and, at 1.0, a strict verdict: every sticker asked for is
there as asked, and nothing else is. Finding is the only learnt part (`finder.py`); checking is `data/scene.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from triptych.data.scene import Scene, check
from triptych.errors import JudgeError, PictureError
from triptych.rewards.finder import WEIGHTS, find, fingerprint, loaded_finder
from triptych.rewards.judge import Judge
from triptych.trace import Spec, Trace, Verdict


class StickerJudge(Judge, Protocol):
    """A judge that also tells what each picture shows, sticker by sticker."""

    def scenes(self, images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor) -> list[Scene]: ...


@dataclass(frozen=True)
class WorldJudge:
    """Judge of traces whose prompt has a spec: `WorldJudge()(traces)`. Loads its weights at the first call."""

    device: str = "cpu"
    weights: Path = WEIGHTS

    @property
    def name(self) -> str:
        """Name and fingerprint of the weights, for manifests: two judges of one name give the same verdicts."""
        return f"world-{fingerprint(self.weights)}"

    def scenes(self, images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor) -> list[Scene]:
        """What each picture `[height width 3] uint8` shows."""
        return find(images, loaded_finder(self.weights, self.device))

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. JudgeError if one has no spec or no picture to look at."""
        return judge_with(self.scenes, traces)


def judge_with(scenes: Callable[[list[np.ndarray]], list[Scene]], traces: Sequence[Trace]) -> list[Verdict]:
    """Verdicts on the newest pictures, by eyes that say what each shows. JudgeError if there is nothing to judge."""
    specs, pictures = [], []
    for index, trace in enumerate(traces):
        if trace.prompt.spec is None:
            raise JudgeError(
                f"trace {index}, {trace.prompt.text!r}: expected a prompt with a spec to check, found none; "
                "parse one with data.language.parse_prompt, or ask a judge that reads sentences"
            )
        if trace.image is None:
            raise JudgeError(f"trace {index}, {trace.prompt.text!r}: expected a picture, found none; draw first")
        specs.append(trace.prompt.spec)
        pictures.append(trace.image)
    try:
        found = scenes(pictures)
    except PictureError as error:
        raise JudgeError(f"cannot look at a picture: {error}") from error
    return [verdict(scene, spec) for scene, spec in zip(found, specs, strict=True)]


def verdict(scene: Scene, spec: Spec) -> Verdict:
    """The verdict on a picture that shows `scene`: the share of the spec's checks that hold."""
    checks = check(scene, spec)
    passed = tuple(c.text for c in checks if c.held)
    failed = tuple(c.text for c in checks if not c.held)
    return Verdict(score=len(passed) / len(checks), passed=passed, failed=failed)
