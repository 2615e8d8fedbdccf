"""The third lesson: to plan, draw, edit, reflect and answer. Turns lessons into rows of blocks, and rows into a loss.

Every step teaches three groups, each packed tightly: pictures from a prompt (with and without a plan), edits, and words
about pictures. Their losses are added: cross entropy of the words, squared error of the velocity (parity kit b.8).

A lesson beside the others: every token knows the word before it, early enough for later layers to use it.

To find what was asked of a class ("which colour?"), a word in a list must meet the same word in the prompt, and by then
that one must have taken in its neighbours. Where nothing asks for it early on, layers learn it late or never, and what
depends on it stays a guess (LOG.md). The head that asks belongs to the lessons; no checkpoint holds it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data.annotations import split_remarks
from triptych.data.render import render
from triptych.data.sft_samples import DataMix, SampleKind, SFTSample, sft_sample
from triptych.errors import ConfigError
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.packing import Block, Latent, Pack, Text, View
from triptych.model.templates import encode, wrap_answer, wrap_plan, wrap_reflection
from triptych.model.transformer import Experts
from triptych.model.vae import patchify
from triptych.sft.vae import to_unit
from triptych.sft.vision import worn

SEEING = ("answer", "reflect")  # lessons in words about a picture
DOUBT = 1e-3  # least doubt about a word, so that those which are sure still count


@dataclass(frozen=True)
class JointConfig:
    """How the joined model is taught. Rows are per step."""

    steps: int = 2600
    pictures: int = 32
    edits: int = 20
    words: int = 72
    plans: float = 0.4  # share of the pictures that are planned first
    answers: float = 0.5  # share of the words that answer a question; the others reflect
    noises: int = 2  # noisy copies of a picture in one row: they share the cost of reading its context
    rate: float = 2e-3  # AdamW: embeddings, heads, norms, biases
    matrix_rate: float = 0.02  # Muon: the matrices of the layers
    warmup: int = 100
    cooldown: float = 0.5
    clip: float = 1.0  # longest gradient; 0 is any
    average: float = 0.998
    words_weight: float = 1.0
    focus: float = 0.0  # words weigh by (1 - p) to this power: most words of an answer are sure once learnt
    time_shift: float = 6.0  # the layout is decided at high noise: look there more often
    drop_text: float = 0.1  # so that guidance has a branch without the text
    drop_image: float = 0.05  # and one without the picture, for edits
    own: float = 0.0  # share of edits, reflections and answers on the model's own pictures
    recall: float = 0.0  # weight of the lesson that tokens know the word before them, in `recall.py`
    experts: Experts = "both"  # which weights learn; "gen" leaves every word as it is
    mix: DataMix = field(default_factory=DataMix)

    def check(self, stage: str) -> None:
        """Raises ConfigError for rows that teach nothing; `stage` is what its options begin with."""
        if not self.steps:
            return
        if not self.pictures + self.edits + self.words:
            raise ConfigError(f"--{stage}.pictures, .edits and .words are all 0: expected a row or more for each step")
        if self.words and self.experts == "gen":
            raise ConfigError(
                f"--{stage}.words {self.words} and --{stage}.experts gen, which hold no words: expected 0 words, or "
                "und or both experts"
            )


@dataclass(frozen=True)
class SFTBatch:
    """The lessons of one step, drawn from (seed, step) alone: three groups and the seed of their noise."""

    groups: tuple[tuple[SFTSample, ...], ...]
    seed: int


def kinds_of_step(config: JointConfig) -> tuple[tuple[SampleKind, ...], ...]:
    """The kind of every row, group by group."""
    plans, answers = round(config.pictures * config.plans), round(config.words * config.answers)
    counts: tuple[tuple[tuple[SampleKind, int], ...], ...] = (
        (("plan", plans), ("depict", config.pictures - plans)),
        (("edit", config.edits),),
        (("answer", answers), ("reflect", config.words - answers)),
    )
    return tuple(tuple(kind for kind, count in group for _ in range(count)) for group in counts)


def sft_batch(config: JointConfig, seed: int, step: int, own: Sequence[SFTSample] = ()) -> SFTBatch:
    """The lessons of a step; a share of edits, reflections and answers is taken from `own`."""
    rows = config.pictures + config.edits + config.words
    first = (seed * 1_000_003 + 500_000_000) + step * rows
    chance = random.Random(first)
    edits, reflections, quizzes = ([one for one in own if one.kind == kind] for kind in ("edit", "reflect", "answer"))
    content = [one for one in reflections if one.reply is None]
    critical = [one for one in reflections if one.reply is not None]
    groups = []
    for kinds in kinds_of_step(config):
        group = []
        for kind in kinds:
            mine = {"edit": edits, "answer": quizzes}.get(kind, [])
            if kind == "reflect":  # most own pictures may be right: stops are balanced as in other lessons
                mine = content if not critical or (content and chance.random() < config.mix.right) else critical
            if mine and chance.random() < config.own:
                group.append(chance.choice(mine))
            else:
                group.append(sft_sample(kind, first, config.mix))
            first += 1
        groups.append(tuple(group))
    return SFTBatch(tuple(groups), first)


class BatchStream(torch.utils.data.Dataset):
    """The endless set of lesson sheets, by step number."""

    def __init__(self, lessons: JointConfig, seed: int, own: Sequence[SFTSample]):
        self.lessons, self.seed, self.own = lessons, seed, own

    def __getitem__(self, step: int):
        return sft_batch(self.lessons, self.seed, step, self.own)


@contextmanager
def shared_cores(hands: int) -> Iterator[None]:
    """Divide torch's intra-op threads among the hands for a while: more threads than cores stall one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // hands))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_joint(
    bagel: Bagel,
    config: JointConfig,
    page: SFTBatch,
    device: torch.device,
    hands: int = 1,
    recall: PreviousTokenLoss | None = None,
) -> dict[str, float]:
    """Put a step's gradients on the parameters, those of `recall` included; returns the metrics.

    Each group is cut into `hands` parts that are worked on at the same time, one thread each; gradients are added in a
    fixed order, so that a step is the same number whatever the threads do. With one intra-op thread per hand, two hands
    on two CPU cores do nearly twice the work of one, where two intra-op threads do a fifth more.
    """
    learners = [bagel] if recall is None else [bagel, recall]
    parameters = [parameter for one in learners for parameter in one.parameters() if parameter.requires_grad]
    parts = [
        (lessons[hand::hands], len(lessons[hand::hands]) / len(lessons), page.seed + hands * group + hand)
        for group, lessons in enumerate(page.groups)
        for hand in range(hands)
        if lessons[hand::hands]
    ]

    def work(part: tuple[tuple[SFTSample, ...], float, int]):
        lessons, share, seed = part
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # a cache would be shared by the hands
            rows, targets = told(bagel, config, lessons, torch.Generator().manual_seed(seed))
            loss, metrics = group_loss(bagel, config, rows, targets, lessons[0].kind, recall)
        gradients = torch.autograd.grad(loss * share, parameters, allow_unused=True)
        return gradients, {name: value * share for name, value in ({"loss": float(loss.detach())} | metrics).items()}

    with ThreadPoolExecutor(hands) as pool:
        done = list(pool.map(work, parts))
    totals: dict[str, float] = {}
    for gradients, metrics in done:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def told(
    bagel: Bagel, config: JointConfig, lessons: Sequence[SFTSample], generator: torch.Generator
) -> tuple[list[list[Block]], Tensor]:
    """Each lesson as blocks, and the velocities `[noisy tokens, latent]` that its noise blocks should get."""
    seen = _pixels([one for one in lessons if one.before is not None], "before", bagel.device)
    drawn = _pixels([one for one in lessons if one.after is not None], "after", bagel.device)
    side, patch = bagel.config.latent_downsample, bagel.config.vision.patch_size
    views: list[View] = []
    clean: list[Latent] = []
    with torch.no_grad():
        if seen is not None:
            seen = worn(seen, generator)
            grid = (seen.shape[2] // patch, seen.shape[3] // patch)
            views = [View(tokens, grid) for tokens in patchify(seen, patch)]
            if lessons[0].kind == "edit":
                clean = [
                    Latent(tokens, (seen.shape[2] // side, seen.shape[3] // side))
                    for tokens in bagel.encode_pictures(seen)
                ]
        if drawn is None:
            looked = iter(views)
            return [
                [*_lead(bagel, one), *([] if one.before is None else [next(looked)]), *_words(bagel, one)]
                for one in lessons
            ], torch.zeros(0)
        target = bagel.encode_pictures(drawn)
    grid = (drawn.shape[2] // side, drawn.shape[3] // side)
    copies = len(lessons) * config.noises
    times = flow.training_times(torch.randn(copies, generator=generator), config.time_shift)
    noise = torch.randn(copies, *target.shape[1:], generator=generator).to(target.device)
    many = target.repeat_interleave(config.noises, dim=0)
    noisy = flow.noised(many, noise, times.to(target.device))
    chances = torch.rand(len(lessons), generator=generator).tolist()
    rows = []
    for index, one in enumerate(lessons):
        canvas: list[Block] = [
            Latent(noisy[copy], grid, float(times[copy]), loss=True)
            for copy in range(index * config.noises, (index + 1) * config.noises)
        ]
        silent = chances[index] < config.drop_text
        if one.kind == "edit":
            blind = not silent and chances[index] < config.drop_text + config.drop_image
            rows.append(
                [*([] if blind else [clean[index], views[index]]), *([] if silent else _words(bagel, one)), *canvas]
            )
        else:
            rows.append([*_lead(bagel, one), *([] if silent else _words(bagel, one)), *canvas])
    return rows, (noise - many).flatten(0, 1)


def group_loss(
    bagel: Bagel,
    config: JointConfig,
    rows: list[list[Block]],
    targets: Tensor,
    name: str,
    recall: PreviousTokenLoss | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Velocity error plus cross entropy of one packed group, and what the words know of one another if asked."""
    batch, heard = bagel.pack(rows), list[Tensor]()
    und, gen = bagel(batch, heard=heard)
    metrics: dict[str, float] = {}
    loss = torch.zeros((), device=bagel.device)
    if recall is not None and config.recall and name in SEEING:
        missed = recall.loss(heard[LAYER], batch)
        loss = loss + config.recall * missed
        metrics["recall"] = float(missed.detach())
    if len(batch.mse_slots):
        velocity = bagel.llm2vae(gen.flatten(0, 1)[batch.mse_slots]).float()
        error = (velocity - targets).square().mean()
        loss = loss + error
        metrics[f"mse_{'edit' if name == 'edit' else 'draw'}"] = float(error.detach())
    if len(batch.ce_slots):
        logits = bagel.language_model.lm_head(und.flatten(0, 1)[batch.ce_slots]).float()
        each = F.cross_entropy(logits, batch.ce_targets, reduction="none")
        doubt = (1 - torch.exp(-each.detach())).clamp(min=DOUBT) ** (config.focus if name in SEEING else 0.0)
        loss = loss + config.words_weight * (each * doubt).sum() / doubt.sum()
        metrics[f"ce_{'words' if name in SEEING else 'plan'}"] = float(each.detach().mean())
    return loss, metrics


def _lead(bagel: Bagel, one: SFTSample) -> list[Block]:
    """The system prompt of a lesson's kind, as the verbs put it first."""
    templates = bagel.config.templates
    systems = {"plan": templates.plan_system, "reflect": templates.reflect_system, "answer": templates.answer_system}
    return bagel.system_blocks(systems.get(one.kind, ""))


def _words(bagel: Bagel, one: SFTSample) -> list[Block]:
    """What is asked and what should be said to it, in the words of the verbs."""
    templates, tokenizer = bagel.config.templates, bagel.tokenizer
    asked = {
        "reflect": templates.reflect.format(prompt=one.asked),
        "answer": templates.answer.format(question=one.asked),
    }
    blocks: list[Block] = [Text(encode(tokenizer, asked.get(one.kind, one.asked)))]
    if one.kind == "plan":
        blocks.append(Text(encode(tokenizer, wrap_plan(one.thought or "")), loss=True))
    elif one.kind == "reflect":
        blocks.append(_thoughtful(bagel, one, wrap_reflection(one.thought or "", one.reply)))
    elif one.kind == "answer":
        blocks.append(_thoughtful(bagel, one, wrap_answer(one.thought, one.reply or "")))
    for question, reply in one.more:
        blocks.append(Text(encode(tokenizer, templates.answer.format(question=question))))
        blocks.append(Text(encode(tokenizer, reply), loss=True))
    return blocks


def _thoughtful(bagel: Bagel, one: SFTSample, said: str) -> Text:
    """What should be said of a picture; of one that is not seen, what it shows is given."""
    if one.before is not None or one.thought is None:
        return Text(encode(bagel.tokenizer, said), loss=True)
    lead, _, tail = said.partition(one.thought)
    ids, given = [], []
    for piece, learnt in [(lead, False), *split_remarks(one.thought), (tail, True)]:
        more = encode(bagel.tokenizer, piece)
        given += [] if learnt else range(len(ids), len(ids) + len(more))
        ids += more
    return Text(ids, loss=True, given=given)


def _pixels(lessons: Sequence[SFTSample], which: str, device: torch.device) -> Tensor | None:
    """The pictures `[batch 3 height width]` in [-1, 1] that lessons see or draw: real pixels where they bring them."""
    if not lessons:
        return None
    pictures = render([getattr(one, which) for one in lessons], device=str(device))
    if which == "before":
        for index, one in enumerate(lessons):
            if one.picture is not None:
                pictures[index] = torch.from_numpy(np.ascontiguousarray(one.picture)).to(device)
    return to_unit(pictures)


LAYER = 1  # the second: a first one that copies what stands before, and all others to work with it


class PreviousTokenLoss(nn.Module):
    """Tells the token before a text token from what the second layer makes of it; begins by telling nothing."""

    def __init__(self, bagel: Bagel):
        super().__init__()
        language = bagel.config.language
        self.norm = nn.RMSNorm(language.hidden_size, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(language.hidden_size, language.vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(self, heard: Tensor, batch: Pack) -> Tensor:
        """Mean cross entropy over text tokens behind a text token; `heard [batch und hidden]` is of layer `LAYER`."""
        layout = batch.layout
        text = ((layout.block < 0) & layout.valid)[:, : batch.und]
        pairs = text[:, 1:] & text[:, :-1]
        return F.cross_entropy(self.head(self.norm(heard[:, 1:][pairs].float())).float(), batch.ids[:, :-1][pairs])
