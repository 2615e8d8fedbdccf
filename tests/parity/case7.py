"""Case 7: sizes and pixels of resized pictures, patch orders, places, and the two fixed waves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from parity.check import VALUES, Run, picture, read_case
from parity.walk import rule
from triptych.model.images import flatten_rgba, normalize, resize, resized_size
from triptych.model.network import timestep_embedding
from triptych.model.packing import grid_ids
from triptych.model.vae import patchify
from triptych.model.vision import sincos_table


def replay(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case7_image_transforms")
    for name, expected in facts["output_hw"].items():
        base, _, pictures = name.partition("_img_num")
        run, limits = Run("7", f"sizes {name}"), rule(facts["transforms"][base])
        for (width, height), (out_height, out_width) in zip(facts["input_wh"], expected, strict=True):
            size = resized_size((width, height), limits, int(pictures or 1))
            run.equal(f"size of {width}x{height}", size, (out_width, out_height))
        yield run
    yield _pixels(facts, golden)
    yield _orders(golden)


def _pixels(facts: dict, golden: dict[str, Tensor]) -> Run:
    run = Run("7", "pixels")
    for key, expected in golden.items():
        if found := re.fullmatch(r"out\.(image\d+)_(\w+?)_resized_uint8", key):
            image, name = found.groups()
            small = resize(picture(golden[f"in.{image}_uint8"]), rule(facts["pixel_transforms"][name]))
            run.equal(key, bool(np.array_equal(small, picture(expected))), True)
            run.close(f"{image} normalised", normalize(small), golden.get(f"out.{image}_{name}"))
    flat = np.asarray(flatten_rgba(Image.fromarray(picture(golden["in.image_rgba_uint8"]))))
    run.equal("transparency on white", bool(np.array_equal(flat, picture(golden["out.image_rgba_to_rgb"]))), True)
    return run


def _orders(golden: dict[str, Tensor]) -> Run:
    run = Run("7", "orders and tables")
    pixels, latent = golden["in.patchify_in"], golden["in.latent_in"]
    side = _side(pixels, golden["out.patchify_out"])
    run.equal("patches", patchify(pixels[None], side)[0].equal(golden["out.patchify_out"]), True)
    side = _side(latent, golden["out.latent_patchify_out"])
    run.equal("latent tokens", patchify(latent[None], side)[0].equal(golden["out.latent_patchify_out"]), True)
    for key, expected in golden.items():
        if found := re.fullmatch(r"out\.position_ids_(\d+)x(\d+)_p(\d+)_max(\d+)", key):
            height, width, patch, most = map(int, found.groups())
            run.equal("places", grid_ids((height // patch, width // patch), most).tolist(), expected.tolist())
        if found := re.fullmatch(r"out\.pos_embed_table_max(\d+)_dim(\d+)", key):
            run.close("table of places", sincos_table(*map(int, found.groups())), expected, VALUES)
    run.close("wave of times", timestep_embedding(golden["in.timesteps"]), golden["out.timestep_sinusoid_256"], VALUES)
    return run


def _side(pixels: Tensor, tokens: Tensor) -> int:
    return round((tokens.shape[1] / pixels.shape[0]) ** 0.5)
