"""A judge that waits for its server: while nobody answers, nothing is lost and nothing is learned.

A reply that cannot be read is a missing verdict. A server that does not answer is waited for: what it owes is asked for
again, after waits that double, until it comes or the patience is over. The pictures stay in memory meanwhile; the run
goes on as if nothing had been, and its result is the same. Where the server answers other questions, what it does not
answer in MAX_ROUNDS is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from triptych.errors import JudgeError, JudgeUnavailableError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.trace import Trace, Verdict

FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0  # seconds between two rounds; doubled from the first to the longest
MAX_ROUNDS = 3  # in which a question goes unanswered while others are answered: it is at fault, and not the server


def _silent(_: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class PatientJudge:
    """`judge`, asked again while its server does not answer, for `patience` seconds; then JudgeUnavailableError.

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
        outcomes = verdicts_of(self.judge, traces)
        start, pause, rounds = self.clock(), FIRST_WAIT, 0
        while owed := [index for index, each in enumerate(outcomes) if isinstance(each, JudgeUnavailableError)]:
            cause = outcomes[owed[-1]]
            waited = self.clock() - start
            if waited >= self.patience:
                raise JudgeUnavailableError(
                    f"the judge owes {len(owed)} verdicts for {waited:.0f} s (--judge-patience {self.patience:g}); the "
                    f"last cause: {cause}"
                )
            pause_now = min(pause, LONGEST_WAIT, max(self.patience - waited, 0.0))
            self.say(f"the judge does not answer; asked again in {pause_now:.0f} s: {cause}")
            self.wait(pause_now)
            pause *= 2
            again = verdicts_of(self.judge, [traces[index] for index in owed])
            for index, outcome in zip(owed, again, strict=True):
                outcomes[index] = outcome
            rounds += any(not isinstance(each, JudgeUnavailableError) for each in again)
            if rounds >= MAX_ROUNDS:
                break
        return outcomes
