"""Tree-RL (arXiv 2602.15772): grow a stage, reward it, compare siblings, update, hand some pictures on as parents.

`train` yields a Step per rollout; printing, evaluating and plotting belong to whoever listens. `grow` stands for
`tree.expand`, so that other machines can do it; `find` tells what own pictures show, for replayed lessons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from triptych.data.specs import Prompts
from triptych.errors import JudgeError, TrainingError
from triptych.model.bagel import Bagel
from triptych.rewards.judge import Judge
from triptych.rl import logprob_check, sft_mix
from triptych.rl.advantages import GroupAdvantages, group_advantages, loss_rows
from triptych.rl.config import TrainConfig
from triptych.rl.learner import Learner, StageBatch
from triptych.rl.metrics import Timed, Timer, describe
from triptych.rl.train_state import TrainState, claim, ended, resume, save
from triptych.rl.tree import Expand, Group, Node, StageRollout, expand, expand_trajectories, pick, root, seed_of
from triptych.sft.self_generated import Find

PROBE = 2  # prompts of the log-probability check before step 0
REPLAYED = 1_000  # added to the seed for replayed lessons, so that they are not those of an earlier course


@dataclass(frozen=True, eq=False)
class Step:
    """One rollout and what was learnt from it. `stage` is reason, refine or trajectory; metrics are plain numbers.

    `picked` are pictures of it that the next stage grows from, in the order of their turn; spares are left out.
    """

    index: int
    total: int
    stage: str
    metrics: dict[str, float]
    groups: tuple[Group, ...]
    picked: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Rollout:
    """What a step has grown: groups to learn from with their gains, and everything, the dropped ones too."""

    kept: list[tuple[Group, tuple[GroupAdvantages, ...]]]  # a stage at a time: one of the tree, or both of whole chains
    every: list[Group]
    gains: list[GroupAdvantages]  # of all groups that can be compared, as the first stage sees them
    spares: tuple[Node, ...]
    place: int


def train(
    bagel: Bagel,
    prompts: Prompts,
    judge: Judge,
    config: TrainConfig,
    out: Path | None = None,
    again: bool = False,
    grow: Expand = expand,
    find: Find | None = None,
    watch: Callable[[], Timer] = Timer,
) -> Iterator[Step]:
    """Train `bagel` in place, yielding a Step per rollout; with `out`, checkpoints and `again` an exact resume.

    After the last step it holds the averaged weights, where an average is kept; adapters are merged into it, and are in
    `out/adapter` on their own. `watch` makes the clock of a step.

    Raises ConfigError for settings that cannot work or a folder that is taken; TrainingError if scores do not agree
    with the sampler before the first update, or steps are skipped again and again; JudgeError if too many verdicts are
    missing.
    """
    config.check()
    if out is not None:
        claim(out, config, bagel, again)
    learner, standing = Learner(bagel, config), TrainState()
    if out is not None and again:
        standing = resume(out, learner)
    bagel.eval()
    if not ended(standing, config):
        seed = seed_of(config.seed, 0)
        with learner.precision():
            probes = [prompts(standing.place + number) for number in range(PROBE)]
            logprob_check.check(logprob_check.mismatches(bagel, probes, config, seed), config.limits)
    while not ended(standing, config):
        clock = watch()
        stage, growths = _growths(config, standing)
        with clock.part("rollout"), learner.precision():
            rollout = _roll_out(bagel, Timed(judge, clock), prompts, config, standing, growths, grow)
        with clock.part("update"):
            page = sft_mix.sft_rows(config.replay, rollout.every, config.seed + REPLAYED, standing.step, find)
            metrics, finite = learner.update(_teachings(rollout, growths), standing.step, clock, page)
        before, standing = standing, _advance(standing, rollout, finite, config)
        metrics |= describe(rollout.every, rollout.gains) | _account(rollout, standing, clock)
        picked = standing.waiting[: config.refine.parents]
        yield Step(before.step, config.steps, stage, metrics, tuple(rollout.every), picked)
        _stop_if_hopeless(standing, rollout, config)
        if out is not None and (standing.step % config.every == 0 or ended(standing, config)):
            save(out, standing, learner)
    learner.graduate(None if out is None else out / "adapter")


# The stage, how to grow it, and which turns of a trace teach it (None: the newest).
Growths = list[tuple[Literal["reason", "refine"], StageRollout, slice | None]]


def _growths(config: TrainConfig, standing: TrainState) -> tuple[str, Growths]:
    """What this step grows: a beat of the tree, or whole chains, whose edits have no siblings told the same."""
    seed = seed_of(config.seed, standing.step, 1)
    begun = config.reason.decided(seed_of(config.seed, standing.step, 4))
    first = StageRollout(begun, begun.sampled(begun.sampling.draw_points, seed), config.reward)
    later = StageRollout(config.refine, config.refine.sampled(config.refine.sampling.edit_points, seed), config.reward)
    if config.tree.kind == "trajectory":
        later = replace(later, stage=replace(later.stage, picture=replace(later.stage.picture, baseline="group")))
        return "trajectory", [("reason", first, slice(0, 1)), ("refine", later, slice(1, None))]
    return ("refine", [("refine", later, None)]) if standing.waiting else ("reason", [("reason", first, None)])


def _roll_out(
    bagel: Bagel,
    judge: Judge,
    prompts: Prompts,
    config: TrainConfig,
    standing: TrainState,
    growths: Growths,
    grow: Expand,
) -> Rollout:
    """Grow this step's groups, and replace those without spread as often as the tree allows."""
    stages = [growth.stage for _, growth, _ in growths]
    place, spares = standing.place, standing.waiting
    kept: list[tuple[Group, tuple[GroupAdvantages, ...]]] = []
    every: list[Group] = []
    compared: list[GroupAdvantages] = []
    wanted = stages[0].parents
    for attempt in range(config.tree.resample + 1):
        if standing.waiting:
            parents, spares = spares[:wanted], spares[wanted:]
        else:
            parents, place = tuple(root(prompts(place + number)) for number in range(wanted)), place + wanted
        if not parents:
            break
        groups = _grown(bagel, judge, parents, config, growths, seed_of(config.seed, standing.step, 2, attempt), grow)
        every += groups
        found = [
            (group, tuple(group_advantages(group, stage) for stage in stages))
            for group in groups
            if len(group.siblings) > 1
        ]
        compared += [each[0] for _, each in found]
        last = attempt == config.tree.resample
        kept += [(group, each) for group, each in found if last or not all(gain.dead for gain in each)]
        wanted = stages[0].parents - len(kept)
        if wanted <= 0 or not any(stage.speaks or stage.picture.on for stage in stages):
            break
    return Rollout(kept, every, compared, spares, place)


def _teachings(rollout: Rollout, growths: Growths) -> list[StageBatch]:
    """What a rollout teaches, stage by stage."""
    groups = [group for group, _ in rollout.kept]
    return [
        StageBatch(
            source, g.stage, g.sampling, loss_rows(groups, [each[n] for _, each in rollout.kept], g.stage, turns)
        )
        for n, (source, g, turns) in enumerate(growths)
    ]


def _grown(
    bagel: Bagel, judge: Judge, parents: Sequence[Node], config: TrainConfig, growths: Growths, seed: int, grow: Expand
) -> list[Group]:
    if config.tree.kind == "trajectory":
        return expand_trajectories(bagel, judge, parents, growths[0][1], growths[1][1], config.tree.depth, seed)
    return grow(bagel, judge, parents, growths[0][1], seed)


def _advance(standing: TrainState, rollout: Rollout, finite: bool, config: TrainConfig) -> TrainState:
    """Where the run stands after a rollout."""
    depth = standing.depth + 1 if standing.waiting else 0
    waiting: list[Node] = []
    if config.tree.kind == "tree" and depth < config.tree.depth:
        count = config.refine.parents * (1 + config.tree.resample)
        waiting = pick(rollout.every, count, config.tree, seed_of(config.seed, standing.step, 3))
    missing = sum(group.missing for group in rollout.every)
    asked = sum(group.missing + len(group.siblings) for group in rollout.every)
    return replace(
        standing,
        step=standing.step + 1,
        place=rollout.place,
        depth=depth,
        waiting=tuple(waiting),
        samples=standing.samples + _samples(rollout.every),
        skipped=standing.skipped + (not finite),
        bad=0 if finite else standing.bad + 1,
        judged=(*standing.judged, (missing, asked))[-config.limits.window :],
    )


def _samples(groups: Sequence[Group]) -> int:
    """Texts and pictures that were sampled from these parents on."""
    pairs = [(node, len(group.parent.trace.turns)) for group in groups for node in group.siblings]
    turns = [turn for node, known in pairs for turn in node.trace.turns[known:]]
    return sum(turn.said is not None for turn in turns) + sum(turn.drew is not None for turn in turns)


def _account(rollout: Rollout, standing: TrainState, clock: Timer) -> dict[str, float]:
    """Counts, and where the time went."""
    total = max(clock.total, 1e-9)
    shares = {f"share_{part}": seconds / total for part, seconds in clock.seconds.items()}
    return shares | {
        "groups": float(len(rollout.kept)),
        "dropped": float(sum(len(group.siblings) < 2 for group in rollout.every)),
        "resampled": float(sum(len(group.siblings) > 1 for group in rollout.every) - len(rollout.kept)),
        "samples": float(standing.samples),
        "skipped": float(standing.skipped),
        "waiting": float(len(standing.waiting)),
        "seconds": total,
        "samples_per_second": _samples(rollout.every) / total,
    }


def _stop_if_hopeless(standing: TrainState, rollout: Rollout, config: TrainConfig) -> None:
    limits = config.limits
    if standing.bad >= limits.bad_steps:
        raise TrainingError(
            f"{standing.bad} steps in a row were skipped: a loss or gradient was not finite, or log-probabilities were "
            "further from the sampler's than --limits allow (mismatch_* in steps.jsonl); lower the learning rates, or "
            "allow more"
        )
    missing, asked = (sum(counts) for counts in zip(*standing.judged, strict=True))
    if missing > limits.missing * asked:
        cause = next((group.cause for group in reversed(rollout.every) if group.cause), "unknown")
        raise JudgeError(
            f"{missing} of {asked} verdicts of the last {len(standing.judged)} steps are missing, more than "
            f"{limits.missing:.0%}; the last cause: {cause}"
        )
