"""The pictures of a run under another judge: nothing is drawn again, so the difference is the judge's alone.

The new run is a folder like any other. Its manifest is the old one's, but for the judge, the code and its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from triptych.errors import ConfigError, OutputError, PictureError
from triptych.eval.benchmark import Benchmark, judged
from triptych.eval.fingerprints import code_sha256, pixels_sha256, prompts_sha256, versions
from triptych.eval.ledger import WHOLE, Job, Ledger, Result, Shard, recorded
from triptych.eval.report import Row
from triptych.model.pictures import read_picture
from triptych.rewards.judge import Judge
from triptych.trace import Drawing, Trace, Turn


def rejudge(
    benchmark: Benchmark,
    source: Ledger,
    judge: Judge,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    shard: Shard = WHOLE,
    keep: bool = True,
) -> Iterator[Row]:
    """Yield each row of the finished run `source` with the verdicts of `judge` on its kept pictures.

    Raises ConfigError where `source` played other prompts, OutputError where it is not finished, or where a picture is
    gone or is not the one that was drawn.
    """
    check_source(benchmark, source)
    rows = {(row.prompt, row.seed): row for row in source.rows()}
    ledger = None if out is None else Ledger.open(out, rejudged_manifest(source, judge), resume, shard, keep)

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        traces = [replayed(benchmark, source, rows[job]) for job in jobs]
        for job, trace, verdicts in zip(jobs, traces, judged(judge, traces), strict=True):
            yield replace(rows[job], verdicts=verdicts), trace.images

    yield from recorded(source.jobs, work, ledger, batch_size)


def check_source(benchmark: Benchmark, source: Ledger) -> None:
    """Raises ConfigError for a run of other prompts, OutputError for one that is not finished or kept no pictures."""
    if source.manifest.get("prompts_sha256") != prompts_sha256(benchmark.prompts):
        told = f"{source.folder} played {source.manifest['benchmark']}, with other prompts than {benchmark.name} here"
        raise ConfigError(f"{told}; expected the same benchmark, and the same --limit and --prompts")
    if left := len(source.open_jobs()):
        raise OutputError(f"{source.folder} is not finished, {left} jobs are open; expected a whole run: --resume it")
    for row in source.rows():
        for turn in range(len(row.verdicts)):
            source.picture(row, turn)


def rejudged_manifest(source: Ledger, judge: Judge) -> dict[str, object]:
    """What would have to be the same for the same numbers."""
    return {**source.manifest, "judge": judge.name, "code_sha256": code_sha256(), "versions": versions()}


def replayed(benchmark: Benchmark, source: Ledger, row: Row) -> Trace:
    """The trace of a row, as far as a judge looks: its prompt, and its pictures in order."""
    trace = Trace(replace(benchmark.prompts[row.prompt], image=None), seed=row.seed)  # a given one is among the others
    for turn in range(len(row.verdicts)):
        path = source.picture(row, turn)
        try:
            picture = read_picture(path)
        except PictureError as error:
            raise OutputError(f"{error}; expected the pictures as they were drawn") from error
        if row.pictures and pixels_sha256(picture) != row.pictures[turn]:
            raise OutputError(f"{path} is not the picture that was drawn; expected its pixels to be as recorded")
        trace += Turn(None, Drawing(picture))
    return trace
