"""A benchmark is prompts and the columns to sort them by; `run_benchmark` plays it and yields a row per finished trace.

The listener prints, stops or collects; the record is only kept when `run_benchmark` is given a folder (run_folder.py).
Every picture of a trace is judged, not only the last, so one run gives the accuracy for every number of turns.

`rejudge` gives the pictures of a finished run to another judge: nothing is drawn again, so the difference is the
judge's alone. `synthetic_set` is a picture set that no model drew: scenes of the sticker world, right and flawed, with
the exact truth of each. It serves models too weak to draw what ITA needs, and numbers that compare across machines,
since it follows from prompts and seeds alone. All three leave the same kind of folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import ConfigError, JudgeError, NotFiniteError, OutputError, PictureError
from triptych.eval.results import Report, Row, summarize
from triptych.eval.run_folder import (
    WHOLE,
    EvalJob,
    JobResult,
    RunFolder,
    Shard,
    code_settings,
    model_settings,
    pixels_sha256,
    play_jobs,
    prompts_sha256,
)
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.model.images import read_image
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.sticker_judge import scene_verdict
from triptych.seeds import derive, named_rng
from triptych.trace import Drawing, Prompt, Spec, Trace, Turn, Verdict

PlayFunction = Callable[..., Iterator[list[Trace]]]  # called as triptych.loop.play is


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Prompts, and the title of the column that a spec's tag belongs to; a tag without one is its own title."""

    name: str
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, str]

    def column(self, prompt: Prompt) -> str:
        tag = "all" if prompt.spec is None else prompt.spec.tag  # plain sentences have no tag: one column
        return self.columns.get(tag, tag)

    @property
    def titles(self) -> tuple[str, ...]:
        """Columns that hold prompts, in the order of `columns`, then in that of the prompts."""
        used = dict.fromkeys(self.column(prompt) for prompt in self.prompts)
        return tuple(title for title in dict.fromkeys([*self.columns.values(), *used]) if title in used)

    def thinned(self, count: int) -> Benchmark:
        """About `count` of the prompts, evenly spread, for a quick look; the name says so."""
        total = len(self.prompts)
        if not 1 <= count < total:
            return self
        # Evenly, not the first: the files of the benchmarks are sorted by column.
        prompts = tuple(self.prompts[index * total // count] for index in range(count))
        return replace(self, name=f"{self.name} ({count} of {total})", prompts=prompts)

    def report(self, rows: Iterable[Row], turns: int) -> Report:
        """What `rows` of this benchmark show."""
        return summarize(self.name, rows, self.titles, turns)


def run_benchmark(
    benchmark: Benchmark,
    policy: Policy,
    judge: Judge,
    turns: int = 4,  # the paper: one Reason, then up to four Reflect-Refine
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    plan: bool = True,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    play: PlayFunction = play,
    shard: Shard = WHOLE,
    keep_pictures: bool = True,
) -> Iterator[Row]:
    """Yield one Row per prompt and seed as it is finished: first all prompts with the first seed, then the next.

    With `out`, each row is written there before it is yielded, with its pictures if `keep_pictures`, and
    report.json after the last one. With `resume`, rows that are there already are yielded first and not played again,
    unless one of their verdicts is missing. `shard` (i, n) plays every n-th job, beside other processes that play the
    others into the same folder. `sampling` is the policy's own where None. Nothing happens before the first row is
    asked for.

    Raises ConfigError for settings out of range or, on resuming, other than those of the folder; OutputError if `out`
    is taken or cannot be written. A JudgeError is not raised: the picture's verdict is missing.
    Nor is NotFiniteError, once some row was drawn: all verdicts of a lost row are missing.
    """
    if batch_size < 1 or turns < 0 or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"batch_size={batch_size}, turns={turns}, seeds={list(seeds)}: "
            "expected a batch of 1 or more, 0 or more turns, and one or more different seeds"
        )
    if out is None and shard != WHOLE:
        raise ConfigError(f"shard {shard[0]}/{shard[1]} without a folder; expected the one that all shards share: out")
    sampling = policy.config.sampling if sampling is None else sampling
    run_folder = None
    if out is not None:
        manifest = run_manifest(benchmark, policy, judge, turns, seeds, sampling, plan)
        run_folder = RunFolder.open(out, manifest, resume, shard, keep_pictures)

    works = False

    def work(jobs: Sequence[EvalJob]) -> Iterator[JobResult]:
        prompts, trace_seeds = [benchmark.prompts[index] for index, _ in jobs], [trace_seed(*job) for job in jobs]
        roots = [Trace(prompt, seed=seed) for prompt, seed in zip(prompts, trace_seeds, strict=True)]
        nonlocal works
        try:
            beats = play(policy, prompts, seeds=trace_seeds, turns=turns, plan=plan, sampling=sampling)
            *_, traces = roots, *beats  # no beat at all where pictures are given and turns is 0
        except NotFiniteError as error:
            if not works:  # a model that never drew is broken, and has no score
                raise
            traces = [replace(trace, lost=str(error)) for trace in roots]
        works = works or any(not trace.lost for trace in traces)
        for (index, seed), trace, verdicts in zip(jobs, traces, picture_verdicts(judge, traces), strict=True):
            yield _row(benchmark, index, seed, trace, verdicts), trace.images

    yield from play_jobs(_jobs(benchmark, seeds), work, run_folder, batch_size)


def _jobs(benchmark: Benchmark, seeds: Sequence[int]) -> list[EvalJob]:
    # The order of RunFolder.jobs: shards are counted off from it, in every process alike.
    return [(index, seed) for seed in seeds for index in range(len(benchmark.prompts))]


def trace_seed(index: int, seed: int) -> int:
    """The seed of a prompt's trace, for `draw --seed` too.

    Were it the run's `seed` itself, all prompts of a run would begin from one initial noise, and an interval over
    prompts would not hold the variance that they share.
    """
    # LOG.md E25: one-shot .581 with shared noise, .594 with own. 31 bits, as in the runs that are published.
    return derive(seed, index, bits=31)


def run_manifest(
    benchmark: Benchmark, policy: Policy, judge: Judge, turns: int, seeds: Sequence[int], sampling: Sampling, plan: bool
) -> dict[str, object]:
    """What would have to be the same for the same numbers, as JSON values."""
    return {
        **_task(benchmark),
        **model_settings(policy),
        "judge": judge.name,  # holds what verdicts depend on: a hash of its weights, or model and wording
        "turns": turns,
        "seeds": list(seeds),
        "plan": plan,
        "sampling": asdict(sampling),
        **code_settings(),
    }


def _task(benchmark: Benchmark) -> dict[str, object]:
    return {
        "benchmark": benchmark.name,
        "columns": list(benchmark.titles),  # Overall is the mean over these
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_sha256(benchmark.prompts),
    }


def picture_verdicts(judge: Judge, traces: Sequence[Trace]) -> list[tuple[Verdict | None, ...]]:
    """A verdict for each picture of each trace, None where it is missing: all pictures in one call."""
    prefixes = [_prefixes(trace) for trace in traces]
    # A judge over a network asks about all of them side by side.
    verdicts = iter(verdicts_of(judge, [prefix for own in prefixes for prefix in own]))
    return [
        tuple(None if isinstance(verdict := next(verdicts), JudgeError) else verdict for _ in own) for own in prefixes
    ]


def _prefixes(trace: Trace) -> list[Trace]:
    """The trace as it stood at each of its pictures, the given one first where there is one.

    A judge looks at the newest picture of a trace, so that every prefix is another question to it.
    """
    if trace.lost and not trace.images:  # a row without a picture has a verdict that is missing, and not none
        return [trace]
    newest = [trace.prompt.image, *(turn.drew for turn in trace.turns)]
    return [replace(trace, turns=trace.turns[:count]) for count, picture in enumerate(newest) if picture is not None]


def _row(benchmark: Benchmark, index: int, seed: int, trace: Trace, verdicts: tuple[Verdict | None, ...]) -> Row:
    prompt = benchmark.prompts[index]  # that of the trace may be worded for the model, and have a spec read from it
    return Row(
        prompt=index,
        text=prompt.text,
        column=benchmark.column(prompt),
        seed=seed,
        verdicts=verdicts,
        stopped=trace.finished,
        said=tuple(None if turn.said is None else turn.said.text for turn in trace.turns),
        # Of drawing: no turn holds the time of a judge.
        seconds=float(sum(sum(turn.seconds.values()) for turn in trace.turns)),
        pictures=tuple(pixels_sha256(picture) for picture in trace.images),
        lost=trace.lost,
    )


def rejudge(
    benchmark: Benchmark,
    source: RunFolder,
    judge: Judge,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    shard: Shard = WHOLE,
    keep_pictures: bool = True,
) -> Iterator[Row]:
    """Yield each row of the finished run `source` with the verdicts of `judge` on its kept pictures.

    The new manifest is that of `source`, but for the judge, the code and its version. Raises ConfigError where `source`
    played other prompts, OutputError where it is not finished, or where a picture is gone or is not the one that was
    drawn.
    """
    rows = {(row.prompt, row.seed): row for row in check_source(benchmark, source)}
    run_folder = None
    if out is not None:
        manifest = {**source.manifest, "judge": judge.name, **code_settings()}
        run_folder = RunFolder.open(out, manifest, resume, shard, keep_pictures)

    def work(jobs: Sequence[EvalJob]) -> Iterator[JobResult]:
        traces = [recorded_trace(benchmark, source, rows[job]) for job in jobs]
        for job, trace, verdicts in zip(jobs, traces, picture_verdicts(judge, traces), strict=True):
            yield replace(rows[job], verdicts=verdicts), trace.images

    yield from play_jobs(source.jobs, work, run_folder, batch_size)


def check_source(benchmark: Benchmark, source: RunFolder) -> list[Row]:
    """The rows of a finished run of this benchmark. Raises ConfigError for a run of other prompts, OutputError for one
    that is not finished or kept no pictures."""
    if source.manifest.get("prompts_sha256") != prompts_sha256(benchmark.prompts):
        raise ConfigError(
            f"{source.folder} played {source.manifest['benchmark']}, with other prompts than {benchmark.name} here; "
            "expected the same benchmark, and the same --limit and --prompts"
        )
    rows = source.rows()
    # Everything that can be missing is found before the first picture is judged, which may cost money.
    if left := len(source.open_jobs(rows)):
        raise OutputError(f"{source.folder} is not finished, {left} jobs are open; expected a whole run: --resume it")
    for row in rows:
        for turn in range(drawn_count(row)):
            source.kept_picture(row, turn)
    return rows


def drawn_count(row: Row) -> int:
    """How many pictures a row has: one a verdict, but for a row that was lost before its first picture."""
    return len(row.pictures) if row.lost else len(row.verdicts)


def recorded_trace(benchmark: Benchmark, source: RunFolder, row: Row) -> Trace:
    """The trace of a row, as far as a judge looks: its prompt, and its pictures in order."""
    trace = Trace(
        replace(benchmark.prompts[row.prompt], image=None), seed=row.seed, lost=row.lost
    )  # a given one is among the others
    for turn in range(drawn_count(row)):
        path = source.kept_picture(row, turn)
        try:
            picture = read_image(path)
        except PictureError as error:
            raise OutputError(f"{error}; expected the pictures as they were drawn") from error
        # Early runs recorded no hashes. Of others, a picture that was replaced is not the one that the row tells of.
        if row.pictures and pixels_sha256(picture) != row.pictures[turn]:
            raise OutputError(f"{path} is not the picture that was drawn; expected its pixels to be as recorded")
        trace += Turn(None, Drawing(picture))
    return trace


# For manifests: who drew, and whose verdicts count. `world-` marks the judges of stickers, as in WorldJudge.name.
SYNTHETIC, TRUTH = "synthetic", "world-truth"
# Mistakes of a picture, and how often (weights, 12 in all): half of the pictures are right, and half of the others miss
# by one check, as ITA wants its near misses (`vqa.NEAR`).
MISTAKES = {0: 6, 1: 3, 2: 2, 3: 1}


def synthetic_set(benchmark: Benchmark, seeds: Sequence[int], out: Path, resume: bool = False) -> Iterator[Row]:
    """Render a picture for each prompt and seed into the folder `out`; yield a Row each.

    Errors are those of `run_benchmark`, and ConfigError for a prompt without a spec.
    """
    manifest = {
        **_task(benchmark),
        "model": SYNTHETIC,
        "judge": TRUTH,
        "turns": 0,  # one picture each, never edited
        "seeds": list(seeds),
        "mistakes": MISTAKES,  # another share of flawed pictures is another set
        **code_settings(),
    }
    run_folder = RunFolder.open(out, manifest, resume)

    def work(jobs: Sequence[EvalJob]) -> Iterator[JobResult]:
        for index, seed in jobs:
            prompt = benchmark.prompts[index]
            if prompt.spec is None:
                raise ConfigError(f"{prompt.text!r} has no spec; expected prompts of the sticker world")
            scene = synthetic_scene(prompt.spec, index, seed)
            trace = Trace(prompt) + Turn(None, Drawing(render_array(scene)))
            # The verdict on the scene itself: no detector can be wrong about it.
            yield _row(benchmark, index, seed, trace, (scene_verdict(scene, prompt.spec),)), trace.images

    yield from play_jobs(_jobs(benchmark, seeds), work, run_folder)


def synthetic_scene(spec: Spec, index: int, seed: int) -> Scene:
    """The scene of the prompt at `index` and a seed: right, or with a few mistakes."""
    rng = named_rng("painted", index, seed)  # the name of 0.1, so that its sets stay the same
    (mistakes,) = rng.choices(list(MISTAKES), list(MISTAKES.values()))
    scene_seed = rng.randrange(1 << 40)
    scene = Scene.sample(spec, scene_seed)
    return spoil(scene, spec, scene_seed, mistakes) if mistakes else scene
