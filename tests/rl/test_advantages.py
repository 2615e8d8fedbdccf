"""Laws of a batch: who is compared with whom, what is left out, and that nothing is lost on the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from triptych.rewards.rewards import Reward
from triptych.rl.advantages import balanced, group_advantages, image_sample, loss_rows, text_sample
from triptych.rl.config import PictureConfig, StageConfig, TextConfig
from triptych.rl.tree import Group, Node
from triptych.trace import Completion, Drawing, Prompt, SDESteps, Trace, Turn, Verdict

STAGE = StageConfig(text=TextConfig(kl_coef=0.0), picture=PictureConfig(kl_coef=0.0))
PARENT = Trace(Prompt("a cat")) + Turn(None, Drawing(np.zeros((2, 2, 3), np.uint8)))


def strokes(count: int = 2) -> SDESteps:
    state = np.zeros((count, 4, 3), np.float32)
    line = np.zeros(count, np.float32)
    return SDESteps(state, state, line, line, line, np.arange(count), state)


def node(text: float, picture: float, order: str | None = "add", length: int = 3) -> Node:
    """A refined picture; an order of None is a stop."""
    said = Completion("words", np.arange(length), np.zeros(length, np.float32))
    drew = None if order is None else Drawing(np.ones((2, 2, 3), np.uint8), strokes())
    return Node(PARENT + Turn(said, drew, order), Verdict(0.5), Reward(text, picture, True, order is not None))


def group(*nodes: Node, right: bool = False) -> Group:
    return Group(Node(PARENT, Verdict(float(right))), nodes)


def test_a_row_without_a_picture_is_left_out_before_the_mean():
    """Forbids c.A14 of the parity kit: a stop that shifts the mean of the pictures that were drawn."""
    found = group_advantages(group(node(2, 0.9), node(1, 0.1), node(0, 5.0, None)), STAGE)
    assert found.text.tolist() == pytest.approx([1, 0, -1])
    assert found.picture.tolist() == pytest.approx([0.4, -0.4, 0])


def test_rows_that_teach_nothing_are_counted_and_not_scored():
    groups = [group(node(1, 0.5), node(1, 0.1, length=5), node(1, 0.5, None))]
    made = loss_rows(groups, [group_advantages(one, STAGE) for one in groups], STAGE)
    assert made.text_samples == () and made.tokens == 11
    assert len(made.image_samples) == 2 and made.sde_steps == 4
    with_kl = replace(STAGE, text=TextConfig(kl_coef=0.1))
    assert len(loss_rows(groups, [group_advantages(one, with_kl) for one in groups], with_kl).text_samples) == 3


def test_a_loss_is_divided_by_all_rows_and_not_by_those_that_are_left():
    """Else a group where few differ would pull as hard as one where all do."""
    groups = [group(node(0, 0.0, length=2), node(1, 0.25, length=3), node(2, 0.5, length=5))]
    made = loss_rows(groups, [group_advantages(one, STAGE) for one in groups], STAGE)
    assert (len(made.text_samples), made.tokens) == (2, 10)
    assert (len(made.image_samples), made.sde_steps) == (2, 6)


def test_parts_that_do_not_learn_bring_nothing():
    groups = [group(node(1, 0.5), node(0, 0.1))]
    for stage, texts, pictures in (
        (replace(STAGE, text=replace(STAGE.text, train=False)), 0, 2),
        (replace(STAGE, picture=replace(STAGE.picture, train=False)), 2, 0),
    ):
        found = [group_advantages(one, stage) for one in groups]
        made = loss_rows(groups, found, STAGE, balance=True)
        assert (len(made.text_samples), len(made.image_samples)) == (texts, pictures)
        assert bool(found[0].text.any()) is (texts > 0) and bool(found[0].picture.any()) is (pictures > 0)
        assert not found[0].dead


def test_advantages_are_divided_by_the_std_where_the_part_says_so():
    """The unbiased one, of each part alone."""
    rows = group(node(0, 0.0), node(2, 0.2), node(4, 0.4))
    for part, plain, unit in (("text", [-2, 0, 2], 2.0), ("picture", [-0.2, 0, 0.2], 0.2)):
        stage = replace(STAGE, **{part: replace(getattr(STAGE, part), normalize_advantages=True)})
        other = "picture" if part == "text" else "text"
        found, without = group_advantages(rows, stage), group_advantages(rows, STAGE)
        assert getattr(without, part).tolist() == pytest.approx(plain)
        assert getattr(found, part).tolist() == pytest.approx([one / unit for one in plain], abs=1e-4)
        assert torch.equal(getattr(found, other), getattr(without, other))


def test_pictures_can_be_compared_among_those_that_were_told_the_same():
    told = replace(STAGE, picture=replace(STAGE.picture, baseline="same-text"))
    rows = group(node(0, 1.0, "add"), node(0, 0.0, "add"), node(0, 9.0, "remove"), node(0, 5.0, None))
    assert group_advantages(rows, told).picture.tolist() == pytest.approx([0.5, -0.5, 0, 0])
    assert float(group_advantages(rows, STAGE).picture[2]) > 5


def test_long_texts_do_not_outweigh_short_ones_on_the_other_side():
    """A stop is shorter than an order, and the loss adds up tokens."""
    wrong = group(node(1, 0, length=30), node(0, 0, length=30))
    right = group(node(1, 0, length=10), node(0, 0, length=10), right=True)
    found = [group_advantages(one, STAGE) for one in (wrong, right)]
    shares = balanced([wrong, right], found)
    pulls = [share * length for share, length in zip(shares, (30, 10), strict=True)]
    assert pulls[0] == pytest.approx(pulls[1]) and sum(pulls) == pytest.approx(40)


def test_right_and_wrong_parents_can_pull_equally():
    groups = [group(node(2, 0), node(0, 0)), group(node(9, 0), node(0, 0)), group(node(1, 0), node(0, 0), right=True)]
    found = [group_advantages(one, STAGE) for one in groups]
    shares = balanced(groups, found)
    pulls = [share * float(gain.text.abs().sum()) for share, gain in zip(shares, found, strict=True)]
    assert pulls[0] + pulls[1] == pytest.approx(pulls[2])
    assert sum(pulls) == pytest.approx(sum(float(gain.text.abs().sum()) for gain in found))
    assert balanced(groups[:2], found[:2]) == [1.0, 1.0]
    made = loss_rows(groups, found, STAGE, balance=True)
    assert float(made.text_advantages[:4].abs().sum()) == pytest.approx(float(made.text_advantages[4:].abs().sum()))


def test_a_whole_chain_learns_by_one_advantage():
    def chain(reward: float, turns: int) -> Node:
        said = Completion("words", np.arange(3), np.zeros(3, np.float32))
        drew = Drawing(np.zeros((2, 2, 3), np.uint8), strokes())
        trace = Trace(Prompt("a cat"), tuple(Turn(said, drew, "add" if turn else None) for turn in range(turns)))
        return Node(trace, Verdict(reward), Reward(reward, reward, True, True))

    groups = [Group(Node(Trace(Prompt("a cat"))), (chain(1, 3), chain(0, 1)))]
    found = [group_advantages(one, STAGE) for one in groups]
    first, later = (loss_rows(groups, found, STAGE, turns) for turns in (slice(0, 1), slice(1, None)))
    assert first.text_advantages.tolist() == [0.5, -0.5] and later.text_advantages.tolist() == [0.5, 0.5]
    assert [one.image is None for one in first.text_samples] == [True, True]
    assert all(one.image is not None for one in (*later.text_samples, *later.image_samples))
    assert [one.text for one in later.image_samples] == ["add", "add"]


def test_a_row_knows_what_its_turn_had_seen():
    trace = node(0, 0).trace
    said, drew = text_sample(trace, 1), image_sample(trace, 1)
    assert said is not None and drew is not None
    assert np.array_equal(said.image, PARENT.image) and np.array_equal(drew.image, PARENT.image)
    assert drew.text == "add" and drew.plan is None
    assert text_sample(trace, 0) is None and image_sample(trace, 0) is None
    assert torch.is_tensor(loss_rows([], [], STAGE).text_advantages) and loss_rows([], [], STAGE).empty


def test_an_edit_of_an_edit_is_of_the_newest_picture():
    """A reflection and an edit see the picture of the turn before, neither an older one nor their own."""
    pictures = [np.full((2, 2, 3), level, np.uint8) for level in (10, 20, 30)]
    said = [Completion(f"words {turn}", np.arange(3), np.zeros(3, np.float32)) for turn in range(3)]
    turns = [
        Turn(one, Drawing(picture, strokes()), f"edit {turn}" if turn else None)
        for turn, (one, picture) in enumerate(zip(said, pictures, strict=True))
    ]
    trace = Trace(Prompt("a cat"), tuple(turns))
    first = text_sample(trace, 0), image_sample(trace, 0)
    assert all(one is not None and one.image is None for one in first)
    assert first[1].text == "a cat" and first[1].plan is said[0]
    for turn in (1, 2):
        text, image = text_sample(trace, turn), image_sample(trace, turn)
        assert text is not None and image is not None
        assert text.prompt == "a cat" and text.completion is said[turn]
        assert image.text == f"edit {turn}" and image.plan is None
        assert image.sde_steps is trace.turns[turn].drew.sde_steps
        assert text.image is pictures[turn - 1] and image.image is pictures[turn - 1]
    given = Trace(Prompt("a cat", image=pictures[0]), (turns[1],))  # a prompt that brings its picture
    assert text_sample(given, 0).image is pictures[0] and image_sample(given, 0).image is pictures[0]


def test_pictures_compete_by_the_newest_instruction_and_not_by_an_older_one():
    """With the baseline "same-text", after any number of turns."""
    stage = replace(STAGE, picture=PictureConfig(kl_coef=0.0, baseline="same-text"))
    drew = Drawing(np.ones((2, 2, 3), np.uint8), strokes())

    def deep(picture: float, older: str, newest: str) -> Node:
        trace = PARENT + Turn(Completion("words"), drew, older) + Turn(Completion("words"), drew, newest)
        return Node(trace, Verdict(0.5), Reward(0.0, picture, True, True))

    nodes = [deep(1.0, "a", "x"), deep(0.0, "b", "x"), deep(0.5, "a", "y"), deep(0.0, "b", "y")]
    assert group_advantages(group(*nodes), stage).picture.tolist() == [0.5, -0.5, 0.25, -0.25]


def test_sides_are_balanced_only_where_that_is_asked():
    groups = [group(node(1, 0.5), node(0, 0.1), right=True), group(node(3, 0.5), node(0, 0.1))]
    found = [group_advantages(one, STAGE) for one in groups]
    plain, even = (loss_rows(groups, found, STAGE, **how).text_advantages for how in ({}, {"balance": True}))
    assert plain.tolist() == [0.5, -0.5, 1.5, -1.5] and even.tolist() == [1.0, -1.0, 1.0, -1.0]
