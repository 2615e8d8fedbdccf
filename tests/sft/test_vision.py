"""What the vision tower and the connector learn, and that nothing else moves."""

from dataclasses import replace

import pytest
import torch

from triptych.data.lexicon import build_tokenizer
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.sft_samples import sft_sample
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH
from triptych.model.packing import grid_ids
from triptych.model.vae import patchify
from triptych.sft.curriculum import CONNECTOR
from triptych.sft.optim import fit, load_weights
from triptych.sft.vae import to_unit
from triptych.sft.vision import (
    CONNECTOR_RMS,
    center_targets,
    connector_loss,
    connector_stage,
    cover_targets,
    degrade,
    moved_anywhere,
    scale_connector,
    vision_loss,
)


def scene_of(seed: int) -> Scene:
    return Scene.sample(random_spec(seed), seed)


def test_targets_stand_where_each_sticker_is_centered():
    scene = sft_sample("draw", 3).after
    targets = center_targets([scene, moved_anywhere(scene, 1), Scene(())], 16)
    assert (targets[0, 0] > 0).sum() == len(scene.stickers)
    assert (targets[0, 2] == 0).all() and (targets[1, 2] == -1).all()


def test_the_loss_of_a_tower_that_knows_is_0_and_its_accuracy_1():
    targets = center_targets([scene_of(seed) for seed in range(8)], 16)
    sizes = (len(CLASSES) + 1, len(COLORS), 3)
    logits = [
        30.0 * torch.nn.functional.one_hot(target.clamp(min=0), size).float()
        for target, size in zip(targets, sizes, strict=True)
    ]
    loss, metrics = vision_loss(logits, targets)
    assert float(loss) < 1e-4 and metrics == {"accuracy": 1.0, "empty": 1.0}
    _, metrics = vision_loss([logits[0], logits[1].roll(1, -1), logits[2]], targets)  # every color is another one
    assert metrics == {"accuracy": 0.0, "empty": 1.0}


def test_half_of_the_degraded_pictures_stay_clean():
    pixels = to_unit(render([scene_of(seed) for seed in range(64)]))
    changed = (degrade(pixels, torch.Generator().manual_seed(0)) != pixels).flatten(1).any(1)
    assert 16 < int(changed.sum()) < 48


def test_a_sticker_names_the_patches_that_it_covers():
    scene = Scene((Sticker("cat", "red", 16, 16, "normal"), Sticker("bus", "blue", 80, 48, "smaller")))
    names, colors = cover_targets([scene, Scene(())], 16)
    cat, bus = CLASSES.index("cat") + 1, CLASSES.index("bus") + 1
    assert {patch: int(names[0, patch]) for patch in range(36) if names[0, patch]} == {
        **dict.fromkeys((0, 1, 6, 7), cat),
        **dict.fromkeys((16, 17, 22, 23), bus),
    }
    assert set(colors[0].tolist()) == {-1, list(COLORS).index("red"), list(COLORS).index("blue")}
    assert not names[1].any() and (colors[1] == -1).all()


def test_a_patch_that_points_at_its_words_has_a_low_loss():
    torch.manual_seed(0)
    bagel, scenes = Bagel(SKETCH, build_tokenizer()), [scene_of(seed) for seed in range(8)]
    # one word is both a class and a color
    scenes = [scene for scene in scenes if all("orange" not in (one.name, one.color) for one in scene.stickers)]
    targets = cover_targets(scenes, 16)
    names, colors = ("nothing", *CLASSES), list(COLORS)

    def word(name: str) -> torch.Tensor:
        return bagel.language_model.model.embed_tokens.weight[bagel.tokenizer.token_to_id(f" {name}")]

    def feature(name: int, color: int) -> torch.Tensor:
        return word(names[name]) + (word(colors[color]) if color >= 0 else 0)

    features = torch.stack([torch.stack([feature(*pair) for pair in row.T.tolist()]) for row in targets.unbind(1)])
    low, right = connector_loss(features, bagel, targets)
    high, wrong = connector_loss(features.roll(1, 0), bagel, targets)  # the words of another scene
    assert right["accuracy"] == 1.0 and wrong["accuracy"] < 0.5 and float(low.detach()) < 1 < float(high.detach())


def test_the_connector_learns_alone_and_ends_at_its_size(tmp_path):
    torch.manual_seed(0)
    bagel, config = weights.load("sketch", dtype=torch.float32), replace(CONNECTOR, steps=30, batch=16)
    bagel.connector.fc1.reset_parameters()
    bagel.connector.fc2.reset_parameters()
    before = {name: tensor.clone() for name, tensor in bagel.state_dict().items()}
    stage = connector_stage(config, bagel, 0)
    losses = [step.loss for step in fit(stage, tmp_path, 10)]
    load_weights(stage.tensors, stage.ema)
    scale_connector(bagel, config.batch)
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, tensor in bagel.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("connector.") for name in moved)
    scenes = [scene_of(seed) for seed in range(16)]
    ids = torch.from_numpy(grid_ids((6, 6), bagel.config.vision.patches_per_side)).expand(16, -1)
    features = bagel.connector(bagel.vit_model(patchify(to_unit(render(scenes)), 16), ids)).detach()
    assert float(features.square().mean().sqrt()) == pytest.approx(CONNECTOR_RMS, rel=0.15)
