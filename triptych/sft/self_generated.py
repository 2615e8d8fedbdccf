"""Samples from the model's own pictures: what it drew wrong is what it must learn to see and to correct.

A detector says what a picture of the model shows. The reflection that should have been said and the picture that the
edit should have led to follow from that scene and the prompt. Pictures on which the model was right teach it to stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import load_file

from triptych import files
from triptych.data.annotations import instruction_text, reflection_text
from triptych.data.edits import apply, fix
from triptych.data.language import prompt_text, wording_of
from triptych.data.layout import middle
from triptych.data.scene import Scene
from triptych.data.sft_samples import DataMix, SFTSample, question_sample, sample_spec
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.model.tensor_files import write_tensors
from triptych.trace import Prompt, Spec

Pictures = UInt8[np.ndarray, "count height width 3"]
DetectScenes = Callable[[Sequence[np.ndarray]], list[Scene]]


def self_generated_pictures(
    policy: Policy, count: int, seed: int, sampling: Sampling, mix: DataMix, batch: int = 50
) -> tuple[list[Spec], Pictures]:
    """`count` pictures of fresh prompts; every second batch is planned first, since both kinds are drawn in the end."""
    specs = [sample_spec(seed + index, mix) for index in range(count)]
    pictures: list[np.ndarray] = []
    for number, start in enumerate(range(0, count, batch)):
        part = specs[start : start + batch]
        prompts = [Prompt(prompt_text(spec, wording_of(spec)), spec) for spec in part]
        seeds = [seed + start + index for index in range(len(part))]  # a seed for each picture, whatever the batch
        (traces,) = play(policy, prompts, seeds, 0, sampling, plan=number % 2 == 0)
        pictures += [trace.images[-1] for trace in traces]
    return specs, np.stack(pictures)


def self_generated_samples(
    specs: Sequence[Spec], pictures: Sequence[np.ndarray] | Pictures, detect: DetectScenes, seed: int, mix: DataMix
) -> list[SFTSample]:
    """A reflection on every picture, questions about it, and an edit of every one that can be corrected."""
    samples: list[SFTSample] = []
    for index, (spec, picture, scene) in enumerate(zip(specs, pictures, detect(list(pictures)), strict=True)):
        change = fix(scene, spec, seed + index)
        instruction = None if change is None else instruction_text(change)
        prompt = prompt_text(spec, wording_of(spec))
        reflection = reflection_text(scene, spec, change)
        samples.append(SFTSample("reflect", prompt, reflection, instruction, before=scene, picture=picture))
        # Every second one asks whether the picture fits its prompt; the others ask anything about it.
        samples.append(question_sample(scene, seed + index, mix, spec if index % 2 else None, picture=picture))
        if change is not None and instruction is not None:
            after = centered(apply(scene, change, seed + index))  # what was drawn a pixel off is drawn in its place
            samples.append(SFTSample("edit", instruction, before=scene, after=after, picture=picture))
    return samples


def centered(scene: Scene) -> Scene:
    """The scene with every sticker that has a cell to itself in the middle of that cell."""
    places = [sticker.place for sticker in scene.stickers]
    return Scene(
        tuple(
            replace(one, x=middle(one.place % 3), y=middle(one.place // 3)) if places.count(one.place) == 1 else one
            for one in scene.stickers
        )
    )


def save_pictures(folder: Path, specs: Sequence[Spec], pictures: Pictures) -> None:
    """Write pictures of the model and their specs, so that a resumed run learns from the same ones."""
    with files.replaced_folder(folder) as part:
        write_tensors(part / "pictures.safetensors", {"pictures": torch.from_numpy(pictures)})
        files.write_json(part / "specs.json", [spec.to_metadata() for spec in specs], indent=None)


def load_pictures(folder: Path) -> tuple[list[Spec], Pictures] | None:
    """The specs and pictures of a folder, or None where there is none."""
    if not folder.is_dir():
        return None
    specs = [Spec.from_metadata(record) for record in json.loads((folder / "specs.json").read_text(encoding="utf-8"))]
    return specs, load_file(folder / "pictures.safetensors")["pictures"].numpy()
