"""The golden tree, regrown by a scripted policy and compared node by node; laws of growing and picking.

`python tests/rl/test_tree.py` (with tests/ on the path) writes the golden tree anew; look at the difference before you
keep it.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedPolicy

from triptych.data.annotations import plan_text
from triptych.data.language import parse_prompt
from triptych.errors import JudgeError
from triptych.rewards.rewards import Reward, RewardRule, is_right
from triptych.rewards.sticker_judge import judge_with
from triptych.rl.config import StageConfig, TreeConfig
from triptych.rl.metrics import TimedJudge, Timer
from triptych.rl.tree import Group, Node, StageRollout, expand, expand_trajectories, judged, pick, root
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

GOLDEN = Path(__file__).parents[1] / "golden" / "tree.json"
TEXTS = ("a photo of three clocks", "a photo of a red cat and a blue bus")
STAGE = StageConfig(group_size=4)
ROLLOUT = StageRollout(STAGE, STAGE.sampling.resolve(), RewardRule())


class Exact:
    """A judge that knows what the scripted policy drew, and is silent about some rows where it is told to be."""

    name = "exact"

    def __init__(self, policy: ScriptedPolicy, silent: int = 0):
        self.policy, self.silent, self.asked = policy, silent, 0

    def __call__(self, traces):
        for _ in traces:
            self.asked += 1
            if self.silent and self.asked % self.silent == 0:
                raise JudgeError("asleep")
        return judge_with(lambda pictures: [self.policy.drawn[one.tobytes()] for one in pictures], traces)


class Uneven(ScriptedPolicy):
    """Makes up to three mistakes, by how long its plan is; and at times it edits what is right."""

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None):
        drawings = []
        for row, plan in enumerate(plans):
            self.mistakes = len(plan.text) % 4
            drawings += super().draw([prompts[row]], [plan], sampling, [seeds[row]])
        return drawings

    def reflect(self, prompts, images, sampling, seeds, on_text=None):
        said = []
        for row, seed in enumerate(seeds):
            self.blind = seed % 4 == 0
            said += super().reflect([prompts[row]], [images[row]], sampling, [seed], on_text)
        return said


def roots(*texts: str) -> list[Node]:
    return [root(Prompt(text, parse_prompt(text))) for text in texts]


def grow_tree() -> list[dict]:
    """Two prompts, two Refine stages, three parents each: every node with what led to it."""
    policy = Uneven()
    judge, parents, nodes = Exact(policy), roots(*TEXTS), []
    for stage in range(3):
        groups = expand(policy, judge, parents, ROLLOUT, seed=stage)
        for number, group in enumerate(groups):
            nodes += [record(policy, stage, number, node) for node in group.siblings]
        parents = pick(groups, 3, TreeConfig(), seed=stage)
    return nodes


def record(policy: ScriptedPolicy, stage: int, group: int, node: Node) -> dict:
    turn, reward = node.trace.turns[-1], node.reward
    return {
        "stage": stage,
        "group": group,
        "seed": node.trace.seed,
        "prompt": node.trace.prompt.text,
        "said": turn.said.text,
        "instruction": turn.instruction,
        "picture": plan_text(policy.drawn[node.trace.image.tobytes()]),
        "score": round(node.verdict.score, 6),
        "failed": list(node.verdict.failed),
        "reward": [round(reward.text, 6), round(reward.picture, 6), reward.well_formed, reward.has_picture],
    }


def test_the_golden_tree_regrows_node_by_node():
    golden = json.loads(GOLDEN.read_text())
    grown = grow_tree()
    assert len(grown) == len(golden)
    for ours, theirs in zip(grown, golden, strict=True):
        assert ours == theirs


def test_the_golden_tree_is_worth_comparing():
    """It holds stops, edits, right and wrong parents, and groups with a spread."""
    golden = json.loads(GOLDEN.read_text())
    assert {node["stage"] for node in golden} == {0, 1, 2}
    assert {node["instruction"] is None for node in golden if node["stage"]} == {True, False}
    assert len({node["score"] for node in golden}) > 2


class Noting(ScriptedPolicy):
    """Notes the seeds that it is given."""

    def plan(self, prompts, sampling, seeds, on_text=None):
        self.texts = list(seeds)
        return super().plan(prompts, sampling, seeds, on_text)

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None):
        self.noises, self.strokes = list(seeds), list(sde_seeds)
        return super().draw(prompts, plans, sampling, seeds, sde_seeds, on_step)


@pytest.mark.parametrize(("images_per_text", "texts"), [(1, 4), (2, 2), (4, 1)])
def test_siblings_share_the_first_noise_and_nothing_else(images_per_text, texts):
    policy = Noting()
    rollout = replace(ROLLOUT, stage=replace(STAGE, images_per_text=images_per_text))
    expand(policy, Exact(policy), roots(*TEXTS), rollout, seed=3)
    for group in (slice(0, 4), slice(4, 8)):
        assert len(set(policy.noises[group])) == 1
        assert len(set(policy.strokes[group])) == 4
        assert len(set(policy.texts[group])) == texts
    assert len({*policy.noises, *policy.strokes, *policy.texts}) == 2 * (1 + 4 + texts)
    before = policy.noises + policy.strokes + policy.texts
    expand(policy, Exact(policy), roots(*TEXTS), rollout, seed=3)
    assert before == policy.noises + policy.strokes + policy.texts
    expand(policy, Exact(policy), roots(*TEXTS), rollout, seed=4)
    assert not {*before} & {*policy.noises, *policy.strokes, *policy.texts}


def test_a_missing_verdict_leaves_its_group_and_is_no_zero():
    """Forbids c.A6 of the parity kit: a judge that failed counted as a reward of 0 in the mean of its group."""
    policy = ScriptedPolicy()
    whole = expand(policy, Exact(policy), roots(*TEXTS), ROLLOUT, seed=0)
    groups = expand(policy, Exact(policy, silent=3), roots(*TEXTS), ROLLOUT, seed=0)
    assert sum(group.missing for group in groups) > 0
    for full, group in zip(whole, groups, strict=True):
        assert len(group.siblings) + group.missing == 4
        assert (group.cause == "asleep") is (group.missing > 0)
        scores = {node.trace.seed: node.verdict.score for node in full.siblings}
        assert all(scores[node.trace.seed] == node.verdict.score for node in group.siblings)


def test_a_stopped_sibling_keeps_the_verdict_of_its_picture():
    policy = ScriptedPolicy(mistakes=0)
    groups = expand(policy, Exact(policy), roots(TEXTS[0]), ROLLOUT, seed=0)
    judge = Exact(policy)
    (refined,) = expand(policy, judge, [groups[0].siblings[0]], ROLLOUT, seed=1)
    assert judge.asked == 0 and all(node.trace.finished for node in refined.siblings)
    assert all(node.verdict.score == 1 and not node.reward.has_picture for node in refined.siblings)
    assert all(node.reward.text == 2 for node in refined.siblings)


def test_a_chain_is_one_sample_with_one_reward():
    policy = ScriptedPolicy(mistakes=2)
    (group,) = expand_trajectories(policy, Exact(policy), roots(TEXTS[1]), ROLLOUT, ROLLOUT, 4, seed=0)
    for node in group.siblings:
        assert len(node.trace.turns) > 1
        assert node.reward == Reward(node.verdict.score + 1, node.verdict.score, True, True)


class NotingAll(ScriptedPolicy):
    """Notes the seeds of every beat, and never stops."""

    def __init__(self):
        super().__init__(blind=True)
        self.noises, self.texts, self.steps = [], [], []

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None):
        self.noises.append(list(seeds))
        self.steps.append(list(sde_seeds))
        return super().draw(prompts, plans, sampling, seeds, sde_seeds, on_step)

    def plan(self, prompts, sampling, seeds, on_text=None):
        self.texts.append(list(seeds))
        return super().plan(prompts, sampling, seeds, on_text)

    def reflect(self, prompts, images, sampling, seeds, on_text=None):
        self.texts.append(list(seeds))
        return super().reflect(prompts, images, sampling, seeds, on_text)

    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None):
        self.noises.append(list(seeds))
        self.steps.append(list(sde_seeds))
        return super().edit(images, instructions, sampling, seeds, sde_seeds, on_step)


def test_every_turn_of_a_chain_has_a_noise_of_its_own_that_siblings_share():
    policy = NotingAll()
    expand_trajectories(policy, Exact(policy), roots(*TEXTS), ROLLOUT, ROLLOUT, 3, seed=0)
    assert len(policy.noises) == 4  # a drawing and three edits
    noises = [tuple(dict.fromkeys(turn)) for turn in policy.noises]
    assert all(len(turn) == len(TEXTS) for turn in noises)  # one for each parent
    assert len({seed for turn in noises for seed in turn}) == 4 * len(TEXTS)
    for seeds in (policy.texts, policy.steps):  # which are each sibling's own
        assert len({seed for turn in seeds for seed in turn}) == 4 * 4 * len(TEXTS)


def handed(scores: list[list[float]]) -> list[Group]:
    """Groups of pictures with these scores; every picture is another one."""
    groups, parent, number = [], root(Prompt("a cat")), 0
    for group in scores:
        nodes = []
        for score in group:
            image = np.full((1, 2, 3), number, np.uint16).view(np.uint8)
            nodes.append(Node(parent.trace + Turn(None, Drawing(image)), Verdict(score)))
            number += 1
        groups.append(Group(parent, tuple(nodes)))
    return groups


@pytest.mark.parametrize("kind", ["importance", "pools"])
def test_the_share_of_right_parents_is_kept(kind):
    groups = handed([[1.0, 0.5] * 20] * 4)
    picked = [pick(groups, 10, TreeConfig(selection=kind, right_share=0.15), seed) for seed in range(60)]
    right = np.mean([sum(is_right(node.verdict) for node in nodes) for nodes in picked])
    assert 1.2 < right < 1.8  # 15 % of 10
    assert all(len({id(node) for node in nodes}) == 10 for nodes in picked)


def test_one_pool_fills_in_for_the_other():
    assert len(pick(handed([[1.0] * 5]), 4, TreeConfig(), 0)) == 4
    assert len(pick(handed([[0.5] * 5]), 4, TreeConfig(right_share=1.0), 0)) == 4
    assert len(pick(handed([[0.5] * 3]), 9, TreeConfig(), 0)) == 3
    assert pick([Group(root(Prompt("a cat")), ())], 4, TreeConfig(), 0) == []


def test_importance_prefers_groups_whose_rewards_differ():
    groups = handed([[0.2, 0.8] * 10, [0.5] * 20])

    def share(kind: str) -> float:
        nodes = [node for seed in range(50) for node in pick(groups, 4, TreeConfig(selection=kind), seed)]
        return float(np.mean([node.verdict.score != 0.5 for node in nodes]))

    assert share("importance") > 0.75
    assert 0.35 < share("pools") < 0.65 and 0.35 < share("uniform") < 0.65


def test_uniform_knows_no_pools():
    groups = handed([[1.0] * 18 + [0.0] * 2])
    right = [
        is_right(node.verdict) for seed in range(50) for node in pick(groups, 4, TreeConfig(selection="uniform"), seed)
    ]
    assert np.mean(right) > 0.8


def test_equal_pictures_and_stopped_ones_are_no_second_parents():
    (group,) = handed([[0.5, 0.5]])
    image = group.siblings[0].trace.turns[0].drew.image
    twin = Node(Trace(Prompt("a cat")) + Turn(None, Drawing(image.copy())), Verdict(0.5))
    done = Node(group.siblings[1].trace + Turn(None, None), Verdict(0.5))
    assert len(pick([Group(group.parent, (group.siblings[0], twin, done))], 4, TreeConfig(), 0)) == 1


def test_one_picture_of_two_prompts_is_a_parent_for_each():
    blank = np.zeros((2, 2, 3), np.uint8)
    nodes = [Node(Trace(Prompt(text)) + Turn(None, Drawing(blank)), Verdict(0.5)) for text in TEXTS]
    groups = [Group(root(node.trace.prompt), (node,)) for node in nodes]
    assert len(pick(groups, 4, TreeConfig(), 0)) == 2


def test_a_missing_verdict_costs_the_others_nothing():
    class Patchy:
        name, asked = "patchy", 0

        def verdicts(self, traces):
            self.asked += len(traces)
            return [JudgeError("unreadable"), *[Verdict(1.0)] * (len(traces) - 1)]

    judge, traces = Patchy(), [Trace(Prompt(text)) for text in "abc"]
    timer = Timer()
    missing, *others = judged(TimedJudge(judge, timer), traces, [None] * 3)
    assert isinstance(missing, JudgeError) and others == [Verdict(1.0)] * 2
    assert judge.asked == 3 and "judge" in timer.seconds


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(grow_tree(), indent=1) + "\n")


@pytest.mark.parametrize("unit", [1, 2])
def test_the_tree_is_the_same_in_units_of_any_size(unit):
    """Drawn and judged a unit at a time, the judge in another thread: the same groups, in the same order."""

    def grown(unit: int) -> list[tuple]:
        policy = ScriptedPolicy()
        rollout = replace(ROLLOUT, stage=replace(ROLLOUT.stage, unit=unit))
        groups = expand(policy, Exact(policy), roots(*TEXTS), rollout, seed=5)
        found = []
        for group in groups:
            members = [(one.trace.seed, one.trace.turns[-1].said.text, one.reward.text) for one in group.siblings]
            found.append((group.parent.trace.prompt.text, members))
        return found

    assert grown(unit) == grown(0)
