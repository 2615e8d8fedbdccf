"""The prompts of the two benchmarks, shipped as specs, and GenEval's metadata checked.

`geneval.json` (553, MIT) and `genevalpp.json` (280, Apache-2.0) hold one spec a line in GenEval's metadata; their
sentences follow by rule (`language.py`). `scripts/benchmark_facts.py` makes them from the published files.

`Spec.from_metadata` trusts our own files; `read_spec` trusts nothing, and says what is wrong in one line. It checks the
form alone: which classes and colors there are is for the world that draws or judges them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from triptych.data.language import Wording, prompt_text
from triptych.data.layout import RELATIONS
from triptych.text import is_text
from triptych.trace import Item, Prompt, Spec


def benchmark(name: Wording) -> list[Prompt]:
    """The prompts of GenEval or GenEval++, in the published order and to the letter."""
    return list(_benchmark(name))


def read_spec(metadata: Any, least: int = 0) -> Spec:
    """The spec of a metadata record, with `least` or more of each item. Raises ValueError that says what is wrong."""
    metadata = as_object(metadata, "metadata")
    tag = as_text(metadata.get("tag"), "tag")
    include, exclude = (as_array(metadata.get(key, []), key) for key in ("include", "exclude"))
    items = tuple(_item(record, index, least) for index, record in enumerate(include))
    # An excluded item of count 0 would fail every picture: "at least none" always holds.
    return Spec(tag, items, tuple(_item(record, None, least=1) for record in exclude))


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
    if not is_text(value):
        raise ValueError(f"{what} is {short(value)}; expected text")
    return value


def short(value: Any) -> str:
    """A value in a message: never longer than a few words."""
    text = "nothing" if value is None else ascii(value)  # a hostile value must not steer the terminal
    return text if len(text) <= 60 else f"{text[:60]}..."


@lru_cache
def _benchmark(name: Wording) -> tuple[Prompt, ...]:
    # The facts alone are stored: the sentences follow by rule, and a test holds them to the published ones.
    facts = json.loads((resources.files("triptych.data") / f"{name}.json").read_text(encoding="utf-8"))
    specs = [Spec.from_metadata(fact) for fact in facts]
    return tuple(Prompt(prompt_text(spec, name), spec, source=name) for spec in specs)


def _item(record: Any, index: int | None, least: int) -> Item:
    """An item of `include` at `index`, or of `exclude`, whose items have no index to refer to."""
    record = as_object(record, "an item")
    name, count = as_text(record.get("class"), "class"), record.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < least:  # True is an int in Python
        raise ValueError(f"the count of {short(name)} is {short(count)}; expected a whole number of {least} or more")
    color = None if record.get("color") is None else as_text(record["color"], f"the color of {short(name)}")
    region, size = (None if record.get(key) is None else as_text(record[key], key) for key in ("region", "size"))
    return Item(name, count, color, region, size, _position(record.get("position"), name, index))


def _position(value: Any, name: str, index: int | None) -> tuple[str, int] | None:
    if value is None or index is None:
        return None
    # Of an earlier item alone, as in GenEval: so no two items are placed by each other in a circle.
    relation, target = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if relation not in RELATIONS or not isinstance(target, int) or not 0 <= target < index:
        raise ValueError(
            f"the position of {short(name)} is {short(value)}; expected a relation and the index of an earlier item"
        )
    return relation, target
