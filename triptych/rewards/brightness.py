"""A judge for dry runs: how bright a picture is. It tells pictures of an untrained model apart, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.errors import JudgeError
from triptych.trace import Trace, Verdict


@dataclass(frozen=True)
class BrightnessJudge:
    """The mean level of a picture as a share of white."""

    name: str = "brightness"

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace. JudgeError where there is no picture."""
        return [_verdict(trace) for trace in traces]


def _verdict(trace: Trace) -> Verdict:
    if trace.image is None:
        raise JudgeError(f"{trace.prompt.text!r}: expected a picture, found none; draw first")
    return Verdict(float(trace.image.mean()) / 255)
