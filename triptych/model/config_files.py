"""The json files of a checkpoint folder, read as a `BagelConfig` or refused: nothing that changes the computation is
passed over.

    llm_config.json, vit_config.json    sizes, by their published names
    triptych.json                       the rest of `BagelConfig`; a released BAGEL has none, and gets `BAGEL_7B`'s
    config.json, bagel_args.json        BAGEL's own settings beside them, where there are any
    ae_config.json                      the autoencoder's, which the release keeps in code
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from triptych.bounds import violations
from triptych.errors import ModelError
from triptych.files import write_json, write_text
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.config import (
    BAGEL_7B,
    AutoencoderConfig,
    BagelConfig,
    LanguageConfig,
    VisionConfig,
    current_names,
)

CONFIG_FILES = (
    "llm_config.json",
    "vit_config.json",
    "ae_config.json",
    "config.json",
    "bagel_args.json",
    "triptych.json",
)
_VISION_ONLY_OURS = ("select_layer", "patches_per_side")  # settings that vit_config.json does not know
_PARTS = (LanguageConfig, VisionConfig, AutoencoderConfig)
_LARGEST = 64 * 2**20  # bytes of a json file; the index of a 7B has 0.1 MB
# What a published config must say where triptych.json does not: the other sizes have one value in all of them.
_NEEDED = {
    "llm_config.json": (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "rope_theta"),
    ),
    "vit_config.json": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
    "ae_config.json": (),
}
# Settings that change the computation, with the values that it has here; one that is absent has them, too.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_type": ("full",),
    "connector_act": ("gelu_pytorch_tanh",),
    "interpolate_pos": (False,),
    "is_causal": (True,),
    "layer_module": ("Qwen2MoTDecoderLayer",),  # two experts; BAGEL's code has decoders with fewer, too
    "partial_rotary_factor": (1,),
    "qk_norm": (True,),
    "rope_type": ("default",),
    "use_sliding_window": (False,),
    "vit_rope": (False,),
}
_ONLY_IN: dict[str, dict[str, tuple[Any, ...]]] = {
    "llm_config.json": {"model_type": ("qwen2", "bagel"), "hidden_act": ("silu", "swish")},
    "vit_config.json": {
        "model_type": ("siglip_vision_model", "siglip_navit"),
        "hidden_act": ("gelu_pytorch_tanh",),
        "rope": (False,),  # BAGEL's code turns it off, whatever the file says
    },
}
# Named after the computation, and without effect on it: for training, or told by the names and shapes of the weights.
_WITHOUT_EFFECT = {
    *("attention_dropout", "attention_probs_dropout_prob", "attention_bias", "mlp_bias", "tie_encoder_decoder"),
    *("tie_word_embeddings", "sliding_window", "max_window_layers", "vision_use_head", "attn_implementation"),
    *("add_cross_attention", "cross_attention_hidden_size", "num_attention_heads", "initializer_factor"),
    *("output_attentions", "pruned_heads", "vit_max_num_patch_per_side"),
}
_OF_COMPUTATION = re.compile(
    r"(?:^|_)(?:act|activation|alibi|attention|attn|bias|capping|clip|eps|expert|experts|gate|gated|head|heads|"
    r"interpolate|layer_types|logit|logits|mlp|moe|multiplier|norm|parallel|qk|quant\w*|residual|rope|rotary|scale|"
    r"scaling|softcap|softcapping|theta|tie|window)(?:_|$)"
)


def config_to_json(config: BagelConfig) -> dict[str, Any]:
    """A configuration as JSON values."""
    return json.loads(json.dumps(asdict(config)))  # there and back: tuples become lists, as in a file


def config_from_json(record: Mapping[str, Any]) -> BagelConfig:
    """Undo `config_to_json`; what is absent keeps its default, and names of 0.1 are read as today's.

    Raises ModelError on unknown names, wrong types and numbers out of bounds.
    """
    config = _build(BagelConfig, current_names(record), "")
    for path, value, expected in violations(config):
        raise ModelError(f"setting {path} is {value!r}; expected {expected}")
    return config


def read_config(folder: Path) -> tuple[BagelConfig, templates.SpecialTokens | None]:
    """The configuration of a checkpoint folder, and its special tokens where a file gives them without a tokenizer.

    Raises ModelError, with the folder or the file, for what is missing or damaged.
    """
    ours = read_json(folder / "triptych.json") if (folder / "triptych.json").exists() else {}
    special = ours.pop("special_tokens", None)
    defaults = config_to_json(BAGEL_7B)
    record = defaults | ours  # a released BAGEL has no triptych.json
    sections = {"language": "llm_config.json", "vision": "vit_config.json"}
    if (folder / "ae_config.json").exists():
        sections["autoencoder"] = "ae_config.json"
    for section, name in sections.items():
        published, own = _settings(folder / name), _named(ours.get(section, {}), f"{section} in triptych.json")
        if absent := [key for key in _NEEDED[name] if key not in {**published, **own}]:
            raise ModelError(f"{folder / name} lacks {', '.join(absent)}; expected them there: fetch it again")
        # A published config has many more keys (dropout, token ids, ...); ours win where both have one.
        sizes = {key: value for key, value in published.items() if key in defaults[section]}
        record[section] = defaults[section] | sizes | own
        _check_heads(folder / name, published, record[section])
    if (folder / "config.json").exists():
        settings = _settings(folder / "config.json")  # of transformers; what it holds of BAGEL's counts
        record |= {key: settings[key] for key in ("latent_patch_size", "max_latent_size") if key in settings}
        if "vit_max_num_patch_per_side" in settings:
            record["vision"]["patches_per_side"] = settings["vit_max_num_patch_per_side"]
    # bagel_args.json and ae_config.json hold what the release keeps in code; the tests' golden model has them.
    if (folder / "bagel_args.json").exists():
        arguments = _settings(folder / "bagel_args.json")
        try:
            record["latent_patch_size"] = arguments["latent_patch_size"]
            record["max_latent_size"] = arguments["max_latent_size"]
            record["vision"]["select_layer"] = arguments["vit_select_layer"]
            record["vision"]["patches_per_side"] = arguments["vit_max_num_patch_per_side"]
            ids = _named(arguments["special_token_ids"], "special_token_ids in bagel_args.json")
            special = [ids[key] for key in ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")]
        except KeyError as error:
            raise ModelError(f"{folder / 'bagel_args.json'} lacks {error}; fetch it again") from error
    try:
        return config_from_json(record), None if special is None else _special(special)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def _special(ids: Any) -> templates.SpecialTokens:
    if not isinstance(ids, list) or len(ids) != 4 or not all(isinstance(each, int) and each >= 0 for each in ids):
        raise ModelError(f"special tokens are {ids!r}; expected four ids of tokens")
    return templates.SpecialTokens(*ids)


def _named(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{what} is {value!r}; expected named values")
    return value


def write_config(bagel: Bagel, folder: Path) -> None:
    """Write what `read_config` and `templates.load_tokenizer` read."""
    record = config_to_json(bagel.config)
    language, vision = record.pop("language"), record.pop("vision")
    record["vision"] = {key: vision.pop(key) for key in _VISION_ONLY_OURS}
    # What other readers of such files, transformers among them, need to know; we ignore it.
    language |= {"model_type": "qwen2", "hidden_act": "silu", "tie_word_embeddings": False}
    vision |= {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
    if bagel.has_tokenizer:
        # Not its own `save`, whose error on a full disk is of no class that could be told from others.
        write_text(folder / "tokenizer.json", bagel.tokenizer.to_str(pretty=True))
    else:
        with suppress(ModelError):  # a model that was built without either
            record["special_tokens"] = list(asdict(bagel.special).values())
    for name, values in (("llm_config.json", language), ("vit_config.json", vision), ("triptych.json", record)):
        write_json(folder / name, values)


def _build(kind: Any, record: Any, path: str) -> Any:
    if not isinstance(record, Mapping):
        raise ModelError(f"setting {path or 'configuration'} is {record!r}; expected named values")
    hints = get_type_hints(kind)  # without the bounds of `Annotated`; `violations` reads those
    names = {field.name for field in fields(kind)}
    unknown = sorted(set(record) - names)
    if unknown:
        raise ModelError(f"unknown setting {path}{unknown[0]}; expected one of {', '.join(sorted(names))}")
    return kind(**{name: _typed(hints[name], value, path + name) for name, value in record.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `hint` has it, JSON's lists as tuples."""
    if is_dataclass(hint):
        return _build(hint, value, f"{path}.")
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):  # `X | None`, the only union of the configuration
        return None if value is None else _typed(choices[0], value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(choices[0], part, path) for part in value)
    if origin is Literal and value in choices:
        return value
    # A float may be written 1 in JSON; true is an int to Python, and a number nowhere here.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ModelError(f"setting {path} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def read_json(path: Path) -> dict[str, Any]:
    """The named values of a json file, with or without a byte order mark. Raises ModelError."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ModelError(f"{path} is no file; expected one beside the weights: fetch it again")
        if path.stat().st_size > _LARGEST:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; expected at most {_LARGEST:,}: fetch it again")
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; expected it beside the weights") from error
    except ModelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; fetch it again") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path} holds no named values; fetch it again")
    return record


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a published config, those of its rotary positions among them. Raises ModelError for one that
    changes the computation to what is not done here."""
    settings = read_json(path)
    # Transformers 5 writes rope_theta into rope_parameters; older ones write rope_scaling, and `type` in it.
    for name in ("rope_scaling", "rope_parameters"):
        rope = settings.pop(name, None)
        for key, value in _named(rope or {}, f"{name} in {path}").items():
            key = "rope_type" if key == "type" else key
            if key in settings and settings[key] != value:
                raise ModelError(f"{path} has two values of {key}, {settings[key]!r} and {value!r}; expected one")
            if value is not None and key not in ("rope_theta", *_ONLY):
                raise ModelError(f"{path} sets {name} to {str(rope)[:200]}; expected rotary positions without {key}")
            if value is not None:
                settings[key] = value
    if settings.get("quantization_config") is not None:
        raise ModelError(f"{path} is of quantized weights; expected a checkpoint in float32, float16 or bfloat16")
    if not set(_flat(settings.pop("layer_types", ()))) <= {"full_attention"}:
        raise ModelError(f"{path} has layer_types without full attention; expected full attention in every layer")
    known = {field.name for part in (BagelConfig, *_PARTS) for field in fields(part)} | {"head_dim"}
    for key, value in settings.items():
        only = _ONLY_IN.get(path.name, {}).get(key, _ONLY.get(key))
        if only is not None and value is not None and value not in only:
            raise ModelError(f"{path} sets {key} to {value!r}; expected {' or '.join(map(repr, only))}, as in BAGEL")
        unknown = only is None and key not in known | _WITHOUT_EFFECT and _OF_COMPUTATION.search(key)
        if unknown and value not in (None, False, [], {}):
            raise ModelError(f"{path} sets {key} to {value!r}, which is not known here; expected a config of BAGEL")
    return settings


def _flat(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else [] if value is None else [str(value)]


def _check_heads(path: Path, published: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Raises ModelError for sizes that a config gives twice, and that differ."""
    with suppress(TypeError, ZeroDivisionError):  # sizes that are no numbers are named later
        head = published.get("head_dim")
        if head is not None and head * sizes["num_attention_heads"] != sizes["hidden_size"]:
            raise ModelError(
                f"{path} sets head_dim to {head}; expected hidden_size / num_attention_heads, "
                f"{sizes['hidden_size'] // sizes['num_attention_heads']}"
            )
    if "ch_mult" in sizes and "downsample" in published:
        levels = 2 ** min(len(_flat(sizes["ch_mult"])) - 1, 64)
        if published["downsample"] != levels:
            raise ModelError(
                f"{path} sets downsample to {published['downsample']!r}; expected {levels}, by its ch_mult"
            )
