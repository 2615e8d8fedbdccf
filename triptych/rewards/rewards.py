"""Verdicts to rewards: what one beat earns for its text and for its picture (the paper's stage-wise rewards).

V is the score of the new picture, V_hat that of the picture it started from, f is 1 if the text has the format of its
beat, w is its weight.

              text, paper          text, release        picture, paper    picture, release
    Reason    V + w f              f (w + V)            V                 V
    Refine    C + w f              f (w + C)            C                 V

C = V - V_hat, and 1 for stopping on a right picture. An edit of a right picture earns C = 0 in the paper and V - 1 in
the authors' release. A stop has no picture, so the picture loss learns nothing from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.model.templates import plan_is_formed, reflection_is_formed
from triptych.trace import Completion, Turn, Verdict

Variant = Literal["paper", "release"]
Grain = Literal["fractional", "strict"]

FULL_SCORE = 1 - 1e-6  # a share of checks is a float: 1 is compared with room for rounding


@dataclass(frozen=True)
class RewardRule:
    """Which column of the table, and the weights in it."""

    variant: Variant = "paper"
    format_weight: float = 1.0  # 1 in the paper and in the release
    stop_cost: float = 0.0  # taken from C for stopping on a wrong picture; neither paper nor release takes anything


@dataclass(frozen=True)
class Reward:
    """What a beat earned, for its text and for its picture; without a picture, that one is not learned from."""

    text: float
    picture: float
    well_formed: bool
    has_picture: bool


def is_right(verdict: Verdict) -> bool:
    """Whether every check holds."""
    return verdict.score >= FULL_SCORE


def score_of(verdict: Verdict, grain: Grain) -> float:
    """V: the share of checks that hold, or, strictly, 1 if all of them do and 0 otherwise."""
    return float(is_right(verdict)) if grain == "strict" else verdict.score


def is_well_formed(text: Completion | None, reflecting: bool) -> bool:
    """Whether a text has the format of its beat; a picture without a plan has no format to miss."""
    if text is None:
        return True
    return reflection_is_formed(text.text) if reflecting else plan_is_formed(text.text)


def stage_reward(
    turn: Turn,
    verdict: Verdict,
    before: Verdict | None,
    rule: RewardRule,
    text_grain: Grain = "fractional",
    picture_grain: Grain = "fractional",
) -> Reward:
    """The reward of one beat; `before` is the verdict on the picture it started from, None for Reason."""
    well_formed = is_well_formed(turn.said, before is not None)
    has_picture = turn.drew is not None
    text = _outcome(verdict, before, has_picture, text_grain, rule)
    if rule.variant == "release":
        # V, not C: siblings share V_hat, and the mean of the group takes it off anyway. The format is a factor of the
        # text's whole reward, not a summand as in the paper.
        picture = score_of(verdict, picture_grain)
        return Reward(well_formed * (rule.format_weight + text), picture, well_formed, has_picture)
    picture = _outcome(verdict, before, has_picture, picture_grain, rule)
    return Reward(text + rule.format_weight * well_formed, picture, well_formed, has_picture)


def _outcome(verdict: Verdict, before: Verdict | None, has_picture: bool, grain: Grain, rule: RewardRule) -> float:
    """V for Reason, C for Refine."""
    value = score_of(verdict, grain)  # of the old picture where the beat stopped
    if before is None:
        return value
    # No picture is above a right one: V - V_hat would never reward the stop.
    if is_right(before):
        if not has_picture:  # it stopped, as it should
            return 1.0
        return 0.0 if rule.variant == "paper" else value - 1.0
    return value - score_of(before, grain) - (0.0 if has_picture else rule.stop_cost)
