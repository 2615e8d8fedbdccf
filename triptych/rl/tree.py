"""The tree of Tree-RL: siblings expanded from one parent, rewarded at once, some of them parents of the next stage.

Siblings come from the very beats of a draw (`loop.reason` from a prompt, `loop.refine` from a picture), so that what is
trained is what is shipped. They share the initial noise of their picture: what differs between them is their text and
the noise of the SDE steps, and what is the same is computed once (`Bagel.draw`). A missing verdict leaves its group; it
is no score of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from triptych.errors import JudgeError
from triptych.loop import Policy, Seeds, reason, refine
from triptych.model.config import Sampling
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.rewards import Reward, RewardRule, is_right, is_well_formed, stage_reward
from triptych.rl.config import StageConfig, TreeConfig
from triptych.seeds import derive
from triptych.trace import Prompt, Trace, Verdict

# Selection weight of a group whose verdicts are all the same, beside the std of one where they differ (at most .5).
MIN_STD_WEIGHT = 0.05


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
    """How a stage is rolled out in one step: its settings, the sampling of this step, and the reward's formulas."""

    stage: StageConfig
    sampling: Sampling
    rule: RewardRule

    def end_reward(self, trace: Trace, verdict: Verdict) -> Reward:
        """The one reward of a whole chain: V, and for the text the form of every answer too."""
        formed = all(is_well_formed(turn.said, reflecting=place > 0) for place, turn in enumerate(trace.turns))
        drawing = replace(trace.turns[0], said=None)  # a turn that drew, whatever the last one did
        reward = stage_reward(drawing, verdict, None, self.rule, self.stage.text.grain, self.stage.picture.grain)
        if self.rule.variant == "release":
            text = formed * reward.text
        else:
            text = reward.text - self.rule.format_weight * (not formed)
        return Reward(text, reward.picture, formed, True)


Expand = Callable[[Policy, Judge, Sequence[Node], StageRollout, int], list[Group]]


def root(prompt: Prompt, seed: int = 0) -> Node:
    """A prompt on which no turn was taken yet."""
    return Node(Trace(prompt, seed=seed))


def expand(policy: Policy, judge: Judge, parents: Sequence[Node], rollout: StageRollout, seed: int) -> list[Group]:
    """One group of siblings per parent: Reason from prompts, Refine from pictures. Parents are all of one kind.

    `stage.unit` parents are drawn at once, and judged in another thread while the next are drawn. The tree is the same
    whatever the unit: a sibling's seeds follow from the number of its parent.
    """
    stage = rollout.stage
    unit = stage.unit or len(parents)
    grains = stage.text.grain, stage.picture.grain

    def reward(trace: Trace, verdict: Verdict, parent: Node) -> Reward:
        return stage_reward(trace.turns[-1], verdict, parent.verdict, rollout.rule, *grains)

    def draw(first: int) -> list[Trace]:
        traces, seeds = _siblings(parents[first : first + unit], stage, seed, first)
        if parents[0].is_root:
            return reason(policy, traces, rollout.sampling, stage.has_text, seeds=seeds)
        return refine(policy, traces, rollout.sampling, seeds=seeds)

    def verdicts_on(first: int, traces: list[Trace]) -> list[Verdict | JudgeError]:
        previous = [parent.verdict for parent in parents[first : first + unit] for _ in range(stage.group_size)]
        return judged(judge, traces, previous)

    starts = range(0, len(parents), unit)
    if len(starts) == 1:
        drawn = draw(0)
        return _groups(parents, drawn, verdicts_on(0, drawn), reward)
    groups: list[Group] = []
    # One thread: a judge has its own concurrency, and is asked in the order of the units.
    with ThreadPoolExecutor(1) as judging:
        units = []
        for first in starts:
            drawn = draw(first)
            units.append((first, drawn, judging.submit(verdicts_on, first, drawn)))
        for first, drawn, verdicts in units:
            groups += _groups(parents[first : first + unit], drawn, verdicts.result(), reward)
    return groups


def expand_trajectories(
    policy: Policy,
    judge: Judge,
    parents: Sequence[Node],
    first: StageRollout,
    later: StageRollout,
    turns: int,
    seed: int,
) -> list[Group]:
    """Full-trajectory RL, the paper's baseline: siblings are whole chains from a prompt, with one reward at the end for
    all texts and pictures in them. The group size is that of `first`."""
    traces, seeds = _siblings(parents, first.stage, seed)
    traces = reason(policy, traces, first.sampling, first.stage.has_text, seeds=seeds)
    for turn in range(turns):
        running = [row for row, trace in enumerate(traces) if not (trace.finished or trace.lost)]
        if not running:
            break
        _, seeds = _siblings(parents, first.stage, derive(seed, turn + 1))
        refined = refine(policy, [traces[row] for row in running], later.sampling, seeds=seeds.select(running))
        for row, trace in zip(running, refined, strict=True):
            traces[row] = trace
    verdicts = judged(judge, traces, [None] * len(traces))
    return _groups(parents, traces, verdicts, lambda trace, verdict, _: first.end_reward(trace, verdict))


def judged(judge: Judge, traces: Sequence[Trace], previous: Sequence[Verdict | None]) -> list[Verdict | JudgeError]:
    """A verdict per trace, or why it is missing; a trace that has stopped keeps the `previous` one of its picture.

    The judge is asked about all pictures at once; one that is missing costs the others nothing (`verdicts_of`).
    """
    kept = [verdict if trace.finished else None for trace, verdict in zip(traces, previous, strict=True)]
    fresh = iter(verdicts_of(judge, [trace for trace, verdict in zip(traces, kept, strict=True) if verdict is None]))
    return [_share_or_missing(next(fresh)) if verdict is None else verdict for verdict in kept]


def pick(groups: Sequence[Group], count: int, tree: TreeConfig, seed: int) -> list[Node]:
    """Up to `count` different pictures of these groups as parents of the next stage.

    A share `tree.right_share` of them is already right (as near as whole numbers allow, rounded at random); where one
    pool runs dry the other fills in. Within a pool a picture's weight is the std of the verdicts in its group
    ("importance": where siblings differ there is most to learn), or 1 ("pools"). "uniform" knows no pools.
    """
    rng = np.random.default_rng(seed)
    weighted: dict[tuple[str, bytes], tuple[Node, float]] = {}
    for group in groups:
        std = float(np.std([node.verdict.score for node in group.siblings if node.verdict])) if group.siblings else 0
        for node in group.siblings:
            if node.trace.image is not None and not node.trace.finished:
                key = (node.trace.prompt.text, node.trace.image.tobytes())
                weighted.setdefault(key, (node, std + MIN_STD_WEIGHT))
    entries = list(weighted.values())
    if tree.selection == "uniform":
        return _sample(entries, count, rng, even=True)
    right = [entry for entry in entries if entry[0].verdict is not None and is_right(entry[0].verdict)]
    wrong = [entry for entry in entries if entry[0].verdict is None or not is_right(entry[0].verdict)]
    target = math.floor(tree.right_share * count + rng.random())
    from_right = max(min(target, len(right)), min(count - len(wrong), len(right)))
    even = tree.selection == "pools"
    nodes = _sample(right, from_right, rng, even) + _sample(wrong, count - from_right, rng, even)
    return [nodes[place] for place in rng.permutation(len(nodes))]


def _siblings(parents: Sequence[Node], stage: StageConfig, seed: int, first: int = 0) -> tuple[list[Trace], Seeds]:
    """Each parent's trace `group_size` times, and the seeds of the next beat: one initial noise per parent, one text
    seed per `images_per_text` siblings, one seed of SDE noise for each. `first` is the number of the first parent."""
    traces, text, noise, sde = [], [], [], []
    for number, parent in enumerate(parents, first):
        for sibling in range(stage.group_size):
            sde.append(derive(seed, number, 2, sibling))
            noise.append(derive(seed, number, 1))
            text.append(derive(seed, number, 0, sibling // stage.images_per_text))
            traces.append(replace(parent.trace, seed=sde[-1]))
    return traces, Seeds(text, noise, sde)


def _groups(
    parents: Sequence[Node],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict | JudgeError],
    reward: Callable[[Trace, Verdict, Node], Reward],
) -> list[Group]:
    """Traces, equally many for each parent, as groups of those that have a verdict."""
    size, groups = len(traces) // len(parents), []
    for number, parent in enumerate(parents):
        rows = slice(number * size, (number + 1) * size)
        pairs = list(zip(traces[rows], verdicts[rows], strict=True))
        causes = [str(verdict) for _, verdict in pairs if isinstance(verdict, JudgeError)]
        siblings = [Node(t, v, reward(t, v, parent)) for t, v in pairs if isinstance(v, Verdict)]
        groups.append(Group(parent, tuple(siblings), len(causes), causes[-1] if causes else ""))
    return groups


def _share_or_missing(verdict: Verdict | JudgeError) -> Verdict | JudgeError:
    """A score that is no share, such as NaN, is a missing verdict."""
    if isinstance(verdict, JudgeError) or 0 <= verdict.score <= 1:
        return verdict
    return JudgeError(f"score {verdict.score}: expected a share in 0..1; mend the judge")


def _sample(entries: Sequence[tuple[Node, float]], count: int, rng: np.random.Generator, even: bool) -> list[Node]:
    """Up to `count` nodes without repeating one, by their weights."""
    count = min(count, len(entries))
    if not count:
        return []
    weights = np.array([1.0 if even else weight for _, weight in entries])
    return [entries[place][0] for place in rng.choice(len(entries), count, replace=False, p=weights / weights.sum())]
