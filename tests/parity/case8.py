"""Case 8: names and shapes of the published checkpoint, against `BAGEL_7B` without weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from parity.check import Run
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B


def replay(folder: Path) -> Iterator[Run]:
    with gzip.open(folder / "case8_checkpoint_manifest.json.gz") as file:
        manifest = json.load(file)
    with torch.device("meta"):
        bagel = Bagel(BAGEL_7B)
    ours = weights.shapes(bagel)
    for name, published in manifest["files"].items():
        run = Run("8", name)
        theirs = {key: tuple(entry["shape"]) for key, entry in published["tensors"].items()}
        run.equal("names only here", sorted({*ours[name]} - {*theirs}), [])
        run.equal("names only there", sorted({*theirs} - {*ours[name]} - {*manifest["optional_keys"]}), [])
        run.equal("shapes", {key: ours[name].get(key) for key in theirs if key in ours[name]}, theirs)
        yield run
    yield _settings(manifest["config"])


def _settings(config: dict) -> Run:
    """Every setting that the published configuration names and ours has."""
    run, ours = Run("8", "configuration"), asdict(BAGEL_7B)
    for section, name in (("language", "llm_config"), ("vision", "vit_config"), ("autoencoder", "ae_config")):
        for key, value in config[name].items():
            if key in ours[section]:
                run.equal(f"{name} {key}", ours[section][key], tuple(value) if isinstance(value, list) else value)
    arguments = config["bagel_args"]
    run.equal("vit_select_layer", BAGEL_7B.vision.select_layer, arguments["vit_select_layer"])
    run.equal("patches per side", BAGEL_7B.vision.patches_per_side, arguments["vit_max_num_patch_per_side"])
    for key in ("latent_patch_size", "max_latent_size"):
        run.equal(key, ours[key], arguments[key])
    return run
