"""Where the time of a step goes: rollout, judge, score, update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from triptych.rewards.judge import Judge
from triptych.trace import Trace, Verdict


@dataclass
class Clock:
    """Seconds of each part; a part that runs inside another is taken out of it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start, others = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - others
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - inside

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


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
