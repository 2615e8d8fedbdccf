"""A run waits for a judge that is down, and only for that."""

from collections.abc import Sequence

import numpy as np
import pytest

from triptych.errors import JudgeError, JudgeUnavailableError
from triptych.rewards.patience import FIRST_WAIT, PatientJudge
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

TRACES = [Trace(Prompt(str(value))) + Turn(None, Drawing(np.full((2, 2, 3), value, np.uint8))) for value in range(4)]


class FlakyJudge:
    """Fails on everything for the first `down` calls, and always on the traces of `bad`."""

    name = "flaky"

    def __init__(self, down: int, bad: Sequence[int] = ()):
        self.down, self.bad, self.calls = down, bad, 0

    def __call__(self, traces):
        raise AssertionError("asked one by one")

    def verdicts(self, traces):
        self.calls += 1
        if self.calls <= self.down:
            return [JudgeError("connection refused") for _ in traces]
        return [JudgeError("odd") if index in self.bad else Verdict(1.0) for index, _ in enumerate(traces)]


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
    judge, clock, _ = patient(FlakyJudge(0, bad=[0]), 1000)
    assert isinstance(judge.verdicts(TRACES[:1])[0], JudgeError) and not clock.waits


@pytest.mark.parametrize("patience", [0.0, 12.0, 100.0])
def test_patience_ends_when_it_is_over(patience: float):
    judge, clock, _ = patient(FlakyJudge(down=10**6), patience)
    with pytest.raises(JudgeUnavailableError, match="connection refused"):
        judge.verdicts(TRACES)
    assert clock.now == patience


def test_nothing_to_judge_is_nothing_to_wait_for():
    judge, clock, _ = patient(FlakyJudge(down=10**6), 100)
    assert judge.verdicts([]) == [] and not clock.waits
