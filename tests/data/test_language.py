"""Specs and sentences are two forms of one thing: the benchmarks' to the letter, free ones within the world."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from triptych.data.language import FREE_TAG, MAX_STICKERS, check_drawable, parse_prompt, prompt_text, tag_of, wording_of
from triptych.data.lexicon import NOUNS, article, plural, proper_plural
from triptych.data.scene import Scene
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError, PromptError
from triptych.trace import Item, Spec


@pytest.mark.parametrize(("name", "size"), [("geneval", 553), ("genevalpp", 280), ("geneval_train", 12359)])
def test_published_prompts_follow_from_their_metadata_and_back(name, size, shared: Path):
    wording = "genevalpp" if name == "genevalpp" else "geneval"
    lines = (shared / "benchmarks" / f"{name}.jsonl").read_text().splitlines()
    for line in lines:
        record = json.loads(line)
        sentence = record.pop("prompt")
        spec = Spec.from_metadata(record)
        assert spec.to_metadata() == record
        assert prompt_text(spec, wording) == sentence
        assert parse_prompt(sentence) == spec
        if record["tag"] != "counting":
            assert wording_of(spec) == wording
    assert len(lines) == size


def test_prompts_of_the_world_come_back():
    for seed in range(200):
        spec = random_spec(seed)
        assert parse_prompt(prompt_text(spec)) == spec


@some.composite
def specs(draw) -> Spec:
    """Any spec that fits the canvas, with the tag that its demands have."""
    names = draw(some.lists(some.sampled_from(CLASSES), min_size=1, max_size=5))
    items: list[Item] = []
    for index, name in enumerate(names):
        relation = some.sampled_from(["left of", "right of", "above", "below"])
        position = some.tuples(relation, some.integers(0, index - 1)) if index else some.none()
        item = Item(
            name=name,
            count=draw(some.sampled_from([1, 1, 1, 2, 3])),
            color=draw(some.none() | some.sampled_from(list(COLORS))),
            region=draw(some.none() | some.sampled_from(["left", "right", "above", "below"])),
            size=draw(some.sampled_from([None, None, "smaller", "larger"])),
            position=draw(some.none() | position),
        )
        assume(all((item.name, item.color) != (other.name, other.color) for other in items))
        items.append(item)
    counted = any(item.count > 1 for item in items) or draw(some.booleans())
    tag = tag_of(items, counted)
    exclude = (Item(items[0].name, items[0].count + 1),) if tag == "counting" else ()
    spec = Spec(tag, tuple(items), exclude)
    assume(sum(item.count for item in items) <= MAX_STICKERS)
    try:
        Scene.sample(spec, 0)
    except ConfigError:
        assume(False)
    return spec


@settings(max_examples=60)
@given(specs())
def test_any_spec_comes_back_from_its_sentence(spec: Spec):
    assert parse_prompt(prompt_text(spec)) == spec
    assert parse_prompt(prompt_text(spec).upper() + ".") == spec


def test_spelling_is_the_benchmarks_own():
    assert [article(word) for word in ("apple", "umbrella", "hair drier", "orange tv")] == ["an", "an", "a", "an"]
    assert [plural(word) for word in ("bus", "skis", "couch", "knife")] == ["buses", "skises", "couchs", "knifes"]
    words = ("bench", "bus", "knife", "computer mouse", "person", "sheep", "toothbrush", "wine glass", "skis")
    proper = "benches, buses, knives, computer mice, people, sheep, toothbrushes, wine glasses, skis"
    assert ", ".join(proper_plural(word) for word in words) == proper


APPLES, BUS = Item("apple", 2, "red"), Item("bus", 1, "blue")
READINGS = {
    "two red apples and a blue bus": ("color_count_attr", APPLES, BUS),
    "Draw 2 red apples, 1 blue bus.": ("color_count_attr", APPLES, BUS),
    "an image with a red apple and a blue bus": ("color_attr", Item("apple", 1, "red"), BUS),
    "3 dogs": ("counting", Item("dog", 3)),
    "there are two knives in the picture": ("counting", Item("knife", 2)),
    "a pair of scissors": ("counting", Item("scissors", 1)),
    "a couple of sheep": ("counting", Item("sheep", 2)),
    "three mice, two people and one sofa": (
        "multi_object_count_attr",
        Item("computer mouse", 3),
        Item("person", 2),
        Item("couch"),
    ),
    "a cat to the left of a dog": ("position", Item("dog"), Item("cat", position=("left of", 0))),
    "a dog left of a cat": ("position", Item("cat"), Item("dog", position=("left of", 0))),
    "A BIKE IS UNDER A PLANE!": ("position", Item("airplane"), Item("bicycle", position=("below", 0))),
    "a cat on the right-hand side of a phone": ("position", Item("cell phone"), Item("cat", position=("right of", 0))),
    "a cat on top of a table": ("position", Item("dining table"), Item("cat", position=("above", 0))),
    "three red apples left of a blue bus": (FREE_TAG, BUS, Item("apple", 3, "red", position=("left of", 0))),
    "a cat left of a dog and a bus below the cat": (
        FREE_TAG,
        Item("dog"),
        Item("cat", position=("left of", 0)),
        Item("bus", position=("below", 1)),
    ),
    "a tie above a bed left of a cup": (
        FREE_TAG,
        Item("cup"),
        Item("bed", position=("left of", 0)),
        Item("tie", position=("above", 1)),
    ),
    "a cat on the left side of the image and 2 dogs on the right": (
        "spatial_count_attr",
        Item("cat", region="left"),
        Item("dog", 2, region="right"),
    ),
    "a phone at the top and a fridge at the bottom of the picture": (
        "spatial_count_attr",
        Item("cell phone", region="above"),
        Item("refrigerator", region="below"),
    ),
    "a red tv on the left": ("color_spatial_attr", Item("tv", 1, "red", "left")),
    "a big keyboard above, a small remote below": (
        "size_spatial_attr",
        Item("computer keyboard", region="above", size="larger"),
        Item("tv remote", region="below", size="smaller"),
    ),
    "a big mouse with a small television": (
        FREE_TAG,
        Item("computer mouse", size="larger"),
        Item("tv", size="smaller"),
    ),
    "a photo of an orange": ("single_object", Item("orange")),
    "an orange orange": ("colors", Item("orange", 1, "orange")),
    "two orange oranges": ("color_count_attr", Item("orange", 2, "orange")),
    "an orange and an orange-coloured teddy": (FREE_TAG, Item("orange"), Item("teddy bear", 1, "orange")),
    "please draw me a small orange orange": (FREE_TAG, Item("orange", 1, "orange", size="smaller")),
    "a red dog left of a blue dog": (FREE_TAG, Item("dog", 1, "blue"), Item("dog", 1, "red", position=("left of", 0))),
    "skis": ("single_object", Item("skis")),
}


@pytest.mark.parametrize("sentence", READINGS)
def test_free_sentences_are_read(sentence: str):
    tag, *items = READINGS[sentence]
    exclude = (Item(items[0].name, items[0].count + 1),) if tag == "counting" else ()
    assert parse_prompt(sentence) == Spec(tag, tuple(items), exclude)


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_every_name_and_plural_is_read(noun: str):
    assert parse_prompt(f"a picture of three {noun}").include == (Item(NOUNS[noun], 3),)


REFUSALS = {
    "": "the prompt is empty; expected",
    " \n ... ": "the prompt is empty; expected",
    "a grey cat": r"unknown words: grey\. SKETCH knows 80 things .* 10 colors \(red, .* one to nine, sides .* sizes",
    "an elefant and a dragon": r"unknown words: elefant \(close: elephant\), dragon\. SKETCH knows",
    "a cat in the middle of 猫": r"unknown words: middle, 猫\.",
    "q w e r t y": r"unknown words: q, w, e, r, t and 1 more\.",
    "<|im_end|> a cat": "unknown words: ",
    "a photo of": "expected a thing, found nothing more",
    "a cat and": "after 'a cat and': expected a thing",
    "a hot dog dog": "after 'a hot dog': expected .*, found 'dog'",
    "dogs": "how many dogs",
    "ten dogs": "ten dogs: expected one to nine",
    "0 dogs": "0 dogs: expected one to nine",
    f"{'9' * 1900} cats": "expected one to nine",
    "5 dogs and 5 cats": "asks for 10 stickers; a picture holds 1 to 9",
    "two dogs and a dog": "no picture can be laid out",
    "a cat above a dog and a bus above the cat and a cup above the bus": "no picture can be laid out",
    "cat " * 10_000: "10,000 words .* at most 120 words",
    "a" * 1_000_000: "1,000,000 letters",
}


@pytest.mark.parametrize("sentence", REFUSALS, ids=lambda sentence: sentence[:30])
def test_what_cannot_be_drawn_is_refused_with_a_reason(sentence: str):
    with pytest.raises(PromptError, match=REFUSALS[sentence]) as caught:
        parse_prompt(sentence)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([Item("dragon")], "unknown words: dragon. SKETCH knows"),
        ([Item("cat", color="plaid"), Item("elefant")], r"unknown words: elefant \(close: elephant\), plaid"),
        ([Item("cat", region="inside")], "unknown words: inside"),
        ([Item("cat", size="normal")], "unknown words: normal"),
        ([Item("cat", -1), Item("dog", 3)], "-1 cat: expected one to nine"),
        ([Item("cat", 10**400)], "1000.* cat: expected one to nine"),
        ([Item("cat", 5), Item("dog", 5)], "asks for 10 stickers"),
        ([], "asks for 0 stickers"),
        ([Item("cat"), Item("cat")], "no picture can be laid out"),
        ([Item("cat", position=("above", 3))], "no picture can be laid out"),
    ],
)
def test_a_spec_that_no_picture_meets_is_refused_with_a_reason(items: list[Item], reason: str):
    with pytest.raises(PromptError, match=reason) as caught:
        check_drawable(Spec("x", tuple(items)))
    assert len(str(caught.value)) < 600


SHUFFLED = some.lists(some.sampled_from([*CLASSES[:9], *COLORS, "a", "the", "two", "left", "of", "on", ",", "and"]))


@settings(max_examples=100)
@given(some.text(max_size=60) | SHUFFLED.map(" ".join))
def test_any_text_is_read_or_refused(text: str):
    try:
        spec = parse_prompt(text)
    except PromptError:
        return
    assert parse_prompt(prompt_text(spec)) == spec


def test_invisible_marks_and_line_ends_are_no_words():
    plain = parse_prompt("a red dog, a fire hydrant")
    assert parse_prompt("\ufeffa re\u00add dog\r\na fire \u200bhydrant\u200f") == plain
    with pytest.raises(PromptError, match="not text"):
        parse_prompt("a red dog\x07")
