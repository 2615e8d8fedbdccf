"""The state of a run between two steps, and its exact way to disk and back.

All randomness of a step is a function of (seed, step), so what remains is: the weights, their running average, the
moments of the optimizers, the place in the stream of prompts, the parents of the next stage, and a few counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych import files
from triptych.errors import ConfigError
from triptych.model.bagel import Bagel
from triptych.model.weights import fingerprint
from triptych.rl.config import TrainConfig
from triptych.rl.learner import Learner
from triptych.rl.tree import Node
from triptych.sft import checkpoint
from triptych.trace import Trace, Verdict

PUBLISHED = "published.json"  # {"step": of the state that the folder `model` holds}
MADE = (  # in the folder of a run, beside run.json
    *("checkpoints", "rollouts", "adapter", "model"),
    *("steps.jsonl", "evaluations.jsonl", "fixed.safetensors", "tracker.json", "tensorboard", PUBLISHED),
)
# Settings that a resumed run may change; limits, since a run that was stopped by one must be able to go on.
FREE = (
    *("steps", "samples", "device", "threads", "save_every", "keep"),
    *("micro_batch_size", "gradient_checkpointing", "limits"),
)


FACTS = ("start", "judge_name", "prompts")  # of run.json beside the settings


@dataclass(frozen=True)
class TrainState:
    """The counts of a run before step `step`, and the parents of its next stage."""

    step: int = 0
    prompt_index: int = 0  # in the stream of prompts
    depth: int = 0  # Refine stages since the last Reason
    parents: tuple[Node, ...] = ()  # of the next Refine, spares last; none before a Reason
    samples: int = 0  # texts and pictures so far
    skipped: int = 0  # steps that were not finite, in all
    skipped_in_a_row: int = 0
    verdicts: tuple[tuple[int, int], ...] = ()  # (missing, asked) of the newest steps

    def ended(self, config: TrainConfig) -> bool:
        """Whether the run has taken its steps, or used up its budget of samples."""
        return self.step >= config.steps or 0 < config.samples <= self.samples


def claim(out: Path, config: TrainConfig, start: Bagel, resume: bool, facts: Mapping[str, str] | None = None) -> None:
    """Take a folder for a run, or find in it the same run to resume.

    `facts` are further strings that must be the same in a resumed run, such as the judge's name; one that an older run
    did not write is taken as the same. Raises ConfigError if neither can be done, OutputError if the folder cannot be
    used.
    """
    facts = {"start": fingerprint(start), **(facts or {})}
    path, mine = Path(out) / "run.json", json.loads(json.dumps(asdict(config) | facts))
    with files.naming_errors(path):
        if not path.exists():
            checkpoint.check_free(out, MADE, path.name)
            out.mkdir(parents=True, exist_ok=True)
            files.write_json(path, mine)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
    if not resume:
        raise ConfigError(f"{out} holds a run already; go on with it by --resume, or choose another --out")
    if unknown := [key for key in theirs if key not in mine and key not in FACTS]:
        raise ConfigError(
            f"{path} was written by another version of triptych: it sets {', '.join(unknown)}; resume it with that "
            "version, or start a new run from its newest weights"
        )
    older = (
        json.loads(json.dumps(asdict(TrainConfig()) | facts)) | theirs
    )  # a setting that is newer than the run: its default
    changed = [key for key in mine if key not in FREE and mine[key] != older.get(key)]
    if changed:
        raise ConfigError(
            f"{path} was written with other {', '.join(changed)}; expected the same settings and first weights: "
            f"only {', '.join(FREE)} may change in a resumed run"
        )


def published(out: Path, config: TrainConfig) -> int | None:
    """The step of a run that has ended and published its model; None where something is left to do."""
    path, states = out / PUBLISHED, checkpoint.steps(out / "checkpoints")
    if not (path.is_file() and states and (out / "model").is_dir()):
        return None
    record = json.loads((states[-1] / "state.json").read_text(encoding="utf-8"))
    ended = TrainState(step=record["step"], samples=record["samples"]).ended(config)
    step = json.loads(path.read_text(encoding="utf-8"))["step"]
    return step if ended and step == record["step"] else None


def save_state(out: Path, state: TrainState, learner: Learner) -> None:
    """Write a checkpoint, whole or not at all: the last good one survives a kill at any moment."""
    parents, pictures = write_nodes(state.parents)
    counts = {each.name: getattr(state, each.name) for each in fields(state) if each.name != "step"}
    tensors = checkpoint.pack(learner.learning, learner.average, _optimizers(learner)) | pictures
    checkpoint.save_checkpoint(
        out / "checkpoints", state.step, tensors, counts | {"parents": parents}, learner.config.keep
    )


def restore(out: Path, learner: Learner) -> TrainState:
    """Put the newest checkpoint's weights and moments back; a fresh state where there is none."""
    files.sweep(out / "checkpoints")  # of what a kill in the middle of a write has left
    newest = checkpoint.latest(out / "checkpoints", learner.bagel.device)
    if newest is None:
        return TrainState()
    tensors, counts = newest
    checkpoint.unpack(tensors, learner.learning, learner.average, _optimizers(learner))
    verdicts = tuple((missing, asked) for missing, asked in counts["verdicts"])
    return TrainState(**counts | {"parents": tuple(read_nodes(counts["parents"], tensors)), "verdicts": verdicts})


def _optimizers(learner: Learner) -> dict[str, torch.optim.Optimizer]:
    return {f"adamw_{name}": optimizer for name, optimizer in learner.optimizers.items()}


def write_nodes(nodes: Sequence[Node]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Nodes as JSON values and named pictures; SDE steps and rewards, which only their own step needs, are left out."""
    records, pictures = [], {}
    for number, node in enumerate(nodes):
        for name, image in node.trace.named_images().items():
            pictures[f"parents/{number}/{name}"] = torch.from_numpy(np.array(image))
        verdict = None if node.verdict is None else node.verdict.to_record()
        records.append({"trace": node.trace.to_record(), "verdict": verdict})
    return records, pictures


def read_nodes(records: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[Node]:
    """Undo `write_nodes`."""

    def node(number: int, record: Mapping[str, Any]) -> Node:
        trace = Trace.from_record(record["trace"], lambda name: tensors[f"parents/{number}/{name}"].cpu().numpy())
        verdict = record["verdict"]
        return Node(trace, None if verdict is None else Verdict.from_record(verdict))

    return [node(number, record) for number, record in enumerate(records)]
