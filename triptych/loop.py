"""The loop: Reason once, then Reflect and Refine until the picture is right or the turns are used up.

Two beats, `reason` and `refine`, make both a user's draw and the training tree. The chain is Markov (paper, section 3):
a reflection sees the newest picture and the prompt, an edit sees the newest picture and the instruction, and nothing
else is carried along. A row that has stopped leaves the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from triptych.errors import ConfigError
from triptych.model.config import BagelConfig, Sampling
from triptych.model.templates import is_stop, parse_edit
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn


@runtime_checkable
class Policy(Protocol):
    """What the loop asks of a model; `Bagel` is one, a script in a test is another."""

    config: BagelConfig

    def plan(self, prompts, sampling, seeds, tell=None) -> list[Completion]: ...
    def draw(self, prompts, plans, sampling, seeds, stroke_seeds=None, tick=None) -> list[Drawing]: ...
    def reflect(self, prompts, images, sampling, seeds, tell=None) -> list[Completion]: ...
    def edit(self, images, instructions, sampling, seeds, stroke_seeds=None, tick=None) -> list[Drawing]: ...


class Listener:
    """Hears how a play goes; every method may be left as it is. Rows are indices into the traces of the beat."""

    def beat(self, name: str, rows: list[int]) -> None:
        """A beat begins: plan, draw, reflect or edit, for these traces."""

    def said(self, row: int, text: str) -> None:
        """The text of a trace so far."""

    def step(self, done: int, total: int) -> None:
        """Flow steps done, of all traces of the beat together."""


SILENT = Listener()


def beat_seed(seed: int, turn: int, beat: str) -> int:
    """The seed of one beat of one trace: text and first noise of every turn are independent, and reproduce."""
    number = ("plan", "draw", "reflect", "edit", "stroke").index(beat)
    return int(np.random.SeedSequence([seed, turn, number]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Seeds:
    """Seeds of one beat, row by row: of what is said, of the first noise, and of the stochastic steps."""

    text: Sequence[int]
    noise: Sequence[int]
    stroke: Sequence[int]

    @staticmethod
    def of(traces: Sequence[Trace], said: str, drawn: str) -> Seeds:
        """Each trace's own: all independent. A tree gives its siblings the same noise instead."""
        return Seeds(_seeds(traces, said), _seeds(traces, drawn), _seeds(traces, "stroke"))

    def keep(self, rows: Sequence[int]) -> Seeds:
        return Seeds(*([part[row] for row in rows] for part in (self.text, self.noise, self.stroke)))


def reason(
    policy: Policy,
    traces: Sequence[Trace],
    sampling: Sampling,
    plan: bool = True,
    listen: Listener = SILENT,
    seeds: Seeds | None = None,
) -> list[Trace]:
    """The first beat of each trace: plan (unless told not to) and draw. Adds one turn."""
    seeds = seeds or Seeds.of(traces, "plan", "draw")
    everyone = list(range(len(traces)))
    prompts = [trace.prompt.text for trace in traces]
    seconds: dict[str, float] = {}
    plans: list[Completion | None] = [None] * len(traces)
    start = time.perf_counter()
    if plan:
        listen.beat("plan", everyone)
        plans = list(policy.plan(prompts, sampling, seeds.text, listen.said))
        seconds["plan"], start = _lap(start, len(traces))
    listen.beat("draw", everyone)
    drawings = policy.draw(prompts, plans, sampling, seeds.noise, seeds.stroke, listen.step)
    seconds["draw"], _ = _lap(start, len(traces))
    return [
        trace + Turn(said=said, drew=drew, seconds=dict(seconds))
        for trace, said, drew in zip(traces, plans, drawings, strict=True)
    ]


def refine(
    policy: Policy,
    traces: Sequence[Trace],
    sampling: Sampling,
    listen: Listener = SILENT,
    seeds: Seeds | None = None,
) -> list[Trace]:
    """A later beat of each trace: reflect, then edit unless the reflection says stop. Adds one turn."""
    seeds = seeds or Seeds.of(traces, "reflect", "edit")
    images = [_newest(trace) for trace in traces]
    listen.beat("reflect", list(range(len(traces))))
    start = time.perf_counter()
    said = policy.reflect([trace.prompt.text for trace in traces], images, sampling, seeds.text, listen.said)
    reflecting, start = _lap(start, len(traces))
    instructions = [parse_edit(completion.text) for completion in said]
    going = [row for row, instruction in enumerate(instructions) if not is_stop(instruction)]
    drawings: list[Drawing | None] = [None] * len(traces)
    editing = 0.0
    if going:
        listen.beat("edit", going)
        chosen = seeds.keep(going)
        edited = policy.edit(
            [images[row] for row in going],
            [instructions[row] for row in going],
            sampling,
            chosen.noise,
            chosen.stroke,
            listen.step,
        )
        editing, _ = _lap(start, len(going))
        for row, drawing in zip(going, edited, strict=True):
            drawings[row] = drawing
    return [
        trace
        + Turn(
            said=completion,
            drew=drawing,
            instruction=None if drawing is None else instruction,
            seconds={"reflect": reflecting} | ({} if drawing is None else {"edit": editing}),
        )
        for trace, completion, drawing, instruction in zip(traces, said, drawings, instructions, strict=True)
    ]


def play(
    policy: Policy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    turns: int = 4,
    sampling: Sampling | None = None,
    plan: bool = True,
    listen: Listener = SILENT,
) -> Iterator[list[Trace]]:
    """Yield all traces after the first beat and after each of up to `turns` Reflect-Refine beats.

    A prompt that brings a picture starts with that picture in place of Reason. Finished traces stay as they are and
    take no part in later beats; the last yield holds every trace complete. Raises ConfigError for negative turns.
    """
    if turns < 0:
        raise ConfigError(f"turns={turns}: expected 0 or more Reflect-Refine turns; set --turns")
    sampling = policy.config.sampling if sampling is None else sampling
    traces = [Trace(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    given = [row for row, trace in enumerate(traces) if trace.image is None]
    if given:
        for row, trace in zip(
            given,
            reason(policy, [traces[row] for row in given], sampling, plan, _Renumbered(listen, given)),
            strict=True,
        ):
            traces[row] = trace
        yield list(traces)
    for _ in range(turns):
        going = [row for row, trace in enumerate(traces) if not trace.finished]
        if not going:
            return
        for row, trace in zip(
            going, refine(policy, [traces[row] for row in going], sampling, _Renumbered(listen, going)), strict=True
        ):
            traces[row] = trace
        yield list(traces)


class _Renumbered(Listener):
    """Passes a beat's rows on under their numbers in the whole play."""

    def __init__(self, listen: Listener, rows: Sequence[int]):
        self.listen, self.rows = listen, rows

    def beat(self, name: str, rows: list[int]) -> None:
        self.listen.beat(name, [self.rows[row] for row in rows])

    def said(self, row: int, text: str) -> None:
        self.listen.said(self.rows[row], text)

    def step(self, done: int, total: int) -> None:
        self.listen.step(done, total)


def _seeds(traces: Sequence[Trace], beat: str) -> list[int]:
    return [beat_seed(trace.seed, len(trace.turns), beat) for trace in traces]


def _lap(start: float, rows: int) -> tuple[float, float]:
    """Seconds since `start` as each row's share of the batch, and the time now."""
    now = time.perf_counter()
    return (now - start) / max(rows, 1), now


def _newest(trace: Trace) -> np.ndarray:
    if trace.image is None:
        raise ConfigError("refine needs a picture to look at; expected a trace after Reason, or a prompt with an image")
    return trace.image


def with_image(prompt: Prompt, image: np.ndarray) -> Prompt:
    """The same prompt, starting from a picture: what `triptych edit` plays."""
    return replace(prompt, image=image)
