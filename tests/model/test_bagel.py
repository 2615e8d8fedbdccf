"""Laws of the model: what is cached equals what is read at once, rows do not feel their neighbours, seeds reproduce."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from triptych.data.lexicon import build_tokenizer
from triptych.model import sampler
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH, Resize
from triptych.model.kv_cache import KVCache
from triptych.model.packing import Latent, Text, Tokens
from triptych.model.sampler import Branches, combine
from triptych.rl.recipes import TINY as SMALLEST

TINY = replace(
    SMALLEST,
    language=replace(SMALLEST.language, num_hidden_layers=2, num_attention_heads=4),
    vision=replace(SMALLEST.vision, num_hidden_layers=3),
    image_size=(32, 48),  # not square: rows and columns must not be swapped
    vae_resize=Resize(64, 32, 16),
    vit_resize=Resize(64, 32, 16),
)
SAMPLING = replace(
    SKETCH.sampling,
    max_plan=6,
    max_reflection=7,
    max_answer=4,
    draw_points=4,
    edit_points=4,
    text_guidance=2.0,
    image_guidance=1.5,
)


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    torch.manual_seed(0)
    return Bagel(TINY, build_tokenizer()).eval()


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8) for seed in range(count)]


def latent(seed: int, time: float | None = None) -> Latent:
    tokens = torch.randn(6, TINY.latent_dim, generator=torch.Generator().manual_seed(seed))
    return Latent(tokens, (2, 3), time, loss=time is not None)


@torch.no_grad()
def test_pictures_are_decoded_in_their_own_precision(bagel):
    tokens = torch.randn(1, 6, bagel.config.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        around = bagel.decode_images(tokens, (2, 3))
    assert np.array_equal(around, bagel.decode_images(tokens, (2, 3)))


def test_keys_are_held_in_the_precision_they_are_computed_in(bagel):
    with torch.autocast("cpu", torch.bfloat16):
        assert bagel.empty_cache(1).keys[0].dtype == torch.bfloat16
    assert bagel.empty_cache(1).keys[0].dtype == torch.float32


def test_cached_reading_equals_full_reading(bagel):
    view = bagel.view_block(pictures(1)[0])
    rows = [
        [Text([9, 10]), latent(1), view, Text([11, 12, 13])],
        [Text([14]), latent(2), view, Text([15])],
    ]
    whole = bagel.pack(rows)
    full, _ = bagel(whole)
    context = bagel.empty_cache(2)
    pieces = [bagel.extend(context, [[row[part]] for row in rows]) for part in range(4)]
    ends = [4 + 2 + 8 + 5, 3 + 2 + 8 + 3]  # und tokens of each row: text, two brackets, view with brackets, text
    for row, end in enumerate(ends):
        last = len(rows[row][3].ids) + 2
        assert torch.allclose(full[row, end - last : end], pieces[3][row, :last], atol=1e-5)
    assert context.position.tolist() == whole.position.tolist()


@torch.no_grad()
def test_velocity_behind_a_context_equals_the_packed_pass(bagel):
    prompts = [Text([9, 10, 11]), Text([12])]
    noisy = [latent(3, 0.7), latent(4, 0.7)]
    _, hidden = bagel(bagel.pack([[text, block] for text, block in zip(prompts, noisy, strict=True)]))
    context = bagel.empty_cache(2)
    bagel.extend(context, [[text] for text in prompts])
    before = context.length
    velocity = bagel.velocity(context, torch.stack([block.tokens for block in noisy]), 0.7, (2, 3))
    assert torch.allclose(velocity, bagel.llm2vae(hidden).float(), atol=1e-5)
    assert context.length == before


@torch.no_grad()
def test_nobody_sees_another_noise_block(bagel):
    both = bagel.pack([[Text([9]), latent(5, 0.9), latent(6, 0.3), Text([10])]])
    other = bagel.pack([[Text([9]), latent(7, 0.9), latent(6, 0.3), Text([10])]])
    (und, gen), (und2, gen2) = bagel(both), bagel(other)
    assert torch.allclose(gen[:, 6:], gen2[:, 6:], atol=1e-6)
    assert torch.allclose(und[:, -3:], und2[:, -3:], atol=1e-6)
    assert not torch.allclose(gen[:, :6], gen2[:, :6])


@torch.no_grad()
def test_guidance_in_one_forward_equals_branch_by_branch(bagel):
    cond, drop = bagel.empty_cache(2), bagel.empty_cache(2)
    bagel.extend(cond, [[Text([9, 10])], [Text([11, 12, 13, 14])]])
    branches = Branches(cond, drop, None)
    x = torch.randn(2, 6, TINY.latent_dim)
    apart = torch.cat([bagel.velocity(branch, x, 0.8, (2, 3)) for branch in branches.active()])
    together = bagel.velocity(KVCache.cat(branches.active()), x.repeat(2, 1, 1), 0.8, (2, 3))
    assert torch.allclose(apart, together, atol=1e-5)
    guided = combine(apart, branches, "global", SAMPLING)
    assert guided.shape == x.shape


def test_a_row_does_not_depend_on_its_neighbours(bagel):
    prompts = ["a photo of three clocks", "a red cat", "a photo of a blue bus and a green dog"]
    seeds = [5, 6, 7]
    plans = bagel.plan(prompts, SAMPLING, seeds)
    drawn = bagel.draw(prompts, plans, SAMPLING, seeds)
    said = bagel.reflect(prompts, [one.image for one in drawn], SAMPLING, seeds)
    edited = bagel.edit([one.image for one in drawn], ["add a cat", "stop", "move"], SAMPLING, seeds)
    answers = bagel.answer([one.image for one in drawn], ["how many", "what", "is"], SAMPLING, seeds)
    (plan,) = bagel.plan(prompts[1:2], SAMPLING, seeds[1:2])
    assert plan.tokens.tolist() == plans[1].tokens.tolist()
    assert np.allclose(plan.logprobs, plans[1].logprobs, atol=1e-4)
    (alone,) = bagel.draw(prompts[1:2], [plan], SAMPLING, seeds[1:2])
    assert np.abs(alone.image.astype(int) - drawn[1].image).max() <= 1
    image = [drawn[1].image]
    assert bagel.reflect(prompts[1:2], image, SAMPLING, [6])[0].tokens.tolist() == said[1].tokens.tolist()
    assert bagel.answer(image, ["what"], SAMPLING, [6])[0].tokens.tolist() == answers[1].tokens.tolist()
    assert np.abs(bagel.edit(image, ["stop"], SAMPLING, [6])[0].image.astype(int) - edited[1].image).max() <= 1


def test_plans_have_a_temperature_of_their_own(bagel):
    prompts, seeds, image = ["a photo of three clocks"] * 8, range(8), pictures(1) * 8
    cold, warm = (replace(SAMPLING, temperature=each, plan_temperature=None) for each in (0.0, 1.0))
    freer = replace(cold, plan_temperature=1.0)

    def plans(sampling):
        return [each.tokens.tolist() for each in bagel.plan(prompts, sampling, seeds)]

    assert plans(freer) == plans(warm) and len(set(map(tuple, plans(cold)))) == 1 < len(set(map(tuple, plans(warm))))
    said = [each.tokens.tolist() for each in bagel.reflect(prompts, image, freer, seeds)]
    assert said == [said[0]] * 8


def test_rows_of_different_sizes_are_edited_in_one_call(bagel):
    images = [*pictures(1), *pictures(1, 48, 32)]
    edited = bagel.edit(images, ["add", "remove"], SAMPLING, [1, 2])
    assert [one.image.shape for one in edited] == [(32, 48, 3), (48, 32, 3)]


def test_recorded_logprob_is_that_of_the_distribution_that_was_sampled(bagel):
    sampling = replace(SAMPLING, plan_temperature=0.8, top_p=0.9)
    (said,) = bagel.plan(["a photo of a cat"], sampling, [3])
    context = bagel.empty_cache(1)
    bagel.extend(context, [[bagel.text_block("plan"), bagel.text_block("a photo of a cat")]])
    with torch.no_grad():
        hidden = bagel.extend(context, [[Tokens([bagel.special.bos, *said.tokens.tolist()])]])
        tokens = torch.from_numpy(said.tokens)[None]
        logits = bagel.logits(hidden[:, :-1])
        kept = torch.zeros_like(logits, dtype=torch.bool)
        for step, ids in enumerate(said.kept):
            kept[0, step, ids] = True
        assert torch.equal(kept, sampler.kept_tokens(logits, 0.8, 0, 0.9))
        scores, _ = sampler.token_logprobs(logits, tokens, 0.8, kept)
    assert np.allclose(scores[0].numpy(), said.logprobs, atol=1e-4)


def test_a_reflection_really_sees_the_picture(bagel):
    (image,) = pictures(1)
    other = image.copy()
    other[0, 0] = 255 - other[0, 0]

    def logits(picture):
        context = bagel.empty_cache(1)
        with torch.no_grad():
            bagel.extend(context, [[bagel.view_block(picture), bagel.text_block("a cat")]])
            return bagel.logits(bagel.extend(context, [[Tokens([bagel.special.bos])]]))

    assert not torch.equal(logits(image), logits(other))


def test_one_stochastic_step_is_recorded_unrounded_and_scores_itself(bagel):
    sampling = replace(SAMPLING, sde_indices=(1,))
    drawings = bagel.draw(["a cat", "a dog"], [None, None], sampling, [1, 1], sde_seeds=[2, 3])
    first, second = (drawing.sde_steps for drawing in drawings)
    assert first.index.tolist() == [1] and first.before.dtype == np.float32
    assert first.before.shape == (1, 6, TINY.latent_dim)
    assert not np.array_equal(first.after, second.after)
    again = bagel.draw(["a cat", "a dog"], [None, None], sampling, [1, 1], sde_seeds=[2, 3])
    assert np.array_equal(first.after, again[0].sde_steps.after)
    assert np.array_equal(first.logprob, again[0].sde_steps.logprob)
