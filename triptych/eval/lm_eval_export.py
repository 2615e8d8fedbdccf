"""A run in the layout of lm-evaluation-harness and lmms-eval, for tools that read theirs.

`results_lmms.json` is what they call results_TIMESTAMP.json: a task per column, and a group over them whose accuracy is
the mean of the columns. `samples_lmms.jsonl` holds a line per sample. The accuracy of a task is that after the last
turn; those after fewer edits stand beside it as `acc_turn0`, `acc_turn1`, ..., and the mean score, in which a picture
that is partly right counts in part, as `score`. Standard errors are of the bootstrap over prompts. `n-samples` tells
how many samples there are, and on how many there is a verdict; the difference is repeated as `missing`. Without any
verdict there is no `acc`.

Of a quiz a sample is a question: its target is the right answer, and beside `acc` stand `chance` and `majority`, what
can be had without seeing the picture (`quiz.ColumnAccuracy`), and `unreadable`, how many replies are no answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from triptych.eval.quiz import ColumnAccuracy, Quiz, accuracy_by_column, read_reply, reply_of
from triptych.eval.results import OVERALL, Row, resampled_means
from triptych.eval.statistics import RESAMPLES, Means

VERSION = 1  # of the tasks; raised when a number would change its meaning
RESULTS, SAMPLES = "results_lmms.json", "samples_lmms.jsonl"


def task_of(benchmark: str, column: str) -> str:
    """A task's name: that of the benchmark and of the column, in lower case, joined by underscores.

    >>> task_of("GenEval++", "Color/Count")
    'genevalpp_color_count'
    """
    return "_".join(_plain(name) for name in (benchmark, column) if name != OVERALL)


def results(
    manifest: Mapping[str, Any], rows: Sequence[Row], columns: Sequence[str], quiz: Quiz | None = None
) -> dict[str, Any]:
    """The results file, of `rows` so far, as JSON values; of a quiz with what chance gets."""
    accuracies = {} if quiz is None else accuracy_by_column(quiz, rows)
    benchmark, turns = manifest["benchmark"], manifest["turns"]
    # `acc` counts pictures that are right in every check; `score` is the mean share of checks.
    means, scores = (resampled_means(rows, columns, turns, strict=strict) for strict in (True, False))

    def metrics(column: str) -> dict[str, Any]:
        own = rows if column == OVERALL else _of_column(rows, column)
        measured = _metrics(means[column], scores[column]) if column in means else {}
        missing = sum(row.score(turns) is None for row in own)
        return {**measured, "missing,none": missing, **_chance(accuracies.get(column))}

    tasks = {column: task_of(benchmark, column) for column in columns}
    group = task_of(benchmark, OVERALL)
    overall = {"alias": benchmark, **metrics(OVERALL)}
    names = ["acc", *(f"acc_turn{turn}" for turn in range(turns)), "score"]
    every = [group, *tasks.values()]
    return {
        "results": {group: overall, **{tasks[column]: {"alias": column, **metrics(column)} for column in columns}},
        "groups": {group: overall},
        "group_subtasks": {group: list(tasks.values())},
        "configs": {task: _config(task, column, manifest) for column, task in tasks.items()},
        "versions": dict.fromkeys(every, VERSION),
        "n-shot": dict.fromkeys(every, 0),
        "higher_is_better": {name: {**dict.fromkeys(names, True), "missing": False} for name in every},
        "n-samples": {task: _counts(_of_column(rows, column), turns) for column, task in tasks.items()},
        "config": {
            "model": "triptych",
            "model_args": f"model={manifest.get('model')},dtype={manifest.get('dtype')}",
            "batch_size": None,  # differs between shards and changes no number
            "device": manifest.get("device"),
            "limit": None,  # a thinned benchmark has another name instead
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": manifest.get("sampling"),
            "random_seed": manifest["seeds"][0],  # all of them are in `triptych`
            "triptych": dict(manifest),
        },
        "model_name": manifest.get("model"),
        "model_name_sanitized": _plain(str(manifest.get("model"))),
        "git_hash": manifest.get("code_sha256"),  # an installed package has no commit
        "task_hashes": {},  # theirs are over prompts and targets; see prompts_sha256 in `triptych`
        "total_evaluation_time_seconds": f"{sum(row.seconds for row in rows):.1f}",  # a text, as theirs is
    }


def samples(manifest: Mapping[str, Any], rows: Sequence[Row], quiz: Quiz | None = None) -> Iterator[dict[str, Any]]:
    """A line of the samples file per row, of a run that drew or of a `quiz`. `acc` is null where the verdict is
    missing."""
    benchmark, turns = manifest["benchmark"], manifest["turns"]
    for row in rows:
        score = row.score(turns)
        last = row.verdicts[-1] if row.verdicts else None
        doc, target, filtered = _picture_sample(row) if quiz is None else _quiz_sample(row, quiz)
        yield {
            "task_name": task_of(benchmark, row.column),
            "doc_id": row.prompt,
            "doc": doc,
            "target": target,
            # Theirs: context and settings of each request.
            "arguments": [[row.text, {"seed": row.seed, **manifest.get("sampling", {})}]],
            "resps": [[text for text in row.said if text is not None]],  # theirs: a list of replies for each request
            "filtered_resps": filtered,
            "filter": "none",
            "metrics": ["acc"],
            "acc": None if score is None else float(score == 1),
            "score": score,
            "failed": None if last is None else list(last.failed),
            "doc_hash": _sha256([row.prompt, row.text, row.column]),
            "prompt_hash": _sha256(row.text),
            "target_hash": _sha256(target),
        }


def _picture_sample(row: Row) -> tuple[dict[str, Any], str, list[str]]:
    """Document, target and filtered response of a sample that was drawn: the last picture's hash."""
    # A drawn picture has no reference; the target says what is asked of it.
    return {"prompt": row.text, "column": row.column, "seed": row.seed}, "every check holds", list(row.pictures[-1:])


def _quiz_sample(row: Row, quiz: Quiz) -> tuple[dict[str, Any], str, list[str]]:
    """Document, target and filtered response of a question: the option that the reply means, or nothing."""
    question = quiz.questions[row.prompt]
    option = read_reply(quiz.by, question, reply_of(row))
    return question.to_record(), question.answer, [] if option is None else [option]


def _chance(accuracy: ColumnAccuracy | None) -> dict[str, float]:
    if accuracy is None:
        return {}
    metrics = {"chance": accuracy.chance, "majority": accuracy.majority, "unreadable": accuracy.unreadable}
    return {f"{name},none": value for name, value in metrics.items() if value is not None}


def _metrics(right: Means, scores: Means) -> dict[str, float]:
    """Means and standard errors from means `[1 + RESAMPLES, turns + 1]`; what is not known is left out."""
    last = right.shape[1] - 1
    # Their keys are `metric,filter`; no filter is applied here, which they call none.
    by_name = {"acc": right[:, last]}
    by_name |= {f"acc_turn{turn}": right[:, turn] for turn in range(last)}
    by_name["score"] = scores[:, last]
    metrics: dict[str, float] = {}
    for name, means in by_name.items():
        if not np.isnan(means[0]):
            metrics[f"{name},none"] = float(means[0])
            # The standard deviation of the resampled means is the bootstrap's estimate of the standard error; ddof=1 as
            # in the harness.
            metrics[f"{name}_stderr,none"] = float(np.nanstd(means[1:], ddof=1))
    return metrics


def _counts(rows: Sequence[Row], turns: int) -> dict[str, int]:
    # Theirs differ under --limit; a thinned run here has another name, and these differ by missing verdicts.
    return {"original": len(rows), "effective": sum(row.score(turns) is not None for row in rows)}


def _config(task: str, column: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": task,
        "task_alias": column,
        "group": task_of(manifest["benchmark"], OVERALL),
        "output_type": "generate_until",  # the nearest of their types: none is a picture
        "num_fewshot": 0,
        "repeats": len(manifest["seeds"]),  # a prompt is drawn once a seed
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": VERSION,
            "judge": manifest.get("judge"),
            "turns": manifest["turns"],
            "prompts_sha256": manifest.get("prompts_sha256"),
        },
    }


def _of_column(rows: Sequence[Row], column: str) -> list[Row]:
    return [row for row in rows if row.column == column]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("++", "pp")).strip("_")  # else GenEval++ would be GenEval


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()  # sha256, as theirs
