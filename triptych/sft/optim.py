"""Training of one stage: what every stage of SFT is made of, and the one loop that fits it.

A stage is a value: which tensors it changes, its optimizers, its samples as a function of the update's number alone,
and its loss. `fit` warms the learning rate up, holds it, lets it fall to 0, averages the weights (EMA), and saves its
whole state so that a run that was killed at any update ends in the same bytes as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from triptych import files
from triptych.bounds import NonNegativeFloat, NonNegativeInt, Share
from triptych.errors import ConfigError, TrainingError
from triptych.sft import checkpoint
from triptych.signals import held

PREFETCH = 4  # batches that a worker process holds ready

Optimizers = dict[str, torch.optim.Optimizer]
Metrics = dict[str, float]
Part = tuple[Any, float]  # samples of one forward pass, and the weight of their loss in the update


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast a stage learns; each stage has its own defaults."""

    steps: NonNegativeInt
    lr: NonNegativeFloat  # of AdamW
    warmup_steps: NonNegativeInt  # updates over which the learning rates rise
    cooldown: Share  # of the updates, over which the learning rates fall to 0
    ema_decay: Share  # of the averaged weights, kept by each update
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0  # 0 disables clipping


@dataclass(frozen=True)
class SFTStep:
    """One update: its stage, its place in it, the loss and what else was measured."""

    stage: str
    index: int
    total: int
    loss: float
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class SFTStage:
    """One stage of SFT.

    `tensors` are all that it changes: weights that learn (`requires_grad`) and running statistics. `ema` has the same
    names, and holds the averaged weights when the stage is over. `samples` gives the parts of a batch and `loss` the
    loss of one part with its metrics; both are functions of their argument alone.
    """

    name: str
    config: FitConfig
    tensors: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizers: Optimizers
    samples: Callable[[int], Sequence[Part]]
    loss: Callable[[Any], tuple[Tensor, Metrics]]
    threads: int = 1  # that work on the parts of a batch side by side

    @property
    def parameters(self) -> list[Tensor]:
        """What learns, in a fixed order: the gradient norm is a sum over it."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]


def fit(stage: SFTStage, folder: Path, save_every: int, num_workers: int = 0) -> Generator[SFTStep, None, None]:
    """Run a stage from its newest checkpoint in `folder` to its end, yielding after every update.

    Saves every `save_every` updates, after the last, and before a KeyboardInterrupt is passed on; signals wait for the
    end of an update that has begun. `num_workers` processes prepare samples ahead; with 0 they are
    prepared between updates. Raises TrainingError where gradients are not finite, OutputError, and ModelError for a
    checkpoint of other settings.
    """
    config, parameters = stage.config, stage.parameters
    start = _restore(stage, folder)
    schedules = [
        LambdaLR(optimizer, partial(lr_factor, config), last_epoch=start - 1) for optimizer in stage.optimizers.values()
    ]
    done = saved = start  # updates; `done` is behind while one is under way
    is_whole = True
    try:
        for step, parts in enumerate(_load(stage.samples, range(start, config.steps), num_workers), start):
            with held() as deliver:
                is_whole = False
                metrics = _update(stage, schedules, parts, parameters, step)
                done, is_whole = step + 1, True
            if done % save_every == 0 or done == config.steps:
                _save(stage, folder, done)
                saved = done
            yield SFTStep(stage.name, step, config.steps, metrics.pop("loss"), metrics)
            deliver()  # only now, so that the listener has heard of the update
    except KeyboardInterrupt:
        if is_whole and done > saved:  # a second signal may have cut an update
            _save(stage, folder, done)
        raise


def _save(stage: SFTStage, folder: Path, step: int) -> None:
    checkpoint.save_checkpoint(folder, step, checkpoint.pack(stage.tensors, stage.ema, stage.optimizers), {})


def _update(
    stage: SFTStage, schedules: Sequence[LambdaLR], parts: Sequence[Part], parameters: Sequence[Tensor], step: int
) -> Metrics:
    """One update of everything that a stage changes. Raises TrainingError before any weight moves."""
    config = stage.config
    with divided_threads(stage.threads):
        metrics = accumulate_gradients(stage.loss, parts, parameters, stage.threads)
        metrics["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf))
        if not math.isfinite(metrics["grad_norm"]):
            raise TrainingError(
                f"{stage.name}, update {step}: the gradient norm is {metrics['grad_norm']}; expected a finite one: "
                f"lower --{stage.name.replace('_', '-')}.lr (now {config.lr}); the last checkpoint is untouched"
            )
        with ThreadPoolExecutor(stage.threads) as pool:  # optimizers share no parameter
            list(pool.map(lambda optimizer: optimizer.step(), stage.optimizers.values()))
    for optimizer, schedule in zip(stage.optimizers.values(), schedules, strict=True):
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    update_ema(stage.ema, stage.tensors, step, config.ema_decay)
    return metrics


def accumulate_gradients(
    loss: Callable[[Any], tuple[Tensor, Metrics]], parts: Sequence[Part], parameters: Sequence[Tensor], threads: int = 1
) -> Metrics:
    """Add the gradients of all parts to the parameters; returns the loss and the metrics, summed by weight.

    Parts are worked on side by side, and their gradients are added in a fixed order, so that an update is the same
    number whatever the threads do.
    """

    def weighted(part: Part) -> tuple[Tensor, Metrics]:
        samples, weight = part
        value, metrics = loss(samples)
        metrics = {"loss": float(value.detach())} | metrics
        return value * weight, {name: each * weight for name, each in metrics.items()}

    def work(part: Part) -> tuple[Sequence[Tensor | None], Metrics]:
        value, metrics = weighted(part)
        # Not `backward`, which would add to `.grad` in whatever order the threads arrive.
        return torch.autograd.grad(value, list(parameters), allow_unused=True), metrics

    if len(parts) == 1:
        value, metrics = weighted(parts[0])
        value.backward(inputs=list(parameters))
        return metrics
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(work, parts))
    totals: Metrics = {}
    for gradients, metrics in results:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


@contextmanager
def divided_threads(threads: int) -> Iterator[None]:
    """Divide torch's intra-op threads among so many Python threads: more threads than cores stall one another.

    With one intra-op thread each, two threads on two CPU cores do nearly twice the work of one, where two intra-op
    threads do a fifth more.
    """
    whole = torch.get_num_threads()
    torch.set_num_threads(max(1, whole // threads))
    try:
        yield
    finally:
        torch.set_num_threads(whole)


def lr_factor(config: FitConfig, step: int) -> float:
    """Share of the learning rate at an update: a linear warm-up, a plateau, a linear fall to 0 (a trapezoid)."""
    rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    fall = min(1.0, (config.steps - step) / max(config.steps * config.cooldown, 1))
    return rise * fall


def ema_decay(step: int, decay: float) -> float:
    """The decay of the averaged weights at an update: low at first, so that nothing of the first weights stays."""
    # LOG.md E7: a decay of .998 from random weights on cost 7 dB of the VAE after 400 updates.
    return min(decay, (step + 1) / (step + 10))


def update_ema(ema: Mapping[str, Tensor], tensors: Mapping[str, Tensor], step: int, decay: float) -> None:
    """Move averaged weights towards `tensors` of the same names; whole numbers, such as counters, stay.

    The arithmetic is torch's. Its `AveragedModel` is not used: it copies the whole module, frozen weights and all, and
    its first update replaces the weights instead of averaging them.
    """
    names = [name for name, average in ema.items() if average.is_floating_point()]
    if names:
        current = [tensors[name].detach() for name in names]
        get_ema_multi_avg_fn(ema_decay(step, decay))([ema[name] for name in names], current, 0)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detached copy of each tensor: where averaged weights begin."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def load_weights(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values, such as averaged weights, into the tensors of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def adamw(tensors: Iterable[Tensor], config: FitConfig, betas: tuple[float, float]) -> Optimizers:
    """AdamW alone; the scheduler of a resumed run reads `initial_lr`."""
    group = {"params": list(tensors), "initial_lr": config.lr}
    return {"adamw": torch.optim.AdamW([group], lr=config.lr, betas=betas, weight_decay=config.weight_decay)}


def muon_and_adamw(tensors: Mapping[str, Tensor], config: FitConfig, muon_lr: float) -> Optimizers:
    """Muon for the matrices of the layers, AdamW for the rest: what learns fastest from nothing.

    Each expert's matrices have an optimizer of their own, so that both step at the same time. Raises ConfigError where
    torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon; expected 2.9 or newer for SFT: upgrade torch")
    matrices = [name for name, tensor in tensors.items() if tensor.dim() == 2 and ".layers." in name]
    experts = {
        "muon_und": [name for name in matrices if "_moe_gen" not in name],
        "muon_gen": [name for name in matrices if "_moe_gen" in name],
    }
    optimizers: Optimizers = {}
    for expert, names in experts.items():
        if names:
            group = {"params": [tensors[name] for name in names], "initial_lr": muon_lr}
            optimizers[expert] = torch.optim.Muon([group], lr=muon_lr, weight_decay=config.weight_decay)
    rest = [tensor for name, tensor in tensors.items() if name not in set(matrices)]
    return optimizers | adamw(rest, config, betas=(0.9, 0.98))


def _load(samples: Callable[[int], Sequence[Part]], steps: range, num_workers: int) -> Iterable[Sequence[Part]]:
    if not num_workers:
        return map(samples, steps)
    return torch.utils.data.DataLoader(
        _Samples(samples),
        batch_size=None,
        sampler=steps,
        collate_fn=lambda parts: parts,  # the usual one turns tuples into lists
        num_workers=num_workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",  # closures over the recipe need no pickling
    )


class _Samples(torch.utils.data.Dataset):
    """The endless set of batches of a stage, by the number of the update."""

    def __init__(self, samples: Callable[[int], Sequence[Part]]):
        self.samples = samples

    def __getitem__(self, step: int) -> Sequence[Part]:
        return self.samples(step)


def _restore(stage: SFTStage, folder: Path) -> int:
    """Put the newest checkpoint of a stage back, if there is one; returns the number of updates done."""
    files.sweep(folder)  # what a kill has left
    device = next(iter(stage.tensors.values())).device
    if (saved := checkpoint.latest(folder, device)) is None:
        return 0
    tensors, record = saved
    checkpoint.unpack(tensors, stage.tensors, stage.ema, stage.optimizers)
    return record["step"]
