"""Exact save and resume: weights, averaged weights, optimizer state and step, as safetensors and JSON; no pickle.

SFT and RL draw all their randomness from (seed, step), so a step number stands for the state of every generator and for
the place in the data. A checkpoint is the folder `step-NNNNNNNN`, there whole or not at all.

    state.safetensors   model/NAME, average/NAME, OPTIMIZER/INDEX/FIELD
    state.json          {"step": updates done, ...}
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from triptych import files
from triptych.errors import ConfigError, ModelError, TriptychWarning
from triptych.model.tensor_files import write_tensors

KEEP = 2  # checkpoints kept in a folder where nothing else is asked: the last, and the one before it


def check_free(out: Path, names: Iterable[str], record: str) -> None:
    """Raises ConfigError where a new run would mix with, write over or delete what its folder holds.

    `names` are those of all that such a run writes beside its `record`; what else is there, such as a log, may stay.
    """
    existing = [name for name in names if os.path.lexists(Path(out) / name)]
    if existing:
        raise ConfigError(
            f"{out} holds {', '.join(existing)} and no {record}, so they are no part of this run; expected a new or an "
            "empty folder: choose another --out, or move them away"
        )


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], keep: int = KEEP
) -> Path:
    """Write `folder/step-NNNNNNNN` whole or not at all, then remove all but the newest `keep`. Raises OutputError."""
    path = Path(folder) / f"step-{step:08d}"
    remedy = "the checkpoint before it is untouched: make room, and go on with --resume"
    with files.naming_errors(path, remedy):
        path.parent.mkdir(exist_ok=True)  # not its parents: the folder of a run that was removed is not made again
    with files.naming_errors(path, remedy), files.replaced_folder(path) as part:
        # safetensors refuses tensors that are not contiguous.
        packed = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        write_tensors(part / "state.safetensors", packed)
        files.write_json(part / "state.json", {"step": step, **record}, indent=None)
    for old in steps(folder)[:-keep]:
        files.remove_folder(old)
    return path


def steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*") if (path / "state.json").is_file())


def latest(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of the newest whole checkpoint, or None where there is none.

    One that a broken disk or a copy cut short has torn is put aside with a TriptychWarning, and the one before it is
    read. Raises ModelError where all are torn: to begin anew would throw the run away.
    """
    for path in reversed(complete := steps(folder)):
        try:
            tensors = load_file(path / "state.safetensors")  # to the CPU first: it knows few devices by name
            record = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.get("step") != int(path.name.removeprefix("step-")):
                raise ValueError("state.json is of another step")
        except (SafetensorError, FileNotFoundError, ValueError, RecursionError) as error:
            if path == complete[0]:
                raise ModelError(
                    f"{path} is torn ({error}), and no whole checkpoint stands before it; expected one: put a copy "
                    "of it there, or start a new run with another --out"
                ) from error
            torn = path.with_name(f"torn-{path.name}")  # out of the way: of the newest so many are kept
            files.remove_folder(torn)
            os.rename(path, torn)
            text = f"{path} is torn ({error}): the checkpoint before it is used, and this one is {torn.name} now"
            warnings.warn(text, TriptychWarning, stacklevel=2)
        else:
            return {name: tensor.to(device) for name, tensor in tensors.items()}, record
    return None


def pack(
    weights: Mapping[str, Tensor], ema: Mapping[str, Tensor] | None, optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The state of training as named tensors: weights, averaged weights (if any), and every optimizer's moments."""
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (ema or {}).items()}
    for name, optimizer in optimizers.items():
        tensors |= pack_optimizer(name, optimizer)
    return tensors


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Put back, in place, what `pack` took. Raises ModelError where a checkpoint does not belong to these settings."""
    for kind, targets in (("model", weights), ("average", ema or {})):
        for name, target in targets.items():
            saved = tensors.get(f"{kind}/{name}")
            if saved is None or (saved.shape, saved.is_floating_point()) != (target.shape, target.is_floating_point()):
                found = "nothing" if saved is None else _described(saved)
                raise ModelError(
                    f"{kind}/{name}: the checkpoint has {found}, expected {_described(target)}: resume with the same "
                    "config"
                )
            target.copy_(saved)
    for name, optimizer in optimizers.items():
        unpack_optimizer(name, optimizer, tensors)


def _described(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def pack_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors; a plain number becomes a tensor of float64."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def unpack_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took. Raises ModelError when a state does not belong to these parameters."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition("/")
        if owner != name:
            continue
        index, field = rest.split("/")
        fits = int(index) < len(shapes) and (not value.dim() or value.shape == shapes[int(index)])
        if not fits or not value.is_floating_point():
            raise ModelError(
                f"optimizer state {key} with {_described(value)} fits no parameter: resume with the same config"
            )
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
