"""Exact save and resume: weights, averages, optimiser state and step count, as safetensors and JSON, no pickle.

Lessons and training draw all their randomness from (seed, step), so a step number stands for the state of every
generator and for the place in the data. A checkpoint is written beside its final name and renamed, so that the last
good one survives a kill at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.errors import ConfigError, ModelError, OutputError

KEEP = 2  # checkpoints kept in a folder where nothing else is asked: the last, and the one before it


def check_free(out: Path, names: Iterable[str], record: str) -> None:
    """Raises ConfigError where a new run would mix with, write over or delete what its folder holds.

    `names` are those of all that such a run writes beside its `record`; what else is there, such as a log, may stay.
    """
    taken = [name for name in names if os.path.lexists(Path(out) / name)]
    if taken:
        raise ConfigError(
            f"{out} holds {', '.join(taken)} and no {record}, so they are no part of this run; expected a new or an "
            "empty folder: choose another --out, or move them away"
        )


@contextmanager
def anew(folder: Path) -> Iterator[Path]:
    """Where to write a folder that then takes the place of `folder`, or stays aside if writing it fails.

    An older `folder` is whole until the new one is, and is removed after. Raises OSError.
    """
    fresh, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], keep: int = KEEP) -> Path:
    """Write `folder/step-NNNNNNNN` whole or not at all, then remove all but the newest `keep`."""
    final = Path(folder) / f"step-{step:08d}"
    try:
        sweep(folder)
        with anew(final) as aside:
            aside.mkdir(parents=True)
            packed = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            save_file(packed, aside / "state.safetensors")
            (aside / "state.json").write_text(json.dumps({"step": step, **record}), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write checkpoint {final}: {error.strerror or error}; the one before it is untouched"
        ) from error
    for old in steps(folder)[:-keep]:
        # Renamed first: files go one by one, and a kill among them would leave a folder that looks like a checkpoint.
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
    return final


def sweep(folder: Path) -> None:
    """Remove what a kill has left of checkpoints: half-written ones, and ones that were being removed.

    Nothing goes while no checkpoint is whole. Raises OSError.
    """
    whole = steps(folder)
    for path in (*Path(folder).glob("step-*"), *Path(folder).glob(".step-*.old")):
        if whole and path not in whole:
            shutil.rmtree(path)


def steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(
        path for path in Path(folder).glob("step-*") if path.suffix != ".partial" and (path / "state.json").is_file()
    )


def latest(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of the newest complete checkpoint, or None where there is none."""
    found = steps(folder)
    if not found:
        return None
    tensors = load_file(found[-1] / "state.safetensors")  # to the CPU first: it knows few devices by name
    record = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
    return {name: tensor.to(device) for name, tensor in tensors.items()}, record


def pack_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors; a plain number becomes a tensor of float64."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def unpack_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took. Raises ModelError when a state does not belong to these parameters."""
    sizes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition("/")
        if owner != name:
            continue
        index, field = rest.split("/")
        if int(index) >= len(sizes) or (value.dim() and value.shape != sizes[int(index)]):
            raise ModelError(
                f"optimiser state {key} of shape {tuple(value.shape)} fits no parameter: resume with the same config"
            )
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def pack_course(
    model: nn.Module, average: Mapping[str, Tensor], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """A course of lessons as tensors: the weights, their running average and every optimiser."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.items()}
    for name, optimizer in optimizers.items():
        tensors |= pack_optimizer(name, optimizer)
    return tensors


def unpack_course(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Put weights and optimisers back as `pack_course` found them; returns the average."""
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")})
    for name, optimizer in optimizers.items():
        unpack_optimizer(name, optimizer, tensors)
    return {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("average/")}
