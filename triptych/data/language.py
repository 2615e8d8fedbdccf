"""Specs to prompts in GenEval's and GenEval++'s wording, to the letter, and prompts back to specs.

A sentence follows from a spec's tag and items. The article is "an" before a vowel letter; a plural is the name + "es"
after an "s" and + "s" otherwise ("skises", "couchs"); a count with a color or a region takes the plural even for one
("one cats on the right"); color with region has no article; GenEval++ opens with a capital. `parse_prompt` reads these
sentences and freer ones, with the words of `lexicon.py`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from triptych.data import lexicon
from triptych.data.layout import CELLS, REGION_CELLS
from triptych.data.lexicon import NUMBERS, article, plural
from triptych.data.scene import Scene
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError, PromptError
from triptych.text import clean_text
from triptych.trace import Item, Spec

Wording = Literal["geneval", "genevalpp"]

FREE_TAG = "free"  # the tag of a spec that is in neither benchmark's grammar
# Tags of GenEval alone: color_attr and counting are in both benchmarks, with other wordings.
_GENEVAL_ONLY = ("single_object", "two_object", "position", "colors")
COUNTED_TAGS = ("counting", "spatial_count_attr", "color_count_attr", "multi_object_count_attr")  # "one", never "a"

MAX_STICKERS = len(CELLS)  # of a picture: one a cell
MAX_PROMPT_WORDS, MAX_PROMPT_CHARACTERS = 120, 2000  # nine things with every attribute there is are 110 words
WORLD_SUMMARY = (
    f"SKETCH knows {len(CLASSES)} things ({', '.join(CLASSES[:3])}, ..., {CLASSES[-1]}), {len(COLORS)} colors "
    f"({', '.join(COLORS)}), counts one to nine, sides (left, right, above, below) and sizes (larger, smaller)"
)


def listing(phrases: Sequence[str]) -> str:
    """Phrases as a list in a sentence: "X", "X and Y" or "X, Y, and Z"."""
    if len(phrases) <= 2:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + f", and {phrases[-1]}"


def wording_of(spec: Spec) -> Wording:
    """The benchmark that a spec would be from: GenEval counts to four and has colors of at most two things."""
    if spec.tag == "counting":
        return "geneval" if spec.include[0].count <= 4 else "genevalpp"
    if spec.tag == "color_attr":
        return "geneval" if len(spec.include) <= 2 else "genevalpp"
    # Free specs too: GenEval++ has sizes, regions and counts of several things.
    return "geneval" if spec.tag in _GENEVAL_ONLY else "genevalpp"


def prompt_text(spec: Spec, wording: Wording | None = None) -> str:
    """The sentence of a spec, to the letter of its benchmark; without `wording`, of the one that `wording_of` names."""
    clauses: list[str] = []
    head = -1  # index of the item that the last clause begins with
    for index, item in enumerate(spec.include):
        phrase = item_text(item, spec.tag)
        if item.position is None:
            clauses.append(phrase)
        elif item.position[1] == head:  # the placed thing comes first: "a dog right of a cat" has the items cat, dog
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
    # GenEval++ has the plural even for one where a color or region follows the count: "one cats on the right".
    name = plural(item.name) if item.count != 1 or (counted and (item.color or item.region)) else item.name
    words = [word for word in (item.size, item.color, name) if word]
    if counted:
        words.insert(0, NUMBERS[item.count])
    elif tag != "color_spatial_attr":
        words.insert(0, article(words[0]))
    return " ".join(words) + (f" on the {item.region}" if item.region else "")


def mention(item: Item) -> str:
    """An item as a later clause refers to it: "red cat"."""
    return f"{item.color} {item.name}" if item.color else item.name


def parse_prompt(text: str) -> Spec:
    """The spec of a sentence about the sticker world: a benchmark's own, or a free one ("draw 3 dogs left of a sofa").

    The tag is that of the benchmark's grammar which the demands fit, or `FREE_TAG`. Raises PromptError for a sentence
    that is empty or too long, names something outside the world (with what the world has, and close words), cannot be
    read, demands more than nine stickers, or contradicts itself.
    """
    sentence = _plain(text)
    words = dict.fromkeys(sentence.replace(",", " ").split())
    unknown = [word for word in words if word not in lexicon.READABLE_WORDS and not word.isdecimal()]
    if unknown:
        raise PromptError(_outside(unknown))
    reader = _Reader(sentence)
    reader.read()
    items = reader.items
    tag = tag_of(items, reader.counted)
    # As in GenEval's counting prompts, whose rules count at least: one more is excluded.
    exclude = (Item(items[0].name, items[0].count + 1),) if tag == "counting" else ()
    spec = Spec(tag, tuple(items), exclude)
    check_drawable(spec)
    return spec


def check_drawable(spec: Spec) -> None:
    """Raise PromptError, with the reason, unless the sticker world has a picture that meets the spec."""
    items = spec.include
    unknown = [item.name for item in items if item.name not in CLASSES]
    unknown += [item.color for item in items if item.color not in (None, *COLORS)]
    unknown += [item.region for item in items if item.region not in (None, *REGION_CELLS)]
    unknown += [item.size for item in items if item.size not in (None, "larger", "smaller")]
    if unknown:
        raise PromptError(_outside(list(dict.fromkeys(unknown))))
    for item in items:
        if not 1 <= item.count <= MAX_STICKERS:
            raise PromptError(_miscounted(str(item.count), item.name))
    total = sum(item.count for item in items)
    if not 1 <= total <= MAX_STICKERS:
        raise PromptError(f"the prompt asks for {total} stickers; a picture holds 1 to {MAX_STICKERS}")
    # Words and numbers may fit and the places not, as with seven things on one side: only a layout tells.
    try:
        Scene.sample(spec, seed=0)
    except ConfigError as error:
        raise PromptError(f"no picture can be laid out for this prompt: {error}") from error


def tag_of(items: Sequence[Item], counted: bool) -> str:
    """The tag whose grammar has exactly these demands; `counted` where a number stands instead of an article."""
    # A benchmark's grammar makes a demand of every item or of none (but for the first of a relation).
    demanded = {field for item in items for field in ("color", "region", "size", "position") if getattr(item, field)}
    everywhere = {field for field in demanded if all(getattr(item, field) for item in items)}
    single = all(item.count == 1 for item in items)
    if demanded == {"position"} and single and [item.position is None for item in items] == [True, False]:
        return "position"
    if demanded != everywhere:
        return FREE_TAG
    if demanded == {"size", "region"} and single:
        return "size_spatial_attr"
    if demanded == {"color", "region"} and single:
        return "color_spatial_attr"
    if demanded == {"region"}:
        return "spatial_count_attr"
    if demanded == {"color"}:
        return "color_count_attr" if counted else "colors" if len(items) == 1 else "color_attr"
    if demanded:
        return FREE_TAG
    if len(items) == 1:
        return "counting" if counted else "single_object"
    return "multi_object_count_attr" if counted or len(items) > 2 else "two_object"


@dataclass
class _Reader:
    """Reads a plain sentence from left to right: clauses of things, each perhaps on a side, in a chain of relations."""

    text: str
    at: int = 0  # index of the next character
    items: list[Item] = field(default_factory=list)
    counted: bool = False  # whether the sentence has a number

    def read(self) -> None:
        """Fill `items`. Raises PromptError at the first word that does not fit."""
        self.text = lexicon.CLOSING.sub("", self.text)
        self.take(lexicon.OPENING)
        self.clause()
        while self.at < len(self.text):
            if not self.take(lexicon.SEPARATOR):
                raise self.unexpected("a comma, a side or a relation")
            self.clause()

    def clause(self) -> None:
        """Add "X", or the things of "X left of Y above Z": each reference before what is placed by it."""
        chain, relations, target = [self.thing()], [], None
        while target is None and (match := self.take(lexicon.RELATION)):
            relations.append(lexicon.RELATION_WORDS[match[1] or match[2]])
            target = self.reference()
            if target is None:
                chain.append(self.thing())
        if target is None:
            target = self.add(chain.pop())
        # From the end: "X left of Y above Z" places Y by Z, then X by Y.
        for relation in reversed(relations):
            target = self.add(replace(chain.pop(), position=(relation, target)))

    def thing(self) -> Item:
        """A thing with its count, size, color and side."""
        amount = self.take(lexicon.AMOUNT)  # before the article, for "a pair of"
        if amount is None and self.take(lexicon.ARTICLE):
            amount = self.take(lexicon.AMOUNT)
        size, color = self.take(lexicon.SIZE), self.take(lexicon.COLOR)
        size = size or self.take(lexicon.SIZE)  # "red small cat", too
        noun = self.take(lexicon.NOUN)
        if noun is None:
            raise self.unexpected("a thing")
        name = lexicon.NOUNS[noun[1]]
        if not amount and noun[1] not in lexicon.SINGULARS:
            raise PromptError(f"how many {noun[1]}? Say a number from one to nine, as in 'three {noun[1]}'")
        self.counted |= amount is not None
        region = self.take(lexicon.REGION)
        return Item(
            name=name,
            count=_count(amount[1], noun[1]) if amount else 1,
            color=color and color[1],
            region=region and lexicon.REGION_WORDS[region["side"]],
            size=size and lexicon.SIZE_WORDS[size[1]],
        )

    def reference(self) -> int | None:
        """The index of "the X" where an X was named before; else None, and nothing is read."""
        start = self.at
        article, color, noun = self.take(lexicon.ARTICLE), self.take(lexicon.COLOR), self.take(lexicon.NOUN)
        if article and article[1] and noun:
            name, word = lexicon.NOUNS[noun[1]], color and color[1]
            matches = [at for at, item in enumerate(self.items) if item.name == name and word in (None, item.color)]
            matches.sort(key=lambda index: self.items[index].color == word)  # the latest with exactly this color
            if matches:
                return matches[-1]
        self.at = start  # "the cat" may be a first mention, which `thing` reads from the article on
        return None

    def add(self, item: Item) -> int:
        """Append an item; its index."""
        self.items.append(item)
        return len(self.items) - 1

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Read over the pattern, if it comes next."""
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def unexpected(self, expected: str) -> PromptError:
        """The error of a sentence that does not go on as expected."""
        rest, before = self.text[self.at :].strip(), self.text[: self.at].strip()
        where = f"{_shortened(rest)!r}" if rest else "nothing more"
        return PromptError(f"after {before!r}: expected {expected}, found {where}. {WORLD_SUMMARY}")


def _plain(text: str) -> str:
    """The sentence in lower case, with a space after every word and comma, and no other marks between words."""
    if len(text) > MAX_PROMPT_CHARACTERS or len(text.split()) > MAX_PROMPT_WORDS:
        raise PromptError(
            f"the prompt has {len(text.split()):,} words and {len(text):,} letters; "
            f"expected at most {MAX_PROMPT_WORDS} words and {MAX_PROMPT_CHARACTERS:,} letters: ask for less"
        )
    try:
        # A caller of the library may pass soft hyphens and the like. By lines: a line break ends a clause.
        text = "\n".join(map(clean_text, text.split("\n")))
    except ValueError as error:
        raise PromptError(f"the prompt is not text: {error}; expected a sentence") from None
    text = unicodedata.normalize("NFKC", text).lower()  # full-width letters and ligatures become plain ones
    # Marks inside a clause separate words ("left-hand"); those of the split below end a clause.
    text = re.sub(r"[-_/()*\"\u201c\u201d\u2018\u2019]", " ", text).replace("&", " and ")
    clauses = (" ".join(clause.split()) for clause in re.split(r"[,.;:!?\n]", text))
    sentence = " , ".join(clause for clause in clauses if clause)
    if not sentence:
        raise PromptError("the prompt is empty; expected a sentence such as 'a photo of three red apples and a cat'")
    return f"{sentence} "  # the lexicon's patterns end with this space


def _count(amount: str, noun: str) -> int:
    number = lexicon.NUMBER_WORDS[amount] if amount in lexicon.NUMBER_WORDS else int(amount)
    if amount == "a pair of" and noun in lexicon.PAIR_NOUNS:
        return 1  # "a pair of scissors"; of cats it is two
    if not 1 <= number <= MAX_STICKERS:
        raise PromptError(_miscounted(amount, noun))
    return number


def _miscounted(amount: str, noun: str) -> str:
    return f"{_shortened(amount)} {noun}: expected one to nine, since a picture holds {MAX_STICKERS} stickers"


def _outside(unknown: Sequence[str]) -> str:
    """The message about words that the world does not have."""
    words = []
    # A pasted page has hundreds of unknown words; an error stays one line.
    for word in unknown[:5]:
        close = difflib.get_close_matches(word[:40], lexicon.SUGGESTIONS, n=2, cutoff=0.75)
        words.append(_shortened(word) + (f" (close: {', '.join(close)})" if close else ""))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f"unknown words: {', '.join(words)}{more}. {WORLD_SUMMARY}"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
