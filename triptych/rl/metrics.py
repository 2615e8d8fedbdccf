"""The metrics of a step: rewards and V, what Refine gained, whether stopping is right, and signs of reward hacking.

A reward that rises while edges vanish or colors collapse is being hacked: both are measured on the pictures.
`Timer` measures where the time of a step goes, or anything else that grows, such as FLOPs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from triptych.errors import JudgeError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.rewards import is_right
from triptych.rl.advantages import GroupAdvantages
from triptych.rl.tree import Group, Node
from triptych.trace import Trace, Verdict

EDGE = 24  # of 255: a difference between neighboring pixels that makes an edge
LEVELS = 4  # of each channel: 64 colors in all


def edge_density(image: UInt8[np.ndarray, "height width 3"]) -> float:
    """Share of pixels that differ from their right or lower neighbor by an edge."""
    gray = image.astype(np.int16).mean(axis=2)
    across, down = np.abs(np.diff(gray, axis=1))[:-1], np.abs(np.diff(gray, axis=0))[:, :-1]
    return float((np.maximum(across, down) > EDGE).mean())


def color_entropy(image: UInt8[np.ndarray, "height width 3"]) -> float:
    """Bits per pixel of a picture's colors, each channel in four levels: 0 for one color, at most 6."""
    levels = (image // (256 // LEVELS)).astype(np.int64).reshape(-1, 3)
    counts = np.bincount(levels @ np.array([LEVELS**2, LEVELS, 1]), minlength=LEVELS**3)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum() + 0.0)


def describe(groups: Sequence[Group], advantages: Sequence[GroupAdvantages]) -> dict[str, float]:
    """Metrics of the groups of a step. Each mean leaves out what has no verdict; a mean of nothing is no key.

    `advantages` are those of the groups that are compared.
    """
    nodes = [node for group in groups for node in group.siblings]
    verdicts = [node.verdict for node in nodes if node.verdict is not None]
    rewards = [node.reward for node in nodes if node.reward is not None]
    metrics = {
        "v": _mean(verdict.score for verdict in verdicts),
        "right": _mean(is_right(verdict) for verdict in verdicts),
        "reward_text": _mean(reward.text for reward in rewards),
        "reward_picture": _mean(reward.picture for reward in rewards if reward.has_picture),
        "formed": _mean(reward.well_formed for reward in rewards),
        "zero_std_text": _mean(not one.text_varies for one in advantages),
        "zero_std_picture": _mean(not one.picture_varies for one in advantages),
        "missing": float(sum(group.missing for group in groups)),
    }
    metrics |= _text_metrics(nodes) | _picture_metrics(nodes) | _refine_metrics(groups)
    return {name: value for name, value in metrics.items() if value is not None}


def _text_metrics(nodes: Sequence[Node]) -> dict[str, float | None]:
    said = [turn.said for node in nodes if (turn := node.trace.turns[-1]).said is not None]
    return {
        "planned": _mean(node.trace.turns[0].said is not None for node in nodes),
        "length": _mean(len(one.tokens) for one in said),
        "longest": max((float(len(one.tokens)) for one in said), default=None),
        "distinct": len({one.text for one in said}) / len(said) if said else None,
    }


def _picture_metrics(nodes: Sequence[Node]) -> dict[str, float | None]:
    images = [drew.image for node in nodes if (drew := node.trace.turns[-1].drew) is not None]
    return {
        "edges": _mean(edge_density(image) for image in images),
        "colors": _mean(color_entropy(image) for image in images),
    }


def _refine_metrics(groups: Sequence[Group]) -> dict[str, float | None]:
    """What became of the parents, and stopping as a detector of right pictures."""
    pairs = [(before, node) for group in groups if (before := group.parent.verdict) for node in group.siblings]
    changes = [
        after.score - before.score
        for before, node in pairs
        if not node.trace.finished and (after := node.verdict) is not None
    ]
    stops = [(node.trace.finished, is_right(before)) for before, node in pairs]
    return {
        "improved": _mean(change > 0 for change in changes),
        "worsened": _mean(change < 0 for change in changes),
        "stopped": _mean(stopped for stopped, _ in stops),
        "stop_precision": _mean(right for stopped, right in stops if stopped),
        "stop_recall": _mean(stopped for stopped, right in stops if right),
        "parents_right": _mean(right for _, right in stops),
    }


def _mean(values: Iterable[float]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None


@dataclass
class Timer:
    """Seconds of each part of a step; those of a part inside another one are not counted twice.

    `read` may return anything that grows instead of seconds. `memory` returns the peak of bytes in use since its last
    call; with it, `peaks` holds that of each part.
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
        """Assign the peak since the last call to the part that ran."""
        if self.memory is None:
            return
        peak = self.memory()
        if self._open:
            self.peaks[self._open[-1]] = max(peak, self.peaks.get(self._open[-1], 0))


@dataclass(frozen=True)
class TimedJudge:
    """A judge whose time is measured apart from that of sampling.

    In another thread than the timer's, which goes on drawing meanwhile, it is not: what the run waits for it then is
    part of the rollout.
    """

    judge: Judge
    timer: Timer
    thread: int = field(default_factory=threading.get_ident)

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        with self._part():
            return self.judge(traces)

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One per trace, in order, or why it is missing; the judge is asked as it can be asked best."""
        with self._part():
            return verdicts_of(self.judge, traces)

    def _part(self) -> AbstractContextManager[None]:
        return self.timer.part("judge") if threading.get_ident() == self.thread else nullcontext()
