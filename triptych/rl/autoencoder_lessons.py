"""The first lesson: pictures to latents and back. Trains the autoencoder on endless scenes, then measures its scale.

The loss is the squared error of the pixels plus its square root's cousin, the absolute error (sharper edges), plus a
small KL to a standard normal, so that the latents are smooth enough to be painted by a flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from triptych.data.layout import CELLS, FREE_LAYOUT, SIZES, Layout, scatter
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker, random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.config import AutoencoderConfig
from triptych.model.vae import Autoencoder
from triptych.rl.course import Course, Studied, adamw, study


@dataclass(frozen=True)
class AutoencoderLessons(Course):
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


def study_autoencoder(
    config: AutoencoderConfig, lessons: AutoencoderLessons, seed: int, device: torch.device, folder: Path, every: int
) -> Iterator[Studied]:
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

    yield from study(model, adamw(model, lessons.rate), lessons, lesson, folder, every)


@torch.no_grad()
def measured(config: AutoencoderConfig, weights: dict[str, Tensor], scenes: Sequence[Scene]) -> AutoencoderConfig:
    """The config with the scale and shift that make latents of these scenes have mean 0 and deviation 1."""
    plain = replace(config, scale_factor=1.0, shift_factor=0.0)
    model = Autoencoder(plain)
    model.load_state_dict(weights)
    latent = torch.cat([model.encode(to_unit(render(scenes[i : i + 32]))) for i in range(0, len(scenes), 32)])
    return replace(config, scale_factor=float(1 / latent.std()), shift_factor=float(latent.mean()))
