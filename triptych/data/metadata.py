"""GenEval's metadata from JSON that anybody may have written: a spec that can be relied on, or one line on what is off.

`Spec.from_metadata` takes what our own files hold at its word; here nothing is. Only the form is checked: which things
and colours there are is for the world that draws or judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.trace import Item, Spec

RELATIONS = ("left of", "right of", "above", "below")


def read_spec(metadata: Any, least: int = 0) -> Spec:
    """The spec of a metadata record, with `least` or more of each item. Raises ValueError, saying what is off."""
    metadata = as_object(metadata, "metadata")
    tag = as_text(metadata.get("tag"), "tag")
    include, exclude = (as_array(metadata.get(key, []), key) for key in ("include", "exclude"))
    asked = tuple(_item(record, index, least) for index, record in enumerate(include))
    return Spec(tag, asked, tuple(_item(record, None, least=1) for record in exclude))


def _item(record: Any, index: int | None, least: int) -> Item:
    """An item of `include` at `index`, or of `exclude`, where there is no order."""
    record = as_object(record, "an item")
    name, count = as_text(record.get("class"), "class"), record.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise ValueError(f"the count of {short(name)} is {short(count)}; expected a whole number of {least} or more")
    color = None if record.get("color") is None else as_text(record["color"], f"the color of {short(name)}")
    region, size = (None if record.get(key) is None else as_text(record[key], key) for key in ("region", "size"))
    return Item(name, count, color, region, size, _position(record.get("position"), name, index))


def _position(value: Any, name: str, index: int | None) -> tuple[str, int] | None:
    if value is None or index is None:
        return None
    relation, target = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if relation not in RELATIONS or not isinstance(target, int) or not 0 <= target < index:
        raise ValueError(
            f"the position of {short(name)} is {short(value)}; expected a relation and the index of an earlier item"
        )
    return relation, target


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """The value, if it is a JSON object, or ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {short(value)}; expected a JSON object")
    return value


def as_array(value: Any, what: str) -> list[Any]:
    """The value, if it is a JSON array, or ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {short(value)}; expected a JSON array")
    return value


def as_text(value: Any, what: str) -> str:
    """The value, if it is text that can be printed and written, or ValueError."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{what} is {short(value)}; expected text")
    return value


def short(value: Any) -> str:
    """A value in a message: never longer than a few words."""
    shown = "nothing" if value is None else ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
