"""Load and save: a checkpoint folder in the published layout, and what is off when it does not fit.

    llm_config.json, vit_config.json    sizes, by their published names
    triptych.json                       the rest of `BagelConfig`; a released BAGEL has none, and gets `BAGEL_7B`'s
    ema.safetensors, ae.safetensors     the model and its autoencoder, under the published names, one to one
    tokenizer.json                      the tokenizer

`ema` may be in shards with an index. Parameters of the model take the compute dtype; the autoencoder stays in float32,
since it is a hundredth of the weights and bfloat16 costs it visible detail.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from triptych.bounds import violations
from triptych.errors import ModelError, OutputError
from triptych.files import new_folder, replaced_folder, write_json
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, OLD_NAMES, BagelConfig, current_names
from triptych.model.vision import sincos_table

# In this order: the average of the weights (EMA), as BAGEL is published, before any others of the folder.
MODEL_FILES = ("ema.safetensors", "ema.safetensors.index.json", "model.safetensors.index.json", "model.safetensors")
AUTOENCODER_FILE = "ae.safetensors"
_PREFIX = "autoencoder."  # where Bagel holds what ae.safetensors holds
_LISTED = 8  # names listed in an error
_VISION_ONLY_OURS = ("select_layer", "patches_per_side")  # settings that vit_config.json does not know
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_PERIOD, _CHUNK = 1021, 2**22  # of the positions' weights (a prime), and elements that are summed at once: 32 MB
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
    # Sizes before numbers: what does not fit is an error before gigabytes are read.
    bagel = outline(folder, config, tokenizer, special)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    expected, state = shapes(bagel), {}
    for key, tensor in _read(_model_files(folder), expected["ema.safetensors"], _tables(config), folder):
        # One by one, cast on the way: main memory never holds a 7B in two dtypes.
        state[key] = tensor.to(device=device, dtype=dtype)
    for key, tensor in _read([folder / AUTOENCODER_FILE], expected[AUTOENCODER_FILE], {}, folder):
        state[_PREFIX + key] = tensor.to(device=device, dtype=torch.float32)
    bagel.load_state_dict(state, assign=True)  # the tensors themselves: the model was on the meta device
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
        for part in (config.language, config.vision):  # a vision tower would notice at its first image
            if part.hidden_size % part.num_attention_heads:
                expected = f"a multiple of its num_attention_heads, {part.num_attention_heads}"
                raise ValueError(f"hidden_size is {part.hidden_size}; expected {expected}")
        with torch.device("meta"), _NoInitialization():
            return Bagel(config, tokenizer, special)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        sizes = ", ".join(name for name in _CONFIG_FILES if (folder / name).is_file())
        raise ModelError(f"the sizes in {folder} fit no model: {error}; check {sizes}, or fetch them again") from error


class _NoInitialization(TorchFunctionMode):
    """Leaves out what fills a tensor in place (`nn.init.*`, `fill_`, `normal_`): on the meta device there is nothing to
    fill, and torch would import its compiler to find that out, a third of the CPU time of a whole draw."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.__name__
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def save(
    bagel: Bagel,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
    replace: bool = False,
) -> Path:
    """Write a checkpoint to a new `folder`, whole or not at all; `load` of it gives the same model.

    `dtype` is that of the stored model (as it is by default); `state` stands in for `bagel.state_dict()` where the
    parameters are spread over machines; with `replace` an older `folder` is replaced in one step. Raises OutputError if
    the folder exists without it, or cannot be written.
    """
    tensors = bagel.state_dict() if state is None else state
    autoencoder = {key: tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)}
    model = {key: _stored(tensor, dtype) for key, tensor in tensors.items() if key not in autoencoder}
    folder = Path(folder)
    with (replaced_folder if replace else new_folder)(folder) as part:
        try:
            _write_config(bagel, part)
            save_file(model, part / "ema.safetensors", metadata={"format": "pt"})
            stored = {key.removeprefix(_PREFIX): _stored(tensor, None) for key, tensor in autoencoder.items()}
            save_file(stored, part / AUTOENCODER_FILE, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, among others; it is no OSError
            raise OutputError(f"cannot write {folder}: {error}; choose a place with more room with --out") from error
    return folder


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a packaged name, of a path, or of a hub name, which is downloaded once. Raises ModelError."""
    packaged = Path(__file__).parents[1] / "weights"
    text = str(name)
    # Names of our own come before folders of the same name in the working directory.
    ours = {path.parent.name: path.parent for path in packaged.glob("*/triptych.json")}
    if isinstance(name, str) and name in ours:
        return ours[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    # Only org/name is asked of the hub: a mistyped path is an error without a request.
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        choices = ", ".join(["a folder", "a hub name like org/name", *sorted(map(repr, ours))])
        raise ModelError(f"no model {text!r}; expected one of: {choices}")
    # Imported here: local folders and packaged weights need no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"no model {text!r}: it is no folder here, and the hub did not give it ({reason}); "
            "check the name and the connection, or download it elsewhere and pass its folder"
        ) from error


def fingerprint(policy: Any, whole_below: int = 500_000_000) -> str:
    """The id of a policy in manifests and run.json: its name, and for a network 16 hex digits, such as sketch-0123....

    The digits are of SHA-256 over the configuration and every weight with its name, dtype and shape; they are the same
    on every device. From `whole_below` bytes of weights on, two sums over the bits of each tensor stand in for its
    bytes: SHA-256 of the 14 GB of a 7B would take half a minute.
    """
    config = getattr(policy, "config", None)
    name = getattr(config, "name", None) or getattr(policy, "name", type(policy).__name__)
    if not isinstance(policy, nn.Module):
        return str(name)
    # The configuration counts under the names of 0.1, so that a model keeps the id under which it was recorded.
    text = repr(config)
    for old, new in OLD_NAMES.items():
        text = re.sub(rf"\b{new}=", f"{old}=", text)
    digest = hashlib.sha256(text.encode())
    weights = sorted(policy.state_dict().items())  # by name: the order of modules in the code is not the model
    whole = sum(weight.nbytes for _, weight in weights) < whole_below
    for key, weight in weights:
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        weight = weight.detach().contiguous().flatten()
        digest.update(weight.cpu().view(torch.uint8).numpy() if whole else repr(_bit_sums(weight)).encode())
    return f"{name}-{digest.hexdigest()[:16]}"


def _bit_sums(weight: Tensor) -> tuple[int, int]:
    """Two sums over the bits of a flat tensor as integers, the second one weighted by position.

    Integers, since the sum of floats depends on the order of addition, and so on the device and the threads.
    """
    # In chunks, since each is widened to 64 bits. The second sum sees two numbers that change places.
    bits = weight.view(_INTEGERS[weight.element_size()])
    plain = weighted = 0
    for part in bits.split(_CHUNK):
        part = part.long()
        plain += int(part.sum())
        weighted += int((part * (torch.arange(len(part), device=part.device) % _PERIOD + 1)).sum())
    return plain, weighted


def shapes(bagel: Bagel) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes that each weight file of this model holds; works on the meta device."""
    files: dict[str, dict[str, tuple[int, ...]]] = {"ema.safetensors": {}, AUTOENCODER_FILE: {}}
    for key, tensor in bagel.state_dict().items():
        file = AUTOENCODER_FILE if key.startswith(_PREFIX) else "ema.safetensors"
        files[file][key.removeprefix(_PREFIX)] = tuple(tensor.shape)
    return files


# --- configuration --------------------------------------------------------------------------------------------------


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
    ours = _json(folder / "triptych.json") if (folder / "triptych.json").is_file() else {}
    special = ours.pop("special_tokens", None)
    defaults = config_to_json(BAGEL_7B)
    record = defaults | ours  # a released BAGEL has no triptych.json
    sections = {"language": "llm_config.json", "vision": "vit_config.json"}
    if (folder / "ae_config.json").is_file():
        sections["autoencoder"] = "ae_config.json"
    for section, name in sections.items():
        # A published config has many more keys (dropout, token ids, ...); ours win where both have one.
        sizes = {key: value for key, value in _json(folder / name).items() if key in defaults[section]}
        record[section] = defaults[section] | sizes | _named(ours.get(section, {}), f"{section} in triptych.json")
    # bagel_args.json and ae_config.json hold what the release keeps in code; the tests' golden model has them.
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
    record["vision"] = {key: vision.pop(key) for key in _VISION_ONLY_OURS}
    # What other readers of such files, transformers among them, need to know; we ignore it.
    language |= {"model_type": "qwen2", "hidden_act": "silu", "tie_word_embeddings": False}
    vision |= {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
    if bagel.has_tokenizer:
        bagel.tokenizer.save(str(folder / "tokenizer.json"))
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
    path = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"no weights in {folder}; expected one of {', '.join(MODEL_FILES)}")
    if path.suffix != ".json":
        return [path]
    index = _json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError(f"{path} has no weight_map; fetch it again")
    for name in index.values():
        # A name with a slash could point outside the folder.
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{path} names {name!r} as weights; expected a safetensors file: fetch it again")
    return [folder / name for name in sorted(set(index.values()))]


def _tables(config: BagelConfig) -> dict[str, Callable[[], Tensor]]:
    """Tensors that a file may leave out, since they follow from the configuration; computed where one is absent."""
    hidden = config.language.hidden_size
    return {
        "latent_pos_embed.pos_embed": partial(sincos_table, config.max_latent_size, hidden),
        "vit_pos_embed.pos_embed": partial(sincos_table, config.vision.patches_per_side, hidden),
    }


def _read(
    files: list[Path], expected: Mapping[str, tuple[int, ...]], spare: Mapping[str, Callable[[], Tensor]], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """Every expected tensor, one at a time; `spare` fills in for absent ones. Names and shapes are checked first.

    One at a time, so that a 7B on its way to a GPU never stands in main memory as a whole.
    """
    try:
        opened = [safe_open(path, framework="pt") for path in files]
    except FileNotFoundError as error:
        raise ModelError(f"a weight file is missing in {folder}: {error}; fetch it again") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"a weight file in {folder} is damaged: {error}; fetch it again") from error
    where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    stored = {key: tuple(file.get_slice(key).get_shape()) for key, file in where.items()}
    _compare(expected, stored, spare, f"{files[0]}{'' if len(files) == 1 else ' and its shards'}")
    for key in expected:
        yield key, where[key].get_tensor(key) if key in where else spare[key]()


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    spare: Mapping[str, Any],
    name: str,
) -> None:
    # All differences, and not the first: a pattern of names says which config is wrong.
    off = [
        f"{key}: expected {list(shape)}, got none" for key, shape in expected.items() if key not in {*stored, *spare}
    ]
    off += [f"{key}: expected none, got {list(shape)}" for key, shape in stored.items() if key not in expected]
    off += [
        f"{key}: expected {list(expected[key])}, got {list(shape)}"
        for key, shape in stored.items()
        if key in expected and shape != expected[key]
    ]
    if off:
        shown = "; ".join(off[:_LISTED]) + (f"; and {len(off) - _LISTED} more" if len(off) > _LISTED else "")
        raise ModelError(f"{name} does not fit its configuration. {shown}. Check that the json files are its own.")


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Contiguous: safetensors refuses views with strides.
    return tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else None).contiguous()
