"""Checkpoints: the published names map one to one, what is saved is loaded, and what is off is named."""

import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.errors import ModelError, OutputError
from triptych.model import config_files, weights
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, SKETCH, BagelConfig, LanguageConfig, Sampling, VisionConfig
from triptych.model.templates import SpecialTokens

TINY = replace(
    SKETCH,
    name="tiny",
    language=LanguageConfig(24, 16, 24, 1, 2, 1, rope_theta=1e4),
    vision=VisionConfig(16, 24, 2, 2, patch_size=16, patches_per_side=6),
    autoencoder=replace(SKETCH.autoencoder, ch_mult=(1, 1), z_channels=4),
    max_latent_size=6,
)
SPECIAL = SpecialTokens(20, 21, 22, 23)


@pytest.fixture
def tiny() -> Bagel:
    torch.manual_seed(0)
    return Bagel(TINY, special=SPECIAL)


@pytest.fixture
def folder(tiny, tmp_path):
    return weights.save(tiny, tmp_path / "tiny")


def same(one: Bagel, other: Bagel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_published_names_and_shapes_map_one_to_one(shared):
    with gzip.open(shared / "parity" / "case8_checkpoint_manifest.json.gz") as file:
        manifest = json.load(file)
    with torch.device("meta"):
        ours = weights.shapes(Bagel(BAGEL_7B))
    for name, published in manifest["files"].items():
        assert ours[name] == {key: tuple(entry["shape"]) for key, entry in published["tensors"].items()}


def test_the_golden_checkpoint_loads_and_survives_a_round_trip(shared, tmp_path):
    bagel = weights.load(shared / "parity" / "tiny_ckpt")
    assert bagel.special == SpecialTokens(184, 185, 186, 187)
    assert bagel.config.max_latent_size == 16 and bagel.config.autoencoder.ch_mult == (1, 1, 2, 1)
    again = weights.load(weights.save(bagel, tmp_path / "again"))
    assert same(bagel, again) and again.config == bagel.config and again.special == bagel.special


def test_what_is_saved_is_loaded(tiny, folder):
    loaded = weights.load(folder)
    assert same(tiny, loaded)
    assert loaded.config == TINY and loaded.special == SPECIAL
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == [
        name for name, p in tiny.named_parameters() if not p.requires_grad
    ]


def test_compute_dtype_reaches_the_model_and_spares_the_autoencoder(folder):
    loaded = weights.load(folder, dtype=torch.bfloat16)
    kinds = {name.startswith("autoencoder."): p.dtype for name, p in loaded.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}


def test_half_the_bytes_when_asked(tiny, folder, tmp_path):
    small = weights.save(tiny, tmp_path / "small", dtype=torch.bfloat16)
    assert (small / "ema.safetensors").stat().st_size < 0.7 * (folder / "ema.safetensors").stat().st_size
    assert weights.fingerprint(weights.load(small)) != weights.fingerprint(weights.load(folder))


def test_tables_may_be_left_out(tiny, folder):
    stored = load_file(folder / "ema.safetensors")
    save_file({k: v.clone() for k, v in stored.items() if "pos_embed.pos" not in k}, folder / "ema.safetensors")
    assert same(tiny, weights.load(folder))


@pytest.mark.parametrize("stem", ["ema", "model"])
def test_shards_are_one_model(tiny, folder, stem):
    stored = {k: v.clone() for k, v in load_file(folder / "ema.safetensors").items()}
    (folder / "ema.safetensors").unlink()
    index = {}
    for part in range(3):
        keys, name = sorted(stored)[part::3], f"{stem}-{part}-of-3.safetensors"
        save_file({key: stored[key] for key in keys}, folder / name)
        index |= dict.fromkeys(keys, name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(tiny, weights.load(folder))
    (folder / f"{stem}-1-of-3.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        weights.load(folder)


def test_every_name_that_is_off_is_named(folder):
    stored = {k: v.clone() for k, v in load_file(folder / "ema.safetensors").items()}
    del stored["llm2vae.bias"]
    stored["extra.weight"] = torch.zeros(2, 5)
    stored["connector.fc1.bias"] = torch.zeros(7)
    save_file(stored, folder / "ema.safetensors")
    with pytest.raises(ModelError) as caught:
        weights.load(folder)
    for part in (
        "llm2vae.bias: expected [16], got none",
        "extra.weight: expected none, got [2, 5]",
        "connector.fc1.bias: expected [16], got [7]",
    ):
        assert part in str(caught.value)


def test_a_long_list_is_cut(folder):
    save_file({f"x{i}": torch.zeros(1) for i in range(30)}, folder / "ae.safetensors")
    with pytest.raises(ModelError, match=r"and \d+ more") as caught:
        weights.load(folder)
    assert str(caught.value).count("expected") == 8


def test_damaged_and_missing_files_are_model_errors(folder):
    (folder / "ae.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="damaged"):
        weights.load(folder)
    (folder / "ae.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        weights.load(folder)
    whole = (folder / "llm_config.json").read_text()
    (folder / "llm_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"llm_config\.json"):
        weights.load(folder)
    (folder / "ema.safetensors").unlink()
    (folder / "llm_config.json").write_text(whole)
    with pytest.raises(ModelError, match="no weights"):
        weights.load(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "no json", '{"version": "1.0", "model": {"type": "WordLevel"']
)
def test_a_damaged_tokenizer_is_named(content, folder):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read: .*expected"):
        weights.load(folder)


@pytest.mark.parametrize(
    "index", [{}, {"a": 3}, {"a": None, "b": "ema.safetensors"}, {"a": ""}, {"a": "../x.safetensors"}, {"a": ["x"]}, []]
)
def test_an_index_that_names_no_files_is_named(index, folder):
    (folder / "ema.safetensors").unlink()
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ModelError, match=r"ema\.safetensors\.index\.json"):
        weights.load(folder)


SIZES = {
    "llm_config.json": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "vit_config.json": ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_channels"),
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_sizes_of_no_model_are_model_errors_that_name_the_folder(name, size, folder):
    config = json.loads((folder / name).read_text())
    for value in (-256, 0, 257, 10**30, "64", None, [], 1.5):
        if (size, value) in (("vocab_size", 257), ("num_hidden_layers", 257), ("num_hidden_layers", 10**30)):
            continue  # these are sizes of a model, if of another, or of one that takes for ever
        (folder / name).write_text(json.dumps(config | {size: value}))
        with pytest.raises(ModelError, match=folder.name):
            weights.outline(folder, config_files.read_config(folder)[0])
            weights.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("triptych.json", {"language": 3}, "language in triptych.json"),
        ("triptych.json", {"special_tokens": 3}, "special tokens are 3"),
        ("triptych.json", {"special_tokens": [1, 2]}, r"special tokens are \[1, 2\]"),
        ("bagel_args.json", {}, r"bagel_args\.json lacks 'latent_patch_size'"),
        ("bagel_args.json", {"special_token_ids": 3}, r"bagel_args\.json is 3"),
        ("bagel_args.json", {"special_token_ids": {}}, r"bagel_args\.json lacks 'bos_token_id'"),
    ],
)
def test_an_incomplete_configuration_is_named(name, content, named, folder):
    whole = ("latent_patch_size", "max_latent_size", "vit_select_layer", "vit_max_num_patch_per_side")
    rest = dict.fromkeys(whole, 2) if name == "bagel_args.json" and content else {}
    (folder / name).write_text(json.dumps(rest | content))
    with pytest.raises(ModelError, match=named):
        config_files.read_config(folder)


def test_unknown_names_are_model_errors(tmp_path, monkeypatch):
    for name in ("no-such-model", tmp_path / "none", "./none/here"):
        with pytest.raises(ModelError, match="no model"):
            weights.load(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="pass its folder"):
        weights.load("nobody/no-such-model")


def test_nothing_is_overwritten(tiny, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="exists"):
        weights.save(tiny, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_place_that_cannot_be_written_leaves_nothing(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        weights.save(tiny, tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("config", [BAGEL_7B, SKETCH, TINY], ids=lambda config: config.name)
def test_a_configuration_survives_json(config: BagelConfig):
    assert config_files.config_from_json(json.loads(json.dumps(config_files.config_to_json(config)))) == config


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"language": {"hidden_size": "64"}}, "language.hidden_size"),
        ({"language": {"rms_norm_eps": True}}, "language.rms_norm_eps"),
        ({"sampling": {"draw_renorm": "local"}}, "sampling.draw_renorm"),
        ({"fine": {"draw_points": 1}}, "sampling.draw_points is 1; expected 2 to 10,001"),
        ({"image_size": 96}, "image_size"),
        ({"vision": 3}, "vision"),
        ({"language": {"hidden_size": -256}}, "language.hidden_size is -256; expected 1 to 262,144"),
        ({"latent_patch_size": 0}, "latent_patch_size is 0"),
        ({"image_size": [0, 512]}, "image_size is 0"),
        ({"autoencoder": {"ch_mult": [1, -1]}}, "autoencoder.ch_mult is -1"),
    ],
)
def test_a_setting_that_is_off_is_named(record, named):
    with pytest.raises(ModelError, match=named):
        config_files.config_from_json(record)


def test_names_of_0_1_are_read_as_todays():
    record = {"interval": [0.1, 0.9], "renorm_floor": 0.5, "stochastic": [1, 2]}
    config = config_files.config_from_json({"fine": record, "draft": {"draw_points": 9}})
    assert config.sampling == Sampling(guidance_interval=(0.1, 0.9), renorm_min=0.5, sde_indices=(1, 2))
    assert "draft" not in config_files.config_to_json(config)  # of rollouts: a recipe of RL has it


def test_a_model_keeps_the_fingerprint_that_0_1_recorded():
    assert weights.fingerprint(weights.load("sketch")) == "sketch-9bba2725a274dc39"
    assert weights.fingerprint(SimpleNamespace(config=SKETCH)) == "sketch"  # no network: the name alone


@pytest.mark.parametrize("whole_below", [10**9, 0], ids=["bytes", "sums"])
def test_a_fingerprint_follows_every_weight_and_no_thread(tiny, whole_below):
    before, threads = weights.fingerprint(tiny, whole_below), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert weights.fingerprint(tiny, whole_below) == before
    torch.set_num_threads(threads)
    weight = tiny.language_model.lm_head.weight.data
    weight[[0, 1]] = weight[[1, 0]]  # the same numbers in other places
    assert weights.fingerprint(tiny, whole_below) != before
    weight[[0, 1]] = weight[[1, 0]]
    assert weights.fingerprint(tiny, whole_below) == before
    tiny.llm2vae.bias.data[-1] += 1
    assert weights.fingerprint(tiny, whole_below) != before
    tiny.llm2vae.bias.data[-1] -= 1
    assert weights.fingerprint(tiny.bfloat16(), whole_below) != before


def test_absent_settings_keep_their_defaults():
    assert config_files.config_from_json({}) == BAGEL_7B


@pytest.mark.parametrize("name", ["sketch", "sketch-lessons"])
def test_the_packaged_models_load_by_name_and_are_small(name):
    """Training starts from the lessons (every recipe of SKETCH names them) and ends in `sketch`: both must be there."""
    folder = weights.resolve_checkpoint(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 40 * 2**20
    assert weights.load(name).config.world == "stickers"
