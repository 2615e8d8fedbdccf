"""A benchmark is prompts and the columns to sort them by; `run` plays it and yields a row per finished trace.

The listener prints, stops or collects; `run` itself only keeps the record (`ledger.py`) when it is given a folder.
Every picture of a trace is judged, not only the last, so one run tells the accuracy for every number of turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from triptych.errors import ConfigError, JudgeError
from triptych.eval.ledger import Ledger, fingerprint, prompts_sha256, versions
from triptych.eval.report import Report, Row, summarize
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.rewards.judge import Judge
from triptych.trace import Prompt, Trace, Verdict

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
) -> Iterator[Row]:
    """Yield one Row per prompt and seed as it is finished: first all prompts with the first seed, then the next.

    With `out`, each row is written there before it is yielded, and report.json after the last one. With `resume`, rows
    that are there already are yielded first and not played again, unless one of their verdicts is missing. `sampling`
    is the policy's own where None. Nothing happens before the first row is asked for.

    Raises ConfigError for settings out of range or, on resuming, other than those of the folder; OutputError if `out`
    is taken or cannot be written. A JudgeError is not raised: the picture's verdict is missing.
    """
    if batch_size < 1 or turns < 0 or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"batch_size={batch_size}, turns={turns}, seeds={list(seeds)}: "
            "expected a batch of 1 or more, 0 or more turns, and one or more different seeds"
        )
    sampling = policy.config.fine if sampling is None else sampling
    ledger, done = None, []
    if out is not None:
        ledger = Ledger.open(out, manifest(benchmark, policy, judge, turns, seeds, sampling, plan), resume)
        done = [row for row in ledger.rows() if row.whole]
    yield from done

    finished = {(row.prompt, row.seed) for row in done}
    jobs = [(index, seed) for seed in seeds for index in range(len(benchmark.prompts)) if (index, seed) not in finished]
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        prompts, own_seeds = [benchmark.prompts[index] for index, _ in batch], [seed for _, seed in batch]
        untouched = [Trace(prompt, seed=seed) for prompt, seed in zip(prompts, own_seeds, strict=True)]
        beats = play(policy, prompts, seeds=own_seeds, turns=turns, plan=plan, sampling=sampling)
        *_, traces = untouched, *beats  # no beat at all where pictures are given and turns is 0
        verdicts = _judged(judge, traces)
        for (index, seed), trace, given in zip(batch, traces, verdicts, strict=True):
            row = _row(benchmark, index, seed, trace, given)
            done.append(row)
            if ledger is not None:
                ledger.append(row)
            yield row
    if ledger is not None:
        ledger.finish(benchmark.report(done, turns))


def manifest(
    benchmark: Benchmark, policy: Policy, judge: Judge, turns: int, seeds: Sequence[int], sampling: Sampling, plan: bool
) -> dict[str, object]:
    """What would have to be the same for the same numbers, as JSON values."""
    return {
        "benchmark": benchmark.name,
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_sha256(benchmark.prompts),
        "model": fingerprint(policy),
        "device": str(getattr(policy, "device", "cpu")),
        "judge": judge.name,
        "turns": turns,
        "seeds": list(seeds),
        "plan": plan,
        "sampling": asdict(sampling),
        "versions": versions(),
    }


def _judged(judge: Judge, traces: Sequence[Trace]) -> list[tuple[Verdict | None, ...]]:
    """A verdict for each picture of each trace: all pictures in one call, one by one if that call fails."""
    looks = [_looks(trace) for trace in traces]
    every = [look for trace_looks in looks for look in trace_looks]
    try:
        found: list[Verdict | None] = list(judge(every)) if every else []
    except JudgeError:
        found = [_verdict(judge, look) for look in every]
    given = iter(found)
    return [tuple(next(given) for _ in trace_looks) for trace_looks in looks]


def _verdict(judge: Judge, look: Trace) -> Verdict | None:
    try:
        return judge([look])[0]
    except JudgeError:
        return None


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
    )
