"""The step-0 gate: an honest model passes in every stage, and each kind of disagreement is named."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from triptych.errors import TrainingError
from triptych.model.bagel import Bagel
from triptych.rewards.brightness import BrightnessJudge
from triptych.rl import gate
from triptych.rl.config import Limits, Tree
from triptych.rl.recipes import DEBUG, TINY, tiny
from triptych.rl.stream import StickerPrompts
from triptych.rl.train import train

PROMPTS = ["a photo of three clocks", "a photo of a red cat and a blue bus"]


def test_an_honest_model_passes():
    found = gate.gaps(tiny(), PROMPTS, DEBUG, seed=1)
    assert [one.stage for one in found] == ["reason", "refine"]
    gate.check(found, DEBUG.limits)
    assert max(one.text for one in found) < 1e-4 and max(one.strokes for one in found) < 1e-5


def test_only_what_will_be_trained_is_looked_at():
    assert [one.stage for one in gate.gaps(tiny(), PROMPTS, replace(DEBUG, tree=Tree(depth=0)), 1)] == ["reason"]
    mute = replace(DEBUG.reason, text=replace(DEBUG.reason.text, on=False))
    assert gate.gaps(Cold.of(tiny()), PROMPTS, replace(DEBUG, reason=mute, tree=Tree(depth=0)), 1)[0].text == 0


class Off(Bagel):
    """Scores with other settings than it was sampled with."""

    other: ClassVar[dict[str, Any]] = {}

    @classmethod
    def of(cls, bagel: Bagel) -> Bagel:
        copy = cls(TINY, bagel.tokenizer)
        copy.load_state_dict(bagel.state_dict())
        return copy.eval()

    def score_text(self, told, sampling):
        return super().score_text(told, replace(sampling, **self.other))

    def score_strokes(self, painted, sampling):
        return super().score_strokes(painted, replace(sampling, **self.other))


class Cold(Off):
    other: ClassVar[dict[str, Any]] = {"temperature": 0.9}


class Unguided(Off):
    other: ClassVar[dict[str, Any]] = {"text_guidance": 1.0}


class Swapped(Off):
    other: ClassVar[dict[str, Any]] = {"edit_renorm": "global"}


class Louder(Off):
    other: ClassVar[dict[str, Any]] = {"eta_draw": 0.8}


class Rounded(Off):
    """Scores the state that a careless cast would have stored."""

    def score_strokes(self, painted, sampling):
        def cast(array):
            return torch.from_numpy(array).bfloat16().float().numpy()

        rounded = [replace(one, strokes=replace(one.strokes, after=cast(one.strokes.after))) for one in painted]
        return super().score_strokes(rounded, sampling)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Cold, ["reason text", "refine text"]),
        (Unguided, ["reason strokes", "refine strokes"]),
        (Swapped, ["refine strokes"]),
        (Louder, ["reason strokes"]),
    ],
)
def test_training_refuses_to_start_and_says_which(kind, named):
    with pytest.raises(TrainingError) as refusal:
        next(train(kind.of(vivid()), StickerPrompts(0), BrightnessJudge(), DEBUG))
    for part in ("reason text", "reason strokes", "refine text", "refine strokes"):
        assert (part in str(refusal.value)) is (part in named), refusal.value


def vivid() -> Bagel:
    """A model whose branches differ enough for guidance to matter."""
    bagel = tiny()
    with torch.no_grad():
        bagel.llm2vae.weight *= 8
    return bagel


def test_a_rounded_state_shows():
    (honest, _), (rounded, _) = (gate.gaps(kind.of(vivid()), PROMPTS, DEBUG, 1) for kind in (Off, Rounded))
    assert rounded.strokes > 3 * honest.strokes


class Numb(Off):
    """The strokes of the first prompt score nothing that is a number."""

    def score_strokes(self, painted, sampling):
        pairs = zip(painted, super().score_strokes(painted, sampling), strict=True)
        return [replace(s, logprob=s.logprob * float("nan")) if p.text == PROMPTS[0] else s for p, s in pairs]


@pytest.mark.parametrize("micro", [1, 32])
def test_rows_are_compared_in_parts_and_none_is_lost(micro):
    config = replace(DEBUG, micro=micro)
    whole, parts = (gate.gaps(Cold.of(tiny()), PROMPTS, one, 1) for one in (DEBUG, config))
    assert [one.text for one in parts] == pytest.approx([one.text for one in whole], rel=1e-3)
    assert np.isnan(gate.gaps(Numb.of(tiny()), PROMPTS, config, 1)[0].strokes)


def test_nothing_that_cannot_be_compared_passes():
    with pytest.raises(TrainingError, match="reason text"):
        gate.check([gate.Gap("reason", float("nan"), 0.0)], Limits())
    gate.check([gate.Gap("reason", np.float64(0.0), 0.0)], Limits())
