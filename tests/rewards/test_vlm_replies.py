"""What counts as an answer: replies of many judges; what is cut, refused or only mentioned never counts."""

import json
from pathlib import Path

import pytest

from triptych.errors import JudgeError, UnfinishedError
from triptych.rewards.judge_reply import JudgeReply
from triptych.rewards.vlm_prompts import Checklist, Checks, Strict, YesNo
from triptych.rewards.vlm_replies import final_text, is_refusal, read_answers, read_verdict, read_yes_or_no
from triptych.trace import Item, Prompt, Spec

CLOCKS = Prompt("two clocks", Spec("counting", (Item("clock", 2),)))
TWO = Checklist({("", CLOCKS.text): Checks(("Is it red?", "Is it blue?"), (True, False), "color", "short")})
FORMS = (Strict(), YesNo(), TWO)


def completion(content: object, finish: str = "stop", **message: object) -> dict:
    return {"choices": [{"index": 0, "message": {"content": content, **message}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes. The picture shows three cats, as it should.", True),
        ("No. One of the cats is missing.", False),
        ("Correct. All three are there.", True),
        ("<think>ok</think><answer>1</answer>", True),
        ("<answer>\n no \n</answer>", False),
        ("<|begin_of_box|>1<|end_of_box|>", True),
        ("So it is \\boxed{0}.", False),
        ("The final answer is \\boxed{\\text{Yes}}.", True),
        ("### Answer\n\n**Yes**\n\n### Reason\nAll there.", True),
        ("**Verdict:** Incorrect\n**Reason:** two cats", False),
        ("Reason: two cats.\nCorrect: 1", True),
        ("{\u201creason\u201d: \u201cok\u201d, \u201ccorrect\u201d: 1}", True),
        ("Answer\uff1ayes", True),
        ("{'reason': 'the count is not correct: 1 cat instead of 2', 'correct': 0}", False),
        ("{'correct': False}", False),
        ('{"result": {"correct": 0, "reason": "x"}}', False),
        ("The colors are correct: 1 red...\nNo", False),
        ("I must say no.", False),
    ],
)
def test_verdicts_of_many_judges(reply: str, verdict: bool):
    assert read_verdict(reply) is verdict


@pytest.mark.parametrize(
    "reply",
    [
        "the rule says correct: 0 if anything is off, so it is fine",
        '{"correct": 1, "correct": 0}',
        '{"reason": "so far so good", "correct": 1',
        "Yes. Wait, actually there are three.",
        "Yes.\nNo.",
        "No cats are missing.",
        "1. There are two cats\n2. All are red",
        "No, I'm sorry, I cannot assist with that.",
        "No. I\u2019m sorry, I can\u2019t help.",
        "I cannot assist with this picture.\n\nNo",
        "As an AI, I cannot see pictures. No.",
        "Lo siento, no puedo ayudar con eso.\nNo",
        "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u56de\u7b54\u3002\nNo",
        "<think>No, it is wrong.",
        "<thinking>\nno\n",
        "[THINK] the answer is no",
    ],
)
def test_these_are_no_verdicts(reply: str):
    assert read_verdict(reply) is None


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ("1. Is it a cat? Yes.\n2. Is it a dog? No.", (True, False)),
        ("Is it a cat?\nYes.\nIs it a dog?\nNo.", (True, False)),
        ('{"1": "yes", "2": "no"}', (True, False)),
        ('{"q1": true, "q2": false}', (True, False)),
        ('{"answers": ["Yes, there", "No"]}', (True, False)),
        ('[{"question": "a", "answer": "Yes"}, {"question": "b", "answer": "no"}]', (True, False)),
        ("a) Yes\nb) No", (True, False)),
        ("| 1 | Yes | there |\n| 2 | No | not there |", (True, False)),
        ("\u2705 yes\n\u274c no", (True, False)),
        ("Q1: Is it?\nA1: yes\nQ2: Is it?\nA2: no", (True, False)),
        ("yes, a cat\nno, no dog\n\nNo other objects are visible.", (True, False)),
        ("no text is visible\nno additional text is there", (False, False)),  # a judge's own style, twice
    ],
)
def test_lists_of_many_judges(reply: str, answers: tuple[bool, ...]):
    assert read_answers(reply, 2) == answers


@pytest.mark.parametrize(
    "reply",
    [
        "yes, a cat\nNo other objects are visible.",  # a remark is no second answer
        "b) yes\na) no",
        '{"2": "yes", "1": "no"}',
        '{"1": "yes", "2": "perhaps"}',
        "<think>Let me look.\nyes, a cat\nno dog",
        "1. Is it a cat? Yes.\n2. Is it a dog?",
    ],
)
def test_these_are_not_two_answers(reply: str):
    assert read_answers(reply, 2) is None


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("Yes, all there", True), ("no; two", False), ("There is no problem", None), ("No doubt: yes", None)],
)
def test_one_word_was_asked_for(reply: str, answer: bool | None):
    assert read_yes_or_no(reply) is answer


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "payload",
    [
        completion('<think>It says "correct": 0 if anything is off. There is no', "length"),
        completion("yes, it is\nno", "length"),
        completion('{"correct": 0, "reason": "', "max_tokens"),
        completion("<think>\nyes\nno"),
        completion(None, "length", reasoning_content="Let me see: no"),
    ],
)
def test_an_unfinished_answer_is_no_verdict(form, payload: dict):
    with pytest.raises(UnfinishedError, match="missing"):
        form.read(CLOCKS, JudgeReply.from_completion(payload))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (completion("No, I'm sorry, I can't assist with that.", "content_filter"), "sorry"),
        (completion("no\nno", "SAFETY"), "SAFETY"),
        (completion(None, refusal="I cannot judge this picture"), "I cannot judge this picture"),
        (completion("No, I'm sorry, I can't assist with that."), "sorry"),
        (completion("I'm unable to view images.\nNo"), "unable"),
    ],
)
def test_a_refusal_is_no_verdict_and_is_quoted(form, payload: dict, words: str):
    with pytest.raises(JudgeError, match="missing") as raised:
        form.read(CLOCKS, JudgeReply.from_completion(payload))
    assert words in str(raised.value) and not isinstance(raised.value, UnfinishedError)


def test_likelihoods_of_a_refusal_are_no_verdict():
    reply = JudgeReply("No, I'm sorry, I cannot help.", top=((("No", -0.01), ("Yes", -5.0)),))
    with pytest.raises(JudgeError, match="refused"):
        YesNo().read(CLOCKS, reply)


@pytest.mark.parametrize("error", [{"message": "model overloaded", "code": 502}, "model overloaded"])
def test_an_error_inside_an_answer_is_told(error: object):
    for payload in ({"error": error}, {"choices": [{"error": error, "message": {"content": "no"}}]}):
        with pytest.raises(ValueError, match="model overloaded"):
            JudgeReply.from_completion(payload)


def test_an_answer_in_parts_is_one_text():
    reply = JudgeReply.from_completion(completion([{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]))
    assert reply.text == "yes"


def test_thoughts_end_where_the_answer_begins():
    assert final_text("a <think>b</think> c") == "c"
    assert final_text("no opening tag</think>yes") == "yes"
    assert final_text("<|channel|>analysis no <|channel|>final<|message|>yes") == "<|message|>yes"
    assert final_text("<think>a</think>b<think>c") is None


def test_what_only_sounds_sorry_is_no_refusal():
    for text in ("Sorry state of a cat, but yes.", "No, the cat is missing.", "No apology needed. Yes."):
        assert not is_refusal(text)


def test_the_shared_cases(shared: Path):
    cases = shared / "cases"
    readers = {"48": True, "49": True, "51": True, "52": True, "53": True, "55": False}
    for folder in sorted(cases.iterdir()):
        number = folder.name[:2]
        if number in readers:
            assert read_verdict((folder / "reply.txt").read_text(encoding="utf-8")) is readers[number], folder.name
        if number in ("57", "58", "60"):
            assert read_answers((folder / "reply.txt").read_text(encoding="utf-8"), 3) == (True, False, True)
        if number in ("01", "02", "07", "09"):
            reply = JudgeReply.from_completion(json.loads((folder / "reply.json").read_text(encoding="utf-8")))
            for form in (Strict(), YesNo()):
                with pytest.raises(JudgeError):
                    form.read(CLOCKS, reply)
