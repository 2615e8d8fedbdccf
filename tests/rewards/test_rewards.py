"""The rewards of a beat against the parity kit's tables, and the paper's rule as laws."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.rewards.rewards import RewardRule, is_well_formed, score_of, stage_reward
from triptych.trace import Completion, Drawing, Turn, Verdict

PICTURE = Drawing(np.zeros((2, 2, 3), np.uint8))
STOP = "no further edit needed"
share = st.integers(0, 6).map(lambda passed: passed / 6)


def turn(reflecting: bool, formed: bool, stop: bool) -> Turn:
    thought = "<think>so</think>" if formed else "so</think>"
    text = thought + (STOP if stop else "add a cat") if reflecting else thought
    return Turn(Completion(text), None if stop else PICTURE)


def test_every_row_of_the_release_table(shared):
    facts = json.loads((shared / "parity" / "case6_advantages_and_rewards.json").read_text())
    for row, expected in zip(facts["reward_inputs"], facts["reward_outputs"], strict=True):
        reflecting = row["stage"] == "reflect"
        before = Verdict(row["V_hat"]) if reflecting else None
        reward = stage_reward(
            turn(reflecting, bool(row["fmt"]), bool(row["stop"])),
            Verdict(row["V"]),
            before,
            RewardRule("release", row["w"]),
        )
        assert reward.text == pytest.approx(expected["text_total"]), row
        assert reward.picture == pytest.approx(expected["image_reward"]), row
        assert int(reward.has_picture) == expected["image_adv_multiplier"], row


def test_form_of_every_string(shared):
    facts = json.loads((shared / "parity" / "case6_strings.json").read_text())
    for text, plan, reflection in zip(
        facts["strings"], facts["format_reward_reason_stage"], facts["format_reward_reflect_stage"], strict=True
    ):
        assert float(is_well_formed(Completion(text), reflecting=False)) == plan
        assert float(is_well_formed(Completion(text), reflecting=True)) == reflection


@given(share, st.booleans(), st.sampled_from(["fractional", "strict"]))
def test_paper_reason_is_score_and_form(score, formed, grain):
    reward = stage_reward(turn(False, formed, False), Verdict(score), None, RewardRule(format_weight=0.5), grain, grain)
    assert reward.picture == score_of(Verdict(score), grain)
    assert reward.text == pytest.approx(reward.picture + 0.5 * formed)


@given(share, share, st.booleans())
def test_paper_refine_is_improvement_or_the_right_to_stop(score, before, stop):
    if stop:
        score = before  # nothing was drawn
    reward = stage_reward(turn(True, True, stop), Verdict(score), Verdict(before), RewardRule())
    expected = float(stop) if before == 1 else score - before
    assert (reward.text, reward.picture) == pytest.approx((expected + 1, expected))
    assert reward.has_picture is not stop


@given(share, st.sampled_from(["paper", "release"]))
def test_stopping_on_a_right_picture_is_worth_more_than_any_edit_of_it(score, variant):
    rule = RewardRule(variant)
    stopped = stage_reward(turn(True, True, True), Verdict(1.0), Verdict(1.0), rule)
    edited = stage_reward(turn(True, True, False), Verdict(score), Verdict(1.0), rule)
    assert stopped.text > edited.text


@given(share.filter(lambda score: score < 1), st.floats(0, 1))
def test_a_false_stop_costs_what_the_rule_says(before, cost):
    reward = stage_reward(turn(True, True, True), Verdict(before), Verdict(before), RewardRule(stop_cost=cost))
    assert reward.text == pytest.approx(1 - cost)


def test_strict_scores_know_only_right_and_wrong():
    assert score_of(Verdict(5 / 6), "strict") == 0 and score_of(Verdict(sum([1 / 3] * 3)), "strict") == 1
    improved = stage_reward(turn(True, True, False), Verdict(5 / 6), Verdict(0.0), RewardRule(), "strict", "fractional")
    assert (improved.text, improved.picture) == pytest.approx((1.0, 5 / 6))


def test_a_picture_without_a_plan_has_no_form_to_miss():
    assert stage_reward(Turn(None, PICTURE), Verdict(0.5), None, RewardRule("release")).text == 1.5
