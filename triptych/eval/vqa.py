"""ITA and VQA: a model is asked about pictures that a named model drew (arXiv 2602.15772).

ITA: does a picture fit its prompt? VQA: compositional questions about what it shows: is a class there, how many, of
what color, on which side, which is larger. The picture set is the folder of a finished run: all pictures of all turns,
with the verdicts of the run's judge. From it and a seed follows a quiz (quiz.py), the same for every model that is
asked. The paper did not release its ITA and VQA: docs/ita.md and docs/vqa.md say what is assumed here.

Questions of VQA are written over `VisibleObject`: a class, a color and a box. A sticker judge's detector finds them in
sticker pictures, GenEval's detector in open ones. Only what cannot be doubted is asked: color, side and size of an
object that is the only one of its class, a side where the box does not cross the middle, a size where one box is
clearly larger, and nothing at all about a class of which the detector is not sure.
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
    color_question,
    count_question,
    fits_question,
    larger_question,
    presence_question,
    side_question,
)
from triptych.data.language import parse_prompt
from triptych.data.layout import CANVAS
from triptych.data.lexicon import NO, NUMBERS, YES, article, plural, proper_plural
from triptych.data.scene import Scene
from triptych.data.stickers import COLORS
from triptych.errors import OutputError, PromptError
from triptych.eval.quiz import AnswerForm, JudgedPicture, Question, Quiz
from triptych.eval.results import Row
from triptych.eval.run_folder import RunFolder
from triptych.rewards.geneval_detector import GenEvalDetector
from triptych.seeds import named_rng
from triptych.trace import Verdict

World = Literal["open", "stickers"]
SURE = 0.9  # a detection's score from which an object is there (GenEval: counting); below it no question is asked
CLEARLY = 1.7  # times the area of the other box: the sizes of stickers differ by 1.8 at least
HALVES = ("left", "right")
LIMIT = 480  # questions a column: what the paper's printed cells of ITA are multiples of
NEAR = 0.5  # of the pairs that do not fit: those that miss by one check, as far as there are any
LOAD_BATCH = 64  # pictures in memory at once while their objects are detected


@dataclass(frozen=True)
class VisibleObject:
    """An object in a picture. `box` is (left, top, right, bottom) in shares of the picture's width and height; `color`
    is None where it was not read; an object that is not `sure` keeps its class out of all questions."""

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
    def half(self) -> str | None:
        """The half of the picture in which the whole box lies, or None."""
        left, _, right, _ = self.box
        return "left" if right <= 0.5 else "right" if left >= 0.5 else None


DetectObjects = Callable[[list[np.ndarray]], list[list[VisibleObject]]]  # from pictures `[height width 3] uint8`


def scene_objects(scene: Scene) -> list[VisibleObject]:
    """The stickers of a scene, in reading order."""
    objects = []
    for sticker in scene.ordered():
        reach = sticker.side / 2
        edges = (sticker.x - reach, sticker.y - reach, sticker.x + reach, sticker.y + reach)
        left, top, right, bottom = (edge / CANVAS for edge in edges)
        objects.append(VisibleObject(sticker.name, sticker.color, (left, top, right, bottom)))
    return objects


def detected_objects(detector: GenEvalDetector, pictures: Sequence[np.ndarray]) -> list[list[VisibleObject]]:
    """What GenEval's detector finds in each picture; the color is read of the only one of a class, if it is sure."""
    return [
        [each for name, objects in classes.items() for each in _of_class(detector, picture, name, objects)]
        for picture, classes in zip(pictures, detector.find_objects(pictures), strict=True)
    ]


def _of_class(detector: GenEvalDetector, picture: np.ndarray, name: str, objects: Sequence) -> Iterator[VisibleObject]:
    height, width = picture.shape[:2]
    # Reading colors is the costly step, and only the color of a single object is ever asked.
    alone = len(objects) == 1 and objects[0].detection.score >= SURE
    colors = detector.colors(picture, objects, name) if alone else [None] * len(objects)
    for each, color in zip(objects, colors, strict=True):
        left, top, right, bottom = each.detection.box
        box = (left / width, top / height, right / width, bottom / height)
        yield VisibleObject(name, color, box, each.detection.score >= SURE)


@dataclass(frozen=True)
class PictureFacts:
    """What a picture shows: its objects; and the classes that its prompt asked for, and those of the whole set."""

    objects: Sequence[VisibleObject]
    prompt_classes: Sequence[str]
    set_classes: Sequence[str]

    @property
    def by_class(self) -> dict[str, list[VisibleObject]]:
        """Objects by class, without the classes of which the detector is not sure."""
        classes: dict[str, list[VisibleObject]] = {}
        for each in self.objects:
            classes.setdefault(each.name, []).append(each)
        # Sorted: one seed, one choice.
        return {name: objects for name, objects in sorted(classes.items()) if all(each.sure for each in objects)}

    @property
    def unique(self) -> list[VisibleObject]:
        """The objects that are the only one of their class."""
        return [objects[0] for objects in self.by_class.values() if len(objects) == 1]

    def absent_class(self, rng: Random) -> str | None:
        """A class that is not there: one that the prompt asked for where there is one, else one of the set's."""
        present = {each.name for each in self.objects}
        missed = [name for name in dict.fromkeys(self.prompt_classes) if name not in present]
        others = [name for name in self.set_classes if name not in present]
        return rng.choice(missed or others) if missed or others else None


def prompt_classes(text: str) -> tuple[str, ...]:
    """The classes that a prompt in a benchmark's wording asks for; none where it cannot be read."""
    try:
        return tuple(item.name for item in parse_prompt(text).include)
    except PromptError:
        return ()


def composition_questions(picture: JudgedPicture, facts: PictureFacts, world: World, seed: str) -> list[Question]:
    """Every kind of question that can be asked, at most one for each kind and answer; the choice follows `seed`."""
    questions: list[Question] = []
    for kind, write in COMPOSITION_KINDS.items():
        rng = named_rng(kind, seed)  # its own: a new kind would not change the questions of the others
        candidates = list(write(facts, rng, WORDINGS[world]))
        rng.shuffle(candidates)
        # By the place of the answer among the options, which is what `_balanced` balances. Of several questions with
        # one answer the last stays: after the shuffle, a random one.
        by_answer = {options.index(answer): (text, options, answer) for text, options, answer in candidates}
        questions += [Question(picture, kind, *candidate) for candidate in by_answer.values()]
    return questions


# --- wording ----------------------------------------------------------------------------------------------------------


# A model of stickers is asked in the words of its SFT; any other is told which answers it may give.
QuestionWording = Mapping[str, Callable[..., str]]
WORDINGS: dict[World, QuestionWording] = {
    "stickers": {
        "presence": presence_question,
        "count": lambda name: count_question(plural(name)),
        "color": color_question,
        "side": partial(side_question, sides=HALVES),
        "larger": larger_question,
    },
    "open": {
        "presence": lambda name: f"Is there {article(name)} {name} in the picture? Answer with one word: yes or no.",
        "count": lambda name: (
            f"How many {proper_plural(name)} are in the picture? Answer with one number from zero to nine."
        ),
        "color": lambda name: f"What color is the {name}? Answer with one word: {', '.join(COLORS)}.",
        "side": lambda name: (
            f"Is the {name} in the left or right half of the picture? Answer with one word: left or right."
        ),
        "larger": lambda one, other: (
            f"Which looks larger in the picture, the {one} or the {other}? Answer with the name."
        ),
    },
}
FITS_OPEN = (
    "Does the picture match this description exactly, in its objects and their number, colors, places and sizes? "
    '"{text}" Answer with one word: yes or no.'
)


# --- the kinds of VQA -------------------------------------------------------------------------------------------------

Candidates = Iterator[tuple[str, tuple[str, ...], str]]  # question, the answers that can be given, the right one


def _presence(facts: PictureFacts, rng: Random, words: QuestionWording) -> Candidates:
    if facts.by_class:
        yield words["presence"](rng.choice(list(facts.by_class))), (YES, NO), YES
    absent = facts.absent_class(rng)
    if absent is not None:
        yield words["presence"](absent), (YES, NO), NO


def _count(facts: PictureFacts, rng: Random, words: QuestionWording) -> Candidates:
    counts = {name: len(objects) for name, objects in facts.by_class.items()}
    absent = facts.absent_class(rng)
    if absent is not None:
        counts[absent] = 0
    for name, count in counts.items():
        # The options are zero to nine; more objects than that are not asked about.
        if count < len(NUMBERS):
            yield words["count"](name), NUMBERS, NUMBERS[count]


def _color(facts: PictureFacts, rng: Random, words: QuestionWording) -> Candidates:
    for each in facts.unique:
        if each.color is not None:
            yield words["color"](each.name), tuple(COLORS), each.color


def _side(facts: PictureFacts, rng: Random, words: QuestionWording) -> Candidates:
    for each in facts.unique:
        if each.half is not None:
            yield words["side"](each.name), HALVES, each.half


def _larger(facts: PictureFacts, rng: Random, words: QuestionWording) -> Candidates:
    for one, other in permutations(facts.unique, 2):  # both orders: the larger one is named first as often as second
        large, small = sorted((one, other), key=lambda each: each.area, reverse=True)
        if large.area >= CLEARLY * small.area:
            yield words["larger"](one.name, other.name), (one.name, other.name), large.name


COMPOSITION_KINDS: dict[str, Callable[[PictureFacts, Random, QuestionWording], Candidates]] = {
    "Presence": _presence,
    "Count": _count,
    "Color": _color,
    "Side": _side,
    "Larger": _larger,
}


# --- the picture set and its quizzes ----------------------------------------------------------------------------------

# Of the run that drew, for the manifest of a quiz: two picture sets that differ in these are two tasks.
RUN_SETTINGS = ("benchmark", "prompts", "prompts_sha256", "model", "judge", "turns", "seeds", "plan", "sampling")


@dataclass(frozen=True)
class PictureSet:
    """Every picture of a finished run, in the order of prompts, seeds and turns."""

    manifest: Mapping[str, Any]  # of the run: who drew, who judged, and with which settings
    pictures: tuple[JudgedPicture, ...]

    @staticmethod
    def read(folder: Path) -> PictureSet:
        """The set in a folder of `triptych eval`. OutputError if it is none, not finished, or kept no pictures."""
        run_folder = RunFolder.read(folder)
        if "drawn" in run_folder.manifest:
            raise OutputError(f"{folder} holds answers about another run's pictures; expected the folder of that run")
        rows = run_folder.rows()
        if left := len(run_folder.open_jobs(rows)):
            raise OutputError(f"{folder} is not finished, {left} prompts are left; expected all pictures: --resume it")
        # Not in the order of play: whichever shards drew a set, it makes the same quiz.
        rows.sort(key=lambda row: (row.prompt, row.seed))
        pictures = tuple(picture for row in rows for picture in _judged_pictures(run_folder, row))
        if not pictures:
            raise OutputError(f"{folder} holds no pictures; expected a run of `triptych eval` that drew some")
        return PictureSet(run_folder.manifest, pictures)

    @property
    def about(self) -> dict[str, Any]:
        """What a quiz's manifest says of the run."""
        return {key: self.manifest.get(key) for key in RUN_SETTINGS}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the benchmark that was drawn."""
        return tuple(self.manifest.get("columns") or dict.fromkeys(picture.column for picture in self.pictures))


def _judged_pictures(run_folder: RunFolder, row: Row) -> Iterator[JudgedPicture]:
    if row.lost and not row.pictures:
        return  # the one verdict of such a row is missing, and is on no picture
    for turn, verdict in enumerate(row.verdicts):
        path = run_folder.kept_picture(row, turn)
        if turn >= len(row.pictures):
            raise OutputError(
                f"{run_folder.folder} does not say which pixels {path.name} had; expected a newer run: redraw"
            )
        yield JudgedPicture(path, row.pictures[turn], row.prompt, row.text, row.column, verdict)


def alignment(
    pictures: PictureSet, world: World, limit: int = LIMIT, seed: int = 0, by: AnswerForm = "question"
) -> Quiz:
    """ITA: pairs of a picture and its own prompt, worded for a model of that world. The truth is the run's judge.

    In each column as many pairs fit (score 1) as do not, `limit` in all at most; of those that do not, NEAR miss by one
    check as far as there are any. The same pixels with the same prompt count once, and not at all where the judge gave
    them two verdicts. Pictures without a verdict are left out.
    """
    questions: list[Question] = []
    for column in pictures.columns:
        rng = named_rng("ITA", seed, column)  # its own: a limit or a missing column changes no other column
        pairs = _distinct(picture for picture in pictures.pictures if picture.column == column)
        fitting = [picture for picture, verdict in pairs if verdict.score == 1]
        near = [picture for picture, verdict in pairs if verdict.score < 1 and len(verdict.failed) == 1]
        far = [picture for picture, verdict in pairs if verdict.score < 1 and len(verdict.failed) != 1]
        half = min(len(fitting), len(near) + len(far), limit // 2)
        # As many near misses as NEAR wants; more where there are too few others, fewer where there are too few of them.
        near_count = min(len(near), max(round(NEAR * half), half - len(far)))
        missing = rng.sample(near, near_count) + rng.sample(far, half - near_count)
        for answer, chosen in ((YES, rng.sample(fitting, half)), (NO, missing)):
            questions += [Question(each, column, _fits(each.text, world, by), (YES, NO), answer) for each in chosen]
    settings = {"seed": seed, "limit": limit, "near": NEAR, "world": world, "by": by}
    about = {"drawn": pictures.about, "judge": pictures.manifest.get("judge"), **settings}
    return Quiz("ITA" if by == "question" else "ITA by reflection", pictures.columns, _by_picture(questions), about, by)


def _distinct(pictures: Iterable[JudgedPicture]) -> list[tuple[JudgedPicture, Verdict]]:
    """One pair for each prompt and pixels on which all verdicts agree."""
    alike: dict[tuple[str, str], list[tuple[JudgedPicture, Verdict]]] = {}
    for picture in pictures:
        if picture.verdict is not None:
            alike.setdefault((picture.text, picture.sha256), []).append((picture, picture.verdict))
    return [pairs[0] for pairs in alike.values() if len({verdict.score == 1 for _, verdict in pairs}) == 1]


def _fits(text: str, world: World, by: AnswerForm) -> str:
    if by == "reflection":  # the verb `reflect` takes the prompt itself
        return text
    return fits_question(text) if world == "stickers" else FITS_OPEN.format(text=text)


def composition(
    pictures: PictureSet, detect: DetectObjects, detector: str, world: World, limit: int = LIMIT, seed: int = 0
) -> Quiz:
    """VQA: compositional questions about every picture, worded for a model of that world. The truth is what `detect`,
    by the name of `detector`, finds in it.

    Each column, a kind of question, holds `limit` at most. Where two answers can be given, each is right equally often;
    where there are more, they take turns as far as they go.
    """
    distinct = list({each.sha256: each for each in reversed(pictures.pictures)}.values())[::-1]  # the first of each
    objects: list[list[VisibleObject]] = []
    for start in range(0, len(distinct), LOAD_BATCH):
        objects += detect([each.load() for each in distinct[start : start + LOAD_BATCH]])
    # Absent classes are drawn from what the set shows, or every "no" would be about a thing that nobody draws.
    classes = sorted({each.name for own in objects for each in own})
    by_kind: dict[str, list[Question]] = {kind: [] for kind in COMPOSITION_KINDS}
    for picture, own in zip(distinct, objects, strict=True):
        facts = PictureFacts(own, prompt_classes(picture.text), classes)
        for question in composition_questions(picture, facts, world, f"{seed} {picture.sha256}"):
            by_kind[question.column].append(question)
    balanced = [_balanced(own, limit, named_rng("VQA", seed, kind)) for kind, own in by_kind.items()]
    about = {"drawn": pictures.about, "judge": detector, "seed": seed, "limit": limit, "world": world}
    return Quiz("VQA", tuple(COMPOSITION_KINDS), _by_picture(each for own in balanced for each in own), about)


def _balanced(questions: Sequence[Question], limit: int, rng: Random) -> list[Question]:
    """At most `limit` questions: of two answers as many each, of more in turns, the rarest first to be used up."""
    by_answer: dict[int, list[Question]] = {}
    for each in questions:
        by_answer.setdefault(each.options.index(each.answer), []).append(each)
    piles = [rng.sample(pile, len(pile)) for _, pile in sorted(by_answer.items())]
    if questions and len(questions[0].options) == 2:  # then majority is chance: .50
        # With one answer alone nothing is asked, as it would be right without looking.
        most = min(limit // 2, min(map(len, piles)) if len(piles) == 2 else 0)
        return [each for pile in piles for each in pile[:most]]
    rounds = [pile[turn] for turn in range(max(map(len, piles), default=0)) for pile in piles if turn < len(pile)]
    return rounds[:limit]


def _by_picture(questions: Iterable[Question]) -> tuple[Question, ...]:
    """In the order of their pictures: what is right then follows no pattern."""
    return tuple(
        sorted(questions, key=lambda each: (each.picture.prompt, each.picture.path.name, each.column, each.text))
    )
