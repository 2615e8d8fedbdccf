"""`triptych eval ita` and `vqa`, and `--understanding`: ask a model about pictures, and print what it knows.

The pictures are those of a finished run, `--drawn DIR`. Without one a set that no model drew is painted into a folder
beside the answers (eval/benchmark.py). With `--understanding` they are those of the run that was just played, so that one
command measures what a unified model draws and what it sees in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from triptych.apps.arguments import check_at_least, device_of, folder_of, shard_of
from triptych.apps.options_judge import STICKERS, sticker_judge
from triptych.apps.output import check_writable
from triptych.apps.report import publish
from triptych.apps.terminal import COUNTING, open_console
from triptych.errors import ConfigError
from triptych.eval import suites
from triptych.eval.benchmark import synthetic_set
from triptych.eval.probes import ProbePolicy
from triptych.eval.quiz import Quiz, accuracy_by_column, accuracy_table, quiz_report, run_quiz, share
from triptych.eval.results import OVERALL, Row
from triptych.eval.run_folder import WHOLE, RunFolder, Shard
from triptych.eval.vqa import LIMIT, Detect, PictureSet, World, alignment, composition, detected_things, scene_things
from triptych.loop import Policy

if TYPE_CHECKING:
    from triptych.apps.commands import Evaluate

QUIZZES = ("ita", "vqa")
# Options of the model that draws: here none does.
DRAWING = ("turns", "seeds", "steps", "guidance", "temperature", "plan", "understanding")
OTHERS = ("prompts", "keep_pictures")  # options of other benchmarks


def evaluate(choice: Evaluate, load: Callable[[], Policy]) -> int:
    """Ask the quiz `choice.benchmark` about `--drawn`, print, and return the exit code.

    What can be refused is refused before the model is loaded.
    """
    check(choice)
    drawn = None if choice.drawn is None else PictureSet.read(choice.drawn)
    out, shard = folder_of(choice), shard_of(choice.shard)
    painting = out.with_name(f"{out.name}-set")
    if not choice.resume and not (shard != WHOLE and out.exists()):
        check_writable(out)
        if drawn is None:
            check_writable(painting)
    policy = load()
    console = open_console(choice.as_json)
    try:
        drawn = drawn or painted(choice, painting, console)
        told = asked(choice, choice.benchmark, drawn, student(choice, policy), out, console, shard)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; go on with --out {out} --resume", style="yellow")
        return 130
    if choice.as_json:
        print(json.dumps(told), flush=True)
    return 0


def painted(choice: Evaluate, folder: Path, console: Console) -> PictureSet:
    """A set that no model drew, painted into `folder`: with `--limit`, as many pictures a column."""
    suite = suites.GENEVAL_PLUS
    longest = max(Counter(suite.column(prompt) for prompt in suite.prompts).values())
    seeds = range(ceil((LIMIT if choice.limit is None else choice.limit) / longest))
    with Progress(*COUNTING, console=console) as progress:
        bar = progress.add_task("pictures", total=len(suite.prompts) * len(seeds), right="")
        for _ in synthetic_set(suite, seeds, folder, choice.resume):
            progress.advance(bar)
    return PictureSet.read(folder)


def check(choice: Evaluate) -> None:
    """ConfigError for options that do not go with a quiz."""
    if choice.shard is not None and choice.drawn is None:
        told = "expected --drawn beside it, a set that is there before the shards ask: without --shard one is painted"
        raise ConfigError(f"--shard {choice.shard}: {told}")
    usual = {field.name: field.default for field in fields(choice)}
    moot = [name for name in (*DRAWING, *OTHERS) if getattr(choice, name) != usual[name]]
    moot += [name for name, given in choice.only_vlm().items() if given]
    moot += ["judge"] if choice.judge == "vlm" or (choice.benchmark == "ita" and choice.judge != "auto") else []
    moot += ["by"] if choice.benchmark == "vqa" and choice.by != usual["by"] else []
    if moot:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in moot)
        raise ConfigError(f"{told}: of no use with {choice.benchmark}, whose pictures are drawn; leave it out")
    check_at_least("batch", choice.batch, 1)
    check_at_least("limit", LIMIT if choice.limit is None else choice.limit, 2)


def check_drawing(choice: Evaluate) -> None:
    """ConfigError for options of the quizzes that do not go with a benchmark that is drawn."""
    if choice.by != "question":
        raise ConfigError(f"--by {choice.by}: of use only with ita, whose pictures are drawn; leave it out")
    if choice.understanding and not choice.keep_pictures:
        raise ConfigError("--understanding asks about the pictures; expected them to be kept: leave --no-keep-pictures")


def after(choice: Evaluate, policy: Policy, out: Path, console: Console) -> dict[str, Any]:
    """What `--understanding` adds to a run that was played into `out`: both quizzes on its own pictures, as records.

    They are run folders, `out/ita` and `out/vqa`. Nothing is asked while other shards still draw.
    """
    left = len(RunFolder.read(out).open_jobs())
    if left:
        told = f"{left} prompts are left to other shards; with --resume the last one asks about the pictures"
        console.print(told, style="yellow")
        return {}
    drawn, player = PictureSet.read(out), student(choice, policy)
    found = {name: asked(choice, name, drawn, player, out / name, console) for name in QUIZZES}
    shown = "   ".join(f"{name.upper()} {overall(told)}" for name, told in found.items())
    console.print(f"understanding of its own pictures: {shown}", style="bold", soft_wrap=True)
    return found


def student(choice: Evaluate, policy: Policy) -> ProbePolicy:
    """The model, if it answers questions. Raises ConfigError."""
    if not isinstance(policy, ProbePolicy):
        raise ConfigError(f"{choice.model} has no verb `answer`; expected a model that can be asked about pictures")
    return policy


def asked(
    choice: Evaluate,
    name: str,
    drawn: PictureSet,
    policy: ProbePolicy,
    out: Path,
    console: Console,
    shard: Shard = WHOLE,
) -> dict[str, Any]:
    """Ask one quiz, or a shard of it, into the folder `out`, print its table, and return all of it as JSON values."""
    quiz = quiz_of(choice, name, drawn, policy.config.world)
    rows: list[Row] = []
    with Progress(*COUNTING, console=console) as progress:
        bar = progress.add_task(quiz.name, total=len(quiz.questions[shard[0] - 1 :: shard[1]]), right="")
        for row in run_quiz(quiz, policy, batch_size=choice.batch, out=out, resume=choice.resume, shard=shard):
            rows.append(row)
            right = sum(each.score(0) == 1.0 for each in rows) / len(rows)
            progress.update(bar, advance=1, right=f"right {right:.3f}")
    ledger = RunFolder.read(out)
    rows = ledger.played()  # of every shard
    found, report = accuracy_by_column(quiz, rows), quiz_report(quiz, rows)
    console.print(accuracy_table(quiz, found))
    console.print(str(publish(ledger, report)), style="bold", soft_wrap=True)
    return {
        "folder": str(out),
        "standings": {column: asdict(each) for column, each in found.items()},
        "report": report.to_record(),
        "manifest": ledger.manifest,
    }


def quiz_of(choice: Evaluate, name: str, drawn: PictureSet, world: World) -> Quiz:
    """The questions about a set, worded for a model of `world`. ConfigError where the model cannot know its things."""
    judge = str(drawn.manifest.get("judge"))
    sticker = next((kind for kind in STICKERS if judge.startswith(f"{kind}-")), None)
    if world == "stickers" and sticker is None:
        raise ConfigError(
            f"{choice.model} knows stickers, and these pictures were judged by {judge}; expected a set of stickers"
        )
    limit = choice.limit if choice.limit is not None and choice.benchmark in QUIZZES else LIMIT
    if name == "ita":
        return alignment(drawn, world, limit, by=choice.by)
    kind = choice.judge if choice.judge in (*STICKERS, "detector") else sticker or "detector"
    return composition(drawn, *eyes(kind, choice.device), world, limit)


def eyes(kind: str, device: str) -> tuple[Detect, str]:
    """What finds the things in pictures, and its name for manifests."""
    if kind in STICKERS:
        judge = sticker_judge(kind)
        return lambda pictures: [scene_things(scene) for scene in judge.scenes(pictures)], judge.name
    from triptych.rewards.geneval_detector import GenEvalJudge

    detector = GenEvalJudge(device=device_of(device))
    return lambda pictures: detected_things(detector.eyes, pictures), detector.name


def overall(told: Mapping[str, Any]) -> str:
    """A quiz in a few words."""
    each = told["standings"][OVERALL]
    return f"{share(each['accuracy']['value'])} (coin {share(each['coin'])}, {each['asked']} questions)"
