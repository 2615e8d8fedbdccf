"""Metrics of a step, on groups whose answers are known; and the signs of reward hacking on simple pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from triptych.rewards.rewards import RewardRule, stage_reward
from triptych.rl.advantages import GroupAdvantages
from triptych.rl.metrics import color_entropy, describe, edge_density
from triptych.rl.train import Step
from triptych.rl.train_log import step_line
from triptych.rl.tree import Group, Node
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn, Verdict

FLAT = np.full((8, 8, 3), 200, np.uint8)
BOARD = np.where(np.indices((8, 8)).sum(0)[..., None] % 2, 255, 0).repeat(3, axis=2).astype(np.uint8)


def test_signs_of_hacking_know_flat_from_busy():
    assert edge_density(FLAT) == 0 and color_entropy(FLAT) == 0
    assert edge_density(BOARD) == 1 and color_entropy(BOARD) == pytest.approx(1)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert 5.9 < color_entropy(noise) <= 6


def refined(before: float, *after: float | None) -> Group:
    """A parent of that score, and what became of it; None is a stop."""
    parent = Node(Trace(Prompt("a cat")) + Turn(None, Drawing(FLAT)), Verdict(before))
    nodes = []
    for score in after:
        said = Completion("<think>so</think>go", np.arange(4), np.zeros(4, np.float32))
        turn = Turn(said, None if score is None else Drawing(BOARD), None if score is None else "go")
        verdict = Verdict(before if score is None else score)
        nodes.append(Node(parent.trace + turn, verdict, stage_reward(turn, verdict, parent.verdict, RewardRule())))
    return Group(parent, tuple(nodes), missing=1)


def test_refinement_and_stopping_are_measured_apart():
    groups = [refined(0.5, 1.0, 0.25, 0.5, None), refined(1.0, None, None, 0.5)]
    advantages = GroupAdvantages(torch.zeros(2), torch.zeros(2), True, False)
    found = describe(groups, [advantages, advantages])
    assert found["improved"] == pytest.approx(1 / 4) and found["worsened"] == pytest.approx(2 / 4)
    assert found["stop_precision"] == pytest.approx(2 / 3) and found["stop_recall"] == pytest.approx(2 / 3)
    assert found["stopped"] == pytest.approx(3 / 7) and found["parents_right"] == pytest.approx(3 / 7)
    assert (found["zero_std_text"], found["zero_std_picture"], found["missing"]) == (0, 1, 2)
    assert found["edges"] == 1 and found["length"] == found["longest"] == 4 and found["formed"] == 1


def test_a_missing_verdict_is_in_no_mean():
    group = refined(0.5, 1.0, 0.25)
    blind = Node(group.siblings[0].trace)
    advantages = GroupAdvantages(torch.zeros(2), torch.zeros(2), True, True)
    whole, torn = (
        describe([group], [advantages]),
        describe([replace(group, siblings=(*group.siblings, blind))], [advantages]),
    )
    assert whole["v"] == 0.625 and whole["right"] == 0.5
    kept = ("v", "right", "improved", "worsened", "reward_text")
    assert [torn[name] for name in kept] == [whole[name] for name in kept]
    assert "v" not in describe([replace(group, siblings=(blind,))], [])


def test_what_was_not_measured_is_left_out():
    found = describe([], [])
    assert "v" not in found and found == {"missing": 0.0}


def step(index: int) -> Step:
    return Step(index, 9, "reason", {"v": 0.25, "missing": 2.0}, ())


def test_a_step_is_one_line():
    assert step_line(step(3)).split() == ["4/9", "reason", "V", "0.250", "missing", "2"]
