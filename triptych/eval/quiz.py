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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from triptych.data.captions import NO, YES
from triptych.data.lexicon import NUMBERS
from triptych.errors import OutputError, PictureError
from triptych.eval import fingerprints
from triptych.eval.exam import Student
from triptych.eval.fingerprints import pixels_sha256
from triptych.eval.ledger import WHOLE, Job, Ledger, Result, Shard, recorded
from triptych.eval.report import Row
from triptych.model.config import Sampling
from triptych.model.pictures import read_picture
from triptych.model.words import is_stop, parse_answer, parse_edit, reflection_is_formed
from triptych.trace import Verdict

QUESTIONS = "questions.jsonl"
By = Literal["question", "reflection"]  # how the model says whether a picture fits: when asked, or by stopping


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
    by: By = "question"

    def sha256(self) -> str:
        """16 hex digits over every question, its picture's pixels and its answer, in order."""
        told = [[one.picture.sha256, one.column, one.text, one.options, one.answer] for one in self.questions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def of(self, column: str) -> list[Question]:
        return [one for one in self.questions if one.column == column]

    @staticmethod
    def read(ledger: Ledger) -> Quiz | None:
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
        if by not in get_args(By) or not isinstance(about["drawn"], dict):
            raise OutputError(f"{ledger.folder}/manifest.json tells of no quiz; {wanted}")
        return quiz


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

    yield from recorded([(index, 0) for index in range(len(quiz.questions))], work, ledger, batch_size)


_OF_RUN = (  # what a manifest tells beside `Quiz.about`
    *("benchmark", "columns", "prompts", "prompts_sha256", "model", "device", "dtype", "turns", "seeds", "sampling"),
    *("code_sha256", "versions"),
)


def manifest(quiz: Quiz, policy: Student, sampling: Sampling) -> dict[str, Any]:
    """What would have to be the same for the same numbers, as JSON values."""
    device, dtype = getattr(policy, "device", None), getattr(policy, "dtype", None)
    return {
        "benchmark": quiz.name,
        "columns": list(quiz.columns),
        "prompts": len(quiz.questions),
        "prompts_sha256": quiz.sha256(),
        "model": fingerprints.fingerprint(policy),
        "device": getattr(device, "type", "cpu"),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "turns": 0,
        "seeds": [0],
        "sampling": asdict(sampling),
        **quiz.about,
        "code_sha256": fingerprints.code_sha256(),
        "versions": fingerprints.versions(),
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
    read = read_reply(by, one, reply)
    right = read == one.answer
    told = f"{one.answer}: answered {read}" if read is not None else f"{one.answer}: the reply is no answer"
    verdict = Verdict(1.0, (one.answer,)) if right else Verdict(0.0, (), (told,))
    sha256 = (one.picture.sha256,)
    return Row(index, one.text, one.column, seed, (verdict,), False, (reply,), seconds, sha256, one.picture.prompt)


def reply_of(row: Row) -> str:
    """What was said to a question."""
    return next(iter(row.said), None) or ""


def read_reply(by: By, one: Question, reply: str) -> str | None:
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
