"""Eighty shapes that can be told apart, ten colors that can be told apart."""

import json
from itertools import combinations

import pytest
import torch

from triptych.data.scene import BACKGROUND
from triptych.data.stickers import CLASSES, COLORS, silhouettes


def test_classes_and_colors_are_those_of_the_benchmarks(shared):
    names, colors = set(), set()
    for file in ("geneval.jsonl", "genevalpp.jsonl"):
        for line in (shared / "benchmarks" / file).read_text().splitlines():
            for item in json.loads(line)["include"]:
                names.add(item["class"])
                colors.add(item.get("color"))
    assert names == set(CLASSES) and list(CLASSES) == sorted(CLASSES)
    assert colors - {None} == set(COLORS)


@pytest.mark.parametrize("side", [16, 24, 32, 96])
def test_a_silhouette_fills_its_box_and_sits_in_the_middle(side):
    masks = silhouettes(side)
    assert masks.shape == (80, side, side) and masks.dtype == torch.float32
    assert masks.min() >= 0 and masks.max() <= 1
    for mask in masks:
        inked = mask > 1 / 255
        rows, columns = inked.any(1).nonzero().flatten(), inked.any(0).nonzero().flatten()
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == side
        for line in (rows, columns):  # as much air before the ink as after it, to a pixel
            assert abs(int(line[0]) - (side - 1 - int(line[-1]))) <= 1


def test_every_silhouette_has_solid_ink_at_the_usual_size():
    for name, mask in zip(CLASSES, silhouettes(24), strict=True):
        assert (mask > 0.99).sum() >= 24, name
        assert mask.mean() > 0.2, name


@pytest.mark.parametrize("side", [16, 24])
def test_no_two_silhouettes_are_alike(side):
    masks = silhouettes(side).flatten(1)
    correlation = torch.corrcoef(masks) - torch.eye(80)
    shared = torch.minimum(masks[:, None], masks).sum(-1) / torch.maximum(masks[:, None], masks).sum(-1)
    assert correlation.max() < 0.82
    assert (shared - torch.eye(80)).max() < 0.75


def test_no_two_colors_are_alike():
    for (one, a), (other, b) in combinations([*COLORS.items(), ("background", BACKGROUND)], 2):
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        assert distance > 70, f"{one} and {other} are {distance:.0f} apart"
