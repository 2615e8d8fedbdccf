"""A quiz: a fixed list of questions about pictures that exist. Asking it is an ordinary run, one row a question.

Every question carries the answers that can be given, so that what a coin gets is known, and stands beside what the
model gets. A reply that is none of them is a wrong answer, and counted as unreadable too: it is the player's reply, not
a failure of a judge. A column in which nothing can be asked is missing, never 0.

What the answers to a quiz show: the share of right ones by column, beside what can be had without eyes.
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
from typing import Any, Literal, get_args

import numpy as np
from rich.table import Table

from triptych.data.annotations import NO, YES
from triptych.data.lexicon import NUMBERS
from triptych.errors import OutputError, PictureError
from triptych.eval import run_folder
from triptych.eval.probes import ProbePolicy
from triptych.eval.results import OVERALL, Report, Row, summarize
from triptych.eval.run_folder import WHOLE, Job, Result, RunFolder, Shard, pixels_sha256, read_rows
from triptych.eval.statistics import Estimate
from triptych.model.config import Sampling
from triptych.model.images import read_picture
from triptych.model.templates import is_stop, parse_answer, parse_edit, reflection_is_formed
from triptych.model.weights import fingerprint
from triptych.trace import Verdict

QUESTIONS = "questions.jsonl"
AnswerForm = Literal["question", "reflection"]  # how the model says whether a picture fits: when asked, or by stopping


@dataclass(frozen=True)
class Shown:
    """A picture of a set: its file and pixels, the prompt it was drawn for, and the judge's word on it, if any."""

    path: Path
    sha256: str  # `fingerprints.pixels_sha256`
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
            **{"picture": self.picture.path.name, "sha256": self.picture.sha256},
            **{"prompt": self.picture.text, "group": self.picture.prompt},
            **{"column": self.column, "question": self.text, "options": list(self.options), "answer": self.answer},
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Question:
        """Read back, the picture without its folder; raises ValueError, KeyError or TypeError for what is none."""
        texts = [record[name] for name in ("picture", "sha256", "prompt", "column", "question", "answer")]
        name, sha256, prompt, column, text, answer = texts
        options = tuple(record["options"])
        if not all(isinstance(each, str) for each in (*texts, *options)) or answer not in options:
            raise ValueError("expected texts, and an answer among the options")
        return Question(Shown(Path(name), sha256, record["group"], prompt, column, None), column, text, options, answer)


@dataclass(frozen=True)
class Quiz:
    """A fixed list of questions about a picture set. `about` says how it was made."""

    name: str
    columns: tuple[str, ...]
    questions: tuple[Question, ...]
    about: Mapping[str, Any]
    by: AnswerForm = "question"

    def sha256(self) -> str:
        """16 hex digits over every question, its picture's pixels and its answer, in order."""
        told = [[one.picture.sha256, one.column, one.text, one.options, one.answer] for one in self.questions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def of(self, column: str) -> list[Question]:
        return [one for one in self.questions if one.column == column]

    @staticmethod
    def read(ledger: RunFolder) -> Quiz | None:
        """The quiz of a folder that `run` wrote; None of a run that drew. Its pictures are named, without their folder.

        Raises OutputError where the questions cannot be read, or are not those that were asked.
        """
        manifest, path = ledger.manifest, ledger.folder / QUESTIONS
        if "drawn" not in manifest:
            return None
        about = {key: value for key, value in manifest.items() if key not in _OF_RUN}
        by, wanted = manifest.get("by", "question"), "expected the questions that were asked: ask anew"
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
            questions = tuple(Question.from_record(json.loads(line)) for line in lines)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(f"{path} cannot be read ({type(error).__name__}); {wanted}") from error
        quiz = Quiz(manifest["benchmark"], tuple(manifest["columns"] or ()), questions, about, by)
        if (len(questions), quiz.sha256()) != (manifest["prompts"], manifest.get("prompts_sha256")):
            raise OutputError(f"{path} holds other questions than its manifest tells of; {wanted}")
        if by not in get_args(AnswerForm) or not isinstance(about["drawn"], dict):
            raise OutputError(f"{ledger.folder}/manifest.json tells of no quiz; {wanted}")
        return quiz


# --- asking -----------------------------------------------------------------------------------------------------------


def run_quiz(
    quiz: Quiz,
    policy: ProbePolicy,
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
    own = policy.config.sampling
    sampling = sampling or (replace(own, temperature=0.0) if quiz.by == "question" else own)
    ledger = None
    if out is not None:
        ledger = RunFolder.open(out, quiz_manifest(quiz, policy, sampling), resume, shard, keep=False)
        lines = [json.dumps(one.to_record(), ensure_ascii=False) + "\n" for one in quiz.questions]
        ledger.replace(QUESTIONS, "".join(lines))

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

    yield from read_rows([(index, 0) for index in range(len(quiz.questions))], work, ledger, batch_size)


_OF_RUN = (  # what a manifest tells beside `Quiz.about`
    *("benchmark", "columns", "prompts", "prompts_sha256", "model", "device", "dtype", "turns", "seeds", "sampling"),
    *("code_sha256", "versions"),
)


def quiz_manifest(quiz: Quiz, policy: ProbePolicy, sampling: Sampling) -> dict[str, Any]:
    """What would have to be the same for the same numbers, as JSON values."""
    device, dtype = getattr(policy, "device", None), getattr(policy, "dtype", None)
    return {
        "benchmark": quiz.name,
        "columns": list(quiz.columns),
        "prompts": len(quiz.questions),
        "prompts_sha256": quiz.sha256(),
        "model": fingerprint(policy),
        "device": getattr(device, "type", "cpu"),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "turns": 0,
        "seeds": [0],
        "sampling": asdict(sampling),
        **quiz.about,
        "code_sha256": run_folder.code_sha256(),
        "versions": run_folder.versions(),
    }


def _replies(
    policy: ProbePolicy, by: AnswerForm, asked: Sequence[Question], sampling: Sampling, seeds: list[int]
) -> list[str]:
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


def _row(one: Question, by: AnswerForm, index: int, seed: int, reply: str, seconds: float) -> Row:
    read = read_reply(by, one, reply)
    right = read == one.answer
    told = f"{one.answer}: answered {read}" if read is not None else f"{one.answer}: the reply is no answer"
    verdict = Verdict(1.0, (one.answer,)) if right else Verdict(0.0, (), (told,))
    sha256 = (one.picture.sha256,)
    return Row(index, one.text, one.column, seed, (verdict,), False, (reply,), seconds, sha256, one.picture.prompt)


def reply_of(row: Row) -> str:
    """What was said to a question."""
    return next(iter(row.said), None) or ""


def read_reply(by: AnswerForm, one: Question, reply: str) -> str | None:
    """The option that a reply to a question means, or None where it means none of them."""
    return read_decision(reply) if by == "reflection" else read_option(reply, one.options)


_LEAD = re.compile(r"(?:(?:the|an?|its?|it s|is|are|there|answer|has) )*")


def read_option(reply: str, options: Sequence[str]) -> str | None:
    """The one option that a reply means, or None: the one it begins with, or else the only one that occurs in it.

    Case, punctuation, thoughts, and words such as "it is" and "the" before the answer do not matter; digits are
    numbers in words.
    """
    words = re.findall(r"[a-z]+|[0-9]+", parse_answer(reply).lower())
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


@dataclass(frozen=True)
class ColumnAccuracy:
    """A column: the share of right answers, beside what can be had without eyes.

    `coin` is what one expects of choosing among the options by chance, `constant` what the best single answer gets when
    it is given to every question (in "which is larger": always the first, or always the second).
    """

    accuracy: Estimate
    coin: float | None
    constant: float | None
    asked: int
    unreadable: int


def accuracy_by_column(quiz: Quiz, rows: Iterable[Row]) -> dict[str, ColumnAccuracy]:
    """Each column of the quiz in order, then OVERALL: the mean of the columns that are not missing.

    Intervals are 95 % bootstraps over the prompts that were drawn: all questions about pictures of one prompt are drawn
    together.
    """
    rows = list(rows)
    accuracy = {column: estimates[0] for column, estimates in quiz_report(quiz, rows).accuracy.items()}
    lost = Counter(row.column for row in rows if _unreadable(quiz, row))
    asked = Counter(row.column for row in rows)
    found = {
        column: ColumnAccuracy(
            accuracy=accuracy[column],
            coin=_mean_chance([1 / len(one.options) for one in quiz.of(column)]),
            constant=_commonest([one.options.index(one.answer) for one in quiz.of(column)]),
            asked=asked[column],
            unreadable=lost[column],
        )
        for column in quiz.columns
    }
    known = [each for each in found.values() if each.coin is not None and each.constant is not None]
    found[OVERALL] = ColumnAccuracy(
        accuracy=accuracy[OVERALL],
        coin=_mean_chance([each.coin for each in known if each.coin is not None]),
        constant=_mean_chance([each.constant for each in known if each.constant is not None]),
        asked=sum(asked.values()),
        unreadable=sum(lost.values()),
    )
    return found


def quiz_report(quiz: Quiz, rows: Iterable[Row]) -> Report:
    """The report of a quiz's rows; their `group` is the prompt that was drawn."""
    rows = sorted(rows, key=lambda row: row.prompt)
    return summarize(quiz.name, rows, quiz.columns, turns=0, open_jobs=len(quiz.questions) - len(rows))


def _unreadable(quiz: Quiz, row: Row) -> bool:
    return read_reply(quiz.by, quiz.questions[row.prompt], reply_of(row)) is None


def _mean_chance(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _commonest(values: Sequence[Hashable]) -> float | None:
    return Counter(values).most_common(1)[0][1] / len(values) if values else None


# --- shown ------------------------------------------------------------------------------------------------------------


def accuracy_table(quiz: Quiz, found: Mapping[str, ColumnAccuracy]) -> Table:
    """Accuracy by column, beside what needs no eyes."""
    printed = Table(title=f"{quiz.name}: {found[OVERALL].asked} questions", caption="\n".join(caption(quiz, found)))
    printed.add_column("column")
    for title in ("right", "95 %", "coin", "one answer", "asked", "unread"):
        printed.add_column(title, justify="right", no_wrap=True)
    for column, each in found.items():
        if column == OVERALL:
            printed.add_section()
        low, high = each.accuracy.low, each.accuracy.high
        interval = "-" if low is None else f"{share(low)} to {share(high)}"
        blind = (share(each.coin), share(each.constant))
        printed.add_row(column, share(each.accuracy.value), interval, *blind, str(each.asked), str(each.unreadable))
    return printed


def caption(quiz: Quiz, found: Mapping[str, ColumnAccuracy]) -> list[str]:
    """Who drew, whose word is the truth, what is missing, and what is still to be asked."""
    parts = [f"drawn by {quiz.about['drawn'].get('model')}, judged by {quiz.about.get('judge')}"]
    missing = [column for column, each in found.items() if column != OVERALL and each.coin is None]
    if missing:
        why = "no picture fits, or every one does" if quiz.name.startswith("ITA") else "nothing can be asked"
        parts.append(f"missing, and not in Overall: {', '.join(missing)} ({why})")
    left = len(quiz.questions) - found[OVERALL].asked
    return parts + ([f"still to be asked: {left}"] if left else [])


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
