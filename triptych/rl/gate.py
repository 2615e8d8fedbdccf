"""The step-0 gate: before the first update of a run, scores must agree with what the sampler recorded.

A ratio that is not 1 before an update means that training and sampling are two policies: guidance, temperature, a
filter, a time or a rounding differs. Learning from it teaches noise, so the run does not start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from triptych.errors import TrainingError
from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.scoring import Painting, Utterance
from triptych.model.words import is_stop, parse_edit
from triptych.rl.config import Limits, TrainConfig
from triptych.rl.tree import seed_of

Row = TypeVar("Row")
STAND_IN = "add a red clock at top left"  # the instruction of an edit where every reflection stops


@dataclass(frozen=True)
class Gap:
    """How far scores are from the record: the largest |ratio - 1| of a token, the largest difference of a stroke."""

    stage: str
    text: float
    strokes: float

    def problems(self, limits: Limits) -> list[str]:
        """What is beyond its limit, in words; NaN is beyond every limit."""
        said = f"{self.stage} text: a ratio is {self.text:.2g} from 1, at most {limits.text_ratio:g} is allowed"
        drew = f"{self.stage} strokes: a log-probability is {self.strokes:.2g} off, at most {limits.stroke_gap:g}"
        return [said] * (not self.text <= limits.text_ratio) + [drew] * (not self.strokes <= limits.stroke_gap)


def check(gaps: Sequence[Gap], limits: Limits) -> None:
    """Raises TrainingError, naming stage and part, if any gap is beyond its limit."""
    problems = [problem for gap in gaps for problem in gap.problems(limits)]
    if problems:
        raise TrainingError(
            f"training would not learn from what was sampled: {'; '.join(problems)}. Sampling and scoring must use the "
            "same settings and precision: set --compute float32, or allow more with --limits"
        )


def gaps(bagel: Bagel, prompts: Sequence[str], config: TrainConfig, seed: int) -> list[Gap]:
    """Sample a real group of every stage that will be trained, score it as an update would, and compare."""
    seeds = [seed_of(seed, row) for row in range(len(prompts))]
    noise = [seed] * len(prompts)
    first = config.reason.sampled(config.reason.sampling.draw_points, seed)
    plans = bagel.plan(prompts, first, seeds) if config.reason.plans > 0 else [None] * len(prompts)
    drawn = bagel.draw(prompts, plans, first, noise, seeds)
    told = [Utterance(p, None, plan) for p, plan in zip(prompts, plans, strict=True) if plan is not None]
    painted = [
        Painting(p, plan, None, one.strokes)
        for p, plan, one in zip(prompts, plans, drawn, strict=True)
        if one.strokes is not None
    ]
    found = [gap("reason", bagel, told if config.reason.text.on else [], painted, first, config.micro)]
    if config.tree.depth == 0:
        return found
    later = config.refine.sampled(config.refine.sampling.edit_points, seed)
    images = [one.image for one in drawn]
    said = bagel.reflect(prompts, images, later, seeds)
    orders = [parse_edit(one.text) for one in said]
    orders = [STAND_IN if is_stop(order) else order for order in orders]
    edited = bagel.edit(images, orders, later, noise, seeds)
    told = [Utterance(*row) for row in zip(prompts, images, said, strict=True)] if config.refine.text.on else []
    painted = [
        Painting(order, None, image, one.strokes)
        for order, image, one in zip(orders, images, edited, strict=True)
        if one.strokes is not None
    ]
    return [*found, gap("refine", bagel, told, painted, later, config.micro)]


def gap(
    stage: str,
    bagel: Bagel,
    told: Sequence[Utterance],
    painted: Sequence[Painting],
    sampling: Sampling,
    micro: int,
) -> Gap:
    """The gap of one stage, `micro` rows at a time and with gradients on, since some kernels differ with and without.

    Under a filter one token in a hundred may be off by more: which tokens are kept can hang on the last digit.
    """
    ratios, strokes = torch.zeros(0), torch.zeros(1)
    for rows in _parts(told, micro):
        scores = bagel.score_text(rows, sampling)
        old = torch.from_numpy(np.concatenate([one.said.logprobs for one in rows]))
        ratios = torch.cat([ratios, ((scores.logprob[scores.mask].detach().cpu() - old).exp() - 1).abs()])
    for rows in _parts(painted, micro):
        new = torch.cat([one.logprob for one in bagel.score_strokes(rows, sampling)]).detach().cpu()
        old = torch.from_numpy(np.concatenate([one.strokes.logprob for one in rows]))
        strokes = torch.cat([strokes, (new - old).abs()])
    spare = len(ratios) // 100 if sampling.top_p < 1 or sampling.top_k > 0 else 0
    return Gap(stage, float(ratios.sort().values[-1 - spare]) if len(ratios) else 0.0, float(strokes.max()))


def _parts(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
