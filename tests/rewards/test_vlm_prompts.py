"""What a judge is asked and how it is read: known answers, laws for any text, and recordings that scores replay."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from http_judge import Answer, Request, Server, says, status
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ConfigError, JudgeError
from triptych.eval import recorded
from triptych.rewards.judge_reply import JudgeReply
from triptych.rewards.vlm import Vlm
from triptych.rewards.vlm_client import RetryPolicy
from triptych.rewards.vlm_prompts import (
    FIT_WORDING,
    STRICT_WORDING,
    Checklist,
    Checks,
    Strict,
    YesNo,
    probability_of_yes,
    read_wording,
)
from triptych.rewards.vlm_replies import MAX_REPLY_CHARACTERS, read_answers, read_verdict, read_yes_or_no
from triptych.trace import Drawing, Item, Prompt, Spec, Trace, Turn

CLOCKS = Prompt("two clocks", Spec("counting", (Item("clock", 2),)))
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def checklist(count: int, prompt: Prompt = CLOCKS) -> Checklist:
    checks = Checks(tuple(f"Is it {index}?" for index in range(count)), (True,) * count, "numeracy", "short")
    return Checklist({(prompt.source, prompt.text): checks})


answers = st.lists(st.booleans(), min_size=1, max_size=12)
reasons = st.sampled_from(
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


# --- strict verdicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, score, reason",
    [
        ('{"reason": "two clocks", "correct": 1}', 1.0, "two clocks"),
        ('```json\n{"correct": 0, "reason": "three\\n clocks"}\n```', 0.0, "three clocks"),
        ('<think>{"correct": 1}</think> {"correct": false, "reason": ""}', 0.0, ""),
        ("1", 1.0, "1"),
        ("No.", 0.0, "No."),
    ],
)
def test_strict_verdicts(text: str, score: float, reason: str):
    verdict = Strict().read(CLOCKS, JudgeReply(text))
    assert verdict.score == score
    assert (verdict.passed or verdict.failed) == (reason,) and not (verdict.passed and verdict.failed)


@pytest.mark.parametrize(
    "text", ["", "maybe", '{"correct": -1}', '{"correct": 2}', '{"correct": null}', '{"reason": "1"}']
)
def test_what_is_no_strict_verdict_is_missing(text: str):
    with pytest.raises(JudgeError, match="missing"):
        Strict().read(CLOCKS, JudgeReply(text))


@given(st.text() | anything.map(json.dumps))
def test_any_text_is_a_verdict_or_missing(text: str):
    for form in (Strict(), YesNo(), checklist(2)):
        try:
            assert 0.0 <= form.read(CLOCKS, JudgeReply(text)).score <= 1.0
        except JudgeError as error:
            assert "\n" not in str(error)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_scores_the_share_answered_as_it_should_be():
    checks = Checks(("Is there a cat?", "Is there a dog?", "Is it red?"), (True, False, True), "color+2d", "long")
    form = Checklist({("", CLOCKS.text): checks})
    verdict = form.read(CLOCKS, JudgeReply("yes, on a mat\nno\nno, it is blue"))
    assert verdict.score == pytest.approx(2 / 3)
    assert verdict.passed == ("Is there a cat?", "Is there a dog?") and verdict.failed == ("Is it red?",)
    assert all(f"{number}. {text}" in form.ask(CLOCKS) for number, text in enumerate(checks.questions, 1))


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12), st.booleans())
def test_a_list_is_missing_unless_every_question_has_its_answer(answers: list[bool], asked: int, numbered: bool):
    """Forbids c.A7 of the parity kit: a score over the answers that came, so that one right one alone is 1.0."""
    lines = [f"{i}. {'yes' if answer else 'No'}, so it is" for i, answer in enumerate(answers, 1)]
    text = "\n".join(line if numbered else line.partition(" ")[2] for line in lines)
    if asked == len(answers):
        assert checklist(asked).read(CLOCKS, JudgeReply(text)).score == sum(answers) / asked
    else:
        with pytest.raises(JudgeError, match="missing"):
            checklist(asked).read(CLOCKS, JudgeReply(text))


@given(st.permutations(range(1, 6)))
def test_answers_are_never_given_to_another_question(order: list[int]):
    """Forbids c.A7 of the parity kit, which pairs by place: numbers in another order are no answer by place."""
    text = "\n".join(f"{number}. {'yes' if number == 1 else 'no'}" for number in order)
    try:
        verdict = checklist(5).read(CLOCKS, JudgeReply(text))
    except JudgeError:
        assert order != sorted(order)
    else:
        assert verdict.passed == ("Is it 0?",)


def test_all_recorded_replies_are_read_as_the_benchmark_reads_them(shared: Path):
    seen = 0
    for path in sorted((shared / "benchmarks" / "tiif_replies").glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            record = json.loads(line)
            form = Checklist({("", "a picture"): Checks.from_record(record)})
            right = [a == b.lower() for a, b in zip(record["model_pred"], record["gt_answers"], strict=True)]
            assert form.read(Prompt("a picture"), JudgeReply(record["model_output"])).score == sum(right) / len(right)
            seen += 1
    assert seen == 1108


def test_the_benchmarks_own_questions_are_read(shared: Path):
    for line in (shared / "benchmarks" / "tiif_testmini.jsonl").read_text().splitlines():
        record = json.loads(line)
        checks = Checks.from_record({**record, "length": "short"})
        assert list(checks.questions) == record["yn_question_list"] and checks.attribute == record["type"]


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["questions", "gt_answers", "attribute", "length", "yn_question_list"]), anything)
)
def test_any_record_is_a_list_of_checks_or_an_error(record: dict):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Checks.from_record({**record, "gt_answers": ["maybe"]})


def test_a_prompt_without_questions_is_missing():
    with pytest.raises(JudgeError, match="no questions"):
        checklist(2).ask(Prompt("two clocks", source="elsewhere"))


# --- yes or no --------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), st.floats(0.01, 1.0))
def test_the_probability_of_yes_is_its_share(share: float, mass: float):
    likely = (("Yes", math.log(share * mass)), (" no", math.log((1 - share) * mass)), ("Hm", -0.1))
    assert probability_of_yes(JudgeReply("Yes", top=(likely,))) == pytest.approx(share)
    after_a_break = JudgeReply("\nYes", top=((("\n", -0.1), ("no", -0.2)), likely))
    assert probability_of_yes(after_a_break) == pytest.approx(share)


def test_without_likelihoods_of_either_word_the_text_counts():
    thinking = JudgeReply("<think>no...</think>\nYes.", top=((("<think>", 0.0), ("no", -9.0)),))
    assert probability_of_yes(thinking) is None
    assert YesNo().read(CLOCKS, thinking).score == 1.0


@pytest.mark.parametrize(
    "text, answer",
    [("Yes.", True), ("no, one", False), ("**Yes**", True), ("I say no.", False), ("Yes. Not no.", True)],
)
def test_yes_or_no(text: str, answer: bool):
    assert read_yes_or_no(text) is answer


@pytest.mark.parametrize("text", ["", "perhaps", "not quite", "either yes or no"])
def test_neither_yes_nor_no_is_missing(text: str):
    assert read_yes_or_no(text) is None
    with pytest.raises(JudgeError, match="missing"):
        YesNo().read(CLOCKS, JudgeReply(text))


# --- wordings ---------------------------------------------------------------------------------------------------------


def test_a_benchmarks_own_wording_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "official.txt"
    path.write_text('Rate "{prompt}" by {metadata}; answer {"correct": 1}')
    form = Strict(read_wording(path))
    assert form.name != Strict().name
    assert form.ask(CLOCKS) == f'Rate "two clocks" by {json.dumps(CLOCKS.spec.to_metadata())}; answer {{"correct": 1}}'


def test_wordings_without_a_place_for_the_question_are_refused(tmp_path: Path):
    for make in (lambda: Strict("Is it good?"), lambda: YesNo("?"), lambda: Checklist({}, "{prompt}")):
        with pytest.raises(ConfigError, match="wording"):
            make()
    with pytest.raises(ConfigError, match="cannot read"):
        read_wording(tmp_path / "none.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_wording(tmp_path / "bytes")


@given(st.text())
def test_no_prompt_can_reach_another_place(text: str):
    assert STRICT_WORDING.replace("{prompt}", text) == Strict().ask(Prompt(text))
    assert FIT_WORDING.replace("{prompt}", text) == YesNo().ask(Prompt(text))


def trace_of(prompt: Prompt, index: int) -> Trace:
    return Trace(prompt) + Turn(None, Drawing(np.full((4, 4, 3), index, np.uint8)))


def test_recorded_strict_verdicts_are_replayed(tmp_path: Path):
    def play(request: Request) -> Answer:
        replies = ['{"reason": "so", "correct": 1}', "No.", "who knows"]
        return says(replies[index]) if (index := request.number) < 3 else status(400)

    prompts = [Prompt(f"{count} clocks", Spec("counting", (Item("clock", count),))) for count in range(1, 5)]
    traces = [trace_of(prompt, index) for index, prompt in enumerate(prompts)]
    path = tmp_path / "replies.jsonl"
    with Server(play) as server:
        look = Vlm(server.address, "m", record=path, concurrency=1, retry=RetryPolicy(backoff=0.001))
        found = look.verdicts([*traces[:2], traces[3]])  # who knows is asked again, and then refused
    rows = list(recorded.read_genevalpp(path))
    assert [row.correct for row in rows] == [True, False, None]
    assert [getattr(verdict, "score", None) for verdict in found] == [1.0, 0.0, None]
    assert rows[2].missing and "400" in rows[2].missing
    assert {row.column for row in rows} == {"counting"}


def test_recorded_lists_are_replayed(tmp_path: Path):
    record = {"attribute": "numeracy+2d", "length": "long", "index": "7"}
    record |= {"questions": ["Are there two?", "Is there a cat?"], "gt_answers": ["yes", "no"]}
    replies = ["yes, two\nyes, a cat", "only this: yes"]
    prompts = [Prompt("two clocks", source="a"), Prompt("two clocks", source="b")]
    form = Checklist({(prompt.source, prompt.text): Checks.from_record(record) for prompt in prompts})
    path = tmp_path / "replies.jsonl"
    with Server(lambda request: says(replies[min(request.number, 1)])) as server:
        look = Vlm(server.address, "m", form, record=path, concurrency=1, retry=RetryPolicy(backoff=0.001))
        look.verdicts([trace_of(prompt, index) for index, prompt in enumerate(prompts)])
    one, missing = recorded.read_tiif(path)
    assert (one.column, one.right, one.asked) == ("numeracy+2d/long", 1, 2)
    assert missing.missing and missing.asked == 0


# --- replies of many layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GPT-4o__Janus-Pro", "QwenVL__sd35"])
def test_published_replies_are_read_as_published(shared: Path, name: str):
    with gzip.open(shared / "benchmarks" / "tiif_replies" / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            reply = json.loads(line)
            expected = tuple(answer == "yes" for answer in reply["model_pred"])
            assert read_answers(reply["model_output"], len(reply["questions"])) == expected


@given(answers, st.sampled_from(LAYOUTS), st.lists(reasons, min_size=1, max_size=4), st.booleans())
def test_any_layout_is_read(truths, layout, why, shout):
    reply = written(truths, layout, why, ("NO", "Yes") if shout else ("no", "yes"))
    assert read_answers(reply, len(truths)) == tuple(truths)
    assert read_answers(f"<think>\nno\nyes, it is\n</think>\n\n{reply}", len(truths)) == tuple(truths)


@given(answers, st.sampled_from(LAYOUTS), st.lists(reasons, min_size=1, max_size=4))
def test_a_lost_or_added_answer_is_missing(truths, layout, why):
    reply = written(truths, layout, why)
    assert read_answers(reply, len(truths) + 1) is None
    assert read_answers(reply, len(truths) - 1) is None
    assert read_answers(f"{written(truths, PLAIN, why)}\nyes, and more", len(truths)) is None


@given(answers, st.sampled_from((", ", " ", "; ", "\n\n", ' ", "')))
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


@given(st.text(max_size=60), st.integers(0, 5))
def test_any_text_is_read_or_missing(text, count):
    read = read_answers(text, count)
    assert read is None or len(read) == count
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
        ('{"correct": 1', None),  # cut off
        ('{"reason": "cut', None),
        ("yes\nno", None),
        ("", None),
        ("I think that it mostly shows three cats", None),
        ("{" * 100_000, None),
        ('{"a":' * 100_000, None),
        (None, None),
    ],
)
def test_words_of_a_strict_verdict(reply: object, verdict: bool | None):
    assert read_verdict(reply) is verdict
