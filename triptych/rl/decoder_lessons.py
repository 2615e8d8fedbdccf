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
from triptych.rl import checkpoint
from triptych.rl.autoencoder_lessons import blend, crowd, keep_at, rate_at, to_unit

FIRST = 3_000_000_000  # seeds of these scenes begin here, far from those of other lessons


@dataclass(frozen=True)
class DecoderLessons:
    """How the decoder is taught once the encoder is fixed."""

    steps: int = 600
    batch: int = 8
    rate: float = 6e-4
    warmup: int = 30
    cooldown: float = 0.6  # share of the steps over which the rate falls to 0
    noise: float = 0.15  # most noise on a latent, as a share of the latents' spread
    average: float = 0.99  # of the weights that are kept


def scenes_for_edges(first: int, batch: int) -> list[Scene]:
    """Ordinary scenes, and every third time a crowd in the middle of its cells."""
    return [
        crowd(seed, DEFAULT_LAYOUT) if seed % 3 == 0 else Scene.sample(random_spec(seed), seed)
        for seed in range(first, first + batch)
    ]


def study_decoder(
    model: Autoencoder, lessons: DecoderLessons, seed: int, folder: Path, every: int
) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Train the decoder of `model` from the newest checkpoint in `folder`, yielding (step, loss, metrics).

    At the end `model` holds the averaged decoder; its encoder is never touched.
    """
    device = next(model.parameters()).device
    decoder = model.decoder.requires_grad_(True)
    average = {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lessons.rate, betas=(0.9, 0.95), weight_decay=0.0)
    start = 0
    if (found := checkpoint.latest(folder, device)) is not None:
        tensors, record = found
        start = record["step"]
        average = checkpoint.unpack_course(tensors, decoder, {"adamw": optimizer})
    for step in range(start, lessons.steps):
        optimizer.param_groups[0]["lr"] = lessons.rate * rate_at(step, lessons.steps, lessons.warmup, lessons.cooldown)
        first = FIRST + seed * 1_000_003 + step * lessons.batch
        pixels = to_unit(render(scenes_for_edges(first, lessons.batch), device=str(device)))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latent = _worn(model.moments(pixels)[0].float(), first, lessons.noise)
            decoded = decoder(latent).float()
            square, gap = (decoded - pixels).square().mean(), (decoded - pixels).abs().mean()
            loss = square + gap
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        blend(average, decoder, keep_at(step, lessons.average))
        if (step + 1) % every == 0 or step + 1 == lessons.steps:
            checkpoint.save(folder, step + 1, checkpoint.pack_course(decoder, average, {"adamw": optimizer}), {})
        yield step, float(loss.detach()), {"psnr": float(10 * torch.log10(4 / square.detach()))}
    decoder.load_state_dict(average)
    decoder.requires_grad_(False)


def _worn(latent: Tensor, seed: int, most: float) -> Tensor:
    """Latents with noise of a strength of its own for each picture, up to `most` of their spread."""
    generator, chance = torch.Generator().manual_seed(seed), Random(seed)
    strength = torch.tensor([chance.uniform(0, most) for _ in range(len(latent))]).view(-1, 1, 1, 1)
    noise = torch.randn(latent.shape, generator=generator) * strength
    return latent + latent.std() * noise.to(latent)
