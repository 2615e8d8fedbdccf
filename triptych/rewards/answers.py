"""Recorded words of a judge, read back: yes/no answers in order (TIIF), and one strict verdict (GenEval++).

A reply that cannot be read is None: the verdict is missing, which is not the same as wrong. TIIF's own reading comes
first; the looser ones only rescue replies that it cannot read, and never one whose number of answers is off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

ANSWER = re.compile(r"(yes|no)\b", re.IGNORECASE)  # at the start of a line
MARK = re.compile(r"\W+|(?:question|answer|ans|q|a)(?![a-z])|(\d+)(?!\w)", re.IGNORECASE)  # what may stand before it
MARKS = 8  # pieces before an answer; more is prose
KEYS = ("correct", "verdict", "answer")  # of a strict verdict
FIELD = re.compile(
    rf"\b(?:{'|'.join(KEYS)})\b[\"'*]*\s*(?:[:=]|\bis\b)\s*[\"'*]*"
    r"(-?\d+(?:\.\d+)?|yes|no|true|false|correct|incorrect|wrong)\b",
    re.IGNORECASE,
)
TRUTHS = {
    **dict.fromkeys(("1", "1.0", "yes", "true", "correct"), True),
    **dict.fromkeys(("0", "0.0", "no", "false", "incorrect", "wrong"), False),
}
OBJECTS = 100  # braces of a reply that are tried as JSON
LONGEST = 1_000_000  # characters of a reply; beyond this it is no answer


def read_answers(reply: Any, asked: int) -> tuple[bool, ...] | None:
    """One answer per question, in order, or None if the reply does not hold exactly `asked` of them.

    TIIF's own reading: every line that starts with "yes" or "no" is an answer, and other lines are reasons. Only where
    that does not give `asked` answers: lines behind a number, a bullet, markdown or "Answer:"; or a bare list of words.
    """
    if not isinstance(reply, str) or len(reply) > LONGEST:
        return None
    lines = [line.strip() for line in _spoken(reply).split("\n")]
    for read in (_plain, _marked, _bare):
        answers = read(lines)
        if answers and len(answers) == asked:
            return tuple(answers)
    return None


def read_verdict(reply: Any) -> bool | None:
    """A strict verdict, or None if there is none, or two that differ.

    Looked for in this order: a JSON object with "correct" (or "verdict", "answer"); the same in words, "Correct: 1";
    a first or last line that is a word such as "yes", "1" or "incorrect" and nothing else.
    """
    if not isinstance(reply, str) or len(reply) > LONGEST:
        return None
    spoken = _spoken(reply)
    named = [_truth(record[key]) for record in _objects(spoken) for key in KEYS if key in record]
    named = named or [_truth(value) for value in FIELD.findall(spoken)]
    if named:
        return named[0] if len(set(named)) == 1 else None
    lines = [line.strip(" \t\r*_`\"'.!()[]") for line in spoken.split("\n") if line.strip()]
    known = {_truth(line) for line in (lines[0], lines[-1])} - {None} if lines else set()
    return known.pop() if len(known) == 1 else None


def _spoken(reply: str) -> str:
    """The reply without the thinking before it."""
    return reply.rsplit("</think>", 1)[-1]


def _plain(lines: list[str]) -> list[bool]:
    return [_is_yes(found[1]) for line in lines if (found := ANSWER.match(line))]


def _marked(lines: list[str]) -> list[bool]:
    """Answers behind a number or another mark; none at all if the numbers do not count up from one."""
    answers, numbers = [], []
    for line in lines:
        start, number = _lead(line)
        if found := ANSWER.match(line, start):
            answers.append(_is_yes(found[1]))
            numbers += [] if number is None else [number]
    return answers if not numbers or numbers == list(range(1, len(answers) + 1)) else []


def _lead(line: str) -> tuple[int, int | None]:
    """Where the words of a line begin, and the first number before them."""
    start, number = 0, None
    for _ in range(MARKS):
        mark = MARK.match(line, start)
        if mark is None:
            break
        start = mark.end()
        if number is None and mark[1] and len(mark[1]) < 4:
            number = int(mark[1])
    return start, number


def _bare(lines: list[str]) -> list[bool]:
    """Answers of a reply that holds nothing else: "yes, no, yes", or a JSON array of such words."""
    words = [word.lower() for line in lines for word in re.findall(r"\w+", line)]
    words = [word for word in words if word != "json"]  # the name of a fenced block
    return [_is_yes(word) for word in words] if set(words) <= {"yes", "no"} else []


def _is_yes(word: str) -> bool:
    return word.lower() == "yes"


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, those inside others left out."""
    decoder, start = json.JSONDecoder(), text.find("{")
    for _ in range(OBJECTS):
        if start < 0:
            return
        try:
            found, end = decoder.raw_decode(text, start)
            yield found
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _truth(value: Any) -> bool | None:
    return TRUTHS.get(str(value).lower()) if isinstance(value, bool | int | float | str) else None
