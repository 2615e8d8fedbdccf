"""The second lesson: to see. The vision tower learns to name what stands in each patch, before it is joined to words.

This is what SigLIP's pretraining does for BAGEL: a tower that already tells things apart. Heads for class, colour and
size are read off every patch that holds the centre of a sticker (`nothing` elsewhere) and are thrown away afterwards.
The judge's network has no part in it.

The lesson between seeing and speaking: the connector learns to say in the model's own words what a patch shows.

Its output at a patch is drawn towards the embeddings of the class and the colour of the sticker that covers the patch,
and of "nothing" where none does. A language model that can copy a word from a prompt can then copy it from a picture;
without this, SKETCH read colours off a picture within a few hundred updates and classes not in three thousand.
Tower and embeddings stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data.layout import DEFAULT_LAYOUT
from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, Sticker
from triptych.data.sft_samples import assorted
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.bagel import Bagel
from triptych.model.config import VisionConfig
from triptych.model.packing import grid_ids
from triptych.model.vae import patchify
from triptych.model.vision import VisionTower
from triptych.sft.optim import FitStep, StageFit, adamw, fit, optimizers
from triptych.sft.vae import scenes_of_step, to_unit

NOTHING = 0.05  # weight of an empty patch beside one with a sticker
NAMES, HUES, SIDES = list(CLASSES), list(COLORS), list(SIZES)


@dataclass(frozen=True)
class VisionStage(StageFit):
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


def train_vision(
    config: VisionConfig, lessons: VisionStage, seed: int, device: torch.device, folder: Path, every: int
) -> Iterator[FitStep]:
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
    yield from fit(model, schools, lessons, lesson, folder, every)


FIRST = 4_000_000_000  # seeds of these scenes begin here, far from those of other lessons
SHARPNESS = 16.0  # logit of a patch that points exactly at a word
COVERED = 0.2  # least share of a patch that a sticker's box must cover to name it


@dataclass(frozen=True)
class ConnectorStage(StageFit):
    """How the connector is taught."""

    steps: int = 500
    batch: int = 96
    rate: float = 2e-3
    warmup: int = 20
    cooldown: float = 0.6
    average: float = 0.98
    clip: float = 0
    strewn: float = 0.2  # share of scenes whose stickers lie anywhere
    unrelated: float = 0.5  # share of scenes of stickers that have nothing to do with one another
    loudness: float = 1.0  # root mean square of what it says; the table of places that is added has 0.7


def scenes_for_words(first: int, lessons: ConnectorStage) -> list[Scene]:
    """Scenes of all kinds: assorted stickers, ordinary ones, and some strewn anywhere."""
    unrelated, loose = int(lessons.batch * lessons.unrelated), int(lessons.batch * lessons.strewn)
    found = [
        assorted(Random(seed), DEFAULT_LAYOUT) if seed < first + unrelated else Scene.sample(random_spec(seed), seed)
        for seed in range(first, first + lessons.batch)
    ]
    return [strewn(scene, first + row) if row < loose else scene for row, scene in enumerate(found)]


def covering(scenes: Sequence[Scene], side: int) -> Tensor:
    """Class and colour `[2 batch patch]` of the sticker that covers most of each patch; class 0 is nothing, -1 none."""
    columns = CANVAS // side
    edges = np.arange(columns) * side
    found = np.full((2, len(scenes), columns, columns), -1, np.int64)
    found[0] = 0
    for row, scene in enumerate(scenes):
        most = np.full((columns, columns), COVERED * side * side)
        for sticker in scene.stickers:
            half = SIZES[sticker.size] / 2
            across = np.clip(np.minimum(edges + side, sticker.x + half) - np.maximum(edges, sticker.x - half), 0, None)
            down = np.clip(np.minimum(edges + side, sticker.y + half) - np.maximum(edges, sticker.y - half), 0, None)
            area = down[:, None] * across
            here = area > most
            most[here] = area[here]
            found[0, row, here] = CLASSES.index(sticker.name) + 1
            found[1, row, here] = list(COLORS).index(sticker.color)
    return torch.from_numpy(found).flatten(2)


def words_loss(said: Tensor, bagel: Bagel, wanted: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropies of the words that patches `said [batch patch hidden]` point at; the metric is the share right."""
    table = bagel.language_model.model.embed_tokens.weight.detach()
    loss, right = torch.zeros((), device=said.device), []
    direction = F.normalize(said.float(), dim=-1)
    for words, want in zip((["nothing", *CLASSES], list(COLORS)), wanted, strict=True):
        ids = [bagel.tokenizer.token_to_id(f" {word}") for word in words]
        rows = table[ids]
        logits = SHARPNESS * direction @ F.normalize(rows - rows.mean(0), dim=-1).T
        weight = torch.tensor([NOTHING if word == "nothing" else 1.0 for word in words], device=said.device)
        loss = loss + F.cross_entropy(logits.flatten(0, 1), want.flatten(), weight, ignore_index=-1)
        right.append(logits.argmax(-1) == want)
    there = wanted[1] >= 0
    return loss, {"said": float((right[0] & right[1])[there].float().mean())}


def train_connector(bagel: Bagel, lessons: ConnectorStage, seed: int, folder: Path, every: int) -> Iterator[FitStep]:
    """Train the connector of `bagel` from the newest checkpoint in `folder`, yielding a step at a time.

    At the end `bagel` holds the averaged connector, brought to its loudness.
    """
    if not lessons.steps:
        return
    connector, side, device = bagel.connector, bagel.config.vision.patch_size, bagel.device
    columns = CANVAS // side
    ids = torch.from_numpy(grid_ids((columns, columns), bagel.config.vision.patches_per_side)).to(device)

    def lesson(step: int) -> tuple[Tensor, dict[str, float]]:
        first = FIRST + seed * 1_000_003 + step * lessons.batch
        scenes = scenes_for_words(first, lessons)
        pixels = worn(to_unit(render(scenes, device=str(device))), torch.Generator().manual_seed(first))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                seen = bagel.vit_model(patchify(pixels, side), ids.expand(len(scenes), -1))
            said = connector(seen)
        return words_loss(said, bagel, covering(scenes, side).to(device))

    schools = adamw(connector, lessons.rate, (0.9, 0.98))
    average = yield from fit(connector, schools, lessons, lesson, folder, every)
    connector.load_state_dict(average)
    _bring_to_loudness(bagel, lessons, ids, side)


@torch.no_grad()
def _bring_to_loudness(bagel: Bagel, lessons: ConnectorStage, ids: Tensor, side: int) -> None:
    """Scale the last matrix so that what is said has the loudness asked for, on scenes of its own."""
    scenes = scenes_for_words(FIRST - lessons.batch, lessons)
    pixels = to_unit(render(scenes, device=str(bagel.device)))
    said = bagel.connector(bagel.vit_model(patchify(pixels, side), ids.expand(len(scenes), -1)))
    share = lessons.loudness / float(said.square().mean().sqrt())
    bagel.connector.fc2.weight.mul_(share)
    bagel.connector.fc2.bias.mul_(share)
