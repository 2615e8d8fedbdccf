"""The second lesson: to see. The vision tower learns to name what stands in each patch, before it is joined to words.

This is what SigLIP's pretraining does for BAGEL: a tower that already tells things apart. Heads for class, colour and
size are read off every patch that holds the centre of a sticker (`nothing` elsewhere) and are thrown away afterwards.
The judge's network has no part in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, Sticker
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.config import VisionConfig
from triptych.model.sequence import grid_ids
from triptych.model.vae import patchify
from triptych.model.vision import VisionTower
from triptych.rl.autoencoder_lessons import scenes_of_step, to_unit
from triptych.rl.course import Course, Studied, study
from triptych.rl.optimizers import optimizers

NOTHING = 0.05  # weight of an empty patch beside one with a sticker
NAMES, HUES, SIDES = list(CLASSES), list(COLORS), list(SIZES)


@dataclass(frozen=True)
class EyesLessons(Course):
    """How the vision tower is taught to see."""

    steps: int = 1100
    batch: int = 96
    rate: float = 1e-3  # of embeddings, heads, norms, biases
    warmup: int = 100
    cooldown: float = 0.6
    average: float = 0.99
    matrix_rate: float = 0.02  # Muon: the matrices of the layers
    strewn: float = 0.4  # share of scenes whose stickers lie anywhere
    frozen: bool = True  # from here on: lessons in words, few of which turn on a class, would wash out what is named


class Naming(nn.Module):
    """A vision tower with three linear heads on every patch: class or nothing, colour, size."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.tower = VisionTower(config)
        self.heads = nn.ModuleList(
            nn.Linear(config.hidden_size, size) for size in (len(NAMES) + 1, len(HUES), len(SIDES))
        )

    def forward(self, tokens: Tensor, ids: Tensor) -> list[Tensor]:
        hidden = self.tower(tokens, ids)
        return [head(hidden).float() for head in self.heads]


def strewn(scene: Scene, seed: int) -> Scene:
    """The same stickers anywhere on the canvas, none on top of another's centre."""
    chance = random.Random(seed)
    placed: list[Sticker] = []
    for sticker in scene.stickers:
        side = SIZES[sticker.size] / 2
        for _ in range(20):
            x, y = chance.uniform(side, CANVAS - side), chance.uniform(side, CANVAS - side)
            if all(max(abs(x - other.x), abs(y - other.y)) >= 0.9 * (side + SIZES[other.size] / 2) for other in placed):
                placed.append(Sticker(sticker.name, sticker.color, x, y, sticker.size))
                break
    return Scene(tuple(placed))


def targets(scenes: Sequence[Scene], side: int) -> Tensor:
    """Class, colour, size `[3 batch patch]` of the sticker centred in each patch; class 0 is nothing, -1 no target."""
    columns = CANVAS // side
    found = np.full((3, len(scenes), columns * columns), -1, np.int64)
    found[0] = 0
    for row, scene in enumerate(scenes):
        for sticker in scene.stickers:
            place = min(int(sticker.y // side), columns - 1) * columns + min(int(sticker.x // side), columns - 1)
            found[:, row, place] = NAMES.index(sticker.name) + 1, HUES.index(sticker.color), SIDES.index(sticker.size)
    return torch.from_numpy(found)


def worn(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels in [-1, 1] a little blurred and noisy, as a decoded latent is; half of the pictures stay clean."""
    batch = pixels.shape[0]
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = (torch.rand(batch, 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0).to(pixels.device)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels + amount * (blurred - pixels) + 0.15 * amount * noise).clamp(-1, 1)


def naming_loss(outputs: Sequence[Tensor], wanted: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropies added up; the metric is the share of stickers whose class, colour and size are all right."""
    rare = torch.ones(len(NAMES) + 1, device=outputs[0].device)
    rare[0] = NOTHING  # else "nothing everywhere" is where learning rests for a long time
    loss = F.cross_entropy(outputs[0].flatten(0, 1), wanted[0].flatten(), rare)
    for out, want in zip(outputs[1:], wanted[1:], strict=True):
        loss = loss + F.cross_entropy(out.flatten(0, 1), want.flatten(), ignore_index=-1)
    right = torch.stack([out.argmax(-1) == want for out, want in zip(outputs, wanted, strict=True)]).all(0)
    there = wanted[0] > 0
    return loss, {
        "named": float(right[there].float().mean()),
        "empty": float((outputs[0].argmax(-1) == 0)[~there].float().mean()),
    }


def study_eyes(
    config: VisionConfig, lessons: EyesLessons, seed: int, device: torch.device, folder: Path, every: int
) -> Iterator[Studied]:
    """Train from the newest checkpoint in `folder`, yielding a step at a time."""
    torch.manual_seed(seed)
    model = Naming(config).to(device)
    columns = CANVAS // config.patch_size
    ids = torch.from_numpy(grid_ids((columns, columns), config.patches_per_side)).to(device).expand(lessons.batch, -1)

    def lesson(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        scenes = scenes_of_step(seed + 1, step, lessons.batch)
        loose = int(lessons.batch * lessons.strewn)
        scenes[:loose] = [strewn(scene, step * lessons.batch + row) for row, scene in enumerate(scenes[:loose])]
        tokens = patchify(worn(to_unit(render(scenes, device=str(device))), generator), config.patch_size)
        with torch.autocast(device.type, torch.bfloat16):
            return naming_loss(model(tokens, ids), targets(scenes, config.patch_size).to(device))

    schools = optimizers(dict(model.named_parameters()), lessons.matrix_rate, lessons.rate)
    yield from study(model, schools, lessons, lesson, folder, every)
