"""Add a benchmark: prompts with specs, a column per tag, a judge; and the two players that it has to tell apart."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich import print

from triptych import Benchmark, Drawing, Item, Prompt, Spec, Trace, Turn, load
from triptych.data.language import prompt_text
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.eval.benchmark import run_benchmark
from triptych.eval.results import Report, report_table
from triptych.rewards.sticker_judge import WorldJudge

THINGS = [("clock", "cat"), ("bus", "apple"), ("kite", "dog")]


def mirrored() -> Benchmark:
    """Does a model tell sides apart? Every pair of things is asked for both ways round."""
    prompts = []
    for one, other in THINGS:
        for side in ("left", "right"):
            spec = Spec(side, (Item(one), Item(other, position=(f"{side} of", 0))))
            prompts.append(Prompt(prompt_text(spec), spec, source="mirrored"))
    return Benchmark("Mirrored", tuple(prompts), columns={"left": "Left of", "right": "Right of"})


def perfect(policy, prompts: Sequence[Prompt], seeds: Sequence[int], **settings) -> Iterator[list[Trace]]:
    """A player that draws what was asked for."""
    scenes = map(Scene.sample, [prompt.spec for prompt in prompts], seeds)
    yield [drawn(prompt, render_array(scene)) for prompt, scene in zip(prompts, scenes, strict=True)]


def blank(policy, prompts: Sequence[Prompt], seeds: Sequence[int], **settings) -> Iterator[list[Trace]]:
    """A player that draws nothing."""
    yield [drawn(prompt, np.full((96, 96, 3), 200, np.uint8)) for prompt in prompts]


def drawn(prompt: Prompt, picture: np.ndarray) -> Trace:
    return Trace(prompt) + Turn(said=None, drew=Drawing(picture))


def main(policy, folder: Path) -> Report:
    benchmark = mirrored()
    trial = partial(run_benchmark, benchmark, policy, WorldJudge(), turns=0)
    assert all(row.score(0) == 1 for row in trial(play=perfect)), "a perfect player must score 1"
    assert all(row.score(0) != 1 for row in trial(play=blank)), "a blank one must not be right"
    rows = list(run_benchmark(benchmark, policy, WorldJudge(), turns=2, seeds=range(2), out=folder))
    report = benchmark.report(rows, turns=2)
    print(report_table(report))
    return report


if __name__ == "__main__":
    main(load("sketch"), Path("runs/example-6"))
