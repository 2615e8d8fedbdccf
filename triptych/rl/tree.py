"""The tree that training grows: siblings from one parent, rewarded at once, some of them parents of the next stage.

Siblings come from the very beats of a draw (`loop.reason` from a prompt, `loop.refine` from a picture). They share the
first noise of their picture, so that what differs is what was said and the stochastic steps; what is told the same is
computed once (`Bagel.draw`). A verdict that is missing leaves its group: it is no score of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triptych.errors import JudgeError
from triptych.loop import Policy, Seeds, reason, refine
from triptych.model.config import Sampling
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.rewards import Reward, RewardRule, is_formed, is_right, shape
from triptych.rl.config import StageConfig, TreeConfig
from triptych.trace import Prompt, Trace, Verdict

FLOOR = 0.05  # weight of a group whose verdicts are all the same, beside the spread of one where they differ


@dataclass(frozen=True, eq=False)
class Node:
    """A trace, the verdict on its newest picture and the reward of its newest turn; a prompt alone has neither."""

    trace: Trace
    verdict: Verdict | None = None
    reward: Reward | None = None

    @property
    def is_root(self) -> bool:
        """True before there is a picture: the next beat is Reason."""
        return self.trace.image is None


@dataclass(frozen=True, eq=False)
class Group:
    """The siblings of one parent that have a verdict; `missing` of the others, and why, if any."""

    parent: Node
    siblings: tuple[Node, ...]
    missing: int = 0
    cause: str = ""


@dataclass(frozen=True)
class StageRollout:
    """How one beat grows: its stage, the sampling of this step, and the rule of its rewards."""

    stage: StageConfig
    sampling: Sampling
    rule: RewardRule


Expand = Callable[[Policy, Judge, Sequence[Node], StageRollout, int], list[Group]]


def root(prompt: Prompt, seed: int = 0) -> Node:
    """A prompt that nothing was done about yet."""
    return Node(Trace(prompt, seed=seed))


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers; different numbers give independent seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def expand(policy: Policy, judge: Judge, parents: Sequence[Node], growth: StageRollout, seed: int) -> list[Group]:
    """One group of siblings per parent: Reason from prompts, Refine from pictures. Parents are all of one kind."""
    traces, seeds = _siblings(parents, growth.stage, seed)
    if parents[0].is_root:
        grown = reason(policy, traces, growth.sampling, growth.stage.plans > 0, seeds=seeds)
    else:
        grown = refine(policy, traces, growth.sampling, seeds=seeds)
    verdicts = judged(judge, grown, [parent.verdict for parent in parents for _ in range(growth.stage.width)])

    def earned(trace: Trace, verdict: Verdict, parent: Node) -> Reward:
        grains = growth.stage.text.grain, growth.stage.picture.grain
        return shape(trace.turns[-1], verdict, parent.verdict, growth.rule, *grains)

    return _grouped(parents, grown, verdicts, earned)


def expand_trajectories(
    policy: Policy,
    judge: Judge,
    parents: Sequence[Node],
    first: StageRollout,
    later: StageRollout,
    turns: int,
    seed: int,
) -> list[Group]:
    """Full-trajectory RL: siblings are whole chains from a prompt, with one reward at the end for all they said and
    drew: V, and for the text the form of every answer too. The width is that of `first`."""
    traces, seeds = _siblings(parents, first.stage, seed)
    traces = reason(policy, traces, first.sampling, first.stage.plans > 0, seeds=seeds)
    for turn in range(turns):
        going = [row for row, trace in enumerate(traces) if not trace.finished]
        if not going:
            break
        _, again = _siblings(parents, first.stage, seed_of(seed, turn + 1))
        for row, trace in zip(
            going, refine(policy, [traces[row] for row in going], later.sampling, seeds=again.keep(going)), strict=True
        ):
            traces[row] = trace
    verdicts = judged(judge, traces, [None] * len(traces))
    return _grouped(parents, traces, verdicts, lambda trace, verdict, _: _end_reward(trace, verdict, first))


def judged(judge: Judge, traces: Sequence[Trace], known: Sequence[Verdict | None]) -> list[Verdict | JudgeError]:
    """A verdict per trace; a trace that has stopped keeps the `known` one of its picture.

    All are asked for at once; one that is missing costs the others nothing (`verdicts_of`).
    """
    found: list[Verdict | JudgeError | None] = [
        verdict if trace.finished else None for trace, verdict in zip(traces, known, strict=True)
    ]
    rows = [row for row, verdict in enumerate(found) if verdict is None]
    fresh = verdicts_of(judge, [traces[row] for row in rows])
    told = {row: _sound(verdict) for row, verdict in zip(rows, fresh, strict=True)}
    return [told[row] if verdict is None else verdict for row, verdict in enumerate(found)]


def pick(groups: Sequence[Group], count: int, tree: TreeConfig, seed: int) -> list[Node]:
    """Up to `count` different pictures of these groups as parents of the next stage.

    A share `tree.right` of them is already right (as near as whole numbers allow, rounded by chance); where one pool
    runs dry the other fills in. Within a pool chances follow the spread of the verdicts in a picture's group, or are
    even. "uniform" knows no pools: every picture has the same chance.
    """
    chance = np.random.default_rng(seed)
    nodes: dict[tuple[str, bytes], tuple[Node, float]] = {}
    for group in groups:
        spread = float(np.std([node.verdict.score for node in group.siblings if node.verdict])) if group.siblings else 0
        for node in group.siblings:
            if node.trace.image is not None and not node.trace.finished:
                key = (node.trace.prompt.text, node.trace.image.tobytes())
                nodes.setdefault(key, (node, spread + FLOOR))
    known = list(nodes.values())
    if tree.parents == "uniform":
        return _drawn(known, count, chance, even=True)
    right = [entry for entry in known if entry[0].verdict is not None and is_right(entry[0].verdict)]
    wrong = [entry for entry in known if entry[0].verdict is None or not is_right(entry[0].verdict)]
    wanted = math.floor(tree.right * count + chance.random())
    taken = max(min(wanted, len(right)), min(count - len(wrong), len(right)))
    even = tree.parents == "pools"
    chosen = _drawn(right, taken, chance, even) + _drawn(wrong, count - taken, chance, even)
    return [chosen[place] for place in chance.permutation(len(chosen))]


def _siblings(parents: Sequence[Node], stage: StageConfig, seed: int) -> tuple[list[Trace], Seeds]:
    """Each parent's trace `width` times over, and the seeds of the next beat."""
    traces, text, noise, stroke = [], [], [], []
    for number, parent in enumerate(parents):
        for sibling in range(stage.width):
            stroke.append(seed_of(seed, number, 2, sibling))
            noise.append(seed_of(seed, number, 1))
            text.append(seed_of(seed, number, 0, sibling // stage.per_text))
            traces.append(replace(parent.trace, seed=stroke[-1]))
    return traces, Seeds(text, noise, stroke)


def _grouped(
    parents: Sequence[Node],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict | JudgeError],
    earned: Callable[[Trace, Verdict, Node], Reward],
) -> list[Group]:
    """Traces, `width` for each parent, as groups of those that have a verdict."""
    width, groups = len(traces) // len(parents), []
    for number, parent in enumerate(parents):
        rows = slice(number * width, (number + 1) * width)
        pairs = list(zip(traces[rows], verdicts[rows], strict=True))
        causes = [str(verdict) for _, verdict in pairs if isinstance(verdict, JudgeError)]
        siblings = [Node(t, v, earned(t, v, parent)) for t, v in pairs if isinstance(v, Verdict)]
        groups.append(Group(parent, tuple(siblings), len(causes), causes[-1] if causes else ""))
    return groups


def _end_reward(trace: Trace, verdict: Verdict, first: StageRollout) -> Reward:
    formed = all(is_formed(turn.said, reflecting=place > 0) for place, turn in enumerate(trace.turns))
    whole = replace(trace.turns[0], said=None)
    earned = shape(whole, verdict, None, first.rule, first.stage.text.grain, first.stage.picture.grain)
    weight = first.rule.format_weight
    text = formed * earned.text if first.rule.variant == "release" else earned.text - weight * (not formed)
    return Reward(text, earned.picture, formed, True)


def _sound(verdict: Verdict | JudgeError) -> Verdict | JudgeError:
    """A score that is no share is no verdict."""
    if isinstance(verdict, JudgeError) or 0 <= verdict.score <= 1:
        return verdict
    return JudgeError(f"score {verdict.score}: expected a share in 0..1; mend the judge")


def _drawn(entries: Sequence[tuple[Node, float]], count: int, chance: np.random.Generator, even: bool) -> list[Node]:
    """Up to `count` nodes without repeating one, by their weights."""
    count = min(count, len(entries))
    if not count:
        return []
    weights = np.array([1.0 if even else weight for _, weight in entries])
    return [entries[place][0] for place in chance.choice(len(entries), count, replace=False, p=weights / weights.sum())]
