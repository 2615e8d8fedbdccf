"""A quiz: a fixed list of questions about pictures that exist. Asking it is an ordinary run, one row a question.

Every question carries the answers that can be given, so that what a coin gets is known, and stands beside what the
model gets. A reply that is none of them is a wrong answer, and counted as unreadable too: it is the player's reply, not
a failure of a judge. A column in which nothing can be asked is missing, never 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from triptych.data.captions import NO, YES
from triptych.data.lexicon import NUMBERS
from triptych.errors import PictureError
from triptych.eval import ledger as ledgers
from triptych.eval.exam import Student
from triptych.eval.ledger import WHOLE, Job, Ledger, Result, Shard, pixels_sha256, recorded
from triptych.eval.report import OVERALL, Estimate, Report, Row, summarize
from triptych.model.config import Sampling
from triptych.model.pictures import read_picture
from triptych.model.words import is_stop, parse_edit, reflection_is_formed
from triptych.trace import Verdict

By = Literal["question", "reflection"]  # how the model says whether a picture fits: when asked, or by stopping


@dataclass(frozen=True)
class Shown:
    """A picture of a set: its file and pixels, the prompt it was drawn for, and the judge's word on it, if any."""

    path: Path
    sha256: str  # `ledger.pixels_sha256`
    prompt: int
    text: str
    column: str
    verdict: Verdict | None

    def load(self) -> np.ndarray:
        """The pixels `[height width 3] uint8`. PictureError if they are no longer those that were judged."""
        picture = read_picture(self.path)
        if pixels_sha256(picture) != self.sha256:
            raise PictureError(
                f"{self.path} is not the picture that was judged; expected its pixels as they were drawn"
            )
        return picture


@dataclass(frozen=True)
class Question:
    """What is asked about a picture, the answers that can be given, and the right one."""

    picture: Shown
    column: str
    text: str
    options: tuple[str, ...]
    answer: str

    def to_record(self) -> dict[str, Any]:
        """For questions.jsonl, with which anyone can ask another model."""
        return {
            **{"picture": self.picture.path.name, "sha256": self.picture.sha256, "prompt": self.picture.text},
            **{"column": self.column, "question": self.text, "options": list(self.options), "answer": self.answer},
        }


@dataclass(frozen=True)
class Quiz:
    """A fixed list of questions about a picture set. `about` says how it was made."""

    name: str
    columns: tuple[str, ...]
    questions: tuple[Question, ...]
    about: Mapping[str, Any]
    by: By = "question"

    def sha256(self) -> str:
        """16 hex digits over every question, its picture's pixels and its answer, in order."""
        told = [[one.picture.sha256, one.column, one.text, one.options, one.answer] for one in self.questions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def of(self, column: str) -> list[Question]:
        return [one for one in self.questions if one.column == column]


# --- asking -----------------------------------------------------------------------------------------------------------


def run(
    quiz: Quiz,
    policy: Student,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    shard: Shard = WHOLE,
) -> Iterator[Row]:
    """Ask every question and yield a Row each: `prompt` is its number, the verdict 1.0 or 0.0, `said` the reply.

    Questions are answered greedily, reflections sampled as in the loop, unless `sampling` says otherwise. `out`,
    `resume`, `shard` and the errors are those of `benchmark.run`; `questions.jsonl` joins the folder.
    """
    fine = policy.config.fine
    sampling = sampling or (replace(fine, temperature=0.0) if quiz.by == "question" else fine)
    ledger = None
    if out is not None:
        ledger = Ledger.open(out, manifest(quiz, policy, sampling), resume, shard, keep=False)
        lines = [json.dumps(one.to_record(), ensure_ascii=False) + "\n" for one in quiz.questions]
        ledger.replace("questions.jsonl", "".join(lines))

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        asked = [quiz.questions[index] for index, _ in jobs]
        start = time.perf_counter()
        replies = _replies(policy, quiz.by, asked, sampling, [seed for _, seed in jobs])
        seconds = (time.perf_counter() - start) / len(jobs)
        for (index, seed), one, reply in zip(jobs, asked, replies, strict=True):
            row = _row(one, quiz.by, index, seed, reply, seconds)
            if ledger is not None:
                _link(one.picture.path, ledger.place(row, 0))
            yield row, ()

    yield from recorded([(index, 0) for index in range(len(quiz.questions))], work, ledger, batch_size)


def manifest(quiz: Quiz, policy: Student, sampling: Sampling) -> dict[str, Any]:
    """What would have to be the same for the same numbers, as JSON values."""
    device, dtype = getattr(policy, "device", None), getattr(policy, "dtype", None)
    return {
        "benchmark": quiz.name,
        "columns": list(quiz.columns),
        "prompts": len(quiz.questions),
        "prompts_sha256": quiz.sha256(),
        "model": ledgers.fingerprint(policy),
        "device": getattr(device, "type", "cpu"),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "turns": 0,
        "seeds": [0],
        "sampling": asdict(sampling),
        **quiz.about,
        "code_sha256": ledgers.code_sha256(),
        "versions": ledgers.versions(),
    }


def _replies(policy: Student, by: By, asked: Sequence[Question], sampling: Sampling, seeds: list[int]) -> list[str]:
    loaded = {path: shown.load() for path, shown in {one.picture.path: one.picture for one in asked}.items()}
    pictures, texts = [loaded[one.picture.path] for one in asked], [one.text for one in asked]
    if by == "reflection":
        return [each.text for each in policy.reflect(texts, pictures, sampling, seeds)]
    return [each.text for each in policy.answer(pictures, texts, sampling, seeds)]


def _link(picture: Path, place: Path) -> None:
    """The picture under the row's own name, for the page: the same file, no copy. Where that cannot be, none."""
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        os.link(picture, place)


def _row(one: Question, by: By, index: int, seed: int, reply: str, seconds: float) -> Row:
    read = read_decision(reply) if by == "reflection" else read_option(reply, one.options)
    right = read == one.answer
    told = f"{one.answer}: answered {read}" if read is not None else f"{one.answer}: the reply is no answer"
    verdict = Verdict(1.0, (one.answer,)) if right else Verdict(0.0, (), (told,))
    sha256 = (one.picture.sha256,)
    return Row(index, one.text, one.column, seed, (verdict,), False, (reply,), seconds, sha256, one.picture.prompt)


_LEAD = re.compile(r"(?:(?:the|an?|its?|it s|is|are|there|answer|has) )*")


def read_option(reply: str, options: Sequence[str]) -> str | None:
    """The one option that a reply means, or None: the one it begins with, or else the only one that occurs in it.

    Case, punctuation, thoughts, and words such as "it is" and "the" before the answer do not matter; digits are
    numbers in words.
    """
    words = re.findall(r"[a-z]+|[0-9]+", reply.rsplit("</think>", 1)[-1].lower())
    plain = " ".join(NUMBERS[int(word)] if word.isdigit() and int(word) < len(NUMBERS) else word for word in words)
    start = _LEAD.match(f"{plain} ")
    rest = f"{plain} "[start.end() if start else 0 :]
    longest = sorted(options, key=len, reverse=True)
    for option in longest:
        if rest.startswith(f"{option} "):
            return option
    inside = re.findall(rf"\b(?:{'|'.join(map(re.escape, longest))})\b", plain)
    return inside[0] if len(set(inside)) == 1 else None


def read_decision(reply: str) -> str | None:
    """Whether a reflection takes the picture to fit: it stops, or asks for an edit. None if it is not well formed."""
    if not reflection_is_formed(reply):
        return None
    return YES if is_stop(parse_edit(reply)) else NO


# --- what the answers show --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """A column: the share of right answers, beside what can be had without eyes.

    `coin` is what one expects of choosing among the options by chance, `constant` what the best single answer gets when
    it is given to every question (in "which is larger": always the first, or always the second).
    """

    accuracy: Estimate
    coin: float | None
    constant: float | None
    asked: int
    unreadable: int


def standings(quiz: Quiz, rows: Iterable[Row]) -> dict[str, Standing]:
    """Each column of the quiz in order, then OVERALL: the mean of the columns that are not missing.

    Intervals are 95 % bootstraps over the prompts that were drawn: all questions about pictures of one prompt are drawn
    together.
    """
    rows = list(rows)
    accuracy = {column: estimates[0] for column, estimates in quiz_report(quiz, rows).accuracy.items()}
    lost = Counter(row.column for row in rows if _unreadable(quiz, row))
    asked = Counter(row.column for row in rows)
    found = {
        column: Standing(
            accuracy=accuracy[column],
            coin=_mean([1 / len(one.options) for one in quiz.of(column)]),
            constant=_commonest([one.options.index(one.answer) for one in quiz.of(column)]),
            asked=asked[column],
            unreadable=lost[column],
        )
        for column in quiz.columns
    }
    known = [each for each in found.values() if each.coin is not None and each.constant is not None]
    found[OVERALL] = Standing(
        accuracy=accuracy[OVERALL],
        coin=_mean([each.coin for each in known if each.coin is not None]),
        constant=_mean([each.constant for each in known if each.constant is not None]),
        asked=sum(asked.values()),
        unreadable=sum(lost.values()),
    )
    return found


def quiz_report(quiz: Quiz, rows: Iterable[Row]) -> Report:
    """The report of a quiz's rows; their `group` is the prompt that was drawn."""
    rows = sorted(rows, key=lambda row: row.prompt)
    return summarize(quiz.name, rows, quiz.columns, turns=0, open_jobs=len(quiz.questions) - len(rows))


def _unreadable(quiz: Quiz, row: Row) -> bool:
    reply = row.said[0] or ""
    options = quiz.questions[row.prompt].options
    return (read_decision(reply) if quiz.by == "reflection" else read_option(reply, options)) is None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _commonest(values: Sequence[Hashable]) -> float | None:
    return Counter(values).most_common(1)[0][1] / len(values) if values else None
