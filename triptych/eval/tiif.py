"""TIIF-Bench (arXiv 2506.02161): its prompts and questions from the user's copy, and the table of its verdicts.

Every instruction comes short and long and has yes/no questions; a column is an attribute at one of the two lengths. A
column's accuracy is right / asked over all its questions. Means of columns and of groups of columns weigh each member
alike, as GenEval and TIIF do; `triptych score` counts every benchmark in this way. Missing verdicts are in neither
count and are reported beside them. Intervals are those of `statistics.bootstrap`, over the prompts of each column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.prompt_files import told_faults
from triptych.errors import JudgeError, PromptError
from triptych.eval.benchmark import Benchmark
from triptych.eval.recorded import RecordedVerdict, read_records
from triptych.eval.results import OVERALL, Row
from triptych.eval.statistics import RESAMPLES, ClusterSums, Means, bootstrap, mean_of_columns
from triptych.rewards.vlm_prompts import LENGTHS, Checks
from triptych.trace import Prompt

# TIIF-Bench's own groups of attributes; the nine of TIIF_GROUPS together make up its overall score.
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
    "Attribute+Reasoning": tuple(f"{kind}+{surface}" for kind in _KINDS for surface in ("color", "texture")),
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
class ColumnCounts:
    """The counts of one column; `missing` counts pictures, the others questions."""

    right: int = 0
    asked: int = 0
    missing: int = 0


def column_counts(verdicts: Iterable[RecordedVerdict]) -> dict[str, ColumnCounts]:
    """The counts of each column, in the order in which columns first appear."""
    counts: dict[str, ColumnCounts] = {}
    for each in verdicts:
        old = counts.get(each.column, ColumnCounts())
        missing = old.missing + (each.missing is not None)
        counts[each.column] = ColumnCounts(old.right + each.right, old.asked + each.asked, missing)
    return counts


def recorded_verdicts(rows: Iterable[Row], turn: int, folder: str = "") -> list[RecordedVerdict]:
    """Rows of a run as recorded verdicts: right of asked questions about the picture after `turn` edits at most."""
    return [_recorded(row, turn, folder, number) for number, row in enumerate(rows, 1)]


def _recorded(row: Row, turn: int, folder: str, number: int) -> RecordedVerdict:
    verdict = row.verdicts[min(turn, row.edits)] if row.verdicts else None
    if verdict is None:
        why = "the judge gave no verdict" if row.verdicts else "nothing was drawn"
        return RecordedVerdict(folder, number, row.column, 0, 0, str(row.prompt), missing=why)
    right, wrong = len(verdict.passed), len(verdict.failed)  # TIIF counts questions, not pictures
    return RecordedVerdict(folder, number, row.column, right, right + wrong, str(row.prompt), verdict.failed)


def column_means(verdicts: Iterable[RecordedVerdict], seed: int = 0) -> dict[str, Means]:
    """Accuracy of each column `[1 + RESAMPLES]`: as it is, then of each draw of its prompts."""
    columns: dict[str, list] = {}
    for each in verdicts:
        # The column belongs to the cluster: TIIF asks the same prompt in two of them, which are drawn apart.
        cluster = (each.column, each.prompt or each.where)
        columns.setdefault(each.column, []).append((cluster, [each.right], [each.asked]))
    means = bootstrap({column: ClusterSums.of(observations, 1) for column, observations in columns.items()}, seed)
    return {column: both[:, 0] for column, both in means.items()}


def group_means(columns: Mapping[str, Means]) -> dict[str, dict[str, Means]]:
    """By name and length: TIIF's nine groups, the two levels that hold several, and OVERALL, the mean of the nine.

    A group is the mean of those of its attributes that were asked, as in TIIF's own summary.
    """
    groups = {
        name: {
            length: _mean([columns[key] for key in _columns(members, length) if key in columns]) for length in LENGTHS
        }
        for name, members in {**TIIF_GROUPS, **TIIF_LEVELS}.items()
    }
    # Of the nine groups alone; the two levels hold the same groups again.
    groups[OVERALL] = {length: _mean([groups[name][length] for name in TIIF_GROUPS]) for length in LENGTHS}
    return groups


def tiif_columns() -> list[str]:
    """Every column of the benchmark: 39 attributes, short and long."""
    return [column for length in LENGTHS for members in TIIF_GROUPS.values() for column in _columns(members, length)]


def _columns(attributes: Iterable[str], length: str) -> list[str]:
    return [f"{attribute}/{length}" for attribute in attributes]


def _mean(members: Sequence[Means]) -> Means:
    # None was asked: no mean in any draw.
    return mean_of_columns(members) if members else np.full(RESAMPLES + 1, np.nan)


@dataclass(frozen=True, eq=False)
class Tiif(Benchmark):
    """TIIF-Bench: long instructions, each with yes/no questions about the picture, found by source and text."""

    # The text alone may be in both halves.
    checks: Mapping[tuple[str, str], Checks] = field(default_factory=dict, repr=False)

    def column(self, prompt: Prompt) -> str:
        checks = self.checks[prompt.source, prompt.text]
        return f"{checks.attribute}/{checks.length}"


def load_tiif(path: Path) -> Tiif:
    """TIIF-Bench from the user's copy: its jsonl, or a folder of such files; each line in short and in long.

    A line has `type`, `short_description`, `long_description`, `yn_question_list` and `yn_answer_list`. The name tells
    copies apart: its eight hex digits are over all prompts, questions and answers. Raises PromptError, with file and
    line, for a line that is something else.
    """
    pairs = [pair for file in _files(Path(path)) for pair in _instructions(file)]
    content = json.dumps([[prompt.text, asdict(checks)] for prompt, checks in pairs])
    # The text itself is not in the package, so that only a hash tells which copy a run was played on.
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    checks_of = {(prompt.source, prompt.text): checks for prompt, checks in pairs}
    # No titles by tag: `column` reads the checks.
    return Tiif(f"TIIF {digest[:8]}", tuple(prompt for prompt, _ in pairs), {}, checks_of)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise PromptError(f"{path} holds no *.jsonl; expected your copy of TIIF-Bench's prompts")
    return files


def _instructions(file: Path) -> Iterator[tuple[Prompt, Checks]]:
    count = 0
    faults: list[tuple[str, str]] = []
    try:
        for line, record in read_records(file):
            count += 1
            for length in LENGTHS:
                try:
                    yield _instruction(record, length, f"{file.stem}-{line}")
                except ValueError as error:
                    faults.append((f"line {line}", str(error)))
                    break
    except JudgeError as error:
        raise PromptError(str(error)) from error
    if faults:
        raise PromptError(told_faults(file, faults, count, "lines"))
    if not count:
        raise PromptError(f"{file} holds no lines; expected one instruction of TIIF-Bench per line")


def _instruction(record: Mapping[str, Any], length: str, index: str) -> tuple[Prompt, Checks]:
    """One wording of a line, and its questions. Raises ValueError that says what is wrong."""
    wanted = "type, short_description, long_description, yn_question_list and yn_answer_list"
    try:
        text = record[f"{length}_description"]
        # A line's own index goes before its place in the file; `length` is ours, since a line holds both.
        checks = Checks.from_record({"index": index, **record, "length": length})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:120]}; expected {wanted}") from error
    # Half a surrogate pair is valid JSON, and no text that could be tokenized or written.
    if not isinstance(text, str) or not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{length}_description is {ascii(text)[:40]}; expected an instruction")
    return Prompt(text, source=f"tiif/{length}/{index}"), checks
