"""The vision stages: the tower learns to see, then the connector learns to put what it sees into the model's words.

The vision stage does what SigLIP's pretraining does for BAGEL: a tower that tells things apart before it is joined to a
language model. Linear heads for class, color and size read every patch that holds the center of a sticker ("nothing"
elsewhere), and are thrown away afterwards. The judge's detector has no part in it.

The connector stage draws the connector's output at a patch towards the embeddings of the class and the color of the
sticker that covers the patch, or of "nothing". A language model that can copy a word from a prompt can then copy it
from a picture. Without this stage SKETCH read colors off a picture within a few hundred updates, and classes not within
three thousand. Tower and embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from triptych.bounds import NonNegativeFloat, PositiveInt
from triptych.data.layout import DEFAULT_LAYOUT
from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, Sticker
from triptych.data.sft_samples import random_scene
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model.bagel import Bagel
from triptych.model.config import VisionConfig
from triptych.model.packing import grid_ids
from triptych.model.vae import patchify
from triptych.model.vision import VisionTower
from triptych.seeds import START, STRIDE
from triptych.sft.optim import FitConfig, Metrics, Part, SFTStage, adamw, copies, muon_and_adamw
from triptych.sft.vae import Pixels, SceneBatch, scenes_of_step, to_unit

# LOG.md E5: at 1 with AdamW no sticker was named after 217 updates; at .05 with Muon 93 % after 467.
NOTHING_WEIGHT = 0.05  # of an empty patch: at 1, "nothing everywhere" is where learning rests for a long time
TOWER_MOVED = 0.4  # share of the tower's scenes whose stickers lie anywhere: places must not give classes away
CONNECTOR_MOVED = 0.2  # the same of the connector's scenes
CONNECTOR_ASSORTED = 0.5  # share of the connector's scenes whose stickers have nothing to do with one another
LOGIT_SCALE = 16.0  # logit of a patch that points exactly at a word
MIN_COVER = 0.2  # least share of a patch that a sticker's box must cover to name it
# Without a scale it was 8.7, of it 6.7 a constant; a token embedding has .07 (LOG.md E20).
CONNECTOR_RMS = 1.0  # root mean square of the connector's output; the table of positions that is added has 0.7
PIXEL_NOISE = 0.15  # largest standard deviation of the noise on degraded pixels, of a range of 2
CLASS_NAMES, COLOR_NAMES, SIZE_NAMES = list(CLASSES), list(COLORS), list(SIZES)


@dataclass(frozen=True)
class VisionStageConfig(FitConfig):
    """How the vision tower learns to see."""

    batch: PositiveInt = 96
    muon_lr: NonNegativeFloat = 0.02  # of the matrices of the layers
    frozen: bool = True  # from here on: few texts turn on a class, so joint training would wash out what is named


@dataclass(frozen=True)
class ConnectorConfig(FitConfig):
    """How the connector learns."""

    batch: PositiveInt = 96


class PatchClassifier(nn.Module):
    """A vision tower with three linear heads on every patch: class or nothing, color, size."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.tower = VisionTower(config)
        self.heads = nn.ModuleList(
            nn.Linear(config.hidden_size, size) for size in (len(CLASS_NAMES) + 1, len(COLOR_NAMES), len(SIZE_NAMES))
        )

    def forward(
        self, tokens: Float[Tensor, "batch patch pixel"], ids: Int[Tensor, "batch patch"]
    ) -> list[Float[Tensor, "batch patch _"]]:
        """Logits of class, color and size, in float32."""
        hidden = self.tower(tokens, ids)
        return [head(hidden).float() for head in self.heads]


def moved_anywhere(scene: Scene, seed: int) -> Scene:
    """The same stickers anywhere on the canvas, none on top of another's center; one that finds no room is left out."""
    rng = Random(seed)
    placed: list[Sticker] = []
    for sticker in scene.stickers:
        half = SIZES[sticker.size] / 2
        for _ in range(20):  # a crowd of nine may have no room left
            x, y = rng.uniform(half, CANVAS - half), rng.uniform(half, CANVAS - half)
            if all(max(abs(x - other.x), abs(y - other.y)) >= 0.9 * (half + SIZES[other.size] / 2) for other in placed):
                placed.append(Sticker(sticker.name, sticker.color, x, y, sticker.size))
                break
    return Scene(tuple(placed))


def center_targets(scenes: Sequence[Scene], side: int) -> Int[Tensor, "3 batch patch"]:
    """Class, color and size of the sticker centered in each patch of `side` px; class 0 is nothing, -1 no target."""
    columns = CANVAS // side
    targets = np.full((3, len(scenes), columns * columns), -1, np.int64)
    targets[0] = 0
    for row, scene in enumerate(scenes):
        for sticker in scene.stickers:
            patch = min(int(sticker.y // side), columns - 1) * columns + min(int(sticker.x // side), columns - 1)
            targets[:, row, patch] = (
                CLASS_NAMES.index(sticker.name) + 1,
                COLOR_NAMES.index(sticker.color),
                SIZE_NAMES.index(sticker.size),
            )
    return torch.from_numpy(targets)


def degrade(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Pixels in [-1, 1] a little blurred and noisy, as a decoded latent is; half of the pictures stay clean."""
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    # Uniform in [-1, 1], cut at 0: half of the pictures have exactly none.
    amount = (torch.rand(len(pixels), 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0).to(pixels.device)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels + amount * (blurred - pixels) + PIXEL_NOISE * amount * noise).clamp(-1, 1)


def vision_loss(
    logits: Sequence[Float[Tensor, "batch patch _"]], targets: Int[Tensor, "3 batch patch"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """Cross entropies of class, color and size added up.

    Metrics: `accuracy` is the share of stickers whose class, color and size are all right, `empty` the share of empty
    patches in which nothing is seen.
    """
    weight = torch.ones(len(CLASS_NAMES) + 1, device=logits[0].device)
    weight[0] = NOTHING_WEIGHT
    loss = F.cross_entropy(logits[0].flatten(0, 1), targets[0].flatten(), weight)
    for values, target in zip(logits[1:], targets[1:], strict=True):
        loss = loss + F.cross_entropy(values.flatten(0, 1), target.flatten(), ignore_index=-1)
    right = torch.stack([values.argmax(-1) == target for values, target in zip(logits, targets, strict=True)]).all(0)
    sticker = targets[0] > 0
    return loss, {
        "accuracy": float(right[sticker].float().mean()),
        "empty": float((logits[0].argmax(-1) == 0)[~sticker].float().mean()),
    }


def vision_stage(config: VisionStageConfig, model_config: VisionConfig, seed: int, device: torch.device) -> SFTStage:
    """A new vision tower with the heads that are only used here."""
    torch.manual_seed(seed)
    model, side = PatchClassifier(model_config).to(device), model_config.patch_size
    ids = _patch_ids(model_config, device).expand(config.batch, -1)

    def samples(step: int) -> list[Part]:
        scenes, moved = scenes_of_step(seed + 1, step, config.batch), int(config.batch * TOWER_MOVED)
        for row, scene in enumerate(scenes[:moved]):
            scenes[row] = moved_anywhere(scene, step * config.batch + row)
        return [(SceneBatch(scenes, seed * STRIDE["noise"] + step), 1.0)]

    def loss(batch: SceneBatch) -> tuple[Tensor, Metrics]:
        pixels = to_unit(render(batch.scenes, device=device))
        tokens = patchify(degrade(pixels, torch.Generator().manual_seed(batch.seed)), side)
        with torch.autocast(device.type, torch.bfloat16):
            return vision_loss(model(tokens, ids), center_targets(batch.scenes, side).to(device))

    tensors = dict(model.named_parameters())
    optimizers = muon_and_adamw(tensors, config, config.muon_lr)
    return SFTStage("vision", config, tensors, copies(tensors), optimizers, samples, loss)


def connector_scenes(first: int, batch: int) -> list[Scene]:
    """Scenes of all kinds: assorted stickers, ordinary ones, and some of both with stickers anywhere."""
    apart, moved = int(batch * CONNECTOR_ASSORTED), int(batch * CONNECTOR_MOVED)
    scenes = [
        random_scene(Random(seed), DEFAULT_LAYOUT) if seed < first + apart else Scene.sample(random_spec(seed), seed)
        for seed in range(first, first + batch)
    ]
    return [moved_anywhere(scene, first + row) if row < moved else scene for row, scene in enumerate(scenes)]


def cover_targets(scenes: Sequence[Scene], side: int) -> Int[Tensor, "2 batch patch"]:
    """Class and color of the sticker that covers most of each patch of `side` px; class 0 is nothing, color -1 none."""
    columns = CANVAS // side
    edges = np.arange(columns) * side
    targets = np.full((2, len(scenes), columns, columns), -1, np.int64)
    targets[0] = 0
    for row, scene in enumerate(scenes):
        largest = np.full((columns, columns), MIN_COVER * side * side)
        for sticker in scene.stickers:
            half = SIZES[sticker.size] / 2
            across = np.clip(np.minimum(edges + side, sticker.x + half) - np.maximum(edges, sticker.x - half), 0, None)
            down = np.clip(np.minimum(edges + side, sticker.y + half) - np.maximum(edges, sticker.y - half), 0, None)
            area = down[:, None] * across
            here = area > largest
            largest[here] = area[here]
            targets[0, row, here] = CLASS_NAMES.index(sticker.name) + 1
            targets[1, row, here] = COLOR_NAMES.index(sticker.color)
    return torch.from_numpy(targets).flatten(2)


def connector_loss(
    features: Float[Tensor, "batch patch hidden"], bagel: Bagel, targets: Int[Tensor, "2 batch patch"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """Cross entropies of the class and color words that patch features point at, by cosine similarity.

    The metric `accuracy` is the share of covered patches whose two words are both right.
    """
    table = bagel.language_model.model.embed_tokens.weight.detach()
    loss, right = torch.zeros((), device=features.device), []
    direction = F.normalize(features.float(), dim=-1)
    for words, target in zip((["nothing", *CLASS_NAMES], COLOR_NAMES), targets, strict=True):
        embeddings = table[[bagel.tokenizer.token_to_id(f" {word}") for word in words]]
        # Without their mean, in which all words point the same way, the words are far apart.
        logits = LOGIT_SCALE * direction @ F.normalize(embeddings - embeddings.mean(0), dim=-1).T
        weight = torch.tensor([NOTHING_WEIGHT if word == "nothing" else 1.0 for word in words], device=features.device)
        loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, ignore_index=-1)
        right.append(logits.argmax(-1) == target)
    covered = targets[1] >= 0
    return loss, {"accuracy": float((right[0] & right[1])[covered].float().mean())}


def connector_stage(config: ConnectorConfig, bagel: Bagel, seed: int) -> SFTStage:
    """The connector of `bagel` alone; call `scale_connector` when it has learned."""
    device, side = bagel.device, bagel.config.vision.patch_size
    ids = _patch_ids(bagel.config.vision, device)
    tensors = dict(bagel.connector.requires_grad_(True).named_parameters())

    def samples(step: int) -> list[Part]:
        first = START["connector"] + seed * STRIDE["samples"] + step * config.batch
        return [(SceneBatch(connector_scenes(first, config.batch), first), 1.0)]

    def loss(batch: SceneBatch) -> tuple[Tensor, Metrics]:
        pixels = to_unit(render(batch.scenes, device=device))
        tokens = patchify(degrade(pixels, torch.Generator().manual_seed(batch.seed)), side)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                seen = bagel.vit_model(tokens, ids.expand(len(tokens), -1))
            features = bagel.connector(seen)
        return connector_loss(features, bagel, cover_targets(batch.scenes, side).to(device))

    optimizers = adamw(tensors.values(), config, betas=(0.9, 0.98))
    return SFTStage("connector", config, tensors, copies(tensors), optimizers, samples, loss)


@torch.no_grad()
def scale_connector(bagel: Bagel, batch: int) -> None:
    """Scale the connector's last layer so that its output has `CONNECTOR_RMS`, on `batch` scenes of no update.

    The loss of the connector stage sees directions alone, so that the length of its output is nobody's choice.
    """
    pixels = to_unit(render(connector_scenes(START["connector"] - batch, batch), device=bagel.device))
    ids = _patch_ids(bagel.config.vision, bagel.device).expand(batch, -1)
    features = bagel.connector(bagel.vit_model(patchify(pixels, bagel.config.vision.patch_size), ids))
    factor = CONNECTOR_RMS / float(features.square().mean().sqrt())
    bagel.connector.fc2.weight.mul_(factor)
    bagel.connector.fc2.bias.mul_(factor)


def _patch_ids(config: VisionConfig, device: torch.device) -> Int[Tensor, " patch"]:
    """Position ids of the patches of one canvas."""
    columns = CANVAS // config.patch_size
    return torch.from_numpy(grid_ids((columns, columns), config.patches_per_side)).to(device)
