"""`triptych eval`: play a benchmark, count on the terminal, print its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triptych.apps.exhibit import check_writable, free, slug
from triptych.apps.inputs import check_at_least, sampling_of
from triptych.apps.terminal import open_console
from triptych.errors import ConfigError
from triptych.eval import suites
from triptych.eval.benchmark import Benchmark, manifest, run
from triptych.eval.report import Row, table
from triptych.loop import Policy
from triptych.rewards.world import WorldJudge

if TYPE_CHECKING:
    from triptych.apps.cli import Evaluate

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[right]}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


def evaluate(choice: Evaluate, load: Callable[[], Policy]) -> int:
    """Play, print, and return the exit code. After Ctrl-C the rows so far stay in the folder, to be resumed.

    What can be refused is refused before the model is loaded.
    """
    benchmark = chosen(choice.benchmark)
    if choice.limit is not None:
        check_at_least("limit", choice.limit, 1)
        benchmark = benchmark.thinned(choice.limit)
    check_at_least("seeds", choice.seeds, 1)
    check_at_least("turns", choice.turns, 0)
    check_at_least("batch", choice.batch, 1)
    out = folder_of(choice)
    if not choice.resume:
        check_writable(out)
    policy = load()
    seeds, sampling, judge = range(choice.seeds), sampling_of(policy.config, choice.steps), WorldJudge()
    console = open_console(choice.as_json)
    rows: list[Row] = []
    try:
        with Progress(*COLUMNS, console=console) as progress:
            bar = progress.add_task(benchmark.name, total=len(benchmark.prompts) * len(seeds), right="")
            for row in run(
                benchmark, policy, judge, choice.turns, seeds, sampling, choice.plan, choice.batch, out, choice.resume
            ):
                rows.append(row)
                right = sum(each.score(choice.turns) == 1.0 for each in rows) / len(rows)
                progress.update(bar, advance=1, right=f"right {right:.3f}")
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; {len(rows)} rows are in {out}: go on with --out {out} --resume", style="yellow")
        return 130
    report = benchmark.report(rows, choice.turns)
    console.print(table(report))
    console.print(f"{out}/", style="bold", soft_wrap=True)
    if choice.as_json:
        about = manifest(benchmark, policy, judge, choice.turns, seeds, sampling, choice.plan)
        print(json.dumps({"folder": str(out), "report": report.to_record(), "manifest": about}), flush=True)
    return 0


def chosen(name: str) -> Benchmark:
    """A benchmark by its name on the command line."""
    return {"genevalpp": suites.GENEVAL_PLUS, "geneval": suites.GENEVAL}.get(name) or suites.rehearsal()


def folder_of(choice: Evaluate) -> Path:
    """The folder of the run; a resumed one has to be named."""
    if choice.out is not None:
        return choice.out
    if choice.resume:
        raise ConfigError("--resume needs the folder of the run to go on with: name it with --out")
    return free(Path("runs") / f"{choice.benchmark}-{slug(choice.model)}")
