"""Prompts from files: the two benchmarks, shipped as bare specs, and a user's own lists.

`geneval.json` (553, MIT) and `genevalpp.json` (280, Apache-2.0) hold one spec a line in GenEval's metadata; their
sentences follow by rule (`language.py`). `scripts/benchmark_facts.py` makes them from the published files.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

from triptych.data.language import Wording, prompt_text
from triptych.data.metadata import read_spec
from triptych.errors import PromptError
from triptych.trace import Prompt, Spec


def benchmark(name: Wording) -> list[Prompt]:
    """The prompts of GenEval or GenEval++, in the published order and to the letter."""
    return list(_benchmark(name))


@lru_cache
def _benchmark(name: Wording) -> tuple[Prompt, ...]:
    facts = json.loads((resources.files("triptych.data") / f"{name}.json").read_text(encoding="utf-8"))
    specs = [Spec.from_metadata(fact) for fact in facts]
    return tuple(Prompt(prompt_text(spec, name), spec, source=name) for spec in specs)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file: JSON objects in GenEval's layout, or plain sentences, one a line.

    An object has a `prompt`, or `tag` and `include`, from which the sentence follows, or all three. A plain sentence
    has no spec. Blank lines are skipped. Raises PromptError, with file and line, for a line that cannot be read.
    """
    return [prompt for _, prompt in placed_prompts(path)]


def placed_prompts(path: Path) -> list[tuple[str, Prompt]]:
    """The prompts of `read_prompts`, each with its place, "FILE, line N", for those who find something else amiss."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # U+2028 ends no line of JSON
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {path}: {error}; expected a UTF-8 text file, one prompt a line") from error
    placed = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    prompts = [(where, _prompt(line, where, path.stem)) for where, line in placed]
    if not prompts:
        raise PromptError(f"{path} holds no prompts; expected one a line")
    return prompts


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
