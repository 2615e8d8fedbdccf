"""The lesson between seeing and speaking: the connector learns to say in the model's own words what a patch shows.

Its output at a patch is drawn towards the embeddings of the class and the colour of the sticker that covers the patch,
and of "nothing" where none does. A language model that can copy a word from a prompt can then copy it from a picture;
without this, SKETCH read colours off a picture within a few hundred updates and classes not in three thousand.
Tower and embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data.layout import DEFAULT_LAYOUT
from triptych.data.lessons import assorted
from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.bagel import Bagel
from triptych.model.sequence import grid_ids
from triptych.model.vae import patchify
from triptych.rl.autoencoder_lessons import to_unit
from triptych.rl.course import Course, Studied, adamw, study
from triptych.rl.eyes_lessons import NOTHING, strewn, worn

FIRST = 4_000_000_000  # seeds of these scenes begin here, far from those of other lessons
SHARPNESS = 16.0  # logit of a patch that points exactly at a word
COVERED = 0.2  # least share of a patch that a sticker's box must cover to name it


@dataclass(frozen=True)
class ConnectorLessons(Course):
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


def scenes_for_words(first: int, lessons: ConnectorLessons) -> list[Scene]:
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


def study_connector(bagel: Bagel, lessons: ConnectorLessons, seed: int, folder: Path, every: int) -> Iterator[Studied]:
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
    average = yield from study(connector, schools, lessons, lesson, folder, every)
    connector.load_state_dict(average)
    _bring_to_loudness(bagel, lessons, ids, side)


@torch.no_grad()
def _bring_to_loudness(bagel: Bagel, lessons: ConnectorLessons, ids: Tensor, side: int) -> None:
    """Scale the last matrix so that what is said has the loudness asked for, on scenes of its own."""
    scenes = scenes_for_words(FIRST - lessons.batch, lessons)
    pixels = to_unit(render(scenes, device=str(bagel.device)))
    said = bagel.connector(bagel.vit_model(patchify(pixels, side), ids.expand(len(scenes), -1)))
    share = lessons.loudness / float(said.square().mean().sqrt())
    bagel.connector.fc2.weight.mul_(share)
    bagel.connector.fc2.bias.mul_(share)
