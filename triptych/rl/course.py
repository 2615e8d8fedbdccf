"""A course: one part of the model learns on its own, resumed exactly, with a running average of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.model.bagel import Bagel
from triptych.rl import checkpoint
from triptych.rl.optimizers import rates, set_rates, step_all

Studied = tuple[int, float, dict[str, float]]  # step, loss, what else was measured


@dataclass(frozen=True)
class Course:
    """How long and how fast a part learns; each lesson has numbers of its own."""

    steps: int
    batch: int
    rate: float  # AdamW's
    warmup: int
    cooldown: float  # share of the steps over which the rate falls to 0
    average: float  # share of the running average that a step keeps
    clip: float = 1.0  # longest gradient; 0 is any


def study(
    pupil: nn.Module,
    schools: Mapping[str, torch.optim.Optimizer],
    course: Course,
    lesson: Callable[[int], tuple[Tensor, dict[str, float]]],
    folder: Path,
    every: int,
) -> Generator[Studied, None, dict[str, Tensor]]:
    """Train `pupil` from the newest checkpoint in `folder`, yielding a step at a time; returns its averaged weights.

    `lesson` gives the loss of a step, a function of its number alone, and numbers to log. Saves every `every` steps and
    after the last.
    """
    average = {name: tensor.detach().clone() for name, tensor in pupil.state_dict().items()}
    bases, start = rates(schools), 0
    if (found := checkpoint.latest(folder, next(pupil.parameters()).device)) is not None:
        tensors, record = found
        start = record["step"]
        average = checkpoint.unpack_course(tensors, pupil, schools)
    for step in range(start, course.steps):
        set_rates(schools, bases, rate_at(step, course.steps, course.warmup, course.cooldown))
        loss, metrics = lesson(step)
        pupil.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pupil.parameters(), course.clip or math.inf)
        step_all(schools)
        blend(average, pupil, keep_at(step, course.average))
        if (step + 1) % every == 0 or step + 1 == course.steps:
            checkpoint.save(folder, step + 1, checkpoint.pack_course(pupil, average, schools), {})
        yield step, float(loss.detach()), metrics
    return average


def initialise(bagel: Bagel) -> None:
    """Small normal matrices, quiet residual branches, a velocity head that starts at zero; the eyes stay."""
    depth = bagel.config.language.num_hidden_layers
    for name, parameter in bagel.named_parameters():
        if name.startswith(("autoencoder.", "vit_model.")) or not parameter.requires_grad:
            continue
        if name.startswith("llm2vae.") or (parameter.dim() == 1 and name.endswith("bias")):
            torch.nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            deviation = 0.02 if "embed_tokens" in name or "lm_head" in name else parameter.shape[1] ** -0.5
            quiet = (2 * depth) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=deviation * quiet)


def adamw(pupil: nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.95)) -> dict[str, torch.optim.Optimizer]:
    """AdamW without decay for everything, under the name that checkpoints know."""
    return {"adamw": torch.optim.AdamW(pupil.parameters(), lr=rate, betas=betas, weight_decay=0.0)}


def rate_at(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Share of the learning rate: a linear warm-up, a plateau, a linear fall to zero over the last part."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (steps - step) / max(steps * cooldown, 1))
    return rise * fall


def keep_at(step: int, keep: float) -> float:
    """How much of a running average is kept: little at first, so that nothing of the first weights stays in it."""
    return min(keep, (step + 1) / (step + 10))


def blend(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    """Move a running average of the weights towards the model."""
    state = model.state_dict()
    for name, kept in average.items():
        if kept.is_floating_point():
            kept.lerp_(state[name].detach(), 1 - keep)
