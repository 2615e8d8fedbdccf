"""`triptych draw` and `triptych edit`: play the loop on prompts and yield each trace as an exhibit once it is done.

Prompts are played in batches, so that a listener can write what is done and an interruption loses only what was being
drawn. Candidates of one prompt (`best_of`) are judged together, in however many batches they were drawn; the judge's
favourite is kept.

What `triptych draw` and `triptych edit` do: read, load, draw, tell, hang.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from triptych.apps import arguments, terminal
from triptych.apps.output import OutputFolder, Stop, TraceView
from triptych.apps.terminal import TurnListener
from triptych.errors import ConfigError, JudgeError, OutputError
from triptych.eval.run_folder import versions
from triptych.loop import Policy, play, with_image
from triptych.model.config import Sampling
from triptych.model.templates import reflection_is_formed
from triptych.model.weights import fingerprint
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Prompt, Trace, Verdict

if TYPE_CHECKING:
    from triptych.apps.commands import Draw, Edit

Judge = Callable[[Sequence[Trace]], list[Verdict]]


@dataclass(frozen=True, eq=False)
class Job:
    """One trace to draw: the prompt as it was typed and as the model is told it, and a seed."""

    asked: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class DrawSettings:
    """How jobs are drawn."""

    turns: int
    sampling: Sampling
    plan: bool = True
    batch: int = 16  # traces at once: enough to fill a processor, and few enough to lose
    best_of: int = 1  # so many jobs in a row are candidates for one place


def exhibits(
    policy: Policy,
    jobs: Sequence[Job],
    manner: DrawSettings,
    judge: Judge | None,
    listener: Callable[[int], TurnListener],
    settings: Mapping[str, Any],
) -> Iterator[TraceView]:
    """Yield one exhibit per place, in order. `listener` gives each batch, by its number of traces, somebody to tell.

    After Ctrl-C, the traces that have a picture are yielded as they stood after the last whole beat, and then
    KeyboardInterrupt goes on. ConfigError if candidates should compete and nobody can judge them.
    """
    if manner.best_of > 1 and (judge is None or any(job.prompt.spec is None for job in jobs)):
        raise ConfigError("--best-of needs a judge, and there is none for this model's pictures: leave it out")
    size = max(manner.batch // manner.best_of, 1) * manner.best_of
    for start in range(0, len(jobs), size):
        group = jobs[start : start + size]
        traces, whole = _play_all(policy, group, manner, listener)
        try:
            shown = _exhibits(group, traces, manner, judge, settings)
        except KeyboardInterrupt:
            shown, whole = _exhibits(group, traces, manner, None, settings), False
        for first in range(0, len(group), manner.best_of):
            candidates = [
                exhibit for exhibit in shown[first : first + manner.best_of] if exhibit.trace.image is not None
            ]
            if candidates:
                yield favourite(candidates)
        if not whole:
            raise KeyboardInterrupt


def _play_all(
    policy: Policy, jobs: Sequence[Job], manner: DrawSettings, listener: Callable[[int], TurnListener]
) -> tuple[list[Trace], bool]:
    """The traces of jobs, as many at once as `manner.batch` says, and whether they came to their end."""
    traces: list[Trace] = []
    for start in range(0, len(jobs), manner.batch):
        batch = jobs[start : start + manner.batch]
        more, whole = _play(policy, batch, manner, listener(len(batch)))
        traces += more
        if not whole:
            return traces, False
    return traces, True


def _play(policy: Policy, jobs: Sequence[Job], manner: DrawSettings, listen: TurnListener) -> tuple[list[Trace], bool]:
    """The traces of a batch, and whether it came to its end."""
    traces: list[Trace] = []
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    try:
        for grown in play(policy, prompts, seeds, manner.turns, manner.sampling, manner.plan, listen):
            traces = grown
            listen.close()
    except KeyboardInterrupt:
        return traces, False
    finally:
        listen.close()
    return traces, True


def _exhibits(
    jobs: Sequence[Job], traces: Sequence[Trace], manner: DrawSettings, judge: Judge | None, settings: Mapping[str, Any]
) -> list[TraceView]:
    """Each trace with its verdicts, why it stopped, and how to draw it again."""
    verdicts = judged(traces, judge, needed=manner.best_of > 1)
    return [
        TraceView(
            trace=trace,
            stop=stop_of(trace, manner.turns),
            turns=manner.turns,
            verdicts=verdict,
            settings={"asked": job.asked, "again": command(job, manner, settings), **settings},
        )
        for job, trace, verdict in zip(jobs, traces, verdicts)  # noqa: B905  (an interrupted batch may have no traces)
    ]


def judged(traces: Sequence[Trace], judge: Judge | None, needed: bool = False) -> list[tuple[Verdict, ...]]:
    """A verdict per picture of each trace, in one call; empty where there is no spec, no judge, or no verdict.

    With `needed`, a judge that cannot look raises its JudgeError.
    """
    if judge is None:
        return [()] * len(traces)
    looks = [
        [Trace(with_image(trace.prompt, image)) for image in trace.images if trace.prompt.spec] for trace in traces
    ]
    every = [look for trace_looks in looks for look in trace_looks]
    try:
        found = iter(judge(every) if every else [])
    except JudgeError:
        if needed:
            raise
        return [()] * len(traces)
    return [tuple(next(found) for _ in trace_looks) for trace_looks in looks]


def stop_of(trace: Trace, turns: int) -> Stop:
    """Why a trace is no longer."""
    if trace.finished:
        said = trace.turns[-1].said
        return "model" if said is not None and reflection_is_formed(said.text) else "unread"
    reasoned = 0 if trace.prompt.image is not None else 1
    return "limit" if len(trace.turns) - reasoned >= turns else "interrupted"


def favourite(candidates: Sequence[TraceView]) -> TraceView:
    """The candidate with the best last picture, of equals the one with the fewest edits; all their scores are noted."""
    if len(candidates) == 1:
        return candidates[0]
    best = min(candidates, key=lambda exhibit: (-exhibit.verdict.score if exhibit.verdict else 0.0, exhibit.edits))
    scores = {str(exhibit.trace.seed): exhibit.verdict.score for exhibit in candidates if exhibit.verdict}
    return replace(best, settings={**best.settings, "best_of": scores})


def command(job: Job, manner: DrawSettings, settings: Mapping[str, Any]) -> str:
    """The command line that draws one trace again."""
    if job.prompt.image is not None:
        words = ["triptych", "edit", "input.png", job.asked]
    else:
        words = ["triptych", "draw", job.asked]
    words += ["--model", str(settings.get("model", "sketch")), "--seed", str(job.seed), "--turns", str(manner.turns)]
    for name in ("steps", "guidance", "temperature"):
        if settings.get(name) is not None:
            words += [f"--{name}", str(settings[name])]
    if not manner.plan:
        words.append("--no-plan")
    return shlex.join(words)


def run(
    choice: Draw | Edit, placed: Sequence[tuple[str, Prompt]], count: int, plan: bool, load: Callable[[], Policy]
) -> tuple[dict[str, Any], int]:
    """Draw `count` traces of each prompt (of `inputs.prompts_of`); returns what `--json` prints, and the exit code.

    What can be refused is refused before the model is loaded.
    """
    arguments.check_at_least("turns", choice.turns, 0)
    arguments.check_at_least("batch", choice.batch, 1)
    arguments.check_at_least("best-of", choice.best_of, 1, arguments.MAX_PROMPTS)
    seeds = arguments.seeds_of(choice.seed, count * choice.best_of)
    prompts = [prompt for _, prompt in placed]
    title = prompts[0].text if len(prompts) == 1 else f"{len(prompts)} prompts"
    wall = OutputFolder.open(choice.out, title, choice.seed, many=len(prompts) * count > 1)
    policy = load()
    manner = DrawSettings(
        choice.turns,
        arguments.sampling_of(policy.config, choice.steps, choice.guidance, choice.temperature),
        plan,
        choice.batch,
        choice.best_of,
    )
    jobs: list[Job] = []
    for where, prompt in placed:
        with arguments.placed(where):
            told = arguments.understand(prompt, policy.config)
        jobs += [Job(prompt.text, told, seed) for seed in seeds]
    judge = WorldJudge() if policy.config.world == "stickers" else None
    console = terminal.open_console(choice.as_json)
    if len(prompts) == 1:
        terminal.show_prompt(console, jobs[0].asked, jobs[0].prompt)
    code = 0
    try:
        narrator = partial(terminal.Narrator, console)
        for exhibit in exhibits(policy, jobs, manner, judge, narrator, settings(choice, policy, manner, judge)):
            folder = wall.hang(exhibit)
            if wall.many:
                terminal.show_row(console, exhibit, folder)
            else:
                terminal.show_end(console, exhibit)
    except KeyboardInterrupt:
        console.print(f"\n  interrupted; {len(wall.hung)} of {len(prompts) * count} kept", style="yellow")
        code = 130
    except OutputError:  # a full disk, perhaps: what hangs stays, and its index is worth a try
        console.print(f"\n  {len(wall.hung)} of {len(prompts) * count} kept", style="yellow")
        with suppress(OutputError):
            wall.close()
        raise
    wall.close()
    if wall.hung:
        terminal.show_folder(console, wall.folder, wall.page)
    return wall.record(), code


def settings(choice: Draw | Edit, policy: Policy, manner: DrawSettings, judge: Judge | None) -> dict[str, Any]:
    """What would have to be the same for the same traces, for trace.json and the page."""
    return {
        "model": choice.model,
        "weights": fingerprint(policy),
        "device": str(getattr(policy, "device", "cpu")),
        "dtype": str(getattr(policy, "dtype", "float32")).removeprefix("torch."),
        "judge": getattr(judge, "name", None),
        "turns": manner.turns,
        "plan": manner.plan,
        "steps": choice.steps,
        "guidance": choice.guidance,
        "temperature": choice.temperature,
        "batch": manner.batch,
        "sampling": asdict(manner.sampling),
        "versions": versions(),
    }
