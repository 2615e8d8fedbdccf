"""The VAE stages: pictures to latents and back, and later the decoder alone.

The VAE stage trains encoder and decoder on endless scenes: squared error of the pixels, absolute error for sharper
edges, and a small KL to the standard normal, so that the latents are smooth enough for a flow. The scale and shift that
bring latents to mean 0 and deviation 1 are measured afterwards.

A flow is tied to the encoder that it learned from, but not to the decoder. So the decoder may learn further at any
time, from latents as noisy as a flow leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.bounds import NonNegativeFloat, PositiveInt, Share
from triptych.data.layout import CELLS, DEFAULT_LAYOUT, FREE_LAYOUT, SIZES, Layout, scatter
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.config import AutoencoderConfig
from triptych.model.vae import Autoencoder
from triptych.seeds import START, STRIDE, named_rng
from triptych.sft.optim import FitConfig, Metrics, Part, SFTStage, adamw, copies

ABSOLUTE_WEIGHT = 0.2  # of the absolute error beside the squared one, in the VAE stage
BETAS = (0.9, 0.95)  # a shorter memory of squared gradients than AdamW's .999: stages are short
MEASURED_SCENES = 64  # from which scale and shift of the latents are measured

Pixels = Float[Tensor, "batch 3 height width"]  # in [-1, 1]
Latents = Float[Tensor, "batch channel h w"]


@dataclass(frozen=True)
class VAEConfig(FitConfig):
    """How the autoencoder learns."""

    batch: PositiveInt = 8
    kl: NonNegativeFloat = 1e-3  # weight of the KL per latent number


@dataclass(frozen=True)
class DecoderConfig(FitConfig):
    """How the decoder learns once the encoder is fixed."""

    batch: PositiveInt = 8
    noise: NonNegativeFloat = 0.3  # largest noise on a latent, as a share of the latents' standard deviation
    few_colors: Share = 0.0  # of the scenes are half white or of one color, as other scenes hardly ever are


class SceneBatch(NamedTuple):
    """Scenes of one update, and the seed of the noise that goes with them."""

    scenes: list[Scene]
    seed: int


def scenes_of_step(seed: int, step: int, batch: int) -> list[Scene]:
    """Fresh scenes: scene i of the endless set is a function of (seed, i)."""
    first = seed * STRIDE["samples"] + step * batch
    return [Scene.sample(random_spec(index), index) for index in range(first, first + batch)]


def full_scene(seed: int, layout: Layout = FREE_LAYOUT) -> Scene:
    """A scene with a sticker in every cell: pixels that are worth the work of an autoencoder."""
    rng = Random(seed)
    sizes = rng.choices(tuple(SIZES), weights=(1, 3, 1), k=len(CELLS))
    centers = scatter([(cell, SIZES[size]) for cell, size in enumerate(sizes)], rng, layout)
    return Scene(
        tuple(
            Sticker(rng.choice(CLASSES), rng.choice(tuple(COLORS)), x, y, size)
            for size, (x, y) in zip(sizes, centers, strict=True)
        )
    )


def vae_scenes(first: int, batch: int) -> list[Scene]:
    """Full and ordinary scenes in turn: the group norms must meet empty pictures as well as full ones."""
    # Full scenes alone gave wrong colors in emptier ones, purple as green (LOG.md E6).
    seeds = range(first, first + batch)
    return [full_scene(seed) if seed % 2 else Scene.sample(random_spec(seed), seed) for seed in seeds]


def to_unit(images: UInt8[Tensor, "batch height width 3"]) -> Pixels:
    """Pixels of 0 to 255 to [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_loss(model: Autoencoder, pixels: Pixels, noise: Latents, kl: float) -> tuple[Float[Tensor, ""], Metrics]:
    """The loss of a batch, with PSNR in dB (of a range of 2) and the KL in nats per latent number."""
    mean, logvar = model.moments(pixels)
    sample = mean + torch.exp(0.5 * logvar) * noise  # the reparametrization (arXiv 1312.6114)
    decoded = model.decoder(sample).float()
    squared = (decoded - pixels).square().mean()
    # KL of a diagonal Gaussian to N(0, 1), in closed form.
    divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    loss = squared + ABSOLUTE_WEIGHT * (decoded - pixels).abs().mean() + kl * divergence
    return loss, {"psnr": _psnr(squared), "kl": float(divergence.detach())}


def vae_stage(config: VAEConfig, model_config: AutoencoderConfig, seed: int, device: torch.device) -> SFTStage:
    """A new autoencoder, encoder and decoder."""
    torch.manual_seed(seed)
    model = Autoencoder(model_config).to(device)

    def samples(step: int) -> list[Part]:
        scenes = vae_scenes(seed * STRIDE["samples"] + step * config.batch, config.batch)
        return [(SceneBatch(scenes, seed * STRIDE["noise"] + step), 1.0)]

    def loss(batch: SceneBatch) -> tuple[Tensor, Metrics]:
        pixels = to_unit(render(batch.scenes, device=device))
        height, width = (side // model_config.downsample for side in pixels.shape[2:])
        generator = torch.Generator().manual_seed(batch.seed)  # on the CPU: the same noise on every device
        noise = torch.randn((len(pixels), model_config.z_channels, height, width), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return vae_loss(model, pixels, noise, config.kl)

    tensors = dict(model.named_parameters())
    optimizers = adamw(tensors.values(), config, BETAS)
    return SFTStage("vae", config, tensors, copies(tensors), optimizers, samples, loss)


@torch.no_grad()
def measure_latents(
    config: AutoencoderConfig, weights: Mapping[str, Tensor], scenes: Sequence[Scene]
) -> AutoencoderConfig:
    """The config with the scale and shift that bring latents of these scenes to mean 0 and deviation 1."""
    model = Autoencoder(replace(config, scale_factor=1.0, shift_factor=0.0))
    model.load_state_dict(weights)
    # 32 pictures at a time bound the memory.
    latents = torch.cat([model.encode(to_unit(render(scenes[i : i + 32]))) for i in range(0, len(scenes), 32)])
    return replace(config, scale_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))


def decoder_scenes(first: int, batch: int, few: float = 0.0) -> list[Scene]:
    """Ordinary scenes, and every third time a full one in the middle of its cells; a share `few` are `few_colors`."""
    return [_decoder_scene(seed, few) for seed in range(first, first + batch)]


def _decoder_scene(seed: int, few: float) -> Scene:
    if named_rng("few colors", seed).random() < few:
        return few_colors(seed)
    return full_scene(seed, DEFAULT_LAYOUT) if seed % 3 == 0 else Scene.sample(random_spec(seed), seed)


def few_colors(seed: int) -> Scene:
    """One to nine stickers in the middle of their cells: half of them white, all of them, or all of another color."""
    rng = named_rng("colors", seed)
    stickers = full_scene(seed, DEFAULT_LAYOUT).stickers
    chosen = rng.sample(stickers, rng.randint(1, len(stickers)))
    share, color = rng.choice([(0.5, "white"), (1.0, "white"), (1.0, rng.choice(tuple(COLORS)))])
    return Scene(tuple(replace(one, color=color) if rng.random() < share else one for one in chosen))


def decoder_stage(name: str, config: DecoderConfig, model: Autoencoder, seed: int) -> SFTStage:
    """The decoder of `model` alone; the encoder is never touched, so a flow that learned from it stays true."""
    device = next(model.parameters()).device
    tensors = dict(model.decoder.requires_grad_(True).named_parameters())

    def samples(step: int) -> list[Part]:
        first = START["decoder"] + seed * STRIDE["samples"] + step * config.batch
        return [(SceneBatch(decoder_scenes(first, config.batch, config.few_colors), first), 1.0)]

    def loss(batch: SceneBatch) -> tuple[Tensor, Metrics]:
        pixels = to_unit(render(batch.scenes, device=device))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = add_noise(model.moments(pixels)[0].float(), batch.seed, config.noise)
            decoded = model.decoder(latents).float()
            # Both errors weigh alike, unlike in the VAE stage: blurred edges are what is left to learn.
            squared, absolute = (decoded - pixels).square().mean(), (decoded - pixels).abs().mean()
        return squared + absolute, {"psnr": _psnr(squared)}

    optimizers = adamw(tensors.values(), config, BETAS)
    return SFTStage(name, config, tensors, copies(tensors), optimizers, samples, loss)


def add_noise(latents: Latents, seed: int, largest: float) -> Latents:
    """Latents with noise, its strength drawn for each picture from 0 to `largest` of the latents' deviation."""
    generator, rng = torch.Generator().manual_seed(seed), Random(seed)
    strength = torch.tensor([rng.uniform(0, largest) for _ in range(len(latents))]).view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator) * strength
    return latents + latents.std() * noise.to(latents)


def _psnr(squared: Float[Tensor, ""]) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; the peak is 2, the width of [-1, 1]."""
    return float(10 * torch.log10(4 / squared.detach()))
