"""ITA and VQA: a model looks at pictures that a named model drew. Does a picture fit its prompt, and what does it show?

The picture set is the folder of a finished run: all pictures of all turns, with the verdicts of the run's judge. From
it and a seed follows a quiz (`quiz.py`), the same for every model that is asked. The paper (arXiv 2602.15772) did not
release its ITA and VQA: docs/ita.md and docs/vqa.md say what is assumed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from triptych.data.captions import NO, YES, fits_question
from triptych.errors import OutputError
from triptych.eval.composition import KINDS, Sight, Thing, World, questions, wanted_classes
from triptych.eval.ledger import Ledger
from triptych.eval.quiz import By, Question, Quiz, Shown
from triptych.eval.report import Row
from triptych.trace import Verdict

Find = Callable[[list[np.ndarray]], list[list[Thing]]]  # pictures `[height width 3] uint8` to what each shows

LIMIT = 480  # questions a column: what the paper's printed cells of ITA are multiples of
NEAR = 0.5  # of the pairs that do not fit: those that miss by one check, as far as there are any
LOOKED_AT = 64  # pictures in memory at once while their things are found
ABOUT = ("benchmark", "prompts", "prompts_sha256", "model", "judge", "turns", "seeds", "plan", "sampling")
FITS = (
    "Does the picture match this description exactly, in its objects and their number, colors, places and sizes? "
    '"{text}" Answer with one word: yes or no.'
)


@dataclass(frozen=True)
class Drawn:
    """A picture set: every picture of a finished run, in the order of prompts, seeds and turns."""

    manifest: Mapping[str, Any]  # of the run: who drew, who judged, and with which settings
    pictures: tuple[Shown, ...]

    @staticmethod
    def read(folder: Path) -> Drawn:
        """The set in a folder of `triptych eval`. OutputError if it is none, not finished, or kept no pictures."""
        ledger = Ledger.read(folder)
        if "drawn" in ledger.manifest:
            raise OutputError(f"{folder} holds answers about another run's pictures; expected the folder of that run")
        rows = sorted(ledger.rows(), key=lambda row: (row.prompt, row.seed))
        left = len(ledger.open_jobs(rows))
        if left:
            raise OutputError(f"{folder} is not finished, {left} prompts are left; expected all pictures: --resume it")
        shown = tuple(each for row in rows for each in _shown(ledger, row))
        if not shown:
            raise OutputError(f"{folder} holds no pictures; expected a run of `triptych eval` that drew some")
        return Drawn(ledger.manifest, shown)

    @property
    def about(self) -> dict[str, Any]:
        """What a quiz tells of the run."""
        return {key: self.manifest.get(key) for key in ABOUT}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the benchmark that was drawn."""
        found = dict.fromkeys(each.column for each in self.pictures)
        return tuple(self.manifest.get("columns") or found)


def _shown(ledger: Ledger, row: Row) -> Iterator[Shown]:
    for turn, verdict in enumerate(row.verdicts):
        path = ledger.picture(row, turn)
        if turn >= len(row.pictures):
            raise OutputError(
                f"{ledger.folder} does not say which pixels {path.name} had; expected a newer run: redraw"
            )
        yield Shown(path, row.pictures[turn], row.prompt, row.text, row.column, verdict)


def alignment(drawn: Drawn, world: World, limit: int = LIMIT, seed: int = 0, by: By = "question") -> Quiz:
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


def _fits(text: str, world: World, by: By) -> str:
    if by == "reflection":
        return text
    return fits_question(text) if world == "stickers" else FITS.format(text=text)


def composition(drawn: Drawn, find: Find, eyes: str, world: World, limit: int = LIMIT, seed: int = 0) -> Quiz:
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
        sight = Sight(things, wanted_classes(each.text), classes)
        for one in questions(sight, world, f"{seed} {each.sha256}"):
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
