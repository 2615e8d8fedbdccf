"""Verdicts to rewards: what one beat earns for its text and for its picture (the paper's stage-wise rewards).

V is the score of the new picture, V_hat that of the picture it started from, f is 1 if the text has the form that its
beat asks for, w is its weight.

              text, paper          text, release        picture, paper    picture, release
    Reason    V + w f              f (w + V)            V                 V
    Refine    C + w f              f (w + C)            C                 V

C = V - V_hat, and 1 for stopping on a right picture. An edit of a right picture earns C = 0 in the paper and V - 1 in
the release (parity kit b.12). Stopping draws nothing, so nothing is learnt about drawing from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.model.templates import plan_is_formed, reflection_is_formed
from triptych.trace import Completion, Turn, Verdict

Variant = Literal["paper", "release"]
Grain = Literal["fractional", "strict"]

RIGHT = 1 - 1e-6  # a share of checks is a float: 1 is compared with room for rounding


@dataclass(frozen=True)
class RewardRule:
    """Which formulas, and the weights in them."""

    variant: Variant = "paper"
    format_weight: float = 1.0
    stop_cost: float = 0.0  # taken from C for stopping on a wrong picture; neither paper nor release takes anything


@dataclass(frozen=True)
class Reward:
    """What a beat earned. `drawn` is False where it drew nothing: the picture's reward then teaches nothing."""

    text: float
    picture: float
    formed: bool
    drawn: bool


def is_right(verdict: Verdict) -> bool:
    """Whether everything that was asked for holds."""
    return verdict.score >= RIGHT


def graded(verdict: Verdict, grain: Grain) -> float:
    """V: the share of checks that hold, or, strictly, 1 if all of them do and 0 otherwise."""
    return float(is_right(verdict)) if grain == "strict" else verdict.score


def is_formed(said: Completion | None, reflecting: bool) -> bool:
    """Whether a text has the form of its beat; a picture without a plan has no form to miss."""
    if said is None:
        return True
    return reflection_is_formed(said.text) if reflecting else plan_is_formed(said.text)


def shape(
    turn: Turn,
    verdict: Verdict,
    before: Verdict | None,
    rule: RewardRule,
    text_grain: Grain = "fractional",
    picture_grain: Grain = "fractional",
) -> Reward:
    """The reward of one beat; `before` is the verdict on the picture it started from, None for Reason."""
    formed = is_formed(turn.said, before is not None)
    drawn = turn.drew is not None
    text = _gain(verdict, before, drawn, text_grain, rule)
    if rule.variant == "release":
        return Reward(formed * (rule.format_weight + text), graded(verdict, picture_grain), formed, drawn)
    picture = _gain(verdict, before, drawn, picture_grain, rule)
    return Reward(text + rule.format_weight * formed, picture, formed, drawn)


def _gain(verdict: Verdict, before: Verdict | None, drawn: bool, grain: Grain, rule: RewardRule) -> float:
    """V for Reason, C for Refine."""
    value = graded(verdict, grain)
    if before is None:
        return value
    if is_right(before):
        if not drawn:
            return 1.0
        return 0.0 if rule.variant == "paper" else value - 1.0
    return value - graded(before, grain) - (0.0 if drawn else rule.stop_cost)
