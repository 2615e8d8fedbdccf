"""Edits come back at the size of the input, and repeated ones move, tint and blur nothing by resampling."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bagel import TINY

from triptych.apps.cli import main
from triptych.apps.edit_size import size_of
from triptych.data.lexicon import build_tokenizer
from triptych.errors import ConfigError
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, BagelConfig
from triptych.model.images import resize
from triptych.model.templates import CLOSE, wrap_reflection
from triptych.trace import Completion, Drawing

SIZE = (333, 250)  # no multiple of a stride


@dataclass
class CopyingPolicy:
    """An editor that changes nothing, so that what is left of an edit is its resampling."""

    config: BagelConfig = BAGEL_7B

    def plan(self, prompts, sampling, seeds, on_text=None): ...
    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None): ...

    def reflect(self, prompts, images, sampling, seeds, on_text=None):
        return [Completion(wrap_reflection("a thing is absent", "add it")) for _ in images]

    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None):
        return [Drawing(resize(image, self.config.vae_resize)) for image in images]


def photograph(path: Path) -> np.ndarray:
    """Smooth shades with a bright square, as a JPEG's pixels would be."""
    row, column = np.mgrid[: SIZE[1], : SIZE[0]]
    image = np.stack([row * 0.6, column * 0.5, 120 + 40 * np.sin(row / 30)], axis=-1)
    image[100:140, 200:240] = 230
    Image.fromarray(image.astype(np.uint8)).save(path)
    return image.astype(np.uint8)


def center(image: np.ndarray) -> np.ndarray:
    return np.argwhere(image.astype(int).min(axis=-1) > 180).mean(axis=0)


def test_five_edits_in_a_row_keep_size_place_and_color(tmp_path):
    first = photograph(tmp_path / "0.png")
    for turn in range(5):
        arguments = [
            "edit",
            str(tmp_path / f"{turn}.png"),
            "a square",
            "--turns",
            "2",
            "--out",
            str(tmp_path / f"{turn}"),
        ]
        assert main(arguments, lambda *_: CopyingPolicy()) == 0
        (tmp_path / f"{turn}/final.png").rename(tmp_path / f"{turn + 1}.png")
    last = np.asarray(Image.open(tmp_path / "5.png"))
    assert last.shape == first.shape
    assert np.abs(center(last) - center(first)).max() < 0.5  # pixels
    difference = last.astype(float) - first
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.5 and np.abs(difference).mean() < 1.5  # levels of 255


@pytest.mark.parametrize(("choice", "size"), [(None, SIZE), ("model", None), ("100x70", (100, 70))])
def test_a_checkpoint_in_the_published_layout_edits_at_the_size_that_is_asked(tmp_path, choice, size, open_folder):
    photograph(tmp_path / "photo.png")
    arguments = ["edit", str(tmp_path / "photo.png"), "a cat", "--model", str(open_folder), "--turns", "1"]
    arguments += ["--steps", "1", "--out", str(tmp_path / "out"), *([] if choice is None else ["--size", choice])]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out/trace.json").read_text())
    assert record["turns"][0]["drew"] and record["settings"]["size"] == (choice or "auto")
    drawn = Image.open(tmp_path / "out/turn-0.png").size
    assert drawn == (size or (64, 48))  # TINY's own for this aspect
    assert Image.open(tmp_path / "out/input.png").size == SIZE


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    bagel = Bagel(replace(TINY, world="open"), build_tokenizer())
    with torch.no_grad():
        bagel.language_model.lm_head.weight[bagel.tokenizer.token_to_id(CLOSE)] *= 8
    folder = tmp_path_factory.mktemp("open") / "model"
    weights.save(bagel, folder)
    return folder


def test_stickers_stay_at_the_size_of_their_world_unless_another_is_asked_for():
    image = np.zeros((250, 333, 3), np.uint8)
    assert size_of("auto", image, "stickers") is None and size_of("input", image, "stickers") == SIZE
    for wrong in ("big", "0x5", "5x0", "-1x5", "5", "99999x99999", "5x5x5", "", "٣x٣"):
        with pytest.raises(ConfigError, match="--size"):
            size_of(wrong, image, "open")
