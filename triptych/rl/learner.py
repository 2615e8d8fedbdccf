"""One update: log-probabilities of a batch in micro-batches, their losses, one optimizer step; skip what is not finite.

Weights fall into two homes: `gen` draws (latent tokens, their projections and times), `und` does everything else. An
AdamW holds both, with a learning rate each. Reason, Refine and the SFT mix have an AdamW each: the gradients of an edit
are ten times as long as those of a first picture, and those of SFT a hundred times. AdamW divides by the moments of the
gradient, so that with shared moments the shortest gradient would move next to nothing.

The vision tower and the autoencoder are frozen by default; with adapters (lora.py) everything but the adapters is.
Copies are of the weights that learn alone: a frozen weight is in memory once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.flow import gaussian_kl
from triptych.model.logprobs import ImageSample, TextSample
from triptych.model.transformer import Experts, is_generation
from triptych.rl import lora
from triptych.rl.advantages import LossRows
from triptych.rl.config import PartConfig, StageConfig, TrainConfig
from triptych.rl.logprob_check import Comparison, problems
from triptych.rl.losses import flow_grpo, grpo, token_kl
from triptych.rl.metrics import Timer
from triptych.seeds import derive
from triptych.sft.joint import SFTBatch, accumulate_joint
from triptych.sft.optim import copies, update_ema

HOMES = ("und", "gen")
BETAS, EPS = (0.9, 0.95), 1e-8  # of AdamW
SFT = "sft"
SOURCES = ("reason", "refine", SFT)  # of gradients, each with moments of its own
LORA_SEED = 4  # the seed of new adapters among those of a run
Gradients = dict[str, Tensor | None]


@dataclass(frozen=True)
class StageBatch:
    """A batch of one stage, and the sampling that it was drawn with; `source` names the moments that it is taken by."""

    source: Literal["reason", "refine"]
    stage: StageConfig
    sampling: Sampling
    batch: LossRows


@dataclass
class UpdateMetrics:
    """Means and largest values, gathered over parts and updates."""

    timer: Timer
    comparison: Comparison | None = None  # with the sampler's record, in the first inner epoch
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tops: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Take values into the mean of that name."""
        self.sums[name] += float(values.sum())
        self.counts[name] += values.numel()

    def top(self, name: str, values: Tensor) -> None:
        """Take values into the largest of that name."""
        if values.numel():
            self.tops[name] = max(self.tops.get(name, -math.inf), float(values.max()))

    def read(self) -> dict[str, float]:
        return {name: self.sums[name] / count for name, count in self.counts.items() if count} | self.tops


class Learner:
    """The policy that learns, its optimizer, and the copies that it is compared with or averaged into."""

    def __init__(self, bagel: Bagel, config: TrainConfig):
        self.bagel, self.config = bagel, config
        bagel.language_model.model.gradient_checkpointing = config.gradient_checkpointing
        if config.lora.rank:
            lora.inject(bagel, config.lora, derive(config.seed, LORA_SEED))
        else:
            bagel.requires_grad_(True)
        bagel.autoencoder.requires_grad_(False)
        bagel.vit_model.requires_grad_(config.train_vision)
        self.learning = {name: p for name, p in bagel.named_parameters() if p.requires_grad}
        self.homes: dict[str, list[nn.Parameter]] = {home: [] for home in HOMES}
        for name, parameter in self.learning.items():
            self.homes["gen" if is_generation(name) else "und"].append(parameter)
        shared = config.moments == "shared"
        self.optimizers = {
            name: self._adamw(0.0 if name == SFT else config.weight_decay)
            for name in SOURCES
            if not (shared and name == "refine")
        }
        parts = [part for stage in (config.reason, config.refine) for part in (stage.text, stage.picture)]
        with_kl = any(part.kl_coef for part in parts if part.train)
        self.average = copies(self.learning) if config.ema_decay else None
        self.first = copies(self.learning) if with_kl and config.reference == "frozen" else None

    def _adamw(self, decay: float) -> torch.optim.AdamW:
        """An optimizer of both homes, in the order of HOMES; it takes memory for what gradients reach alone."""
        groups = [{"params": self.homes[home]} for home in HOMES]
        return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, weight_decay=decay)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute as configured; sampling and scoring both happen inside."""
        with torch.autocast(
            self.bagel.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16", cache_enabled=False
        ):
            yield

    def update(
        self, batches: Sequence[StageBatch], step: int, timer: Timer, sft_batch: SFTBatch | None = None
    ) -> tuple[dict[str, float], bool]:
        """Learn from one rollout, as often as each stage says, and after each time from a batch of the SFT mix.

        Rewards come first, so that the ratios of the first update are those of the policy that was sampled from: in it
        log-probabilities are compared with the sampler's record. Returns metrics, and whether all was finite and
        within the limits; nothing is learnt in an epoch that was not.
        """
        metrics, references, share = UpdateMetrics(timer), {}, self.config.lr_scale(step)
        if sft_batch is None and all(batch_of_stage.batch.empty for batch_of_stage in batches):
            return {}, True
        for turn in range(max(batch_of_stage.stage.inner_epochs for batch_of_stage in batches)):
            now = [(n, one) for n, one in enumerate(batches) if turn < one.stage.inner_epochs and not one.batch.empty]
            if not self._learn(now, share, metrics, references, first=turn == 0):
                return metrics.read(), False
            if sft_batch is not None:
                self._set_rates(self.optimizers[SFT], [self.config.sft_mix.lr] * len(HOMES), share)
                gradients = self._clipped_gradients(self._backward_sft(sft_batch, metrics), "sft_", metrics)
                if gradients is None:
                    return metrics.read(), False
                self._step(self.optimizers[SFT], gradients)
            self._update_ema(step)
        return metrics.read(), True

    def _learn(
        self,
        batches: Sequence[tuple[int, StageBatch]],
        share: float,
        metrics: UpdateMetrics,
        references: dict,
        first: bool,
    ) -> bool:
        """Step by each stage's gradients, at its own rates and with its own moments.

        Whole chains teach two stages at once: both gradients are taken, and are finite, before any weight moves.
        """
        taken: list[tuple[StageBatch, Gradients]] = []
        for number, batch_of_stage in batches:
            metrics.comparison = Comparison() if first else None
            gradients = self._clipped_gradients(
                self._backward(number, batch_of_stage, metrics, references), "", metrics
            )
            mismatch = {} if metrics.comparison is None else metrics.comparison.read()
            for name, value in mismatch.items():
                metrics.top(f"mismatch_{name}", torch.tensor(value))
            if gradients is None or problems(batch_of_stage.source, mismatch, self.config.limits):
                return False
            taken.append((batch_of_stage, gradients))
        for batch_of_stage, gradients in taken:
            optimizer = self.optimizers.get(batch_of_stage.source, self.optimizers["reason"])
            self._set_rates(optimizer, _rates(batch_of_stage.stage), share)
            self._step(optimizer, gradients)
        return True

    def _clipped_gradients(self, loss: float, name: str, metrics: UpdateMetrics) -> Gradients | None:
        """Take gradients off the parameters, at most as long as allowed; None where they or the loss are not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.learning.values(), self.config.max_grad_norm))
        metrics.add(f"{name}loss", torch.tensor(loss))
        metrics.add(f"{name}grad_norm", torch.tensor(norm))
        gradients = {weight: parameter.grad for weight, parameter in self.learning.items()}
        self.bagel.zero_grad(set_to_none=True)
        return gradients if math.isfinite(loss) and math.isfinite(norm) else None

    def _step(self, optimizer: torch.optim.Optimizer, gradients: Gradients) -> None:
        for name, parameter in self.learning.items():
            parameter.grad = gradients[name]
        optimizer.step()
        self.bagel.zero_grad(set_to_none=True)

    @torch.no_grad()
    def merge_for_release(self, folder: Path | None = None) -> None:
        """Put the averaged weights into the policy, where an average is kept, and merge its adapters, if it has any.

        Adapters are written to `folder` first.
        """
        if self.average is not None:
            for name, parameter in self.learning.items():
                parameter.copy_(self.average[name])
        if self.config.lora.rank:
            if folder is not None:
                lora.save_adapters(self.bagel, folder)
            lora.merge(self.bagel)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The policy, for a while and without gradients, as what the KL is measured from."""
        weights = self.first if self.config.reference == "frozen" else self.average
        reference_model = lora.switched_off(self.bagel) if weights is None else _swapped_in(self.learning, weights)
        with torch.no_grad(), self.precision(), reference_model:
            yield

    def _set_rates(self, optimizer: torch.optim.Optimizer, rates: Sequence[float], share: float) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = share * rate

    def _backward(self, number: int, batch_of_stage: StageBatch, metrics: UpdateMetrics, references: dict) -> float:
        """Add the gradients of one stage's batch; returns its loss."""
        batch, stage, size, loss = batch_of_stage.batch, batch_of_stage.stage, self.config.micro_batch_size, 0.0
        for start in range(0, len(batch.text_samples), size):
            rows, advantages = batch.text_samples[start : start + size], batch.text_advantages[start : start + size]
            key = (number, "text", start)
            with self._trainable("und"):
                with metrics.timer.part("score"):
                    part = self._text_loss(rows, advantages, batch_of_stage, metrics, references, key)
                part.backward()
            loss += float(part.detach())
        for start in range(0, len(batch.image_samples), size):
            rows, advantages = batch.image_samples[start : start + size], batch.image_advantages[start : start + size]
            key = (number, "picture", start)
            with self._trainable(stage.picture.experts):
                with metrics.timer.part("score"):
                    part = stage.picture.loss_weight * self._picture_loss(
                        rows, advantages, batch_of_stage, metrics, references, key
                    )
                part.backward()
            loss += float(part.detach())
        return loss

    def _backward_sft(self, sft_batch: SFTBatch, metrics: UpdateMetrics) -> float:
        """Put the gradients of the SFT mix on the parameters; returns their loss."""
        with metrics.timer.part("sft"):
            values = accumulate_joint(self.bagel, self.config.sft_mix.data, sft_batch)
        for name, value in values.items():
            if name != "loss":
                metrics.add(f"sft_{name}", torch.tensor(value))
        return values["loss"]

    def _text_loss(
        self,
        rows: Sequence[TextSample],
        advantages: Tensor,
        batch_of_stage: StageBatch,
        metrics: UpdateMetrics,
        references: dict,
        key: tuple,
    ) -> Tensor:
        part, count = batch_of_stage.stage.text, batch_of_stage.batch.tokens
        score = partial(self.bagel.text_logprobs, rows, batch_of_stage.sampling)
        reference = self._reference_scores(references, key, score) if part.kl_coef else None
        with self.precision():
            scores = score()
        old = torch.zeros_like(scores.logprob)
        for row, one in enumerate(rows):
            old[row, : len(one.completion.logprobs)] = torch.from_numpy(one.completion.logprobs)
        if metrics.comparison is not None:
            metrics.comparison.add_text(scores, rows)
        loss = grpo(scores.logprob, old, advantages.to(old.device), scores.mask, part.clip_range, count)
        _log_ratios(metrics, "text", (scores.logprob.detach() - old)[scores.mask], part)
        metrics.add("text_entropy", scores.entropy[scores.mask])
        if reference is not None:
            divergence = token_kl(scores.logprob, reference.logprob, scores.mask, count)
            metrics.add("text_kl", divergence.detach() * count / max(int(scores.mask.sum()), 1))
            loss = loss + part.kl_coef * divergence
        return loss

    def _picture_loss(
        self,
        rows: Sequence[ImageSample],
        advantages: Tensor,
        batch_of_stage: StageBatch,
        metrics: UpdateMetrics,
        references: dict,
        key: tuple,
    ) -> Tensor:
        part, count = batch_of_stage.stage.picture, batch_of_stage.batch.sde_steps
        score = partial(self.bagel.sde_logprobs, rows, batch_of_stage.sampling)
        reference = self._reference_scores(references, key, score) if part.kl_coef else None
        with self.precision():
            scores = score()
        if metrics.comparison is not None:
            metrics.comparison.add_images(scores, rows)
        new = torch.cat([one.logprob for one in scores])
        old = torch.cat([torch.from_numpy(one.sde_steps.logprob) for one in rows]).to(new.device)
        per_step = torch.repeat_interleave(advantages, torch.tensor([len(one.sde_steps.time) for one in rows])).to(
            new.device
        )
        loss = flow_grpo(new, old, per_step, part.clip_range, count)
        _log_ratios(metrics, "sde", new.detach() - old, part)
        if reference is not None:
            divergences = torch.cat(
                [gaussian_kl(a.mean, b.mean, a.std) for a, b in zip(scores, reference, strict=True)]
            )
            metrics.add("sde_kl", divergences.detach())
            loss = loss + part.kl_coef * divergences.sum() / count
        return loss

    def _reference_scores(self, references: dict, key: tuple, score: Callable[[], Any]) -> Any:
        """The reference's scores, computed once per rollout."""
        if key not in references:
            with self.as_reference():
                references[key] = score()
        return references[key]

    @contextmanager
    def _trainable(self, experts: Experts) -> Iterator[None]:
        """Let a loss move some weights only; nothing is computed for the others."""
        held = [] if experts == "both" else self.homes["gen" if experts == "und" else "und"]
        for parameter in held:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in held:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        """Move the average towards the policy, further in early steps, so that little of the first weights stays."""
        if self.average is not None:
            update_ema(self.average, self.learning, step, self.config.ema_decay)


@contextmanager
def _swapped_in(learning: Mapping[str, nn.Parameter], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters hold other numbers for a while; nothing is copied."""
    own = {name: parameter.data for name, parameter in learning.items()}
    try:
        for name, parameter in learning.items():
            parameter.data = others[name]
        yield
    finally:
        for name, parameter in learning.items():
            parameter.data = own[name]


def _log_ratios(metrics: UpdateMetrics, name: str, gap: Tensor, part: PartConfig) -> None:
    """How far ratios are from 1, and how many are beyond the clip."""
    ratio = gap.exp()
    metrics.add(f"{name}_ratio", ratio)
    metrics.top(f"{name}_ratio_off", (ratio - 1).abs())
    metrics.add(f"{name}_clipped", ((ratio - 1).abs() > part.clip_range).float())


def _rates(stage: StageConfig) -> list[float]:
    """The learning rate of each home: und is moved by the text, or by pictures alone; gen by pictures."""
    return [(stage.text if stage.text.train else stage.picture).lr, stage.picture.lr]
