"""Laws of an update: its loss and gradients are those of the formulas, and it moves what it may, as far as it may."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from triptych.model.bagel import Bagel
from triptych.model.logprobs import ImageSample, TextSample
from triptych.rl.advantages import LossRows
from triptych.rl.config import Limits, PictureConfig, TextConfig, TrainConfig
from triptych.rl.learner import Learner, StageBatch
from triptych.rl.metrics import Timer
from triptych.rl.recipes import DEBUG, tiny
from triptych.sft.optim import ema_decay

PROMPTS = ["a photo of three clocks", "a red cat", "a blue bus", "two dogs"]
BOUNDS = ("text_ratio", "text_mean", "sde_mean", "sde_step", "sde_logprob", "guidance", "rounding")
LOOSE = Limits(**dict.fromkeys(BOUNDS, math.inf))
TEXT, PICTURE = torch.tensor([1.0, -0.5, 0.25, 0.75]), torch.tensor([-1.0, -0.5, 2.0, 1.5])
TOKENS, STEPS = 40, 20  # more than those of the rows: others were left out


def config(**changes) -> TrainConfig:
    """The debug recipe, whose first stage learns once, at full learning rates and with a short clip."""
    stage = replace(
        DEBUG.reason,
        inner_epochs=1,
        text=TextConfig(lr=1e-3, clip_range=0.1, kl_coef=0.3),
        picture=PictureConfig(lr=2e-3, clip_range=1e-3, kl_coef=0.7, loss_weight=3.0),
    )
    settings = {"ema_decay": 0.0, "warmup_steps": 0, "limits": LOOSE, "max_grad_norm": 1e9}
    return replace(DEBUG, reason=stage, **settings | changes)


def rows(bagel: Bagel, recipe: TrainConfig, off: float = 0.0) -> StageBatch:
    """What was sampled, with recorded log-probabilities that are `off`: for the advantages above one ratio stays within
    its clip, two are held by it, and one is beyond it on the side where it is not."""
    sampling = recipe.reason.sampling.resolve((0, 2))
    plans = bagel.plan(PROMPTS, sampling, [1, 2, 3, 4])
    drawn = bagel.draw(PROMPTS, plans, sampling, [4, 4, 5, 5], [6, 7, 8, 9])
    shift = [off * np.float32(number) for number in (0.1, 2, 2, -3)]
    texts, images = [], []
    for prompt, plan, one, by in zip(PROMPTS, plans, drawn, shift, strict=True):
        assert one.sde_steps is not None
        texts.append(TextSample(prompt, None, replace(plan, logprobs=plan.logprobs + by)))
        steps = replace(one.sde_steps, logprob=one.sde_steps.logprob + by / 100)
        images.append(ImageSample(prompt, plan, None, steps))
    return StageBatch(
        "reason", recipe.reason, sampling, LossRows(tuple(texts), TEXT, tuple(images), PICTURE, TOKENS, STEPS)
    )


def far_reference(learner: Learner) -> None:
    """First weights that the policy has left."""
    for name, weight in (learner.first or {}).items():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
        weight += 0.3 * weight.std(correction=0) * noise


def scored(bagel: Bagel, batch: StageBatch):
    texts, images = batch.batch.text_samples, batch.batch.image_samples
    return bagel.text_logprobs(texts, batch.sampling), bagel.sde_logprobs(images, batch.sampling)


def reference_of(learner: Learner) -> Bagel:
    """A model of its own with the first weights."""
    bagel = tiny()
    bagel.load_state_dict({**bagel.state_dict(), **(learner.first or {})})
    return bagel


def loss_by_hand(learner: Learner, batch: StageBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO of the texts and FlowGRPO of the pictures, each with its KL, row by row and from the formulas."""
    text, picture = batch.stage.text, batch.stage.picture
    with torch.no_grad():
        reference = scored(reference_of(learner), batch)
    new = scored(learner.bagel, batch)
    loss_text = loss_picture = torch.zeros(())
    for row, (one, advantage) in enumerate(zip(batch.batch.text_samples, TEXT, strict=True)):
        count = len(one.completion.tokens)
        now, before = new[0].logprob[row, :count], torch.from_numpy(one.completion.logprobs)
        loss_text = loss_text + surrogate(now - before, advantage, text.clip_range) / TOKENS
        gap = reference[0].logprob[row, :count] - now
        loss_text = loss_text + text.kl_coef * (gap.exp() - 1 - gap).sum() / TOKENS
    for now, before, one, advantage in zip(new[1], reference[1], batch.batch.image_samples, PICTURE, strict=True):
        ratio = now.logprob - torch.from_numpy(one.sde_steps.logprob)
        loss_picture = loss_picture + surrogate(ratio, advantage, picture.clip_range) / STEPS
        divergence = ((now.mean - before.mean) ** 2 / (2 * now.std**2)).mean((1, 2)).sum()
        loss_picture = loss_picture + picture.kl_coef * divergence / STEPS
    return loss_text, picture.loss_weight * loss_picture


def surrogate(log_ratio: torch.Tensor, advantage: torch.Tensor, clip_range: float) -> torch.Tensor:
    """Minus PPO's: a ratio is rewarded up to its clip, and punished without bound."""
    ratio = log_ratio.exp()
    held = ratio.clamp(max=1 + clip_range) if advantage > 0 else ratio.clamp(min=1 - clip_range)
    return -(held * advantage).sum()


@pytest.mark.parametrize("micro", [1, 2, 32])
def test_an_update_has_the_loss_and_the_gradients_of_the_formulas(micro):
    """Each part in the weights that it may move, whatever the size of the parts that it is added up from."""
    recipe = config(micro_batch_size=micro)
    learner = Learner(tiny(), recipe)
    far_reference(learner)
    with torch.no_grad():
        batch = rows(learner.bagel, recipe, off=0.2)
    losses = loss_by_hand(learner, batch)
    gradients = {}
    for kind, loss in zip(("und", "gen"), losses, strict=True):
        found = torch.autograd.grad(loss, learner.homes[kind], allow_unused=True)
        gradients |= dict(zip(learner.homes[kind], found, strict=True))
    metrics, fine = learner.update([batch], 0, Timer())
    assert fine and metrics["loss"] == pytest.approx(float(sum(losses).detach()), rel=1e-4)
    assert 0 < metrics["text_clipped"] < 1 and 0 < metrics["sde_clipped"] < 1
    state, moved = learner.optimizers["reason"].state, 0
    for weight, gradient in gradients.items():
        if gradient is None or not gradient.any():
            assert weight not in state or not state[weight]["exp_avg"].any()
        else:
            moved += 1
            largest = float(gradient.abs().max())
            assert torch.allclose(state[weight]["exp_avg"], 0.1 * gradient, rtol=1e-3, atol=1e-4 * largest)
    assert moved > 20
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values() if g is not None))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_gradients_are_no_longer_than_allowed():
    recipe = config(max_grad_norm=1e-3)
    learner = Learner(tiny(), recipe)
    with torch.no_grad():
        batch = rows(learner.bagel, recipe, off=0.2)
    metrics, _ = learner.update([batch], 0, Timer())
    taken = [one["exp_avg"] for one in learner.optimizers["reason"].state.values()]
    length = math.sqrt(sum(float(one.square().sum()) for one in taken))
    assert metrics["grad_norm"] > 2e-3 and length == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_each_home_moves_at_its_own_rate_and_the_reference_leaves_no_trace():
    """AdamW's first step is the learning rate, whatever the gradient; warm-up scales it."""
    recipe = config(warmup_steps=4)
    learner = Learner(tiny(), recipe)
    far_reference(learner)
    before = {name: p.detach().clone() for name, p in learner.learning.items()}
    with torch.no_grad():
        batch = rows(learner.bagel, recipe, off=0.2)
    learner.update([batch], step=1, timer=Timer())
    for home, lr in (("und", 1e-3), ("gen", 2e-3)):
        members = {id(p) for p in learner.homes[home]}
        steps = [float((p.detach() - before[n]).abs().max()) for n, p in learner.learning.items() if id(p) in members]
        assert max(steps) == pytest.approx(lr / 2, rel=1e-2)


def twin(epochs: int, **changes) -> tuple[Learner, dict[str, float]]:
    """A learner after so many epochs of one and the same rollout."""
    recipe = config(**changes)
    learner = Learner(tiny(), recipe)
    with torch.no_grad():
        batch = rows(learner.bagel, recipe)
    metrics, fine = learner.update([replace(batch, stage=replace(batch.stage, inner_epochs=epochs))], 7, Timer())
    assert fine
    return learner, metrics


def test_the_average_follows_every_epoch_and_is_what_is_published():
    (one, _), (two, _) = (twin(epochs, ema_decay=0.9) for epochs in (1, 2))
    keep, first = ema_decay(7, 0.9), dict(tiny().named_parameters())
    assert one.average is not None and two.average is not None
    for name, weight in two.learning.items():
        after_one = keep * first[name] + (1 - keep) * one.learning[name]
        assert torch.allclose(one.average[name], after_one, atol=1e-6)
        assert torch.allclose(two.average[name], keep * after_one + (1 - keep) * weight, atol=1e-6)
    assert any(not torch.equal(one.learning[name], weight) for name, weight in two.learning.items())
    two.merge_for_release()
    assert all(torch.equal(weight, two.average[name]) for name, weight in two.learning.items())


@pytest.mark.parametrize("reference", ["frozen", "ema"])
def test_the_kl_is_measured_from_the_reference_before_the_rollout(reference):
    """In the first epoch the policy is its own reference; in the second it has left it, and the average has not yet
    followed."""
    (one, _), (_, metrics) = (twin(epochs, ema_decay=0.5, reference=reference) for epochs in (1, 2))
    with torch.no_grad():
        batch = rows(tiny(), config())
        now, then = scored(one.bagel, batch), scored(tiny(), batch)
    gap = (then[0].logprob - now[0].logprob)[now[0].mask]
    assert metrics["text_kl"] == pytest.approx(float((gap.exp() - 1 - gap).mean()) / 2, rel=1e-3)
    apart = torch.stack(
        [((a.mean - b.mean) ** 2 / (2 * a.std**2)).mean() for a, b in zip(now[1], then[1], strict=True)]
    )
    assert metrics["sde_kl"] == pytest.approx(float(apart.mean()) / 2, rel=1e-3)


@pytest.mark.parametrize("cause", ["advantage", "mismatch"])
def test_a_step_that_is_skipped_moves_nothing(cause):
    """No weight, no average and no moment, be it that a loss is no number or that the sampler's record is another."""
    recipe = config(ema_decay=0.9, limits=Limits() if cause == "mismatch" else LOOSE)
    learner = Learner(tiny(), recipe)
    for step in range(2):
        with torch.no_grad():
            good = rows(learner.bagel, recipe)
        assert learner.update([good], step, Timer())[1]
    with torch.no_grad():
        bad = rows(learner.bagel, recipe, off=0.2 if cause == "mismatch" else 0.0)
    if cause == "advantage":
        bad = replace(bad, batch=replace(bad.batch, image_advantages=PICTURE * math.nan))
    before = snapshot(learner)
    assert not learner.update([bad], 2, Timer())[1]
    assert all(torch.equal(one, two) for one, two in zip(snapshot(learner), before, strict=True))
    assert all(parameter.grad is None for parameter in learner.learning.values())


def snapshot(learner: Learner) -> list[torch.Tensor]:
    moments = [v for o in learner.optimizers.values() for s in o.state.values() for v in s.values()]
    everything = [*learner.learning.values(), *(learner.average or {}).values(), *moments]
    return [tensor.detach().clone() for tensor in everything]
