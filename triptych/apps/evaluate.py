"""`triptych eval`: play a benchmark, have its pictures judged, count on the terminal, print its table.

TIIF counts right answers where the others count right pictures, so it has its own table, that of `triptych score tiif`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from triptych.apps import understanding
from triptych.apps.arguments import check_at_least, folder_of, sampling_of, shard_of
from triptych.apps.options_judge import STICKERS, Kind, LoggingJudge
from triptych.apps.output import check_writable
from triptych.apps.report import publish
from triptych.apps.terminal import COUNTING, open_console
from triptych.errors import ConfigError, OutputError
from triptych.eval import suites, tiif
from triptych.eval.benchmark import Benchmark, check_source, rejudge, run
from triptych.eval.results import Row, report_table
from triptych.eval.run_folder import MOST_SEEDS, MOST_TURNS, WHOLE, RunFolder, Shard
from triptych.loop import Policy
from triptych.rewards.judge import Judge

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.apps.commands import Evaluate


def evaluate(choice: Evaluate, load: Callable[[], Policy]) -> int:
    """Play, print, and return the exit code. After Ctrl-C the rows so far stay in the folder, to be resumed.

    What can be refused is refused before the model is loaded.
    """
    check_judging(choice)
    understanding.check_drawing(choice)
    benchmark = chosen(choice)
    if choice.limit is not None:
        check_at_least("limit", choice.limit, 1)
        benchmark = benchmark.thinned(choice.limit)
    check_at_least("seeds", choice.seeds, 1, MOST_SEEDS)
    check_at_least("turns", choice.turns, 0, MOST_TURNS)
    check_at_least("batch", choice.batch, 1)
    out, shard = folder_of(choice), shard_of(choice.shard)
    if not choice.resume and not (shard != WHOLE and out.exists()):
        check_writable(out)
    play = drawn(choice, benchmark, out, shard, load) if choice.drawn is None else kept(choice, benchmark, out, shard)
    console = open_console(choice.as_json)
    rows: list[Row] = []
    try:
        with Progress(*COUNTING, console=console) as progress:
            bar = progress.add_task(benchmark.name, total=len(range(shard[0] - 1, play.jobs, shard[1])), right="")
            for row in watched(choice, play, out):
                rows.append(row)
                progress.update(bar, advance=1, right=right_so_far(benchmark, rows, play.turns))
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; {len(rows)} rows are in {out}: go on with --out {out} --resume", style="yellow")
        return 130
    ledger = RunFolder.read(out)
    rows, report = ledger.played(), ledger.report()  # of every shard
    if isinstance(benchmark, tiif.Tiif):
        answers = answered(benchmark, rows, play.turns, out, console)
    else:
        answers = {}
        console.print(report_table(report))
    publish(ledger, report)
    console.print(f"{out}/report.html", style="bold", soft_wrap=True)
    if report.missing:
        console.print(f"{report.missing} verdicts are missing; --out {out} --resume asks again", style="yellow")
    if choice.understanding and play.policy is not None:
        answers |= understanding.after(choice, play.policy, out, console)
    if choice.as_json:
        about = {"folder": str(out), "report": report.to_record(), "manifest": ledger.manifest}
        print(json.dumps({**about, **answers}), flush=True)
    return 1 if report.missing else 0


@dataclass(frozen=True)
class Play:
    """A run about to be played: its rows are drawn and judged as they are asked for."""

    judge: LoggingJudge
    turns: int
    jobs: int  # of all shards
    rows: Iterator[Row]
    policy: Policy | None  # None where the pictures are those of an earlier run


def drawn(choice: Evaluate, benchmark: Benchmark, out: Path, shard: Shard, load: Callable[[], Policy]) -> Play:
    """The run of a model that draws."""
    policy = load()
    judge = LoggingJudge(judge_of(choice, benchmark, policy.config.world, choice.model))
    seeds, sampling = range(choice.seeds), sampling_of(policy.config, choice.steps, choice.guidance, choice.temperature)
    settings = (choice.turns, seeds, sampling, choice.plan, choice.batch, out, choice.resume)
    rows = run(benchmark, policy, judge, *settings, shard=shard, keep=choice.keep_pictures)
    return Play(judge, choice.turns, len(benchmark.prompts) * len(seeds), rows, policy)


def kept(choice: Evaluate, benchmark: Benchmark, out: Path, shard: Shard) -> Play:
    """The run of a judge that looks at the pictures of an earlier run. Raises ConfigError for options of a drawing."""
    assert choice.drawn is not None
    usual = {each.name: each.default for each in fields(choice)}
    moot = [f"--{name}" for name in understanding.DRAWING if getattr(choice, name) != usual[name]]
    if moot:
        raise ConfigError(f"{', '.join(moot)}: of no use with --drawn, whose pictures are there; leave it out")
    source = RunFolder.read(choice.drawn)
    check_source(benchmark, source)
    world = "stickers" if source.manifest.get("judge", "").startswith(STICKERS) else "open"
    judge = LoggingJudge(judge_of(choice, benchmark, world, str(choice.drawn)))
    rows = rejudge(benchmark, source, judge, choice.batch, out, choice.resume, shard, choice.keep_pictures)
    return Play(judge, source.manifest["turns"], len(source.jobs), rows, None)


def watched(choice: Evaluate, play: Play, out: Path) -> Iterator[Row]:
    """The rows as they come. Raises JudgeError, with the cause, once too many verdicts are missing."""
    judge, judged = play.judge, 0
    for row in play.rows:
        yield row
        judged += len(row.verdicts) if judge.asked else 0  # rows of an earlier run come first
        if judged == sum(judge.asked):  # the whole batch is in the folder
            where = f"the others are in {out}: go on with --out {out} --resume"
            choice.check_missing(judged, len(judge.causes), "".join(judge.causes[-1:]), where)


def chosen(choice: Evaluate) -> Benchmark:
    """The benchmark that was named. Raises ConfigError for TIIF without the user's copy, PromptError if damaged."""
    if (choice.benchmark == "tiif") != (choice.prompts is not None):
        raise ConfigError("--prompts goes with tiif, and tiif with --prompts: your own copy of its file or folder")
    if choice.prompts is not None:
        return tiif.load_tiif(choice.prompts)
    return {"genevalpp": suites.GENEVAL_PLUS, "geneval": suites.GENEVAL}.get(choice.benchmark) or suites.rehearsal()


def check_judging(choice: Evaluate) -> None:
    """ConfigError, before anything is loaded, for a judge or a way to ask that does not go with the benchmark."""
    kind, name = choice.kind("world"), choice.benchmark
    if choice.judge == "detector" and name != "geneval":
        raise ConfigError(f"GenEval's detector knows no regions, sizes or questions; expected --judge vlm for {name}")
    if choice.ask == "yesno":
        raise ConfigError("--ask yesno gives probabilities; eval counts right and wrong: leave it out, or try judge")
    if kind == "vlm" and choice.ask not in ("auto", "tiif" if name == "tiif" else "strict"):
        raise ConfigError(f"--ask {choice.ask} does not go with {name}; leave it out")
    alone = not (choice.resume or choice.shard)  # else the file is that of this run
    if choice.record is not None and choice.record.exists() and alone:
        raise OutputError(f"{choice.record} exists; expected a new file: choose another --record")


def judge_of(choice: Evaluate, benchmark: Benchmark, world: str, who: str) -> Judge:
    """The judge for pictures of `world`, stickers or open, which `who` draws.

    Raises ConfigError for a judge that only knows the other world.
    """
    otherwise: Kind = "world" if world == "stickers" else "detector" if choice.benchmark == "geneval" else "vlm"
    lists = benchmark.checks if isinstance(benchmark, tiif.Tiif) else None
    if world == "stickers" and lists is not None:
        raise ConfigError(f"TIIF asks for more than stickers, and {who} draws only these; expected another model")
    kind = choice.kind(otherwise)
    if (world == "stickers") != (kind in STICKERS):
        told = "open pictures, and {} draws stickers; expected world or templates"
        if kind in STICKERS:
            told = "stickers, and {} draws open pictures; expected detector or vlm"
        raise ConfigError(f"--judge {kind} looks at {told.format(who)}")
    return choice.opened(kind, lists, choice.device)


def right_so_far(benchmark: Benchmark, rows: Sequence[Row], turns: int) -> str:
    """The share of right pictures, or of right answers, among those that have a verdict."""
    scores = [score for row in rows if (score := row.score(turns)) is not None]
    whole = isinstance(benchmark, tiif.Tiif)
    right = sum(score if whole else score == 1.0 for score in scores) / max(len(scores), 1)
    return f"right {right:.3f}" + (f", missing {len(rows) - len(scores)}" if len(scores) < len(rows) else "")


def answered(benchmark: Benchmark, rows: Sequence[Row], turns: int, out: Path, console: Console) -> dict[str, Any]:
    """TIIF's own figures after 0 to `turns` edits, shown, and kept as tiif.json."""
    from triptych.apps import score

    played = [tiif.recorded_verdicts(rows, turn, str(out)) for turn in range(turns + 1)]
    figures = [score.scored("tiif", own) for own in played]
    for turn, figure in enumerate(figures):
        overall = "   ".join(f"{length} {score.shown(value)}" for length, value in figure["overall"].items())
        console.print(f"up to {turn} edits   {overall}")
    console.print(score.tiif_table(f"{benchmark.name}, up to {turns} edits", figures[-1], played[-1]))
    RunFolder.read(out).replace("tiif.json", json.dumps(figures, indent=1) + "\n")
    return {"tiif": figures}
