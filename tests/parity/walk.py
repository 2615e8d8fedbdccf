"""What several cases share: the tiny model with its toy words, its pictures, and a drawing that shows its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from triptych.model import flow, weights
from triptych.model.bagel import Bagel
from triptych.model.config import Renorm, Resize, Sampling
from triptych.model.images import normalize
from triptych.model.kv_cache import KVCache
from triptych.model.packing import Block, Latent, View
from triptych.model.sampler import Branches, combine
from triptych.model.vae import patchify


def tiny(folder: Path, words: Mapping[str, int] | None = None) -> Bagel:
    """The tiny model in float32; words read "w7" as id 7, and `words` as theirs."""
    loaded = weights.load(folder / "tiny_ckpt", dtype=torch.float32)
    tokenizer = toy_tokenizer(loaded.config.language.vocab_size, words or {})
    bagel = Bagel(loaded.config, tokenizer, loaded.special)
    bagel.load_state_dict(loaded.state_dict())
    return bagel.eval()


def toy_tokenizer(vocabulary: int, words: Mapping[str, int]) -> Tokenizer:
    """Words between spaces: "w7" is id 7; the given words have the given ids."""
    names = {number: f"w{number}" for number in range(vocabulary)} | {number: word for word, number in words.items()}
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in names.items()}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def say(ids: Sequence[int], words: Mapping[str, int] | None = None) -> str:
    """The toy tokenizer's text of ids."""
    names = {number: word for word, number in (words or {}).items()}
    return " ".join(names.get(number, f"w{number}") for number in ids)


def rule(values: Sequence[int]) -> Resize:
    """A transform of the kit: longest side, shortest side, stride, and sometimes the most pixels."""
    return Resize(*values)


def with_rules(bagel: Bagel, vae: Sequence[int], vit: Sequence[int]) -> Bagel:
    """The model with other resize rules."""
    bagel.config = replace(bagel.config, vae_resize=rule(vae), vit_resize=rule(vit))
    return bagel


def view(bagel: Bagel, image: np.ndarray) -> View:
    """A picture that already has its size, for understanding."""
    side = bagel.config.vision.patch_size
    return View(patchify(normalize(image)[None], side)[0], (image.shape[0] // side, image.shape[1] // side))


def token_grid(bagel: Bagel, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of latent tokens of a picture."""
    return height // bagel.config.latent_downsample, width // bagel.config.latent_downsample


@dataclass(frozen=True)
class Walk:
    """A drawing, step by step: velocities after guidance, raw branch velocities of the first guided step, states."""

    velocities: list[Tensor]
    raw: list[Tensor]
    states: list[Tensor]  # before the first step, then after each
    times: Tensor
    scores: dict[int, Tensor]  # per SDE step: log-probability of each token, [batch patch]


def walk(
    bagel: Bagel,
    branches: Branches,
    grid: tuple[int, int],
    noise: Tensor,
    points: int,
    sampling: Sampling,
    renorm: Renorm,
    eta: float = 0.0,
    stochastic: Mapping[int, Tensor] | None = None,
) -> Walk:
    """The steps of `sample_flow`, with the velocities kept; `stochastic` holds the noise of SDE steps, by index."""
    times = flow.times(points, sampling.time_shift)
    x, velocities, raw, states, scores = noise, [], [], [noise], {}
    with torch.no_grad():
        for index in range(points - 1):
            time, dt = float(times[index]), float(times[index] - times[index + 1])
            parts = [bagel.velocity(branches.cond, x, time, grid)]
            if flow.guided(time, sampling.guidance_interval):
                parts = [bagel.velocity(branch, x, time, grid) for branch in branches.active()]
                raw = raw or parts
                velocities.append(combine(torch.cat(parts), branches, renorm, sampling))
            else:
                velocities.append(parts[0])
            if stochastic is not None and index in stochastic:
                mean, std = flow.sde_mean_std(x, velocities[-1], time, dt, eta, sampling.eta_mode)
                x = mean + std * stochastic[index].view_as(x)
                scores[index] = flow.step_logprob(x.flatten(0, 1), mean.flatten(0, 1), std.reshape(1, 1)).view(
                    x.shape[:2]
                )
            else:
                x = flow.ode_step(x, velocities[-1], dt)
            states.append(x)
    return Walk(velocities, raw, states, times, scores)


def read(bagel: Bagel, rows: Sequence[Sequence[Block]]) -> KVCache:
    """A context that has read each row's blocks, block after block as at inference."""
    context = bagel.empty_cache(len(rows))
    with torch.no_grad():
        for step in range(max(len(row) for row in rows)):
            bagel.extend(context, [row[step : step + 1] for row in rows])
    return context


def clean(bagel: Bagel, images: Sequence[np.ndarray]) -> list[Latent]:
    """Pictures as the model's clean latent blocks, resized by its rules."""
    with torch.no_grad():
        return [bagel.latent_block(image) for image in images]
