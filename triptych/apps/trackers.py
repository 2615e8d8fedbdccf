"""Optional trackers: every number of steps.jsonl goes to TensorBoard, W&B or trackio too, by step.

A tracker is imported only when it is asked for. A resumed run goes on in the same place: TensorBoard hides what is
logged again, and to the other two no step is sent twice (`tracker.json` in the folder knows the run and the next step).
"""

from __future__ import annotations

import importlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from triptych.errors import ConfigError
from triptych.files import write_json
from triptych.rl.config import TrainConfig
from triptych.rl.train import Step
from triptych.rl.train_log import step_numbers

Kind = Literal["none", "tensorboard", "wandb", "trackio"]
Add = Callable[[Step], None]
PROJECT = "triptych"


def tracking(kind: Kind, out: Path, config: TrainConfig) -> AbstractContextManager[Add]:
    """Something that takes every step of the run in `out`. Raises ConfigError where the tracker is not installed."""
    if kind == "none":
        return nullcontext(lambda step: None)
    if kind == "tensorboard":
        return _tensorboard(_module("torch.utils.tensorboard", kind), out)
    return _service(_module(kind, kind), kind, out, config)


@contextmanager
def _tensorboard(board: Any, out: Path) -> Iterator[Add]:
    """Event files in `out/tensorboard`."""
    writers: list[Any] = []

    def add(step: Step) -> None:
        if not writers:  # only the first step tells from where on older events are void
            writers.append(board.SummaryWriter(str(out / "tensorboard"), purge_step=step.index))
        for name, value in step_numbers(step).items():
            writers[0].add_scalar(name, value, step.index)
        writers[0].flush()  # event files are buffered, and a kill would lose the last steps

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
    # W&B resumes by `id`, trackio by `name`.
    identity = {"id": mark["id"], "dir": str(out)} if kind == "wandb" else {"name": mark["id"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, mark)  # before `init`, so that a kill in between resumes this run and opens no second one
    run = module.init(project=PROJECT, config=asdict(config), resume="allow", **identity)

    def add(step: Step) -> None:
        if step.index < mark["next"]:  # taken again after a resume
            return
        run.log(step_numbers(step), step=step.index)
        mark["next"] = step.index + 1
        write_json(path, mark)

    try:
        yield add
    finally:
        run.finish()


def _mark(path: Path, kind: str, out: Path) -> dict[str, Any]:
    """Which run of which tracker this folder belongs to, and the next step to send."""
    if path.exists():
        mark = json.loads(path.read_text(encoding="utf-8"))
        if mark["tracker"] == kind:  # a run that changes its tracker begins anew there
            return mark
    name = re.sub(r"[^\w.-]", "-", out.resolve().name)
    # random, since folders of two runs may have the same name
    return {"tracker": kind, "id": f"{name}-{uuid.uuid4().hex[:8]}", "next": 0}


def _module(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {kind} needs {kind}, which is not installed; install it with: pip install 'triptych[{kind}]'"
        ) from error
