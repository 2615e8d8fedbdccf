"""Laws of the autoencoder, and its golden case (parity case 5)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from triptych.errors import PictureError
from triptych.model.config import SKETCH, AutoencoderConfig
from triptych.model.vae import Autoencoder, patchify, unpatchify

TINY = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, scale_factor=0.5, shift_factor=0.25)


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY).eval()


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "parity" / "tiny_ckpt"
    known = json.loads((folder / "ae_config.json").read_text())
    names = AutoencoderConfig.__dataclass_fields__
    config = AutoencoderConfig(**{k: tuple(v) if k == "ch_mult" else v for k, v in known.items() if k in names})
    autoencoder = Autoencoder(config).eval()
    autoencoder.load_state_dict({k: v.float() for k, v in load_file(folder / "ae.safetensors").items()})
    return autoencoder, load_file(shared / "parity" / "case5_vae.safetensors")


@torch.no_grad()
def test_golden_moments_latents_and_pixels(golden):
    autoencoder, case = golden
    pixels = (case["in.images_uint8"].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(torch.cat(autoencoder.moments(pixels), dim=1), case["out.moments"], **close)
    torch.testing.assert_close(autoencoder.encode(pixels), case["out.latent_mean"], **close)
    sampled = autoencoder.encode(pixels, case["in.sampling_noise"])
    torch.testing.assert_close(sampled, case["out.latent_sampled"], **close)
    torch.testing.assert_close(autoencoder.decode(case["in.latent_to_decode"]), case["out.decoded"], **close)


def test_patches_of_a_latent_are_row_column_channel(shared):
    case = load_file(shared / "parity" / "case7_image_transforms.safetensors")
    assert torch.equal(patchify(case["in.latent_in"][None], 2)[0], case["out.latent_patchify_out"])


@pytest.mark.parametrize(("side", "height", "width"), [(1, 3, 5), (2, 4, 6), (2, 6, 4), (3, 3, 9)])
def test_unpatchify_undoes_patchify(side, height, width):
    latent = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(side))
    assert torch.equal(unpatchify(patchify(latent, side), side, height, width), latent)


def test_sides_follow_the_downsampling_and_survive_a_round_trip(tiny):
    pixels = torch.rand(2, 3, 12, 20) * 2 - 1
    latent = tiny.encode(pixels)
    assert latent.shape == (2, 4, 6, 10)
    assert tiny.decode(latent).shape == pixels.shape


@torch.no_grad()
def test_zero_noise_is_the_mean(tiny):
    pixels = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(tiny.encode(pixels, torch.zeros(1, 4, 4, 4)), tiny.encode(pixels))


@torch.no_grad()
def test_channels_last_changes_nothing(tiny):
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.manual_seed(0)
    other = Autoencoder(TINY).eval().to(memory_format=torch.channels_last)
    latent = other.encode(pixels.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(latent, tiny.encode(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.decode(latent), tiny.decode(latent), atol=1e-5, rtol=1e-5)


def test_odd_sides_are_refused(tiny):
    with pytest.raises(PictureError, match="multiples of 2; resize"):
        tiny.encode(torch.zeros(1, 3, 8, 7))


def test_sketch_is_small_and_its_picture_is_36_tokens():
    with torch.device("meta"):
        autoencoder = Autoencoder(SKETCH.autoencoder)
        tokens = patchify(autoencoder.encode(torch.zeros(1, 3, *SKETCH.image_size)), SKETCH.latent_patch_size)
    assert tokens.shape == (1, 36, SKETCH.latent_dim)
    assert sum(p.numel() for p in autoencoder.parameters()) < 3e6
