"""`triptych eval`: play a benchmark, judge its images, print its table.

TIIF counts right answers where the others count right images, so it has its own table, that of `triptych score tiif`.
`ita` and `vqa` ask questions about images: understanding.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from triptych.apps import score, understanding
from triptych.apps.arguments import folder_of, load_model, sampling_of
from triptych.apps.commands import EvalOptions
from triptych.apps.console import open_console, progress_bar, say
from triptych.apps.judge_choice import LoggingJudge, check_missing, cut_line, judge_kind, open_judge
from triptych.apps.options import STICKER_JUDGES, JudgeKind, OpenModel
from triptych.apps.report import publish
from triptych.errors import ConfigError, OutputError
from triptych.eval import suites, tiif
from triptych.eval.benchmark import Benchmark, check_source, rejudge, run_benchmark
from triptych.eval.results import Row, report_table
from triptych.eval.run_folder import RunFolder, Shard
from triptych.files import write_json
from triptych.loop import Policy
from triptych.rewards.judge import Judge


def run(options: EvalOptions, open_model: OpenModel) -> int:
    """Play the benchmark, judge its images and print its table; returns the exit code.

    After Ctrl-C the rows so far stay in the folder, to be resumed. What can be refused is refused before the model is
    loaded.
    """
    if options.benchmark in understanding.QUIZZES:
        return understanding.run(options, open_model)
    check_judging(options)
    understanding.check_drawing(options)
    benchmark = benchmark_of(options)
    if options.limit is not None:
        benchmark = benchmark.thinned(options.limit)
    out, shard = folder_of(options)
    play = (
        drawn_run(options, benchmark, out, shard, open_model)
        if options.drawn is None
        else rejudged_run(options, benchmark, out, shard)
    )
    console = open_console(options.as_json)
    rows: list[Row] = []
    try:
        with progress_bar(console) as progress:
            # a shard plays every n-th job
            bar = progress.add_task(benchmark.name, total=len(range(shard[0] - 1, play.jobs, shard[1])), right="")
            for row in checked_rows(options, play, out):
                rows.append(row)
                progress.update(bar, advance=1, right=share_right(benchmark, rows, play.turns))
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; {len(rows)} rows are in {out}: go on with --out {out} --resume", style="yellow")
        return 130
    folder = RunFolder.read(out)
    rows, report = folder.rows(), folder.report()  # of every shard
    extra: dict[str, Any] = {}
    if isinstance(benchmark, tiif.Tiif):
        extra = tiif_results(benchmark, rows, play.turns, out, console)
    else:
        console.print(report_table(report))
    console.print(str(publish(folder, report)), style="bold", soft_wrap=True)
    if report.missing:
        console.print(f"{report.missing} verdicts are missing; --out {out} --resume judges them again", style="yellow")
    if line := cut_line(play.judge.judge):
        console.print(line, style="yellow")
    if options.understanding and play.policy is not None:
        extra |= understanding.run_both(options, play.policy, out, console)
    if options.as_json:
        record = {"folder": str(out), "report": report.to_record(), "manifest": folder.manifest}
        print(json.dumps({**record, **extra}), flush=True)
    return 1 if report.missing else 0


@dataclass(frozen=True)
class EvalRun:
    """A run that has not begun: each row is drawn and judged when the iterator reaches it."""

    judge: LoggingJudge
    turns: int
    jobs: int  # of all shards
    rows: Iterator[Row]
    policy: Policy | None  # None where the images are those of an earlier run


def drawn_run(options: EvalOptions, benchmark: Benchmark, out: Path, shard: Shard, open_model: OpenModel) -> EvalRun:
    """The run of a model that draws."""
    policy = load_model(options, open_model)
    judge = LoggingJudge(judge_of(options, benchmark, policy.config.world, options.model, strangers=False))
    seeds, sampling = range(options.seeds), sampling_of(policy.config, options)
    settings = (options.turns, seeds, sampling, options.plan, options.batch, out, options.resume)
    rows = run_benchmark(benchmark, policy, judge, *settings, shard=shard, keep_pictures=options.keep_pictures)
    return EvalRun(judge, options.turns, len(benchmark.prompts) * len(seeds), rows, policy)


def rejudged_run(options: EvalOptions, benchmark: Benchmark, out: Path, shard: Shard) -> EvalRun:
    """The run of a judge on the images of an earlier run. Raises ConfigError for options of drawing."""
    assert options.drawn is not None
    unused = ", ".join(understanding.given_options(options, understanding.DRAWING_OPTIONS))
    if unused:
        raise ConfigError(f"{unused}: of no use with --drawn, whose pictures are there; leave it out")
    source = RunFolder.read(options.drawn)
    check_source(benchmark, source)
    # Nobody has judged an imported run: there, the judge that is asked for says which world it is.
    judged_by = source.manifest.get("judge") or options.judge
    world = "stickers" if judged_by.startswith(STICKER_JUDGES) else "open"
    judge = LoggingJudge(judge_of(options, benchmark, world, str(options.drawn)))
    rows = rejudge(benchmark, source, judge, options.batch, out, options.resume, shard, options.keep_pictures)
    return EvalRun(judge, source.manifest["turns"], len(source.jobs), rows, None)


def checked_rows(options: EvalOptions, play: EvalRun, out: Path) -> Iterator[Row]:
    """The rows as they come. Raises JudgeError, with the cause, once too many verdicts are missing."""
    judge, verdicts = play.judge, 0
    for row in play.rows:
        yield row
        if row.lost:
            say(f"missing: {row.text[:60]!r}, seed {row.seed}: {row.lost}", error=True)
        elif judge.batches:  # rows of a resumed run come first, and count no more
            verdicts += len(row.verdicts)
        if verdicts == sum(judge.batches):  # the whole batch is in the folder
            remedy = f"the others are in {out}: go on with --out {out} --resume"
            check_missing(options, verdicts, len(judge.causes), "".join(judge.causes[-1:]), remedy)


def benchmark_of(options: EvalOptions) -> Benchmark:
    """The benchmark that was named. Raises ConfigError for TIIF without the user's copy, PromptError if damaged."""
    if (options.benchmark == "tiif") != (options.prompts is not None):
        raise ConfigError("--prompts goes with tiif, and tiif with --prompts: your own copy of its file or folder")
    if options.prompts is not None:
        return tiif.load_tiif(options.prompts)
    return {"genevalpp": suites.GENEVAL_PLUS, "geneval": suites.GENEVAL}.get(options.benchmark) or suites.dev_set()


def check_judging(options: EvalOptions) -> None:
    """ConfigError, before anything is loaded, for a judge or a way to ask that does not go with the benchmark."""
    kind, name = judge_kind(options, "world"), options.benchmark
    if options.judge == "detector" and name != "geneval":
        raise ConfigError(f"GenEval's detector knows no regions, sizes or questions; expected --judge vlm for {name}")
    if options.ask == "yesno":
        raise ConfigError("--ask yesno gives probabilities; eval counts right and wrong: leave it out, or try judge")
    if kind == "vlm" and options.ask not in ("auto", "tiif" if name == "tiif" else "strict"):
        raise ConfigError(f"--ask {options.ask} does not go with {name}; leave it out")
    alone = not (options.resume or options.shard)  # else the file belongs to this run
    if options.record is not None and options.record.exists() and alone:
        raise OutputError(f"{options.record} exists; expected a new file: choose another --record")


def judge_of(options: EvalOptions, benchmark: Benchmark, world: str, name: str, strangers: bool = True) -> Judge:
    """The judge for images of `world`, stickers or open, drawn by the model or run `name`.

    Raises ConfigError for a judge that only knows the other world.
    """
    # GenEval was made for a detector; the other benchmarks ask for what it cannot see.
    default: JudgeKind = "world" if world == "stickers" else "detector" if options.benchmark == "geneval" else "vlm"
    checklists = benchmark.checks if isinstance(benchmark, tiif.Tiif) else None
    if world == "stickers" and checklists is not None:
        raise ConfigError(f"TIIF asks for more than stickers, and {name} draws only these; expected another model")
    kind = judge_kind(options, default)
    if (world == "stickers") != (kind in STICKER_JUDGES):
        worlds = "open pictures, and {} draws stickers; expected world or templates"
        if kind in STICKER_JUDGES:
            worlds = "stickers, and {} draws open pictures; expected detector or vlm"
        raise ConfigError(f"--judge {kind} looks at {worlds.format(name)}")
    return open_judge(options, kind, checklists, options.device, strangers)


def share_right(benchmark: Benchmark, rows: Sequence[Row], turns: int) -> str:
    """The share of right images (TIIF: of right answers) among those that have a verdict, for the progress bar."""
    scores = [score for row in rows if (score := row.score(turns)) is not None]
    partial = isinstance(benchmark, tiif.Tiif)  # a score is then a share of questions
    right = sum(score if partial else score == 1.0 for score in scores) / max(len(scores), 1)
    return f"right {right:.3f}" + (f", missing {len(rows) - len(scores)}" if len(scores) < len(rows) else "")


def tiif_results(benchmark: Benchmark, rows: Sequence[Row], turns: int, out: Path, console: Console) -> dict[str, Any]:
    """TIIF's own figures after at most 0 to `turns` edits: printed, and written to tiif.json."""
    verdicts = [tiif.recorded_verdicts(rows, turn, str(out)) for turn in range(turns + 1)]
    figures = [score.score_record("tiif", own) for own in verdicts]
    for turn, figure in enumerate(figures):
        overall = "   ".join(f"{length} {score.format_share(value)}" for length, value in figure["overall"].items())
        console.print(f"up to {turn} edits   {overall}")
    console.print(score.tiif_table(f"{benchmark.name}, up to {turns} edits", figures[-1], verdicts[-1]))
    write_json(out / "tiif.json", figures)
    return {"tiif": figures}
