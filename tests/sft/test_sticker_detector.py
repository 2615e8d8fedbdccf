"""Laws of the detector's training: the same every time, true about what its pictures show, and resumed exactly."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.data.render import render
from triptych.data.scene import CANVAS, Scene, Sticker
from triptych.errors import ConfigError, ModelError
from triptych.model.config import SKETCH
from triptych.rewards.sticker_judge import MAP_STRIDE, StickerDetections
from triptych.sft.optim import SFTStage, fit
from triptych.sft.run import run_sft
from triptych.sft.sticker_detector import (
    DetectorConfig,
    DetectorRecipe,
    DetectorTargets,
    blur,
    corrupt,
    detector_batch,
    detector_images,
    detector_loss,
    detector_stage,
    free_scene,
    load_filter,
    new_detector,
)

TINY = DetectorConfig(steps=4, batch=4)
CPU = torch.device("cpu")


def tiny() -> SFTStage:
    return detector_stage(TINY, new_detector(0, CPU), seed=7)


def test_a_batch_is_a_function_of_its_first_picture():
    first, again, other = (detector_images(detector_batch(index, 4), CPU) for index in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_clean_picture_shows_its_targets():
    batch = detector_batch(0, 16)
    images, targets = detector_images(batch, CPU, clean=1.0), DetectorTargets.of(batch.present)
    canvas = render([Scene(())])[0]
    for row, center in zip(targets.row.tolist(), targets.center * MAP_STRIDE, strict=True):
        x, y = center.round().long().tolist()
        around = images[row, max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8].int()
        # white, the faintest color, at two thirds of its opacity
        assert (around - canvas[0, 0].int()).abs().max() > 15


def test_half_of_the_pictures_pass_the_filter():
    batch = detector_batch(0, 64)
    usual = detector_images(batch, CPU, clean=1.0)
    black = detector_images(batch, CPU, torch.zeros_like, clean=1.0)
    assert 20 < int((black == 0).flatten(1).all(1).sum()) < 44 and (usual != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("seed", range(30))
def test_free_stickers_lie_on_the_canvas_and_overlap_little(seed):
    stickers = free_scene(seed).stickers
    assert len(stickers) <= 9
    for index, a in enumerate(stickers):
        assert a.side / 2 - 1 <= min(a.x, a.y) and max(a.x, a.y) <= CANVAS - a.side / 2 + 1
        for b in stickers[:index]:
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 0.375 * (a.side + b.side)


def test_blur_keeps_the_mean_and_without_spread_changes_nothing():
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    pixels[:, :, :8] = pixels[:, :, -8:] = pixels[:, :, :, :8] = pixels[:, :, :, -8:] = 0.5
    blurred = blur(pixels, torch.tensor([0.0, 1.2]))
    assert torch.allclose(blurred[0], pixels[0], atol=1e-6)
    assert torch.allclose(blurred[1].mean(), pixels[1].mean(), atol=1e-5)
    assert blurred[1].std() < pixels[1].std()


def test_corruption_leaves_the_stickers_where_they_are():
    pixels = render([Scene((Sticker("stop sign", "black", 40, 56, "larger"),))]).permute(0, 3, 1, 2).float()

    def middle(pixels):
        return (blur(pixels, torch.tensor([2.0])).mean(1) < 110).nonzero()[:, 1:].float().mean(0)

    assert (middle(corrupt(pixels, torch.Generator().manual_seed(0))) - middle(pixels)).abs().max() < 2


def test_the_loss_vanishes_for_a_detector_that_is_right():
    scene = Scene((Sticker("clock", "red", 18, 30), Sticker("cat", "blue", 70, 62, "larger")))
    targets = DetectorTargets.of([scene])
    cells = torch.arange(24)
    heat = torch.full((1, 24, 24), -20.0)
    heat[0, targets.center[:, 1].long(), targets.center[:, 0].long()] = 20.0
    name, size = torch.zeros(1, 80, 24, 24), torch.zeros(1, 3, 24, 24)
    offset = torch.zeros(1, 2, 24, 24)
    for index, (x, y) in enumerate(targets.center.tolist()):
        near = slice(int(y) - 2, int(y) + 3), slice(int(x) - 2, int(x) + 3)
        name[0, targets.name[index], near[0], near[1]] = 30.0
        size[0, targets.size[index], near[0], near[1]] = 30.0
        offset[0, 0, near[0], near[1]] = (x - cells)[None, near[1]]
        offset[0, 1, near[0], near[1]] = (y - cells)[near[0], None]
    parts = detector_loss(StickerDetections(heat, name, size, offset), targets)
    assert all(value < 1e-4 for value in parts.values()), parts
    assert detector_loss(StickerDetections(-heat, name, size, offset), targets)["heat"] > 1


def test_a_stage_that_was_killed_ends_in_the_same_bytes(tmp_path: Path):
    whole, dead, resumed = tiny(), tiny(), tiny()
    steps = list(fit(whole, tmp_path / "whole", 2))
    run = fit(dead, tmp_path / "killed", 2)
    for _ in range(3):
        next(run)
    run.close()
    assert list(fit(resumed, tmp_path / "killed", 2)) == steps[2:]
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name  # running means and variances too
        assert torch.equal(tensor, whole.ema[name]) or not tensor.is_floating_point()  # no average: the last weights


def test_a_run_publishes_weights_that_can_be_read_and_says_how_well(tmp_path: Path):
    config = DetectorRecipe(detector=TINY, save_every=2)
    assert [step.stage for step in run_sft(config, tmp_path)] == ["sticker_detector"] * 4
    assert {path.name for path in tmp_path.iterdir()} == {*config.outputs, "sft.json"} - {"steps.jsonl"}
    assert '"read_exactly": 0.' in (tmp_path / "detector.json").read_text()


def test_an_autoencoder_that_is_not_there_or_does_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no file nowhere; expected the ae.safetensors"):
        load_filter("nowhere", SKETCH.autoencoder, CPU)
    save_file({"x": torch.zeros(1)}, tmp_path / "ae.safetensors")
    with pytest.raises(ModelError, match=r"ae\.safetensors is no autoencoder of this size"):
        load_filter(str(tmp_path / "ae.safetensors"), SKETCH.autoencoder, CPU)


def test_batch_norm_needs_two_pictures():
    with pytest.raises(ConfigError, match=r"--detector\.batch 1: expected 2 or more"):
        DetectorRecipe(detector=DetectorConfig(batch=1)).check()
