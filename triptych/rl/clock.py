"""Where the time of a step goes: rollout, judge, score, update. What grows otherwise, such as FLOPs, is told alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from triptych.errors import JudgeError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.trace import Trace, Verdict


@dataclass
class Clock:
    """Seconds of each part; a part that runs inside another is taken out of it.

    `read` may give anything that grows instead of seconds. `memory` gives the most bytes in use since its last call;
    with it, `peaks` has those of each part.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    read: Callable[[], float] = time.perf_counter
    memory: Callable[[], int] | None = None
    _open: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._note()
        self._open.append(name)
        start, others = self.read(), sum(self.seconds.values())
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - others
            self.seconds[name] = self.seconds.get(name, 0.0) + self.read() - start - inside
            self._note()
            self._open.pop()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def _note(self) -> None:
        """Book the peak since the last time on the part that was at work."""
        if self.memory is None:
            return
        peak = self.memory()
        if self._open:
            self.peaks[self._open[-1]] = max(peak, self.peaks.get(self._open[-1], 0))


@dataclass(frozen=True)
class Timed:
    """A judge whose time is told apart from that of drawing."""

    judge: Judge
    clock: Clock

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        with self.clock.part("judge"):
            return self.judge(traces)

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One per trace, in order, or why it is missing; the judge is asked as it can be asked best."""
        with self.clock.part("judge"):
            return verdicts_of(self.judge, traces)
