"""The log-probability check: before weights move, log-probabilities must agree with what the sampler recorded.

A ratio that is not 1 before an update means that training and sampling are two policies: guidance, a temperature, a
filter, a time or a rounding differs, and learning from it teaches noise. Before step 0 a run checks whatever its recipe
can draw (`mismatches`) and refuses to start; later each rollout is checked in its first inner epoch (learner.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from triptych.errors import TrainingError
from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.flow import step_logprob
from triptych.model.logprobs import ImageSample, SDELogprobs, TextLogprobs, TextSample
from triptych.model.templates import is_stop, parse_edit, parse_thought, wrap_reflection
from triptych.rewards.rewards import RewardRule
from triptych.rl.advantages import LossRows, group_advantages, loss_rows
from triptych.rl.config import Limits, StageConfig, TrainConfig
from triptych.rl.tree import Group, Node, StageRollout, expand, expand_trajectories, root
from triptych.seeds import derive
from triptych.trace import Completion, Drawing, Prompt, SDESteps, Trace, Verdict

RowT = TypeVar("RowT")
Mismatch = dict[str, float]  # by the fields of Limits; those of a part that does not learn are absent
SIBLINGS, PER_TEXT = 4, 2  # of a group of the check: two texts, two pictures each
SIGMAS = 4  # standard errors that are put down to chance
TOKENS = 30  # fewest of which a mean log-ratio says anything
INSTRUCTIONS = ("add a red clock at top left", "add a blue bus at bottom right")  # where a reflection stops
WORDS = {
    "text_ratio": "a token's ratio differs from 1 by",
    "text_mean": "the mean log-ratio of tokens is",
    "sde_mean": "the mean of an SDE step differs, in standard deviations, by",
    "sde_step": "the mean of an SDE step differs, as a share of the step, by",
    "sde_logprob": "the log-probability of an SDE step differs by",
    "guidance": "a guidance scale differs by a share of",
    "rounding": "a state is rounded to half precision, by a share of",
}


class Comparison:
    """Gathers, part by part, the log-probabilities of one stage beside the sampler's record."""

    def __init__(self) -> None:
        self.log_ratios: list[Float[Tensor, "token"]] = []
        self.steps: list[dict[str, Float[Tensor, "step"]]] = []

    def add_text(self, scores: TextLogprobs, rows: Sequence[TextSample]) -> None:
        """Take texts in."""
        old = torch.from_numpy(np.concatenate([row.completion.logprobs for row in rows]))
        self.log_ratios.append(scores.logprob[scores.mask].detach().cpu() - old)

    def add_images(self, scores: Sequence[SDELogprobs], rows: Sequence[ImageSample]) -> None:
        """Take the SDE steps of pictures in."""
        self.steps += [step_errors(one, row.sde_steps) for one, row in zip(scores, rows, strict=True)]

    def read(self) -> Mismatch:
        """The largest error of each kind; NaN if one is no number."""
        mismatch: Mismatch = {}
        if self.log_ratios:
            ratios = torch.cat(self.log_ratios)
            mismatch["text_ratio"] = float((ratios.exp() - 1).abs().max())
            # A dropped filter moves every token by the log of what it kept: less than the rounding of one token in
            # bfloat16, and far more than the rounding of their mean.
            chance = SIGMAS * ratios.std(correction=0) / len(ratios) ** 0.5
            mismatch["text_mean"] = float((ratios.mean().abs() - chance).clamp(min=0)) if len(ratios) >= TOKENS else 0.0
        for name in self.steps[0] if self.steps else ():
            mismatch[name] = float(torch.cat([step[name] for step in self.steps]).max())
        return mismatch


@torch.no_grad()
def step_errors(scores: SDELogprobs, steps: SDESteps) -> dict[str, Float[Tensor, "step"]]:
    """How far the SDE steps of one picture are from their record.

    The difference of means is first order in an error of the velocity; that of log-probabilities, whose noise averages
    out over a picture, is second order. Under bfloat16 both drown in rounding, which is spread over all directions: so
    the means are also projected on the two directions in which the faults that were seen in practice would move them.
    """
    before, after, mean, logprob = (
        torch.from_numpy(part).to(scores.mean.device) for part in (steps.before, steps.after, steps.mean, steps.logprob)
    )
    error, step = scores.mean - mean, mean - before
    own = step_logprob(after, scores.mean, scores.std)
    of_rounded = step_logprob(_rounded(after), scores.mean, scores.std) - own
    of_scored = scores.logprob - own  # 0 unless another state than the recorded one was scored
    held = [(part == part.half().float()).float().flatten(1).mean(1) for part in (before, after)]  # 2^-13 of float32
    of_before = _share(error, _rounded(before) - before)
    of_after = torch.where(of_scored == 0, 0, of_scored / of_rounded).abs()
    errors = {
        "sde_mean": _norm(error / scores.std) / after[0].numel() ** 0.5,
        "sde_step": _norm(error) / _norm(step),
        "sde_logprob": (scores.logprob - logprob).abs(),
        "guidance": torch.maximum(_share(error, scores.text_slope), _share(error, scores.image_slope)),
        "rounding": torch.stack([*held, of_before, of_after]).amax(0),
    }
    return {name: value.cpu() for name, value in errors.items()}


def problems(stage: str, mismatch: Mapping[str, float], limits: Limits) -> list[str]:
    """What is beyond its limit, in words; NaN is beyond every limit."""
    return [
        f"{stage}: {WORDS[name]} {value:.2g}, at most {getattr(limits, name):g} (--limits.{name.replace('_', '-')})"
        for name, value in mismatch.items()
        if not value <= getattr(limits, name)
    ]


def check_mismatches(by_stage: Mapping[str, Mismatch], limits: Limits) -> None:
    """Raises TrainingError, naming stage and part, if a mismatch is beyond its limit."""
    wrong = [problem for stage, mismatch in by_stage.items() for problem in problems(stage, mismatch, limits)]
    if wrong:
        raise TrainingError(
            f"training would not learn from what was sampled: {'; '.join(wrong)}. Sampling and scoring must use the "
            "same settings and precision: set --dtype float32, or allow more"
        )


def mismatches(bagel: Bagel, prompts: Sequence[Prompt], config: TrainConfig, seed: int) -> dict[str, Mismatch]:
    """Sample with every setting that the recipe can draw, score it as an update would, and compare, stage by stage.

    Rows are made by the code that training uses, `tree` and `advantages`; gradients are on, since some kernels differ
    with and without.
    """
    if not any(stage.trains_text or stage.picture.train for stage in (config.reason, config.refine)):
        return {}
    comparisons = {"reason": Comparison()} | ({"refine": Comparison()} if config.tree.depth else {})
    for groups, stages in _rollouts(CheckPolicy(bagel), [root(prompt) for prompt in prompts], config, seed):
        for name, rollout, turns in stages:
            advantages = [group_advantages(group, rollout.stage) for group in groups]
            rows = loss_rows(groups, advantages, rollout.stage, turns)
            _compare(bagel, rows, rollout.sampling, config.micro_batch_size, comparisons[name])
    return {name: comparison.read() for name, comparison in comparisons.items()}


class CheckPolicy:
    """The policy, except that no reflection stops and that siblings which share a text take turns: a, b, a, b.

    So every row draws, and the copies of a picture that `Bagel.draw` and `Bagel.edit` make of one row are interleaved.
    """

    def __init__(self, bagel: Bagel):
        self.bagel, self.config = bagel, bagel.config

    def plan(self, prompts, sampling, seeds, on_text=None) -> list[Completion]:
        return _interleaved(self.bagel.plan(prompts, sampling, seeds, on_text), prompts)

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]:
        return self.bagel.draw(prompts, plans, sampling, seeds, sde_seeds, on_step)

    def reflect(self, prompts, images, sampling, seeds, on_text=None) -> list[Completion]:
        said = _interleaved(
            self.bagel.reflect(prompts, images, sampling, seeds, on_text), [id(image) for image in images]
        )
        return [_going_on(completion, INSTRUCTIONS[row % 2]) for row, completion in enumerate(said)]

    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]:
        return self.bagel.edit(images, instructions, sampling, seeds, sde_seeds, on_step)


@dataclass(frozen=True)
class EvenJudge:
    """The check needs no rewards, and looks at no picture."""

    name: str = "even"

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        return [Verdict(0.5) for _ in traces]


# The name of a stage, how it was grown, and which turns of a trace belong to it (None: the newest).
Stages = list[tuple[Literal["reason", "refine"], StageRollout, slice | None]]


def _rollouts(
    policy: CheckPolicy, parents: Sequence[Node], config: TrainConfig, seed: int
) -> Iterator[tuple[list[Group], Stages]]:
    """Groups grown with each SDE step that the recipe can choose, with a plan and without where it may do either."""
    judge, depth = EvenJudge(), config.tree.depth
    first = _variants(config.reason, config.reward)
    later = _variants(config.refine, config.reward)
    if config.tree.kind == "trajectory":
        for number in range(max(len(first), len(later))):
            reason, refine = first[number % len(first)], later[number % len(later)]
            groups = expand_trajectories(policy, judge, parents, reason, refine, depth, derive(seed, 0, number))
            stages: Stages = [("reason", reason, slice(0, 1)), ("refine", refine, slice(1, None))]
            yield groups, stages[: 1 + min(depth, 1)]
        return
    groups: list[Group] = []
    for number, rollout in enumerate(first):
        groups = expand(policy, judge, parents, rollout, derive(seed, 0, number))
        yield groups, [("reason", rollout, None)]
    for number, rollout in enumerate(later if depth else ()):
        if number == 0 or depth > 1:  # deeper trees also edit what was edited
            parents = [group.siblings[0] for group in groups]
        groups = expand(policy, judge, parents, rollout, derive(seed, 1, number))
        yield groups, [("refine", rollout, None)]


def _variants(stage: StageConfig, rule: RewardRule) -> list[StageRollout]:
    """The stage with every SDE step and every kind of rollout, for small groups of which no row is left out."""
    # `loss_rows` leaves out what has neither advantage nor KL; an even judge gives no advantage.
    parts = {"text": replace(stage.text, kl_coef=1.0), "picture": replace(stage.picture, kl_coef=1.0)}
    small = replace(stage, **parts, group_size=SIBLINGS, images_per_text=PER_TEXT)
    return [
        StageRollout(one, one.sampling.resolve(indices), rule)
        for one in small.variants()
        for indices in one.sde_index_sets()
    ]


def _compare(bagel: Bagel, rows: LossRows, sampling: Sampling, micro: int, into: Comparison) -> None:
    for texts in _parts(rows.text_samples, micro):
        into.add_text(bagel.text_logprobs(texts, sampling), texts)
    for images in _parts(rows.image_samples, micro):
        into.add_images(bagel.sde_logprobs(images, sampling), images)


def _parts(rows: Sequence[RowT], size: int) -> Iterator[Sequence[RowT]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _interleaved(said: Sequence[Completion], keys: Sequence[object]) -> list[Completion]:
    """Texts a, a, b, b of a group as a, b, a, b; rows of a group whose keys differ have read different things."""
    rows: list[Completion] = []
    for start in range(0, len(said), SIBLINGS):
        group, alike = said[start : start + SIBLINGS], len(set(keys[start : start + SIBLINGS])) == 1
        rows += [*group[::PER_TEXT], *group[1::PER_TEXT]] if alike else group
    return rows


def _going_on(said: Completion, instruction: str) -> Completion:
    """A reflection with an instruction, where it had none."""
    if not is_stop(parse_edit(said.text)):
        return said
    return replace(said, text=wrap_reflection(parse_thought(said.text), instruction))


def _norm(states: Float[Tensor, "step patch latent"]) -> Float[Tensor, "step"]:
    return states.flatten(1).norm(dim=1)


def _rounded(states: Tensor) -> Tensor:
    return states.bfloat16().float()


def _share(error: Float[Tensor, "step patch latent"], direction: Float[Tensor, "step patch latent"]) -> Tensor:
    """How many times an error holds a direction `[step]`, beyond chance; 0 where the direction is."""
    error, direction = error.flatten(1), direction.flatten(1)
    length = direction.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    share = (error * direction).sum(1) / length
    rest = (error - share[:, None] * direction).square().mean(1)
    return (share.abs() - SIGMAS * (rest / length).sqrt()).clamp(min=0)
