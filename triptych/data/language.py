"""Specs to prompts: GenEval's and GenEval++'s wording, to the letter.

The sentence follows from a spec's tag and items. The article is "an" before a vowel letter; a plural is the name + "es"
after an "s" and + "s" otherwise ("skises", "couchs"); a count with a colour or a region takes the plural even for one
("one cats on the right"); colour with region has no article; GenEval++ opens with a capital. `parsing.py` reads these
sentences back, and freer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from triptych.data.scene import NUMBERS
from triptych.trace import Item, Spec

Wording = Literal["geneval", "genevalpp"]

FREE = "free"  # the tag of a spec that neither benchmark asks for
GENEVAL_TAGS = ("single_object", "two_object", "position", "colors")  # colours and counts are in both benchmarks
COUNTED_TAGS = ("counting", "spatial_count_attr", "color_count_attr", "multi_object_count_attr")  # "one", never "a"


def article(word: str) -> str:
    """GenEval's article: "an" before a vowel letter, else "a", by spelling and not by sound."""
    return "an" if word.lower().startswith(tuple("aeiou")) else "a"


def plural(word: str) -> str:
    """GenEval's plural: "buses" and "skises", but also "couchs", "knifes" and "persons"."""
    return word + ("es" if word.endswith("s") else "s")


def listing(phrases: Sequence[str]) -> str:
    """Phrases as a list in a sentence: "X", "X and Y" or "X, Y, and Z"."""
    if len(phrases) <= 2:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + f", and {phrases[-1]}"


def wording_of(spec: Spec) -> Wording:
    """The benchmark that a spec would be from: GenEval counts to four and colours at most two things."""
    if spec.tag == "counting":
        return "geneval" if spec.include[0].count <= 4 else "genevalpp"
    if spec.tag == "color_attr":
        return "geneval" if len(spec.include) <= 2 else "genevalpp"
    return "geneval" if spec.tag in GENEVAL_TAGS else "genevalpp"


def prompt_text(spec: Spec, wording: Wording | None = None) -> str:
    """The sentence of a spec, to the letter of its benchmark; without `wording`, of the one that `wording_of` names."""
    clauses: list[str] = []
    head = -1  # the item that the last clause begins with
    for index, item in enumerate(spec.include):
        phrase = item_text(item, spec.tag)
        if item.position is None:
            clauses.append(phrase)
        elif item.position[1] == head:
            clauses[-1] = f"{phrase} {item.position[0]} {clauses[-1]}"
        else:
            relation, other = item.position
            clauses.append(f"{phrase} {relation} the {mention(spec.include[other])}")
        head = index
    opening = "a photo of" if (wording or wording_of(spec)) == "geneval" else "A photo of"
    return f"{opening} {listing(clauses)}"


def item_text(item: Item, tag: str) -> str:
    """One item as its benchmark words it: "a red cat", "one cats on the right", "red cat on the left"."""
    counted = item.count != 1 or tag in COUNTED_TAGS
    name = plural(item.name) if item.count != 1 or (counted and (item.color or item.region)) else item.name
    words = [word for word in (item.size, item.color, name) if word]
    if counted:
        words.insert(0, NUMBERS[item.count])
    elif tag != "color_spatial_attr":
        words.insert(0, article(words[0]))
    return " ".join(words) + (f" on the {item.region}" if item.region else "")


def mention(item: Item) -> str:
    """An item that was named before, as it is named again: "red cat"."""
    return f"{item.color} {item.name}" if item.color else item.name
