"""A quiz: a fixed list of questions about pictures that exist. Asking it is an ordinary run, one row per question.

Every question carries the answers that can be given, so that chance is known and stands beside what the model gets. A
reply that is none of them is a wrong answer, and counted as unreadable too: it is the model's reply, not a failure of a
judge. A column in which nothing can be asked is missing, never 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.table import Table

from triptych.data.lexicon import NO, NUMBERS, YES
from triptych.errors import NotFiniteError, OutputError, PictureError
from triptych.eval.probes import ProbePolicy
from triptych.eval.results import OVERALL, Report, Row, summarize
from triptych.eval.run_folder import (
    WHOLE,
    EvalJob,
    JobResult,
    RunFolder,
    Shard,
    code_settings,
    model_settings,
    pixels_sha256,
    play_jobs,
)
from triptych.eval.statistics import Estimate
from triptych.files import write_text
from triptych.model.config import Sampling
from triptych.model.images import read_image
from triptych.model.templates import is_stop, parse_answer, parse_edit, reflection_is_formed
from triptych.trace import Verdict

QUESTIONS_FILE = "questions.jsonl"
AnswerForm = Literal["question", "reflection"]  # how the model says whether a picture fits: when asked, or by stopping


@dataclass(frozen=True)
class JudgedPicture:
    """A picture of a set: its file and pixels, the prompt it was drawn for, and the judge's verdict on it, if any."""

    path: Path
    sha256: str  # `run_folder.pixels_sha256`
    prompt: int
    text: str
    column: str
    verdict: Verdict | None

    def load(self) -> np.ndarray:
        """The pixels `[height width 3] uint8`. PictureError if they are no longer those that were judged."""
        picture = read_image(self.path)
        if pixels_sha256(picture) != self.sha256:
            raise PictureError(
                f"{self.path} is not the picture that was judged; expected its pixels as they were drawn"
            )
        return picture


@dataclass(frozen=True)
class Question:
    """What is asked about a picture, the answers that can be given, and the right one."""

    picture: JudgedPicture
    column: str
    text: str
    options: tuple[str, ...]
    answer: str

    def to_record(self) -> dict[str, Any]:
        """For questions.jsonl, with which anyone can ask another model."""
        return {
            **{"picture": self.picture.path.name, "sha256": self.picture.sha256},
            **{"prompt": self.picture.text, "group": self.picture.prompt},  # `group` is the bootstrap's cluster
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
        # Without a verdict: the answer holds what the judge or the detector said.
        picture = JudgedPicture(Path(name), sha256, record["group"], prompt, column, None)
        return Question(picture, column, text, options, answer)


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
        # By pixels, without paths: a picture set may lie in any folder.
        content = [[each.picture.sha256, each.column, each.text, each.options, each.answer] for each in self.questions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def of(self, column: str) -> list[Question]:
        return [question for question in self.questions if question.column == column]

    @staticmethod
    def read(run_folder: RunFolder) -> Quiz | None:
        """The quiz of a folder that `run_quiz` wrote; None of a run that drew. Its pictures are names without a folder.

        Raises OutputError where the questions cannot be read, or are not those that were asked.
        """
        manifest, path = run_folder.manifest, run_folder.folder / QUESTIONS_FILE
        if "drawn" not in manifest:  # only a quiz names the run whose pictures it asks about
            return None
        about = {key: value for key, value in manifest.items() if key not in _RUN_SETTINGS}
        by, remedy = manifest.get("by", "question"), "expected the questions that were asked: ask anew"
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
            questions = tuple(Question.from_record(json.loads(line)) for line in lines)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(f"{path} cannot be read ({type(error).__name__}); {remedy}") from error
        quiz = Quiz(manifest["benchmark"], tuple(manifest["columns"] or ()), questions, about, by)
        if (len(questions), quiz.sha256()) != (manifest["prompts"], manifest.get("prompts_sha256")):
            raise OutputError(f"{path} holds other questions than its manifest tells of; {remedy}")
        if by not in get_args(AnswerForm) or not isinstance(about["drawn"], dict):
            raise OutputError(f"{run_folder.folder}/manifest.json tells of no quiz; {remedy}")
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
    `resume`, `shard` and the errors are those of `benchmark.run_benchmark`; `questions.jsonl` joins the folder.
    """
    own = policy.config.sampling
    # Greedy answers are the same on every run; a reflection is tested as the loop samples it.
    sampling = sampling or (replace(own, temperature=0.0) if quiz.by == "question" else own)
    run_folder = None
    if out is not None:
        manifest = quiz_manifest(quiz, policy, sampling)
        run_folder = RunFolder.open(out, manifest, resume, shard, keep_pictures=False)  # linked instead
        lines = [json.dumps(question.to_record(), ensure_ascii=False) + "\n" for question in quiz.questions]
        write_text(run_folder.folder / QUESTIONS_FILE, "".join(lines))

    works = False

    def work(jobs: Sequence[EvalJob]) -> Iterator[JobResult]:
        nonlocal works
        questions = [quiz.questions[index] for index, _ in jobs]
        start = time.perf_counter()  # of a batch, shared evenly: what one question costs within it is not known
        replies = _replies(policy, quiz.by, questions, sampling, [seed for _, seed in jobs], works)
        works = works or any(isinstance(reply, str) for reply in replies)
        seconds = (time.perf_counter() - start) / len(jobs)
        for (index, seed), question, reply in zip(jobs, questions, replies, strict=True):
            if isinstance(reply, str):
                row = _row(question, quiz.by, index, seed, reply, seconds)
            else:
                row = _row(question, quiz.by, index, seed, "", seconds)
                row = replace(row, verdicts=(None,), said=(None,), lost=str(reply))
            if run_folder is not None:
                _link(question.picture.path, run_folder.picture_path(row, 0))
            yield row, ()

    # One seed: a quiz is asked once, and its manifest has `seeds` of [0].
    yield from play_jobs([(index, 0) for index in range(len(quiz.questions))], work, run_folder, batch_size)


_RUN_SETTINGS = (  # what a manifest holds beside `Quiz.about`
    *("benchmark", "columns", "prompts", "prompts_sha256", "model", "device", "dtype", "turns", "seeds", "sampling"),
    *("code_sha256", "versions"),
)


def quiz_manifest(quiz: Quiz, policy: ProbePolicy, sampling: Sampling) -> dict[str, Any]:
    """What would have to be the same for the same numbers, as JSON values."""
    return {
        "benchmark": quiz.name,
        "columns": list(quiz.columns),
        "prompts": len(quiz.questions),
        "prompts_sha256": quiz.sha256(),
        **model_settings(policy),
        "turns": 0,
        "seeds": [0],
        "sampling": asdict(sampling),
        **quiz.about,
        **code_settings(),
    }


def _replies(
    policy: ProbePolicy,
    by: AnswerForm,
    questions: Sequence[Question],
    sampling: Sampling,
    seeds: Sequence[int],
    works: bool,
) -> list[str | NotFiniteError]:
    """A reply to each question, or that the model's numbers for it are not finite.

    Raises NotFiniteError where that is every one, unless the model `works` otherwise.
    """
    try:
        return list(_said(policy, by, questions, sampling, seeds))
    except NotFiniteError as error:
        whole = [place for place in range(len(questions)) if place not in error.rows]
        if not (whole or works):
            raise
        others = [questions[place] for place in whole], sampling, [seeds[place] for place in whole], True
        rest = iter(_replies(policy, by, *others) if whole else ())
        return [next(rest) if place in whole else error for place in range(len(questions))]


def _said(
    policy: ProbePolicy, by: AnswerForm, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
) -> list[str]:
    loaded = {question.picture.path: question.picture for question in questions}
    pixels = {path: picture.load() for path, picture in loaded.items()}  # several questions are about one picture
    pictures, texts = [pixels[question.picture.path] for question in questions], [each.text for each in questions]
    if by == "reflection":
        return [completion.text for completion in policy.reflect(texts, pictures, sampling, seeds)]
    return [completion.text for completion in policy.answer(pictures, texts, sampling, seeds)]


def _link(picture: Path, place: Path) -> None:
    """The picture under the row's own name, for the page: the same file, no copy. Where that cannot be, none."""
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        os.link(picture, place)


def _row(question: Question, by: AnswerForm, index: int, seed: int, reply: str, seconds: float) -> Row:
    option = read_reply(by, question, reply)
    if option == question.answer:
        verdict = Verdict(1.0, (question.answer,))
    else:
        why = "the reply is no answer" if option is None else f"answered {option}"
        verdict = Verdict(0.0, (), (f"{question.answer}: {why}",))
    picture = question.picture
    return Row(
        *(index, question.text, question.column, seed, (verdict,), False, (reply,), seconds),
        pictures=(picture.sha256,),
        group=picture.prompt,
    )


def reply_of(row: Row) -> str:
    """The reply to a question."""
    return next(iter(row.said), None) or ""


def read_reply(by: AnswerForm, question: Question, reply: str) -> str | None:
    """The option that a reply to a question means, or None where it means none of them."""
    return read_decision(reply) if by == "reflection" else read_option(reply, question.options)


# Words before the answer itself, as in "there are three" or "It's the left half" (punctuation has become spaces).
_LEAD = re.compile(r"(?:(?:the|an?|its?|it s|is|are|there|answer|has) )*")


def read_option(reply: str, options: Sequence[str]) -> str | None:
    """The one option that a reply means, or None: the one it begins with, or else the only one that occurs in it.

    Case, punctuation, thoughts, and words such as "it is" and "the" before the answer do not matter; digits are
    numbers in words.
    """
    words = re.findall(r"[a-z]+|[0-9]+", parse_answer(reply).lower())
    plain = " ".join(NUMBERS[int(word)] if word.isdigit() and int(word) < len(NUMBERS) else word for word in words)
    lead = _LEAD.match(f"{plain} ")
    # A blank at the end, so that an option is compared as a whole word: "cat" is not "cats".
    answer = f"{plain} "[lead.end() if lead else 0 :]
    longest_first = sorted(options, key=len, reverse=True)  # "tv remote" is not "tv"
    for option in longest_first:
        if answer.startswith(f"{option} "):
            return option
    # Two different options are no answer, "left or right" least of all.
    mentions = re.findall(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", plain)
    return mentions[0] if len(set(mentions)) == 1 else None


def read_decision(reply: str) -> str | None:
    """Whether a reflection takes the picture to fit: it stops, or asks for an edit. None if it is not well formed."""
    # A wrong answer, whatever the loop would make of it: docs/ita.md, "By reflection".
    if not reflection_is_formed(reply):
        return None
    return YES if is_stop(parse_edit(reply)) else NO


# --- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnAccuracy:
    """A column: the share of right answers, beside what can be had without seeing the picture.

    `chance` is the expected share of an answer drawn evenly among the options; `majority` is what the best single
    answer gets when it is given to every question (in "which is larger": always the first, or always the second).
    """

    accuracy: Estimate
    chance: float | None
    majority: float | None
    questions: int  # that were asked
    unreadable: int


def accuracy_by_column(quiz: Quiz, rows: Iterable[Row]) -> dict[str, ColumnAccuracy]:
    """Each column of the quiz in order, then OVERALL: the mean of the columns that are not missing.

    Intervals are those of `statistics.bootstrap`: all questions about pictures of one prompt are drawn together.
    """
    rows = list(rows)
    accuracy = {column: estimates[0] for column, estimates in quiz_report(quiz, rows).accuracy.items()}
    unreadable = Counter(
        row.column for row in rows if read_reply(quiz.by, quiz.questions[row.prompt], reply_of(row)) is None
    )
    questions = Counter(row.column for row in rows)
    columns = {
        column: ColumnAccuracy(
            accuracy=accuracy[column],
            # Of each question on its own: in one column they may have different numbers of options.
            chance=_mean([1 / len(question.options) for question in quiz.of(column)]),
            majority=_majority([question.options.index(question.answer) for question in quiz.of(column)]),
            questions=questions[column],
            unreadable=unreadable[column],
        )
        for column in quiz.columns
    }
    overall = ColumnAccuracy(
        accuracy=accuracy[OVERALL],
        chance=_mean([each.chance for each in columns.values() if each.chance is not None]),
        majority=_mean([each.majority for each in columns.values() if each.majority is not None]),
        questions=sum(questions.values()),
        unreadable=sum(unreadable.values()),
    )
    return {**columns, OVERALL: overall}


def quiz_report(quiz: Quiz, rows: Iterable[Row]) -> Report:
    """The report of a quiz's rows; their `group` is the prompt that was drawn."""
    rows = sorted(rows, key=lambda row: row.prompt)
    return summarize(quiz.name, rows, quiz.columns, turns=0, open_jobs=len(quiz.questions) - len(rows))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _majority(answers: Sequence[int]) -> float | None:
    """The share of the most common of the right answers, each by its place among the options."""
    return Counter(answers).most_common(1)[0][1] / len(answers) if answers else None


def accuracy_table(quiz: Quiz, accuracies: Mapping[str, ColumnAccuracy]) -> Table:
    """Accuracy by column, beside chance and majority."""
    title = f"{quiz.name}: {accuracies[OVERALL].questions} questions"
    table = Table(title=title, caption="\n".join(caption(quiz, accuracies)))
    table.add_column("column")
    for heading in ("right", "95 %", "chance", "majority", "asked", "unread"):
        table.add_column(heading, justify="right", no_wrap=True)
    for column, each in accuracies.items():
        if column == OVERALL:
            table.add_section()
        low, high = each.accuracy.low, each.accuracy.high
        interval = "-" if low is None else f"{share(low)} to {share(high)}"
        shares = (share(each.accuracy.value), interval, share(each.chance), share(each.majority))
        table.add_row(column, *shares, str(each.questions), str(each.unreadable))
    return table


def caption(quiz: Quiz, accuracies: Mapping[str, ColumnAccuracy]) -> list[str]:
    """Which model drew, which judge's verdicts are the truth, what is missing, and what is still to be asked."""
    parts = [f"drawn by {quiz.about['drawn'].get('model')}, judged by {quiz.about.get('judge')}"]
    missing = [column for column, each in accuracies.items() if column != OVERALL and each.chance is None]
    if missing:
        # "ITA by reflection", too.
        why = "no picture fits, or every one does" if quiz.name.startswith("ITA") else "nothing can be asked"
        parts.append(f"missing, and not in Overall: {', '.join(missing)} ({why})")
    left = len(quiz.questions) - accuracies[OVERALL].questions
    return parts + ([f"still to be asked: {left}"] if left else [])


def share(value: float | None) -> str:
    """A share as it is printed, or a dash where it is not known."""
    return "-" if value is None else f"{value:.3f}"
