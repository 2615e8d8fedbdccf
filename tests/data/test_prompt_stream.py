"""A list as a stream: every epoch holds each prompt once, and what is held out depends on the text alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.prompt_stream import ListedPrompts, prompts_fingerprint, split
from triptych.errors import ConfigError
from triptych.trace import Item, Prompt, Spec

PROMPTS = tuple(Prompt(f"a cat and {number} dogs") for number in range(200))


def test_every_epoch_holds_each_prompt_once_in_an_order_of_its_own():
    stream = ListedPrompts(PROMPTS[:7], seed=3)
    epochs = [[stream(epoch * 7 + place).text for place in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(prompt.text for prompt in PROMPTS[:7]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [stream(9).text, stream(2).text] == [epochs[1][2], epochs[0][2]]  # in any order of asking
    assert [ListedPrompts(PROMPTS[:7], seed=4)(place).text for place in range(7)] != epochs[0]


def test_no_prompts_are_an_error():
    with pytest.raises(ConfigError, match="no prompts"):
        ListedPrompts((), 0)


@given(st.permutations(range(50)), st.floats(0, 1))
def test_what_is_held_out_depends_on_the_text_alone(order: list[int], share: float):
    training, held_out = split(PROMPTS[:50], share)
    again = split([PROMPTS[place] for place in order], share)
    assert {one.text for one in held_out} == {one.text for one in again[1]}
    assert len(training) + len(held_out) == 50 and not {id(one) for one in training} & {id(one) for one in held_out}
    longer = split(PROMPTS, share)[1]
    assert {one.text for one in held_out} <= {one.text for one in longer}


def test_a_share_is_about_that_share():
    assert 10 <= len(split(PROMPTS, 0.1)[1]) <= 32
    assert split(PROMPTS, 0.0)[1] == [] and split(PROMPTS, 1.0)[0] == []


def test_fingerprints_tell_texts_specs_and_orders_apart():
    one, other = Prompt("a"), Prompt("b")
    spec = Prompt("a", Spec("x", (Item("cat"),)))
    assert len({prompts_fingerprint(each) for each in ([one, other], [other, one], [one], [spec])}) == 4
    assert prompts_fingerprint([one]) == prompts_fingerprint([Prompt("a", source="elsewhere")])
