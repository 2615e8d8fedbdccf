"""Laws of the vision tower and its tables; its golden values (parity cases 1 and 7)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from triptych.model.config import SKETCH, VisionConfig
from triptych.model.vae import patchify
from triptych.model.vision import Connector, PositionTable, VisionTower, sincos_table

TINY = VisionConfig(24, 40, num_hidden_layers=3, num_attention_heads=2, patches_per_side=6)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    torch.manual_seed(0)
    return VisionTower(TINY).eval()


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "parity" / "tiny_ckpt"
    known = json.loads((folder / "vit_config.json").read_text())
    known = {k: v for k, v in known.items() if k in VisionConfig.__dataclass_fields__}
    weights = {k: v.float() for k, v in load_file(folder / "ema.safetensors").items()}
    return VisionConfig(**known, patches_per_side=12), weights


def _picture(rows: int, columns: int, side: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    places = (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()
    return torch.randn(rows * columns, 588, generator=generator), places


def test_table_of_places_is_golden(shared):
    case = load_file(shared / "parity" / "case7_image_transforms.safetensors")
    torch.testing.assert_close(sincos_table(5, 16), case["out.pos_embed_table_max5_dim16"], atol=1e-7, rtol=0)


def test_recomputed_tables_equal_the_stored_ones(golden):
    _, weights = golden
    for name, side in (("latent_pos_embed", 16), ("vit_pos_embed", 12)):
        stored = weights[f"{name}.pos_embed"]
        torch.testing.assert_close(PositionTable(side, 64).pos_embed, stored, atol=1e-7, rtol=0)


def test_column_comes_before_row():
    table = sincos_table(4, 8)
    assert torch.equal(table[3, 4:], table[0, 4:])  # same row 0, other column
    assert torch.equal(table[12, :4], table[0, :4])  # same column 0, other row
    assert not torch.equal(table[3, :4], table[12, :4])


def test_patches_are_row_column_colour(shared):
    case = load_file(shared / "parity" / "case7_image_transforms.safetensors")
    assert torch.equal(patchify(case["in.patchify_in"][None], 14)[0], case["out.patchify_out"])


@torch.no_grad()
def test_golden_states_and_connector(golden, shared):
    config, weights = golden
    tower, connector = VisionTower(config).eval(), Connector(32, 64)
    for module, prefix in ((tower, "vit_model."), (connector, "connector.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    case = load_file(shared / "parity" / "case1_understanding_single.safetensors")
    pixels = (case["in.vit_image0_uint8"].float() / 255 - 0.5) / 0.5
    height, width, _ = pixels.shape
    patches = patchify(pixels.permute(2, 0, 1)[None], 14)
    places = (torch.arange(height // 14)[:, None] * 12 + torch.arange(width // 14)).flatten()[None]
    states = tower(patches, places)
    debug = {k: v for k, v in case.items() if k.startswith("dbg.")}
    expected = [v for k, v in debug.items() if "vit" in k and v.shape == states[0].shape]
    assert len(expected) == 1, list(debug)
    torch.testing.assert_close(states[0], expected[0], atol=5e-5, rtol=1e-4)
    joined = [v for k, v in debug.items() if "connector" in k]
    torch.testing.assert_close(connector(states)[0], joined[0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_a_padded_batch_equals_each_picture_alone(tower, grad):
    pictures = [_picture(2, 3, 6, 0), _picture(4, 2, 6, 1), _picture(1, 1, 6, 2)]
    longest = max(len(p) for p, _ in pictures)
    patches, places = torch.full((3, longest, 588), 7.0), torch.zeros(3, longest, dtype=torch.long)
    mask = torch.zeros(3, longest, dtype=torch.bool)
    for row, (patch, place) in enumerate(pictures):
        patches[row, : len(patch)], places[row, : len(patch)], mask[row, : len(patch)] = patch, place, True
    with torch.set_grad_enabled(grad):
        together = tower(patches, places, mask)
        for row, (patch, place) in enumerate(pictures):
            alone = tower(patch[None], place[None])[0]
            torch.testing.assert_close(together[row, : len(patch)], alone, atol=1e-5, rtol=1e-5)


def test_states_are_the_same_with_and_without_gradients(tower):
    patches, places = _picture(3, 3, 6, 3)
    taught = tower(patches[None], places[None])
    with torch.no_grad():
        torch.testing.assert_close(tower(patches[None], places[None]), taught, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_order_of_patches_does_not_matter(tower):
    patches, places = _picture(2, 4, 6, 4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = tower(patches[order][None], places[order][None])
    torch.testing.assert_close(shuffled[0], tower(patches[None], places[None])[0, order], atol=1e-5, rtol=1e-5)


def test_every_used_layer_learns_and_no_other_exists(tower):
    assert len(tower.vision_model.encoder.layers) == TINY.num_hidden_layers - 1
    patches, places = _picture(2, 2, 6, 5)
    tower(patches[None], places[None]).square().sum().backward()
    # Key biases shift every score of a query alike, so their gradient is zero by nature.
    taught = (p.grad for name, p in tower.named_parameters() if not name.endswith("k_proj.bias"))
    assert all(gradient is not None and gradient.any() for gradient in taught)


def test_sketch_sees_a_picture_as_36_patches():
    with torch.device("meta"):
        tower = VisionTower(SKETCH.vision)
        states = tower(torch.zeros(2, 36, 768), torch.zeros(2, 36, dtype=torch.long))
    assert states.shape == (2, 36, SKETCH.vision.hidden_size)
