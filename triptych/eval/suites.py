"""Benchmarks as values, each with its paper's column titles; the prompts come with the package.

TIIF-Bench has no licence, so nothing of it is here: `tiif` reads the user's own copy.

Settings are chosen on `rehearsal`, whose specs are in no benchmark, so that a benchmark's number is not fitted to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triptych.data.language import prompt_text, wording_of
from triptych.data.prompts import benchmark
from triptych.data.scene import random_spec
from triptych.errors import JudgeError, PromptError
from triptych.eval.benchmark import Benchmark
from triptych.eval.recorded import LENGTHS, records
from triptych.rewards.questions import Checks
from triptych.trace import Prompt

GENEVAL_COLUMNS = {
    "single_object": "Single",
    "two_object": "Two",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Attribution",
}
GENEVAL_PLUS_COLUMNS = {
    "color_attr": "Color",
    "counting": "Count",
    "color_count_attr": "Color/Count",
    "color_spatial_attr": "Color/Pos",
    "spatial_count_attr": "Pos/Count",
    "size_spatial_attr": "Pos/Size",
    "multi_object_count_attr": "Multi-Count",
}

GENEVAL = Benchmark("GenEval", tuple(benchmark("geneval")), GENEVAL_COLUMNS)  # 553 prompts
GENEVAL_PLUS = Benchmark("GenEval++", tuple(benchmark("genevalpp")), GENEVAL_PLUS_COLUMNS)  # 280, 40 a column


def rehearsal(count: int = 70, seed: int = 1_000_000_000) -> Benchmark:
    """`count` sampled prompts of the benchmarks' kinds, in no benchmark; `seed` is far from those of lessons."""
    specs = [random_spec(seed + index) for index in range(count)]
    prompts = tuple(Prompt(prompt_text(spec, wording_of(spec)), spec, source="rehearsal") for spec in specs)
    return Benchmark("rehearsal", prompts, {**GENEVAL_COLUMNS, **GENEVAL_PLUS_COLUMNS})


@dataclass(frozen=True, eq=False)
class Tiif(Benchmark):
    """TIIF-Bench: long instructions, each with yes/no questions about the picture, found by source and text."""

    checks: Mapping[tuple[str, str], Checks] = field(default_factory=dict, repr=False)

    def column(self, prompt: Prompt) -> str:
        checks = self.checks[prompt.source, prompt.text]
        return f"{checks.attribute}/{checks.length}"


def tiif(path: Path) -> Tiif:
    """TIIF-Bench from the user's copy: its jsonl, or a folder of such files; each line in short and in long.

    A line has `type`, `short_description`, `long_description`, `yn_question_list` and `yn_answer_list`. The name tells
    copies apart: its eight hex digits are over all prompts, questions and answers. Raises PromptError, with file and
    line, for a line that is something else.
    """
    pairs = [pair for file in _files(Path(path)) for pair in _instructions(file)]
    checks = {(prompt.source, prompt.text): asked for prompt, asked in pairs}
    told = [[prompt.text, asdict(asked)] for prompt, asked in pairs]
    digest = hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()
    return Tiif(f"TIIF {digest[:8]}", tuple(prompt for prompt, _ in pairs), {}, checks)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.jsonl"))
    if not found:
        raise PromptError(f"{path} holds no *.jsonl; expected your copy of TIIF-Bench's prompts")
    return found


def _instructions(file: Path) -> Iterator[tuple[Prompt, Checks]]:
    count = 0
    try:
        for line, record in records(file):
            count += 1
            for length in LENGTHS:
                yield _instruction(record, length, f"{file.stem}-{line}", f"{file}, line {line}")
    except JudgeError as error:
        raise PromptError(str(error)) from error
    if not count:
        raise PromptError(f"{file} holds no lines; expected one instruction of TIIF-Bench per line")


def _instruction(record: Mapping[str, Any], length: str, index: str, where: str) -> tuple[Prompt, Checks]:
    wanted = "type, short_description, long_description, yn_question_list and yn_answer_list"
    try:
        text = record[f"{length}_description"]
        checks = Checks.from_record({"index": index, **record, "length": length})
    except (KeyError, TypeError, ValueError) as error:
        raise PromptError(f"{where}: {type(error).__name__}: {str(error)[:120]}; expected {wanted}") from error
    if not isinstance(text, str) or not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PromptError(f"{where}: {length}_description is {ascii(text)[:40]}; expected an instruction")
    return Prompt(text, source=f"tiif/{length}/{index}"), checks
