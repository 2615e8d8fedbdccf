"""`triptych judge`: a judge's verdicts on images that any system drew: one image, a folder, or a list of them.

Without an address the judge is that of the sticker world; --judge names another (judge_choice.py). The numbers go to
stdout; what is missing goes to stderr, a line each. A missing verdict is in no mean, and the exit code is then 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.apps import score
from triptych.apps.commands import JudgeOptions
from triptych.apps.console import open_console, progress_bar, say
from triptych.apps.judge_choice import check_missing, cut_line, judge_kind, open_judge, open_vlm, sticker_judge
from triptych.apps.options import STICKER_JUDGES, OpenModel
from triptych.apps.terminal import read_picture
from triptych.data.annotations import plan_text
from triptych.data.language import check_drawable
from triptych.data.prompt_checks import check_text, understand
from triptych.errors import ConfigError, OutputError, PromptError
from triptych.eval.completeness import completeness
from triptych.eval.recorded import RecordedVerdict
from triptych.eval.submissions import (
    LISTS,
    Entry,
    Fault,
    JudgedEntry,
    folder_notes,
    judge_pictures,
    list_notes,
    list_pictures,
    load_entries,
)
from triptych.eval.suites import GENEVAL_COLUMNS
from triptych.model.config import SKETCH
from triptych.model.images import frames_note
from triptych.rewards.judge import Judge
from triptych.rewards.sticker_judge import StickerJudge, check_stickers, scene_verdict
from triptych.rewards.vlm_prompts import Checks
from triptych.text import printable
from triptych.trace import Prompt, Trace

UNREADABLE = "unread"  # the column of lines that hold no prompt


def run(options: JudgeOptions, open_model: OpenModel) -> int:
    """Judge the images and print the verdicts; returns the exit code, 1 where one is missing."""
    many = options.image.is_dir() or options.image.suffix.lower() in LISTS
    kind = judge_kind(options, "world")
    check_options(options, many)
    if kind in STICKER_JUDGES and not many:
        record = judge_sticker_image(options.image, options.prompt, sticker_judge(kind))
        say(json.dumps(record) if options.as_json else verdict_lines(record))
        return 0
    entries = list_entries(options, many)
    if kind != "vlm":
        entries = [checked(entry, with_spec) for entry in entries]
        if kind in STICKER_JUDGES:
            hint = "; for other pictures name a judge with --address"
            entries = [checked(entry, drawable, hint) for entry in entries]
        return judge_entries(options, entries, open_judge(options, kind))
    checklists: dict[tuple[str, str], Checks] | None = None
    if options.ask == "tiif":
        entries, checklists = with_checklists(entries)
    judge = open_vlm(options, checklists)
    if options.dry_run:
        return print_cost(options, entries, judge)
    if options.self_check:
        return print_agreement(options, entries, judge)
    return judge_entries(options, entries, judge)


def check_options(options: JudgeOptions, many: bool) -> None:
    """Raises ConfigError for a prompt too many, OutputError for a record that exists."""
    if many and options.prompt:
        raise ConfigError(f"{options.image} brings its own prompts; expected no PROMPT beside it")
    if options.record is not None and options.record.exists() and not (options.dry_run or options.self_check):
        raise OutputError(f"{options.record} exists; expected a new file: choose another --record")


# --- entries ----------------------------------------------------------------------------------------------------------


def list_entries(options: JudgeOptions, many: bool) -> list[Entry | Fault]:
    """Every image with its prompt, those with an unusable prompt as faults."""
    if not many:
        return [Entry(printable(options.image), 1, options.image, Prompt(check_text(options.prompt)))]

    def with_text(entry: Entry) -> Entry:
        check_text(entry.prompt.text)
        return entry if options.ask == "tiif" else replace(entry, checks=None)  # else its questions are not asked

    return [checked(entry, with_text) for entry in list_pictures(options.image)]


def checked(entry: Entry | Fault, change: Callable[[Entry], Entry], hint: str = "") -> Entry | Fault:
    """The entry after a change, or a fault with the reason and a hint where its prompt does not allow the change."""
    if isinstance(entry, Fault):
        return entry
    try:
        return change(entry)
    except PromptError as error:
        return Fault(entry.name, entry.line, f"{error}{hint}")


def with_spec(entry: Entry) -> Entry:
    """The entry with a spec, parsed from the prompt where it brings none."""
    return entry if entry.prompt.spec else replace(entry, prompt=understand(entry.prompt, SKETCH.world))


def drawable(entry: Entry) -> Entry:
    """The entry, if the sticker world has a picture that meets its spec."""
    if entry.prompt.spec is not None:
        check_drawable(entry.prompt.spec)
    return entry


def with_checklists(entries: Sequence[Entry | Fault]) -> tuple[list[Entry | Fault], dict[tuple[str, str], Checks]]:
    """The entries, those without questions as faults, and the questions by source and text of the prompt."""
    checklists: dict[tuple[str, str], Checks] = {}

    def listed(entry: Entry) -> Entry:
        if entry.checks is None:
            raise PromptError("no questions; --ask tiif needs questions, gt_answers and length")
        key = (entry.prompt.source, entry.prompt.text)
        # The judge looks questions up by the prompt, so two lists under one prompt cannot both be asked.
        if checklists.setdefault(key, entry.checks).questions != entry.checks.questions:
            raise PromptError("an earlier line has other questions about this prompt")
        return entry

    return [checked(entry, listed) for entry in entries], checklists


def place_of(entry: Entry | Fault) -> str:
    """Where an entry stands: its file, and its line in a list."""
    return f"{entry.name}, line {entry.line}" if entry.line > 1 or entry.name.endswith(LISTS) else entry.name


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_entries(options: JudgeOptions, entries: Sequence[Entry | Fault], judge: Judge) -> int:
    """Judge everything, print what is missing as it happens and the counts at the end; returns the exit code."""
    rows: list[JudgedEntry] = []
    notes = folder_notes(options.image) if options.image.is_dir() else list_notes(entries)
    total = without_verdict = missing = 0  # `missing` counts files at fault, too
    cause = ""
    remedy = f"the others are in {options.cache}" if options.cache else "--cache would keep the others"
    name, console = judge.name, open_console(options.as_json)  # the name may fetch weights, or fail to
    with progress_bar(console) as progress:
        bar = progress.add_task(name, total=len(entries), right="")
        for row in judge_pictures(entries, judge):
            rows.append(row)
            if isinstance(row.entry, Entry) and (note := frames_note(row.entry.picture)):
                notes.append(printable(note))
            if row.missing:
                say(f"missing: {place_of(row.entry)}: {row.missing}", error=True)
            total, missing = total + row.judged, missing + bool(row.missing)
            without_verdict += row.judge_failed
            cause = row.missing or "" if row.judge_failed else cause
            progress.update(bar, advance=1, right=f"missing {missing}")
            # A file at fault says nothing about the judge, so only what it was asked counts here.
            check_missing(options, total, without_verdict, cause, remedy)
    if line := cut_line(judge):
        say(line, error=True)
    for note in notes:
        say(f"note: {note}", error=True)
    print_verdicts(options, judge, rows, notes)
    return 1 if missing else 0


def print_cost(options: JudgeOptions, entries: Sequence[Entry | Fault], judge: Any) -> int:
    """Print requests and tokens of a vision-language model, before any is sent; returns the exit code."""
    total = {"pictures": 0, "calls": 0, "cached": 0, "tokens_in": 0, "tokens_out": 0, "missing": 0}
    for batch in load_entries(entries):
        cost = judge.cost([trace for _, trace in batch if isinstance(trace, Trace)])
        for name in total:
            total[name] += getattr(cost, name, 0)
        total["missing"] += sum(isinstance(trace, str) for _, trace in batch)
    if options.as_json:
        print(json.dumps({"judge": judge.name, **total}), flush=True)
        return 0
    say(
        f"{total['calls']:,} calls to {options.judge_model} about {total['pictures']:,} pictures "
        f"({total['cached']:,} answers are cached, {total['missing']:,} pictures cannot be judged)\n"
        f"about {total['tokens_in']:,} tokens in (one per 28 x 28 pixels, and per 4 letters), "
        f"at most {total['tokens_out']:,} out; retries would come on top"
    )
    return 0


def print_agreement(options: JudgeOptions, entries: Sequence[Entry | Fault], judge: Any) -> int:
    """Print how often a vision-language model gives the same verdict twice; returns the exit code."""
    from triptych.rewards.vlm import self_agreement

    loaded = (trace for batch in load_entries(entries) for _, trace in batch)
    traces = [trace for trace in loaded if isinstance(trace, Trace)][: options.self_check]
    agreement = self_agreement(judge, traces)
    if options.as_json:
        print(json.dumps({"judge": judge.name, "pictures": len(traces), "agreement": agreement}), flush=True)
    else:
        result = "no verdict came twice" if agreement is None else f"{agreement:.4f} of the verdicts are the same twice"
        say(f"{judge.name}, {len(traces)} pictures, one at a time and side by side: {result}")
    return 1 if agreement is None else 0


# --- verdicts ---------------------------------------------------------------------------------------------------------


def print_verdicts(options: JudgeOptions, judge: Judge, rows: Sequence[JudgedEntry], notes: Sequence[str]) -> None:
    """The counts, as JSON with every verdict or as a table."""
    verdicts = [recorded_verdict(row) for row in rows]
    benchmark = options.ask
    if benchmark != "tiif":  # which rules count is told by the tags alone
        geneval = {row.column for row in verdicts} <= {*GENEVAL_COLUMNS, UNREADABLE}
        benchmark = "geneval" if geneval else "genevalpp"
    record = score.score_record(benchmark, verdicts)
    # A list is a set of the user's own, and so is a folder with none of the benchmark's prompts.
    whole = completeness(verdicts, score.expected_set(benchmark))
    if not (options.image.is_dir() and whole.prompts):
        whole = completeness(verdicts, None)
    if options.as_json:
        cut = {"cut": len(getattr(judge, "cut", ()))} if hasattr(judge, "cut") else {}
        results = {
            "judge": judge.name,
            **cut,
            "notes": [*notes],
            "set": whole.to_record(),
            "results": [result(row) for row in rows],
        }
        print(json.dumps({**record, **results}), flush=True)
        return
    score.print_scores(benchmark, f"{options.image}, judged by {judge.name}", record, verdicts, whole)


def recorded_verdict(row: JudgedEntry) -> RecordedVerdict:
    """The verdict as `triptych score` counts it: right of asked questions."""
    entry, verdict = row.entry, row.verdict
    if isinstance(entry, Fault):
        return RecordedVerdict(entry.name, entry.line, UNREADABLE, 0, 0, missing=row.missing)
    prompt, checks = entry.prompt, entry.checks
    column = f"{checks.attribute}/{checks.length}" if checks else prompt.spec.tag if prompt.spec else "all"
    if verdict is None:
        return RecordedVerdict(entry.name, entry.line, column, 0, 0, prompt.text, missing=row.missing)
    right, questions = int(not verdict.failed), 1
    if checks:
        right, questions = len(verdict.passed), len(verdict.passed) + len(verdict.failed)
    return RecordedVerdict(entry.name, entry.line, column, right, questions, prompt.text, verdict.failed)


def result(row: JudgedEntry) -> dict[str, Any]:
    """One image's verdict as JSON values."""
    entry, verdict = row.entry, row.verdict
    return {
        "picture": entry.name,
        "line": entry.line,
        "prompt": None if isinstance(entry, Fault) else entry.prompt.text,
        "correct": None if verdict is None else not verdict.failed,
        "score": None if verdict is None else verdict.score,
        "passed": [] if verdict is None else list(verdict.passed),
        "reasons": [row.missing] if verdict is None else list(verdict.failed),
    }


def judge_sticker_image(path: Path, text: str, judge: StickerJudge) -> dict[str, Any]:
    """Score, checks and detected stickers as JSON values. Raises PictureError, PromptError or JudgeError."""
    prompt = understand(Prompt(check_text(text)), SKETCH.world)
    image = read_picture(path)
    check_stickers([image])
    (scene,) = judge.scenes([image])
    assert prompt.spec is not None  # `understand` gives one in the world of stickers
    checks = scene_verdict(scene, prompt.spec)
    return {
        "score": checks.score,
        "passed": list(checks.passed),
        "failed": list(checks.failed),
        "seen": plan_text(scene),
        "asked": prompt.text,
        "judge": judge.name,
    }


def verdict_lines(record: dict[str, Any]) -> str:
    """`judge_sticker_image` as lines for a person."""
    checks = len(record["passed"]) + len(record["failed"])
    lines = [f"prompt    {record['asked']}", f"detected  {record['seen'] or 'nothing'}"]
    lines += [f"  ✓ {check}" for check in record["passed"]] + [f"  ✗ {check}" for check in record["failed"]]
    lines.append(f"score     {record['score']:.2f} ({len(record['passed'])} of {checks} checks pass)")
    return "\n".join(lines)
