"""The questions of a vision-language judge: each wording, with how its answer becomes a verdict.

A form is a value: `Strict` asks for one verdict, 0 or 1, on the whole picture (GenEval++), `Checklist` puts a list of
yes/no questions at once (TIIF), `YesNo` asks one question and takes the likelihood of "yes". The wordings are our own.
For numbers that compare with published ones, the benchmark's official wording is read from the user's own copy
(`read_wording`), where `{prompt}`, `{metadata}` and `{questions}` mark the places to fill in.

What counts as an answer is in `vlm_replies.py`. One that was cut, withheld or refused has no verdict, which is not the
same as a 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from triptych.errors import ConfigError, JudgeError
from triptych.rewards.judge_reply import JudgeReply
from triptych.rewards.vlm_replies import read_answers, read_verdict, read_yes_or_no, reason_of
from triptych.trace import Prompt, Verdict

# Names of forms, and with them manifests and caches, hash these words: with one letter changed it is another judge.
STRICT_WORDING = """Someone was asked for this picture:

"{prompt}"

Decide whether the picture shows what was asked. Be strict: it is right only if every fact holds.
- Each thing that is named is there, in exactly the number asked for ("a" and "an" mean one); more is wrong, too.
- Each thing has the colour asked for, and is plainly the thing that was named.
- Each thing is where it was asked to be: "on the left" and "on the right" mean that half of the picture.
- "Larger" and "smaller" compare the things with each other as they appear in the picture.
- Scenery that nobody asked for does no harm, unless it adds to a number.
If you cannot make a fact out, it does not hold.

First count and look, then decide. Answer with one JSON object and nothing else:
{"reason": "what you counted and saw, in a sentence or two", "correct": 1 if right, else 0}"""

CHECKLIST_WORDING = """Answer these questions about the picture, each by what you can see in it and nothing else.

{questions}

Write one line for each question, in the same order and without numbers. Begin each line with yes or no, then a comma,
then a few words about what you see. Write no other lines."""

FIT_WORDING = """\
Does this picture show what was asked for, with nothing missing, miscounted, misplaced or of another colour?

Asked for: "{prompt}"

Answer with one word, yes or no."""

QUESTION_WORDING = """{prompt}

Look at the picture and answer with one word, yes or no."""

PLACEHOLDER = re.compile(r"\{(prompt|metadata|questions)\}")
YES_NO = {"yes": True, "no": False}
LENGTHS = ("short", "long")  # TIIF's two wordings of each instruction
MAX_WORDING_CHARACTERS = 100_000


class Form(Protocol):
    """A way to ask about a picture and to read the answer."""

    @property
    def name(self) -> str:
        """Names the form and its wording, for manifests and cache keys."""
        ...

    @property
    def tokens(self) -> int:
        """Longest answer."""
        ...

    @property
    def likelihoods(self) -> bool:
        """Whether the likelihoods of the first tokens are of use."""
        ...

    def ask(self, prompt: Prompt) -> str:
        """The text that goes with the picture. JudgeError if there is nothing to ask about this prompt."""
        ...

    def read(self, prompt: Prompt, reply: JudgeReply) -> Verdict:
        """The verdict in an answer. JudgeError if it holds none."""
        ...

    def record(self, prompt: Prompt, reply: JudgeReply, verdict: Verdict | None) -> dict[str, Any]:
        """One line of a recording, as `triptych score` reads it; `verdict` is None where it is missing."""
        ...


@dataclass(frozen=True)
class Strict:
    """GenEval++'s kind: one verdict on the whole picture, right or wrong, with the reason."""

    wording: str = STRICT_WORDING
    tokens: int = 2048  # the reason comes first, a judge may think before it, and a cut reply has no verdict
    likelihoods: bool = False

    def __post_init__(self) -> None:
        _check_places(self.wording, ("prompt", "metadata"))

    @property
    def name(self) -> str:
        return _form_name("strict", self.wording)

    def ask(self, prompt: Prompt) -> str:
        return _fill_prompt(self.wording, prompt)

    def read(self, prompt: Prompt, reply: JudgeReply) -> Verdict:
        correct = read_verdict(reply.require_answer())
        if correct is None:
            raise _unreadable('a JSON object with "correct": 0 or 1', reply)
        reason = (reason_of(reply.answer),)
        return Verdict(1.0, passed=reason) if correct else Verdict(0.0, failed=reason)

    def record(self, prompt: Prompt, reply: JudgeReply, verdict: Verdict | None) -> dict[str, Any]:
        # Without a verdict null, so that it is missing when the record is scored, too.
        correct = None if verdict is None else int(verdict.score)
        return {"tag": _tag(prompt), "prompt": prompt.text, "reply": reply.text, "correct": correct}


@dataclass(frozen=True)
class YesNo:
    """One question; the score is the probability of "yes" where the server gives likelihoods, else 1 or 0.

    With FIT_WORDING the question is whether the picture fits the prompt; with QUESTION_WORDING the prompt's text is
    itself the question.
    """

    wording: str = FIT_WORDING
    tokens: int = 1024  # one word; a judge that thinks first needs the rest, and any other stops by itself
    likelihoods: bool = True

    def __post_init__(self) -> None:
        _check_places(self.wording, ("prompt", "metadata"))

    @property
    def name(self) -> str:
        return _form_name("yesno", self.wording)

    def ask(self, prompt: Prompt) -> str:
        return _fill_prompt(self.wording, prompt)

    def read(self, prompt: Prompt, reply: JudgeReply) -> Verdict:
        answer = read_yes_or_no(reply.require_answer())  # first: the likelihoods of a refusal say "no", too
        if answer is None:
            raise _unreadable("yes or no", reply)
        probability = probability_of_yes(reply)
        score = float(answer) if probability is None else probability
        return Verdict(score, passed=(prompt.text,)) if score > 0.5 else Verdict(score, failed=(prompt.text,))

    def record(self, prompt: Prompt, reply: JudgeReply, verdict: Verdict | None) -> dict[str, Any]:
        score = None if verdict is None else verdict.score
        return {"tag": _tag(prompt), "prompt": prompt.text, "reply": reply.text, "yes": score}


@dataclass(frozen=True)
class Checks:
    """The yes/no questions about one picture, and the right answers."""

    questions: tuple[str, ...]
    answers: tuple[bool, ...]
    attribute: str
    length: str  # of LENGTHS: which of the two prompts the picture is of
    index: str = ""

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Checks:
        """Read a line in the form of a recording, or of TIIF's own prompts with `length` added.

        Raises KeyError, TypeError or ValueError where a field is absent, or there is not one answer per question.
        """
        is_tiif = "yn_question_list" in record
        keys = ("yn_question_list", "yn_answer_list") if is_tiif else ("questions", "gt_answers")
        questions, answers = (_texts(record, key) for key in keys)
        truths = [YES_NO.get(answer.strip().lower()) for answer in answers]
        if not questions or len(questions) != len(truths) or None in truths:
            raise ValueError(f"{len(questions)} questions and the answers {list(answers)}; expected yes or no for each")
        if record["length"] not in LENGTHS:
            raise ValueError(f"length is {record['length']!r}; expected short or long")
        attribute, index = record["type" if is_tiif else "attribute"], record.get("index", "")
        if not isinstance(attribute, str) or not attribute:
            raise TypeError("the attribute is no text")
        return Checks(questions, tuple(map(bool, truths)), attribute, record["length"], str(index))


@dataclass(frozen=True, eq=False)
class Checklist:
    """TIIF's kind: all questions about a picture at once; the score is the share with the right answer.

    `checks` has a prompt's questions by its (source, text): TIIF has the same text in its short and its long half.
    """

    checks: Mapping[tuple[str, str], Checks] = field(repr=False)
    wording: str = CHECKLIST_WORDING
    tokens: int = 4096  # a line of a few words for each question, and thoughts before them
    likelihoods: bool = False

    def __post_init__(self) -> None:
        _check_places(self.wording, ("questions",))

    @property
    def name(self) -> str:
        return _form_name("checklist", self.wording)

    def ask(self, prompt: Prompt) -> str:
        questions = self._checks_of(prompt).questions
        # One line for each question, whatever blanks it holds: answers are matched by lines.
        listed = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(questions, 1))
        return _fill(self.wording, prompt=prompt.text, questions=listed)

    def read(self, prompt: Prompt, reply: JudgeReply) -> Verdict:
        checks = self._checks_of(prompt)
        answers = read_answers(reply.require_answer(), len(checks.questions))
        if answers is None:
            raise _unreadable(f"{len(checks.questions)} answers, one a line", reply)
        right = [answer == truth for answer, truth in zip(answers, checks.answers, strict=True)]
        outcomes = list(zip(checks.questions, right, strict=True))
        passed, failed = (tuple(text for text, correct in outcomes if correct is part) for part in (True, False))
        return Verdict(len(passed) / len(right), passed, failed)

    def record(self, prompt: Prompt, reply: JudgeReply, verdict: Verdict | None) -> dict[str, Any]:
        checks = self._checks_of(prompt)
        return {
            "attribute": checks.attribute,
            "length": checks.length,
            "index": checks.index or prompt.text,  # the bootstrap's cluster when it is scored (recorded.py)
            "prompt": prompt.text,
            "questions": list(checks.questions),
            "gt_answers": ["yes" if answer else "no" for answer in checks.answers],
            # Words without a verdict stay out of what `score` reads: a cut list may look like a whole one.
            "model_output": "" if verdict is None else reply.answer,
        }

    def _checks_of(self, prompt: Prompt) -> Checks:
        try:
            return self.checks[prompt.source, prompt.text]
        except KeyError:
            raise JudgeError(f"no questions are known about {prompt.text!r} ({prompt.source or 'no source'})") from None


def probability_of_yes(reply: JudgeReply) -> float | None:
    """P(yes) / (P(yes) + P(no)) where the answer's first word is chosen; None where the server gives no likelihoods.

    All spellings of either word count: " Yes", "YES", "yes,". Blank and punctuation tokens before it are stepped over.
    """
    for place in reply.top:
        words = [(_bare_word(token), value) for token, value in place]
        if words and not words[0][0]:  # the chosen token is blank or punctuation
            continue
        mass = {word: sum(math.exp(value) for other, value in words if other == word) for word in ("yes", "no")}
        # Of these two words alone: the likeliest tokens hold only part of all probability.
        total = mass["yes"] + mass["no"]
        return mass["yes"] / total if words and words[0][0] in mass and total > 0 else None
    return None


def read_wording(path: Path) -> str:
    """A wording from the user's copy of a benchmark: a UTF-8 text file. Raises ConfigError if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            wording = file.read(MAX_WORDING_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; expected a text file with the judge's wording") from error
    if len(wording) > MAX_WORDING_CHARACTERS:
        raise ConfigError(f"{path} is longer than {MAX_WORDING_CHARACTERS:,} characters; expected a judge's wording")
    return wording


def _unreadable(expected: str, reply: JudgeReply) -> JudgeError:
    return JudgeError(f"expected {expected}, found {reply.answer[:60]!r}; the verdict is missing")


def _bare_word(token: str) -> str:
    """A token as a word: no space, markup or punctuation around it, lower case."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", token).lower()


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if not isinstance(record[key], list) or not all(isinstance(text, str) for text in record[key]):
        raise TypeError(f"{key} is no list of texts")
    return tuple(record[key])


def _tag(prompt: Prompt) -> str:
    return "all" if prompt.spec is None else prompt.spec.tag


def _fill_prompt(wording: str, prompt: Prompt) -> str:
    metadata = "null" if prompt.spec is None else json.dumps(prompt.spec.to_metadata())
    return _fill(wording, prompt=prompt.text, metadata=metadata)


def _fill(wording: str, **texts: str) -> str:
    """The wording with its places filled in one pass: what is filled in is never searched for places."""
    return PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), wording)


def _check_places(wording: str, names: Iterable[str]) -> None:
    if not any(f"{{{name}}}" in wording for name in names):
        marks = " or ".join(f"{{{name}}}" for name in names)
        raise ConfigError(f"the judge's wording has no {marks}; put it where that text belongs")


def _form_name(kind: str, wording: str) -> str:
    return f"{kind}-{hashlib.sha256(wording.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
