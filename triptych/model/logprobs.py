"""Scores: the log-probability, with gradient, of what the sampler drew.

A score repeats exactly what the sampler used: the blocks of that beat (`Bagel.*_blocks`), temperature and filters,
guidance with all its branches and the renorm of that beat, and the stored float32 states. So before an update the ratio
of a score to the recorded log-probability is 1. The sampler reads through a cache, a score reads each row whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triptych.model import flow, sampler
from triptych.model.config import Sampling
from triptych.model.packing import Block, Latent, Tokens
from triptych.trace import Completion, SDESteps

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

NUDGE = 0.01  # relative change of a guidance scale, for the slope of a mean: guidance is near linear in it


@dataclass(frozen=True, eq=False)
class TextSample:
    """A text as it was drawn: the plan of a prompt, or, with an `image`, a reflection on it."""

    prompt: str
    image: np.ndarray | None
    said: Completion


@dataclass(frozen=True, eq=False)
class ImageSample:
    """The strokes of a picture: of a drawing after a `text` and perhaps a plan, or, with an `image`, of its edit."""

    text: str  # the prompt of a drawing, the instruction of an edit
    plan: Completion | None
    image: np.ndarray | None
    strokes: SDESteps


@dataclass(frozen=True, eq=False)
class TextLogprobs:
    """Log-probability and entropy (nats) of every token, 0 where `mask` is False; `mask` covers the end token."""

    logprob: Float[Tensor, "row time"]
    entropy: Float[Tensor, "row time"]
    mask: Bool[Tensor, "row time"]


@dataclass(frozen=True, eq=False)
class SDELogprobs:
    """One painting's stochastic steps: log-probability, and the Gaussian that each was drawn from."""

    logprob: Float[Tensor, "stroke"]
    mean: Float[Tensor, "stroke patch latent"]
    std: Float[Tensor, "stroke 1 1"]
    # By how much `mean` moves per relative change of a guidance scale; 0 where that guidance is off. Without gradient.
    text_slope: Float[Tensor, "stroke patch latent"]
    image_slope: Float[Tensor, "stroke patch latent"]


def text_logprobs(bagel: Bagel, told: Sequence[TextSample], sampling: Sampling) -> TextLogprobs:
    """Score texts that were drawn with `sampling`, in one forward.

    Raises ValueError for plans beside reflections where `sampling` has two temperatures: score them apart.
    """
    plans = [one.image is None for one in told]
    if any(plans):
        if not all(plans) and sampling.planning.temperature != sampling.temperature:
            raise ValueError(
                f"plans at temperature {sampling.planning.temperature} beside reflections at {sampling.temperature}; "
                "expected texts of one temperature: score them apart"
            )
        sampling = sampling.planning
    rows = [[*_read_before(bagel, one), Tokens([bagel.special.bos, *one.said.tokens[:-1].tolist()])] for one in told]
    batch = bagel.pack(rows)
    hidden, _ = bagel(batch)
    lengths = torch.tensor([len(one.said.tokens) for one in told], device=hidden.device)
    steps = torch.arange(int(lengths.max()), device=hidden.device)
    mask = steps < lengths[:, None]
    ends = batch.layout.valid[:, : batch.und].sum(1)
    places = (ends - lengths)[:, None] + steps.clamp(max=lengths[:, None] - 1)
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    for row, one in enumerate(told):
        tokens[row, : len(one.said.tokens)] = torch.from_numpy(one.said.tokens)
    logits = bagel.logits(hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])))
    kept = _kept(told, logits.shape[-1], sampling)
    kept = None if kept is None else kept.to(hidden.device)
    logprob, entropy = sampler.token_logprobs(logits, tokens.to(hidden.device), sampling.temperature, kept)
    return TextLogprobs(logprob.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0), mask)


def sde_logprobs(bagel: Bagel, painted: Sequence[ImageSample], sampling: Sampling) -> list[SDELogprobs]:
    """Score the stochastic steps of paintings that were made with `sampling`, all branches in one forward."""
    rows: list[list[Block]] = []
    places: list[tuple[int, int, int]] = []  # painting, branch, stroke of every noise block, in the order of the rows
    for number, one in enumerate(painted):
        branches, grid = _branches(bagel, one, sampling)
        before = torch.from_numpy(one.strokes.before).to(bagel.device)
        for branch, blocks in enumerate(branches):
            chosen = [
                stroke
                for stroke, time in enumerate(one.strokes.time.tolist())
                if branch == 0 or flow.guided(time, sampling.guidance_interval)
            ]
            if blocks is None or not chosen:
                continue
            noisy = [Latent(before[stroke], grid, float(one.strokes.time[stroke]), loss=True) for stroke in chosen]
            rows.append([*blocks, *noisy])
            places += [(number, branch, stroke) for stroke in chosen]
    batch = bagel.pack(rows)
    _, hidden = bagel(batch)
    velocities = bagel.llm2vae(hidden.flatten(0, 1)[batch.mse_slots]).float()
    parts = velocities.split([painted[number].strokes.before.shape[1] for number, _, _ in places])
    found = dict(zip(places, parts, strict=True))
    return [_scores(number, one, found, sampling) for number, one in enumerate(painted)]


def _read_before(bagel: Bagel, one: TextSample) -> list[Block]:
    return bagel.plan_blocks(one.prompt) if one.image is None else bagel.reflect_blocks(one.prompt, one.image)


def _kept(told: Sequence[TextSample], vocabulary: int, sampling: Sampling) -> Bool[Tensor, "row time vocab"] | None:
    """The tokens that the sampler's filter kept, all of them behind the end of a row; None without a filter."""
    if sampling.temperature == 0 or (sampling.top_p >= 1 and sampling.top_k <= 0):
        return None
    kept = torch.zeros(len(told), max(len(one.said.tokens) for one in told), vocabulary, dtype=torch.bool)
    for row, one in enumerate(told):
        if one.said.kept is None:
            raise ValueError(
                f"{one.said.text!r} has no record of the tokens that top_p={sampling.top_p:g} or "
                f"top_k={sampling.top_k} kept; expected a text that was drawn with this filter (Completion.kept)"
            )
        for step, ids in enumerate(one.said.kept):
            kept[row, step, torch.from_numpy(ids).long()] = True
        kept[row, len(one.said.tokens) :] = True
    return kept


def _branches(bagel: Bagel, one: ImageSample, sampling: Sampling) -> tuple[list[list[Block] | None], tuple[int, int]]:
    """What each branch of guidance has read (None is off), and the rows and columns of the picture's tokens."""
    guided = sampling.text_guidance > 1
    if one.image is None:
        head, tail = bagel.draw_blocks(one.text, one.plan)
        side, (height, width) = bagel.config.latent_downsample, bagel.config.image_size
        return [[*head, *tail], head if guided else None], (height // side, width // side)
    latent, picture, text = bagel.edit_blocks(one.image, one.text)
    drop = text if guided and sampling.image_guidance > 1 else None
    return [[*picture, *text], picture if guided else None, drop], latent.grid


def _scores(
    number: int, one: ImageSample, velocities: dict[tuple[int, int, int], Tensor], sampling: Sampling
) -> SDELogprobs:
    """Guide each stroke's velocities as the sampler did, and score where the stroke went."""
    edited = one.image is not None
    renorm = sampling.edit_renorm if edited else sampling.draw_renorm
    eta = sampling.eta_edit if edited else sampling.eta_draw
    device = velocities[number, 0, 0].device
    before, after, time, dt = (
        torch.from_numpy(part).to(device)
        for part in (one.strokes.before, one.strokes.after, one.strokes.time, one.strokes.dt)
    )

    def mean_std(text: float = 1.0, image: float = 1.0) -> tuple[Tensor, Tensor]:
        """The Gaussian of each step, with guidance scales so many times as strong."""
        scales = text * sampling.text_guidance, image * sampling.image_guidance
        guided: list[Tensor] = []
        for stroke in range(len(one.strokes.time)):
            cond, *drops = (velocities.get((number, branch, stroke)) for branch in range(3))
            assert cond is not None
            text_drop, image_drop = (None if drop is None else drop[None] for drop in drops)
            guided.append(flow.guide(cond[None], text_drop, image_drop, *scales, renorm, sampling.renorm_min))
        return flow.sde_mean_std(before, torch.cat(guided), time, dt, eta, sampling.eta_mode)

    mean, std = mean_std()
    with torch.no_grad():
        slopes = [(mean_std(**{name: 1 + NUDGE})[0] - mean) / NUDGE for name in ("text", "image")]
    return SDELogprobs(flow.step_logprob(after, mean, std), mean, std, *slopes)
