"""One run of SFT: a recipe's stages in a folder, which is claimed by one run and resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from triptych import files
from triptych.bounds import NonNegativeInt, PositiveInt, check_bounds
from triptych.errors import ConfigError
from triptych.model.config import SKETCH, BagelConfig
from triptych.sft import checkpoint
from triptych.sft.optim import SFTStage, SFTStep, fit

SETTINGS = "sft.json"  # the recipe of a run, in its folder
LOG = "steps.jsonl"  # one line per update, written by the listener
OLD_SETTINGS = "lessons.json"  # of triptych 0.1


@dataclass(frozen=True)
class RecipeConfig:
    """Settings that every recipe of SFT has."""

    # The index of a sample is a million times as large as the seed, and generators take 64 bits.
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    device: str = "auto"  # "auto" takes CUDA where there is one
    save_every: PositiveInt = 100  # updates between checkpoints
    num_workers: NonNegativeInt = 0  # processes that prepare samples ahead; 0 prepares them between updates

    # What a resumed run may change: no number of the result depends on it.
    may_change: ClassVar[frozenset[str]] = frozenset({"device", "num_workers", "save_every"})
    outputs: ClassVar[tuple[str, ...]]  # names in the folder of a run, beside its settings
    result: ClassVar[str]  # the one of them that the run is for
    beside_result: ClassVar[tuple[str, ...]] = ()  # those of them that are written after it

    @property
    def torch_device(self) -> torch.device:
        """The device that "auto" stands for."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work, before anything is loaded or written."""
        check_bounds(self)

    def stages(self, out: Path, model_config: BagelConfig) -> Iterator[SFTStage]:
        """The stages in order. Each is made after the one before was fit; the result is written after the last."""
        raise NotImplementedError


def run_sft(
    config: RecipeConfig, out: Path, resume: bool = False, model_config: BagelConfig = SKETCH
) -> Generator[SFTStep, None, None]:
    """Fit all stages of a recipe, yielding after every update; `out / config.result` is there at the end.

    A finished run is left as it is. Raises ConfigError for settings that cannot work, or if `out` holds another run, or
    any run without `resume`.
    """
    config.check()
    stages = config.stages(out, model_config)
    first = next(stages)  # what its making refuses, such as an unknown `start`, leaves no folder behind
    out = Path(out)
    _claim(out, config, resume)
    if all((out / name).exists() for name in (config.result, *config.beside_result)):
        return
    for stage in chain([first], stages):
        yield from fit(stage, out / stage.name, config.save_every, config.num_workers)
        files.check_present(out / SETTINGS)


def _claim(out: Path, config: RecipeConfig, resume: bool) -> None:
    """Take a folder for a new run, or find in it the same run to resume."""
    path, settings = out / SETTINGS, json.loads(json.dumps(asdict(config)))
    if (out / OLD_SETTINGS).exists():
        raise ConfigError(
            f"{out} holds a run of triptych 0.1, whose checkpoints cannot be resumed; expected a new folder: choose "
            f"another --out (its finished model can be read by --start {out / 'model'})"
        )
    if not path.exists():
        checkpoint.check_free(out, config.outputs, path.name)
        with files.naming_errors(path):
            out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, settings)
        return
    if not resume:
        raise ConfigError(f"{out} holds a run of SFT already; go on with it by --resume, or choose another --out")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name, value in saved.items():
        if isinstance(value, dict) and isinstance(current := settings.get(name), dict):
            # An option of a stage that is gone did nothing, so that a run of before it went may go on.
            saved[name] = {key: each for key, each in value.items() if key in current}
    changed = sorted(
        key for key in settings | saved if key not in config.may_change and settings.get(key) != saved.get(key)
    )
    if changed:
        raise ConfigError(
            f"{path} was written with other {', '.join(changed)}; expected the same settings to resume exactly"
        )
    files.sweep(out)  # what a kill has left
