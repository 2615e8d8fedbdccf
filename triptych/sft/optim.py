"""A course: one part of the model learns on its own, resumed exactly, with a running average of its weights.

Muon for the matrices of the layers, AdamW for everything else: what teaches fastest from nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.errors import ConfigError
from triptych.model.bagel import Bagel
from triptych.sft import checkpoint

FitStep = tuple[int, float, dict[str, float]]  # step, loss, what else was measured


@dataclass(frozen=True)
class StageFit:
    """How long and how fast a part learns; each lesson has numbers of its own."""

    steps: int
    batch: int
    rate: float  # AdamW's
    warmup: int
    cooldown: float  # share of the steps over which the rate falls to 0
    average: float  # share of the running average that a step keeps
    clip: float = 1.0  # longest gradient; 0 is any


def fit(
    pupil: nn.Module,
    schools: Mapping[str, torch.optim.Optimizer],
    course: StageFit,
    lesson: Callable[[int], tuple[Tensor, dict[str, float]]],
    folder: Path,
    every: int,
) -> Generator[FitStep, None, dict[str, Tensor]]:
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


def optimizers(parameters: Mapping[str, Tensor], matrix_rate: float, rate: float) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name; each expert's matrices have their own, so that they can step at the same time.

    Raises ConfigError where torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon; expected 2.9 or newer for lessons: upgrade it")
    matrices = {name for name, p in parameters.items() if p.dim() == 2 and ".layers." in name}
    drawing = {name for name in matrices if "_moe_gen" in name}
    parts = {"muon_und": matrices - drawing, "muon_gen": drawing}
    schools: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Muon([p for n, p in parameters.items() if n in part], lr=matrix_rate, weight_decay=0.0)
        for name, part in parts.items()
        if part
    }
    rest = [p for n, p in parameters.items() if n not in matrices]
    schools["adamw"] = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return schools


def rates(schools: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
    """The base rate of each optimiser, to be scaled by the schedule."""
    return {name: optimizer.param_groups[0]["lr"] for name, optimizer in schools.items()}


def step_all(schools: Mapping[str, torch.optim.Optimizer], hands: int = 1) -> None:
    """One step of every optimiser, `hands` of them at a time: they share no parameter."""
    with ThreadPoolExecutor(hands) as pool:
        list(pool.map(lambda optimizer: optimizer.step(), schools.values()))


def set_rates(schools: Mapping[str, torch.optim.Optimizer], bases: Mapping[str, float], share: float) -> None:
    """Bring every optimiser to a share of its base rate."""
    for name, optimizer in schools.items():
        for group in optimizer.param_groups:
            group["lr"] = bases[name] * share
