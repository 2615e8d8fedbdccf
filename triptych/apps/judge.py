"""`triptych judge`: what a judge says of pictures that any system drew; one picture, a folder, or a jsonl.

Without an address the judge is that of the sticker world; --judge names another (`judges.py`). The numbers go to
stdout; what is missing goes to stderr, a line each. A missing verdict is in no mean, and the exit code is then 1.

`triptych judge`: a judge of stickers on one picture, as a record and in words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from triptych.apps.arguments import check_text, understand
from triptych.apps.options_judge import STICKERS, JudgeChoice, sticker_judge
from triptych.data.annotations import plan_text
from triptych.errors import ConfigError, OutputError, PromptError
from triptych.model.config import SKETCH
from triptych.model.images import read_picture
from triptych.rewards.sticker_judge import StickerJudge, verdict
from triptych.trace import Prompt, Spec

if TYPE_CHECKING:
    from triptych.eval.recorded import RecordedVerdict
    from triptych.eval.submissions import Entry, Fault, Judged
    from triptych.rewards.judge import Judge
    from triptych.rewards.vlm import Vlm
    from triptych.rewards.vlm_prompts import Checks

UNREAD = "unread"  # the column of lines that do not say what was asked


@dataclass(frozen=True, kw_only=True)
class JudgePictures(JudgeChoice):
    """Judge pictures against their prompts: one picture, a folder in GenEval's layout, or a jsonl."""

    image: Annotated[Positional[Path], arg(metavar="IMAGE|DIR|JSONL")]
    """A picture; a folder with 00000/metadata.jsonl and 00000/samples/0000.png; or lines of image and prompt."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")] = ""
    """What a single picture should show, in quotes."""
    judge_model: Annotated[str, arg(aliases=["--model"])] = ""
    """The vision-language model's name on those servers."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Say how many calls and about how many tokens it would cost; ask nobody."""
    self_check: Annotated[int, arg(metavar="N")] = 0
    """Only ask twice about the first N pictures, past the cache: how far does the judge agree with itself?"""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print JSON on stdout."""

    def run(self, open_model: object) -> int:
        many = self.image.is_dir() or self.image.suffix == ".jsonl"
        kind = self.kind("world")
        self._check(many)
        if kind in STICKERS and not many:
            verdict = judge_sticker_picture(self.image, self.prompt, sticker_judge(kind))
            print(json.dumps(verdict) if self.as_json else verdict_lines(verdict), flush=True)
            return 0
        entries = self._entries(many)
        if kind != "vlm":
            entries = [understood(entry) for entry in entries]
            checked = [in_world(entry) for entry in entries] if kind in STICKERS else entries
            return self._judge(checked, self.opened(kind))
        lists: dict[tuple[str, str], Checks] | None = None
        if self.ask == "tiif":
            entries, lists = listed(entries)
        judge = self.vlm(lists)
        if self.dry_run:
            return self._tell_cost(entries, judge)
        if self.self_check:
            return self._tell_agreement(entries, judge)
        return self._judge(entries, judge)

    def only_vlm(self) -> dict[str, bool]:
        return super().only_vlm() | {"dry-run": self.dry_run, "self-check": bool(self.self_check)}

    def _check(self, many: bool) -> None:
        if many and self.prompt:
            raise ConfigError(f"{self.image} brings its own prompts; expected no PROMPT beside it")
        if self.self_check < 0:
            raise ConfigError(f"--self-check {self.self_check}: expected 1 or more pictures")
        if self.record is not None and self.record.exists() and not (self.dry_run or self.self_check):
            raise OutputError(f"{self.record} exists; expected a new file: choose another --record")

    def _entries(self, many: bool) -> list[Entry | Fault]:
        from triptych.apps.arguments import check_text
        from triptych.eval.submissions import Entry, list_pictures, shown
        from triptych.trace import Prompt

        if not many:
            return [Entry(shown(self.image), 1, self.image, Prompt(check_text(self.prompt)))]
        entries = [legible(entry) for entry in list_pictures(self.image)]
        if self.ask == "tiif":
            return entries
        return [replace(entry, checks=None) if isinstance(entry, Entry) else entry for entry in entries]

    def _judge(self, entries: Sequence[Entry | Fault], judge: Judge) -> int:
        """Judge everything, tell what is missing as it happens, print the result."""
        from rich.progress import Progress

        from triptych.apps.terminal import COUNTING, open_console
        from triptych.eval.submissions import judge_pictures

        rows: list[Judged] = []
        asked = lost = missing = 0
        cause = ""
        kept = f"the others are in {self.cache}" if self.cache else "--cache would keep the others"
        name, console = judge.name, open_console(self.as_json)  # the name may fetch weights, or fail to
        with Progress(*COUNTING, console=console) as progress:
            bar = progress.add_task(name, total=len(entries), right="")
            for row in judge_pictures(entries, judge):
                rows.append(row)
                if row.missing:
                    print(f"missing: {where(row.entry)}: {row.missing}", file=sys.stderr, flush=True)
                asked, lost, missing = asked + row.asked, lost + row.lost, missing + bool(row.missing)
                cause = row.missing or "" if row.lost else cause
                progress.update(bar, advance=1, right=f"missing {missing}")
                self.check_missing(asked, lost, cause, kept)
        show(self, judge, rows)
        return 1 if missing else 0

    def _tell_cost(self, entries: Sequence[Entry | Fault], judge: Vlm) -> int:
        from triptych.eval.submissions import load_pictures
        from triptych.trace import Trace

        total = {"pictures": 0, "calls": 0, "cached": 0, "tokens_in": 0, "tokens_out": 0, "missing": 0}
        for batch in load_pictures(entries):
            cost = judge.cost([trace for _, trace in batch if isinstance(trace, Trace)])
            for name in total:
                total[name] += getattr(cost, name, 0)
            total["missing"] += sum(isinstance(trace, str) for _, trace in batch)
        if self.as_json:
            print(json.dumps({"judge": judge.name, **total}), flush=True)
            return 0
        print(
            f"{total['calls']:,} calls to {self.judge_model} about {total['pictures']:,} pictures "
            f"({total['cached']:,} answers are cached, {total['missing']:,} pictures cannot be judged)\n"
            f"about {total['tokens_in']:,} tokens in (one per 28 x 28 pixels, and per 4 letters), "
            f"at most {total['tokens_out']:,} out; retries would come on top",
            flush=True,
        )
        return 0

    def _tell_agreement(self, entries: Sequence[Entry | Fault], judge: Vlm) -> int:
        from triptych.eval.submissions import load_pictures
        from triptych.rewards.vlm import self_agreement
        from triptych.trace import Trace

        loaded = (trace for batch in load_pictures(entries) for _, trace in batch)
        traces = [trace for trace in loaded if isinstance(trace, Trace)][: self.self_check]
        share = self_agreement(judge, traces)
        if self.as_json:
            print(json.dumps({"judge": judge.name, "pictures": len(traces), "agreement": share}), flush=True)
        else:
            told = "no verdict came twice" if share is None else f"{share:.4f} of the verdicts are the same twice"
            print(f"{judge.name}, {len(traces)} pictures, one at a time and side by side: {told}", flush=True)
        return 1 if share is None else 0


def listed(entries: Sequence[Entry | Fault]) -> tuple[list[Entry | Fault], dict[tuple[str, str], Checks]]:
    """The entries, those without questions as faults, and the questions by source and text of the prompt."""
    from triptych.eval.submissions import Entry, Fault

    lists: dict[tuple[str, str], Checks] = {}
    found: list[Entry | Fault] = []
    for entry in entries:
        if isinstance(entry, Entry):
            key = (entry.prompt.source, entry.prompt.text)
            if entry.checks is None:
                entry = Fault(entry.name, entry.line, "no questions; --ask tiif needs questions, gt_answers and length")
            elif lists.setdefault(key, entry.checks).questions != entry.checks.questions:
                entry = Fault(entry.name, entry.line, "an earlier line has other questions about this prompt")
        found.append(entry)
    return found, lists


def legible(entry: Entry | Fault) -> Entry | Fault:
    """The entry, if its prompt is text that a judge can be told."""
    from triptych.apps.arguments import check_text
    from triptych.eval.submissions import Fault

    if isinstance(entry, Fault):
        return entry
    try:
        check_text(entry.prompt.text)
    except PromptError as error:
        return Fault(entry.name, entry.line, str(error))
    return entry


def understood(entry: Entry | Fault) -> Entry | Fault:
    """The entry with a spec, read from the prompt where it brings none, or why there is none."""
    from triptych.apps.arguments import understand
    from triptych.eval.submissions import Fault
    from triptych.model.config import SKETCH

    if isinstance(entry, Fault) or entry.prompt.spec is not None:
        return entry
    try:
        return replace(entry, prompt=understand(entry.prompt, SKETCH))
    except PromptError as error:
        return Fault(entry.name, entry.line, str(error))


def in_world(entry: Entry | Fault) -> Entry | Fault:
    """The entry, if the sticker world has a picture that meets its spec."""
    from triptych.data.language import check_drawable
    from triptych.eval.submissions import Fault

    if isinstance(entry, Fault):
        return entry
    try:
        if entry.prompt.spec is not None:
            check_drawable(entry.prompt.spec)
    except PromptError as error:
        return Fault(entry.name, entry.line, f"{error}; for other pictures name a judge with --address")
    return entry


def where(entry: Entry | Fault) -> str:
    """An entry's place, as it is told."""
    return f"{entry.name}, line {entry.line}" if entry.line > 1 or entry.name.endswith(".jsonl") else entry.name


def row_of(judged: Judged) -> RecordedVerdict:
    """The verdict as the scores count it: right of asked questions."""
    from triptych.eval.recorded import RecordedVerdict
    from triptych.eval.submissions import Fault

    entry, verdict = judged.entry, judged.verdict
    if isinstance(entry, Fault):
        return RecordedVerdict(entry.name, entry.line, UNREAD, 0, 0, missing=judged.missing)
    prompt, checks = entry.prompt, entry.checks
    column = f"{checks.attribute}/{checks.length}" if checks else prompt.spec.tag if prompt.spec else "all"
    if verdict is None:
        return RecordedVerdict(entry.name, entry.line, column, 0, 0, prompt.text, missing=judged.missing)
    right, asked = int(not verdict.failed), 1
    if checks:
        right, asked = len(verdict.passed), len(verdict.passed) + len(verdict.failed)
    return RecordedVerdict(entry.name, entry.line, column, right, asked, prompt.text, verdict.failed)


def show(choice: JudgePictures, judge: Judge, rows: Sequence[Judged]) -> None:
    """The counts, as JSON with every verdict or as a table."""
    from triptych.apps import score
    from triptych.eval.suites import GENEVAL_COLUMNS

    counted = [row_of(row) for row in rows]
    benchmark = choice.ask
    if benchmark != "tiif":
        benchmark = "geneval" if {row.column for row in counted} <= {*GENEVAL_COLUMNS, UNREAD} else "genevalpp"
    record = score.scored(benchmark, counted)
    if choice.as_json:
        results = [result(row) for row in rows]
        print(json.dumps({**record, "judge": judge.name, "results": results}), flush=True)
        return
    score.show(benchmark, f"{choice.image}, judged by {judge.name}", record, counted)


def result(judged: Judged) -> dict[str, Any]:
    """One picture's verdict as JSON values."""
    from triptych.eval.submissions import Fault

    entry, verdict = judged.entry, judged.verdict
    return {
        "picture": entry.name,
        "line": entry.line,
        "prompt": None if isinstance(entry, Fault) else entry.prompt.text,
        "correct": None if verdict is None else not verdict.failed,
        "score": None if verdict is None else verdict.score,
        "passed": [] if verdict is None else list(verdict.passed),
        "reasons": [judged.missing] if verdict is None else list(verdict.failed),
    }


def judge_sticker_picture(path: Path, text: str, eyes: StickerJudge) -> dict[str, Any]:
    """Score, checks and what was seen. Raises PictureError, PromptError, or JudgeError where it cannot look."""
    prompt = understand(Prompt(check_text(text)), SKETCH)
    image = read_picture(path)
    (scene,) = eyes.scenes([image])
    given = verdict(scene, prompt.spec or Spec("free", ()))
    return {
        "score": given.score,
        "passed": list(given.passed),
        "failed": list(given.failed),
        "seen": plan_text(scene),
        "asked": prompt.text,
        "judge": eyes.name,
    }


def verdict_lines(record: dict[str, Any]) -> str:
    """The record as lines for a person."""
    asked = len(record["passed"]) + len(record["failed"])
    lines = [f"asked   {record['asked']}", f"seen    {record['seen'] or 'nothing'}"]
    lines += [f"  ✓ {check}" for check in record["passed"]] + [f"  ✗ {check}" for check in record["failed"]]
    lines.append(f"score   {record['score']:.2f} ({len(record['passed'])} of {asked} checks hold)")
    return "\n".join(lines)
