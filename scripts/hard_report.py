"""How many first pictures of hard prompts are right, for settings of sampling side by side.

    python scripts/hard_report.py white --guidance 1 1.5 2 3 --temperature 0.3
    python scripts/hard_report.py small --model runs/lessons/model --no-plan

Hard prompts ask for a white sticker, a smaller one, or more than four of two kinds or more. They are fresh ones: in no
benchmark, and of seeds that the packaged lessons did not have. The first pictures count, before any edit; the world
judge, strict.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from triptych.apps.arguments import sampling_of
from triptych.apps.options import SamplingChoice
from triptych.data.language import prompt_text, wording_of
from triptych.data.sft_samples import HARD_PROMPTS
from triptych.data.specs import random_spec
from triptych.loop import play
from triptych.model import weights
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Prompt

FIRST = 7_000_000_000_000  # between the seeds of lessons and those of hard lessons


@dataclass(frozen=True)
class Report:
    """Pictures of one kind of hard prompts."""

    kind: Annotated[Literal["white", "small", "many"], tyro.conf.Positional]
    model: str = "sketch-lessons"
    count: int = 200
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    temperature: float | None = None
    plan: bool = True
    batch: int = 40


def main(asked: Report) -> None:
    bagel, judge = weights.load(asked.model).eval(), WorldJudge()
    specs = filter(HARD_PROMPTS[asked.kind], map(random_spec, itertools.count(FIRST)))
    prompts = [Prompt(prompt_text(spec, wording_of(spec)), spec) for spec in itertools.islice(specs, asked.count)]
    for guidance in asked.guidance:
        sampling, right = sampling_of(bagel.config, SamplingChoice(guidance=guidance, temperature=asked.temperature)), 0
        for start in range(0, len(prompts), asked.batch):
            part = prompts[start : start + asked.batch]
            seeds = list(range(start, start + len(part)))
            (traces,) = play(bagel, part, seeds, 0, sampling, plan=asked.plan)
            right += sum(verdict.score == 1 for verdict in judge(traces))
        how = "planned" if asked.plan else "at once"
        print(f"{asked.kind}, {how}, guidance {guidance}: {right / len(prompts):.3f} of {len(prompts)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Report, description=__doc__))
