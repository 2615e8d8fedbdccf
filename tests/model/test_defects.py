"""Each known defect of the reference (parity kit, part c) that the model could repeat, forbidden by a law."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_bagel import TINY

from triptych.data.lexicon import build_tokenizer
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.config import BagelConfig
from triptych.model.packing import Latent, Text
from triptych.model.sampler import Branches, sample_flow
from triptych.trace import Completion

SAMPLING = replace(
    TINY.sampling,
    draw_points=5,
    edit_points=5,
    text_guidance=4.0,
    image_guidance=1.5,
    guidance_interval=(0.0, 1.0),
    max_plan=5,
)
GRID = (2, 3)
PROMPTS = ["a photo of three clocks", "a red cat"]


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    return build(TINY)


def build(config: BagelConfig) -> Bagel:
    torch.manual_seed(0)
    return Bagel(config, build_tokenizer()).eval()


def picture(seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def noise(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, GRID[0] * GRID[1], TINY.latent_dim, generator=torch.Generator().manual_seed(seed))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal up to one level, which float32 sums in another order may cost."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


@torch.no_grad()
def test_a1_no_block_of_a_context_is_lost_or_overwritten(bagel):
    blocks = [bagel.latent_block(picture(0)), bagel.view_block(picture(0)), bagel.text_block("add a cat")]
    apart, at_once = bagel.empty_cache(1), bagel.empty_cache(1)
    for block in blocks:
        bagel.extend(apart, [[block]])
    bagel.extend(at_once, [blocks])
    tokens = 2 * (GRID[0] * GRID[1] + 2) + len(blocks[2].ids) + 2
    for context in (apart, at_once):
        assert context.lengths.tolist() == [tokens]
        keys = context.keys[0][0][:, : context.length][:, context.valid[0, : context.length]]
        assert keys.abs().sum((0, 2)).gt(0).all()
    x = noise(1)
    torch.testing.assert_close(bagel.velocity(apart, x, 0.9, GRID), bagel.velocity(at_once, x, 0.9, GRID))


def test_a3_each_beat_uses_its_own_renorm(bagel):
    def drawn(sampling):
        return bagel.draw(["a red cat"], [None], sampling, [1])[0].image

    def edited(sampling):
        return bagel.edit([picture(0)], ["add a cat"], sampling, [1])[0].image

    for verb, own, other in ((drawn, "draw_renorm", "edit_renorm"), (edited, "edit_renorm", "draw_renorm")):
        by_kind = [verb(replace(SAMPLING, **{own: kind, other: "channel"})) for kind in ("global", "text_channel")]
        swapped = verb(replace(SAMPLING, **{own: "global", other: "text_channel"}))
        assert same(by_kind[0], swapped)
        assert not same(*by_kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a9_the_stored_sde_step_is_the_one_that_was_scored(dtype):
    """In float32 even where the model computes in bfloat16: scored again from what is stored, it scores the same."""
    bagel = build(TINY).to(dtype)
    sampling = replace(SAMPLING, text_guidance=1.0, sde_indices=(1,))
    (drawing,) = bagel.draw(["a red cat"], [None], sampling, [1], sde_seeds=[2])
    sde_steps = drawing.sde_steps
    assert {array.dtype for array in (sde_steps.before, sde_steps.after, sde_steps.logprob)} == {np.dtype(np.float32)}
    assert not np.array_equal(sde_steps.after, torch.from_numpy(sde_steps.after).bfloat16().float().numpy())
    assert np.allclose(score(bagel, "a red cat", sde_steps, 0, sampling), sde_steps.logprob[0], atol=1e-5)


def score(bagel: Bagel, prompt: str, sde_steps, index: int, sampling) -> float:
    """Log-probability of a stored SDE step of an unguided drawing, from the prompt and what is stored alone."""
    before, after = torch.from_numpy(sde_steps.before[index : index + 1]), torch.from_numpy(sde_steps.after[[index]])
    v = velocity(bagel, prompt, before, float(sde_steps.time[index]))
    time, dt = float(sde_steps.time[index]), float(sde_steps.dt[index])
    mean, std = flow.sde_mean_std(before, v, time, dt, sampling.eta_draw, sampling.eta_mode)
    return float(flow.step_logprob(after, mean, std))


@torch.no_grad()
def velocity(bagel: Bagel, prompt: str, x: torch.Tensor, time: float) -> torch.Tensor:
    context = bagel.empty_cache(1)
    bagel.extend(context, [[bagel.text_block(prompt)]])
    return bagel.velocity(context, x, time, GRID)


def test_a10_guidance_is_off_at_the_lower_end_of_its_interval(bagel):
    times = flow.times(SAMPLING.draw_points, SAMPLING.time_shift)
    low, hair = float(times[2]), 1e-4

    def drawn(start):
        return bagel.draw(["a red cat"], [None], replace(SAMPLING, guidance_interval=(start, 1.0)), [1])[0].image

    assert np.array_equal(drawn(low), drawn(low + hair))
    assert not np.array_equal(drawn(low), drawn(low - hair))


def test_a11_sde_steps_with_a_gap_between_them_are_transitions_of_their_own(bagel):
    sampling = replace(SAMPLING, text_guidance=1.0, sde_indices=(0, 2))
    (drawing,) = bagel.draw(["a red cat"], [None], sampling, [1], sde_seeds=[2])
    sde_steps = drawing.sde_steps
    assert sde_steps.index.tolist() == [0, 2]
    for index in range(2):
        assert np.allclose(score(bagel, "a red cat", sde_steps, index, sampling), sde_steps.logprob[index], atol=1e-5)
    # Between the two lies one plain step.
    times = flow.times(sampling.draw_points, sampling.time_shift)
    x = torch.from_numpy(sde_steps.after[:1])
    between = flow.ode_step(x, velocity(bagel, "a red cat", x, float(times[1])), float(times[1] - times[2]))
    assert torch.allclose(between[0], torch.from_numpy(sde_steps.before[1]), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 4), (4, 2)])
def test_a12_every_branch_has_the_same_height_and_width(bagel, grid):
    """Drop branches that have read what cond has read change nothing; with sides swapped they would."""
    cond = bagel.empty_cache(1)
    bagel.extend(cond, [[Text([9, 10]), Latent(torch.randn(8, TINY.latent_dim), grid)]])
    x = torch.randn(1, 8, TINY.latent_dim, generator=torch.Generator().manual_seed(3))
    alone, _ = sample_flow(bagel, Branches(cond), grid, x, 4, "global", 0.0, SAMPLING)
    guided, _ = sample_flow(bagel, Branches(cond, cond.copy(), cond.copy()), grid, x, 4, "global", 0.0, SAMPLING)
    torch.testing.assert_close(guided, alone, atol=1e-4, rtol=1e-4)


def test_a12_b3_images_of_different_shapes_are_edited_as_if_alone(bagel):
    """Forbids sides taken from another image, and the zero-padded batch of the autoencoder."""
    images, words, seeds = [picture(0), picture(1, 48, 32), picture(2)], ["add a cat", "paint", "remove"], [4, 5, 6]
    together = bagel.edit(images, words, SAMPLING, seeds)
    for image, instruction, seed, drawing in zip(images, words, seeds, together, strict=True):
        (alone,) = bagel.edit([image], [instruction], SAMPLING, [seed])
        assert same(alone.image, drawing.image)


def test_b2_a_picture_has_one_latent(bagel):
    first, second = (bagel.latent_block(picture(0)).tokens for _ in range(2))
    assert torch.equal(first, second)


def test_b4_global_renorm_is_over_one_sample(bagel):
    sampling = replace(SAMPLING, draw_renorm="global", edit_renorm="global")
    drawn = bagel.draw(PROMPTS, [None, None], sampling, [1, 2])
    edited = bagel.edit([picture(0), picture(1)], PROMPTS, sampling, [1, 2])
    for row, prompt in enumerate(PROMPTS):
        assert same(bagel.draw([prompt], [None], sampling, [row + 1])[0].image, drawn[row].image)
        assert same(bagel.edit([picture(row)], [prompt], sampling, [row + 1])[0].image, edited[row].image)


def test_b7_points_are_one_more_than_steps(bagel):
    calls: list[tuple[int, int]] = []
    bagel.draw(["a red cat"], [None], SAMPLING, [1], on_step=lambda done, of: calls.append((done, of)))
    assert calls == [(step, SAMPLING.draw_points - 1) for step in range(1, SAMPLING.draw_points)]


def test_b8_what_was_said_is_read_back_token_for_token(bagel):
    """Marks among the drawn tokens cut nothing off, and no text is tokenized again."""
    ids = np.array([bagel.special.bos, 40, bagel.special.start_of_image, 41, bagel.special.eos])
    blank = np.zeros(len(ids), np.float32)
    drawn = [
        bagel.draw(["a red cat"], [Completion(text, tokens, blank)], SAMPLING, [1])[0].image
        for text, tokens in (("", ids), ("a blue dog", ids), ("", ids[[1, 3, 4]]))
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_b8_every_row_ends_by_itself(bagel):
    """Longer limits only lengthen rows that had not ended."""
    sampling = replace(SAMPLING, temperature=1.0)
    loud = build(TINY)
    eos = loud.special.eos
    with torch.no_grad():  # make the end likely, more so after some tokens than after others
        loud.language_model.lm_head.weight[eos] *= 6
    prompts, seeds = [f"{number} cats" for number in ("one", "two", "three", "four", "five", "six")], list(range(6))
    short = loud.plan(prompts, replace(sampling, max_plan=4), seeds)
    long = loud.plan(prompts, replace(sampling, max_plan=12), seeds)
    assert len({len(said.tokens) for said in long}) > 1
    for few, many in zip(short, long, strict=True):
        assert many.tokens[: len(few.tokens)].tolist() == few.tokens.tolist()
        assert len(few.tokens) == len(few.logprobs) and len(many.tokens) == len(many.logprobs)
        assert eos not in many.tokens[:-1]
        assert len(few.tokens) == 4 or few.tokens[-1] == eos
