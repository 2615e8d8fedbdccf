"""A benchmark is prompts and the columns to sort them by; `run` plays it and yields a row per finished trace.

The listener prints, stops or collects; `run` itself only keeps the record (`ledger.py`) when it is given a folder.
Every picture of a trace is judged, not only the last, so one run tells the accuracy for every number of turns.

The pictures of a run under another judge: nothing is drawn again, so the difference is the judge's alone.

The new run is a folder like any other. Its manifest is the old one's, but for the judge, the code and its version.

A picture set that no model drew: scenes of the sticker world, right and spoiled, with the exact truth of each.

For models too weak to draw what ITA needs, pictures that fit their prompts, and for numbers that compare across
machines: a set follows from prompts and seeds alone. Its folder is that of any run, without edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import ConfigError, JudgeError, OutputError, PictureError
from triptych.eval.results import Report, Row, summarize
from triptych.eval.run_folder import (
    WHOLE,
    Job,
    Result,
    RunFolder,
    Shard,
    code_sha256,
    pixels_sha256,
    prompts_sha256,
    read_rows,
    versions,
)
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.model.images import read_picture
from triptych.model.weights import fingerprint
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.sticker_judge import verdict
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

Play = Callable[..., Iterator[list[Trace]]]  # called as triptych.loop.play is


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Prompts, and the title of the column that a spec's tag belongs to; a tag without one is its own title."""

    name: str
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, str]

    def column(self, prompt: Prompt) -> str:
        tag = "all" if prompt.spec is None else prompt.spec.tag
        return self.columns.get(tag, tag)

    @property
    def titles(self) -> tuple[str, ...]:
        """Columns that hold prompts, in the order of `columns`, then in that of the prompts."""
        found = dict.fromkeys(self.column(prompt) for prompt in self.prompts)
        return tuple(title for title in dict.fromkeys([*self.columns.values(), *found]) if title in found)

    def thinned(self, count: int) -> Benchmark:
        """About `count` of the prompts, evenly spread, for a quick look; the name says so."""
        total = len(self.prompts)
        if not 1 <= count < total:
            return self
        kept = tuple(self.prompts[index * total // count] for index in range(count))
        return replace(self, name=f"{self.name} ({count} of {total})", prompts=kept)

    def report(self, rows: Iterable[Row], turns: int) -> Report:
        """What `rows` of this benchmark show."""
        return summarize(self.name, rows, self.titles, turns)


def run(
    benchmark: Benchmark,
    policy: Policy,
    judge: Judge,
    turns: int = 4,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    plan: bool = True,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    play: Play = play,
    shard: Shard = WHOLE,
    keep: bool = True,
) -> Iterator[Row]:
    """Yield one Row per prompt and seed as it is finished: first all prompts with the first seed, then the next.

    With `out`, each row is written there before it is yielded, with its pictures unless `keep` is False, and
    report.json after the last one. With `resume`, rows that are there already are yielded first and not played again,
    unless one of their verdicts is missing. `shard` (i, n) plays every n-th job, beside other processes that play the
    others into the same folder. `sampling` is the policy's own where None. Nothing happens before the first row is
    asked for.

    Raises ConfigError for settings out of range or, on resuming, other than those of the folder; OutputError if `out`
    is taken or cannot be written. A JudgeError is not raised: the picture's verdict is missing.
    """
    if batch_size < 1 or turns < 0 or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"batch_size={batch_size}, turns={turns}, seeds={list(seeds)}: "
            "expected a batch of 1 or more, 0 or more turns, and one or more different seeds"
        )
    if out is None and shard != WHOLE:
        raise ConfigError(f"shard {shard[0]}/{shard[1]} without a folder; expected the one that all shards share: out")
    sampling = policy.config.sampling if sampling is None else sampling
    ledger = None
    if out is not None:
        about = manifest(benchmark, policy, judge, turns, seeds, sampling, plan)
        ledger = RunFolder.open(out, about, resume, shard, keep)

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        prompts, own_seeds = [benchmark.prompts[index] for index, _ in jobs], [trace_seed(*job) for job in jobs]
        untouched = [Trace(prompt, seed=seed) for prompt, seed in zip(prompts, own_seeds, strict=True)]
        beats = play(policy, prompts, seeds=own_seeds, turns=turns, plan=plan, sampling=sampling)
        *_, traces = untouched, *beats  # no beat at all where pictures are given and turns is 0
        for (index, seed), trace, given in zip(jobs, traces, judged(judge, traces), strict=True):
            yield _row(benchmark, index, seed, trace, given), trace.images

    jobs = [(index, seed) for seed in seeds for index in range(len(benchmark.prompts))]
    yield from read_rows(jobs, work, ledger, batch_size)


def trace_seed(index: int, seed: int) -> int:
    """The seed of a prompt's trace, for `draw --seed` too: prompts of one run must not all begin from one noise, or an
    interval over prompts would know nothing of the chance that they share."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


def manifest(
    benchmark: Benchmark, policy: Policy, judge: Judge, turns: int, seeds: Sequence[int], sampling: Sampling, plan: bool
) -> dict[str, object]:
    """What would have to be the same for the same numbers, as JSON values."""
    device = getattr(policy, "device", None)
    dtype = getattr(policy, "dtype", None)  # of compute
    return {
        "benchmark": benchmark.name,
        "columns": list(benchmark.titles),
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_sha256(benchmark.prompts),
        "model": fingerprint(policy),
        "device": getattr(device, "type", "cpu"),  # without a number: shards may play on cuda:0 and cuda:1
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "judge": judge.name,
        "turns": turns,
        "seeds": list(seeds),
        "plan": plan,
        "sampling": asdict(sampling),
        "code_sha256": code_sha256(),
        "versions": versions(),
    }


def judged(judge: Judge, traces: Sequence[Trace]) -> list[tuple[Verdict | None, ...]]:
    """A verdict for each picture of each trace, None where it is missing: all pictures in one call."""
    looks = [_looks(trace) for trace in traces]
    found = iter(verdicts_of(judge, [look for trace_looks in looks for look in trace_looks]))
    given = (None if isinstance(each, JudgeError) else each for each in found)
    return [tuple(next(given) for _ in trace_looks) for trace_looks in looks]


def _looks(trace: Trace) -> list[Trace]:
    """The trace as it stood at each of its pictures, the given one first where there is one."""
    newest = [trace.prompt.image, *(turn.drew for turn in trace.turns)]
    return [replace(trace, turns=trace.turns[:count]) for count, picture in enumerate(newest) if picture is not None]


def _row(benchmark: Benchmark, index: int, seed: int, trace: Trace, verdicts: tuple[Verdict | None, ...]) -> Row:
    return Row(
        prompt=index,
        text=trace.prompt.text,
        column=benchmark.column(trace.prompt),
        seed=seed,
        verdicts=verdicts,
        stopped=trace.finished,
        said=tuple(None if turn.said is None else turn.said.text for turn in trace.turns),
        seconds=sum(sum(turn.seconds.values()) for turn in trace.turns),
        pictures=tuple(pixels_sha256(picture) for picture in trace.images),
    )


def rejudge(
    benchmark: Benchmark,
    source: RunFolder,
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
    ledger = None if out is None else RunFolder.open(out, rejudged_manifest(source, judge), resume, shard, keep)

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        traces = [replayed(benchmark, source, rows[job]) for job in jobs]
        for job, trace, verdicts in zip(jobs, traces, judged(judge, traces), strict=True):
            yield replace(rows[job], verdicts=verdicts), trace.images

    yield from read_rows(source.jobs, work, ledger, batch_size)


def check_source(benchmark: Benchmark, source: RunFolder) -> None:
    """Raises ConfigError for a run of other prompts, OutputError for one that is not finished or kept no pictures."""
    if source.manifest.get("prompts_sha256") != prompts_sha256(benchmark.prompts):
        told = f"{source.folder} played {source.manifest['benchmark']}, with other prompts than {benchmark.name} here"
        raise ConfigError(f"{told}; expected the same benchmark, and the same --limit and --prompts")
    if left := len(source.open_jobs()):
        raise OutputError(f"{source.folder} is not finished, {left} jobs are open; expected a whole run: --resume it")
    for row in source.rows():
        for turn in range(len(row.verdicts)):
            source.picture(row, turn)


def rejudged_manifest(source: RunFolder, judge: Judge) -> dict[str, object]:
    """What would have to be the same for the same numbers."""
    return {**source.manifest, "judge": judge.name, "code_sha256": code_sha256(), "versions": versions()}


def replayed(benchmark: Benchmark, source: RunFolder, row: Row) -> Trace:
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


PAINTER, TRUTH = "painted", "world-truth"  # for manifests: who drew, and whose word counts
MISTAKES = {0: 6, 1: 3, 2: 2, 3: 1}  # mistakes of a picture, and how often: half are right, half of the others near


def synthetic_set(benchmark: Benchmark, seeds: Sequence[int], out: Path, resume: bool = False) -> Iterator[Row]:
    """Paint a picture for each prompt and seed into the folder `out`; yield a Row each. Errors are those of
    `benchmark.run`, and ConfigError for a prompt without a spec."""
    ledger = RunFolder.open(out, _manifest(benchmark, seeds), resume)

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        for index, seed in jobs:
            prompt = benchmark.prompts[index]
            if prompt.spec is None:
                raise ConfigError(f"{prompt.text!r} has no spec; expected prompts of the sticker world")
            scene = synthetic_record(benchmark, index, seed)
            picture, told = render_array(scene), verdict(scene, prompt.spec)
            column, sha256 = benchmark.column(prompt), (pixels_sha256(picture),)
            yield Row(index, prompt.text, column, seed, (told,), False, (None,), 0.0, sha256), [picture]

    yield from read_rows([(index, seed) for seed in seeds for index in range(len(benchmark.prompts))], work, ledger)


def synthetic_record(benchmark: Benchmark, index: int, seed: int) -> Scene:
    """The scene of a prompt and a seed: right, or with a few mistakes."""
    spec = benchmark.prompts[index].spec
    assert spec is not None
    rng = Random(f"painted {index} {seed}")
    (count,) = rng.choices(list(MISTAKES), list(MISTAKES.values()))
    own = rng.randrange(1 << 40)
    scene = Scene.sample(spec, own)
    return spoil(scene, spec, own, count) if count else scene


def _manifest(benchmark: Benchmark, seeds: Sequence[int]) -> dict[str, object]:
    return {
        "benchmark": benchmark.name,
        "columns": list(benchmark.titles),
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_sha256(benchmark.prompts),
        "model": PAINTER,
        "judge": TRUTH,
        "turns": 0,
        "seeds": list(seeds),
        "mistakes": {str(count): weight for count, weight in MISTAKES.items()},
        "code_sha256": code_sha256(),
        "versions": versions(),
    }
