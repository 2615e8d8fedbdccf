"""Where a run stands between two steps, and its exact way to disk and back.

All randomness of a step is a function of (seed, step), so what remains is: the weights, their average, the optimiser,
the place in the stream of prompts, the parents that wait for the next stage, and a few counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych.errors import ConfigError, OutputError
from triptych.rl.config import TrainConfig
from triptych.rl.learner import Learner
from triptych.rl.tree import Node
from triptych.sft import checkpoint
from triptych.trace import Completion, Drawing, Prompt, Spec, Trace, Turn, Verdict

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of as many bytes
PLACES, CHUNK = 1021, 2**22  # weights of places repeat, and tensors are summed up in parts
MADE = (  # in the folder of a run, beside run.json
    *("checkpoints", "rollouts", "adapter", "model", "model.partial"),
    *("steps.jsonl", "evaluations.jsonl", "fixed.safetensors", "tracker.json", "tensorboard"),
)
# Settings that a resumed run may change; limits, since a run that was stopped by one must be able to go on.
FREE = ("steps", "samples", "device", "every", "keep", "micro", "recompute", "limits")


@dataclass(frozen=True)
class TrainState:
    """The counts of a run before step `step`."""

    step: int = 0
    place: int = 0  # in the stream of prompts
    depth: int = 0  # Refine stages grown since the last Reason
    waiting: tuple[Node, ...] = ()  # parents of the next Refine, spares last
    samples: int = 0  # texts and pictures so far
    skipped: int = 0  # steps that were not finite, in all
    bad: int = 0  # and in a row
    judged: tuple[tuple[int, int], ...] = ()  # (missing, asked) of the newest steps


def ended(standing: TrainState, config: TrainConfig) -> bool:
    """Whether the run has taken its steps, or used its budget of samples up."""
    return standing.step >= config.steps or 0 < config.samples <= standing.samples


def claim(out: Path, config: TrainConfig, start: nn.Module, resume: bool) -> None:
    """Take a folder for a run, or find in it the same run to resume. Raises ConfigError if neither can be done."""
    mine = json.loads(json.dumps(asdict(config))) | {"start": weights_mark(start)}
    path = Path(out) / "run.json"
    try:
        if not path.exists():
            checkpoint.check_free(out, MADE, path.name)
            out.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".partial")
            aside.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
            aside.rename(path)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot use {out}: {error.strerror or error}; choose another --out") from error
    if not resume:
        raise ConfigError(f"{out} holds a run already; go on with it by --resume, or choose another --out")
    known = json.loads(json.dumps(asdict(TrainConfig()))) | theirs  # a setting that is newer than the run: its default
    changed = [key for key in mine if key not in FREE and mine[key] != known.get(key)]
    if changed:
        raise ConfigError(
            f"{path} was written with other {', '.join(changed)}; expected the same settings and first weights: "
            f"only {', '.join(FREE)} may change in a resumed run"
        )


def save(out: Path, standing: TrainState, learner: Learner) -> None:
    """Write a checkpoint aside and rename it; the last good one survives a kill at any moment."""
    tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in learner.learning.items()}
    if learner.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in learner.average.items()}
    for name, optimizer in learner.optimizers.items():
        tensors |= checkpoint.pack_optimizer(f"adamw_{name}", optimizer)
    nodes, pictures = write_nodes(standing.waiting)
    counts = {**asdict(replace(standing, waiting=())), "waiting": nodes}
    counts.pop("step")
    checkpoint.save(out / "checkpoints", standing.step, tensors | pictures, counts, learner.config.keep)


def resume(out: Path, learner: Learner) -> TrainState:
    """Put the newest checkpoint's weights back; a fresh standing where there is none."""
    checkpoint.sweep(out / "checkpoints")
    found = checkpoint.latest(out / "checkpoints", learner.bagel.device)
    if found is None:
        return TrainState()
    tensors, record = found
    with torch.no_grad():
        for name, parameter in learner.learning.items():
            parameter.copy_(tensors[f"model/{name}"])
            if learner.average is not None:
                learner.average[name].copy_(tensors[f"average/{name}"])
    for name, optimizer in learner.optimizers.items():
        checkpoint.unpack_optimizer(f"adamw_{name}", optimizer, tensors)
    record["waiting"] = tuple(read_nodes(record["waiting"], tensors))
    record["judged"] = tuple((missing, asked) for missing, asked in record["judged"])
    return TrainState(**record)


def write_nodes(nodes: Sequence[Node]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Nodes as JSON values and named pictures; strokes and rewards, which only their own step needs, are left out."""
    records, pictures = [], {}
    for number, node in enumerate(nodes):
        trace, verdict = node.trace, node.verdict
        if trace.prompt.image is not None:
            pictures[f"waiting/{number}/input"] = torch.from_numpy(np.array(trace.prompt.image))
        for turn, taken in enumerate(trace.turns):
            if taken.drew is not None:
                pictures[f"waiting/{number}/{turn}"] = torch.from_numpy(np.array(taken.drew.image))
        records.append({"trace": trace.to_record(), "verdict": None if verdict is None else asdict(verdict)})
    return records, pictures


def read_nodes(records: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[Node]:
    """What `write_nodes` wrote."""
    nodes = []
    for number, record in enumerate(records):
        told = record["trace"]
        names = ("input", *map(str, range(len(told["turns"]))))
        found = {name: tensors.get(f"waiting/{number}/{name}") for name in names}
        images = {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in found.items()}
        spec = None if told["spec"] is None else Spec.from_metadata(told["spec"])
        prompt = Prompt(told["prompt"], spec, images["input"], told["source"])
        turns = tuple(_turn(turn, images[str(place)]) for place, turn in enumerate(told["turns"]))
        given = record["verdict"]
        verdict = None if given is None else Verdict(given["score"], tuple(given["passed"]), tuple(given["failed"]))
        nodes.append(Node(Trace(prompt, turns, told["seed"]), verdict))
    return nodes


def weights_mark(model: nn.Module) -> str:
    """A mark of a model's weights, cheap enough for billions of them, and the same on every device.

    A hash of two sums over each tensor's bits, one of them weighted by place. They are sums of integers, since those
    of floats depend on the order of addition.
    """
    sums = [(name, *_sums_of_bits(tensor.detach())) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def _sums_of_bits(tensor: Tensor) -> tuple[int, int]:
    bits = tensor.contiguous().reshape(-1).view(WORDS[tensor.element_size()])
    plain = placed = 0
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].long()
        plain += int(part.sum())
        placed += int((part * (torch.arange(len(part), device=part.device) % PLACES + 1)).sum())
    return plain, placed


def _turn(record: Mapping[str, Any], image: np.ndarray | None) -> Turn:
    said = None
    if record["said"] is not None:
        tokens, scores = np.asarray(record["tokens"], np.int64), np.asarray(record["logprobs"], np.float32)
        said = Completion(record["said"], tokens, scores)
    drew = None if image is None else Drawing(image)
    return Turn(said, drew, record["instruction"], record["seconds"])
