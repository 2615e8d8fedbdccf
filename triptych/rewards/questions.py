"""What a vision-language judge is asked, and how its answer is read: each wording beside its parser.

A form is a value: `Strict` asks for one verdict, 0 or 1, on the whole picture (GenEval++), `Checklist` puts a list of
yes/no questions in one go (TIIF), `YesNo` asks one question and takes the likelihood of "yes". The wordings are our
own. For numbers that compare with published ones, the benchmark's official wording is read from the user's own copy
(`read_wording`), where `{prompt}`, `{metadata}` and `{questions}` mark the places to fill in.
An answer that cannot be read is a JudgeError: the verdict is missing, which is not the same as a 0.
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
from triptych.rewards.answers import read_answers, read_verdict
from triptych.rewards.replies import Reply
from triptych.trace import Prompt, Verdict

STRICT = """Someone was asked for this picture:

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

CHECKLIST = """Answer these questions about the picture, each by what you can see in it and nothing else.

{questions}

Write one line for each question, in the same order and without numbers. Begin each line with yes or no, then a comma,
then a few words about what you see. Write no other lines."""

FITS = """Does this picture show what was asked for, with nothing missing, miscounted, misplaced or of another colour?

Asked for: "{prompt}"

Answer with one word, yes or no."""

QUESTION = """{prompt}

Look at the picture and answer with one word, yes or no."""

PLACE = re.compile(r"\{(prompt|metadata|questions)\}")
TRUTHS = {"yes": True, "no": False}
LENGTHS = ("short", "long")
OBJECTS = 20  # braces of an answer that are tried as JSON
LONGEST_REASON = 200  # characters, where the answer names no reason
LONGEST_WORDING = 100_000  # characters


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

    def read(self, prompt: Prompt, reply: Reply) -> Verdict:
        """The verdict in an answer. JudgeError if it holds none."""
        ...

    def record(self, prompt: Prompt, reply: Reply, verdict: Verdict | None) -> dict[str, Any]:
        """One line of a recording, as `triptych score` reads it; `verdict` is None where it is missing."""
        ...


@dataclass(frozen=True)
class Strict:
    """GenEval++'s kind: one verdict on the whole picture, right or wrong, with the reason."""

    wording: str = STRICT
    tokens: int = 512
    likelihoods: bool = False

    def __post_init__(self) -> None:
        _check_places(self.wording, ("prompt", "metadata"))

    @property
    def name(self) -> str:
        return _named("strict", self.wording)

    def ask(self, prompt: Prompt) -> str:
        return _about(self.wording, prompt)

    def read(self, prompt: Prompt, reply: Reply) -> Verdict:
        correct = read_verdict(reply.said)
        if correct is None:
            raise _unread('a JSON object with "correct": 0 or 1', reply)
        reason = (_reason(reply.said),)
        return Verdict(1.0, passed=reason) if correct else Verdict(0.0, failed=reason)

    def record(self, prompt: Prompt, reply: Reply, verdict: Verdict | None) -> dict[str, Any]:
        correct = None if verdict is None else int(verdict.score)
        return {"tag": _tag(prompt), "prompt": prompt.text, "reply": reply.text, "correct": correct}


@dataclass(frozen=True)
class YesNo:
    """One question; the score is the probability of "yes" where the server tells likelihoods, else 1 or 0.

    With the wording `FITS` the question is whether the picture fits the prompt; with `QUESTION` the prompt's text is
    itself the question.
    """

    wording: str = FITS
    tokens: int = 16
    likelihoods: bool = True

    def __post_init__(self) -> None:
        _check_places(self.wording, ("prompt", "metadata"))

    @property
    def name(self) -> str:
        return _named("yesno", self.wording)

    def ask(self, prompt: Prompt) -> str:
        return _about(self.wording, prompt)

    def read(self, prompt: Prompt, reply: Reply) -> Verdict:
        likely = probability_of_yes(reply)
        score = float(yes_or_no(reply)) if likely is None else likely
        return Verdict(score, passed=(prompt.text,)) if score > 0.5 else Verdict(score, failed=(prompt.text,))

    def record(self, prompt: Prompt, reply: Reply, verdict: Verdict | None) -> dict[str, Any]:
        score = None if verdict is None else verdict.score
        return {"tag": _tag(prompt), "prompt": prompt.text, "reply": reply.text, "yes": score}


@dataclass(frozen=True)
class Checks:
    """The yes/no questions about one picture, and the right answers."""

    questions: tuple[str, ...]
    answers: tuple[bool, ...]
    attribute: str
    length: str  # short or long: which of the two prompts was drawn
    index: str = ""

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Checks:
        """Read a line in the form of a recording, or of TIIF's own prompts with `length` added.

        Raises KeyError, TypeError or ValueError where a field is absent, or there is not one answer per question.
        """
        theirs = "yn_question_list" in record
        keys = ("yn_question_list", "yn_answer_list") if theirs else ("questions", "gt_answers")
        questions, answers = (_texts(record, key) for key in keys)
        truths = [TRUTHS.get(answer.strip().lower()) for answer in answers]
        if not questions or len(questions) != len(truths) or None in truths:
            raise ValueError(f"{len(questions)} questions and the answers {list(answers)}; expected yes or no for each")
        if record["length"] not in LENGTHS:
            raise ValueError(f"length is {record['length']!r}; expected short or long")
        attribute, index = record["type" if theirs else "attribute"], record.get("index", "")
        if not isinstance(attribute, str) or not attribute:
            raise TypeError("the attribute is no text")
        return Checks(questions, tuple(map(bool, truths)), attribute, record["length"], str(index))


@dataclass(frozen=True, eq=False)
class Checklist:
    """TIIF's kind: all questions about a picture in one go; the score is the share answered as they should be.

    `of` finds a prompt's questions by its (source, text): TIIF asks the same text in its short and its long half.
    """

    of: Mapping[tuple[str, str], Checks] = field(repr=False)
    wording: str = CHECKLIST
    tokens: int = 1024
    likelihoods: bool = False

    def __post_init__(self) -> None:
        _check_places(self.wording, ("questions",))

    @property
    def name(self) -> str:
        return _named("checklist", self.wording)

    def ask(self, prompt: Prompt) -> str:
        questions = self._checks(prompt).questions
        listed = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(questions, 1))
        return _fill(self.wording, prompt=prompt.text, questions=listed)

    def read(self, prompt: Prompt, reply: Reply) -> Verdict:
        checks = self._checks(prompt)
        answers = read_answers(reply.said, len(checks.questions))
        if answers is None:
            raise _unread(f"{len(checks.questions)} answers, one a line", reply)
        right = [answer == truth for answer, truth in zip(answers, checks.answers, strict=True)]
        told = list(zip(checks.questions, right, strict=True))
        passed, failed = (tuple(text for text, held in told if held is wanted) for wanted in (True, False))
        return Verdict(len(passed) / len(right), passed, failed)

    def record(self, prompt: Prompt, reply: Reply, verdict: Verdict | None) -> dict[str, Any]:
        checks = self._checks(prompt)
        return {
            "attribute": checks.attribute,
            "length": checks.length,
            "index": checks.index or prompt.text,
            "prompt": prompt.text,
            "questions": list(checks.questions),
            "gt_answers": ["yes" if answer else "no" for answer in checks.answers],
            "model_output": reply.said,
        }

    def _checks(self, prompt: Prompt) -> Checks:
        try:
            return self.of[prompt.source, prompt.text]
        except KeyError:
            raise JudgeError(f"no questions are known about {prompt.text!r} ({prompt.source or 'no source'})") from None


def probability_of_yes(reply: Reply) -> float | None:
    """P(yes) / (P(yes) + P(no)) where the answer's first word is chosen; None where the server tells no likelihoods.

    All spellings of either word count: " Yes", "YES", "yes,". Blank and punctuation tokens before it are stepped over.
    """
    for place in reply.top:
        words = [(_bare(token), value) for token, value in place]
        if words and not words[0][0]:
            continue
        mass = {word: sum(math.exp(value) for other, value in words if other == word) for word in ("yes", "no")}
        total = mass["yes"] + mass["no"]
        return mass["yes"] / total if words and words[0][0] in mass and total > 0 else None
    return None


def yes_or_no(reply: Reply) -> bool:
    """The answer in a text: its first word, or the only one of the two words in it. JudgeError if there is neither."""
    words = re.findall(r"\w+", reply.said.lower())
    given = {word for word in words if word in ("yes", "no")}
    if words and words[0] in given:
        return words[0] == "yes"
    if len(given) != 1:
        raise _unread("yes or no", reply)
    return given == {"yes"}


def read_wording(path: Path) -> str:
    """A wording from the user's copy of a benchmark: a UTF-8 text file. Raises ConfigError if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            wording = file.read(LONGEST_WORDING + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; expected a text file with the judge's wording") from error
    if len(wording) > LONGEST_WORDING:
        raise ConfigError(f"{path} is longer than {LONGEST_WORDING:,} characters; expected a judge's wording")
    return wording


def _reason(said: str) -> str:
    """The "reason" of the first JSON object that has one; else how the answer begins."""
    for start in [match.start() for match in re.finditer(r"\{", said)][:OBJECTS]:
        try:
            found, _ = json.JSONDecoder().raw_decode(said, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found.get("reason"), str):
            return " ".join(found["reason"].split())
    return " ".join(said[:LONGEST_REASON].split())


def _unread(wanted: str, reply: Reply) -> JudgeError:
    why = {"length": " (cut at the longest answer)", "content_filter": " (withheld by the server's filter)"}
    start = reply.said[:60]
    return JudgeError(f"expected {wanted}, found {start!r}{why.get(reply.finish, '')}; the verdict is missing")


def _bare(token: str) -> str:
    """A token as a word: no space, markup or punctuation around it, lower case."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", token).lower()


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if not isinstance(record[key], list) or not all(isinstance(text, str) for text in record[key]):
        raise TypeError(f"{key} is no list of texts")
    return tuple(record[key])


def _tag(prompt: Prompt) -> str:
    return "all" if prompt.spec is None else prompt.spec.tag


def _about(wording: str, prompt: Prompt) -> str:
    metadata = "null" if prompt.spec is None else json.dumps(prompt.spec.to_metadata())
    return _fill(wording, prompt=prompt.text, metadata=metadata)


def _fill(wording: str, **texts: str) -> str:
    """The wording with its places filled in one pass: what is filled in is never searched for places."""
    return PLACE.sub(lambda match: texts.get(match[1], match[0]), wording)


def _check_places(wording: str, names: Iterable[str]) -> None:
    if not any(f"{{{name}}}" in wording for name in names):
        marks = " or ".join(f"{{{name}}}" for name in names)
        raise ConfigError(f"the judge's wording has no {marks}; put it where that text belongs")


def _named(kind: str, wording: str) -> str:
    return f"{kind}-{hashlib.sha256(wording.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
