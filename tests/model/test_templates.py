"""Known answers of the parsers of what the model says; the rules are those of the authors' release."""

import pytest

from triptych.model.templates import is_stop, parse_answer, parse_edit, plan_is_formed, reflection_is_formed

EDIT = "add a red cat at left"


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        (f"<think>two cats</think>{EDIT}", EDIT),
        (f"<think>two cats</think>\n {EDIT} \n", EDIT),
        (f"<think>a</think>remove the dog<think>b</think>{EDIT}", EDIT),  # the last tag counts
        (f"no opening tag</think>{EDIT}", EDIT),
        ("<think>two cats</think>", ""),
    ],
)
def test_the_instruction_follows_the_last_closing_tag(text: str, instruction: str):
    assert parse_edit(text) == instruction == parse_answer(text)
    assert not is_stop(parse_edit(text))


def test_a_reflection_without_a_closing_tag_stops_and_an_answer_is_the_whole_text():
    assert is_stop(parse_edit("<think>cut by the lim")) and is_stop(parse_edit(EDIT)) and is_stop(parse_edit(""))
    assert parse_answer(" yes ") == "yes"


@pytest.mark.parametrize(
    ("instruction", "stop"),
    [
        ("no further edit needed", True),
        ("No further edit needed.", True),
        ("NO FURTHER EDITS", True),
        (f"{EDIT}; then no further edit", True),  # wherever it stands: the release's rule
        (EDIT, False),
        ("", False),
        ("no further", False),
    ],
)
def test_a_stop_is_told_by_its_words_in_any_case(instruction: str, stop: bool):
    assert is_stop(instruction) == stop


@pytest.mark.parametrize(
    ("text", "plan", "reflection"),
    [
        ("<think>a cat</think>", True, False),
        (" <think>a cat</think>\n", True, False),
        ("<think>a cat</think>more", False, True),
        ("before<think>a cat</think>", False, False),
        ("<think>a</think><think>b</think>", False, False),
        ("<think>a</think>x<think>b</think>more", False, False),
        ("a cat", False, False),
        ("<think>a cat", False, False),
    ],
)
def test_the_format_reward_is_strict(text: str, plan: bool, reflection: bool):
    assert (plan_is_formed(text), reflection_is_formed(text)) == (plan, reflection)
