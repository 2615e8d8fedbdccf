"""Pixels: right color, right place, the same every time."""

import numpy as np
import pytest
import torch

from triptych.data.render import render, render_array
from triptych.data.scene import BACKGROUND, CANVAS, Scene, Sticker
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS, silhouettes


def picture(*stickers: Sticker) -> torch.Tensor:
    return render([Scene(stickers)])[0]


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """x and y of what is not background, weighed by how far it is from it; pixel i has its middle at i + 0.5."""
    ink = (image.double() - torch.tensor(BACKGROUND, dtype=torch.float64)).abs().sum(-1)
    middle = torch.arange(CANVAS, dtype=torch.float64) + 0.5
    return float((ink.sum(0) * middle).sum() / ink.sum()), float((ink.sum(1) * middle).sum() / ink.sum())


def test_an_empty_scene_is_background():
    assert (picture() == torch.tensor(BACKGROUND, dtype=torch.uint8)).all()
    assert render([]).shape == (0, CANVAS, CANVAS, 3)


@pytest.mark.parametrize("color", COLORS)
def test_solid_ink_has_the_palette_color(color):
    image = picture(Sticker("book", color, 48, 48))
    inside = silhouettes(24)[CLASSES.index("book")] == 1
    assert inside.sum() > 100
    assert (image[36:60, 36:60][inside] == torch.tensor(COLORS[color], dtype=torch.uint8)).all()


def test_ink_stays_in_the_box():
    image = picture(Sticker("stop sign", "red", 40, 56, "larger"))
    outside = torch.ones(CANVAS, CANVAS, dtype=torch.bool)
    outside[40:72, 24:56] = False
    assert (image[outside] == torch.tensor(BACKGROUND, dtype=torch.uint8)).all()
    assert not (image[~outside] == torch.tensor(BACKGROUND, dtype=torch.uint8)).all()


@pytest.mark.parametrize("name", ["airplane", "donut", "toothbrush"])
@pytest.mark.parametrize("dx, dy", [(0.25, 0.0), (0.5, 0.75), (-0.3, 7.1)])
def test_the_centroid_moves_with_the_sticker_to_a_fraction_of_a_pixel(name, dx, dy):
    x, y = centroid(picture(Sticker(name, "black", 40, 50)))
    moved_x, moved_y = centroid(picture(Sticker(name, "black", 40 + dx, 50 + dy)))
    assert moved_x - x == pytest.approx(dx, abs=0.02) and moved_y - y == pytest.approx(dy, abs=0.02)


def test_a_row_of_a_batch_equals_the_picture_alone_and_never_changes():
    scenes = [Scene.sample(random_spec(seed), seed) for seed in range(24)]
    batch = render(scenes)
    assert batch.shape == (24, CANVAS, CANVAS, 3) and batch.dtype == torch.uint8
    assert torch.equal(batch, render(scenes))
    for scene, row in zip(scenes, batch, strict=True):
        assert np.array_equal(render_array(scene), row.numpy())


def test_later_stickers_cover_earlier_ones():
    below, above = Sticker("book", "red", 48, 48), Sticker("book", "blue", 48, 48)
    inside = silhouettes(24)[CLASSES.index("book")] == 1
    assert torch.equal(picture(below, above)[36:60, 36:60][inside], picture(above)[36:60, 36:60][inside])


@pytest.mark.parametrize("x, y", [(96, 48), (0, 0), (90, 100), (-7, 48)])
def test_what_hangs_over_the_edge_is_cut_off(x, y):
    image, whole = picture(Sticker("book", "black", x, y)), picture(Sticker("book", "black", 48, 48))
    uncut = torch.tensor(BACKGROUND, dtype=torch.uint8).repeat(3 * CANVAS, 3 * CANVAS, 1)
    uncut[48 + y : 144 + y, 48 + x : 144 + x] = whole  # the same picture on a canvas with room on every side
    assert torch.equal(image, uncut[CANVAS : 2 * CANVAS, CANVAS : 2 * CANVAS])


def test_a_sticker_far_away_is_not_seen():
    assert torch.equal(picture(Sticker("book", "black", -500, 900)), picture())
