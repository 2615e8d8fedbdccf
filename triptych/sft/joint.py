"""The joint stage: to plan, draw, edit, reflect and answer, all at once. Samples to rows of blocks, rows to a loss.

Every update has three groups, each packed tightly: pictures from a prompt (with and without a plan), edits, and words
about pictures. Their losses are added: cross entropy of the text, squared error of the velocity (rectified flow).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triptych.bounds import NonNegativeFloat, NonNegativeInt, Share
from triptych.data.annotations import split_remarks
from triptych.data.render import render
from triptych.data.sft_samples import DataMix, SampleKind, SFTSample, sft_sample
from triptych.errors import ConfigError
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.packing import Block, Latent, Pack, Text, View
from triptych.model.templates import encode, wrap_answer, wrap_plan, wrap_reflection
from triptych.model.transformer import Experts, belongs_to
from triptych.model.vae import patchify
from triptych.seeds import START, STRIDE
from triptych.sft.optim import (
    FitConfig,
    Metrics,
    Part,
    SFTStage,
    accumulate_gradients,
    copies,
    muon_and_adamw,
)
from triptych.sft.vae import Pixels, to_unit
from triptych.sft.vision import degrade

NOISY_COPIES = 2  # of a picture in one row, each at its own time: they share the cost of reading its context
TIME_SHIFT = 6.0  # of the times of training: the layout is decided at high noise, so more of them lie there
DROP_TEXT = 0.1  # of the rows: guidance needs a branch without the text (classifier-free guidance)
DROP_IMAGE = 0.05  # of the edits: and one without the picture
# Without the loss a linear probe finds the color before a class in .16 to .25 after layers 1 to 4 (LOG.md E31).
PREVIOUS_TOKEN_LAYER = 1  # the second: the first copies what stands before, and all others can use it
HEAD = "previous_token."  # what its weights are called among those of a stage
ABOUT_PICTURES = ("answer", "reflect")  # kinds whose words say what is seen


@dataclass(frozen=True)
class JointData:
    """What a joint batch holds. Counts are rows per update."""

    pictures: NonNegativeInt = 32  # to draw from a prompt
    edits: NonNegativeInt = 20
    words: NonNegativeInt = 72  # answers and reflections
    plan_share: Share = 0.4  # of the pictures are planned first
    answer_share: Share = 0.5  # of the words answer a question; the others reflect
    words_weight: NonNegativeFloat = 1.0  # of the cross entropy beside the velocity error
    mix: DataMix = field(default_factory=DataMix)


@dataclass(frozen=True)
class JointConfig(JointData, FitConfig):
    """How the joined model learns."""

    steps: NonNegativeInt = 2000
    lr: NonNegativeFloat = 2e-3  # of embeddings, heads, norms, biases
    muon_lr: NonNegativeFloat = 0.02  # of the matrices of the layers
    warmup_steps: NonNegativeInt = 100
    cooldown: Share = 0.5
    ema_decay: Share = 0.998
    previous_token_weight: NonNegativeFloat = 0.0  # of the previous-token auxiliary loss
    experts: Experts = "both"  # which weights learn; "gen" leaves every text as it is

    def check(self, stage: str) -> None:
        """Raises ConfigError for rows that teach nothing; `stage` is what its options begin with."""
        if not self.steps:
            return
        if not self.pictures + self.edits + self.words:
            raise ConfigError(f"--{stage}.pictures, .edits and .words are all 0: expected a row or more per update")
        if self.words and self.experts == "gen":
            raise ConfigError(
                f"--{stage}.words {self.words} and --{stage}.experts gen, which hold no words: expected 0 words, or "
                "und or both experts"
            )


class SFTBatch(NamedTuple):
    """The samples of one update, a function of (seed, step): three groups, and the seed of their noise."""

    groups: tuple[tuple[SFTSample, ...], ...]
    seed: int


class SFTPart(NamedTuple):
    """Samples of one group that are packed together, and the seed of their noise."""

    samples: Sequence[SFTSample]
    seed: int


class PreviousTokenLoss(nn.Module):
    """Auxiliary loss: every text token knows the token before it, early enough for later layers to use it.

    To find what was asked of a class ("which color?"), a word in a list must meet the same word in the prompt, and by
    then that one must have taken in its neighbors. Where nothing asks for it, layers learn this late or never, and what
    depends on it stays a guess (LOG.md). The head is of training alone; no published checkpoint holds it.
    """

    def __init__(self, bagel: Bagel):
        super().__init__()
        language = bagel.config.language
        # Without a norm the loss began at 160 (LOG.md E31).
        self.norm = nn.RMSNorm(language.hidden_size, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(language.hidden_size, language.vocab_size)
        nn.init.zeros_(self.head.weight)  # uniform logits at first: no gradient from a random guess
        nn.init.zeros_(self.head.bias)

    def loss(self, hidden: Float[Tensor, "batch und hidden"], batch: Pack) -> Float[Tensor, ""]:
        """Mean cross entropy over text tokens that follow a text token; `hidden` is of `PREVIOUS_TOKEN_LAYER`."""
        layout = batch.layout
        text = ((layout.block < 0) & layout.valid)[:, : batch.und]
        pairs = text[:, 1:] & text[:, :-1]
        return F.cross_entropy(self.head(self.norm(hidden[:, 1:][pairs].float())).float(), batch.ids[:, :-1][pairs])


class Auxiliary(NamedTuple):
    """The previous-token loss and its weight."""

    head: PreviousTokenLoss
    weight: float


def row_kinds(data: JointData) -> tuple[tuple[SampleKind, ...], ...]:
    """The kind of every row of an update, group by group."""
    plans, answers = round(data.pictures * data.plan_share), round(data.words * data.answer_share)
    counts: tuple[tuple[tuple[SampleKind, int], ...], ...] = (
        (("plan", plans), ("draw", data.pictures - plans)),
        (("edit", data.edits),),
        (("answer", answers), ("reflect", data.words - answers)),
    )
    return tuple(tuple(kind for kind, count in group for _ in range(count)) for group in counts)


def sft_batch(
    data: JointData, seed: int, step: int, self_generated: Sequence[SFTSample] = (), self_generated_share: float = 0.0
) -> SFTBatch:
    """The samples of an update; such a share of edits, reflections and answers is taken from `self_generated`."""
    rows = data.pictures + data.edits + data.words
    index = START["joint"] + seed * STRIDE["samples"] + step * rows
    rng = random.Random(index)
    own = {kind: [one for one in self_generated if one.kind == kind] for kind in ("edit", "answer", "reflect")}
    stops = [one for one in own["reflect"] if one.reply is None]
    instructions = [one for one in own["reflect"] if one.reply is not None]
    groups = []
    for kinds in row_kinds(data):
        group = []
        for kind in kinds:
            choices = own.get(kind, [])
            if kind == "reflect":  # most pictures of the model may be right: stops are as frequent as in other samples
                choices = (
                    stops if not instructions or (stops and rng.random() < data.mix.correct_pictures) else instructions
                )
            if choices and rng.random() < self_generated_share:
                group.append(rng.choice(choices))
            else:
                group.append(sft_sample(kind, index, data.mix))
            index += 1
        groups.append(tuple(group))
    return SFTBatch(tuple(groups), index)


def split_batch(batch: SFTBatch, threads: int) -> list[Part]:
    """A batch as parts for so many threads: each group is cut into as many, weighted by their share of its rows."""
    return [
        (
            SFTPart(group[thread::threads], batch.seed + threads * number + thread),
            len(group[thread::threads]) / len(group),
        )
        for number, group in enumerate(batch.groups)
        for thread in range(threads)
        if group[thread::threads]
    ]


def accumulate_joint(bagel: Bagel, data: JointData, batch: SFTBatch) -> Metrics:
    """Add the gradients of a joint batch to the parameters of `bagel` that learn; returns the loss and the metrics."""
    parameters = [parameter for parameter in bagel.parameters() if parameter.requires_grad]
    return accumulate_gradients(partial(joint_loss, bagel, data, None), split_batch(batch, 1), parameters)


def joint_stage(
    name: str,
    config: JointConfig,
    bagel: Bagel,
    head: PreviousTokenLoss,
    ema: Mapping[str, Tensor],
    seed: int,
    threads: int,
    self_generated: Sequence[SFTSample] = (),
    self_generated_share: float = 0.0,
) -> SFTStage:
    """The weights of `bagel` that `ema` averages, of the experts that the config chooses; all else is frozen.

    `ema` goes on from the stage before and is updated in place.
    """
    bagel.requires_grad_(False)
    tensors = {name: p for name, p in bagel.named_parameters() if name in ema and belongs_to(name, config.experts)}
    averages = {name: ema[name] for name in tensors}
    auxiliary = None
    if config.previous_token_weight:
        auxiliary = Auxiliary(head, config.previous_token_weight)
        of_head = {f"{HEAD}{name}": parameter for name, parameter in head.named_parameters()}
        tensors, averages = tensors | of_head, averages | copies(of_head)
    for tensor in tensors.values():
        tensor.requires_grad_(True)

    def samples(step: int) -> list[Part]:
        return split_batch(sft_batch(config, seed, step, self_generated, self_generated_share), threads)

    optimizers = muon_and_adamw(tensors, config, config.muon_lr)
    loss = partial(joint_loss, bagel, config, auxiliary)
    return SFTStage(name, config, tensors, averages, optimizers, samples, loss, threads)


def joint_loss(
    bagel: Bagel, data: JointData, auxiliary: Auxiliary | None, part: SFTPart
) -> tuple[Float[Tensor, ""], Metrics]:
    """The loss of samples of one group, with its parts as metrics."""
    with torch.autocast(bagel.device.type, torch.bfloat16, cache_enabled=False):  # threads would share a cache
        rows, velocities = sample_rows(bagel, part.samples, torch.Generator().manual_seed(part.seed))
        return rows_loss(bagel, data, rows, velocities, part.samples[0].kind, auxiliary)


def sample_rows(
    bagel: Bagel, samples: Sequence[SFTSample], generator: torch.Generator
) -> tuple[list[list[Block]], Float[Tensor, "*token_latent"]]:
    """Samples as rows of blocks, and the velocities `[noisy token, latent]` of their noisy blocks, in order.

    The velocities are empty where nothing is drawn. Samples are all of one group.
    """
    seen = _pixels([one for one in samples if one.before is not None], "before", bagel.device)
    target = _pixels([one for one in samples if one.after is not None], "after", bagel.device)
    downsample, patch = bagel.config.latent_downsample, bagel.config.vision.patch_size
    views: list[View] = []
    clean: list[Latent] = []
    with torch.no_grad():
        if seen is not None:
            seen = degrade(seen, generator)
            grid = (seen.shape[2] // patch, seen.shape[3] // patch)
            views = [View(tokens, grid) for tokens in patchify(seen, patch)]
            if samples[0].kind == "edit":
                grid = (seen.shape[2] // downsample, seen.shape[3] // downsample)
                clean = [Latent(tokens, grid) for tokens in bagel.encode_images(seen)]
        if target is None:
            remaining = iter(views)
            rows = [
                [*_system(bagel, one), *([] if one.before is None else [next(remaining)]), *_texts(bagel, one)]
                for one in samples
            ]
            return rows, torch.zeros(0)
        latents = bagel.encode_images(target)
    grid = (target.shape[2] // downsample, target.shape[3] // downsample)
    count = len(samples) * NOISY_COPIES
    times = flow.training_times(torch.randn(count, generator=generator), TIME_SHIFT)
    noise = torch.randn(count, *latents.shape[1:], generator=generator).to(latents.device)
    latents = latents.repeat_interleave(NOISY_COPIES, dim=0)
    noisy = flow.noised(latents, noise, times.to(latents.device))
    dropped = torch.rand(len(samples), generator=generator).tolist()
    rows = []
    for index, one in enumerate(samples):
        own = range(index * NOISY_COPIES, (index + 1) * NOISY_COPIES)
        noisy_blocks: list[Block] = [Latent(noisy[copy], grid, float(times[copy]), loss=True) for copy in own]
        texts = [] if dropped[index] < DROP_TEXT else _texts(bagel, one)
        if one.kind == "edit":
            no_image = DROP_TEXT <= dropped[index] < DROP_TEXT + DROP_IMAGE
            context: list[Block] = [] if no_image else [clean[index], views[index]]
        else:
            context = _system(bagel, one)
        rows.append([*context, *texts, *noisy_blocks])
    return rows, (noise - latents).flatten(0, 1)


def rows_loss(
    bagel: Bagel,
    data: JointData,
    rows: list[list[Block]],
    velocities: Float[Tensor, "*token_latent"],
    kind: SampleKind,
    auxiliary: Auxiliary | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Velocity error plus cross entropy of one packed group, plus the auxiliary loss where words are about pictures."""
    batch, layers = bagel.pack(rows), list[Tensor]()
    und, gen = bagel(batch, layer_outputs=layers)
    metrics: Metrics = {}
    loss = torch.zeros((), device=bagel.device)
    if auxiliary is not None and kind in ABOUT_PICTURES:
        previous = auxiliary.head.loss(layers[PREVIOUS_TOKEN_LAYER], batch)
        loss = loss + auxiliary.weight * previous
        metrics["ce_previous_token"] = float(previous.detach())
    if len(batch.mse_slots):
        predicted = bagel.llm2vae(gen.flatten(0, 1)[batch.mse_slots]).float()
        error = (predicted - velocities).square().mean()
        loss = loss + error
        metrics[f"mse_{'edit' if kind == 'edit' else 'draw'}"] = float(error.detach())
    if len(batch.ce_slots):
        logits = bagel.language_model.lm_head(und.flatten(0, 1)[batch.ce_slots]).float()
        cross_entropy = F.cross_entropy(logits, batch.ce_targets, reduction="none").sum() / len(batch.ce_slots)
        loss = loss + data.words_weight * cross_entropy
        metrics[f"ce_{'words' if kind in ABOUT_PICTURES else 'plan'}"] = float(cross_entropy.detach())
    return loss, metrics


def _system(bagel: Bagel, one: SFTSample) -> list[Block]:
    """The system prompt of a sample's kind, first in its row as in the verbs."""
    templates = bagel.config.templates
    systems = {"plan": templates.plan_system, "reflect": templates.reflect_system, "answer": templates.answer_system}
    return bagel.system_blocks(systems.get(one.kind, ""))


def _texts(bagel: Bagel, one: SFTSample) -> list[Block]:
    """What is asked, and what should be said to it, in the templates of the verbs."""
    templates, tokenizer = bagel.config.templates, bagel.tokenizer
    asked = {
        "reflect": templates.reflect.format(prompt=one.prompt),
        "answer": templates.answer.format(question=one.prompt),
    }
    blocks: list[Block] = [Text(encode(tokenizer, asked.get(one.kind, one.prompt)))]
    if one.kind == "plan":
        blocks.append(Text(encode(tokenizer, wrap_plan(one.thought or "")), loss=True))
    elif one.kind == "reflect":
        blocks.append(_target(bagel, one, wrap_reflection(one.thought or "", one.reply)))
    elif one.kind == "answer":
        blocks.append(_target(bagel, one, wrap_answer(one.thought, one.reply or "")))
    for question, reply in one.follow_ups:
        blocks.append(Text(encode(tokenizer, templates.answer.format(question=question))))
        blocks.append(Text(encode(tokenizer, reply), loss=True))
    return blocks


def _target(bagel: Bagel, one: SFTSample, text: str) -> Text:
    """The text to learn; of a picture that is not in the row, the list of what it shows is given, not learned."""
    if one.before is not None or one.thought is None:
        return Text(encode(bagel.tokenizer, text), loss=True)
    lead, _, tail = text.partition(one.thought)
    ids, ignore = [], []
    for piece, learned in [(lead, False), *split_remarks(one.thought), (tail, True)]:
        tokens = encode(bagel.tokenizer, piece)
        ignore += [] if learned else range(len(ids), len(ids) + len(tokens))
        ids += tokens
    return Text(ids, loss=True, ignore=ignore)


def _pixels(samples: Sequence[SFTSample], which: str, device: torch.device) -> Pixels | None:
    """The pictures that samples see ("before") or draw ("after"): the model's own pixels where a sample has them."""
    if not samples:
        return None
    pictures = render([getattr(one, which) for one in samples], device=device)
    if which == "before":
        for index, one in enumerate(samples):
            if one.picture is not None:
                pictures[index] = torch.from_numpy(np.ascontiguousarray(one.picture)).to(device)
    return to_unit(pictures)
