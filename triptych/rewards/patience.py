"""A judge that waits for its server: while nobody answers, nothing is lost and nothing is learned.

A verdict that fails alone is missing. Where all of them fail, the server is down: they are asked for again, after waits
that double, until one comes or the patience is over. The pictures stay in memory meanwhile; the run goes on as if
nothing had been, and its result is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from triptych.errors import JudgeError, JudgeUnavailableError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.trace import Trace, Verdict

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds between two tries; doubled from the first to the longest
MIN_ASKED = 2  # one verdict alone that fails says little about the server


def _silent(_: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class PatientJudge:
    """`judge`, asked again while it has no verdict at all, for `patience` seconds; then JudgeUnavailableError.

    `say` is told of every wait. `wait` stands for time.sleep, and `clock` for time.monotonic.
    """

    judge: Judge
    patience: float
    say: Callable[[str], None] = field(default=_silent, compare=False)
    wait: Callable[[float], None] = field(default=time.sleep, compare=False)
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace. Raises JudgeError if any is missing."""
        outcomes = self.verdicts(traces)
        for outcome in outcomes:
            if isinstance(outcome, JudgeError):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Verdict)]

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One per trace, in order, or why it is missing; JudgeUnavailableError where none came in time."""
        start, pause = self.clock(), FIRST_WAIT
        while True:
            outcomes = verdicts_of(self.judge, traces)
            causes = [outcome for outcome in outcomes if isinstance(outcome, JudgeError)]
            if len(causes) < max(len(outcomes), MIN_ASKED):
                return outcomes
            waited = self.clock() - start
            if waited >= self.patience:
                raise JudgeUnavailableError(
                    f"the judge gave none of {len(causes)} verdicts for {waited:.0f} s (--judge-patience "
                    f"{self.patience:g}); the last cause: {causes[-1]}"
                )
            pause_now = min(pause, LONGEST_WAIT, max(self.patience - waited, 0.0))
            self.say(f"the judge does not answer; asked again in {pause_now:.0f} s: {causes[-1]}")
            self.wait(pause_now)
            pause *= 2
