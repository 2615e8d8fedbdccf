"""Prompts from files: the two benchmarks, shipped as specs, a user's own lists, and GenEval's metadata checked.

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
from pathlib import Path
from typing import Any

from triptych.data.language import Wording, prompt_text
from triptych.data.layout import RELATIONS
from triptych.errors import PromptError
from triptych.trace import Item, Prompt, Spec


def benchmark(name: Wording) -> list[Prompt]:
    """The prompts of GenEval or GenEval++, in the published order and to the letter."""
    return list(_benchmark(name))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file: JSON objects in GenEval's layout, or plain sentences, one a line.

    An object has a `prompt`, or `tag` and `include`, from which the sentence follows, or all three. A plain sentence
    has no spec. Blank lines are skipped. Raises PromptError, with file and line, for a line that cannot be read.
    """
    return [prompt for _, prompt in located_prompts(path)]


def located_prompts(path: Path) -> list[tuple[str, Prompt]]:
    """The prompts of `read_prompts`, each with its place, "FILE, line N", for messages of later checks."""
    path = Path(path)
    try:
        # -sig: some editors begin a file with a byte order mark. Not splitlines(): U+2028 ends no line of JSON.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {path}: {error}; expected a UTF-8 text file, one prompt a line") from error
    located = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    prompts = [(where, _prompt(line, where, path.stem)) for where, line in located]
    if not prompts:
        raise PromptError(f"{path} holds no prompts; expected one a line")
    return prompts


def read_spec(metadata: Any, least: int = 0) -> Spec:
    """The spec of a metadata record, with `least` or more of each item. Raises ValueError that says what is wrong."""
    metadata = as_object(metadata, "metadata")
    tag = as_text(metadata.get("tag"), "tag")
    include, exclude = (as_array(metadata.get(key, []), key) for key in ("include", "exclude"))
    items = tuple(_item(record, index, least) for index, record in enumerate(include))
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
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{what} is {short(value)}; expected text")
    return value


def short(value: Any) -> str:
    """A value in a message: never longer than a few words."""
    text = "nothing" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@lru_cache
def _benchmark(name: Wording) -> tuple[Prompt, ...]:
    facts = json.loads((resources.files("triptych.data") / f"{name}.json").read_text(encoding="utf-8"))
    specs = [Spec.from_metadata(fact) for fact in facts]
    return tuple(Prompt(prompt_text(spec, name), spec, source=name) for spec in specs)


def _prompt(line: str, where: str, source: str) -> Prompt:
    if not line.startswith("{"):
        return Prompt(line, source=source)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PromptError(f"{where}: not JSON ({why}); expected GenEval's layout, or a plain sentence") from error
    try:
        spec = read_spec(record, least=1) if "include" in record else None
        if spec is not None and not spec.include:
            raise ValueError("include is empty; expected one object or more, or no include")
        text = prompt_text(spec) if spec is not None and "prompt" not in record else record.get("prompt")
    except ValueError as error:
        raise PromptError(f"{where}: {error}") from error
    except IndexError as error:
        raise PromptError(f"{where}: a count beyond nine; expected a `prompt` that says it in words") from error
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{where}: prompt is {text!r}; expected a sentence, or `tag` and `include` to make one from")
    return Prompt(text, spec, source=source)


def _item(record: Any, index: int | None, least: int) -> Item:
    """An item of `include` at `index`, or of `exclude`, whose items have no index to refer to."""
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
