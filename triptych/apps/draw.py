"""`triptych draw` and `triptych edit`: play the loop on prompts, and write each trace once it is done.

Prompts are played in batches, so that an interruption loses only the batch that was being drawn. Candidates of one
prompt (`--best-of`) are judged together, in however many batches they were drawn, and the best one is kept.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from triptych.apps import terminal
from triptych.apps.arguments import each_or_all_faults, load_model, prompts_of, sampling_of
from triptych.apps.commands import DrawOptions, EditOptions
from triptych.apps.console import open_console, say
from triptych.apps.edit_size import at_size, size_of
from triptych.apps.options import OpenModel
from triptych.apps.output import OutputFolder
from triptych.apps.terminal import TurnListener
from triptych.apps.trace_view import Stop, TraceView
from triptych.data.prompt_checks import check_text, understand
from triptych.data.prompt_files import PromptEntry
from triptych.errors import ConfigError, JudgeError, NotFiniteError, OutputError
from triptych.eval.run_folder import versions
from triptych.loop import Policy, play, with_image
from triptych.model.config import Sampling, current_names
from triptych.model.templates import reflection_is_formed
from triptych.model.weights import fingerprint
from triptych.rewards.judge import Judge
from triptych.rewards.sticker_judge import WorldJudge, check_sticker_input
from triptych.trace import Prompt, Spec, Trace, Verdict


@dataclass(frozen=True, eq=False)
class DrawJob:
    """One trace to draw: the prompt as it was typed, as the model is given it, and a seed."""

    user_prompt: str
    prompt: Prompt
    seed: int
    id: str = ""  # the user's own, of a file of prompts


@dataclass(frozen=True)
class DrawSettings:
    """How jobs are drawn."""

    turns: int
    sampling: Sampling
    plan: bool = True
    batch: int = 16  # traces at once: enough to fill a processor, and few enough to lose
    best_of: int = 1  # so many jobs in a row are candidates for one result


def run(options: DrawOptions | EditOptions, open_model: OpenModel) -> int:
    """Draw `options.n` traces of each prompt, and print what `--json` asks for; returns the exit code.

    What can be refused is refused before the model is loaded.
    """
    if isinstance(options, DrawOptions) and options.again is not None:
        return draw_again(options, options.again, open_model)
    if isinstance(options, EditOptions):
        text = check_text(options.prompt)
        image = terminal.read_picture(options.image)
        size_of(options.size, image, "open")  # refused here where it is no size
        entries, file, plan = [PromptEntry("", Prompt(text, image=image))], None, True
    else:
        entries, file, plan = prompts_of(options.prompt, options.prompts), options.prompts, options.plan
    count = len(entries) * options.n
    title = entries[0].prompt.text if len(entries) == 1 else f"{len(entries)} prompts"
    output = OutputFolder.open(options.out, title, options.seed, many=count > 1)
    policy = load_model(options, open_model)
    if isinstance(options, EditOptions) and policy.config.world == "stickers" and not options.force:
        for entry in entries:
            assert entry.prompt.image is not None  # of `triptych edit`
            check_sticker_input(entry.prompt.image)
    settings = DrawSettings(options.turns, sampling_of(policy.config, options), plan, options.batch, options.best_of)
    jobs: list[DrawJob] = []
    understood = each_or_all_faults(entries, lambda prompt: understand(prompt, policy.config.world), file)
    for entry, read in zip(entries, understood, strict=True):
        # A prompt that is drawn alone under one of these seeds gives the same trace.
        first = options.seed if entry.seed is None else entry.seed
        seeds = range(first, first + options.n * options.best_of)
        jobs += [DrawJob(entry.prompt.text, read.prompt, seed, entry.id) for seed in seeds]
    # Other images need a detector or a server: `triptych judge` has them.
    judge = WorldJudge(strangers=False) if policy.config.world == "stickers" else None
    record = reproduction_record(options, policy, settings, judge)
    size = None
    if isinstance(options, EditOptions) and (image := entries[0].prompt.image) is not None:
        size = size_of(options.size, image, policy.config.world)
        record["size"] = options.size
    console = open_console(options.as_json)
    if len(entries) == 1:
        terminal.print_prompt(console, jobs[0].user_prompt, jobs[0].prompt)
    code = 0
    try:
        listener = partial(terminal.TerminalListener, console)
        for view in trace_views(policy, jobs, settings, judge, listener, record):
            view = replace(view, trace=at_size(view.trace, size))  # after the verdicts, which are on the model's own
            folder = output.write(view)
            if output.many:
                terminal.print_row(console, view, folder)
            else:
                terminal.print_result(console, view)
    except KeyboardInterrupt:
        console.print(f"\n  interrupted; kept {len(output.records)} of {count} traces", style="yellow")
        code = 130  # 128 + SIGINT, as shells count
    except (OutputError, NotFiniteError):  # a full disk, perhaps: what is written stays, and its index is worth a try
        if output.records:
            console.print(f"\n  kept {len(output.records)} of {count} traces", style="yellow")
        with suppress(OutputError):
            output.close()
        raise
    if not code and len(output.records) < count:
        console.print(f"\n  lost {count - len(output.records)} of {count} traces", style="yellow")
        code = 1
    output.close()  # after Ctrl-C too: the index lists what was kept
    if output.records:
        terminal.print_folder(console, output.folder, output.page)
    if options.as_json:
        print(json.dumps(output.record()), flush=True)
    return code


def trace_views(
    policy: Policy,
    jobs: Sequence[DrawJob],
    settings: DrawSettings,
    judge: Judge | None,
    listener: Callable[[int], TurnListener],
    record: Mapping[str, Any],
) -> Iterator[TraceView]:
    """Yield one trace per `settings.best_of` jobs, in order. `listener` makes the listener of a batch from its size.

    After Ctrl-C, the traces that have an image are yielded as they stood after the last whole beat, and then
    KeyboardInterrupt is raised. ConfigError if candidates should compete and nobody can judge them.
    """
    best_of = settings.best_of
    if best_of > 1 and (judge is None or any(job.prompt.spec is None for job in jobs)):
        raise ConfigError("--best-of needs a judge, and there is none for this model's pictures: leave it out")
    # Whole sets of candidates, since the best of a set is chosen at once; a set may be larger than a batch.
    size = max(settings.batch // best_of, 1) * best_of
    works = False  # whether any trace was not lost
    for start in range(0, len(jobs), size):
        group = jobs[start : start + size]
        traces, complete = _play_batches(policy, group, settings, listener, works)
        works = works or any(not trace.lost for trace in traces)
        try:
            views = _views(group, traces, settings, judge, record)
        except KeyboardInterrupt:  # while judging: the images are there, so they are kept without verdicts
            views, complete = _views(group, traces, settings, None, record), False
        for first in range(0, len(group), best_of):
            own = views[first : first + best_of]
            for trace in (view.trace for view in own if view.trace.lost):
                say(f"lost: {trace.prompt.text[:60]!r}, seed {trace.seed}: {trace.lost}", error=True)
            candidates = [view for view in own if view.trace.image is not None and not view.trace.lost]
            if candidates:  # none has an image where Ctrl-C came before the first one
                yield best_view(candidates)
        if not complete:
            raise KeyboardInterrupt


def _play_batches(
    policy: Policy,
    jobs: Sequence[DrawJob],
    settings: DrawSettings,
    listener: Callable[[int], TurnListener],
    works: bool,
) -> tuple[list[Trace], bool]:
    """The traces of jobs, `settings.batch` at once, and whether all of them ran to their end.

    A batch that is lost as a whole is an error, unless the model `works` otherwise.
    """
    finished: list[Trace] = []
    for start in range(0, len(jobs), settings.batch):
        batch = jobs[start : start + settings.batch]
        prompts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
        hear, traces = listener(len(batch)), []
        try:
            for newest in play(policy, prompts, seeds, settings.turns, settings.sampling, settings.plan, hear):
                traces = newest
                hear.close()
        except NotFiniteError as error:
            if not (works or any(not trace.lost for trace in finished)):
                raise
            traces = [Trace(job.prompt, seed=job.seed, lost=str(error)) for job in batch]
        except KeyboardInterrupt:
            return finished + traces, False  # as they stood after the last whole beat
        finally:
            hear.close()  # after Ctrl-C too: rich hides the cursor until a live display is stopped
        finished += traces
    return finished, True


def _views(
    jobs: Sequence[DrawJob],
    traces: Sequence[Trace],
    settings: DrawSettings,
    judge: Judge | None,
    record: Mapping[str, Any],
) -> list[TraceView]:
    """Each trace with its verdicts, why it stopped, and how to draw it again."""
    return [
        TraceView(
            trace=trace,
            stop=stop_of(trace, settings.turns),
            turns=settings.turns,
            verdicts=verdicts,
            settings={
                "asked": job.user_prompt,
                **({"id": job.id} if job.id else {}),
                "again": command_line(job, settings, record),
                **record,
                **batch_record(jobs, index, settings.batch),
            },
        )
        # an interrupted batch may have no traces
        for index, (job, trace, verdicts) in enumerate(
            zip(jobs, traces, image_verdicts(traces, judge, settings.best_of > 1))  # noqa: B905
        )
    ]


def image_verdicts(traces: Sequence[Trace], judge: Judge | None, needed: bool = False) -> list[tuple[Verdict, ...]]:
    """A verdict per image of each trace, in one call; empty where there is no spec, no judge, or no verdict.

    With `needed`, the JudgeError of a judge that has no verdict is raised.
    """
    if judge is None:
        return [()] * len(traces)
    images = [
        [Trace(with_image(trace.prompt, image)) for image in trace.images if trace.prompt.spec] for trace in traces
    ]
    flat = [image for trace_images in images for image in trace_images]
    try:
        verdicts = iter(judge(flat) if flat else [])
    except JudgeError:
        if needed:
            raise
        return [()] * len(traces)
    return [tuple(next(verdicts) for _ in trace_images) for trace_images in images]


def stop_of(trace: Trace, turns: int) -> Stop:
    """Why a trace has ended."""
    if trace.finished:
        completion = trace.turns[-1].said
        return "model" if completion is not None and reflection_is_formed(completion.text) else "unread"
    first = 0 if trace.prompt.image is not None else 1  # the turn of Reason does not count
    return "limit" if len(trace.turns) - first >= turns else "interrupted"


def best_view(candidates: Sequence[TraceView]) -> TraceView:
    """The candidate with the best last image, of equals the one with the fewest edits; its settings list all scores."""
    if len(candidates) == 1:
        return candidates[0]
    # Without verdicts, where Ctrl-C came while judging, the fewest edits decide.
    best = min(candidates, key=lambda view: (-view.verdict.score if view.verdict else 0.0, view.edits))
    scores = {str(view.trace.seed): view.verdict.score for view in candidates if view.verdict}
    return replace(best, settings={**best.settings, "best_of": scores})


def command_line(job: DrawJob, settings: DrawSettings, record: Mapping[str, Any]) -> str:
    """The command line that draws one trace again."""
    if job.prompt.image is not None:
        words = ["triptych", "edit", "input.png", job.user_prompt]  # the copy of the image in the trace's folder
    else:
        words = ["triptych", "draw", job.user_prompt]
    words += ["--model", str(record.get("model", "sketch")), "--seed", str(job.seed), "--turns", str(settings.turns)]
    for name in ("base", "steps", "guidance", "temperature", "size"):
        if record.get(name) is not None:  # None was the model's own, which its checkpoint still says
            words += [f"--{name}", str(record[name])]
    if not settings.plan:
        words.append("--no-plan")
    return shlex.join(words)


def batch_record(jobs: Sequence[DrawJob], index: int, batch: int) -> dict[str, Any]:
    """The rows that were drawn together with job `index`, and its place among them; nothing for a row alone.

    Matrix products of another size add up in another order, so that a row's numbers depend on the size of its batch by
    rounding: log-probabilities in their last bits, pictures by a level of 255 here and there, texts hardly ever.
    """
    first = index - index % batch
    rows = jobs[first : first + batch]
    if len(rows) == 1:
        return {}
    records = [
        {
            "prompt": job.prompt.text,  # as the model was given it
            "seed": job.seed,
            **({} if job.prompt.spec is None else {"spec": job.prompt.spec.to_metadata()}),
        }
        for job in rows
    ]
    return {"batch_row": index - first, "batch_rows": records}


def draw_again(options: DrawOptions, folder: Path, open_model: OpenModel) -> int:
    """Repeat the trace of a folder with all rows of its batch: the same to the bit, on the same machine and versions.

    Raises ConfigError for a folder that holds no trace, and for weights that it was not drawn with.
    """
    if options.prompt or options.prompts is not None:
        raise ConfigError("--again repeats the prompt of a trace; expected no other prompt beside it")
    try:
        old = TraceView.load(folder)
        record, asked = dict(old.settings), old.trace.prompt
        rows = record.pop("batch_rows", [{"prompt": asked.text, "seed": old.trace.seed}])
        row, sampling = record.pop("batch_row", 0), current_names(record["sampling"])
        # JSON has no tuples.
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in sampling.items()}
        sampling = Sampling(**fields)
        specs = [Spec.from_metadata(each["spec"]) if "spec" in each else asked.spec for each in rows]
        settings = DrawSettings(record["turns"], sampling, record["plan"], len(rows))
        choice = replace(options, model=record["model"], dtype=record["dtype"], device=record["device"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--again {folder}: {error!r}; expected the folder of a trace, with its trace.json"
        ) from error
    output = OutputFolder.open(options.out, old.user_prompt, old.trace.seed, many=False)
    policy = load_model(choice, open_model)
    if (weights := fingerprint(policy)) != record["weights"]:
        raise ConfigError(f"{choice.model} has weights {weights}, the trace was drawn with {record['weights']}")
    jobs = [
        DrawJob(old.user_prompt, Prompt(each["prompt"], spec, asked.image), each["seed"], record.get("id", ""))
        for each, spec in zip(rows, specs, strict=True)
    ]
    console = open_console(options.as_json)
    traces, complete = _play_batches(policy, jobs, settings, partial(terminal.TerminalListener, console), works=False)
    if not complete:
        raise KeyboardInterrupt
    judge = WorldJudge(strangers=False) if policy.config.world == "stickers" else None
    view = _views(jobs, traces, settings, judge, record | {"versions": versions()})[row]
    output.write(view)
    terminal.print_result(console, view)
    terminal.print_folder(console, output.folder, output.page)
    if options.as_json:
        print(json.dumps(output.record()), flush=True)
    return 0


def reproduction_record(
    options: DrawOptions | EditOptions, policy: Policy, settings: DrawSettings, judge: Judge | None
) -> dict[str, Any]:
    """What has to be the same to get the same traces, for trace.json and the page."""
    return {
        "model": options.model,
        "base": options.base or None,
        "weights": fingerprint(policy),  # --model may be a folder, whose contents change
        "device": str(getattr(policy, "device", "cpu")),
        "dtype": str(getattr(policy, "dtype", "float32")).removeprefix("torch."),
        "judge": getattr(judge, "name", None),
        "turns": settings.turns,
        "plan": settings.plan,
        "steps": options.steps,
        "guidance": options.guidance,
        "temperature": options.temperature,
        "batch": settings.batch,
        "sampling": asdict(settings.sampling),
        "versions": versions(),
    }
