"""A last lesson for the autoencoder: its decoder alone, on latents that stay as they are.

A model that paints latents is tied to the encoder it learnt from, but not to the decoder. So the decoder may go on
learning at any time: on scenes of the world as lessons lay them out, from latents as noisy as a flow leaves them. The
absolute error weighs more than in the first lesson, since blurred edges are what is left to mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from triptych.data.layout import DEFAULT_LAYOUT
from triptych.data.render import render
from triptych.data.scene import Scene, random_spec
from triptych.data.stickers import COLORS
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
    few: float = 0.0  # share of scenes that are half white or of one colour, which other scenes hardly ever are


def scenes_for_edges(first: int, batch: int, few: float = 0.0) -> list[Scene]:
    """Ordinary scenes, and every third time a crowd in the middle of its cells; a share of them is `few_colors`."""
    return [_scene_for_edges(seed, few) for seed in range(first, first + batch)]


def _scene_for_edges(seed: int, few: float) -> Scene:
    if Random(f"few colors {seed}").random() < few:
        return few_colors(seed)
    return crowd(seed, DEFAULT_LAYOUT) if seed % 3 == 0 else Scene.sample(random_spec(seed), seed)


def few_colors(seed: int) -> Scene:
    """One to nine stickers in the middle of their cells: half of them white, all of them, or all of another colour."""
    chance = Random(f"colors {seed}")
    stickers = crowd(seed, DEFAULT_LAYOUT).stickers
    chosen = chance.sample(stickers, chance.randint(1, len(stickers)))
    share, color = chance.choice([(0.5, "white"), (1.0, "white"), (1.0, chance.choice(tuple(COLORS)))])
    return Scene(tuple(replace(one, color=color) if chance.random() < share else one for one in chosen))


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
        pixels = to_unit(render(scenes_for_edges(first, lessons.batch, lessons.few), device=str(device)))
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
