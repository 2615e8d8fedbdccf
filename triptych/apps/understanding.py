"""`triptych eval ita` and `vqa`, and `--understanding`: ask a model about images, and print its accuracy.

The images are those of a finished run, `--drawn DIR`; without one a synthetic set is rendered into a folder beside the
answers (eval/benchmark.py). With `--understanding` they are those of the run that was just played, so that one command
measures both what a unified model draws and what it sees in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from triptych.apps.arguments import device_of, folder_of, load_model
from triptych.apps.commands import EvalOptions
from triptych.apps.console import open_console, progress_bar
from triptych.apps.judge_choice import sticker_judge, vlm_options
from triptych.apps.options import STICKER_JUDGES, OpenModel
from triptych.apps.report import print_run
from triptych.errors import ConfigError
from triptych.eval import suites
from triptych.eval.benchmark import synthetic_set
from triptych.eval.probes import ProbePolicy
from triptych.eval.quiz import Quiz, run_quiz, share
from triptych.eval.results import OVERALL
from triptych.eval.run_folder import WHOLE, RunFolder, Shard
from triptych.eval.vqa import (
    LIMIT,
    DetectObjects,
    PictureSet,
    World,
    alignment,
    composition,
    detected_objects,
    scene_objects,
)
from triptych.files import check_writable
from triptych.loop import Policy

QUIZZES = ("ita", "vqa")
DRAWING_OPTIONS = ("turns", "seeds", "steps", "guidance", "temperature", "plan", "understanding")
BENCHMARK_OPTIONS = ("prompts", "keep_pictures")  # which no quiz has


def run(options: EvalOptions, open_model: OpenModel) -> int:
    """Ask the questions of `options.benchmark` about the images, print its table; returns the exit code.

    What can be refused is refused before the model is loaded.
    """
    check_quiz(options)
    pictures = None if options.drawn is None else PictureSet.read(options.drawn)
    out, shard = folder_of(options)
    set_folder = out.with_name(f"{out.name}-set")
    if pictures is None and not options.resume:
        check_writable(set_folder)
    policy = load_model(options, open_model)
    console = open_console(options.as_json)
    try:
        pictures = pictures or rendered_set(options, set_folder, console)
        record = ask_quiz(options, options.benchmark, pictures, probe_policy(options, policy), out, console, shard)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; go on with --out {out} --resume", style="yellow")
        return 130
    if options.as_json:
        print(json.dumps(record), flush=True)
    return 0


def run_both(options: EvalOptions, policy: Policy, out: Path, console: Console) -> dict[str, Any]:
    """What `--understanding` adds to a run in `out`: both quizzes on its own images, as JSON values.

    They are run folders, `out/ita` and `out/vqa`. Nothing is asked while other shards still draw.
    """
    run_folder = RunFolder.read(out)
    left = len(run_folder.open_jobs(run_folder.rows()))
    if left:
        message = f"{left} prompts are left to other shards; with --resume the last one asks about the pictures"
        console.print(message, style="yellow")
        return {}
    pictures, answering = PictureSet.read(out), probe_policy(options, policy)
    records = {name: ask_quiz(options, name, pictures, answering, out / name, console) for name in QUIZZES}
    summaries = []
    for name, record in records.items():
        overall = record["accuracies"][OVERALL]
        accuracy, chance = share(overall["accuracy"]["value"]), share(overall["chance"])
        summaries.append(f"{name.upper()} {accuracy} (chance {chance}, {overall['questions']} questions)")
    console.print(f"understanding of its own pictures: {'   '.join(summaries)}", style="bold", soft_wrap=True)
    return records


def rendered_set(options: EvalOptions, folder: Path, console: Console) -> PictureSet:
    """A synthetic set, rendered into `folder`; `--limit` is also the number of images per column."""
    suite = suites.GENEVAL_PLUS
    longest = max(Counter(suite.column(prompt) for prompt in suite.prompts).values())
    # one picture per prompt and seed: so many seeds give the longest column `limit` pictures
    seeds = range(ceil((LIMIT if options.limit is None else options.limit) / longest))
    with progress_bar(console) as progress:
        bar = progress.add_task("pictures", total=len(suite.prompts) * len(seeds), right="")
        for _ in synthetic_set(suite, seeds, folder, options.resume):
            progress.advance(bar)
    return PictureSet.read(folder)


def check_quiz(options: EvalOptions) -> None:
    """ConfigError for options that do not go with a quiz."""
    if options.shard is not None and options.drawn is None:
        raise ConfigError(
            f"--shard {options.shard}: expected --drawn with it, since all shards ask about one set of pictures; "
            "without --shard a set is rendered"
        )
    unused = given_options(options, (*DRAWING_OPTIONS, *BENCHMARK_OPTIONS))
    unused += [f"--{name}" for name in vlm_options(options)]
    # ita asks what the run's own judge said; vqa takes its answers from a detector, which no vlm is.
    if options.judge == "vlm" or (options.benchmark == "ita" and options.judge != "auto"):
        unused.append("--judge")
    if options.benchmark == "vqa":
        unused += given_options(options, ("by",))
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: of no use with {options.benchmark}, whose pictures are drawn; leave it out"
        )
    if options.limit is not None and options.limit < 2:  # a column has as many questions of each answer
        raise ConfigError(f"--limit {options.limit}: expected 2 or more")


def check_drawing(options: EvalOptions) -> None:
    """ConfigError for options of the quizzes that do not go with a benchmark that is drawn."""
    if options.by != "question":
        raise ConfigError(f"--by {options.by}: of use only with ita, whose pictures are drawn; leave it out")
    if options.understanding and not options.keep_pictures:
        raise ConfigError("--understanding asks about the pictures; expected them to be kept: leave --no-keep-pictures")


def given_options(options: EvalOptions, names: Sequence[str]) -> list[str]:
    """Those of the options that differ from their default, as they are typed."""
    defaults = {field.name: field.default for field in fields(options)}
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != defaults[name]]


def probe_policy(options: EvalOptions, policy: Policy) -> ProbePolicy:
    """The model, if it answers questions. Raises ConfigError."""
    if not isinstance(policy, ProbePolicy):
        raise ConfigError(f"{options.model} has no verb `answer`; expected a model that can be asked about pictures")
    return policy


def ask_quiz(
    options: EvalOptions,
    name: str,
    pictures: PictureSet,
    policy: ProbePolicy,
    out: Path,
    console: Console,
    shard: Shard = WHOLE,
) -> dict[str, Any]:
    """Ask one quiz, or a shard of it, into the folder `out`, print its table, and return all of it as JSON values."""
    quiz = quiz_of(options, name, pictures, policy.config.world)
    right = 0
    with progress_bar(console) as progress:
        bar = progress.add_task(quiz.name, total=len(quiz.questions[shard[0] - 1 :: shard[1]]), right="")
        rows = run_quiz(quiz, policy, batch_size=options.batch, out=out, resume=options.resume, shard=shard)
        for count, row in enumerate(rows, start=1):
            right += row.score(0) == 1.0
            progress.update(bar, advance=1, right=f"right {right / count:.3f}")
    return print_run(RunFolder.read(out), console)  # of every shard


def quiz_of(options: EvalOptions, name: str, pictures: PictureSet, world: World) -> Quiz:
    """The questions about a set, worded for a model of `world`. ConfigError where the model cannot know its things."""
    judge = str(pictures.manifest.get("judge"))
    sticker_kind = next((kind for kind in STICKER_JUDGES if judge.startswith(f"{kind}-")), None)
    if world == "stickers" and sticker_kind is None:
        raise ConfigError(
            f"{options.model} knows stickers, and these pictures were judged by {judge}; expected a set of stickers"
        )
    # With --understanding, --limit counts the prompts that were drawn.
    limit = options.limit if options.limit is not None and options.benchmark in QUIZZES else LIMIT
    if name == "ita":
        return alignment(pictures, world, limit, by=options.by)
    kind = options.judge if options.judge in (*STICKER_JUDGES, "detector") else sticker_kind or "detector"
    return composition(pictures, *detector_of(kind, options.device), world, limit)


def detector_of(kind: str, device: str) -> tuple[DetectObjects, str]:
    """What detects the objects in images, and its name for manifests."""
    if kind in STICKER_JUDGES:
        judge = sticker_judge(kind)
        return lambda images: [scene_objects(scene) for scene in judge.scenes(images)], judge.name
    from triptych.rewards.geneval_detector import GenEvalJudge

    judge = GenEvalJudge(device=device_of(device))
    return lambda images: detected_objects(judge.detector, images), judge.name
