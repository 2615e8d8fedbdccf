"""Endless supervised pairs from scenes: what SKETCH learns to draw, plan, edit, reflect on and answer.

A lesson is a function of (kind, seed) alone. Text is kept apart from the model's tags, which `model/templates.py` adds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from triptych.data.annotations import (
    NO,
    YES,
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
from triptych.data.scene import Scene, Sticker, check
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.trace import Spec

SampleKind = Literal["depict", "plan", "edit", "reflect", "answer"]
HARD, APART = 10**15, 10_000  # seeds of hard specs begin here, so far apart: no other lesson or suite has them


@dataclass(frozen=True, eq=False)
class SFTSample:
    """One pair. `asked` is a prompt, an instruction or a question; `thought` and `reply` are what should be said
    (a reflection without a reply is a stop); `before` is the picture that is seen, `after` the one to be drawn. A
    reflection or an answer without a picture is given what it lists, and learns what that is worth."""

    kind: SampleKind
    asked: str
    thought: str | None = None
    reply: str | None = None
    before: Scene | None = None
    after: Scene | None = None
    picture: np.ndarray | None = None  # the pixels of `before` where the model drew them, and they are no rendering
    more: tuple[tuple[str, str], ...] = ()  # further questions about `before` and their answers, one after another


@dataclass(frozen=True)
class DataMix:
    """Shares inside the lessons, each with its reason."""

    right: float = 0.45  # reflections on pictures that are right: stopping must be learnt, false stops are the danger
    spoiled: float = 0.6  # edits that mend a spoiled picture; the others are free edits
    fits: float = 0.25  # questions whether a text fits the picture
    assorted: float = 0.6  # answers about stickers that have nothing to do with one another: there is much to mistake
    describes: float = 0.3  # of these: a list of all that is there; what else names classes without a prompt to copy?
    listing: bool = False  # other questions are answered behind a list of what is seen; else at once, in a word
    listed: float = 0.3  # of these: no picture but its list in words, to be searched and counted
    questions: int = 6  # about one picture: they share the cost of looking at it
    bare: float = 0.25  # prompts without their "a photo of", as a person would type them
    hard: float = 0.0  # prompts of what is drawn and read worst: a small sticker, a white one, or more than four
    whites: int = 1  # of these: white ones for each small one; no prompt is white unless it says so, so they are rare
    mistakes: int = 3  # a flawed picture holds 1 to this many, fewer more often
    scrambled: float = 0.5  # of the flawed ones: the prompt's words put together anew, so that most stickers are wrong
    unseen: float = 0.5  # of the flawed ones: no picture but its list in words, to be compared with the prompt
    layout: Layout = field(default_factory=lambda: Layout(usual=0.0))  # pictures of one prompt should differ
    at_once: Layout = field(default_factory=Layout)  # of pictures without a plan, where nothing says what goes where


def sft_sample(kind: SampleKind, seed: int, mix: DataMix = DataMix()) -> SFTSample:
    """The lesson of that kind and seed."""
    return {"depict": depict, "plan": plan, "edit": edit, "reflect": reflect, "answer": answer}[kind](seed, mix)


def depict(seed: int, mix: DataMix) -> SFTSample:
    """A prompt and a picture of it."""
    spec = sample_spec(seed, mix)
    return SFTSample("depict", prompt(spec, seed, mix), after=Scene.sample(spec, seed, mix.at_once))


def plan(seed: int, mix: DataMix) -> SFTSample:
    """A prompt, a plan in words, and the picture that the plan describes."""
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    return SFTSample("plan", prompt(spec, seed, mix), thought=plan_text(scene), after=scene)


def edit(seed: int, mix: DataMix) -> SFTSample:
    """A picture, an instruction, and the picture after it."""
    chance = random.Random(seed)
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    if chance.random() < mix.spoiled:
        scene = spoil(scene, spec, seed, mistakes(chance, mix))
        change = fix(scene, spec, seed)
    else:
        change = None
    change = change or random_edit(scene, seed)
    return SFTSample("edit", instruction_text(change), before=scene, after=apply(scene, change, seed, mix.layout))


def reflect(seed: int, mix: DataMix) -> SFTSample:
    """A picture beside its prompt: what is seen, what is wrong first, and one instruction; or a stop."""
    chance = random.Random(seed)
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    unseen = False
    if chance.random() >= mix.right:
        mixed_up = chance.random() < mix.scrambled
        unseen = chance.random() < mix.unseen
        scene = scrambled(spec, chance, mix.layout) if mixed_up else spoil(scene, spec, seed, mistakes(chance, mix))
    change = fix(scene, spec, seed)
    return SFTSample(
        "reflect",
        prompt(spec, seed, mix),
        thought=reflection_text(scene, spec, change),
        reply=None if change is None else instruction_text(change),
        before=None if unseen else scene,
    )


def answer(seed: int, mix: DataMix) -> SFTSample:
    """A picture and questions about it; or a list of all that is seen."""
    chance = random.Random(seed)
    unseen = mix.listing and chance.random() < mix.listed
    if chance.random() < mix.assorted:
        scene = assorted(chance, mix.layout)
        if chance.random() < mix.describes:
            return SFTSample("answer", describe_question(), reply=plan_text(scene), before=scene)
        return quiz(scene, seed, mix, unseen=unseen)
    spec = sample_spec(seed, mix)
    scene = Scene.sample(spec, seed, mix.layout)
    if chance.random() >= mix.fits:
        return quiz(scene, seed, mix, unseen=unseen)
    if chance.random() < 0.5:
        scene = spoil(scene, spec, seed, 1)
    return quiz(scene, seed, mix, spec, unseen)


def quiz(
    scene: Scene,
    seed: int,
    mix: DataMix,
    fits: Spec | None = None,
    unseen: bool = False,
    picture: np.ndarray | None = None,
) -> SFTSample:
    """Questions about a scene, in `picture` if it was drawn by the model; the first one whether it fits a spec, if any.

    Whether it fits is answered behind a reflection, and with `mix.listing` any other first question behind a list of
    what is seen. What was listed need not be listed again for the questions that follow.
    """
    pairs = list(dict(question_answer(scene, seed + 2**48 * turn) for turn in range(mix.questions)).items())
    thought = plan_text(scene) if mix.listing else None
    if fits is not None:
        right = all(one.held for one in check(scene, fits))
        pairs[0] = fits_question(prompt_text(fits, wording_of(fits))), YES if right else NO
        thought = reflection_text(scene, fits, fix(scene, fits, seed))
    (question, reply), *more = pairs
    return SFTSample("answer", question, thought, reply, None if unseen else scene, picture=picture, more=tuple(more))


def sample_spec(seed: int, mix: DataMix) -> Spec:
    """The spec of a lesson: one of the endless set, or with the share `hard` the next of the set that is hard."""
    chance = random.Random(f"hard {seed}")
    if chance.random() >= mix.hard:
        return random_spec(seed)
    times = {"white": mix.whites}
    wanted = chance.choice([kind for name, kind in HARD_PROMPTS.items() for _ in range(times.get(name, 1))])
    return next(filter(wanted, map(random_spec, itertools.count(HARD + seed * APART))))


def _small(spec: Spec) -> bool:
    return any(item.size == "smaller" for item in spec.include)


def _white(spec: Spec) -> bool:
    return any(item.color == "white" for item in spec.include)


def _many(spec: Spec) -> bool:
    return len(spec.include) > 1 and sum(item.count for item in spec.include) > 4


HARD_PROMPTS: dict[str, Callable[[Spec], bool]] = {"small": _small, "white": _white, "many": _many}


def prompt(spec: Spec, seed: int, mix: DataMix) -> str:
    """The prompt of a spec in its benchmark's words, or bare."""
    text = prompt_text(spec, wording_of(spec))
    return text[len("a photo of ") :] if random.Random(f"bare {seed}").random() < mix.bare else text


def assorted(chance: random.Random, layout: Layout) -> Scene:
    """Up to nine stickers that have nothing to do with one another."""
    return _strewn(CLASSES, tuple(COLORS), 4, chance, layout)


def scrambled(spec: Spec, chance: random.Random, layout: Layout) -> Scene:
    """Up to nine stickers of the classes and colours that a spec names, put together at random, and some others.

    Nearly every sticker asks to be compared with the prompt, where a picture with one mistake has one that matters.
    """
    names = [item.name for item in spec.include] * 3
    colors = [item.color for item in spec.include if item.color] * 3
    others = chance.sample(tuple(COLORS), 2)
    sized = any(item.size for item in spec.include)
    return _strewn((*names, chance.choice(CLASSES)), (*colors, *others), 1 if sized else 12, chance, layout)


def _strewn(names: Sequence[str], colors: Sequence[str], normal: float, chance: random.Random, layout: Layout) -> Scene:
    """One to nine stickers, each of one of these classes and colours, so many times as often of normal size."""
    cells = sorted(chance.sample(range(len(CELLS)), chance.randint(1, len(CELLS))))
    sizes = chance.choices(tuple(SIZES), weights=(1, normal, 1), k=len(cells))
    centres = scatter([(cell, SIZES[size]) for cell, size in zip(cells, sizes, strict=True)], chance, layout)
    return Scene(
        tuple(
            Sticker(chance.choice(names), chance.choice(colors), x, y, size)
            for size, (x, y) in zip(sizes, centres, strict=True)
        )
    )


def mistakes(chance: random.Random, mix: DataMix) -> int:
    """How many mistakes a flawed picture holds: 1 with weight n, 2 with weight n-1, ..."""
    counts = range(1, mix.mistakes + 1)
    return chance.choices(counts, weights=[mix.mistakes + 1 - count for count in counts])[0]
