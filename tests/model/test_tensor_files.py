"""What strangers' checkpoints look like: prefixes, absent parts, shards, dtypes, tokenizers and bombs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bagel import TINY
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from triptych.errors import ModelError
from triptych.model import templates, weights
from triptych.model.bagel import Bagel
from triptych.model.templates import SpecialTokens


@pytest.fixture(scope="module")
def tiny() -> Bagel:
    torch.manual_seed(0)
    return Bagel(TINY, special=SpecialTokens(0, 1, 2, 3))


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return weights.save(tiny, tmp_path / "tiny")


def change(folder: Path, to) -> None:
    """Rewrite the model's weights, each (name, tensor) as `to` gives it; None leaves one out."""
    stored = {name: tensor.clone() for name, tensor in load_file(folder / "ema.safetensors").items()}
    pairs = [to(name, tensor) for name, tensor in stored.items()]
    save_file(dict(pair for pair in pairs if pair is not None), folder / "ema.safetensors")


def settings(folder: Path, name: str, **values) -> None:
    path = folder / name
    record = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))


def same(bagel: Bagel, other: Bagel) -> bool:
    state = other.state_dict()
    return all(torch.equal(weight, state[name]) for name, weight in bagel.state_dict().items())


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        weights.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"model.{name}",
        lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),
        lambda name: f"bagel.{name.replace('vit_model.', 'vit_model._fsdp_wrapped_module.')}",
    ],
)
def test_what_wrapped_a_model_is_taken_off_its_names(renamed, tiny, folder):
    change(folder, lambda name, tensor: (renamed(name), tensor))
    assert same(tiny, weights.load(folder))


def test_a_prefix_of_half_the_names_is_no_prefix(folder):
    change(folder, lambda name, tensor: (f"student.{name}" if "connector" in name else name, tensor))
    assert "connector.fc1.bias: expected [32], got none" in refusal(folder)


def test_names_that_become_one_are_refused(folder):
    stored = load_file(folder / "ema.safetensors")
    save_file(stored | {"module.llm2vae.bias": torch.zeros(64)}, folder / "ema.safetensors")
    assert "llm2vae.bias twice" in refusal(folder)


def test_an_adapter_is_not_taken_for_a_model(folder):
    stored = load_file(folder / "ema.safetensors")
    low = "language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_file(stored | {low: torch.zeros(2, 32)}, folder / "ema.safetensors")
    assert "LoRA" in refusal(folder) and "merged" in refusal(folder)
    (folder / "ema.safetensors").rename(folder / "adapter_model.safetensors")
    assert "merge it into its base" in refusal(folder)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("vit_model.", "connector."), "no vit_model.*, connector.* ("),
        (("vae2llm.", "llm2vae.", "time_embedder."), "no time_embedder.*, vae2llm.*, llm2vae.* ("),
        (("language_model.",), "no language_model.* ("),
    ],
)
def test_an_absent_part_is_named_and_comes_from_the_base(parts, told, tiny, folder, tmp_path):
    base = weights.save(tiny, tmp_path / "base")
    change(folder, lambda name, tensor: None if name.startswith(parts) else (name, tensor + 1))
    assert told in refusal(folder) and "--base CHECKPOINT" in refusal(folder)
    mixed, expected = weights.load(folder, base=base).state_dict(), tiny.state_dict()
    for name in ("connector.fc1.bias", "llm2vae.bias", "language_model.lm_head.weight"):
        assert torch.equal(mixed[name], expected[name] + (not name.startswith(parts)))


def test_the_base_fills_no_holes_inside_a_part(tiny, folder, tmp_path):
    base = weights.save(tiny, tmp_path / "base")
    change(folder, lambda name, tensor: None if name == "connector.fc1.bias" else (name, tensor))
    with pytest.raises(ModelError, match=r"connector\.fc1\.bias: expected \[32\], got none"):
        weights.load(folder, base=base)


def test_files_that_a_fine_tune_leaves_out_come_from_the_base(tiny, folder, tmp_path):
    base = weights.save(tiny, tmp_path / "base")
    for path in folder.iterdir():
        if path.name != "ema.safetensors":
            path.unlink()
    assert same(tiny, weights.load(folder, base=base))


def test_a_tied_head_is_the_embedding(tiny, folder):
    change(folder, lambda name, tensor: None if "lm_head" in name else (name, tensor))
    assert "lm_head.weight: expected" in refusal(folder)
    settings(folder, "llm_config.json", tie_word_embeddings=True)
    model = weights.load(folder).language_model
    assert torch.equal(model.lm_head.weight, tiny.language_model.model.embed_tokens.weight)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["ema", "model"])
def test_shards_need_no_index_but_all_of_them(stem, tiny, folder):
    stored = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    for part in range(2):
        names = sorted(stored)[part::2]
        save_file({name: stored[name] for name in names}, folder / f"{stem}-{part + 1:05d}-of-00002.safetensors")
    assert same(tiny, weights.load(folder))
    (folder / f"{stem}-00001-of-00002.safetensors").rename(folder / f"{stem}-00003-of-00003.safetensors")
    assert "shard" in refusal(folder)
    (folder / f"{stem}-00003-of-00003.safetensors").unlink()
    assert f"{stem}-00001-of-00002.safetensors" in refusal(folder)


def test_an_index_that_names_an_absent_shard_is_told(folder):
    (folder / "ema.safetensors").rename(folder / "a.safetensors")
    index = {"llm2vae.bias": "a.safetensors", "llm2vae.weight": "b.safetensors"}
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "b.safetensors" in refusal(folder) and "a.safetensors," not in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ema.pt", "model.ckpt"])
def test_pickles_are_refused(name, folder):
    (folder / "ema.safetensors").rename(folder / name)
    assert "pickled" in refusal(folder) and name in refusal(folder)


def test_a_pointer_of_git_lfs_is_named(folder):
    (folder / "ae.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json", "triptych.json", "config.json"]
)
def test_a_pipe_in_place_of_a_file_is_refused(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "triptych.json"])
def test_a_byte_order_mark_is_read(name, tiny, folder):
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert weights.load(folder).config == tiny.config


# --- dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_refused(dtype, folder):
    change(folder, lambda name, tensor: (name, tensor.to(dtype) if name.endswith("q_proj.weight") else tensor))
    assert "without scales" in refusal(folder) and "q_proj.weight" in refusal(folder)


def test_scales_of_quantized_weights_do_not_help(folder):
    stored = load_file(folder / "ema.safetensors")
    quantized = {"llm2vae.weight": stored["llm2vae.weight"].to(torch.int8), "llm2vae.weight_scale": torch.ones(1)}
    save_file(stored | quantized, folder / "ema.safetensors")
    assert "not quantized" in refusal(folder)


def test_one_weight_relabelled_between_the_formats_of_16_bits_is_seen(folder):
    change(folder, lambda name, tensor: (name, tensor.bfloat16()))
    weights.load(folder)
    change(folder, lambda name, tensor: (name, tensor.half() if name == "llm2vae.bias" else tensor))
    assert "llm2vae.bias is F16" in refusal(folder)


# --- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": "gone", "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        {"rope_theta": 5000, "rope_parameters": None, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5000.0, "rope_scaling": None, "max_position_embeddings": 32768, "use_cache": True},
        {"rope_theta": 5000.0, "layer_types": ["full_attention"] * 2, "sliding_window": 4096, "head_dim": 8},
    ],
)
def test_what_a_published_config_says_is_read(values, folder):
    settings(folder, "llm_config.json", **values)
    assert weights.load(folder).config.language.rope_theta == 5000


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("llm_config.json", {"rope_theta": "gone"}, "lacks rope_theta"),
        ("llm_config.json", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("llm_config.json", {"rope_scaling": {"type": "linear"}}, "linear"),
        ("llm_config.json", {"rope_parameters": {"rope_theta": 5.0}}, "two values of rope_theta"),
        ("llm_config.json", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "full_attention"),
        ("llm_config.json", {"rope_parameters": [5.0]}, "rope_parameters"),
        ("llm_config.json", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llm_config.json", {"hidden_act": "gelu"}, "hidden_act"),
        ("llm_config.json", {"use_sliding_window": True}, "use_sliding_window"),
        ("llm_config.json", {"head_dim": 16}, "head_dim"),
        ("llm_config.json", {"qk_norm": False}, "qk_norm"),
        ("llm_config.json", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("llm_config.json", {"model_type": "llama"}, "model_type"),
        ("llm_config.json", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llm_config.json", {"residual_multiplier": 0.2}, "residual_multiplier"),
        ("llm_config.json", {"num_experts": 8}, "num_experts"),
        ("llm_config.json", {"layer_module": "Qwen2DecoderLayer"}, "layer_module"),
        ("llm_config.json", {"quantization_config": {"bits": 4}}, "quantized"),
        ("vit_config.json", {"hidden_act": "gelu"}, "hidden_act"),
        ("vit_config.json", {"rope": True}, "rope"),
        ("vit_config.json", {"patch_size": "gone"}, "lacks patch_size"),
        ("config.json", {"connector_act": "silu"}, "connector_act"),
        ("config.json", {"interpolate_pos": True}, "interpolate_pos"),
    ],
)
def test_a_config_that_computes_otherwise_is_refused(name, values, told, folder):
    settings(folder, name, **values)
    assert told in refusal(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("llm_config.json", {"num_hidden_layers": 10**9}),
        ("llm_config.json", {"num_hidden_layers": 500}),
        ("llm_config.json", {"vocab_size": 2**40}),
        ("llm_config.json", {"vocab_size": 3_999_999}),
        ("llm_config.json", {"hidden_size": 2**17}),
        ("vit_config.json", {"num_hidden_layers": 10**7}),
        ("triptych.json", {"max_latent_size": 10**6}),
        ("triptych.json", {"image_size": [10**6, 10**6]}),
        ("triptych.json", {"sampling": {"draw_points": 10**9}}),
        ("triptych.json", {"sampling": {"max_plan": 10**9}}),
        ("triptych.json", {"autoencoder": {"ch_mult": [1] * 5000}}),
        ("triptych.json", {"autoencoder": {"num_res_blocks": 10**6}}),
        ("triptych.json", {"vae_resize": {"max_side": 10**6, "min_side": 10**6, "stride": 16}}),
    ],
)
def test_a_bomb_in_a_config_is_refused_before_it_takes_memory(name, values, folder):
    settings(folder, name, **values)
    refusal(folder)  # with the fault it takes for ever, or all memory


# --- tokenizer ------------------------------------------------------------------------------------------------------


def qwen(folder: Path, merges: list[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE as Qwen2's, and its files without tokenizer.json."""
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(templates._WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    added = {str(tokenizer.token_to_id(name)): {"content": name, "special": True} for name in names}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return tokenizer


def test_a_tokenizer_is_built_from_vocabulary_and_merges(tmp_path):
    expected = qwen(tmp_path, [("a", "p"), ("ap", "p"), ("Ġ", "app"), ("1", "2")])
    built, special = templates.load_tokenizer(tmp_path)
    for text in ("two apps, 12 apps\n\n  don't", "<|im_start|>é é 猫<|im_end|>", " app app"):
        assert built.encode(text).ids == expected.encode(text).ids and built.decode(built.encode(text).ids)
    assert special.bos == expected.token_to_id("<|im_start|>")


def test_added_tokens_must_have_the_numbers_of_their_file(tmp_path):
    qwen(tmp_path, [("a", "p")])
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks <\|im_start\|>"):
        templates.load_tokenizer(tmp_path)
    names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    (tmp_path / "added_tokens.json").write_text(json.dumps({name: 300 + n for n, name in enumerate(names)}))
    with pytest.raises(ModelError, match="would be token 257; expected 300"):
        templates.load_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_be_had_is_told_before_the_weights(folder):
    record = json.loads((folder / "triptych.json").read_text())
    record.pop("special_tokens")
    (folder / "triptych.json").write_text(json.dumps(record))
    (folder / "ema.safetensors").write_bytes(b"not read")
    assert "no tokenizer" in refusal(folder)
    (folder / "vocab.json").write_text(json.dumps({"cat": 0, "dog": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert "256 bytes" in refusal(folder)


def test_settings_of_rollouts_in_older_checkpoints_change_nothing(tiny, folder):
    settings(folder, "triptych.json", rollout_sampling={"temperature": 1.0})
    assert weights.load(folder).config == tiny.config
    assert weights.fingerprint(tiny) != weights.fingerprint(Bagel(replace(TINY, name="other")))
