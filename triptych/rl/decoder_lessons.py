"""A last lesson for the autoencoder: its decoder alone, on latents that stay as they are.

A model that paints latents is tied to the encoder it learnt from, but not to the decoder. So the decoder may go on
learning at any time: on scenes of the world as lessons lay them out, from latents as noisy as a flow leaves them. The
absolute error weighs more than in the first lesson, since blurred edges are what is left to mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from triptych.data.layout import DEFAULT_LAYOUT
from triptych.data.render import render
from triptych.data.scene import Scene, random_spec
from triptych.model.vae import Autoencoder
from triptych.rl.autoencoder_lessons import crowd, to_unit
from triptych.rl.course import Course, Studied, adamw, study

FIRST = 3_000_000_000  # seeds of these scenes begin here, far from those of other lessons


@dataclass(frozen=True)
class DecoderLessons(Course):
    """How the decoder is taught once the encoder is fixed."""

    steps: int = 2400
    batch: int = 8
    rate: float = 6e-4
    warmup: int = 30
    cooldown: float = 0.6
    average: float = 0.99
    noise: float = 0.3  # most noise on a latent, as a share of the latents' spread


def scenes_for_edges(first: int, batch: int) -> list[Scene]:
    """Ordinary scenes, and every third time a crowd in the middle of its cells."""
    return [
        crowd(seed, DEFAULT_LAYOUT) if seed % 3 == 0 else Scene.sample(random_spec(seed), seed)
        for seed in range(first, first + batch)
    ]


def study_decoder(
    model: Autoencoder, lessons: DecoderLessons, seed: int, folder: Path, every: int
) -> Iterator[Studied]:
    """Train the decoder of `model` from the newest checkpoint in `folder`, yielding a step at a time.

    At the end `model` holds the averaged decoder; its encoder is never touched.
    """
    device = next(model.parameters()).device
    decoder = model.decoder.requires_grad_(True)

    def lesson(step: int) -> tuple[Tensor, dict[str, float]]:
        first = FIRST + seed * 1_000_003 + step * lessons.batch
        pixels = to_unit(render(scenes_for_edges(first, lessons.batch), device=str(device)))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latent = _worn(model.moments(pixels)[0].float(), first, lessons.noise)
            decoded = decoder(latent).float()
            square, gap = (decoded - pixels).square().mean(), (decoded - pixels).abs().mean()
        return square + gap, {"psnr": float(10 * torch.log10(4 / square.detach()))}

    average = yield from study(decoder, adamw(decoder, lessons.rate), lessons, lesson, folder, every)
    decoder.load_state_dict(average)
    decoder.requires_grad_(False)


def _worn(latent: Tensor, seed: int, most: float) -> Tensor:
    """Latents with noise of a strength of its own for each picture, up to `most` of their spread."""
    generator, chance = torch.Generator().manual_seed(seed), Random(seed)
    strength = torch.tensor([chance.uniform(0, most) for _ in range(len(latent))]).view(-1, 1, 1, 1)
    noise = torch.randn(latent.shape, generator=generator) * strength
    return latent + latent.std() * noise.to(latent)
