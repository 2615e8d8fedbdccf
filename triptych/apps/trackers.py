"""Optional trackers: every number of steps.jsonl goes to TensorBoard, W&B or trackio too, by step.

A tracker is imported only when it is asked for. A resumed run goes on in the same place: TensorBoard hides what is
logged again, and to the other two no step is sent twice (`tracker.json` in the folder knows the run and the next step).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from triptych.errors import ConfigError, OutputError
from triptych.rl.config import TrainConfig
from triptych.rl.train import Step
from triptych.rl.train_log import step_numbers

Kind = Literal["none", "tensorboard", "wandb", "trackio"]
Add = Callable[[Step], None]
PROJECT = "triptych"


def tracking(kind: Kind, out: Path, config: TrainConfig) -> AbstractContextManager[Add]:
    """Something that takes every step of the run in `out`. Raises ConfigError where the tracker is not installed."""
    if kind == "none":
        return _nothing()
    if kind == "tensorboard":
        return _tensorboard(_module("torch.utils.tensorboard", kind), out)
    return _service(_module(kind, kind), kind, out, config)


@contextmanager
def _nothing() -> Iterator[Add]:
    yield lambda step: None


@contextmanager
def _tensorboard(board: Any, out: Path) -> Iterator[Add]:
    """Event files in `out/tensorboard`."""
    writers: list[Any] = []

    def add(step: Step) -> None:
        if not writers:  # only the first step tells from where on older events are void
            writers.append(board.SummaryWriter(str(out / "tensorboard"), purge_step=step.index))
        for name, value in step_numbers(step).items():
            writers[0].add_scalar(name, value, step.index)
        writers[0].flush()

    try:
        yield add
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _service(module: Any, kind: str, out: Path, config: TrainConfig) -> Iterator[Add]:
    """A run of W&B or trackio, whose calls are alike; its id is kept in `out/tracker.json`."""
    path = out / "tracker.json"
    mark = _mark(path, kind, out)
    identity = {"id": mark["id"], "dir": str(out)} if kind == "wandb" else {"name": mark["id"]}
    _write(path, mark)
    run = module.init(project=PROJECT, config=asdict(config), resume="allow", **identity)

    def add(step: Step) -> None:
        if step.index < mark["next"]:
            return
        run.log(step_numbers(step), step=step.index)
        mark["next"] = step.index + 1
        _write(path, mark)

    try:
        yield add
    finally:
        run.finish()


def _mark(path: Path, kind: str, out: Path) -> dict[str, Any]:
    """Which run of which tracker this folder belongs to, and the next step to send."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["tracker"] == kind:
            return known
    name = re.sub(r"[^\w.-]", "-", out.resolve().name)
    return {"tracker": kind, "id": f"{name}-{uuid.uuid4().hex[:8]}", "next": 0}


def _write(path: Path, mark: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(mark) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _module(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {kind} needs {kind}, which is not installed; install it with: pip install 'triptych[{kind}]'"
        ) from error
