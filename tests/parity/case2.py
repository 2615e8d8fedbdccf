"""Case 2: draw from text, over every kind of guidance, with and without a thought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parity.check import LEVELS, PICTURES, Run, read_case
from parity.walk import read, tiny, token_grid, walk
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.packing import Text
from triptych.model.sampler import Branches, sample_flow
from triptych.model.vae import unpatchify


def replay(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case2_text_to_image")
    bagel, params = tiny(folder), facts["params"]
    times = Run("2", "timesteps")
    times.close("schedule", flow.times(params["num_timesteps"], params["timestep_shift"]), golden["out.timesteps"])
    yield times
    for run in facts["runs"]:
        yield _draw(bagel, Run("2", run["tag"]), run, facts, golden)


@torch.no_grad()
def _draw(bagel: Bagel, run: Run, spec: dict, facts: dict, golden: dict[str, Tensor]) -> Run:
    params, tag = facts["params"] | spec, spec["tag"]
    noises = [part.partition("+")[2] or "noise" for part in spec.get("batch", ["prompt+noise"])]
    noise = torch.stack([golden[f"in.{name}"] for name in noises])
    cond, text_drop, image_drop = (
        _context(bagel, spec["contexts"][name], facts, len(noises)) for name in ("cond", "cfg_text", "cfg_img")
    )
    branches = Branches(cond, text_drop, image_drop)
    sampling = Sampling(
        time_shift=params["timestep_shift"],
        guidance_interval=tuple(params["cfg_interval"]),
        text_guidance=params["cfg_text_scale"],
        image_guidance=params["cfg_img_scale"],
        renorm_min=params["cfg_renorm_min"],
    )
    grid, points, renorm = token_grid(bagel, *facts["image_hw"]), params["num_timesteps"], params["cfg_renorm_type"]
    steps = walk(bagel, branches, grid, noise, points, sampling, renorm)
    for index in range(3):
        if f"out.{tag}.v{index}" in golden:
            run.close(f"velocity {index}", steps.velocities[index].flatten(0, 1), golden[f"out.{tag}.v{index}"])
    for name, raw in zip(("cond", "text", "img"), steps.raw, strict=False):
        run.close(f"{name} velocity", raw.flatten(0, 1), golden.get(f"dbg.{tag}.first_guided_step_{name}"))
    latent = golden[f"out.{tag}.latent"]
    run.close("latent, step by step", steps.states[-1].flatten(0, 1), latent)
    latents, _ = sample_flow(bagel, branches, grid, noise, points, renorm, 0.0, sampling)
    run.close("latent, as drawn", latents.flatten(0, 1), latent)
    if f"out.{tag}.decoded" in golden:
        side = bagel.config.latent_patch_size
        cells = unpatchify(latents, side, grid[0] * side, grid[1] * side)
        run.close("unpatchified", cells, golden[f"out.{tag}.vae_latent"])
        run.close("decoded", bagel.autoencoder.decode(cells), golden[f"out.{tag}.decoded"], PICTURES)
        levels = bagel.decode_images(latents, grid)[0].astype(np.int64)
        run.close("picture", levels, golden[f"out.{tag}.uint8"], LEVELS)
    return run


def _context(bagel: Bagel, names: list[str] | None, facts: dict, batch: int):
    """The context of one branch: None is off, and "a|b" gives each row its own block."""
    if names is None:
        return None
    choices = [name.split("|") if "|" in name else [name] * batch for name in names]
    return read(bagel, [[Text(facts[choice[row]]) for choice in choices] for row in range(batch)])
