"""Pictures that stay the same all along a run, right ones and flawed ones, to count false stops and false edits on.

Half are rendered; the others are first pictures of the model that the run starts from, drawn once. Both are kept in the
folder of the run (fixed.safetensors), so that every evaluation of it asks about the same pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import OutputError
from triptych.eval.suites import rehearsal
from triptych.loop import Policy, play
from triptych.rewards.judge import Judge
from triptych.rl.tree import judged
from triptych.trace import Prompt, Spec, Verdict

HELD_OUT = 70  # rehearsal prompts, which the prompts of training leave out


@dataclass(frozen=True, eq=False)
class Known:
    """Pictures `[picture height width 3] uint8`, each with the prompt it was made for and whether it is right."""

    prompts: tuple[Prompt, ...]
    pictures: np.ndarray
    right: tuple[bool, ...]


def rendered(count: int, seed: int = 0) -> Known:
    """`count` right pictures and `count` with one mistake each, in turn, of held-out specs."""
    prompts, images, right = [], [], []
    held_out = rehearsal(HELD_OUT).prompts
    for index in range(2 * count):
        prompt = held_out[index % HELD_OUT]
        assert prompt.spec is not None
        scene = Scene.sample(prompt.spec, seed + index)
        flawed = index % 2 == 1
        images.append(render_array(spoil(scene, prompt.spec, seed + index, 1) if flawed else scene))
        prompts.append(prompt)
        right.append(not flawed)
    return Known(tuple(prompts), _stacked(images), tuple(right))


def drawn(policy: Policy, count: int, judge: Judge, seed: int = 0, batch: int = 35) -> Known:
    """Planned first pictures of a policy for `count` held-out prompts; what the judge cannot tell is left out."""
    held_out = rehearsal(HELD_OUT).thinned(count).prompts if count else ()
    traces = []
    for start in range(0, len(held_out), batch):
        asked = held_out[start : start + batch]
        (beat,) = play(policy, asked, [seed] * len(asked), turns=0)
        traces += beat
    verdicts = judged(judge, traces, [None] * len(traces))
    told = [(trace, one.score == 1) for trace, one in zip(traces, verdicts, strict=True) if isinstance(one, Verdict)]
    images = [trace.images[0] for trace, _ in told]
    return Known(tuple(trace.prompt for trace, _ in told), _stacked(images), tuple(right for _, right in told))


def fixed(path: Path, policy: Policy, judge: Judge, count: int, own: int, seed: int, batch: int) -> dict[str, Known]:
    """The sets "fixed" (rendered, `count` of each kind) and "own" (`own` pictures of `policy`) that `path` keeps.

    What it holds already is taken as it is. Raises OutputError if it cannot be written or read.
    """
    if path.exists():
        return _read(path)
    with untouched(policy):
        sets = {"fixed": rendered(count, seed), "own": drawn(policy, own, judge, seed, batch)}
    _write(path, sets)
    return sets


@contextmanager
def untouched(policy: Any) -> Iterator[None]:
    """Leave torch's generators, and the mode of every module of `policy`, as they were."""
    modules = list(policy.modules()) if isinstance(policy, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _write(path: Path, sets: Mapping[str, Known]) -> None:
    told = {"sets": json.dumps({name: _records(known) for name, known in sets.items()})}  # one key: the same bytes
    aside = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.from_numpy(known.pictures) for name, known in sets.items()}, aside, told)
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _records(known: Known) -> list[dict[str, Any]]:
    return [
        {"text": prompt.text, "spec": None if prompt.spec is None else prompt.spec.to_metadata(), "right": right}
        for prompt, right in zip(known.prompts, known.right, strict=True)
    ]


def _read(path: Path) -> dict[str, Known]:
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("sets", "{}"))
            pictures = {name: file.get_tensor(name).numpy() for name in told}
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be read ({error}); remove it, and the same pictures are drawn again by --resume"
        ) from error
    return {name: _known(records, pictures[name]) for name, records in told.items()}


def _known(records: Sequence[Mapping[str, Any]], pictures: np.ndarray) -> Known:
    specs = [None if one["spec"] is None else Spec.from_metadata(one["spec"]) for one in records]
    prompts = tuple(Prompt(one["text"], spec) for one, spec in zip(records, specs, strict=True))
    return Known(prompts, pictures, tuple(bool(one["right"]) for one in records))


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
