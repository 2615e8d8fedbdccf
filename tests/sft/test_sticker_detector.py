"""Laws of the finder's lessons: the same every time, true about what they show, and resumed exactly."""

from dataclasses import replace

import pytest
import torch

from triptych.data.render import render
from triptych.data.scene import CANVAS, Scene, Sticker
from triptych.errors import ConfigError
from triptych.rewards.sticker_judge import STRIDE, StickerDetections
from triptych.sft.sticker_detector import (
    DetectorConfig,
    DetectorTraining,
    Truth,
    blur,
    detector_loss,
    detector_sample,
    strew,
    train_detector,
    wear,
)

TINY = DetectorConfig(steps=4, batch=4)


def test_a_lesson_is_a_function_of_its_number():
    first, again, other = (detector_sample(TINY, index) for index in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1].centre, again[1].centre)
    assert not torch.equal(first[0], other[0])


def test_a_clean_lesson_shows_its_truth():
    images, truth = detector_sample(replace(TINY, clean=1.0, batch=16), 0)
    canvas = render([Scene(())])[0]
    for row, centre in zip(truth.row.tolist(), truth.centre * STRIDE, strict=True):
        x, y = centre.round().long().tolist()
        around = images[row, max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8].int()
        assert (
            around - canvas[0, 0].int()
        ).abs().max() > 15  # white, the faintest colour, at two thirds of its opacity


@pytest.mark.parametrize("seed", range(30))
def test_strewn_stickers_lie_on_the_canvas_and_overlap_little(seed):
    stickers = strew(seed).stickers
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


def test_wear_leaves_the_stickers_where_they_are():
    pixels = render([Scene((Sticker("stop sign", "black", 40, 56, "larger"),))]).permute(0, 3, 1, 2).float()

    def middle(pixels):
        return (blur(pixels, torch.tensor([2.0])).mean(1) < 110).nonzero()[:, 1:].float().mean(0)

    assert (middle(wear(pixels, torch.Generator().manual_seed(0))) - middle(pixels)).abs().max() < 2


def test_the_loss_vanishes_for_a_sight_that_knows_the_truth():
    scene = Scene((Sticker("clock", "red", 18, 30), Sticker("cat", "blue", 70, 62, "larger")))
    truth = Truth.of([scene])
    cells = torch.arange(24)
    heat = torch.full((1, 24, 24), -20.0)
    heat[0, truth.centre[:, 1].long(), truth.centre[:, 0].long()] = 20.0
    name, size = torch.zeros(1, 80, 24, 24), torch.zeros(1, 3, 24, 24)
    offset = torch.zeros(1, 2, 24, 24)
    for index, (x, y) in enumerate(truth.centre.tolist()):
        near = slice(int(y) - 2, int(y) + 3), slice(int(x) - 2, int(x) + 3)
        name[0, truth.name[index], near[0], near[1]] = 30.0
        size[0, truth.size[index], near[0], near[1]] = 30.0
        offset[0, 0, near[0], near[1]] = (x - cells)[None, near[1]]
        offset[0, 1, near[0], near[1]] = (y - cells)[near[0], None]
    parts = detector_loss(StickerDetections(heat, name, size, offset), truth)
    assert all(value < 1e-4 for value in parts.values()), parts
    assert detector_loss(StickerDetections(-heat, name, size, offset), truth)["heat"] > 1


def test_a_run_that_was_stopped_goes_on_exactly(tmp_path):
    straight = DetectorTraining(TINY)
    for _ in train_detector(straight):
        pass
    stopped = DetectorTraining(TINY)
    lessons = train_detector(stopped)
    next(lessons)
    next(lessons)
    stopped.save(tmp_path)
    resumed = DetectorTraining.resume(TINY, tmp_path)
    assert resumed.steps == 2
    for _ in train_detector(resumed):
        pass
    for (name, a), b in zip(straight.finder.state_dict().items(), resumed.finder.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="batch=1"):
        DetectorConfig(batch=1)
