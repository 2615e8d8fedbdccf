"""What a judge's words say: a strict verdict, yes or no, or one answer for each question; or nothing that counts.

A verdict counts only where it cannot be anything else: in JSON, in an answer tag or a box, or as a sentence that is
nothing but a verdict. A phrase inside prose ("the rule says correct: 0 if ...") is none. Thoughts, refusals and cut
replies hold no verdict: what cannot be read is missing, which is not the same as a 0.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

VERDICT_KEYS = ("correct", "verdict", "answer")  # of a strict verdict in JSON
TRUTH_WORDS = {
    # 1.0 and 0.0: a number in JSON may be a float.
    **dict.fromkeys(("1", "1.0", "yes", "true", "correct"), True),
    **dict.fromkeys(("0", "0.0", "no", "false", "incorrect", "wrong"), False),
}
MAX_REPLY_CHARACTERS = 1_000_000  # beyond this it is no answer
MAX_JSON_OBJECTS = 100  # opening braces of a reply at which JSON is tried
MAX_LINE_MARKS = 8  # pieces before an answer; more is prose
REFUSAL_CHARACTERS = 200  # a refusal says so at once

# Reasoning models open a thought with one of these and answer behind its end. Some servers take the opening tag away.
_THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL's
    ("<|channel|>analysis", "<|channel|>final"),  # gpt-oss's
)
# Typographic quotes and full-width marks, as some models write them, to what parsers look for.
_PLAIN_MARKS = str.maketrans("\u201c\u201d\u201e\u2018\u2019\uff1a\uff0c\uff1b\uff01\uff08\uff09", '"""\'\':,;!()')

_BEFORE_REFUSAL = (
    r"\W*(?:no\b[,.;!]?\s+)?(?:but\s+)?(?:i(?:'?m| am)\s+)?(?:very\s+|so\s+)?(?:sorry|afraid)?[\s,.;:]*(?:but\s+)?"
)
_REFUSAL = re.compile(
    rf"{_BEFORE_REFUSAL}(?:"
    r"i\s*(?:can\s?no\s?t|can't|could\s?n[o']t|won't|will not|do not feel|don't feel)\s+\w+"
    r"|i(?:'m| am)\s+(?:not able|unable|not allowed|not permitted|just an ai|an ai)\b"
    r"|as an ai\b|unable to (?:assist|help|comply|process|view|see|analy|provide|determine)"
    r"|(?:this|the|your) (?:request|content|image|picture) (?:violates|may violate|was (?:blocked|flagged))"
    r")"
    r"|\W*(?:no\b[,.;!]?\s+)?i(?:'m| am)\s+(?:very |so )?sorry\b"
    # The same in other languages that judges answer in.
    r"|\W*(?:lo siento|je suis d\u00e9sol\u00e9|d\u00e9sol\u00e9|es tut mir leid|mi dispiace|desculpe|"
    r"\u5f88?\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u7533\u3057\u8a33|\u7121\u6cd5|\u65e0\u6cd5|\u8fdb\u884c\u4e0d\u4e86)",
    re.IGNORECASE,
)

_TAGS = re.compile(
    r"<(answer|verdict|final_answer|result)>(.*?)</\1>"
    r"|<\|begin_of_box\|>(.*?)<\|end_of_box\|>"
    r"|\\boxed\{\s*(?:\\text\{)?([^{}]*)\}",
    re.IGNORECASE | re.DOTALL,
)
_LABEL = re.compile(
    r"(?:(?:and |so |thus |therefore,? |hence,? )?(?:my |the |your )?(?:final |overall |strict )?"
    r"(?:answer|verdict|judg(?:e)?ment|decision|result|conclusion|correct|correctness)"
    r"(?:\s*(?:[:=]|-|is(?: that)?(?: it is)?|would be))?"
    r"|i (?:would |must )?(?:say|answer|conclude)(?: that)?(?: it is)?:?|it is|it's)",
    re.IGNORECASE,
)
_MARKUP = " \t\r*_`\"'~#>|"  # around words in markdown
_SENTENCE_END = re.compile(r"(?<=[.!?])[\s*_\"'`]+|\n+")
_DOUBT = re.compile(r"\b(?:wait|actually|correction|on second thought|however|hmm|let me re)", re.IGNORECASE)

_YES_NO_LINE = re.compile(r"(yes|no)\b", re.IGNORECASE)  # at the start of a line
_LINE_MARK = re.compile(
    r"\(?([a-z])[).:]|\W+|(?:question|answer|ans|q|a)(?![a-z])|(\d+)(?!\w)", re.IGNORECASE
)  # before an answer
_ECHO = re.compile(r".*\?\W*\b(yes|no)\b\W*$", re.IGNORECASE)  # "1. Is there a cat? Yes."
# A last line that sums up. Such a line is a reason or a remark, whatever word it begins with.
_REMARK = re.compile(
    r"no (?:others?|additional|further|more|extra|remaining|issues?|problems?|errors?|discrepanc\w+|text|watermark)\b",
    re.IGNORECASE,
)


def final_text(reply: str) -> str | None:
    """The reply behind a reasoning model's thoughts, with plain quotes and marks; None where a thought is not closed.

    >>> final_text("<think>no cat</think>Yes.")
    'Yes.'
    """
    lowered = reply.lower()
    text = reply
    for opening, closing in _THOUGHTS:
        end = lowered.rfind(closing.lower())
        if end < lowered.rfind(opening.lower()):
            return None
        if end >= 0:
            text, lowered = reply[end + len(closing) :], lowered[end + len(closing) :]
            reply = text
    return text.translate(_PLAIN_MARKS).strip()


def is_refusal(text: str) -> bool:
    """Whether a text begins by saying that it will not answer, as "No, I'm sorry, I can't assist with that" does."""
    return _REFUSAL.match(text.translate(_PLAIN_MARKS)[:REFUSAL_CHARACTERS].lower()) is not None


def read_verdict(reply: Any) -> bool | None:
    """A strict verdict, or None if there is none, or two that differ.

    Looked for in this order: JSON with "correct" (or "verdict", "answer"); an answer tag or a box; a first or last
    line, or a line behind a heading, that is a verdict and nothing else ("Yes", "Verdict: incorrect"); a bare "Yes." or
    "No." before its reasons, unless the reasons take it back or the reply is a refusal.
    """
    text = _readable(reply)
    if text is None:
        return None
    find_in_prose = () if is_refusal(text) else (_line_verdicts, _leading_verdicts)
    for find in (_json_verdicts, _tagged_verdicts, *find_in_prose):
        verdicts = find(text)
        if verdicts:
            return verdicts[0] if len(set(verdicts)) == 1 else None
    return None


def read_yes_or_no(reply: Any) -> bool | None:
    """The answer to one question: its first word, or what `read_verdict` finds; None if there is neither."""
    text = _readable(reply)
    if text is None or is_refusal(text):
        return None
    # "Yes, there is" is a whole answer here, as one word was asked for; "no reason to doubt" is not.
    if match := re.match(rf"[{re.escape(_MARKUP)}]*(yes|no)\b(?=[\W_]*$|[*_\"'`]*[,.:;!\u2014-])", text, re.IGNORECASE):
        return match[1].lower() == "yes"
    return read_verdict(text)


def read_answers(reply: Any, count: int) -> tuple[bool, ...] | None:
    """One answer per question, in order, or None if the reply does not hold exactly `count` of them.

    TIIF's own reading: every line that starts with "yes" or "no" is an answer, and other lines are reasons; a closing
    remark ("No other objects are visible.") is none. Only where that does not give `count` answers: lines behind a
    number, a letter, a bullet, markdown or "Answer:"; the questions with an answer behind each; JSON; or a bare list.
    """
    text = _readable(reply)
    if text is None:
        return None
    lines = [line.strip() for line in text.split("\n")]
    if is_refusal(text) and count == 1:  # a first line "No, I'm sorry, I can't" answers nothing
        return None
    # TIIF's own reading first, by which published replies give their published counts (docs/tiif.md).
    readers: tuple[Callable[[], list[bool]], ...] = (
        lambda: _plain(_without_remark(lines)),
        lambda: _marked(_without_remark(lines)),
        lambda: _echoed(lines),
        lambda: _json_answers(text),
        lambda: _bare(lines),
    )
    for read in readers:
        answers = read()
        if answers and len(answers) == count:
            return tuple(answers)
    return None


def reason_of(answer: str, longest: int = 200) -> str:
    """The "reason" of the first JSON object that has one; else how the answer begins, in `longest` characters."""
    for record, _ in _json_objects(answer.translate(_PLAIN_MARKS)):
        if isinstance(record, dict) and isinstance(record.get("reason"), str):
            return " ".join(record["reason"].split())
    return " ".join(answer[:longest].split())


def _readable(reply: Any) -> str | None:
    return final_text(reply) if isinstance(reply, str) and len(reply) <= MAX_REPLY_CHARACTERS else None


def _truth(value: Any) -> bool | None:
    return TRUTH_WORDS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_verdicts(text: str) -> list[bool | None]:
    """The verdicts of the JSON objects; [None] where one is broken or contradicts itself: then nothing else counts."""
    verdicts: list[bool | None] = []
    for record, source in _json_objects(text):
        if record is None:
            # Cut short, or no JSON at all: no verdict if it meant to hold one.
            if re.search(rf"[\"'](?:{'|'.join(VERDICT_KEYS)})[\"']\s*:", source, re.IGNORECASE):
                verdicts.append(None)
            continue
        found = [_truth(value) for key, value in _pairs(record) if key.lower() in VERDICT_KEYS]
        if len(found) > 1 and len(set(found)) > 1:
            return [None]
        verdicts += found
    return verdicts


def _pairs(record: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) pairs of an object: its own, and where it has no verdict those of the objects inside it."""
    if isinstance(record, _Object):
        own = [(key, value) for key, value in record.pairs if key.lower() in VERDICT_KEYS]
        if own:
            yield from own
        else:
            for _, value in record.pairs:
                yield from _pairs(value)
    elif isinstance(record, list):
        for value in record:
            yield from _pairs(value)


class _Object(dict):
    """A JSON object that remembers every pair, a key that stands twice too."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.pairs = pairs


def _json_objects(text: str) -> Iterator[tuple[_Object | None, str]]:
    """The objects in a text, those inside others left out, each with its source; None where one cannot be read.

    Python's own spelling ('correct': True) is read too, since models trained on code write it.
    """
    decoder, start = json.JSONDecoder(object_pairs_hook=_Object), text.find("{")
    for _ in range(MAX_JSON_OBJECTS):
        if start < 0:
            return
        try:
            record, end = decoder.raw_decode(text, start)
            yield record, text[start:end]
        except (ValueError, RecursionError):
            record, end = _python_object(text, start)
            if record is not None:
                yield record, text[start:end]
            else:
                end = start + 1
                if text.count("{", start) == 1:  # the innermost: what begins here never becomes an object
                    yield None, text[start:]
        start = text.find("{", end)


def _python_object(text: str, start: int) -> tuple[_Object | None, int]:
    end = text.find("}", start) + 1
    source = text[start:end]
    if not end or len(source) > 10_000:  # a verdict has a few hundred; literals are parsed in memory
        return None, start
    try:
        tree = ast.parse(source, mode="eval").body
        assert isinstance(tree, ast.Dict)
        pairs = [
            (str(ast.literal_eval(key)), ast.literal_eval(value))
            for key, value in zip(tree.keys, tree.values, strict=True)
            if key is not None
        ]
    except (ValueError, SyntaxError, AssertionError, TypeError, MemoryError, RecursionError):
        return None, start
    return _Object(pairs), end


def _json_answers(text: str) -> list[bool]:
    """Answers in JSON: {"1": "yes", ...}, {"answers": [...]}, or objects that have an "answer" each."""
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    if start < 0:
        return []
    try:
        value, _ = json.JSONDecoder(object_pairs_hook=_Object).raw_decode(text, start)
    except (ValueError, RecursionError):
        value = [record for record, _ in _json_objects(text)]
    while isinstance(value, _Object) and len(value.pairs) == 1 and isinstance(value.pairs[0][1], dict | list):
        value = value.pairs[0][1]  # {"answers": ...}
    if isinstance(value, _Object):
        numbers = [re.sub(r"\D", "", key) for key, _ in value.pairs]
        if numbers != [str(number) for number in range(1, len(numbers) + 1)]:
            return []  # keys that do not count up say of no answer which question it is for
        value = [item for _, item in value.pairs]
    answers = [_one_answer(item) for item in value] if isinstance(value, list) else []
    return [] if None in answers else [bool(answer) for answer in answers]


def _one_answer(item: Any) -> bool | None:
    if isinstance(item, _Object):
        found = [value for key, value in item.pairs if key.lower() == "answer"]
        item = found[0] if len(found) == 1 else None
    if isinstance(item, bool):
        return item
    match = re.match(r"\W*(yes|no)\b", item, re.IGNORECASE) if isinstance(item, str) else None
    return None if match is None else match[1].lower() == "yes"


# --- sentences --------------------------------------------------------------------------------------------------------


def _tagged_verdicts(text: str) -> list[bool | None]:
    inside = [next(group for group in match.groups()[1:] if group is not None) for match in _TAGS.finditer(text)]
    return [_bare_truth(words) for words in inside]


def _line_verdicts(text: str) -> list[bool | None]:
    """Of the first and the last line, and of lines behind a heading, those that are a verdict and nothing else."""
    lines = [line for line in text.split("\n") if line.strip(_MARKUP + "-=")]
    if not lines:
        return []
    behind = [line for before, line in itertools.pairwise(lines) if _is_heading(before)]
    labeled = [line for line in lines if _LABEL.match(line.strip(_MARKUP)) and not _is_heading(line)]
    truths = [_bare_truth(line) for line in (lines[0], *behind, *labeled, lines[-1])]
    return [truth for truth in truths if truth is not None]


def _leading_verdicts(text: str) -> list[bool | None]:
    """A first sentence that is a bare yes or no, unless what follows is doubt or another verdict."""
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip(_MARKUP)]
    first = _bare_truth(sentences[0]) if len(sentences) > 1 else None
    # A number that begins a text counts things as often as it is a verdict.
    if first is None or sentences[0].strip(_MARKUP + ".")[:1].isdigit():
        return []
    rest = sentences[1:]
    later = [truth for sentence in rest if (truth := _bare_truth(sentence)) is not None]
    return [None] if _DOUBT.search(" ".join(rest)) else [first, *later]


def _is_heading(line: str) -> bool:
    bare = line.strip(_MARKUP + ":.")
    return bool(_LABEL.fullmatch(bare)) and _truth(bare) is None


def _bare_truth(line: str) -> bool | None:
    """The truth of a line that is a verdict and nothing else, with or without a label: "**Answer:** no."."""
    bare = line.strip(_MARKUP + ".!()[]-")
    if (truth := _truth(bare)) is not None:
        return truth
    label = _LABEL.match(bare)
    return None if label is None else _truth(bare[label.end() :].strip(_MARKUP + ":=.!()[]-"))


# --- lists ------------------------------------------------------------------------------------------------------------


def _without_remark(lines: list[str]) -> list[str]:
    """The lines without a last one that sums up and answers nothing: set apart by a blank line, or in another style.

    Some judges write every answer as "no text is visible", so that the words alone decide nothing.
    """
    filled = [line for line in lines if line]
    if not filled or not _REMARK.match(filled[-1].lstrip(_MARKUP)):
        return filled
    last = len(lines) - 1 - lines[::-1].index(filled[-1])
    alike = any(re.match(r"\W*(?:yes|no)\s+\w", line, re.IGNORECASE) for line in filled[:-1])
    return filled if alike and last and lines[last - 1] else filled[:-1]


def _plain(lines: list[str]) -> list[bool]:
    return [_is_yes(match[1]) for line in lines if (match := _YES_NO_LINE.match(line))]


def _marked(lines: list[str]) -> list[bool]:
    """Answers behind a number or another mark; none at all if the numbers do not count up from one."""
    answers, numbers = [], []
    for line in lines:
        start, number = _lead(line)
        if match := _YES_NO_LINE.match(line, start):
            answers.append(_is_yes(match[1]))
            numbers += [] if number is None else [number]
    return answers if not numbers or numbers == list(range(1, len(answers) + 1)) else []


def _lead(line: str) -> tuple[int, int | None]:
    """Where the words of a line begin, and the first number or letter (a is 1) before them."""
    start, number = 0, None
    for _ in range(MAX_LINE_MARKS):
        mark = _LINE_MARK.match(line, start)
        if mark is None:
            break
        start = mark.end()
        if number is None and mark[1]:
            number = ord(mark[1].lower()) - ord("a") + 1
        elif number is None and mark[2] and len(mark[2]) < 4:  # a longer number counts no questions
            number = int(mark[2])
    return start, number


def _echoed(lines: list[str]) -> list[bool]:
    """Answers behind the questions that the reply repeats: none if a line repeats one without an answer."""
    asked = [line for line in lines if "?" in line]
    matches = [_ECHO.match(line) for line in asked]
    if None in matches:
        return []
    numbers = [number for line in asked if (number := _lead(line)[1]) is not None]
    answers = [_is_yes(match[1]) for match in matches if match]
    return answers if not numbers or numbers == list(range(1, len(answers) + 1)) else []


def _bare(lines: list[str]) -> list[bool]:
    """Answers of a reply that holds nothing else: "yes, no, yes", or a JSON array of such words."""
    words = [word.lower() for line in lines for word in re.findall(r"\w+", line)]
    words = [word for word in words if word != "json"]  # the name of a fenced block
    return [_is_yes(word) for word in words] if set(words) <= {"yes", "no"} else []


def _is_yes(word: str) -> bool:
    return word.lower() == "yes"
