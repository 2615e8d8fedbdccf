"""The loop: Reason once, then Reflect and Refine until the image is right or the turns are used up.

Two beats, `reason` and `refine`, make both a user's draw and the training tree. The chain is Markov (paper, section 3):
a reflection sees the newest image and the prompt, an edit sees the newest image and the instruction, and nothing
else is carried along. A row that has stopped leaves the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from triptych.errors import ConfigError, NotFiniteError
from triptych.model.config import BagelConfig, Sampling
from triptych.model.templates import is_stop, parse_edit
from triptych.seeds import derive
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn

# What has a seed of its own in each turn. The place is part of the seed: appending is safe, reordering changes draws.
STREAMS = ("plan", "draw", "reflect", "edit", "sde")


@runtime_checkable
class Policy(Protocol):
    """What the loop asks of a model, such as `Bagel`.

    Each verb takes and returns one element a row, and gives row i from its inputs and its seed alone. Raises
    NotFiniteError, with the rows, where the numbers of some are not finite.
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
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    turns: int = 4,
    sampling: Sampling | None = None,
    plan: bool = True,
    listener: Listener = SILENT,
) -> Iterator[list[Trace]]:
    """Yield all traces after the first beat and after each of up to `turns` Reflect-Refine beats.

    A prompt that brings an image starts with that image in place of Reason. Finished and lost traces stay as they
    are and take no part in later beats; the last yield holds every trace complete. Raises ConfigError for negative
    turns, NotFiniteError where a beat loses all of its traces.
    """
    # 0 is Reason alone, the paper's baseline; the paper and the release allow 4 turns.
    if turns < 0:
        raise ConfigError(f"turns={turns}: expected 0 or more Reflect-Refine turns; set --turns")
    sampling = policy.config.sampling if sampling is None else sampling
    traces = [Trace(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
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
            # Once more, which is seldom: a row's result does not depend on the others.
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
