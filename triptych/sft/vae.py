"""The first lesson: pictures to latents and back. Trains the autoencoder on endless scenes, then measures its scale.

The loss is the squared error of the pixels plus its square root's cousin, the absolute error (sharper edges), plus a
small KL to a standard normal, so that the latents are smooth enough to be painted by a flow.

A last lesson for the autoencoder: its decoder alone, on latents that stay as they are.

A model that paints latents is tied to the encoder it learnt from, but not to the decoder. So the decoder may go on
learning at any time: on scenes of the world as lessons lay them out, from latents as noisy as a flow leaves them. The
absolute error weighs more than in the first lesson, since blurred edges are what is left to mend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from triptych.data.layout import CELLS, DEFAULT_LAYOUT, FREE_LAYOUT, SIZES, Layout, scatter
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.config import AutoencoderConfig
from triptych.model.vae import Autoencoder
from triptych.sft.optim import FitStep, StageFit, adamw, fit


@dataclass(frozen=True)
class AutoencoderStage(StageFit):
    """How the autoencoder is taught."""

    steps: int = 1000
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 50
    cooldown: float = 0.5
    average: float = 0.99
    kl: float = 1e-3  # weight of the KL per latent number


def scenes_of_step(seed: int, step: int, batch: int) -> list[Scene]:
    """Fresh scenes: scene i of the endless set is a function of (seed, i)."""
    first = seed * 1_000_003 + step * batch
    return [Scene.sample(random_spec(first + row), first + row) for row in range(batch)]


def crowd(seed: int, layout: Layout = FREE_LAYOUT) -> Scene:
    """A scene with a sticker in every cell: pixels that are worth the work of an autoencoder."""
    rng = Random(seed)
    sizes = rng.choices(tuple(SIZES), weights=(1, 3, 1), k=len(CELLS))
    centres = scatter([(cell, SIZES[size]) for cell, size in enumerate(sizes)], rng, layout)
    return Scene(
        tuple(
            Sticker(rng.choice(CLASSES), rng.choice(tuple(COLORS)), x, y, size)
            for size, (x, y) in zip(sizes, centres, strict=True)
        )
    )


def scenes_for_pixels(first: int, batch: int) -> list[Scene]:
    """Crowds and ordinary scenes in turn: the group norms must meet empty pictures as well as full ones."""
    seeds = range(first, first + batch)
    return [crowd(seed) if seed % 2 else Scene.sample(random_spec(seed), seed) for seed in seeds]


def to_unit(images: Tensor) -> Tensor:
    """Pixels `[batch height width 3] uint8` to `[batch 3 height width]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def autoencoder_loss(model: Autoencoder, pixels: Tensor, noise: Tensor, kl: float) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch of pixels in [-1, 1], with PSNR in dB (of a range of 2) and nats per latent number."""
    mean, logvar = model.moments(pixels)
    sample = mean + torch.exp(0.5 * logvar) * noise
    decoded = model.decoder(sample).float()
    square = (decoded - pixels).square().mean()
    divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    loss = square + 0.2 * (decoded - pixels).abs().mean() + kl * divergence
    return loss, {"psnr": float(10 * torch.log10(4 / square.detach())), "kl": float(divergence.detach())}


def train_autoencoder(
    config: AutoencoderConfig, lessons: AutoencoderStage, seed: int, device: torch.device, folder: Path, every: int
) -> Iterator[FitStep]:
    """Train from the newest checkpoint in `folder`, yielding a step at a time."""
    torch.manual_seed(seed)
    model, side = Autoencoder(config).to(device), 2 ** (len(config.ch_mult) - 1)

    def lesson(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        first = seed * 1_000_003 + step * lessons.batch
        pixels = to_unit(render(scenes_for_pixels(first, lessons.batch), device=str(device)))
        shape = (lessons.batch, config.z_channels, pixels.shape[2] // side, pixels.shape[3] // side)
        noise = torch.randn(shape, generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return autoencoder_loss(model, pixels, noise, lessons.kl)

    yield from fit(model, adamw(model, lessons.rate), lessons, lesson, folder, every)


@torch.no_grad()
def measured(config: AutoencoderConfig, weights: dict[str, Tensor], scenes: Sequence[Scene]) -> AutoencoderConfig:
    """The config with the scale and shift that make latents of these scenes have mean 0 and deviation 1."""
    plain = replace(config, scale_factor=1.0, shift_factor=0.0)
    model = Autoencoder(plain)
    model.load_state_dict(weights)
    latent = torch.cat([model.encode(to_unit(render(scenes[i : i + 32]))) for i in range(0, len(scenes), 32)])
    return replace(config, scale_factor=float(1 / latent.std()), shift_factor=float(latent.mean()))


FIRST = 3_000_000_000  # seeds of these scenes begin here, far from those of other lessons


@dataclass(frozen=True)
class DecoderStage(StageFit):
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


def train_decoder(model: Autoencoder, lessons: DecoderStage, seed: int, folder: Path, every: int) -> Iterator[FitStep]:
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

    average = yield from fit(decoder, adamw(decoder, lessons.rate), lessons, lesson, folder, every)
    decoder.load_state_dict(average)
    decoder.requires_grad_(False)


def _worn(latent: Tensor, seed: int, most: float) -> Tensor:
    """Latents with noise of a strength of its own for each picture, up to `most` of their spread."""
    generator, chance = torch.Generator().manual_seed(seed), Random(seed)
    strength = torch.tensor([chance.uniform(0, most) for _ in range(len(latent))]).view(-1, 1, 1, 1)
    noise = torch.randn(latent.shape, generator=generator) * strength
    return latent + latent.std() * noise.to(latent)
