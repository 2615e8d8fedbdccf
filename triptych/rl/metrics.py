"""What a step shows: rewards and V, what a refinement gained, whether stopping is right, and alarms of hacking.

A reward that rises while edges vanish or colours collapse is being hacked: both are measured on what was drawn.

Where the time of a step goes: rollout, judge, score, update. What grows otherwise, such as FLOPs, is told alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from triptych.errors import JudgeError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.rewards import is_right
from triptych.rl.advantages import GroupAdvantages
from triptych.rl.tree import Group, Node
from triptych.trace import Trace, Verdict

EDGE = 24  # levels between neighbours that make an edge
LEVELS = 4  # per colour: 64 colours in all


def edge_density(image: UInt8[np.ndarray, "height width 3"]) -> float:
    """Share of pixels that differ from their right or lower neighbour by an edge."""
    grey = image.astype(np.int16).mean(axis=2)
    across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
    return float((np.maximum(across, down) > EDGE).mean())


def colour_entropy(image: UInt8[np.ndarray, "height width 3"]) -> float:
    """Bits per pixel of a picture's colours, each channel in four levels: 0 for one colour, at most 6."""
    levels = (image // (256 // LEVELS)).astype(np.int64).reshape(-1, 3)
    counts = np.bincount(levels @ np.array([LEVELS**2, LEVELS, 1]), minlength=LEVELS**3)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum() + 0.0)


def describe(groups: Sequence[Group], gains: Sequence[GroupAdvantages]) -> dict[str, float]:
    """Metrics of what was grown; a mean of nothing is left out, and in each mean whatever has no verdict.

    `gains` belong to the groups that are compared.
    """
    nodes = [node for group in groups for node in group.siblings]
    verdicts = [node.verdict for node in nodes if node.verdict is not None]
    rewards = [node.reward for node in nodes if node.reward is not None]
    found = {
        "v": _mean(verdict.score for verdict in verdicts),
        "right": _mean(is_right(verdict) for verdict in verdicts),
        "reward_text": _mean(reward.text for reward in rewards),
        "reward_picture": _mean(reward.picture for reward in rewards if reward.drawn),
        "formed": _mean(reward.formed for reward in rewards),
        "zero_spread_text": _mean(not gain.text_spread for gain in gains),
        "zero_spread_picture": _mean(not gain.picture_spread for gain in gains),
        "missing": float(sum(group.missing for group in groups)),
    }
    return {
        name: value
        for name, value in (found | _texts(nodes) | _pictures(nodes) | _turns(groups)).items()
        if value is not None
    }


def _texts(nodes: Sequence[Node]) -> dict[str, float | None]:
    said = [turn.said for node in nodes if (turn := node.trace.turns[-1]).said is not None]
    return {
        "planned": _mean(node.trace.turns[0].said is not None for node in nodes),
        "length": _mean(len(one.tokens) for one in said if one is not None),
        "longest": max((float(len(one.tokens)) for one in said if one is not None), default=None),
        "distinct": _mean([len({one.text for one in said if one is not None}) / len(said)] if said else []),
    }


def _pictures(nodes: Sequence[Node]) -> dict[str, float | None]:
    images = [drew.image for node in nodes if (drew := node.trace.turns[-1].drew) is not None]
    return {
        "edges": _mean(edge_density(image) for image in images),
        "colours": _mean(colour_entropy(image) for image in images),
    }


def _turns(groups: Sequence[Group]) -> dict[str, float | None]:
    """Of Refine: what became of pictures, and stopping as a detector of right ones."""
    pairs = [(before, node) for group in groups if (before := group.parent.verdict) for node in group.siblings]
    edited = [
        after.score - before.score
        for before, node in pairs
        if not node.trace.finished and (after := node.verdict) is not None
    ]
    stops = [(node.trace.finished, is_right(before)) for before, node in pairs]
    return {
        "improved": _mean(gain > 0 for gain in edited),
        "worsened": _mean(gain < 0 for gain in edited),
        "stopped": _mean(stopped for stopped, _ in stops),
        "stop_precision": _mean(right for stopped, right in stops if stopped),
        "stop_recall": _mean(stopped for stopped, right in stops if right),
        "parents_right": _mean(right for _, right in stops),
    }


def _mean(values) -> float | None:
    kept = [float(value) for value in values]
    return sum(kept) / len(kept) if kept else None


@dataclass
class Timer:
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
    clock: Timer

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
