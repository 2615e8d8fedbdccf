"""The texts about a sticker picture: plan, reflection, instruction, and questions with their answers.

Every writer stands beside its parser, and no text leaves the closed vocabulary of `lexicon.py`. A sticker reads "top
left larger red clock": cell, size unless normal, color, class. A list of stickers runs through the cells in reading
order.

Answers cannot be guessed without looking. Yes and no come equally often; a number is drawn from all those that some
question about the scene has; and a thing that is asked for but absent is close to what is there (a red clock, where one
is blue).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Literal

from triptych.data.edits import Edit
from triptych.data.layout import CELL, CELLS, SIZES
from triptych.data.lexicon import EXTRA, NO, NUMBERS, YES, article, number_word, plural
from triptych.data.scene import POSITION_BAND, Scene, Sticker, check, clearance, in_region, members, size_holds
from triptych.data.stickers import CLASSES, COLORS
from triptych.seeds import named_rng
from triptych.trace import Spec

EMPTY_PLAN = "nothing"  # the list of no stickers
ALL_HELD = "all as asked"
ABSENT_ENDING = ": found none"  # of a check about something that is not there; its count check says that already
MAX_FAILURES = 3  # failed checks that a reflection names: enough to copy an instruction from, and short
ANY_CLASS = "sticker"  # stands for the class that an edit does not name
QuestionAnswer = tuple[str, str]  # question, answer; both within the closed vocabulary


def _group(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(sorted(words, key=len, reverse=True))})"


# Patterns of the parsers. The longest words come first, so that "top left" is not read as "top".
_SIZE, _COLOR, _NAME = f"(?:{_group('size', SIZES)} )?", f"{_group('color', COLORS)} ", _group("name", CLASSES)
_AT, _TO = _group("cell", CELLS), _group("to", CELLS)
_THERE = f"{_SIZE}(?:{_COLOR})?{_group('name', (*CLASSES, ANY_CLASS))} at {_AT}"
_STICKER = re.compile(f"{_AT} {_SIZE}{_COLOR}{_NAME}")
_INSTRUCTIONS: dict[Literal["add", "remove", "recolor", "move", "swap", "resize"], re.Pattern[str]] = {
    "add": re.compile(f"add an? {_SIZE}{_COLOR}{_NAME} at {_AT}"),
    "remove": re.compile(f"remove the {_THERE}"),
    "recolor": re.compile(f"paint the {_group('name', (*CLASSES, ANY_CLASS))} at {_AT} {_group('color', COLORS)}"),
    "move": re.compile(f"move the {_THERE} to {_TO}"),
    "swap": re.compile(f"replace the {ANY_CLASS} at {_AT} with an? {_SIZE}(?:{_COLOR})?{_NAME}"),
    "resize": re.compile(f"make the {_group('name', (*CLASSES, ANY_CLASS))} at {_AT} {_group('size', SIZES)}"),
}


def plan_text(scene: Scene) -> str:
    """A scene as a list of stickers: "top left red clock, bottom right larger black cat"; "nothing" if it is empty."""
    return ", ".join(f"{one.cell} {_thing(one)}" for one in scene.ordered()) or EMPTY_PLAN


def parse_plan(text: str) -> Scene | None:
    """The scene that a plan lists, each sticker in the center of its cell; None if the text is not such a list."""
    text = text.strip().lower()  # a model may begin with a capital
    if text == EMPTY_PLAN:
        return Scene(())
    matches = [_STICKER.fullmatch(part) for part in text.split(", ")]
    stickers = [_sticker(match) for match in matches if match]
    return Scene(tuple(stickers)) if len(stickers) == len(matches) else None


def reflection_text(scene: Scene, spec: Spec, edit: Edit | None) -> str:
    """A list of the stickers with a remark on each, then the failed checks, or that all is well if there is no `edit`.

    Such as "top left red clock one right no, left black cat extra. three clocks: found one, nothing else: found black
    cat." Every sticker is compared with the prompt where it is named (`remarks`), so that the verdict has only to sum
    up. The first MAX_FAILURES failed checks follow in spec order. model/templates.py adds the tags and the instruction.
    """
    failed = [fact.text for fact in check(scene, spec) if not fact.held and not fact.text.endswith(ABSENT_ENDING)]
    verdict = ALL_HELD if edit is None or not failed else ", ".join(failed[:MAX_FAILURES])
    return f"{remarked_text(scene, spec)}. {verdict}."


def remarked_text(scene: Scene, spec: Spec) -> str:
    """The list of a picture's stickers with a remark after each: "top left red clock one right no"."""
    pairs = zip(scene.ordered(), remarks(scene, spec), strict=True)
    return ", ".join(f"{one.cell} {_thing(one)} {remark}" for one, remark in pairs) or EMPTY_PLAN


def remarks(scene: Scene, spec: Spec) -> list[str]:
    """A remark on each sticker, in reading order: its number within its item, and each demand with yes or no.

    Such as "two", "one red no left yes" (it is on the left, and not red), "four extra" where three are demanded, or
    "extra" where it belongs to no item.
    """
    stickers = scene.ordered()
    groups = [members(stickers, spec, index) for index in range(len(spec.include))]
    # By identity: two stickers may be equal (same class, color and place).
    texts = {id(sticker): EXTRA for sticker in stickers}
    for item, group in zip(spec.include, groups, strict=True):
        for number, sticker in enumerate(group, start=1):
            facts: list[tuple[str, bool]] = []
            if item.color is not None:
                facts.append((item.color, sticker.color == item.color))
            if item.region is not None:
                facts.append((item.region, in_region(sticker, item.region)))
            if item.size is not None:
                facts.append((item.size, size_holds(sticker, item.size, spec, groups)))
            if item.position is not None:
                relation, others = item.position[0], groups[item.position[1]]
                facts.append((relation, bool(others) and clearance(relation, sticker, others) > POSITION_BAND))
            words = [f"{fact} {YES if holds else NO}" for fact, holds in facts]
            texts[id(sticker)] = " ".join([number_word(number), *words, *[EXTRA] * (number > item.count)])
    return [texts[id(sticker)] for sticker in stickers]


def split_remarks(reflection: str) -> list[tuple[str, bool]]:
    """A reflection in pieces, in order: False for a sticker of the list, True for a remark or the verdict.

    A list without remarks is one piece. SFT puts its loss on the remarks alone where there is no picture to list.
    """
    # The verdict begins behind the first full stop; no sticker or remark has one.
    if ". " not in reflection:
        return [(reflection, False)]
    listed, verdict = reflection.split(". ", 1)
    pieces: list[tuple[str, bool]] = []
    for number, part in enumerate(listed.split(", ")):
        if (sticker := _STICKER.match(part)) is None:
            pieces.append((part, False))
            continue
        comma = ", " if number else ""
        pieces += [(comma + sticker[0], False), (part[sticker.end() :].strip(), True)]
    return [*pieces, (f". {verdict}", True)]


def instruction_text(edit: Edit) -> str:
    """An edit as an order: "add a red clock at top left", "move the clock at top left to bottom right"."""
    thing = " ".join(word for word in (edit.size, edit.color, edit.name or ANY_CLASS) if word)
    match edit.kind:
        case "add":
            return f"add {article(thing)} {thing} at {edit.cell}"
        case "remove":
            return f"remove the {thing} at {edit.cell}"
        case "recolor":
            return f"paint the {edit.name or ANY_CLASS} at {edit.cell} {edit.color}"
        case "move":
            return f"move the {thing} at {edit.cell} to {edit.to}"
        case "swap":
            return f"replace the {ANY_CLASS} at {edit.cell} with {article(thing)} {thing}"
        case "resize":
            return f"make the {edit.name or ANY_CLASS} at {edit.cell} {edit.size}"


def parse_instruction(text: str) -> Edit | None:
    """The edit that an order asks for; None if the text is not an order that `instruction_text` writes."""
    text = text.strip().lower().removesuffix(".")
    for kind, pattern in _INSTRUCTIONS.items():
        # "sticker" names no class: it stands where the edit leaves the class open.
        if match := pattern.fullmatch(text):
            facts = {key: value for key, value in match.groupdict().items() if value != ANY_CLASS}
            return Edit(kind, **facts)
    return None


def question_answer(scene: Scene, seed: int, kind: str | None = None) -> QuestionAnswer:
    """A question about the scene and its right answer, of the named `kind` or of one drawn by `seed`.

    A kind that the scene has no question of (the color of what, in an empty picture?) gives way to "presence".
    """
    rng = named_rng("question", seed)  # of its own: no draw of the scene with this seed moves
    make = QUESTION_KINDS[kind or rng.choice(tuple(QUESTION_KINDS))]
    return make(scene, rng) or _presence(scene, rng)


def describe_question() -> str:
    """What there is to see, answered by a list of stickers as in a plan."""
    return "what is in the picture?"


def fits_question(text: str) -> str:
    """Whether a picture fits a prompt, as a question that is answered "yes" or "no"."""
    return f"does the picture show {text[:1].lower()}{text[1:].removesuffix('.')}?"


def presence_question(thing: str) -> str:
    """Whether a thing is there, answered "yes" or "no"."""
    return f"is there {article(thing)} {thing}?"


def count_question(things: str) -> str:
    """How many there are of `things` (a plural), answered by a word of NUMBERS."""
    return f"how many {things} are there?"


def color_question(name: str) -> str:
    """The color of the only such thing."""
    return f"what color is the {name}?"


def side_question(name: str, sides: tuple[str, str]) -> str:
    """On which of two opposite `sides` the only such thing is."""
    return f"is the {name} {' or '.join(sides)}?"


def larger_question(first: str, second: str) -> str:
    """Which of two things is larger, answered by its name as it stands in the question."""
    return f"which is larger, the {first} or the {second}?"


def _presence(scene: Scene, rng: Random) -> QuestionAnswer:
    """Such as "is there a red clock?" "no"."""
    there = {(sticker.color, sticker.name) for sticker in scene.stickers}
    names = {name for _, name in there}
    present = bool(there) and rng.random() < 0.5  # yes and no equally often
    color, name = rng.choice(sorted(there) or [("red", "clock")])  # sets have no fixed order
    colored = rng.random() < 0.5
    # A "no" is a near miss where it can be: a class that is there in another color.
    if not present and colored and there and rng.random() < 0.7:
        color = rng.choice([other for other in COLORS if (other, name) not in there])
    elif not present:
        name = rng.choice([other for other in CLASSES if other not in names])
    thing = f"{color} {name}" if colored else name
    return presence_question(thing), YES if present else NO


def _count(scene: Scene, rng: Random) -> QuestionAnswer:
    """Such as "how many red clocks are there?" "two"."""
    amounts = Counter({"stickers": len(scene.stickers)})
    amounts[plural(rng.choice(CLASSES))] += 0  # a question whose answer may be zero
    for sticker in scene.stickers:
        amounts[plural(sticker.name)] += 1
        amounts[f"{sticker.color} stickers"] += 1
        amounts[f"{sticker.color} {plural(sticker.name)}"] += 1
        amounts[f"{rng.choice(tuple(COLORS))} {plural(sticker.name)}"] += 0
    # A crowded scene may have ten or more, and NUMBERS ends at nine.
    amounts = {things: number for things, number in amounts.items() if number < len(NUMBERS)}
    numbers = sorted(set(amounts.values()))
    weights = [1 if number < 2 else 3 for number in numbers]  # every scene has a zero and a one, few have a seven
    (number,) = rng.choices(numbers, weights)
    things = rng.choice([things for things, amount in amounts.items() if amount == number])
    return count_question(things), NUMBERS[number]


def _color(scene: Scene, rng: Random) -> QuestionAnswer | None:
    """Such as "what color is the clock?" "red"."""
    candidates = _references(scene, rng, with_color=False)
    if not candidates:
        return None
    sticker, name = rng.choice(candidates)
    return color_question(name), sticker.color


def _place(scene: Scene, rng: Random) -> QuestionAnswer | None:
    """Such as "where is the clock?" "top left"; "what is at top?" "red clock"; "is the clock left or right?" "left"."""
    alone = [sticker for sticker in scene.stickers if _stands_alone(scene, sticker)]
    empty = [cell for cell in CELLS if cell not in scene.cells]
    # Empty cells are asked about now and then, so that "nothing" is an answer but not a good guess.
    if empty and rng.random() < 0.1:
        return f"what is at {rng.choice(empty)}?", EMPTY_PLAN
    candidates = _references(scene, rng, with_cell=False)
    if alone and (not candidates or rng.random() < 0.4):
        sticker = rng.choice(alone)
        return f"what is at {sticker.cell}?", f"{sticker.color} {sticker.name}"
    if not candidates:
        return None
    sticker, name = rng.choice(candidates)
    pairs = ("left", "right"), ("above", "below")
    sides = [(pair, side) for pair in pairs for side in pair if in_region(sticker, side)]
    if sides and rng.random() < 0.4:
        pair, side = rng.choice(sides)
        return side_question(name, pair), side
    return f"where is the {name}?", sticker.cell


def _relation(scene: Scene, rng: Random) -> QuestionAnswer | None:
    """Such as "is the clock left of the red cat?" "yes"; "which is larger, the clock or the cat?" "clock"."""
    candidates = _references(scene, rng)
    if len(candidates) < 2:
        return None
    (one, first), (other, second) = rng.sample(candidates, 2)
    # SIZES runs from small to large.
    ranks = [*SIZES]
    larger = ranks.index(one.size) - ranks.index(other.size)  # above 0 where the first is the larger one
    if larger and rng.random() < 0.3:
        return larger_question(first, second), first if larger > 0 else second
    # By cells and not by pixels, as in a plan.
    right, down = one.place % 3 - other.place % 3, one.place // 3 - other.place // 3
    holds = rng.random() < 0.5  # yes and no equally often, as in `_presence`
    opposites = [("right of", "left of", right), ("below", "above", down), ("larger than", "smaller than", larger)]
    clear = [(plus, minus, sign) for plus, minus, sign in opposites if sign]
    if not clear:
        return None
    plus, minus, sign = rng.choice(clear)
    return f"is the {first} {plus if (sign > 0) == holds else minus} the {second}?", YES if holds else NO


QUESTION_KINDS: dict[str, Callable[[Scene, Random], QuestionAnswer | None]] = {
    "presence": _presence,
    "count": _count,
    "color": _color,
    "place": _place,
    "relation": _relation,
}


def _references(
    scene: Scene, rng: Random, *, with_color: bool = True, with_cell: bool = True
) -> list[tuple[Sticker, str]]:
    """Stickers with words that mean each and no other; without color or cell where that would give the answer away."""
    names = Counter(sticker.name for sticker in scene.stickers)
    colored = Counter((sticker.name, sticker.color) for sticker in scene.stickers)
    references = []
    for sticker in scene.stickers:
        options = [sticker.name] * (names[sticker.name] == 1)
        if with_color and colored[sticker.name, sticker.color] == 1:
            options.append(f"{sticker.color} {sticker.name}")
        # A cell is the last resort, or now and then another way to say it.
        if with_cell and _stands_alone(scene, sticker) and (not options or rng.random() < 0.2):
            options = [f"{sticker.name} at {sticker.cell}"]
        if options:
            references.append((sticker, rng.choice(options)))
    return references


def _stands_alone(scene: Scene, sticker: Sticker) -> bool:
    return sum(other.cell == sticker.cell for other in scene.stickers) == 1


def _thing(sticker: Sticker) -> str:
    """Such as "larger red clock"."""
    size = "" if sticker.size == "normal" else f"{sticker.size} "
    return f"{size}{sticker.color} {sticker.name}"


def _sticker(match: re.Match[str]) -> Sticker:
    row, column = divmod(CELLS.index(match["cell"]), 3)
    x, y = (column + 0.5) * CELL, (row + 0.5) * CELL  # px; a plan names no place within a cell
    return Sticker(match["name"], match["color"], x, y, match["size"] or "normal")
