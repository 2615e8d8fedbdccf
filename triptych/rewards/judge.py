"""What a judge is: a callable from traces to verdicts on their newest pictures, with a name for the record.

`BrightnessJudge` is one for dry runs: it tells pictures of an untrained model apart, and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from triptych.errors import JudgeError
from triptych.trace import Trace, Verdict


class Judge(Protocol):
    """One verdict per trace, in order. Raises JudgeError when it could not look: a missing verdict is never a 0."""

    @property
    def name(self) -> str:
        """Names judge and version: two judges of one name give the same verdicts."""
        ...

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]: ...


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that reports each missing verdict, so that the others are not lost with it."""

    def verdicts(self, traces: Sequence[Trace]) -> Sequence[Verdict | JudgeError]:
        """One verdict per trace, in order, or why it is missing."""
        ...


def verdicts_of(judge: Judge, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
    """One verdict per trace, in order, or why it is missing.

    A BatchJudge is called once. Any other judge is called again on each trace alone if it fails on all of them. A trace
    that was lost has no verdict, and no judge sees it.
    """
    if any(trace.lost for trace in traces):
        drawn = iter(verdicts_of(judge, [trace for trace in traces if not trace.lost]))
        return [JudgeError(trace.lost) if trace.lost else next(drawn) for trace in traces]
    if not traces:
        return []
    if isinstance(judge, BatchJudge):
        return list(judge.verdicts(traces))
    try:
        return list(judge(traces))
    except JudgeError:  # one trace may have failed for all
        return [_alone(judge, trace) for trace in traces]


def _alone(judge: Judge, trace: Trace) -> Verdict | JudgeError:
    try:
        return judge([trace])[0]
    except JudgeError as error:
        return error


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
