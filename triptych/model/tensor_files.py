"""The safetensors files of a checkpoint folder: which they are, what in them does not fit, and their tensors by name.

Names, shapes and dtypes are read from the files' heads, so that what does not fit is told before gigabytes are read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.files import LFS_POINTER
from triptych.model.config_files import read_json

# In this order: the average of the weights (EMA), as BAGEL is published, before any others of the folder.
MODEL_FILES = ("ema.safetensors", "ema.safetensors.index.json", "model.safetensors.index.json", "model.safetensors")
AUTOENCODER_FILE = "ae.safetensors"
_SHARD = re.compile(r"(?P<stem>ema|model)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LISTED = 8  # names listed in an error
_DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names of what a weight is stored in
# What wraps a module for a time and stays in the names of its weights: DDP, torch.compile, FSDP, checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ADAPTER = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.")
# Parts of the model that whoever trains others of them may leave out of a checkpoint.
_PARTS = ("vit_model", "connector", "time_embedder", "vae2llm", "llm2vae", "language_model", "encoder", "decoder")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, inside a block that makes its folder whole. Raises OSError."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others, which safetensors tells as no OSError
        raise OSError(str(error)) from error


def model_files(folder: Path) -> list[Path]:
    """The files of a folder's model. Raises ModelError where there are none, or not all."""
    path = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if path is None:
        return _shards_without_index(folder)
    if path.suffix != ".json":
        return [path]
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError(f"{path} has no weight_map; fetch it again")
    for name in index.values():
        # A name with a slash could point outside the folder.
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{path} names {name!r} as weights; expected a safetensors file: fetch it again")
    names = sorted(set(index.values()))
    if absent := [name for name in names if not (folder / name).exists()]:
        raise ModelError(f"{path} names {_listed(absent)}, missing in the folder; fetch what is missing again")
    return [folder / name for name in names]


def _shards_without_index(folder: Path) -> list[Path]:
    shards = [(match, path) for path in sorted(folder.iterdir()) if (match := _SHARD.fullmatch(path.name))]
    for stem in ("ema", "model"):
        own = [(match, path) for match, path in shards if match["stem"] == stem]
        if own:
            count = own[0][0]["count"]
            names = [f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, min(int(count), 10_000) + 1)]
            present = {path.name for _, path in own}
            if absent := [name for name in names if name not in present]:
                raise ModelError(f"{folder} lacks {_listed(absent)}; expected all {int(count)} shards: fetch them")
            if spare := sorted(present - set(names)):
                raise ModelError(
                    f"{folder} holds shards of two sets, such as {spare[0]}; expected one: remove the other"
                )
            return [path for _, path in own]
    if (folder / "adapter_model.safetensors").exists():
        raise ModelError(f"{folder} holds an adapter (LoRA) alone; expected a model: merge it into its base first")
    if pickled := sorted({path.name for pattern in _PICKLED for path in folder.glob(pattern)}):
        raise ModelError(
            f"no weights in {folder} but {_listed(pickled)}, which are pickled and could run any code; expected "
            "safetensors: convert them where they come from"
        )
    raise ModelError(f"no weights in {folder}; expected one of {', '.join(MODEL_FILES)}")


class TensorFiles:
    """Opened files of one model or autoencoder: their tensors by the names of this package."""

    def __init__(self, paths: Sequence[Path], expected: Mapping[str, tuple[int, ...]]):
        self.name = f"{paths[0]}{'' if len(paths) == 1 else ' and its shards'}"
        self._where: dict[str, tuple[Any, str]] = {}  # the file and the name there
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        opened = {path: _open(path) for path in paths}
        names = [name for file in opened.values() for name in file.keys()]  # noqa: SIM118  (safe_open is no mapping)
        if adapter := next((name for name in names if _ADAPTER.search(name)), None):
            raise ModelError(f"{self.name} holds an adapter (LoRA) beside its weights, {adapter}; expected it merged")
        prefix = _common_prefix(names, expected)
        for path, file in opened.items():
            for name in file.keys():  # noqa: SIM118
                key = _WRAPPERS.sub("", name).removeprefix(prefix)
                if key in self._where:
                    raise ModelError(f"{self.name} has {key} twice, once in {path.name}; expected each weight once")
                view = file.get_slice(name)
                self._where[key], self.shapes[key] = (file, name), tuple(view.get_shape())
                self.dtypes[key] = view.get_dtype()

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def tensor(self, key: str) -> Tensor:
        file, name = self._where[key]
        return file.get_tensor(name)


def tensors(
    files: TensorFiles,
    expected: Mapping[str, tuple[int, ...]],
    spare: Mapping[str, Callable[[], Tensor]],
    base: Callable[[], TensorFiles] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Every expected tensor, one at a time. Parts that `files` lacks as a whole are those of `base`; `spare` fills in
    for single ones. Raises ModelError, before the first one, for names, shapes or dtypes that are off.

    One at a time, so that a 7B on its way to a GPU never stands in main memory as a whole.
    """
    _check_dtypes(files)
    absent = [key for key in expected if key not in files and key not in spare]
    parts = [part for part in _PARTS if (own := _of(part, expected)) and all(key in absent for key in own)]
    others = files
    if base is not None and parts:
        others = base()
        _check_dtypes(others)
        absent = [key for key in absent if key not in others or not key.startswith(tuple(f"{part}." for part in parts))]
        _compare(expected, {key: files.shapes.get(key, others.shapes.get(key)) for key in expected}, absent, files)
    elif files.shapes.keys() <= expected.keys() and 0 < len(parts) < len(
        {key.split(".")[0] for key in expected} & set(_PARTS)
    ):
        count = sum(len(_of(part, expected)) for part in parts)
        raise ModelError(
            f"{files.name} has no {', '.join(f'{part}.*' for part in parts)} ({count} weights): a fine-tune of other "
            "parts alone does not save them; take them from the checkpoint that it began from, with --base CHECKPOINT"
        )
    _compare(expected, files.shapes, absent, files)
    for key in expected:
        source = files if key in files else others if key in others else None
        yield key, spare[key]() if source is None else source.tensor(key)


def _of(part: str, expected: Mapping[str, Any]) -> list[str]:
    return [key for key in expected if key.startswith(f"{part}.")]


def _open(path: Path) -> Any:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ModelError(f"{path} is no file; expected weights: fetch it again")
    try:
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(f"{path} is a Git LFS pointer, and not the weights themselves: run git lfs pull")
        return safe_open(os.fspath(path), framework="pt")
    except FileNotFoundError as error:
        raise ModelError(f"a weight file is missing: {path}; fetch it again") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"a weight file is damaged: {path}: {error}; fetch it again") from error


def _common_prefix(names: Sequence[str], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What all names have before the expected ones, such as `base_model.model.`; empty where they have nothing."""
    names = [_WRAPPERS.sub("", name) for name in names]
    if any(name in expected for name in names):
        return ""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in expected:
                found[".".join(parts[:place]) + "."] += 1
                break
    prefix = found.most_common(1)[0][0] if found else ""
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _check_dtypes(files: TensorFiles) -> None:
    off = [f"{key} is {dtype}" for key, dtype in files.dtypes.items() if dtype not in _DTYPES]
    if off:
        scales = any(key.endswith(("scale", "scales", "absmax", "zero_point", "qzeros")) for key in files.dtypes)
        raise ModelError(
            f"{files.name} holds quantized or integer weights{'' if scales else ' without scales'}: {_listed(off)}; "
            f"expected {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}: take the checkpoint that is not quantized"
        )
    if {"F16", "BF16"} <= set(files.dtypes.values()):  # the same 16 bits mean another number in each
        one, other = (next(key for key, dtype in files.dtypes.items() if dtype == kind) for kind in ("F16", "BF16"))
        raise ModelError(f"{files.name}: {one} is F16 and {other} BF16; expected one of them: fetch it again")


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...] | None],
    absent: Sequence[str],
    files: TensorFiles,
) -> None:
    # All differences, and not the first: a pattern of names says which config is wrong.
    off = [f"{key}: expected {list(expected[key])}, got none" for key in absent]
    off += [f"{key}: expected none, got {list(shape)}" for key, shape in files.shapes.items() if key not in expected]
    off += [
        f"{key}: expected {list(expected[key])}, got {list(shape)}"
        for key, shape in stored.items()
        if shape is not None and key in expected and shape != expected[key]
    ]
    if off:
        raise ModelError(
            f"{files.name} does not fit its configuration. {_listed(off, '; ')}. Check that the json files are its own."
        )


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return between.join(names[:_LISTED]) + more
