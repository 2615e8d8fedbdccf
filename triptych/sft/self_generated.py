"""Lessons from the model's own pictures: what it drew wrong is what it must learn to see and to mend.

A finder tells what an own picture shows; the reflection that should have been said and the picture that the edit should
have led to follow from that scene and the prompt. Pictures on which the model was right teach it to stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from triptych.data.annotations import instruction_text, reflection_text
from triptych.data.edits import apply, fix
from triptych.data.language import prompt_text, wording_of
from triptych.data.layout import middle
from triptych.data.scene import Scene
from triptych.data.sft_samples import DataMix, SFTSample, sample_spec, quiz
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.trace import Prompt, Spec

Find = Callable[[Sequence[np.ndarray]], list[Scene]]


def self_generated_pictures(
    policy: Policy, count: int, seed: int, sampling: Sampling, mix: DataMix, batch: int = 50
) -> tuple[list[Spec], np.ndarray]:
    """`count` pictures `[count height width 3] uint8` of fresh prompts; every second batch is planned first."""
    specs = [sample_spec(seed + index, mix) for index in range(count)]
    pictures: list[np.ndarray] = []
    for number, start in enumerate(range(0, count, batch)):
        part = specs[start : start + batch]
        prompts = [Prompt(prompt_text(spec, wording_of(spec)), spec) for spec in part]
        seeds = [seed + start + index for index in range(len(part))]
        (traces,) = play(policy, prompts, seeds, 0, sampling, plan=number % 2 == 0)
        pictures += [trace.images[-1] for trace in traces]
    return specs, np.stack(pictures)


def self_generated_samples(
    specs: Sequence[Spec], pictures: np.ndarray, find: Find, seed: int, mix: DataMix
) -> list[SFTSample]:
    """A reflection on every picture, questions about it, and an edit of every one that can be mended."""
    lessons: list[SFTSample] = []
    for index, (spec, picture, scene) in enumerate(zip(specs, pictures, find(list(pictures)), strict=True)):
        change = fix(scene, spec, seed + index)
        order = None if change is None else instruction_text(change)
        asked = prompt_text(spec, wording_of(spec))
        lessons.append(
            SFTSample("reflect", asked, reflection_text(scene, spec, change), order, before=scene, picture=picture)
        )
        fits = spec if index % 2 else None
        lessons.append(quiz(scene, seed + index, mix, fits, picture=picture))
        if change is not None and order is not None:
            after = settled(apply(scene, change, seed + index))  # what was drawn a pixel off is drawn in its place
            lessons.append(SFTSample("edit", order, before=scene, after=after, picture=picture))
    return lessons


def settled(scene: Scene) -> Scene:
    """The scene with every sticker that has a cell to itself in the middle of that cell."""
    places = [sticker.place for sticker in scene.stickers]
    return Scene(
        tuple(
            replace(one, x=middle(one.place % 3), y=middle(one.place // 3)) if places.count(one.place) == 1 else one
            for one in scene.stickers
        )
    )


def keep(folder: Path, specs: Sequence[Spec], pictures: np.ndarray) -> None:
    """Write own pictures down, so that a resumed run learns from the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"pictures": torch.from_numpy(pictures)}, folder / "pictures.partial")
    (folder / "pictures.partial").rename(folder / "pictures.safetensors")
    (folder / "specs.partial").write_text(json.dumps([spec.to_metadata() for spec in specs]), encoding="utf-8")
    (folder / "specs.partial").rename(folder / "specs.json")


def kept(folder: Path) -> tuple[list[Spec], np.ndarray] | None:
    """The pictures written down in a folder, or None."""
    if not (folder / "specs.json").is_file():
        return None
    specs = [Spec.from_metadata(record) for record in json.loads((folder / "specs.json").read_text(encoding="utf-8"))]
    return specs, load_file(folder / "pictures.safetensors")["pictures"].numpy()
