"""The loop: Reason once, then Reflect and Refine until the image is right or the turns are used up.

Two beats, `reason` and `refine`, make both a user's draw and the training tree. The chain is Markov (paper, section 3):
a reflection sees the newest image and the prompt, an edit sees the newest image and the instruction, and nothing
else is carried along. A row that has stopped leaves the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from numbers import Integral, Real
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from triptych.bounds import check_bounds
from triptych.data.prompt_checks import check_text, understand
from triptych.errors import ConfigError, NotFiniteError, PictureError, PromptError
from triptych.model.config import BagelConfig, Guidance, Sampling, Steps, Temperature
from triptych.model.templates import is_stop, parse_edit
from triptych.seeds import derive
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn

# What has a seed of its own in each turn. The place is part of the seed: appending is safe, reordering changes draws.
STREAMS = ("plan", "draw", "reflect", "edit", "sde")


@runtime_checkable
class Policy(Protocol):
    """What the loop asks of a model, such as `Bagel`.

    Each verb takes and returns one element a row, and gives row i from its inputs and its seed alone, up to the
    rounding of products of another size (`triptych draw --again` repeats the batch). Raises NotFiniteError, with the
    rows, where the numbers of some are not finite.
    """

    config: BagelConfig  # of which the loop reads `sampling`

    def plan(self, prompts, sampling, seeds, on_text=None) -> list[Completion]: ...
    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]: ...
    def reflect(self, prompts, images, sampling, seeds, on_text=None) -> list[Completion]: ...
    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]: ...


class Listener:
    """Is called as a play goes on; a method does nothing unless overridden. Rows are indices of the beat's traces."""

    def on_beat(self, name: str, rows: list[int]) -> None:
        """A beat begins: plan, draw, reflect or edit, for these traces."""

    def on_text(self, row: int, text: str) -> None:
        """The text of a trace so far."""

    def on_step(self, done: int, total: int) -> None:
        """Flow steps done, of all traces of the beat together."""


SILENT = Listener()


def beat_seed(seed: int, turn: int, stream: str) -> int:
    """The seed of one of STREAMS in one turn of one trace: all are independent, and reproduce."""
    return derive(seed, turn, STREAMS.index(stream))


@dataclass(frozen=True)
class Seeds:
    """Seeds of one beat, row by row: of the text, of the initial noise, and of the SDE steps."""

    # Apart, since siblings of a tree share the noise and differ in text and SDE steps (Flow-GRPO, MixGRPO).
    text: Sequence[int]
    noise: Sequence[int]
    sde: Sequence[int]

    @staticmethod
    def of(traces: Sequence[Trace], text: str, noise: str) -> Seeds:
        """Each trace's own, all independent, from two of STREAMS. A tree gives its siblings the same noise instead."""
        streams = ([beat_seed(each.seed, len(each.turns), name) for each in traces] for name in (text, noise, "sde"))
        return Seeds(*streams)

    def select(self, rows: Sequence[int]) -> Seeds:
        return Seeds(*([part[row] for row in rows] for part in (self.text, self.noise, self.sde)))


def reason(
    policy: Policy,
    traces: Sequence[Trace],
    sampling: Sampling,
    plan: bool = True,
    listener: Listener = SILENT,
    seeds: Seeds | None = None,
) -> list[Trace]:
    """The first beat of each trace: plan, unless `plan` is False, and draw. Adds one turn.

    A trace for which the model's numbers are not finite gets `Trace.lost` in place of a turn. Raises NotFiniteError
    where that is every one.
    """
    seeds = seeds or Seeds.of(traces, "plan", "draw")

    def beat(rows: list[int]) -> list[Trace]:
        own = [traces[row] for row in rows]
        return _reason(policy, own, sampling, plan, _Renumbered(listener, rows), seeds.select(rows))

    return _without_lost(beat, traces)


def _reason(
    policy: Policy, traces: Sequence[Trace], sampling: Sampling, plan: bool, listener: Listener, seeds: Seeds
) -> list[Trace]:
    rows = list(range(len(traces)))
    prompts = [trace.prompt.text for trace in traces]
    seconds: dict[str, float] = {}
    plans: list[Completion | None] = [None] * len(traces)
    start = time.perf_counter()
    if plan:
        listener.on_beat("plan", rows)
        plans = list(policy.plan(prompts, sampling, seeds.text, listener.on_text))
        seconds["plan"], start = _lap(start, len(traces))
    # All plans before the first image, and not row by row: each verb is one batch.
    listener.on_beat("draw", rows)
    drawings = policy.draw(prompts, plans, sampling, seeds.noise, seeds.sde, listener.on_step)
    seconds["draw"], _ = _lap(start, len(traces))
    return [
        trace + Turn(said=completion, drew=drawing, seconds=dict(seconds))  # a copy: traces share nothing mutable
        for trace, completion, drawing in zip(traces, plans, drawings, strict=True)
    ]


def refine(
    policy: Policy,
    traces: Sequence[Trace],
    sampling: Sampling,
    listener: Listener = SILENT,
    seeds: Seeds | None = None,
) -> list[Trace]:
    """A later beat of each trace: reflect, then edit unless the reflection says stop. Adds one turn.

    Traces are lost as in `reason`.
    """
    seeds = seeds or Seeds.of(traces, "reflect", "edit")

    def beat(rows: list[int]) -> list[Trace]:
        own = [traces[row] for row in rows]
        return _refine(policy, own, sampling, _Renumbered(listener, rows), seeds.select(rows))

    return _without_lost(beat, traces)


def _refine(
    policy: Policy, traces: Sequence[Trace], sampling: Sampling, listener: Listener, seeds: Seeds
) -> list[Trace]:
    images = [_newest(trace) for trace in traces]
    listener.on_beat("reflect", list(range(len(traces))))
    start = time.perf_counter()
    prompts = [trace.prompt.text for trace in traces]
    reflections = policy.reflect(prompts, images, sampling, seeds.text, listener.on_text)
    reflect_seconds, start = _lap(start, len(traces))
    instructions = [parse_edit(reflection.text) for reflection in reflections]
    # An empty instruction is carried out as well: only a stop ends a trace, as in the R3 release.
    edited = [row for row, instruction in enumerate(instructions) if not is_stop(instruction)]
    drawings: list[Drawing | None] = [None] * len(traces)
    edit_seconds = 0.0
    # Only rows that go on: the release computes edits of finished ones, too, and throws them away.
    if edited:
        listener.on_beat("edit", edited)
        edit_seeds = seeds.select(edited)  # by row, so that who else stopped changes no draw
        own = [images[row] for row in edited], [instructions[row] for row in edited]
        try:
            edits = policy.edit(*own, sampling, edit_seeds.noise, edit_seeds.sde, listener.on_step)
        except NotFiniteError as error:  # by the numbers of this beat's traces
            raise NotFiniteError(error.stage, [edited[row] for row in error.rows], error.cause) from error
        edit_seconds, _ = _lap(start, len(edited))
        for row, drawing in zip(edited, edits, strict=True):
            drawings[row] = drawing
    return [
        trace
        + Turn(
            said=reflection,
            drew=drawing,
            instruction=None if drawing is None else instruction,  # that of a stop stands in the reflection
            seconds={"reflect": reflect_seconds} | ({} if drawing is None else {"edit": edit_seconds}),
        )
        for trace, reflection, drawing, instruction in zip(traces, reflections, drawings, instructions, strict=True)
    ]


def play(
    policy: Policy,
    prompts: str | Prompt | Iterable[str | Prompt],
    seeds: int | Iterable[int],
    turns: int = 4,
    sampling: Sampling | None = None,
    plan: bool = True,
    listener: Listener = SILENT,
) -> Iterator[list[Trace]]:
    """Yield all traces after the first beat and after each of up to `turns` Reflect-Refine beats; one seed a prompt.

    A prompt that brings an image starts with that image in place of Reason. Finished and lost traces stay as they
    are and take no part in later beats; the last yield holds every trace complete.

    What is passed in is checked at once, before the first beat, as the command line does: PromptError for a prompt that
    is no text or, for a model of the sticker world, shows what it cannot draw; PictureError for an image that is none;
    ConfigError for anything else of a wrong kind or out of range. NotFiniteError where a beat loses all of its traces.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f'policy is {_told(policy)}; expected a model, such as load("sketch")')
    own_prompts, own_seeds = check_prompts(prompts, policy.config.world), check_seeds(seeds)
    if len(own_prompts) != len(own_seeds):
        raise ConfigError(f"{len(own_prompts)} prompts and {len(own_seeds)} seeds; expected a seed for each prompt")
    # 0 is Reason alone, the paper's baseline; the paper and the release allow 4 turns.
    if not _is_whole(turns) or turns < 0:
        raise ConfigError(f"turns={_told(turns)}: expected 0 or more Reflect-Refine turns; set --turns")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise ConfigError(f"sampling is {_told(sampling)}; expected a Sampling, or None for the model's own")
    traces = [Trace(prompt=prompt, seed=seed) for prompt, seed in zip(own_prompts, own_seeds, strict=True)]
    # The beats are a generator of their own, so that the checks above do not wait for the first `next`.
    return _beats(policy, traces, int(turns), policy.config.sampling if sampling is None else sampling, plan, listener)


def _beats(
    policy: Policy, traces: list[Trace], turns: int, sampling: Sampling, plan: bool, listener: Listener
) -> Iterator[list[Trace]]:
    blank = [row for row, trace in enumerate(traces) if trace.image is None]
    if blank:
        drawn = reason(policy, [traces[row] for row in blank], sampling, plan, _Renumbered(listener, blank))
        for row, trace in zip(blank, drawn, strict=True):
            traces[row] = trace
        yield list(traces)  # a copy, since the list goes on changing
    for _ in range(turns):
        unfinished = [row for row, trace in enumerate(traces) if not (trace.finished or trace.lost)]
        if not unfinished:
            return
        own = [traces[row] for row in unfinished]
        try:
            refined = refine(policy, own, sampling, _Renumbered(listener, unfinished))
        except NotFiniteError as error:
            if len(own) == len(traces):
                raise
            refined = [replace(trace, lost=str(error)) for trace in own]  # others have ended well
        for row, trace in zip(unfinished, refined, strict=True):
            traces[row] = trace
        yield list(traces)


def draw(
    prompts: str | Prompt | Iterable[str | Prompt],
    model: str | Policy = "sketch",
    seed: int = 0,
    turns: int = 4,
    plan: bool = True,
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    batch: int = 16,
    device: str = "auto",
) -> Any:  # a union would have to be narrowed by every caller
    """The finished trace of one prompt, or those of several in a list; options are those of `triptych draw`.

    `model` is what `load` takes, and is kept in memory for the next call, or a model in memory. Every prompt is drawn
    under `seed`, so that it gives the same trace alone as among others. Errors are those of `play` and `load`; a trace
    that was lost says so in `Trace.lost`.
    """
    if not _is_whole(batch) or batch < 1:
        raise ConfigError(f"batch={_told(batch)}: expected 1 or more traces at once")
    policy = _loaded(model, device) if isinstance(model, str) else model
    if not isinstance(policy, Policy):
        raise ConfigError(f'model is {_told(model)}; expected a name, such as "sketch", or a model')
    sampling = choose_sampling(policy.config.sampling, steps, guidance, temperature)
    own_prompts = check_prompts(prompts, policy.config.world)
    rest, finished = iter(own_prompts), []
    while group := list(islice(rest, batch)):
        traces = [Trace(prompt, seed=seed) for prompt in group]
        # No beat at all where images are given and turns is 0.
        *_, traces = traces, *play(policy, group, [seed] * len(group), turns, sampling, plan)
        finished += traces
    return finished[0] if isinstance(prompts, str | Prompt) else finished


@lru_cache(maxsize=1)  # one: a second 7B beside the first would not fit
def _loaded(name: str, device: str) -> Policy:
    import torch

    from triptych.model.weights import load

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast(Policy, load(name, device))


@dataclass(frozen=True)
class _Choices:
    """What `choose_sampling` takes, for its bounds."""

    steps: Steps | None
    guidance: Guidance | None
    temperature: Temperature | None


def choose_sampling(
    sampling: Sampling, steps: int | None = None, guidance: float | None = None, temperature: float | None = None
) -> Sampling:
    """A model's own settings with those that were chosen in their place. ConfigError for one that is out of bounds."""
    choices = {"steps": steps, "guidance": guidance, "temperature": temperature}
    for name, value in choices.items():
        kind, expected = (Integral, "a whole number") if name == "steps" else (Real, "a number")
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ConfigError(f"{name}={_told(value)}: expected {expected}, or None for the model's own")
    check_bounds(_Choices(**choices))  # by the names that the caller knows: `sampling` has other ones
    if steps is not None:  # N steps lie between N + 1 points of the schedule
        sampling = replace(sampling, draw_points=int(steps) + 1, edit_points=int(steps) + 1)
    if guidance is not None:
        sampling = replace(sampling, text_guidance=float(guidance))
    if temperature is not None:  # plans have a temperature of their own only by default
        sampling = replace(sampling, temperature=float(temperature), plan_temperature=None)
    return sampling


def check_prompts(prompts: Any, world: str) -> list[Prompt]:
    """Prompts from a text, a Prompt, or several of these, as a model of `world` is given them.

    Raises PromptError for a text that is none or that the world does not hold, PictureError for an image that is none.
    """
    if isinstance(prompts, str | Prompt):
        prompts = [prompts]
    # Bytes, dicts and paths are refused here: the first two would be iterated over as numbers and keys.
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray | Mapping):
        raise PromptError(f"prompts is {_told(prompts)}; expected a text, a Prompt, or a list of these")
    checked: list[Prompt] = []
    for place, each in enumerate(prompts):
        prompt = Prompt(each) if isinstance(each, str) else each
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
            wrong = prompt.text if isinstance(prompt, Prompt) else prompt
            raise PromptError(f"prompt {place} is {_told(wrong)}; expected a text or a Prompt")
        if prompt.image is not None:
            _check_image(prompt.image, place)
        text = check_text(prompt.text)
        # A benchmark's sentence, which comes with a spec or a source, is read to the letter.
        if prompt.spec is None and not prompt.source and text != prompt.text:
            prompt = replace(prompt, text=text)
        checked.append(understand(prompt, world))
    return checked


def _check_image(image: Any, place: int) -> None:
    kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else _told(image)
    pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not pixels or image.shape[2] != 3 or 0 in image.shape:
        raise PictureError(f"the image of prompt {place} is {kind}; expected uint8 [height width 3]: use read_image")


def check_seeds(seeds: Any) -> list[int]:
    """Seeds as Python's whole numbers from 0 to 2**63 - 1; numpy's are read. Raises ConfigError."""
    if _is_whole(seeds):
        seeds = [seeds]
    if not isinstance(seeds, Iterable) or isinstance(seeds, str | bytes | bytearray | Mapping):
        raise ConfigError(f"seeds is {_told(seeds)}; expected a list of whole numbers, one a prompt")
    checked = list(seeds)
    # 63 bits, which the generators of torch and every reader of trace.json can hold.
    if wrong := [each for each in checked if not (_is_whole(each) and 0 <= each < 1 << 63)]:
        raise ConfigError(f"seed {_told(wrong[0])}: expected a whole number from 0 to 2**63 - 1")
    return [int(each) for each in checked]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # True is an instance of int


def _told(value: Any) -> str:
    """A value as a message shows it: numbers and texts themselves, of anything else the kind."""
    shown = value is None or isinstance(value, str | bytes | int | float | Integral)
    return repr(value)[:60] if shown else f"of type {type(value).__name__}"


def _without_lost(beat: Callable[[list[int]], list[Trace]], traces: Sequence[Trace]) -> list[Trace]:
    """The traces after `beat`, which is called with their rows; those that it loses are marked."""
    after, rows = list(traces), list(range(len(traces)))
    while True:
        try:
            done = beat(rows)
            break
        except NotFiniteError as error:
            bad = {rows[place] for place in error.rows}
            if len(rows) == len(bad):  # a broken model, and no accident of one row
                raise
            for row in bad:
                after[row] = replace(traces[row], lost=str(error))
            # Once more, which is seldom: a row's result depends on the others by rounding alone.
            rows = [row for row in rows if row not in bad]
    for row, trace in zip(rows, done, strict=True):
        after[row] = trace
    return after


class _Renumbered(Listener):
    """Passes a beat's rows on under their numbers in the whole play."""

    def __init__(self, listener: Listener, rows: Sequence[int]):
        self.listener, self.rows = listener, rows

    def on_beat(self, name: str, rows: list[int]) -> None:
        self.listener.on_beat(name, [self.rows[row] for row in rows])

    def on_text(self, row: int, text: str) -> None:
        self.listener.on_text(self.rows[row], text)

    def on_step(self, done: int, total: int) -> None:
        self.listener.on_step(done, total)  # of no row: a step is one of the whole batch


def _lap(start: float, rows: int) -> tuple[float, float]:
    """Seconds since `start` as each row's share of the batch, and the time now."""
    now = time.perf_counter()  # rows share every forward, so that no row has a time of its own
    return (now - start) / max(rows, 1), now


def _newest(trace: Trace) -> np.ndarray:
    if trace.image is None:
        raise ConfigError("refine needs a picture to look at; expected a trace after Reason, or a prompt with an image")
    return trace.image


def with_image(prompt: Prompt, image: np.ndarray) -> Prompt:
    """The same prompt, starting from an image: what `triptych edit` plays."""
    return replace(prompt, image=image)
