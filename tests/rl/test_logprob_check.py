"""The log-probability check: an honest model passes in every stage, and each kind of disagreement is named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from triptych.data.specs import StickerPrompts
from triptych.errors import TrainingError
from triptych.model.bagel import Bagel
from triptych.model.config import Resize
from triptych.rewards.judge import BrightnessJudge
from triptych.rl import logprob_check
from triptych.rl.config import BFLOAT16_LIMITS, Limits, StageConfig, TrainConfig, TreeConfig
from triptych.rl.learner import Learner
from triptych.rl.recipes import DEBUG, LORA_7B, RELEASE_7B, TINY, picture_only, sft_only, text_only, tiny
from triptych.rl.train import train
from triptych.trace import Completion, Prompt

PROMPTS = [Prompt("a photo of three clocks"), Prompt("a photo of a red cat and a blue bus")]


def short(stage: StageConfig) -> StageConfig:
    """A stage of the 7B recipe for a tiny model: its steps, guidance, filter and noise, in fewer steps and tokens."""
    picture = replace(stage.picture, sde_window=1)
    return replace(stage, picture=picture, sampling=replace(stage.sampling, max_tokens=5))


RELEASE = replace(RELEASE_7B, micro_batch_size=16, reason=short(RELEASE_7B.reason), refine=short(RELEASE_7B.refine))
# Pictures of 64 pixels, 1,024 numbers: rounding averages out over them, as it does over the 65,536 of BAGEL.
SIDE = {"image_size": (64, 64), "vae_resize": Resize(64, 64, 16), "vit_resize": Resize(64, 64, 16)}


class Policy(Bagel):
    """A model whose branches differ enough for guidance to matter; `changes` are settings that it scores with, at every
    step or at one. Rounding averages out over `large` pictures alone."""

    def __init__(self, step: int | None = None, large: bool = False, **changes: Any):
        honest = tiny()
        super().__init__(replace(TINY, **SIDE) if large else TINY, honest.tokenizer)
        self.load_state_dict(honest.state_dict())
        with torch.no_grad():
            self.llm2vae.weight *= 8
        self.step_number, self.changes = step, changes
        self.eval()

    def other(self, sampling):
        return replace(sampling, **self.changes)

    def text_logprobs(self, rows, sampling):
        return super().text_logprobs(rows, self.other(sampling))

    def sde_logprobs(self, rows, sampling):
        honest = self.step_number is not None and self.step_number not in sampling.sde_indices
        return super().sde_logprobs(rows, sampling if honest else self.other(sampling))


def rounded(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array).bfloat16().float().numpy()


class RoundedRecord(Policy):
    """Stores its states as a careless cast leaves them."""

    def draw(self, *arguments, **named):
        return [self.cast(one) for one in super().draw(*arguments, **named)]

    def edit(self, *arguments, **named):
        return [self.cast(one) for one in super().edit(*arguments, **named)]

    def cast(self, one):
        if one.sde_steps is None:
            return one
        states = {"before": rounded(one.sde_steps.before), "after": rounded(one.sde_steps.after)}
        return replace(one, sde_steps=replace(one.sde_steps, **states))


class RoundedScore(Policy):
    """Scores another state than it has stored."""

    part = "before"

    def sde_logprobs(self, rows, sampling):
        rows = [
            replace(one, sde_steps=replace(one.sde_steps, **{self.part: rounded(getattr(one.sde_steps, self.part))}))
            for one in rows
        ]
        return super().sde_logprobs(rows, sampling)


class RoundedEnd(RoundedScore):
    part = "after"


def found(policy: Bagel, config: TrainConfig, limits: Limits | None = None) -> set[tuple[str, str]]:
    """Stage and limit of what the check finds wrong."""
    with Learner(policy, config).precision():
        mismatches = logprob_check.mismatches(policy, PROMPTS, config, seed=1)
    limits = config.limits if limits is None else limits
    wrong = {
        (stage, name)
        for stage, mismatch in mismatches.items()
        for name, value in mismatch.items()
        if not value <= getattr(limits, name)
    }
    assert len(wrong) == sum(len(logprob_check.problems(s, m, limits)) for s, m in mismatches.items())
    return wrong


FLOAT32 = replace(RELEASE, dtype="float32", limits=Limits())


def quick(stage: StageConfig) -> StageConfig:
    picture = replace(stage.picture, sde_window=2)
    return replace(stage, picture=picture, sampling=replace(stage.sampling, points=4))


QUICK = replace(FLOAT32, reason=quick(FLOAT32.reason), refine=quick(FLOAT32.refine))
both_precisions = pytest.mark.parametrize("config", [FLOAT32, RELEASE], ids=["float32", "bfloat16"])


@pytest.mark.parametrize("recipe", [RELEASE_7B, LORA_7B])
def test_the_7b_recipes_check_with_the_limits_of_their_precision(recipe):
    assert recipe.dtype == "bfloat16" and recipe.limits == BFLOAT16_LIMITS


@both_precisions
def test_an_honest_model_passes(config):
    assert found(Policy(large=True), config) == set()


@both_precisions
@pytest.mark.parametrize(
    ("policy", "caught"),
    [
        (Policy(large=True, image_guidance=1.0), {("refine", "guidance")}),
        (Policy(large=True, text_guidance=3.6), {("reason", "guidance"), ("refine", "guidance")}),
        (Policy(large=True, image_guidance=1.35), {("refine", "guidance")}),
        (Policy(large=True, text_guidance=1.0), {("reason", "sde_step")}),
        (Policy(large=True, top_p=1.0), {("reason", "text_mean"), ("refine", "text_mean")}),
        (RoundedRecord(large=True), {("reason", "rounding"), ("refine", "rounding")}),
        (RoundedScore(large=True), {("reason", "rounding"), ("refine", "rounding")}),
        (RoundedEnd(large=True), {("reason", "rounding"), ("refine", "rounding")}),
    ],
    ids=["no image guidance", "text x .9", "image x .9", "no guidance", "no filter", "record", "before", "after"],
)
def test_each_fault_is_caught_in_the_precision_of_the_recipe(config, policy, caught):
    assert found(policy, config) >= caught


@pytest.mark.parametrize(
    ("policy", "stages", "kind"),
    [
        (Policy(temperature=0.95), {"reason", "refine"}, "text"),
        (Policy(edit_renorm="global"), {"refine"}, "sde"),
        (Policy(draw_renorm="channel"), {"reason"}, "sde"),
        (Policy(eta_draw=0.8), {"reason"}, "sde"),
        (Policy(eta_mode="constant"), {"reason", "refine"}, "sde"),
    ],
    ids=["temperature", "renorm of an edit", "renorm of a drawing", "noise", "shape of noise"],
)
def test_other_settings_are_caught_where_they_act(policy, stages, kind):
    wrong = found(policy, QUICK)
    assert {stage for stage, name in wrong if name.startswith(kind)} == stages
    assert all(name.startswith(kind) or (kind == "sde" and name in ("guidance", "rounding")) for _, name in wrong)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_every_step_that_the_recipe_can_choose_is_checked(step):
    config = replace(QUICK, reason=replace(QUICK.reason, picture=replace(QUICK.reason.picture, sde_window=0)))
    stages = {stage for stage, _ in found(Policy(step, eta_draw=0.8, eta_edit=0.8), config)}
    assert stages == ({"reason"} if step == 2 else {"reason", "refine"})


@pytest.mark.parametrize(("window", "count", "points"), [(0, 1, 16), (4, 1, 13), (4, 3, 13), (4, 2, 3), (5, 9, 21)])
def test_index_sets_hold_all_that_is_ever_sampled(window, count, points):
    picture = replace(DEBUG.reason.picture, sde_window=window, num_sde_steps=count)
    stage = replace(DEBUG.reason, picture=picture, sampling=replace(DEBUG.reason.sampling, points=points))
    sets, drawn = stage.sde_index_sets(), [stage.sample_sde_indices(seed) for seed in range(200)]
    assert {index for one in sets for index in one} == {index for one in drawn for index in one}
    assert {len(one) for one in sets} == {len(one) for one in drawn}
    assert max(max(one) for one in sets) == min(window or points - 1, points - 1) - 1


class Listening(Policy):
    """Notes what is asked of it."""

    def __init__(self):
        super().__init__()
        self.drawn, self.edited, self.planned, self.prompts = [], [], [], set()

    def draw(self, prompts, plans, sampling, seeds, *rest):
        self.drawn.append(([None if plan is None else tuple(plan.tokens) for plan in plans], list(seeds)))
        self.prompts |= {*prompts}
        return super().draw(prompts, plans, sampling, seeds, *rest)

    def edit(self, images, instructions, sampling, seeds, *rest):
        self.edited.append((list(zip(map(id, images), instructions, strict=True)), list(seeds)))
        return super().edit(images, instructions, sampling, seeds, *rest)

    def plan(self, *arguments):
        self.planned.append(len(self.drawn))
        return super().plan(*arguments)


def test_several_prompts_are_checked_and_copies_are_interleaved():
    policy = Listening()
    logprob_check.mismatches(policy, PROMPTS, QUICK, seed=1)
    assert policy.prompts == {prompt.text for prompt in PROMPTS}
    assert (len(policy.drawn), len(policy.edited)) == (2, 2)  # the windows of Reason and Refine
    for keys, seeds in (*policy.drawn, *policy.edited):
        a, b, again, too = keys[:4]
        assert a == again and b == too and a != b and keys[4:6] == keys[6:8]
        assert len(set(seeds[:4])) == len(set(seeds[4:])) == 1 and seeds[0] != seeds[4]


def test_rollouts_with_and_without_a_plan_are_checked_where_there_may_be_either():
    for plans, drawn, planned in ((0.0, 2, []), (1.0, 2, [0, 1]), (0.5, 4, [2, 3])):
        policy = Listening()
        config = replace(QUICK, reason=replace(QUICK.reason, plan_share=plans), tree=TreeConfig(depth=0))
        logprob_check.mismatches(policy, PROMPTS, config, seed=1)
        assert (len(policy.drawn), policy.planned) == (drawn, planned)


@pytest.mark.parametrize(
    "tree", [TreeConfig(depth=2), TreeConfig(kind="trajectory", depth=2), TreeConfig(kind="trajectory", depth=1)]
)
def test_deeper_trees_and_whole_chains_pass_too(tree):
    config = replace(QUICK, tree=tree)
    assert found(Policy(), config) == set()
    assert found(Policy(image_guidance=1.35), config) >= {("refine", "guidance")}


def test_only_what_will_be_trained_is_looked_at():
    def seen(config: TrainConfig) -> dict[str, set[str]]:
        return {s: set(m) for s, m in logprob_check.mismatches(Policy(), PROMPTS, config, 1).items()}

    text, picture = {"text_ratio", "text_mean"}, {"sde_mean", "sde_step", "sde_logprob", "guidance", "rounding"}
    assert seen(QUICK) == {"reason": text | picture, "refine": text | picture}
    assert seen(replace(QUICK, tree=TreeConfig(depth=0))) == {"reason": text | picture}
    assert seen(text_only(QUICK)) == {"reason": text, "refine": text}
    assert seen(picture_only(QUICK)) == {"reason": picture, "refine": picture}
    assert seen(sft_only(QUICK)) == {}


class Numb(Policy):
    """The SDE steps of one prompt score nothing that is a number."""

    def sde_logprobs(self, rows, sampling):
        pairs = zip(rows, super().sde_logprobs(rows, sampling), strict=True)
        return [replace(s, logprob=s.logprob * float("nan")) if p.text == PROMPTS[0].text else s for p, s in pairs]


@pytest.mark.parametrize("micro", [1, 3, 32])
def test_rows_are_compared_in_parts_and_none_is_lost(micro):
    config = replace(QUICK, micro_batch_size=micro, tree=TreeConfig(depth=0))
    whole, parts = (
        logprob_check.mismatches(Policy(temperature=0.8), PROMPTS, one, 1)["reason"] for one in (QUICK, config)
    )
    assert parts == pytest.approx(whole, rel=1e-3, abs=1e-5)
    assert ("reason", "sde_logprob") in found(Numb(), config)


def test_nothing_that_cannot_be_compared_passes():
    with pytest.raises(TrainingError, match="reason: a token's ratio differs from 1 by nan"):
        logprob_check.check_mismatches({"reason": {"text_ratio": float("nan")}}, Limits())
    logprob_check.check_mismatches({"reason": {"text_ratio": 0.0}}, Limits())


def test_chance_is_no_fault_and_a_bias_is_one():
    """Ratios that scatter pass under a loose limit of each; the same ratios with a common shift do not."""
    scatter = np.random.default_rng(0).normal(0, 0.02, 4000).astype(np.float32)
    for shift, beyond in ((0.0, set()), (-0.02, {"text_mean"})):
        comparison = logprob_check.Comparison()
        said = Completion("", np.zeros(4000, np.int64), scatter)
        new = torch.from_numpy(scatter)[torch.randperm(4000, generator=torch.Generator().manual_seed(0))] + shift
        comparison.log_ratios.append(new - torch.from_numpy(said.logprobs))
        mismatch = comparison.read()
        assert {n for n, value in mismatch.items() if value > getattr(BFLOAT16_LIMITS, n)} == beyond


def test_training_refuses_to_start_and_says_which():
    with pytest.raises(TrainingError, match="refine: a guidance scale differs") as refusal:
        next(train(Policy(image_guidance=1.0), StickerPrompts(0), BrightnessJudge(), DEBUG))
    assert "reason" not in str(refusal.value) and "--limits.guidance" in str(refusal.value)


def test_a_run_checks_several_prompts_of_its_stream():
    """Also where a step takes but one: rows of two prompts must not be mixed up."""
    policy, stream = Listening(), StickerPrompts(0)
    config = replace(QUICK, reason=replace(QUICK.reason, parents=1, group_size=2), tree=TreeConfig(depth=0))
    next(train(policy, stream, BrightnessJudge(), config))
    assert policy.prompts == {stream(0).text, stream(1).text}


class Drifting(Policy):
    """Honest until the first rollout was learnt from."""

    late = False

    def other(self, sampling):
        return replace(sampling, text_guidance=1.3) if self.late else sampling


def test_every_rollout_is_checked_before_it_is_learnt_from():
    policy, config = Drifting(), replace(DEBUG, steps=9, ema_decay=0.0, limits=Limits(bad_steps=3))
    steps = train(policy, StickerPrompts(0), BrightnessJudge(), config)
    first = next(steps).metrics
    assert first["skipped"] == 0 and first["mismatch_text_ratio"] < 1e-5 and first["mismatch_sde_mean"] < 1e-5
    assert first["text_ratio_off"] > 100 * first["mismatch_text_ratio"]  # which mixes epochs, and weights have moved
    policy.late = True
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    later = [next(steps).metrics, next(steps).metrics]
    assert [one["skipped"] for one in later] == [1, 2]
    assert all(one["mismatch_guidance"] > Limits().guidance for one in later)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    next(steps)
    with pytest.raises(TrainingError, match=r"3 steps in a row were skipped.*mismatch"):
        next(steps)
