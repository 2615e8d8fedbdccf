"""Supervised samples without end: what SKETCH learns to draw, plan, edit, reflect on and answer.

A sample is a function of (kind, seed, mix) alone. Its texts are bare; `model/templates.py` adds the model's tags.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from triptych.bounds import PositiveInt, Share
from triptych.data.annotations import (
    describe_question,
    fits_question,
    instruction_text,
    plan_text,
    question_answer,
    reflection_text,
)
from triptych.data.edits import apply, fix, random_edit, spoil
from triptych.data.language import prompt_text, wording_of
from triptych.data.layout import CELLS, SIZES, Layout, scatter
from triptych.data.lexicon import NO, YES
from triptych.data.scene import Scene, Sticker, check
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.seeds import START, STRIDE, named_rng
from triptych.trace import Spec

SampleKind = Literal["draw", "plan", "edit", "reflect", "answer"]

SEEDS_PER_HARD_PROMPT = 10_000  # room to search for one: 7 % of specs have a small sticker, 9 % a white one
MAX_STICKERS_OF_EASY_PROMPT = 4  # of two kinds or more: multi-count prompts failed most (LOG.md E54)


@dataclass(frozen=True, eq=False)
class SFTSample:
    """One supervised pair.

    `prompt` is a prompt, an instruction or a question. `thought` and `reply` are the text to be learned; a reflection
    without a reply is a stop. `before` is the picture in the context, `after` the one to be drawn. A reflection or an
    answer without a picture has its list of stickers in the context, and learns what follows from it.
    """

    kind: SampleKind
    prompt: str
    thought: str | None = None
    reply: str | None = None
    before: Scene | None = None
    after: Scene | None = None
    picture: np.ndarray | None = None  # `[height width 3] uint8` of `before` where the model drew it, not the renderer
    follow_ups: tuple[tuple[str, str], ...] = ()  # further questions about `before` with their answers, in order


@dataclass(frozen=True)
class DataMix:
    """Shares of what the samples are about, each with its reason."""

    correct_pictures: Share = 0.45
    """Of reflections: on pictures that are correct. Stopping must be learned; false stops are the danger."""
    repairs: Share = 0.6
    """Of edits: those that repair a flawed picture. The others are any edits."""
    fit_questions: Share = 0.25
    """Of answers about pictures of a prompt: whether the picture fits a text."""
    random_scenes: Share = 0.6
    """Of answers: about stickers that have nothing to do with one another. There is much to mistake."""
    descriptions: Share = 0.3
    """Of answers about random scenes: a list of all stickers. What else names classes without a prompt to copy from?"""
    list_first: bool = False
    """Answer other questions behind a list of the stickers; else at once, in a word."""
    text_only_questions: Share = 0.3
    """Of answers with `list_first`: the list instead of the picture, to be searched and counted."""
    questions_per_picture: PositiveInt = 6
    """Questions about one picture; they share the cost of encoding it."""
    drop_prefix: Share = 0.25
    """Of prompts: without "a photo of", as a person would type them."""
    hard_prompts: Share = 0.0
    """Of prompts: those with a small sticker, a white one, or more than four. They are drawn and read worst."""
    white_weight: PositiveInt = 1
    """Hard prompts with a white sticker for each with a small one. No sticker is white unless its prompt says so."""
    max_mistakes: PositiveInt = 3
    """Mistakes in a flawed picture: 1 to this many, fewer more often."""
    shuffled_scenes: Share = 0.5
    """Of flawed pictures: the classes and colors of the prompt combined anew, so that most stickers are wrong."""
    text_only_reflections: Share = 0.5
    """Of reflections on flawed pictures: the list instead of the picture, to be compared with the prompt."""
    layout: Layout = field(default_factory=lambda: Layout(usual=0.0))
    """Of pictures with a plan. Those of one prompt should differ."""
    one_shot_layout: Layout = field(default_factory=Layout)
    """Of pictures without a plan, where no text says what goes where."""


def sft_sample(kind: SampleKind, seed: int, mix: DataMix = DataMix()) -> SFTSample:
    """The sample of that kind and seed."""
    return _MAKERS[kind](seed, mix)


def sample_spec(seed: int, mix: DataMix) -> Spec:
    """The spec of a sample: that of the endless set, or with the share `hard_prompts` a hard one."""
    rng = named_rng("hard", seed)  # of its own: the share of hard prompts moves no other draw of the sample
    if rng.random() >= mix.hard_prompts:
        return random_spec(seed)
    weights = {"white": mix.white_weight}
    is_hard = rng.choice([test for name, test in HARD_PROMPTS.items() for _ in range(weights.get(name, 1))])
    first = START["hard_prompts"] + seed * SEEDS_PER_HARD_PROMPT
    return next(filter(is_hard, map(random_spec, itertools.count(first))))


def question_sample(
    scene: Scene,
    seed: int,
    mix: DataMix,
    fit_spec: Spec | None = None,
    text_only: bool = False,
    picture: np.ndarray | None = None,
) -> SFTSample:
    """Questions about a scene, in `picture` if the model drew it; the first one whether it fits `fit_spec`, if any.

    Whether it fits is answered behind a reflection, and with `mix.list_first` any other first question behind a list of
    the stickers. The questions that follow find the list in the context.
    """
    # A dict drops questions that came up before.
    seeds = (seed + STRIDE["questions"] * index for index in range(mix.questions_per_picture))
    pairs = list(dict(question_answer(scene, each) for each in seeds).items())
    thought = plan_text(scene) if mix.list_first else None
    if fit_spec is not None:
        correct = all(one.held for one in check(scene, fit_spec))
        pairs[0] = fits_question(prompt_text(fit_spec, wording_of(fit_spec))), YES if correct else NO
        thought = reflection_text(scene, fit_spec, fix(scene, fit_spec, seed))
    (question, reply), *others = pairs
    before = None if text_only else scene
    return SFTSample("answer", question, thought, reply, before, picture=picture, follow_ups=tuple(others))


def random_scene(rng: random.Random, layout: Layout) -> Scene:
    """One to nine stickers that have nothing to do with one another."""
    # 4: two thirds of the stickers are of normal size.
    return _mixed_scene(CLASSES, tuple(COLORS), 4, rng, layout)


def shuffled_scene(spec: Spec, rng: random.Random, layout: Layout) -> Scene:
    """One to nine stickers with the classes and colors of a spec combined at random, and some others.

    Nearly every sticker has to be compared with the prompt; in a picture with one mistake, one sticker has.
    """
    names = [item.name for item in spec.include] * 3  # * 3 beside one foreign class: most stickers look as if asked for
    colors = [item.color for item in spec.include if item.color] * 3
    others = rng.sample(tuple(COLORS), 2)
    has_sizes = any(item.size for item in spec.include)
    return _mixed_scene((*names, rng.choice(CLASSES)), (*colors, *others), 1 if has_sizes else 12, rng, layout)


def _draw(seed: int, mix: DataMix) -> SFTSample:
    """A prompt and a picture of it."""
    spec = sample_spec(seed, mix)
    return SFTSample("draw", _prompt(spec, seed, mix), after=Scene.sample(spec, seed, mix.one_shot_layout))


def _plan(seed: int, mix: DataMix) -> SFTSample:
    """A prompt, a plan in words, and the picture that the plan describes."""
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    return SFTSample("plan", _prompt(spec, seed, mix), thought=plan_text(scene), after=scene)


def _edit(seed: int, mix: DataMix) -> SFTSample:
    """A picture, an instruction, and the picture after it."""
    rng = random.Random(seed)
    spec = sample_spec(seed, mix)
    scene, change = Scene.sample(spec, seed, mix.layout), None
    if rng.random() < mix.repairs:
        scene = spoil(scene, spec, seed, _mistake_count(rng, mix))
        change = fix(scene, spec, seed)
    change = change or random_edit(scene, seed)  # no repair was drawn
    return SFTSample("edit", instruction_text(change), before=scene, after=apply(scene, change, seed, mix.layout))


def _reflect(seed: int, mix: DataMix) -> SFTSample:
    """A picture beside its prompt: its stickers, what is wrong, and one instruction; or a stop."""
    rng = random.Random(seed)
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    text_only = False
    if rng.random() >= mix.correct_pictures:
        # Both are drawn in any case, so that a share of 0 moves no later draw.
        is_shuffled = rng.random() < mix.shuffled_scenes
        text_only = rng.random() < mix.text_only_reflections
        if is_shuffled:
            scene = shuffled_scene(spec, rng, mix.layout)
        else:
            scene = spoil(scene, spec, seed, _mistake_count(rng, mix))
    change = fix(scene, spec, seed)
    return SFTSample(
        "reflect",
        _prompt(spec, seed, mix),
        thought=reflection_text(scene, spec, change),
        reply=None if change is None else instruction_text(change),
        before=None if text_only else scene,
    )


def _answer(seed: int, mix: DataMix) -> SFTSample:
    """A picture and questions about it; or a list of all its stickers."""
    rng = random.Random(seed)
    text_only = mix.list_first and rng.random() < mix.text_only_questions
    if rng.random() < mix.random_scenes:
        scene = random_scene(rng, mix.layout)
        if rng.random() < mix.descriptions:
            return SFTSample("answer", describe_question(), reply=plan_text(scene), before=scene)
        return question_sample(scene, seed, mix, text_only=text_only)
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    if rng.random() >= mix.fit_questions:
        return question_sample(scene, seed, mix, text_only=text_only)
    if rng.random() < 0.5:  # yes and no equally often
        scene = spoil(scene, spec, seed, 1)
    return question_sample(scene, seed, mix, spec, text_only)


_MAKERS: dict[SampleKind, Callable[[int, DataMix], SFTSample]] = {
    "draw": _draw,
    "plan": _plan,
    "edit": _edit,
    "reflect": _reflect,
    "answer": _answer,
}


def _prompt(spec: Spec, seed: int, mix: DataMix) -> str:
    """The prompt of a spec in its benchmark's words, with or without its opening."""
    # A free wording ("two red apples and a blue bus") had a second bus in 7 of 8 plans before (LOG.md E12).
    # Both openings, "a photo of " and "A photo of ", are of one length.
    text = prompt_text(spec, wording_of(spec))
    return text[len("a photo of ") :] if named_rng("bare", seed).random() < mix.drop_prefix else text


def _mistake_count(rng: random.Random, mix: DataMix) -> int:
    """How many mistakes a flawed picture holds: 1 with weight n, 2 with weight n-1, ..."""
    counts = range(1, mix.max_mistakes + 1)
    return rng.choices(counts, weights=[mix.max_mistakes + 1 - count for count in counts])[0]


def _mixed_scene(
    names: Sequence[str], colors: Sequence[str], normal: float, rng: random.Random, layout: Layout
) -> Scene:
    """One to nine stickers of these classes and colors; normal size is `normal` times as frequent as each other one."""
    cells = sorted(rng.sample(range(len(CELLS)), rng.randint(1, len(CELLS))))
    sizes = rng.choices(tuple(SIZES), weights=(1, normal, 1), k=len(cells))
    centers = scatter([(cell, SIZES[size]) for cell, size in zip(cells, sizes, strict=True)], rng, layout)
    pairs = zip(sizes, centers, strict=True)
    return Scene(tuple(Sticker(rng.choice(names), rng.choice(colors), x, y, size) for size, (x, y) in pairs))


def _has_small(spec: Spec) -> bool:
    return any(item.size == "smaller" for item in spec.include)


def _has_white(spec: Spec) -> bool:
    return any(item.color == "white" for item in spec.include)


def _has_many(spec: Spec) -> bool:
    return len(spec.include) > 1 and sum(item.count for item in spec.include) > MAX_STICKERS_OF_EASY_PROMPT


HARD_PROMPTS: dict[str, Callable[[Spec], bool]] = {"small": _has_small, "white": _has_white, "many": _has_many}
