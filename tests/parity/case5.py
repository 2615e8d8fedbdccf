"""Case 5: the autoencoder, there and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from parity.check import PICTURES, Run, picture, read_case
from parity.walk import tiny
from triptych.model.images import normalize


@torch.no_grad()
def replay(folder: Path) -> Iterator[Run]:
    _, golden = read_case(folder, "case5_vae")
    autoencoder = tiny(folder).autoencoder
    pixels = normalize(picture(golden["in.images_uint8"]))
    there = Run("5", "encode")
    there.close("moments", torch.cat(autoencoder.moments(pixels), dim=1), golden["out.moments"], PICTURES)
    there.close("mean", autoencoder.encode(pixels), golden["out.latent_mean"], PICTURES)
    sampled = autoencoder.encode(pixels, golden["in.sampling_noise"])
    there.close("sample", sampled, golden["out.latent_sampled"], PICTURES)
    yield there
    back = Run("5", "decode")
    back.close("pixels", autoencoder.decode(golden["in.latent_to_decode"]), golden["out.decoded"], PICTURES)
    yield back
