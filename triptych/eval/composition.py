"""Compositional questions about a picture: is a class there, how many, of what colour, on which side, which is larger.

Questions are written over `Thing`: a class, a colour and a box, whoever saw it. The world judge's finder sees sticker
pictures, GenEval's detector open ones. Only what cannot be doubted is asked: colour, side and size of a thing that is
the only one of its class, a side where the box does not cross the middle, a size where one box is clearly larger, and
nothing at all about a class of which the eyes are not sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from random import Random
from typing import TYPE_CHECKING, Literal

import numpy as np

from triptych.data.captions import (
    NO,
    YES,
    color_question,
    count_question,
    larger_question,
    presence_question,
    side_question,
)
from triptych.data.language import parse_prompt
from triptych.data.layout import CANVAS
from triptych.data.lexicon import NUMBERS, article, plural, proper_plural
from triptych.data.scene import Scene
from triptych.data.stickers import COLORS
from triptych.errors import PromptError

if TYPE_CHECKING:
    from triptych.rewards.detector import Eyes

World = Literal["open", "stickers"]
SURE = 0.9  # a detection's score from which a thing is there; below it a class is not asked about (GenEval: counting)
CLEARLY = 1.7  # times the area of the other box: the sizes of stickers differ by 1.8 at least
SIDES = ("left", "right")


@dataclass(frozen=True)
class Thing:
    """Something that is seen. `box` is (left, top, right, bottom) in shares of the picture's width and height;
    `color` is None where nobody looked; a thing that is not `sure` keeps its class out of all questions."""

    name: str
    color: str | None
    box: tuple[float, float, float, float]
    sure: bool = True

    @property
    def area(self) -> float:
        """Share of the picture that the box covers."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    @property
    def side(self) -> str | None:
        """The half of the picture in which the whole box lies, or None."""
        left, _, right, _ = self.box
        return "left" if right <= 0.5 else "right" if left >= 0.5 else None


@dataclass(frozen=True)
class Asked:
    """A question of a kind (a column of VQA), the answers that can be given, and the right one."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: str

    @property
    def place(self) -> int:
        """Of the right answer among the options: what a set of questions is balanced by."""
        return self.options.index(self.answer)


def scene_things(scene: Scene) -> list[Thing]:
    """The stickers of a scene, in reading order."""
    return [Thing(one.name, one.color, _shares((one.x, one.y), one.side)) for one in scene.ordered()]


def _shares(centre: tuple[float, float], side: int) -> tuple[float, float, float, float]:
    (x, y), reach = centre, side / 2
    left, top, right, bottom = (edge / CANVAS for edge in (x - reach, y - reach, x + reach, y + reach))
    return left, top, right, bottom


def detected_things(eyes: Eyes, pictures: Sequence[np.ndarray]) -> list[list[Thing]]:
    """What GenEval's detector sees in each picture; colours are read of the only sure one of a class."""
    return [
        [thing for name, found in sight.items() for thing in _told(eyes, picture, name, found)]
        for picture, sight in zip(pictures, eyes.see(pictures), strict=True)
    ]


def _told(eyes: Eyes, picture: np.ndarray, name: str, found: Sequence) -> Iterator[Thing]:
    height, width = picture.shape[:2]
    alone = len(found) == 1 and found[0].detection.score >= SURE
    colors = eyes.colors(picture, found, name) if alone else [None] * len(found)
    for each, color in zip(found, colors, strict=True):
        left, top, right, bottom = each.detection.box
        box = (left / width, top / height, right / width, bottom / height)
        yield Thing(name, color, box, each.detection.score >= SURE)


@dataclass(frozen=True)
class Sight:
    """What is known of a picture: its things, the classes that its prompt asked for, and those of the whole set."""

    things: Sequence[Thing]
    wanted: Sequence[str]
    classes: Sequence[str]

    @property
    def known(self) -> dict[str, list[Thing]]:
        """Things by class, without the classes of which the eyes are not sure."""
        found: dict[str, list[Thing]] = {}
        for thing in self.things:
            found.setdefault(thing.name, []).append(thing)
        return {name: things for name, things in sorted(found.items()) if all(thing.sure for thing in things)}

    @property
    def alone(self) -> list[Thing]:
        """The things that are the only one of their class."""
        return [things[0] for things in self.known.values() if len(things) == 1]

    def absent(self, rng: Random) -> str | None:
        """A class that is not there: one that the prompt asked for where there is one, else one of the set's."""
        there = {thing.name for thing in self.things}
        missed = [name for name in dict.fromkeys(self.wanted) if name not in there]
        others = [name for name in self.classes if name not in there]
        return rng.choice(missed or others) if missed or others else None


def wanted_classes(text: str) -> tuple[str, ...]:
    """The classes that a prompt in a benchmark's wording asks for; none where it cannot be read."""
    try:
        return tuple(item.name for item in parse_prompt(text).include)
    except PromptError:
        return ()


def questions(sight: Sight, world: World, seed: str) -> list[Asked]:
    """Every kind of question that can be asked, at most one for each kind and answer; the choice follows `seed`."""
    found: list[Asked] = []
    for kind, ask in KINDS.items():
        rng = Random(f"{kind} {seed}")
        asked = list(ask(sight, rng, WORDS[world]))
        rng.shuffle(asked)
        found += {each.place: each for each in asked}.values()
    return found


# --- the words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """How each kind is worded. A model of the stickers is asked as it is taught; any other is told what may be said."""

    presence: Callable[[str], str]
    count: Callable[[str], str]
    color: Callable[[str], str]
    side: Callable[[str], str]
    larger: Callable[[str, str], str]


_STICKERS = Words(
    presence=presence_question,
    count=lambda name: count_question(plural(name)),
    color=color_question,
    side=partial(side_question, sides=SIDES),
    larger=larger_question,
)
_OPEN = Words(
    presence=lambda name: f"Is there {article(name)} {name} in the picture? Answer with one word: yes or no.",
    count=lambda name: f"How many {proper_plural(name)} are in the picture? Answer with one number from zero to nine.",
    color=lambda name: f"What color is the {name}? Answer with one word: {', '.join(COLORS)}.",
    side=lambda name: f"Is the {name} in the left or right half of the picture? Answer with one word: left or right.",
    larger=lambda one, other: f"Which looks larger in the picture, the {one} or the {other}? Answer with the name.",
)
WORDS: dict[World, Words] = {"stickers": _STICKERS, "open": _OPEN}


# --- the kinds --------------------------------------------------------------------------------------------------------


def _presence(sight: Sight, rng: Random, words: Words) -> Iterator[Asked]:
    options = (YES, NO)
    if sight.known:
        yield Asked("Presence", words.presence(rng.choice(list(sight.known))), options, YES)
    absent = sight.absent(rng)
    if absent is not None:
        yield Asked("Presence", words.presence(absent), options, NO)


def _count(sight: Sight, rng: Random, words: Words) -> Iterator[Asked]:
    amounts = {name: len(things) for name, things in sight.known.items()}
    absent = sight.absent(rng)
    if absent is not None:
        amounts[absent] = 0
    for name, amount in amounts.items():
        if amount < len(NUMBERS):
            yield Asked("Count", words.count(name), NUMBERS, NUMBERS[amount])


def _color(sight: Sight, rng: Random, words: Words) -> Iterator[Asked]:
    for thing in sight.alone:
        if thing.color is not None:
            yield Asked("Color", words.color(thing.name), tuple(COLORS), thing.color)


def _side(sight: Sight, rng: Random, words: Words) -> Iterator[Asked]:
    for thing in sight.alone:
        if thing.side is not None:
            yield Asked("Side", words.side(thing.name), SIDES, thing.side)


def _larger(sight: Sight, rng: Random, words: Words) -> Iterator[Asked]:
    for one, other in permutations(sight.alone, 2):
        large, small = sorted((one, other), key=lambda thing: thing.area, reverse=True)
        if large.area >= CLEARLY * small.area:
            yield Asked("Larger", words.larger(one.name, other.name), (one.name, other.name), large.name)


KINDS: dict[str, Callable[[Sight, Random, Words], Iterator[Asked]]] = {
    "Presence": _presence,
    "Count": _count,
    "Color": _color,
    "Side": _side,
    "Larger": _larger,
}
