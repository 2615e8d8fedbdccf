"""A run waits for a judge that is down, and only for that."""

from collections.abc import Sequence

import numpy as np
import pytest

from triptych.errors import JudgeError, JudgeUnavailableError
from triptych.rewards.patience import FIRST_WAIT, MAX_ROUNDS, PatientJudge
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

TRACES = [Trace(Prompt(str(value))) + Turn(None, Drawing(np.full((2, 2, 3), value, np.uint8))) for value in range(4)]


class FlakyJudge:
    """Does not answer in the first `down` calls, is never right about `bad`, and never answers about `silent`."""

    name = "flaky"

    def __init__(self, down: int, bad: Sequence[int] = (), silent: Sequence[int] = ()):
        self.down, self.bad, self.silent, self.calls = down, bad, silent, 0

    def __call__(self, traces):
        raise AssertionError("asked one by one")

    def verdicts(self, traces):
        self.calls += 1
        return [self.outcome(int(trace.prompt.text)) for trace in traces]

    def outcome(self, number: int):
        if self.calls <= self.down or number in self.silent:
            return JudgeUnavailableError("connection refused")
        return JudgeError("odd") if number in self.bad else Verdict(1.0)


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def patient(judge: FlakyJudge, patience: float) -> tuple[PatientJudge, Clock, list[str]]:
    clock, said = Clock(), []
    return PatientJudge(judge, patience, said.append, clock.wait, lambda: clock.now), clock, said


def test_a_judge_that_comes_back_has_lost_nothing():
    judge, clock, said = patient(FlakyJudge(down=3, bad=[1]), 1000)
    outcomes = judge.verdicts(TRACES)
    assert [isinstance(each, Verdict) for each in outcomes] == [True, False, True, True]
    assert clock.waits == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert len(said) == 3 and "connection refused" in said[0]


def test_a_verdict_that_fails_alone_is_not_waited_for():
    judge, clock, _ = patient(FlakyJudge(0, bad=[0, 1, 2]), 1000)
    assert sum(isinstance(each, JudgeError) for each in judge.verdicts(TRACES)) == 3 and not clock.waits


def test_what_goes_unanswered_while_others_are_answered_is_missing_in_the_end():
    class Slow(FlakyJudge):
        """Answers one more question in every call."""

        def outcome(self, number: int):
            return Verdict(1.0) if number < self.calls and number != 0 else JudgeUnavailableError("timeout")

    traces = [*TRACES, *(Trace(Prompt(str(n)), seed=n) for n in range(4, 9))]
    judge, clock, _ = patient(Slow(0), 10_000)
    outcomes = judge.verdicts(traces)
    assert isinstance(outcomes[0], JudgeUnavailableError) and len(clock.waits) == MAX_ROUNDS
    assert [isinstance(each, Verdict) for each in outcomes[1:4]] == [True] * 3


@pytest.mark.parametrize("patience", [0.0, 12.0, 100.0])
def test_patience_ends_when_it_is_over(patience: float):
    judge, clock, _ = patient(FlakyJudge(down=10**6), patience)
    with pytest.raises(JudgeUnavailableError, match="connection refused"):
        judge.verdicts(TRACES)
    assert clock.now == patience


def test_nothing_to_judge_is_nothing_to_wait_for():
    judge, clock, _ = patient(FlakyJudge(down=10**6), 100)
    assert judge.verdicts([]) == [] and not clock.waits
