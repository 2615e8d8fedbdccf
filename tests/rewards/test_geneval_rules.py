"""GenEval's rules: the recorded verdicts, an independent reading of the formula, and laws for any picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from triptych.data.prompts import read_spec
from triptych.rewards import geneval_rules
from triptych.rewards.geneval_rules import (
    GENEVAL_COLORS,
    RELATIONS,
    Detection,
    confidence,
    judge_detections,
    read_detections,
    relations,
)
from triptych.trace import Item, Spec

OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
coordinates = some.integers(0, 5120).map(lambda value: value / 10)


boxes = some.tuples(*[coordinates] * 4).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
objects = some.builds(
    Detection, boxes, some.integers(1, 1000).map(lambda value: value / 1000), some.sampled_from(GENEVAL_COLORS[:3])
)
pictures = some.fixed_dictionaries(
    {}, optional={name: some.lists(objects, max_size=4) for name in ("cat", "dog", "bus")}
)
few = settings(max_examples=50)


@some.composite
def specs(draw) -> Spec:
    include = []
    for index in range(draw(some.integers(1, 3))):
        position = None
        if index and draw(some.booleans()):
            position = (draw(some.sampled_from(RELATIONS)), draw(some.integers(0, index - 1)))
        color = draw(some.none() | some.sampled_from(GENEVAL_COLORS[:3]))
        name = draw(some.sampled_from(("cat", "dog", "bus")))
        include.append(Item(name, draw(some.integers(0, 4)), color, position=position))
    exclude = draw(some.lists(some.builds(Item, some.sampled_from(("cat", "dog")), some.integers(1, 5)), max_size=1))
    return Spec("any", tuple(include), tuple(exclude))


def at(x: float, y: float, side: float = 10, score: float = 0.9, color: str | None = None) -> Detection:
    """A square object around a point."""
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


def judged(include: list[Item], exclude: tuple[Item, ...] = (), **objects: list[Detection]) -> tuple[str, ...]:
    return judge_detections(Spec("any", tuple(include), exclude), objects).failed


# --- recorded verdicts ------------------------------------------------------------------------------------------------


def test_all_recorded_verdicts_agree(shared: Path):
    records = [json.loads(line) for line in (shared / "benchmarks" / "geneval_verdicts.jsonl").open()]
    verdicts = [judge_detections(read_spec(each["metadata"]), read_detections(each["detections"])) for each in records]
    assert len(records) == 400
    assert [verdict.score == 1 for verdict in verdicts] == [each["correct"] for each in records]
    assert [len(verdict.failed) for verdict in verdicts] == [each["n_reasons"] for each in records]


# --- known answers ----------------------------------------------------------------------------------------------------


def test_too_few_fail_and_more_do_not():
    assert judged([Item("cat", 2)], cat=[at(0, 0)]) == ("cat: expected 2, found 1",)
    assert judged([Item("cat", 2)]) == ("cat: expected 2, found 0",)
    assert judged([Item("cat", 2)], cat=[at(0, 0)] * 5) == ()


def test_only_the_most_confident_are_looked_at():
    red, blue = at(0, 0, score=0.5, color="red"), at(50, 0, score=0.6, color="blue")
    assert judged([Item("cat", 1, "red")], cat=[red, blue]) == ("cat: expected 1 red, found 1 blue",)
    assert judged([Item("cat", 1, "blue")], cat=[red, blue]) == ()
    assert judged([Item("cat", 2, "red")], cat=[red, blue]) == ("cat: expected 2 red, found 1 red, 1 blue",)


def test_an_excluded_number_fails():
    three = {"cat": [at(0, 0)] * 3}
    assert judged([Item("cat", 2)], (Item("cat", 3),), **three) == ("cat: expected fewer than 3, found 3",)
    assert judged([Item("cat", 2)], (Item("cat", 4),), **three) == ()
    assert len(judged([Item("dog", 1)], (Item("cat", 1),), **three)) == 2


def test_position_is_seen_from_the_target():
    include = [Item("dog"), Item("cat", position=("left of", 0))]
    assert judged(include, cat=[at(0, 0)], dog=[at(90, 0)]) == ()
    assert judged(include, cat=[at(90, 0)], dog=[at(0, 0)]) == ("cat: expected left of dog, found right of it",)
    assert judged(include, cat=[at(0, 0)], dog=[at(1, 0)]) == (
        "cat: expected left of dog, found on no clear side of it",
    )
    assert judged(include, cat=[at(0, 0)]) == (
        "dog: expected 1, found 0", "cat: expected left of dog, which is not as asked itself",
    )  # fmt: skip


def test_position_is_not_asked_of_a_wrong_item_and_of_all_pairs_of_a_right_one():
    include = [Item("dog", 2), Item("cat", 1, "red", position=("left of", 0))]
    dogs = [at(50, 0), at(-50, 0, score=0.8)]
    assert judged(include, cat=[at(0, 0, color="blue")], dog=dogs) == ("cat: expected 1 red, found 1 blue",)
    assert judged(include, cat=[at(0, 0, color="red")], dog=dogs) == ("cat: expected left of dog, found right of it",)


def test_a_tenth_of_both_sizes_is_no_relation():
    for gap, expected in ((1.99, frozenset()), (2.01, frozenset()), (5.0, frozenset({"right of"}))):
        # sizes 10 and 10: up to 2 pixels nothing is left; then half of the offset has to be left
        assert relations(at(gap, 0), at(0, 0)) == expected
    assert relations(at(3.99, 0), at(0, 0)) == frozenset()
    assert relations(at(4.01, 0), at(0, 0)) == frozenset({"right of"})


def test_an_object_without_a_color_cannot_be_judged_by_color():
    with pytest.raises(ValueError, match="no color"):
        judged([Item("cat", 1, "red")], cat=[at(0, 0)])
    assert judged([Item("cat", 1)], cat=[at(0, 0)]) == ()


def test_regions_and_sizes_are_not_geneval():
    with pytest.raises(ValueError, match="neither"):
        judged([Item("cat", region="left")], cat=[at(0, 0)])
    with pytest.raises(ValueError, match="neither"):
        judge_detections(
            read_spec({"tag": "x", "include": [{"class": "cat", "count": 1, "size": "larger"}]}), {"cat": [at(0, 0)]}
        )


def test_counting_asks_for_more_certainty():
    assert confidence("counting") == 0.9 and confidence("position") == confidence("colors") == 0.3


# --- laws -------------------------------------------------------------------------------------------------------------


def oracle(one: tuple[float, ...], other: tuple[float, ...]) -> set[str]:
    """The published formula, in arrays."""
    corners = np.array([one, other]).reshape(2, 2, 2)
    centre, size = corners.mean(1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centre[0] - centre[1]
    left = np.clip(np.abs(offset) - geneval_rules.MIN_OFFSET * size.sum(0), 0, None) * np.sign(offset)
    if (np.abs(left) < 1e-3).all():
        return set()
    x, y = left / np.linalg.norm(offset)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}


@given(boxes, boxes)
def test_relations_are_the_formula(one, other):
    assert relations(Detection(one, 1), Detection(other, 1)) == oracle(one, other)


@given(boxes, boxes)
def test_relations_mirror(one, other):
    seen, back = relations(Detection(one, 1), Detection(other, 1)), relations(Detection(other, 1), Detection(one, 1))
    assert {OPPOSITE[side] for side in seen} == back
    assert not seen & back and len(seen) <= 2


@few
@given(specs(), pictures)
def test_one_reason_per_item_at_most_and_right_without_any(spec, picture):
    verdict = judge_detections(spec, picture)
    assert verdict.score == float(not verdict.failed)
    assert len(verdict.passed) + len(verdict.failed) == len(spec.include) + len(spec.exclude)


@few
@given(specs(), pictures, some.randoms(use_true_random=False))
def test_the_order_of_a_file_does_not_matter(spec, picture, random):
    assume(all(len({each.score for each in own}) == len(own) for own in picture.values()))
    mixed = {name: random.sample(own, len(own)) for name, own in random.sample(sorted(picture.items()), len(picture))}
    assert judge_detections(spec, mixed) == judge_detections(spec, picture)


@few
@given(specs(), pictures, boxes, some.sampled_from(GENEVAL_COLORS))
def test_a_less_certain_object_cannot_spoil_what_is_included(spec, picture, box, color):
    extra = {name: [*own, Detection(box, 0.0, color)] for name, own in picture.items()}
    asked = Spec(spec.tag, spec.include)
    if judge_detections(asked, picture).score == 1:
        assert judge_detections(asked, extra) == judge_detections(asked, picture)


@few
@given(specs(), pictures)
def test_the_recorded_form_is_lossless(spec, picture):
    line = json.loads(json.dumps(geneval_rules.to_record(spec, "a photo", picture)))
    assert read_spec(line["metadata"]) == spec and read_detections(line["detections"]) == picture


# --- hostile records --------------------------------------------------------------------------------------------------

atoms = some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=5)
keys = some.sampled_from(("tag", "include", "exclude", "class", "count", "color", "position", "box", "score", "cat"))
values = some.recursive(
    atoms, lambda inner: some.lists(inner, max_size=4) | some.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(values)
def test_any_value_is_read_or_refused_in_one_line(value):
    for read in (read_spec, read_detections):
        try:
            read(value)
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 300


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ({"box": [0, 0, float("nan"), 1], "score": 1}, "finite"),
        ({"box": [0, 0, float("inf"), 1], "score": 1}, "finite"),
        ({"box": [0, 0, 10**400, 1], "score": 1}, "finite"),
        ({"box": [0, 0, True, 1], "score": 1}, "finite"),
        ({"box": ["0", 0, 1, 1], "score": 1}, "finite"),
        ({"box": [5, 0, 1, 1], "score": 1}, "negative size"),
        ({"box": [0, 5, 1, 1], "score": 1}, "negative size"),
        ({"box": [0, 0, 1], "score": 1}, "left, top, right, bottom"),
        ({"box": [0, 0, 1, 1e12], "score": 1}, "pixels within"),
        ({"box": None, "score": 1}, "array"),
        ({"box": [0, 0, 1, 1]}, "the score"),
        ({"box": [0, 0, 1, 1], "score": float("nan")}, "the score"),
        ({"box": [0, 0, 1, 1], "score": 1, "color": "beige"}, "color"),
        ("cat", "JSON object"),
    ],
)
def test_boxes_that_are_none(box: object, reason: str):
    with pytest.raises(ValueError, match=reason):
        read_detections({"cat": [box]})


@pytest.mark.parametrize(
    "item",
    [
        {"class": "cat", "count": -1}, {"class": "cat", "count": 1.5}, {"class": "cat", "count": True}, {"count": 1},
        {"class": "", "count": 1}, {"class": "cat", "color": 3}, {"class": "cat", "position": ["left of", 0]},
        {"class": "cat", "position": ["beside", 0]}, {"class": "cat", "position": "left of"}, [], None,
    ],
)  # fmt: skip
def test_items_that_cannot_be_judged(item: object):
    with pytest.raises(ValueError, match="expected"):
        read_spec({"tag": "x", "include": [item]})


def test_a_relation_holds_within_sixty_degrees_and_not_at_them():
    """Two squares of 25 px, 10 px apart: 5 of 10 are left of the offset, a cosine of exactly 0.5."""
    for dx, dy, side in ((10, 0, "right of"), (-10, 0, "left of"), (0, 10, "below"), (0, -10, "above")):
        assert relations(at(100 + dx, 100 + dy, 25), at(100, 100, 25)) == frozenset()
        assert relations(at(100 + 1.01 * dx, 100 + 1.01 * dy, 25), at(100, 100, 25)) == {side}
