"""GenEval's rules: from a detector's objects to a verdict, written once for live and recorded pictures.

The rules are those of the official evaluation (Ghosh, Hajishirzi, Schmidt, arXiv 2310.11513):

* Only the `count` most confident objects of a class are looked at; fewer than `count` fail the item.
* All of these must have the item's color, if it has one.
* All of these must lie on the right side of all objects of the item that `position` points to, which must itself be
  right; this is checked only for an item that is right so far.
* `count` or more objects of an excluded class fail the picture.
* Each item fails at most once, and a picture is right when nothing failed: there is no partial credit.

Boxes are (left, top, right, bottom) in pixels, y downwards. Which objects a detector keeps (`CONFIDENCE`,
`MAX_OBJECTS`) was decided before: recorded detections are judged as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.data.layout import RELATIONS
from triptych.data.prompts import as_array, as_object, short
from triptych.data.stickers import COLORS
from triptych.trace import Item, Spec, Verdict

GENEVAL_COLORS = tuple(COLORS)  # the sticker world has GenEval's ten, in its order
CONFIDENCE = 0.3  # an object counts above this score ...
COUNTING_CONFIDENCE = 0.9  # ... and for the tag "counting" above this: a doubtful extra object would fail the picture
MAX_OBJECTS = 16  # per class, the most confident ones
MIN_OFFSET = 0.1  # of both objects' summed sizes: a smaller offset of the centers is no relation
MIN_COSINE = 0.5  # between the offset and an axis: a relation holds within less than 60 degrees of it
MAX_COORDINATE = 1e9  # pixels; coordinates beyond this are damage, not pictures


@dataclass(frozen=True)
class Detection:
    """One object: its box (left, top, right, bottom) in pixels, its confidence, and its color where one was read."""

    box: tuple[float, float, float, float]
    score: float
    color: str | None = None


Detections = Mapping[str, Sequence[Detection]]  # by class name


def confidence(tag: str) -> float:
    """The score that an object must exceed to count, for a prompt of this tag."""
    return COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE


def relations(one: Detection, other: Detection) -> frozenset[str]:
    """Where `one` lies as seen from `other`: none, one or two of RELATIONS.

    The offset of the centers is shortened along each axis by a tenth of both objects' sizes; what is left is compared
    with the length of the whole offset.
    """
    shrunk, length = _offset(one.box, other.box)
    if max(abs(shrunk[0]), abs(shrunk[1])) < 1e-3:  # a thousandth of a pixel: nothing is left
        return frozenset()
    x, y = shrunk[0] / length, shrunk[1] / length  # official: by the whole offset, not by what is left of it
    sides = {"left of": x < -MIN_COSINE, "right of": x > MIN_COSINE, "above": y < -MIN_COSINE, "below": y > MIN_COSINE}
    return frozenset(side for side, holds in sides.items() if holds)


def judge_detections(spec: Spec, detections: Detections) -> Verdict:
    """The official verdict on a picture with these objects: 1.0 if nothing failed, else 0.0 with a reason per failure.

    Raises ValueError if an object that needs a color has none, or if an item has a region or a size: GenEval's rules
    have neither.
    """
    if unsupported := [item.name for item in spec.include if item.region or item.size]:
        raise ValueError(f"{unsupported[0]} is asked for with a region or a size; GenEval's rules have neither")
    passed: list[str] = []
    failed: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # the objects of each item; None where the item failed
    for item in spec.include:
        objects = _most_confident(detections, item.name)[: item.count]
        reason = _shortage(item, objects) or _wrong_color(item, objects) or _wrong_place(item, objects, spec, groups)
        groups.append(None if reason else objects)
        failed.append(reason) if reason else passed.append(_demand(item))
    for item in spec.exclude:
        # Of all that the detector kept, not of the most confident ones as above: any surplus counts.
        count = len(detections.get(item.name, ()))
        limit = f"{item.name}: expected fewer than {item.count}"
        failed.append(f"{limit}, found {count}") if count >= item.count else passed.append(limit)
    return Verdict(0.0 if failed else 1.0, tuple(passed), tuple(failed))


def _offset(one: Sequence[float], other: Sequence[float]) -> tuple[tuple[float, float], float]:
    """The shortened offset of the centers from `other` to `one`, and the length of the whole one."""
    whole, shrunk = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (one[low] + one[high]) / 2 - (other[low] + other[high]) / 2
        sizes = abs(one[high] - one[low]) + abs(other[high] - other[low])
        whole.append(offset)
        shrunk.append(math.copysign(max(abs(offset) - MIN_OFFSET * sizes, 0.0), offset))
    return (shrunk[0], shrunk[1]), math.sqrt(whole[0] ** 2 + whole[1] ** 2)


def _most_confident(detections: Detections, name: str) -> list[Detection]:
    return sorted(detections.get(name, ()), key=lambda each: -each.score)  # stable: ties stay as recorded


def _shortage(item: Item, objects: Sequence[Detection]) -> str | None:
    return f"{item.name}: expected {item.count}, found {len(objects)}" if len(objects) < item.count else None


def _wrong_color(item: Item, objects: Sequence[Detection]) -> str | None:
    if item.color is None:
        return None
    colors = [each.color for each in objects]
    if None in colors:
        choices = ", ".join(GENEVAL_COLORS)
        raise ValueError(f"{item.name} should be {item.color}, but an object has no color; expected one of {choices}")
    if all(color == item.color for color in colors):
        return None
    counts = ", ".join(f"{colors.count(color)} {color}" for color in GENEVAL_COLORS if color in colors)
    return f"{item.name}: expected {item.count} {item.color}, found {counts}"


def _wrong_place(
    item: Item, objects: Sequence[Detection], spec: Spec, groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    if item.position is None:
        return None
    relation, index = item.position
    target, name = groups[index], spec.include[index].name
    if target is None:
        return f"{item.name}: expected {relation} {name}, which is not as asked itself"
    for one in objects:
        for other in target:
            sides = relations(one, other)
            if relation not in sides:
                where = " and ".join(side for side in RELATIONS if side in sides) or "on no clear side of"
                return f"{item.name}: expected {relation} {name}, found {where} it"
    return None


def _demand(item: Item) -> str:
    """What an item demands, in short."""
    side = f" {item.position[0]} another object" if item.position else ""
    return " ".join(word for word in (f"{item.name}:", str(item.count), item.color) if word) + side


# --- the recorded form ------------------------------------------------------------------------------------------------


def to_record(spec: Spec, prompt: str, detections: Detections) -> dict[str, Any]:
    """One line of a detections file, as JSON values: what `triptych score geneval` reads."""
    objects_by_class = {
        name: [{"box": list(each.box), "score": each.score, "color": each.color} for each in objects]
        for name, objects in detections.items()
    }
    return {"metadata": {**spec.to_metadata(), "prompt": prompt}, "detections": objects_by_class}


def read_detections(record: Any) -> dict[str, list[Detection]]:
    """The objects of a recorded picture by class. Raises ValueError that says what is wrong with a box or score."""
    arrays = {name: as_array(each, f"detections of {name!r}") for name, each in as_object(record, "detections").items()}
    return {name: [_detection(each, name) for each in objects] for name, objects in arrays.items()}


def read_box(values: Any, name: str) -> tuple[float, float, float, float]:
    """Four finite numbers in order, or ValueError."""
    sides = as_array(values, f"a box of {name!r}")[:4]
    numbers = tuple(number(value, f"a side of a box of {name!r}") for value in sides)
    if len(numbers) < 4:
        raise ValueError(f"a box of {name!r} is {values!r}; expected left, top, right, bottom in pixels")
    left, top, right, bottom = numbers
    if max(map(abs, numbers)) > MAX_COORDINATE:
        raise ValueError(f"a box of {name!r} is {list(numbers)}; expected pixels within {MAX_COORDINATE:g}")
    if right < left or bottom < top:
        raise ValueError(f"a box of {name!r} is {list(numbers)}, of negative size; expected left, top, right, bottom")
    return left, top, right, bottom


def number(value: Any, what: str) -> float:
    """A finite number, or ValueError."""
    try:
        # JSON's true would pass for the number 1.
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        finite = False
    if not finite:
        raise ValueError(f"{what} is {short(value)}; expected a finite number")
    return float(value)


def _detection(record: Any, name: str) -> Detection:
    record = as_object(record, f"an object {name!r}")
    color = record.get("color")
    if color is not None and color not in GENEVAL_COLORS:
        choices = ", ".join(GENEVAL_COLORS)
        raise ValueError(f"an object {name!r} has the color {short(color)}; expected one of {choices}")
    return Detection(read_box(record.get("box"), name), number(record.get("score"), f"the score of {name!r}"), color)
