"""Load and save: a checkpoint folder in the published layout, and what is off when it does not fit.

    llm_config.json, vit_config.json    sizes, by their published names
    triptych.json                       the rest of `BagelConfig`; a released BAGEL has none, and gets `BAGEL_7B`'s
    ema.safetensors, ae.safetensors     the model and its autoencoder, under the published names, one to one
    tokenizer.json                      the tokenizer, or vocab.json and merges.txt

`ema` may be in shards with an index. Parameters of the model take the compute dtype; the autoencoder stays in float32,
since it is a hundredth of the weights and bfloat16 costs it visible detail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from triptych.errors import ModelError
from triptych.files import new_folder, replaced_folder
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_SAMPLING, OLD_NAMES, BagelConfig
from triptych.model.config_files import CONFIG_FILES, read_config, read_json, write_config
from triptych.model.tensor_files import AUTOENCODER_FILE, TensorFiles, model_files, tensors, write_tensors
from triptych.model.vision import sincos_table

_PREFIX = "autoencoder."  # where Bagel holds what ae.safetensors holds
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_PERIOD, _CHUNK = 1021, 2**22  # of the positions' weights (a prime), and elements that are summed at once: 32 MB
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt"]
_LEVELS = 8  # most resolutions of an autoencoder; FLUX has 4, and each halves the sides


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> Bagel:
    """The model of a packaged name ("sketch"), a folder, or a hub name ("org/name").

    `dtype` is the compute dtype; by default float32 on a CPU and bfloat16 elsewhere. Parts that the checkpoint lacks as
    a whole, and files beside its weights, are those of `base`, from which it was fine-tuned. Memory is taken once.
    Raises ModelError when there is no such checkpoint, or names, shapes or dtypes in it are off.
    """
    folder, device = resolve_checkpoint(name), torch.device(device)
    spare_folder = None if base is None else resolve_checkpoint(base)
    config_folder = _first_with("llm_config.json", folder, spare_folder)
    config, special = read_config(config_folder)
    tokenizer, special = templates.load_tokenizer(folder, spare_folder, special)
    # Sizes before numbers: what does not fit is an error before gigabytes are read.
    bagel = outline(config_folder, config, tokenizer, special)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    expected, state = shapes(bagel), {}
    wanted = expected["ema.safetensors"]
    model = _opened(folder, wanted)
    others = None if spare_folder is None else partial(_opened, spare_folder, wanted)
    autoencoder = TensorFiles(
        [_first_with(AUTOENCODER_FILE, folder, spare_folder) / AUTOENCODER_FILE], expected[AUTOENCODER_FILE]
    )
    for key, tensor in tensors(model, wanted, _tables(config) | _tied(config_folder, model), others):
        # One by one, cast on the way: main memory never holds a 7B in two dtypes.
        state[key] = tensor.to(device=device, dtype=dtype)
    for key, tensor in tensors(autoencoder, expected[AUTOENCODER_FILE], {}):
        state[_PREFIX + key] = tensor.to(device=device, dtype=torch.float32)
    bagel.load_state_dict(state, assign=True)  # the tensors themselves: the model was on the meta device
    return bagel.eval()


def _first_with(name: str, folder: Path, spare: Path | None) -> Path:
    """`folder`, or `spare` where that alone has the file."""
    return spare if spare is not None and not (folder / name).exists() and (spare / name).exists() else folder


def _opened(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> TensorFiles:
    return TensorFiles(model_files(folder), expected)


def _tied(folder: Path, model: TensorFiles) -> dict[str, Callable[[], Tensor]]:
    """The head that a checkpoint leaves out where its embedding serves as one (tie_word_embeddings)."""
    embedding = "language_model.model.embed_tokens.weight"
    tied = read_json(folder / "llm_config.json").get("tie_word_embeddings") is True and embedding in model
    return {"language_model.lm_head.weight": partial(model.tensor, embedding)} if tied else {}


def _tables(config: BagelConfig) -> dict[str, Callable[[], Tensor]]:
    """Tensors that a file may leave out, since they follow from the configuration; computed where one is absent."""
    hidden = config.language.hidden_size
    return {
        "latent_pos_embed.pos_embed": partial(sincos_table, config.max_latent_size, hidden),
        "vit_pos_embed.pos_embed": partial(sincos_table, config.vision.patches_per_side, hidden),
    }


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
        if len(config.autoencoder.ch_mult) > _LEVELS:
            raise ValueError(f"ch_mult has {len(config.autoencoder.ch_mult)} levels; expected at most {_LEVELS}")
        for part in (config.language, config.vision):  # a vision tower would notice at its first image
            if part.hidden_size % part.num_attention_heads:
                expected = f"a multiple of its num_attention_heads, {part.num_attention_heads}"
                raise ValueError(f"hidden_size is {part.hidden_size}; expected {expected}")
        with torch.device("meta"), _NoInitialization():
            return Bagel(config, tokenizer, special)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        sizes = ", ".join(name for name in CONFIG_FILES if (folder / name).is_file())
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
        write_config(bagel, part)
        write_tensors(part / "ema.safetensors", model)
        stored = {key.removeprefix(_PREFIX): _stored(tensor, None) for key, tensor in autoencoder.items()}
        write_tensors(part / AUTOENCODER_FILE, stored)
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
    if isinstance(config, BagelConfig):
        # 0.1 had sampling settings of rollouts as well, last: of each of its two models always the same ones.
        release = replace(BAGEL_SAMPLING, temperature=0.9, top_p=0.9, draw_points=16, edit_points=21)
        text = f"{text[:-1]}, draft={config.sampling if config.world == 'stickers' else release!r})"
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


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Contiguous: safetensors refuses views with strides.
    return tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else None).contiguous()
