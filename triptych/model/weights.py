"""Load and save: a checkpoint folder in the published layout, and what is off when it does not fit.

    llm_config.json, vit_config.json    sizes, by their published names
    triptych.json                       the rest of `BagelConfig`; a released BAGEL has none, and gets `BAGEL_7B`'s
    ema.safetensors, ae.safetensors     the model and its autoencoder, under the published names, one to one
    tokenizer.json                      the words

`ema` may be in shards with an index. Parameters of the model take the compute dtype; the autoencoder stays in float32,
since it is a hundredth of the weights and bf16 costs it visible detail.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from triptych.errors import ModelError, OutputError
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, BagelConfig
from triptych.model.vision import sincos_table

MODEL_FILES = ("ema.safetensors", "ema.safetensors.index.json", "model.safetensors.index.json", "model.safetensors")
AUTOENCODER_FILE = "ae.safetensors"
_PREFIX = "autoencoder."  # where Bagel holds what ae.safetensors holds
_SHOWN = 8  # names listed in an error
_OURS = ("select_layer", "patches_per_side")  # settings of the vision tower that vit_config.json does not know
_UNSIZED = ("fine.", "draft.", "vision.select_layer")  # whole numbers that may be 0 or less; all others are sizes
_CONFIG_FILES = ("llm_config.json", "vit_config.json", "ae_config.json", "bagel_args.json", "triptych.json")
_HUB_FILES = ["*.json", "*.safetensors"]


def load(name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Bagel:
    """The model of a packaged name ("sketch"), a folder, or a hub name ("org/name").

    `dtype` is the compute dtype; by default float32 on a CPU and bfloat16 elsewhere. Memory is taken once. Raises
    ModelError when there is no such checkpoint, or names or shapes in it are off.
    """
    folder, device = resolve_checkpoint(name), torch.device(device)
    config, special = read_config(folder)
    tokenizer = None
    if (folder / "tokenizer.json").is_file():
        tokenizer, special = templates.load_tokenizer(folder)
    bagel = outline(folder, config, tokenizer, special)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    expected, state = shapes(bagel), {}
    for key, tensor in _read(_model_files(folder), expected["ema.safetensors"], _tables(config), folder):
        state[key] = tensor.to(device=device, dtype=dtype)
    for key, tensor in _read([folder / AUTOENCODER_FILE], expected[AUTOENCODER_FILE], {}, folder):
        state[_PREFIX + key] = tensor.to(device=device, dtype=torch.float32)
    bagel.load_state_dict(state, assign=True)
    return bagel.eval()


def outline(
    folder: Path,
    config: BagelConfig,
    tokenizer: Tokenizer | None = None,
    special: templates.SpecialTokens | None = None,
) -> Bagel:
    """The model of a folder's configuration, on the meta device: all but its numbers.

    Raises ModelError for sizes that cannot be of one model, as what is built of them notices.
    """
    try:
        for part in (config.language, config.vision):  # a vision tower would notice at its first picture
            if part.hidden_size % part.num_attention_heads:
                wanted = f"a multiple of its num_attention_heads, {part.num_attention_heads}"
                raise ValueError(f"hidden_size is {part.hidden_size}; expected {wanted}")
        with torch.device("meta"):
            return Bagel(config, tokenizer, special)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        sizes = ", ".join(name for name in _CONFIG_FILES if (folder / name).is_file())
        raise ModelError(f"the sizes in {folder} fit no model: {error}; check {sizes}, or fetch them again") from error


def save(
    bagel: Bagel, folder: str | Path, dtype: torch.dtype | None = None, state: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a checkpoint to a new `folder`, whole or not at all; `load` of it gives the same model.

    `dtype` is that of the stored model (as it is by default); `state` stands in for `bagel.state_dict()` where the
    parameters are spread over machines. Raises OutputError if the folder exists or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise OutputError(f"{folder} exists; expected a new folder, so that no weights are overwritten: choose another")
    tensors = bagel.state_dict() if state is None else state
    inside = {key: tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)}
    model = {key: _stored(tensor, dtype) for key, tensor in tensors.items() if key not in inside}
    autoencoder = {key.removeprefix(_PREFIX): _stored(tensor, None) for key, tensor in inside.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            _write_config(bagel, part)
            save_file(model, part / "ema.safetensors", metadata={"format": "pt"})
            save_file(autoencoder, part / AUTOENCODER_FILE, metadata={"format": "pt"})
            os.rename(part, folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {error}; choose a folder that can be written") from error
    return folder


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a packaged name, of a path, or of a hub name, which is downloaded once. Raises ModelError."""
    packaged = Path(__file__).parents[1] / "weights"
    text = str(name)
    ours = {path.parent.name: path.parent for path in packaged.glob("*/triptych.json")}
    if isinstance(name, str) and name in ours:
        return ours[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        choices = ", ".join(["a folder", "a hub name like org/name", *sorted(map(repr, ours))])
        raise ModelError(f"no model {text!r}; expected one of: {choices}")
    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"no model {text!r}: it is no folder here, and the hub did not give it ({reason}); "
            "check the name and the connection, or download it elsewhere and pass its folder"
        ) from error


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over the weight files of a checkpoint folder, names and contents, as hex digits."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted({*_model_files(folder), folder / AUTOENCODER_FILE}):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def shapes(bagel: Bagel) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes that each weight file of this model holds; works on the meta device."""
    files: dict[str, dict[str, tuple[int, ...]]] = {"ema.safetensors": {}, AUTOENCODER_FILE: {}}
    for key, tensor in bagel.state_dict().items():
        inside = key.startswith(_PREFIX)
        files[AUTOENCODER_FILE if inside else "ema.safetensors"][key.removeprefix(_PREFIX)] = tuple(tensor.shape)
    return files


# --- configuration --------------------------------------------------------------------------------------------------


def config_to_json(config: BagelConfig) -> dict[str, Any]:
    """A configuration as JSON values."""
    return json.loads(json.dumps(asdict(config)))


def config_from_json(record: Mapping[str, Any]) -> BagelConfig:
    """Undo `config_to_json`; what is absent keeps its default. Raises ModelError on unknown names and wrong values."""
    return _build(BagelConfig, record, "")


def read_config(folder: Path) -> tuple[BagelConfig, templates.SpecialTokens | None]:
    """The configuration of a checkpoint folder, and its special tokens where a file gives them without a tokenizer.

    Raises ModelError, with the folder or the file, for what is missing or damaged.
    """
    ours = _json(folder / "triptych.json") if (folder / "triptych.json").is_file() else {}
    special = ours.pop("special_tokens", None)
    defaults = config_to_json(BAGEL_7B)
    record = defaults | ours
    sections = {"language": "llm_config.json", "vision": "vit_config.json"}
    if (folder / "ae_config.json").is_file():
        sections["autoencoder"] = "ae_config.json"
    for section, name in sections.items():
        known = {key: value for key, value in _json(folder / name).items() if key in defaults[section]}
        record[section] = defaults[section] | known | _named(ours.get(section, {}), f"{section} in triptych.json")
    if (folder / "bagel_args.json").is_file():
        arguments = _json(folder / "bagel_args.json")
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


def _write_config(bagel: Bagel, folder: Path) -> None:
    record = config_to_json(bagel.config)
    language, vision = record.pop("language"), record.pop("vision")
    record["vision"] = {key: vision.pop(key) for key in _OURS}
    language |= {"model_type": "qwen2", "hidden_act": "silu", "tie_word_embeddings": False}
    vision |= {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
    if bagel._tokenizer is not None:
        bagel.tokenizer.save(str(folder / "tokenizer.json"))
    elif bagel._special is not None:
        record["special_tokens"] = list(asdict(bagel._special).values())
    for name, values in (("llm_config.json", language), ("vit_config.json", vision), ("triptych.json", record)):
        (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _build(kind: Any, record: Any, path: str) -> Any:
    if not isinstance(record, Mapping):
        raise ModelError(f"setting {path or 'configuration'} is {record!r}; expected named values")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise ModelError(f"unknown setting {path}{unknown[0]}; expected one of {', '.join(sorted(known))}")
    return kind(**{name: _typed(hints[name], value, path + name) for name, value in record.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `hint` has it, JSON's lists as tuples."""
    if is_dataclass(hint):
        return _build(hint, value, f"{path}.")
    origin, choices = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return None if value is None else _typed(choices[0], value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(choices[0], part, path) for part in value)
    if origin is Literal and value in choices:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and value < 1 and not path.startswith(_UNSIZED):
        raise ModelError(f"setting {path} is {value!r}; expected a size of 1 or more")
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ModelError(f"setting {path} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; expected it beside the weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; fetch it again") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path} holds no named values; fetch it again")
    return record


# --- weight files ---------------------------------------------------------------------------------------------------


def _model_files(folder: Path) -> list[Path]:
    found = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"no weights in {folder}; expected one of {', '.join(MODEL_FILES)}")
    if found.suffix != ".json":
        return [found]
    index = _json(found).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError(f"{found} has no weight_map; fetch it again")
    for name in index.values():
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{found} names {name!r} as weights; expected a safetensors file: fetch it again")
    return [folder / name for name in sorted(set(index.values()))]


def _tables(config: BagelConfig) -> dict[str, Tensor]:
    """Tensors that a file may leave out, since they follow from the configuration."""
    hidden = config.language.hidden_size
    return {
        "latent_pos_embed.pos_embed": sincos_table(config.max_latent_size, hidden),
        "vit_pos_embed.pos_embed": sincos_table(config.vision.patches_per_side, hidden),
    }


def _read(
    files: list[Path], expected: Mapping[str, tuple[int, ...]], spare: Mapping[str, Tensor], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """Every expected tensor, one at a time; `spare` fills in for absent ones. Names and shapes are checked first."""
    try:
        opened = [safe_open(path, framework="pt") for path in files]
    except FileNotFoundError as error:
        raise ModelError(f"a weight file is missing in {folder}: {error}; fetch it again") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"a weight file in {folder} is damaged: {error}; fetch it again") from error
    where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    found = {key: tuple(file.get_slice(key).get_shape()) for key, file in where.items()}
    _compare(expected, found, spare, f"{files[0]}{'' if len(files) == 1 else ' and its shards'}")
    for key in expected:
        yield key, where[key].get_tensor(key) if key in where else spare[key]


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    spare: Mapping[str, Tensor],
    name: str,
) -> None:
    off = [f"{key}: expected {list(shape)}, got none" for key, shape in expected.items() if key not in {*found, *spare}]
    off += [f"{key}: expected none, got {list(shape)}" for key, shape in found.items() if key not in expected]
    off += [
        f"{key}: expected {list(expected[key])}, got {list(shape)}"
        for key, shape in found.items()
        if key in expected and shape != expected[key]
    ]
    if off:
        shown = "; ".join(off[:_SHOWN]) + (f"; and {len(off) - _SHOWN} more" if len(off) > _SHOWN else "")
        raise ModelError(f"{name} does not fit its configuration. {shown}. Check that the json files are its own.")


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else None).contiguous()
