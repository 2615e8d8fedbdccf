"""Judges' words: TIIF's published replies, every layout a judge may choose, and replies that hold no answer."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from triptych.rewards.vlm_prompts import MAX_REPLY_CHARACTERS, read_answers, read_verdict

answers = some.lists(some.booleans(), min_size=1, max_size=12)
reasons = some.sampled_from(
    ("", ", there is one", " There are none.", ": a cat, not a dog", "\nA line of its own.", "\n")
)
PLAIN = "{word}{why}"
LAYOUTS = (
    *(PLAIN, "{n}. {word}{why}", "{n}) **{word}**{why}", "- {word}{why}", "**{word}**{why}", "Q{n}: {word}{why}"),
    *("Answer {n}: {word}{why}", "**{n}.** {word}{why}", "> {word}{why}", "Answer: {word}{why}", "  {word}{why}  "),
)


def written(truths: list[bool], layout: str, why: list[str], words: tuple[str, str] = ("no", "yes")) -> str:
    lines = [
        layout.format(word=words[truth], n=number, why=why[number % len(why)]) for number, truth in enumerate(truths, 1)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["GPT-4o__Janus-Pro", "QwenVL__sd35"])
def test_published_replies_are_read_as_published(shared: Path, name: str):
    with gzip.open(shared / "benchmarks" / "tiif_replies" / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            reply = json.loads(line)
            expected = tuple(answer == "yes" for answer in reply["model_pred"])
            assert read_answers(reply["model_output"], len(reply["questions"])) == expected


@given(answers, some.sampled_from(LAYOUTS), some.lists(reasons, min_size=1, max_size=4), some.booleans())
def test_any_layout_is_read(truths, layout, why, shout):
    reply = written(truths, layout, why, ("NO", "Yes") if shout else ("no", "yes"))
    assert read_answers(reply, len(truths)) == tuple(truths)
    assert read_answers(f"<think>\nno\nyes, it is\n</think>\n\n{reply}", len(truths)) == tuple(truths)


@given(answers, some.sampled_from(LAYOUTS), some.lists(reasons, min_size=1, max_size=4))
def test_a_lost_or_added_answer_is_missing(truths, layout, why):
    reply = written(truths, layout, why)
    assert read_answers(reply, len(truths) + 1) is None
    assert read_answers(reply, len(truths) - 1) is None
    assert read_answers(f"{written(truths, PLAIN, why)}\nyes, and more", len(truths)) is None


@given(answers, some.sampled_from((", ", " ", "; ", "\n\n", ' ", "')))
def test_a_bare_list_is_read(truths, between):
    words = [("no", "yes")[truth] for truth in truths]
    assert read_answers(between.join(words), len(truths)) == tuple(truths)
    assert read_answers(f"```json\n{json.dumps(words)}\n```", len(truths)) == tuple(truths)


@pytest.mark.parametrize(
    "reply",
    ["", " \n ", "I cannot answer that.", "1. yes\n3. no", "2. yes\n1. no", "yes", "yes\nno\nyes", "nothing\nyesterday",
     "maybe\nno", None, 3, ["yes", "no"], "yes" * MAX_REPLY_CHARACTERS, '{"1": "yes"}'],
)  # fmt: skip
def test_these_are_not_two_answers(reply: object):
    assert read_answers(reply, 2) is None


@given(some.text(max_size=60), some.integers(0, 5))
def test_any_text_is_read_or_missing(text, asked):
    found = read_answers(text, asked)
    assert found is None or len(found) == asked
    assert read_verdict(text) in (True, False, None)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"correct": 1, "reason": "all there"}', True),
        ('{"reason": "two cats; correct: 1 would be three", "correct": 0}', False),
        ('```json\n{"correct": true}\n```', True),
        ('Looking closely: two cats.\n{"correct": "no"}', False),
        ('{"correct": 1.0}', True),
        ("Correct: 0", False),
        ("The answer is **yes**.", True),
        ("verdict = incorrect", False),
        ("Yes", True),
        ("**No**\nThere are three cats.", False),
        ("There are three cats.\n\n0", False),
        ("<think>correct: 0</think>1", True),
        ('{"correct": -1}', None),
        ('{"correct": 1} or {"correct": 0}', None),
        ('{"correct": 0.5}', None),
        ('{"correct": 1', True),  # cut off after the verdict
        ('{"reason": "cut', None),
        ("yes\nno", None),
        ("", None),
        ("I think that it mostly shows three cats", None),
        ("{" * 100_000, None),
        ('{"a":' * 100_000, None),
        (None, None),
    ],
)
def test_strict_verdicts(reply: object, verdict: bool | None):
    assert read_verdict(reply) is verdict
