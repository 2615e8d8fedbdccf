"""From recorded verdicts to tables: right of asked per column, means of columns, and their intervals.

A column's accuracy is right / asked over all its questions. Means of columns and of groups of columns weigh each member
alike, as GenEval and TIIF do. Missing verdicts are in neither count and are told beside them. Intervals are 95 %
percentile bootstraps over the prompts of each column: pictures of one prompt are drawn together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from triptych.errors import JudgeError, PromptError
from triptych.eval.benchmark import Benchmark
from triptych.eval.recorded import LENGTHS, Recorded, records
from triptych.eval.results import OVERALL, Row
from triptych.eval.statistics import RESAMPLES, Estimate
from triptych.rewards.vlm_prompts import Checks
from triptych.trace import Prompt

DRAWS_AT_ONCE = 4_000_000  # numbers held while resampling: 32 MB
Means = Float[np.ndarray, "resample"]  # the mean as it is, then of each resample; NaN where nothing was asked

# TIIF-Bench's own groups of attributes (arXiv 2506.02161); the nine of them together make up its overall score
_BASIC = {
    "Attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "Relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "Reasoning": ("numeracy", "negation", "differentiation", "comparison"),
}
_KINDS = ("numeracy", "comparison", "differentiation", "negation")
_ADVANCED = {
    "Attribute+Relation": (
        *("action+color", "action+texture"),
        *(f"{kind}+{axis}" for kind in ("color", "shape", "texture") for axis in ("2d", "3d")),
    ),
    "Attribute+Reasoning": tuple(f"{kind}+{look}" for kind in _KINDS for look in ("color", "texture")),
    "Relation+Reasoning": tuple(f"{kind}+{axis}" for kind in _KINDS for axis in ("2d", "3d")),
    "Text": ("text",),
    "Style": ("style",),
}
TIIF_GROUPS: dict[str, tuple[str, ...]] = {**_BASIC, **_ADVANCED, "Real World": ("real_world",)}
TIIF_LEVELS: dict[str, tuple[str, ...]] = {
    "Basic Following": sum(_BASIC.values(), ()),
    "Advanced Following": sum(_ADVANCED.values(), ()),
}


@dataclass(frozen=True)
class Cell:
    """The counts of one column; `missing` counts pictures, the others questions."""

    right: int
    asked: int
    missing: int


def cells(rows: Iterable[Recorded]) -> dict[str, Cell]:
    """The counts of each column, in the order in which columns first appear."""
    found: dict[str, Cell] = {}
    for row in rows:
        cell = found.get(row.column, Cell(0, 0, 0))
        missing = cell.missing + (row.missing is not None)
        found[row.column] = Cell(cell.right + row.right, cell.asked + row.asked, missing)
    return found


def played(rows: Iterable[Row], turn: int, folder: str = "") -> list[Recorded]:
    """Rows of a run as recorded verdicts: right of asked questions about the picture after `turn` edits at most."""
    return [_played(row, turn, folder, number) for number, row in enumerate(rows, 1)]


def _played(row: Row, turn: int, folder: str, number: int) -> Recorded:
    verdict = row.verdicts[min(turn, row.edits)] if row.verdicts else None
    if verdict is None:
        why = "the judge gave no verdict" if row.verdicts else "nothing was drawn"
        return Recorded(folder, number, row.column, 0, 0, str(row.prompt), missing=why)
    right, wrong = len(verdict.passed), len(verdict.failed)
    return Recorded(folder, number, row.column, right, right + wrong, str(row.prompt), verdict.failed)


def totals(counted: Mapping[str, Cell]) -> tuple[int, int]:
    """Right and asked over all columns."""
    return sum(cell.right for cell in counted.values()), sum(cell.asked for cell in counted.values())


def resampled_cells(rows: Sequence[Recorded], seed: int = 0) -> dict[str, Means]:
    """Accuracy of each column: as it is, then in RESAMPLES draws of its prompts."""
    rng = np.random.default_rng(seed)
    members: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        counts = members.setdefault(row.column, {}).setdefault(row.prompt or row.where, [0, 0])
        counts[0] += row.right
        counts[1] += row.asked
    return {column: _column(np.array(list(prompts.values()), float), rng) for column, prompts in members.items()}


def _column(counts: Float[np.ndarray, "prompt 2"], rng: np.random.Generator) -> Means:
    total = len(counts)
    sums = [counts.sum(0, keepdims=True)]
    at_once = max(1, DRAWS_AT_ONCE // total)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        sums.append(rng.multinomial(total, np.full(total, 1 / total), size=size) @ counts)
    right, asked = np.concatenate(sums).T
    return _ratio(right, asked)


def mean_of_cells(members: Sequence[Means]) -> Means:
    """Mean over those members that are known; NaN where none is."""
    if not members:
        return np.full(RESAMPLES + 1, np.nan)
    stacked = np.stack(members)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0).sum(0), known.sum(0))


def cell_estimate(means: Means) -> Estimate:
    """The mean and its interval; all None where nothing was asked."""
    if np.isnan(means[0]):
        return Estimate(None, None, None)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(low), float(high))


def tiif_groups(columns: Mapping[str, Means]) -> dict[str, dict[str, Means]]:
    """By name and length: TIIF's nine groups, the two levels that hold several, and OVERALL, the mean of the nine.

    A group is the mean of those of its attributes that were asked, as in TIIF's own summary.
    """
    found: dict[str, dict[str, Means]] = {
        name: {
            length: mean_of_cells([columns[key] for key in _keys(members, length) if key in columns])
            for length in LENGTHS
        }
        for name, members in {**TIIF_GROUPS, **TIIF_LEVELS}.items()
    }
    found[OVERALL] = {length: mean_of_cells([found[name][length] for name in TIIF_GROUPS]) for length in LENGTHS}
    return found


def tiif_columns() -> list[str]:
    """Every column of the benchmark: 39 attributes, short and long."""
    return [key for length in LENGTHS for members in TIIF_GROUPS.values() for key in _keys(members, length)]


def _keys(attributes: Iterable[str], length: str) -> list[str]:
    return [f"{attribute}/{length}" for attribute in attributes]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


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
