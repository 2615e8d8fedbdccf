"""Plans and instructions come back from their words; reflections are true; answers are right and hard to guess."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from triptych.data.annotations import (
    ALL_HELD,
    EMPTY_PLAN,
    QUESTION_KINDS,
    fits_question,
    instruction_text,
    parse_instruction,
    parse_plan,
    plan_text,
    question_answer,
    reflection_text,
    remarks,
    split_remarks,
)
from triptych.data.edits import Edit, apply, fix, random_edit, spoil
from triptych.data.layout import CANVAS, CELL, CELLS, SIZES
from triptych.data.lexicon import NUMBERS, plural
from triptych.data.scene import Scene, Sticker, check, in_region, members
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.trace import Item, Spec

NAMES, PAINTS, PLACES, BOXES = (some.sampled_from(list(words)) for words in (CLASSES, COLORS, CELLS, SIZES))
STICKERS = some.builds(Sticker, NAMES, PAINTS, some.floats(0, CANVAS), some.floats(0, CANVAS), BOXES)
SCENES = some.lists(STICKERS, max_size=9).map(tuple).map(Scene)
EDITS = some.one_of(
    some.builds(Edit, some.just("add"), PLACES, NAMES, PAINTS, some.none() | BOXES),
    some.builds(Edit, some.just("remove"), PLACES, some.none() | NAMES, some.none() | PAINTS),
    some.builds(Edit, some.just("recolor"), PLACES, some.none() | NAMES, PAINTS),
    some.builds(Edit, some.just("move"), PLACES, some.none() | NAMES, to=PLACES),
    some.builds(Edit, some.just("swap"), PLACES, NAMES, some.none() | PAINTS, some.none() | BOXES),
    some.builds(Edit, some.just("resize"), PLACES, some.none() | NAMES, size=BOXES),
)
CLOCK, CAT = Sticker("clock", "red", 16, 16), Sticker("cat", "black", 79, 77, "larger")
PAIR = Scene((CAT, CLOCK))


@given(SCENES)
def test_a_plan_comes_back_up_to_the_centres_of_its_cells(scene: Scene):
    read = parse_plan(plan_text(scene))
    assert read is not None
    facts = [(one.cell, one.name, one.color, one.size) for one in scene.ordered()]
    assert [(one.cell, one.name, one.color, one.size) for one in read.stickers] == facts
    assert all(one.x % CELL == one.y % CELL == CELL / 2 for one in read.stickers)
    assert plan_text(read) == plan_text(scene)


def test_a_plan_reads_as_shown():
    assert plan_text(PAIR) == "top left red clock, bottom right larger black cat"
    assert plan_text(Scene(())) == EMPTY_PLAN
    assert parse_plan(" Top left RED clock ") == Scene((CLOCK,))


@pytest.mark.parametrize("text", ["", "red clock", "top left clock", "top left red clock,", "top red sticker"])
def test_what_is_no_plan_gives_none(text):
    assert parse_plan(text) is None


@given(EDITS)
def test_an_instruction_comes_back(edit: Edit):
    assert parse_instruction(instruction_text(edit)) == edit


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Edit("add", "top left", "clock", "red"), "add a red clock at top left"),
        (Edit("add", "top", "apple", "orange", "larger"), "add a larger orange apple at top"),
        (Edit("remove", "top left", "clock", "red"), "remove the red clock at top left"),
        (Edit("remove", "center"), "remove the sticker at center"),
        (Edit("recolor", "top left", "clock", "blue"), "paint the clock at top left blue"),
        (Edit("move", "top left", "clock", to="bottom right"), "move the clock at top left to bottom right"),
        (Edit("swap", "top left", "apple"), "replace the sticker at top left with an apple"),
        (Edit("swap", "left", "orange", "orange"), "replace the sticker at left with an orange orange"),
        (Edit("resize", "top left", "clock", size="larger"), "make the clock at top left larger"),
    ],
)
def test_an_instruction_reads_as_shown(edit, text):
    assert instruction_text(edit) == text
    assert parse_instruction(f" {text.upper()}. ") == edit


@pytest.mark.parametrize("text", ["", "add a clock at top", "remove the cat", "add a red sticker at top", "x"])
def test_what_is_no_instruction_gives_none(text):
    assert parse_instruction(text) is None


def test_a_reflection_says_what_is_seen_and_what_failed():
    spec = Spec("color_count_attr", (Item("clock", 3, "red"), Item("cat", 1, "white")))
    seen = "top left red clock one red yes, bottom right larger black cat one white no"
    failed = "three clocks: found one, cat is white: found black"
    assert reflection_text(PAIR, spec, fix(PAIR, spec, 0)) == f"{seen}. {failed}."
    alone = Spec("single_object", (Item("clock"),))
    assert reflection_text(Scene((CLOCK,)), alone, None) == f"top left red clock one. {ALL_HELD}."
    assert reflection_text(Scene(()), alone, fix(Scene(()), alone, 0)) == f"{EMPTY_PLAN}. one clock: found zero."


def test_a_reflection_names_three_failed_checks_and_nothing_of_what_is_not_there():
    colors = ("red", "white", "green", "blue")
    spec = Spec("color_attr", tuple(Item(name, 1, color) for name, color in zip(CLASSES, colors, strict=False)))
    missing = ", ".join(f"one {item.name}: found zero" for item in spec.include[:3])
    assert reflection_text(Scene(()), spec, fix(Scene(()), spec, 0)) == f"{EMPTY_PLAN}. {missing}."


def test_an_instruction_uses_what_its_reflection_names():
    scene = Scene((*(Sticker("bowl", "red", 16 + 32 * column, 16) for column in range(3)), CAT))
    spec = Spec("multi_object_count_attr", (Item("bowl", 2), Item("carrot", 1), Item("cat", 1)))
    edit = fix(scene, spec, 0)
    assert reflection_text(scene, spec, edit).endswith(". two bowls: found three, one carrot: found zero.")
    assert edit is not None and (edit.kind, edit.name) == ("swap", "carrot")


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([Item("clock"), Item("cat")], ["one", "one"]),
        ([Item("clock")], ["one", "extra"]),
        ([Item("cat", color="white"), Item("clock", color="red")], ["one red yes", "one white no"]),
        ([Item("clock", region="right"), Item("cat", region="right")], ["one right no", "one right yes"]),
        ([Item("clock", size="larger"), Item("cat", size="smaller")], ["one larger no", "one smaller no"]),
        ([Item("cat"), Item("clock", position=("below", 0))], ["one below no", "one"]),
        ([Item("dog"), Item("clock", position=("below", 0))], ["one below no", "extra"]),
        ([Item("cat", 1, "black", "right", "larger")], ["extra", "one black yes right yes larger yes"]),
    ],
)
def test_every_sticker_is_held_against_the_prompt_where_it_is_named(items, said):
    assert remarks(PAIR, Spec("any", tuple(items))) == said


def test_stickers_of_an_item_are_numbered_and_those_beyond_it_are_extra():
    row = Scene(tuple(Sticker("cat", color, x, 16) for color, x in (("red", 16), ("blue", 48), ("red", 80))))
    assert remarks(row, Spec("any", (Item("cat", 2, "red"),))) == ["one red yes", "two red no", "three red yes extra"]


def test_what_is_wrong_is_remarked_on_a_sticker_or_is_missing():
    for seed in range(200):
        spec = random_spec(seed)
        right = Scene.sample(spec, seed)
        for scene in (right, spoil(right, spec, seed, 1 + seed % 3)):
            remarked = any(" no" in said or "extra" in said for said in remarks(scene, spec))
            short = any(len(members(scene.stickers, spec, at)) < one.count for at, one in enumerate(spec.include))
            assert (remarked or short) == any(not fact.held for fact in check(scene, spec))


def test_a_reflection_is_split_into_what_is_listed_and_what_that_is_worth():
    text = "top left red clock one red yes, bottom right larger black cat extra. three clocks: found one."
    assert split_remarks(text) == [
        ("top left red clock", False),
        ("one red yes", True),
        (", bottom right larger black cat", False),
        ("extra", True),
        (". three clocks: found one.", True),
    ]
    empty = split_remarks(f"{EMPTY_PLAN}. one clock: found zero.")
    assert empty == [(EMPTY_PLAN, False), (". one clock: found zero.", True)]


def test_reading_and_following_an_instruction_mends_the_picture():
    for seed in range(50):
        spec = random_spec(seed)
        scene = spoil(Scene.sample(spec, seed), spec, seed)
        for _ in range(9):
            edit = fix(scene, spec, seed)
            if edit is None:
                break
            assert ALL_HELD not in reflection_text(scene, spec, edit)
            heard = parse_instruction(instruction_text(edit))
            assert heard is not None
            scene = apply(scene, heard, seed)
        assert all(fact.held for fact in check(scene, spec))
        assert reflection_text(scene, spec, None).endswith(f". {ALL_HELD}.")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes that meet a spec, half of them stirred by an edit."""
    sampled = [Scene.sample(random_spec(seed), seed) for seed in range(500)]
    return [apply(one, random_edit(one, seed), seed) if seed % 2 else one for seed, one in enumerate(sampled)]


def ask(scenes: list[Scene], kind: str, each: int = 1) -> list[tuple[Scene, str, str]]:
    """Questions of a kind, some about `each` scene, with their answers."""
    seeds = range(each * len(scenes))
    return [(scenes[seed // each], *question_answer(scenes[seed // each], seed, kind)) for seed in seeds]


def meant(scene: Scene, words: str) -> list[Sticker]:
    """The stickers that words like "red clock", "clocks", "stickers" or "clock at top" mean."""
    thing, _, cell = words.partition(" at ")
    fits = []
    for one in scene.stickers:
        called = {"stickers", one.name, plural(one.name)}
        called |= {f"{one.color} {name}" for name in called}
        if thing in called and cell in ("", one.cell):
            fits.append(one)
    return fits


def answer_to(scene: Scene, question: str) -> str:
    """The right answer, worked out from the question's words alone."""
    words = question.removesuffix("?")
    for opening in ("is there an ", "is there a "):
        if words.startswith(opening):
            return "yes" if meant(scene, words.removeprefix(opening)) else "no"
    if words.startswith("how many "):
        return NUMBERS[len(meant(scene, words[len("how many ") : -len(" are there")]))]
    if words.startswith("what is at "):
        here = [one for one in scene.stickers if one.cell == words.removeprefix("what is at ")]
        return " or ".join(f"{one.color} {one.name}" for one in here) or "nothing"
    if words.startswith(("what color is the ", "where is the ")):
        (one,) = meant(scene, words.split(" the ", 1)[1])
        return one.color if words.startswith("what") else one.cell
    if words.startswith("which is larger, the "):
        pair = words.removeprefix("which is larger, the ").split(" or the ")
        return max(pair, key=lambda name: SIZES[meant(scene, name)[0].size])
    words = words.removeprefix("is the ")
    for sides in (("left", "right"), ("above", "below")):
        if words.endswith(" or ".join(sides)):
            (one,) = meant(scene, words.removesuffix(" or ".join(sides)).strip())
            return next(side for side in sides if in_region(one, side))
    for relation in ("left of", "right of", "above", "below", "larger than", "smaller than"):
        if f" {relation} the " in words:
            (first,), (second,) = (meant(scene, name) for name in words.split(f" {relation} the "))
            holds = {
                "left of": first.x + 6 < second.x,
                "right of": first.x > second.x + 6,
                "above": first.y + 6 < second.y,
                "below": first.y > second.y + 6,
                "larger than": first.side > second.side,
                "smaller than": first.side < second.side,
            }
            return "yes" if holds[relation] else "no"
    raise AssertionError(question)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_right(kind, scenes):
    for scene, question, answer in ask(scenes, kind):
        assert answer_to(scene, question) == answer, (question, plan_text(scene))


@pytest.mark.parametrize("kind", ["presence", "relation"])
def test_yes_and_no_come_equally_often(kind, scenes):
    answers = Counter(answer for _, _, answer in ask(scenes, kind, 4))
    assert 0.45 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.55


def test_no_number_and_no_color_is_a_good_guess(scenes):
    numbers = Counter(answer for _, _, answer in ask(scenes, "count", 2))
    assert max(numbers.values()) < 400 and numbers["one"] < 200 and set(numbers) == set(NUMBERS)
    colors = Counter(answer for _, _, answer in ask(scenes, "color", 2))
    assert max(colors.values()) < 170


def test_questions_of_an_empty_picture_are_about_nothing():
    answers = {question_answer(Scene(()), seed)[1] for seed in range(200)}
    assert answers == {"no", "zero", "nothing"}
    assert question_answer(PAIR, 3) == question_answer(PAIR, 3)


def test_whether_a_text_fits():
    assert fits_question("A photo of two clocks.") == "does the picture show a photo of two clocks?"
