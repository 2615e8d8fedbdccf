"""Train the eyes of the world judge: `python scripts/train_finder.py --out runs/finder --steps 1500`.

Run it again with the same options to go on where it stopped. The weights for reading are written beside the checkpoint;
`--install` puts them into the package, too.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file

from triptych.data.render import render
from triptych.model.config import SKETCH
from triptych.model.vae import Autoencoder
from triptych.rewards.sticker_judge import WEIGHTS, detect, fold, load_detector
from triptych.sft.sticker_detector import (
    DetectorConfig,
    DetectorTraining,
    Veil,
    detector_scene,
    facts,
    through,
    train_detector,
)


@dataclass(frozen=True)
class TrainFinder:
    """Train the finder of stickers, or go on with a run that was stopped."""

    out: Path = Path("runs/finder")  # checkpoint and weights are kept here
    config: tyro.conf.OmitArgPrefixes[DetectorConfig] = field(default_factory=DetectorConfig)
    save_every: int = 100  # steps between checkpoints
    autoencoder: Path | None = None  # ae.safetensors of SKETCH: half of the pictures then pass through it
    threads: int = 1
    install: bool = False  # write the weights into the package


def export(pupil: DetectorTraining, path: Path) -> None:
    """The weights for reading: folded, in half precision, a sixth of the checkpoint."""
    state = fold(deepcopy(pupil.finder)).state_dict()
    save_file({key: value.cpu().half().contiguous() for key, value in state.items()}, path)


def read_back(path: Path, device: str, count: int = 400) -> float:
    """Share of clean scenes, none of them a lesson, that the exported weights read back exactly."""
    scenes = [detector_scene(2 * seed) for seed in range(count)]
    found = detect(render(scenes), load_detector(path, device))
    return sum(facts(a) == facts(b) for a, b in zip(found, scenes, strict=True)) / count


def veil_of(options: TrainFinder) -> Veil | None:
    if options.autoencoder is None:
        return None
    autoencoder = Autoencoder(SKETCH.autoencoder)
    autoencoder.load_state_dict(load_file(options.autoencoder))
    return through(autoencoder.to(options.config.device).eval())


def main(options: TrainFinder) -> None:
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / "finder.safetensors"
    pupil = DetectorTraining.resume(options.config, options.out)
    start, first = time.perf_counter(), pupil.steps
    for step in train_detector(pupil, veil_of(options)):
        if pupil.steps % 20 == 0:
            pace = (pupil.steps - first) * pupil.config.batch / (time.perf_counter() - start)
            losses = " ".join(f"{key} {value:.3f}" for key, value in step.items())
            print(f"{pupil.steps:5d} {losses} {pace:.0f}/s", flush=True)
        if pupil.steps % options.save_every == 0 or pupil.steps == pupil.config.steps:
            pupil.save(options.out)
            export(pupil, weights)
            print(f"{pupil.steps:5d} read back exactly {read_back(weights, pupil.config.device):.4f}", flush=True)
    if options.install:
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        export(pupil, WEIGHTS)


if __name__ == "__main__":
    main(tyro.cli(TrainFinder))
