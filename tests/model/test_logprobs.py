"""Laws of log-probabilities: before an update they are what the sampler recorded, for every beat and setting."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_bagel import TINY

from triptych.data.lexicon import build_tokenizer
from triptych.model import flow
from triptych.model.bagel import Bagel, distinct
from triptych.model.logprobs import ImageSample, TextSample

PLAIN = replace(
    TINY.sampling,
    time_shift=3.0,
    temperature=1.0,
    plan_temperature=None,
    draw_points=5,
    edit_points=5,
    text_guidance=1.0,
    image_guidance=1.0,
    max_plan=6,
    max_reflection=9,
    sde_indices=(1,),
)
GUIDED = replace(PLAIN, text_guidance=4.0, image_guidance=1.5, guidance_interval=(0.6, 1.0), temperature=0.7, top_p=0.9)
SETTINGS = {
    "plain": PLAIN,
    "plans at a temperature of their own": replace(GUIDED, plan_temperature=1.4),
    "guided, filtered": GUIDED,
    "text guidance alone, several SDE steps across the interval": replace(
        GUIDED, image_guidance=1.0, sde_indices=(0, 1, 3)
    ),
    "steps above, on and below the lower bound of guidance": replace(
        GUIDED, draw_points=9, edit_points=9, time_shift=2.0, guidance_interval=(0.4, 1.0), sde_indices=(5, 6, 7)
    ),
    "constant noise, other renorms, top-k": replace(
        GUIDED, eta_mode="constant", draw_renorm="channel", edit_renorm="global", top_p=1.0, top_k=5
    ),
}
PROMPTS = ["a photo of three clocks", "a red cat", "a photo of a blue bus and a green dog"]
ORDERS = ["add a cat", "remove the clock at top left", "stop"]
every_setting = pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS.keys())


def build(dtype: torch.dtype = torch.float32) -> Bagel:
    torch.manual_seed(0)
    bagel = Bagel(TINY, build_tokenizer()).eval()
    with torch.no_grad():  # the end likely, so that texts differ in length, and branches that really differ
        bagel.language_model.lm_head.weight[bagel.special.eos] *= 6
        bagel.llm2vae.weight *= 4
    return bagel.to(dtype)


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    return build()


def pictures() -> list[np.ndarray]:
    sizes = [(32, 48), (48, 32), (32, 48)]
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(sizes)]


@contextmanager
def denoising_batches(bagel: Bagel) -> Iterator[list[int]]:
    """Yields a list that gets the number of rows of each forward with latents."""
    batches: list[int] = []

    def count(module, arguments):
        batches.extend([len(arguments[0].latents)] if arguments[0].latents.shape[1] else [])

    hook = bagel.register_forward_pre_hook(count)
    yield batches
    hook.remove()


def assert_same_text(bagel, texts, sampling):
    scores = bagel.text_logprobs(texts, sampling)
    for row, one in enumerate(texts):
        count = len(one.completion.tokens)
        assert scores.mask[row].sum() == count
        assert np.allclose(scores.logprob[row, :count].detach().numpy(), one.completion.logprobs, atol=1e-4)
        assert (scores.logprob[row, count:] == 0).all()
    return scores


def assert_same_steps(bagel, samples, sampling):
    for one, scores in zip(samples, bagel.sde_logprobs(samples, sampling), strict=True):
        assert np.allclose(scores.logprob.detach().numpy(), one.sde_steps.logprob, atol=1e-5)
        assert np.allclose(scores.mean.detach().numpy(), one.sde_steps.mean, atol=1e-5)
        from_record = flow.step_logprob(
            torch.from_numpy(one.sde_steps.after), torch.from_numpy(one.sde_steps.mean), scores.std
        )
        assert np.allclose(from_record.numpy(), one.sde_steps.logprob, atol=1e-6)


@every_setting
def test_a_score_is_what_reason_recorded(bagel, sampling):
    plans = bagel.plan(PROMPTS, sampling, [1, 2, 3])
    assert sampling.top_k or len({len(plan.tokens) for plan in plans}) > 1
    assert_same_text(bagel, [TextSample(p, None, plan) for p, plan in zip(PROMPTS, plans, strict=True)], sampling)
    known = [*plans[:2], None]
    drawn = bagel.draw(PROMPTS, known, sampling, [4, 4, 5], [6, 7, 8])
    samples = [ImageSample(p, plan, None, one.sde_steps) for p, plan, one in zip(PROMPTS, known, drawn, strict=True)]
    assert_same_steps(bagel, samples, sampling)


@every_setting
def test_a_score_is_what_refine_recorded(bagel, sampling):
    images = pictures()
    said = bagel.reflect(PROMPTS, images, sampling, [1, 2, 3])
    assert_same_text(bagel, [TextSample(*row) for row in zip(PROMPTS, images, said, strict=True)], sampling)
    edited = bagel.edit(images, ORDERS, sampling, [4, 4, 5], [6, 7, 8])
    samples = [ImageSample(o, None, i, one.sde_steps) for o, i, one in zip(ORDERS, images, edited, strict=True)]
    assert_same_steps(bagel, samples, sampling)


def test_layers_computed_anew_hold_less_and_say_the_same():
    bagel = build()
    images, saved = pictures(), []
    said = bagel.reflect(PROMPTS, images, PLAIN, [1, 2, 3])
    texts = [TextSample(*row) for row in zip(PROMPTS, images, said, strict=True)]

    def gradients(checkpointing: bool) -> torch.Tensor:
        bagel.language_model.model.gradient_checkpointing = checkpointing
        bagel.zero_grad()
        saved.append(set())
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved[-1].add(x.data_ptr()) or x, lambda x: x):
            loss = bagel.text_logprobs(texts, PLAIN).logprob.sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in bagel.language_model.parameters() if p.grad is not None])

    whole, anew = gradients(False), gradients(True)
    assert torch.allclose(whole, anew, atol=1e-6) and whole.abs().max() > 0
    assert len(saved[1]) < len(saved[0]) / 2


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 1.0},
        {"plan_temperature": 1.0},
        {"top_p": 1.0},
    ],
    ids=str,
)
def test_other_text_settings_give_other_scores(bagel, other):
    """Forbids c.A5 of the parity kit: drawn with a temperature and a filter, scored without."""
    plans = bagel.plan(PROMPTS, GUIDED, [1, 2, 3])
    texts = [TextSample(p, None, plan) for p, plan in zip(PROMPTS, plans, strict=True)]
    scores = bagel.text_logprobs(texts, replace(GUIDED, **other))
    old = np.concatenate([plan.logprobs for plan in plans])
    assert not np.allclose(scores.logprob[scores.mask].detach().numpy(), old, atol=1e-2)


def test_texts_of_two_temperatures_are_not_scored_as_one(bagel):
    two, images = replace(GUIDED, plan_temperature=1.0), pictures()
    plan, said = bagel.plan(PROMPTS[:1], two, [1])[0], bagel.reflect(PROMPTS[:1], images[:1], two, [1])[0]
    texts = [TextSample(PROMPTS[0], None, plan), TextSample(PROMPTS[0], images[0], said)]
    with pytest.raises(ValueError, match=r"plans at temperature 1\.0 beside reflections at 0\.7"):
        bagel.text_logprobs(texts, two)
    bagel.text_logprobs(texts, replace(two, plan_temperature=0.7))  # which is one


@pytest.mark.parametrize(
    "other",
    [
        {"text_guidance": 1.0},
        {"image_guidance": 1.0},
        {"edit_renorm": "global"},
        {"guidance_interval": (0.97, 1.0)},
        {"eta_edit": 0.9},
    ],
    ids=str,
)
def test_other_sde_settings_give_other_scores(bagel, other):
    images = pictures()
    edited = bagel.edit(images, ORDERS, GUIDED, [4, 4, 5], [6, 7, 8])
    samples = [ImageSample(o, None, i, one.sde_steps) for o, i, one in zip(ORDERS, images, edited, strict=True)]
    found = torch.cat([one.logprob for one in bagel.sde_logprobs(samples, replace(GUIDED, **other))]).detach()
    assert not np.allclose(found.numpy(), [one.sde_steps.logprob[0] for one in samples], atol=1e-4)


def test_a2_a_first_picture_is_scored_under_the_guidance_that_it_was_drawn_with(bagel):
    """On policy the ratio is 1 with the branch that drops the text, and is not without it."""
    drawn = bagel.draw(PROMPTS, [None] * 3, GUIDED, [4, 4, 5], [6, 7, 8])
    samples = [ImageSample(p, None, None, one.sde_steps) for p, one in zip(PROMPTS, drawn, strict=True)]
    assert_same_steps(bagel, samples, GUIDED)
    for one, scores in zip(samples, bagel.sde_logprobs(samples, replace(GUIDED, text_guidance=1.0)), strict=True):
        assert not np.allclose(scores.logprob.detach().numpy(), one.sde_steps.logprob, atol=1e-4)


def test_rounding_the_stored_state_would_show(bagel):
    (one,) = bagel.draw(PROMPTS[:1], [None], PLAIN, [1], [2])
    rounded = replace(one.sde_steps, after=torch.from_numpy(one.sde_steps.after).bfloat16().float().numpy())
    (scores,) = bagel.sde_logprobs([ImageSample(PROMPTS[0], None, None, rounded)], PLAIN)
    assert not np.allclose(scores.logprob.detach().numpy(), one.sde_steps.logprob, atol=1e-6)


def test_the_end_token_is_learnt_and_entropy_is_that_of_the_draw(bagel):
    """Forbids c.A5 of the parity kit: an end token without a loss, so that stopping is not trained."""
    plans = bagel.plan(PROMPTS, PLAIN, [1, 2, 3])
    ended = next(plan for plan in plans if plan.tokens[-1] == bagel.special.eos)
    texts = [TextSample(PROMPTS[plans.index(ended)], None, ended)]
    scores = bagel.text_logprobs(texts, PLAIN)
    (gradient,) = torch.autograd.grad(scores.logprob[0, len(ended.tokens) - 1], bagel.language_model.lm_head.weight)
    assert gradient[bagel.special.eos].norm() > 0
    assert (scores.entropy[scores.mask] > 0).all() and scores.entropy.max() <= math.log(256)


def test_gradients_reach_both_experts(bagel):
    (drawn,) = bagel.draw(PROMPTS[:1], [None], GUIDED, [1], [2])
    (scores,) = bagel.sde_logprobs([ImageSample(PROMPTS[0], None, None, drawn.sde_steps)], GUIDED)
    layer = bagel.language_model.model.layers[0].self_attn
    gradients = torch.autograd.grad(scores.logprob.sum(), [layer.q_proj_moe_gen.weight, layer.k_proj.weight])
    assert all(gradient.norm() > 0 for gradient in gradients)


def test_siblings_share_the_way_to_the_first_stochastic_step(bagel):
    """Drawn together, rows of equal inputs share all steps until then, and each is what it would be alone."""
    sampling = replace(GUIDED, sde_indices=(1, 2))
    prompts, seeds = [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [4, 4, 4]  # copies that are interleaved
    with denoising_batches(bagel) as batches:
        together = bagel.draw(prompts, [None] * 3, sampling, seeds, [6, 7, 8])
    assert batches == [4, 4, 6, 3]  # two distinct rows in two branches, then three; the last step is not guided
    assert np.array_equal(together[0].sde_steps.before[0], together[2].sde_steps.before[0])
    assert np.array_equal(together[0].sde_steps.before[1], together[0].sde_steps.after[0])  # to the last digit
    assert not np.array_equal(together[0].sde_steps.after[0], together[2].sde_steps.after[0])
    for row, drawing in enumerate(together):
        (alone,) = bagel.draw([prompts[row]], [None], sampling, [4], [6 + row])
        assert np.allclose(alone.sde_steps.after, drawing.sde_steps.after, atol=1e-4)
        assert np.abs(alone.image.astype(int) - drawing.image).max() <= 1
    image = pictures()[0]
    edited = bagel.edit([image, image, image], ["add", "stop", "add"], sampling, [4, 4, 4], [6, 7, 8])
    for row, order in enumerate(["add", "stop", "add"]):
        (alone,) = bagel.edit([image], [order], sampling, [4], [6 + row])
        assert np.abs(alone.image.astype(int) - edited[row].image).max() <= 1


def test_equal_plans_are_drawn_once_and_equal_texts_are_said_once(bagel):
    ode = replace(PLAIN, sde_indices=())
    with denoising_batches(bagel) as batches:
        drawn = bagel.draw([PROMPTS[0]] * 3, [None] * 3, ode, [4, 4, 5], [6, 7, 8])
    assert set(batches) == {2}
    assert np.array_equal(drawn[0].image, drawn[1].image) and not np.array_equal(drawn[0].image, drawn[2].image)
    plans = bagel.plan([PROMPTS[0]] * 3, PLAIN, [1, 1, 2])
    assert plans[0] is plans[1] and plans[0] is not plans[2]
    assert distinct(["a", "b", "a"]) == ([0, 1], [0, 1, 0])


@pytest.mark.parametrize("stage", ["reason", "reflect_refine"])
def test_scores_and_losses_are_the_kits(shared, stage):
    """The training half of case 6, by way of `text_logprobs` and `sde_logprobs`."""
    from parity.case4 import gradients
    from parity.chain import NAME, sampling_of
    from parity.check import Run, picture, read_case
    from parity.walk import say, tiny, with_rules

    from triptych.model.config import Templates
    from triptych.rl.losses import flow_grpo, grpo
    from triptych.trace import Completion, SDESteps

    facts, golden = read_case(shared / "parity", NAME)
    params, known = facts["params"], facts["tokenizer_words"]
    bagel = with_rules(tiny(shared / "parity", known), params["vae_transform"], params["vit_transform"])
    system = [say(facts[key], known) for key in ("gen_think_system_ids", "vlm_think_system_ids")]
    templates = Templates(*system, "{prompt}", "", "")
    bagel.config = replace(bagel.config, image_size=tuple(facts["image_hw"]), templates=templates)
    kind, reasoning = ("gen", True) if stage == "reason" else ("edit", False)
    sampling = replace(
        sampling_of(facts),
        temperature=1.0,
        draw_renorm=params["cfg_renorm_type_gen"],
        edit_renorm=params["cfg_renorm_type_edit"],
        eta_draw=params["eta_gen"],
        eta_edit=params["eta_edit"],
    )
    (index,) = params[f"sde_idx_{kind}"]
    times = flow.times(params[f"num_timesteps_{kind}"], sampling.time_shift).numpy()
    texts, samples, old_text = [], [], []
    for row, ids in enumerate(facts[f"{stage}.drawn_tokens"]):
        tokens = np.array([*ids[:-1], bagel.special.eos])
        old = golden[f"out.{stage}.sample{row}.generated_probs"][: len(tokens) - 1].log()
        said = Completion("", tokens, np.append(old.numpy(), 0).astype(np.float32))
        out = f"out.{stage}.sample{row}"
        latents = golden[f"{out}.latents"].numpy()
        logprob = golden[f"{out}.log_probs"].mean().numpy()[None]
        sde_steps = SDESteps(
            latents[:1],
            latents[1:2],
            times[[index]],
            times[[index]] - times[[index + 1]],
            logprob,
            np.array([index]),
            latents[1:2],  # the kit has no mean, and no score reads it
        )
        image = None if reasoning else picture(golden[f"in.edit_input_image{row}_uint8"])
        prompt = say(facts["prompts" if reasoning else "reflection_prompts"][row], known)
        order = prompt if reasoning else facts["reflect_refine.edit_operations"][row]
        texts.append(TextSample(prompt, image, said))
        samples.append(ImageSample(order, said if reasoning else None, image, sde_steps))
        old_text.append(torch.from_numpy(said.logprobs))

    run, out = Run("6", stage), f"out.{stage}.train"
    text = bagel.text_logprobs(texts, sampling)
    learnt = text.mask.clone()
    for row, one in enumerate(texts):
        learnt[row, len(one.completion.tokens) - 1] = False  # the reference does not train the end token
    old = torch.nn.utils.rnn.pad_sequence(old_text, batch_first=True)
    run.close("text", text.logprob[learnt], golden[f"{out}.text_logp"])
    run.close("text ratio", (text.logprob - old)[learnt].exp(), golden[f"{out}.text_ratio"])
    advantages = torch.tensor([advantage for (advantage,) in facts[f"{stage}.text_advantages"]])
    text_loss = grpo(text.logprob, old, advantages, learnt, params["clip"], int(learnt.sum()))
    run.close("text loss", text_loss, facts[f"{stage}.train.text_policy_loss"])
    scores = torch.cat([one.logprob for one in bagel.sde_logprobs(samples, sampling)])
    run.close("sde_steps", scores, golden[f"{out}.consistent.image_logp"])
    before = torch.tensor([one.sde_steps.logprob[0] for one in samples])
    advantages = torch.tensor([advantage for (advantage,) in facts[f"{stage}.image_advantages"]])
    image_loss = flow_grpo(scores, before, advantages, params["clip"], len(samples))
    run.close("SDE loss", image_loss, facts[f"{stage}.train.consistent.image_policy_loss"])
    bagel.zero_grad()
    (text_loss + params["mse_weight"] * image_loss).backward()
    gradients(run, bagel, facts[f"{stage}.train.consistent.grad_l2"])
    assert run.held, run
