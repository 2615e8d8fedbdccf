"""What a judge is: a callable from traces to verdicts on their newest pictures, with a name for the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from triptych.trace import Trace, Verdict


class Judge(Protocol):
    """One verdict per trace, in order. Raises JudgeError when it could not look: a missing verdict is never a 0."""

    @property
    def name(self) -> str:
        """Names judge and version: two judges of one name give the same verdicts."""
        ...

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]: ...
