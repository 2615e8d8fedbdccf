"""Compositional questions about a picture: is a class there, how many, of what colour, on which side, which is larger.

Questions are written over `Thing`: a class, a colour and a box, whoever saw it. The world judge's finder sees sticker
pictures, GenEval's detector open ones. Only what cannot be doubted is asked: colour, side and size of a thing that is
the only one of its class, a side where the box does not cross the middle, a size where one box is clearly larger, and
nothing at all about a class of which the eyes are not sure.

ITA and VQA: a model looks at pictures that a named model drew. Does a picture fit its prompt, and what does it show?

The picture set is the folder of a finished run: all pictures of all turns, with the verdicts of the run's judge. From
it and a seed follows a quiz (`quiz.py`), the same for every model that is asked. The paper (arXiv 2602.15772) did not
release its ITA and VQA: docs/ita.md and docs/vqa.md say what is assumed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

from triptych.data.annotations import (
    NO,
    YES,
    color_question,
    count_question,
    fits_question,
    larger_question,
    presence_question,
    side_question,
)
from triptych.data.language import parse_prompt
from triptych.data.layout import CANVAS
from triptych.data.lexicon import NUMBERS, article, plural, proper_plural
from triptych.data.scene import Scene
from triptych.data.stickers import COLORS
from triptych.errors import OutputError, PromptError
from triptych.eval.quiz import AnswerForm, Question, Quiz, Shown
from triptych.eval.results import Row
from triptych.eval.run_folder import RunFolder
from triptych.rewards.geneval_detector import GenEvalDetector
from triptych.trace import Verdict

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
class CompositionQuestion:
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


def detected_things(eyes: GenEvalDetector, pictures: Sequence[np.ndarray]) -> list[list[Thing]]:
    """What GenEval's detector sees in each picture; colours are read of the only sure one of a class."""
    return [
        [thing for name, found in sight.items() for thing in _told(eyes, picture, name, found)]
        for picture, sight in zip(pictures, eyes.see(pictures), strict=True)
    ]


def _told(eyes: GenEvalDetector, picture: np.ndarray, name: str, found: Sequence) -> Iterator[Thing]:
    height, width = picture.shape[:2]
    alone = len(found) == 1 and found[0].detection.score >= SURE
    colors = eyes.colors(picture, found, name) if alone else [None] * len(found)
    for each, color in zip(found, colors, strict=True):
        left, top, right, bottom = each.detection.box
        box = (left / width, top / height, right / width, bottom / height)
        yield Thing(name, color, box, each.detection.score >= SURE)


@dataclass(frozen=True)
class PictureFacts:
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


def composition_questions(sight: PictureFacts, world: World, seed: str) -> list[CompositionQuestion]:
    """Every kind of question that can be asked, at most one for each kind and answer; the choice follows `seed`."""
    found: list[CompositionQuestion] = []
    for kind, ask in KINDS.items():
        rng = Random(f"{kind} {seed}")
        asked = list(ask(sight, rng, WORDINGS[world]))
        rng.shuffle(asked)
        found += {each.place: each for each in asked}.values()
    return found


# --- the words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionWording:
    """How each kind is worded. A model of the stickers is asked as it is taught; any other is told what may be said."""

    presence: Callable[[str], str]
    count: Callable[[str], str]
    color: Callable[[str], str]
    side: Callable[[str], str]
    larger: Callable[[str, str], str]


_STICKERS = QuestionWording(
    presence=presence_question,
    count=lambda name: count_question(plural(name)),
    color=color_question,
    side=partial(side_question, sides=SIDES),
    larger=larger_question,
)
_OPEN = QuestionWording(
    presence=lambda name: f"Is there {article(name)} {name} in the picture? Answer with one word: yes or no.",
    count=lambda name: f"How many {proper_plural(name)} are in the picture? Answer with one number from zero to nine.",
    color=lambda name: f"What color is the {name}? Answer with one word: {', '.join(COLORS)}.",
    side=lambda name: f"Is the {name} in the left or right half of the picture? Answer with one word: left or right.",
    larger=lambda one, other: f"Which looks larger in the picture, the {one} or the {other}? Answer with the name.",
)
WORDINGS: dict[World, QuestionWording] = {"stickers": _STICKERS, "open": _OPEN}


# --- the kinds --------------------------------------------------------------------------------------------------------


def _presence(sight: PictureFacts, rng: Random, words: QuestionWording) -> Iterator[CompositionQuestion]:
    options = (YES, NO)
    if sight.known:
        yield CompositionQuestion("Presence", words.presence(rng.choice(list(sight.known))), options, YES)
    absent = sight.absent(rng)
    if absent is not None:
        yield CompositionQuestion("Presence", words.presence(absent), options, NO)


def _count(sight: PictureFacts, rng: Random, words: QuestionWording) -> Iterator[CompositionQuestion]:
    amounts = {name: len(things) for name, things in sight.known.items()}
    absent = sight.absent(rng)
    if absent is not None:
        amounts[absent] = 0
    for name, amount in amounts.items():
        if amount < len(NUMBERS):
            yield CompositionQuestion("Count", words.count(name), NUMBERS, NUMBERS[amount])


def _color(sight: PictureFacts, rng: Random, words: QuestionWording) -> Iterator[CompositionQuestion]:
    for thing in sight.alone:
        if thing.color is not None:
            yield CompositionQuestion("Color", words.color(thing.name), tuple(COLORS), thing.color)


def _side(sight: PictureFacts, rng: Random, words: QuestionWording) -> Iterator[CompositionQuestion]:
    for thing in sight.alone:
        if thing.side is not None:
            yield CompositionQuestion("Side", words.side(thing.name), SIDES, thing.side)


def _larger(sight: PictureFacts, rng: Random, words: QuestionWording) -> Iterator[CompositionQuestion]:
    for one, other in permutations(sight.alone, 2):
        large, small = sorted((one, other), key=lambda thing: thing.area, reverse=True)
        if large.area >= CLEARLY * small.area:
            yield CompositionQuestion("Larger", words.larger(one.name, other.name), (one.name, other.name), large.name)


KINDS: dict[str, Callable[[PictureFacts, Random, QuestionWording], Iterator[CompositionQuestion]]] = {
    "Presence": _presence,
    "Count": _count,
    "Color": _color,
    "Side": _side,
    "Larger": _larger,
}

Detect = Callable[[list[np.ndarray]], list[list[Thing]]]  # pictures `[height width 3] uint8` to what each shows

LIMIT = 480  # questions a column: what the paper's printed cells of ITA are multiples of
NEAR = 0.5  # of the pairs that do not fit: those that miss by one check, as far as there are any
LOOKED_AT = 64  # pictures in memory at once while their things are found
ABOUT = ("benchmark", "prompts", "prompts_sha256", "model", "judge", "turns", "seeds", "plan", "sampling")
FITS = (
    "Does the picture match this description exactly, in its objects and their number, colors, places and sizes? "
    '"{text}" Answer with one word: yes or no.'
)


@dataclass(frozen=True)
class PictureSet:
    """A picture set: every picture of a finished run, in the order of prompts, seeds and turns."""

    manifest: Mapping[str, Any]  # of the run: who drew, who judged, and with which settings
    pictures: tuple[Shown, ...]

    @staticmethod
    def read(folder: Path) -> PictureSet:
        """The set in a folder of `triptych eval`. OutputError if it is none, not finished, or kept no pictures."""
        ledger = RunFolder.read(folder)
        if "drawn" in ledger.manifest:
            raise OutputError(f"{folder} holds answers about another run's pictures; expected the folder of that run")
        rows = sorted(ledger.rows(), key=lambda row: (row.prompt, row.seed))
        left = len(ledger.open_jobs(rows))
        if left:
            raise OutputError(f"{folder} is not finished, {left} prompts are left; expected all pictures: --resume it")
        shown = tuple(each for row in rows for each in _shown(ledger, row))
        if not shown:
            raise OutputError(f"{folder} holds no pictures; expected a run of `triptych eval` that drew some")
        return PictureSet(ledger.manifest, shown)

    @property
    def about(self) -> dict[str, Any]:
        """What a quiz tells of the run."""
        return {key: self.manifest.get(key) for key in ABOUT}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the benchmark that was drawn."""
        found = dict.fromkeys(each.column for each in self.pictures)
        return tuple(self.manifest.get("columns") or found)


def _shown(ledger: RunFolder, row: Row) -> Iterator[Shown]:
    for turn, verdict in enumerate(row.verdicts):
        path = ledger.picture(row, turn)
        if turn >= len(row.pictures):
            raise OutputError(
                f"{ledger.folder} does not say which pixels {path.name} had; expected a newer run: redraw"
            )
        yield Shown(path, row.pictures[turn], row.prompt, row.text, row.column, verdict)


def alignment(drawn: PictureSet, world: World, limit: int = LIMIT, seed: int = 0, by: AnswerForm = "question") -> Quiz:
    """ITA: pairs of a picture and its own prompt, worded for a model of that world. The truth is the run's judge.

    In each column as many pairs fit (score 1) as do not, `limit` in all at most; of those that do not, NEAR miss by one
    check as far as there are any. The same pixels with the same prompt count once, and not at all where the judge gave
    them two verdicts. Pictures without a verdict are left out.
    """
    asked: list[Question] = []
    for column in drawn.columns:
        rng = Random(f"ITA {seed} {column}")
        pairs = _judged_once(each for each in drawn.pictures if each.column == column)
        fitting = [each for each, verdict in pairs if verdict.score == 1]
        near = [each for each, verdict in pairs if verdict.score < 1 and len(verdict.failed) == 1]
        far = [each for each, verdict in pairs if verdict.score < 1 and len(verdict.failed) != 1]
        share = min(len(fitting), len(near) + len(far), limit // 2)
        closely = min(len(near), max(round(NEAR * share), share - len(far)))
        missing = rng.sample(near, closely) + rng.sample(far, share - closely)
        for answer, chosen in ((YES, rng.sample(fitting, share)), (NO, missing)):
            asked += [Question(each, column, _fits(each.text, world, by), (YES, NO), answer) for each in chosen]
    about = {"drawn": drawn.about, "judge": drawn.manifest.get("judge"), "seed": seed, "limit": limit}
    return Quiz(
        "ITA" if by == "question" else "ITA by reflection",
        drawn.columns,
        _ordered(asked),
        {**about, "near": NEAR, "world": world, "by": by},
        by,
    )


def _judged_once(pictures: Iterable[Shown]) -> list[tuple[Shown, Verdict]]:
    """One pair for each prompt and pixels that the judge is of one mind about."""
    found: dict[tuple[str, str], list[tuple[Shown, Verdict]]] = {}
    for each in pictures:
        if each.verdict is not None:
            found.setdefault((each.text, each.sha256), []).append((each, each.verdict))
    agreed = [alike for alike in found.values() if len({verdict.score == 1 for _, verdict in alike}) == 1]
    return [alike[0] for alike in agreed]


def _fits(text: str, world: World, by: AnswerForm) -> str:
    if by == "reflection":
        return text
    return fits_question(text) if world == "stickers" else FITS.format(text=text)


def composition(drawn: PictureSet, find: Detect, eyes: str, world: World, limit: int = LIMIT, seed: int = 0) -> Quiz:
    """VQA: compositional questions about every picture, worded for a model of that world. The truth is what `find`, by
    the name of `eyes`, sees in it.

    Each column, a kind of question, holds `limit` at most. Where two answers can be given, each is right equally often;
    where there are more, they take turns as far as they go.
    """
    once = list({each.sha256: each for each in reversed(drawn.pictures)}.values())[::-1]
    seen: list[list[Thing]] = []
    for start in range(0, len(once), LOOKED_AT):
        seen += find([each.load() for each in once[start : start + LOOKED_AT]])
    classes = sorted({thing.name for things in seen for thing in things})
    found: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for each, things in zip(once, seen, strict=True):
        sight = PictureFacts(things, wanted_classes(each.text), classes)
        for one in composition_questions(sight, world, f"{seed} {each.sha256}"):
            found[one.kind].append(Question(each, one.kind, one.text, one.options, one.answer))
    asked = [one for kind, all_of in found.items() for one in _balanced(all_of, limit, Random(f"VQA {seed} {kind}"))]
    about = {"drawn": drawn.about, "judge": eyes, "seed": seed, "limit": limit, "world": world}
    return Quiz("VQA", tuple(KINDS), _ordered(asked), about)


def _balanced(asked: Sequence[Question], limit: int, rng: Random) -> list[Question]:
    """At most `limit` questions: of two answers as many each, of more in turns, the rarest first to be used up."""
    by_place: dict[int, list[Question]] = {}
    for one in asked:
        by_place.setdefault(one.options.index(one.answer), []).append(one)
    piles = [rng.sample(pile, len(pile)) for _, pile in sorted(by_place.items())]
    if asked and len(asked[0].options) == 2:
        most = min(limit // 2, min(map(len, piles)) if len(piles) == 2 else 0)
        return [one for pile in piles for one in pile[:most]]
    rounds = [pile[turn] for turn in range(max(map(len, piles), default=0)) for pile in piles if turn < len(pile)]
    return rounds[:limit]


def _ordered(asked: Iterable[Question]) -> tuple[Question, ...]:
    """By picture: the answers then stand in no order."""
    return tuple(sorted(asked, key=lambda one: (one.picture.prompt, one.picture.path.name, one.column, one.text)))
