"""Tree-RL (arXiv 2602.15772, section 4): expand a stage, reward it, compare siblings, update, pick parents.

`train` yields a Step per rollout; printing, evaluating and plotting belong to whoever listens. One step, in order:

    parents      prompts, or the pictures that the last step picked
    tree         a group of siblings per parent, each with its stage-wise rewards
    advantages   rewards minus the mean of their group
    learner      GRPO on texts, FlowGRPO on pictures, then the SFT mix
    tree.pick    parents of the next Refine stage
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.data.specs import Prompts
from triptych.errors import JudgeError, JudgeUnavailableError, TrainingError
from triptych.model.bagel import Bagel
from triptych.rewards.judge import Judge
from triptych.rl import logprob_check, sft_mix, train_state, tree
from triptych.rl.advantages import GroupAdvantages, group_advantages, loss_rows
from triptych.rl.config import StageConfig, TrainConfig
from triptych.rl.learner import Learner, StageBatch
from triptych.rl.logprob_check import Stages
from triptych.rl.metrics import TimedJudge, Timer, describe
from triptych.rl.train_state import TrainState
from triptych.rl.tree import Expand, Group, Node, StageRollout
from triptych.seeds import SFT_MIX_SEED, derive
from triptych.sft.self_generated import DetectScenes
from triptych.signals import held

CHECK_PROMPTS = 2  # of the log-probability check before step 0
MISSING_WINDOW = 20  # newest steps over which missing verdicts are counted: one bad step of a server stops no run

# The seed of each random choice of a step is derive(seed, step, PURPOSE); adapters have 4 without a step (learner.py).
SDE_STEPS, ROLLOUT, PARENTS, PLAN = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Step:
    """One rollout and the update on it. `stage` is reason, refine or trajectory; metrics are plain numbers.

    `picked` are the pictures that the next stage starts from, in the order of their turn; spares are left out.
    """

    index: int
    total: int
    stage: str
    metrics: dict[str, float]
    groups: tuple[Group, ...]
    picked: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Rollout:
    """The groups of a step. `kept` are those to learn from, each with its advantages in every stage: one stage of the
    tree, or both of whole chains."""

    kept: list[tuple[Group, tuple[GroupAdvantages, ...]]]
    groups: list[Group]  # all of them, those that were replaced or cannot be compared too
    advantages: list[GroupAdvantages]  # of all groups that can be compared, in the first stage
    spares: tuple[Node, ...]  # parents that are left
    prompt_index: int


def train(
    bagel: Bagel,
    prompts: Prompts,
    judge: Judge,
    config: TrainConfig,
    out: Path | None = None,
    resume: bool = False,
    expand: Expand = tree.expand,
    detect: DetectScenes | None = None,
    make_timer: Callable[[], Timer] = Timer,
) -> Generator[Step, None, None]:
    """Train `bagel` in place, yielding a Step per rollout; with `out`, checkpoints and with `resume` an exact resume.

    `expand` stands for `tree.expand`, so that other machines can do it. `detect` reads scenes off the model's own
    pictures for the SFT mix. After the last step `bagel` holds the averaged weights, where an average is kept; adapters
    are merged into it, and are in `out/adapter` on their own.

    After a KeyboardInterrupt, its own or one that is thrown into it, the state of the last whole step is saved first.
    Signals wait for the end of an update that has begun (signals.py).

    Raises ConfigError for settings that cannot work or a folder that is taken; TrainingError if log-probabilities do
    not agree with the sampler before the first update, or steps are skipped again and again; JudgeError if too many
    verdicts are missing.
    """
    config.check()
    if out is not None:
        train_state.claim(out, config, bagel, resume)
    learner, state = Learner(bagel, config), TrainState()
    if out is not None and resume:
        state = train_state.restore(out, learner)
    bagel.eval()
    if not state.ended(config):
        with learner.precision():
            some = [prompts(state.prompt_index + number) for number in range(CHECK_PROMPTS)]
            mismatches = logprob_check.mismatches(bagel, some, config, derive(config.seed, 0))
        logprob_check.check_mismatches(mismatches, config.limits)
    while not state.ended(config):
        timer, is_whole = make_timer(), True
        name, stages = _stages(config, state)
        try:
            with timer.part("rollout"), learner.precision():
                rollout = _roll_out(bagel, TimedJudge(judge, timer), prompts, config, state, stages, expand)
            with held() as deliver:
                is_whole = False  # from the first weight that moves to the last
                with timer.part("update"):
                    seed = config.seed + SFT_MIX_SEED
                    batch = sft_mix.sft_rows(config.sft_mix, rollout.groups, seed, state.step, detect)
                    metrics, finite = learner.update(_batches(rollout, stages, config), state.step, timer, batch)
                index, state = state.step, _advance(state, rollout, finite, config)
                is_whole = True
            metrics |= describe(rollout.groups, rollout.advantages) | _counts(rollout, state, timer)
            parents = state.parents[: config.refine.parents]
            yield Step(index, config.steps, name, metrics, tuple(rollout.groups), parents)
            deliver()  # only now, so that the listener has heard of the step
        except (JudgeUnavailableError, KeyboardInterrupt):
            if out is not None and is_whole:  # a second signal may have cut an update
                train_state.save_state(out, state, learner)
            raise
        _stop_if_hopeless(state, rollout, config)
        if out is not None and (state.step % config.save_every == 0 or state.ended(config)):
            train_state.save_state(out, state, learner)
    learner.merge_for_release(None if out is None else out / "adapter")


def _stages(config: TrainConfig, state: TrainState) -> tuple[str, Stages]:
    """What this step rolls out: a beat of the tree, or whole chains."""
    seed, rule = derive(config.seed, state.step, SDE_STEPS), config.reward

    def rollout(stage: StageConfig) -> StageRollout:
        return StageRollout(stage, stage.sampling.resolve(stage.sample_sde_indices(seed)), rule)

    first = rollout(config.reason.sample_variant(derive(config.seed, state.step, PLAN)))
    later = rollout(config.refine)
    if config.tree.kind == "trajectory":  # chains meet different pictures: no two edits of a group share a text
        later = replace(later, stage=replace(later.stage, picture=replace(later.stage.picture, baseline="group")))
        return "trajectory", [("reason", first, slice(0, 1)), ("refine", later, slice(1, None))]
    return ("refine", [("refine", later, None)]) if state.parents else ("reason", [("reason", first, None)])


def _roll_out(
    bagel: Bagel, judge: Judge, prompts: Prompts, config: TrainConfig, state: TrainState, stages: Stages, expand: Expand
) -> Rollout:
    """This step's groups; those without differing rewards are replaced as often as the tree allows."""
    settings = [rollout.stage for _, rollout, _ in stages]
    result = Rollout([], [], [], state.parents, state.prompt_index)
    missing = settings[0].parents
    for attempt in range(config.tree.resample + 1):
        spares, index = result.spares, result.prompt_index
        if state.parents:
            parents, spares = spares[:missing], spares[missing:]
        else:
            parents, index = tuple(tree.root(prompts(index + number)) for number in range(missing)), index + missing
        result = replace(result, spares=spares, prompt_index=index)
        if not parents:
            break
        seed = derive(config.seed, state.step, ROLLOUT, attempt)
        groups = _expand(bagel, judge, parents, config, stages, seed, expand)
        compared = [(g, tuple(group_advantages(g, one) for one in settings)) for g in groups if len(g.siblings) > 1]
        result.groups.extend(groups)
        result.advantages.extend(each[0] for _, each in compared)
        last = attempt == config.tree.resample
        result.kept.extend((g, each) for g, each in compared if last or not all(one.dead for one in each))
        missing = settings[0].parents - len(result.kept)
        if missing <= 0 or not any(stage.trains_text or stage.picture.train for stage in settings):
            break
    return result


def _expand(
    bagel: Bagel, judge: Judge, parents: Sequence[Node], config: TrainConfig, stages: Stages, seed: int, expand: Expand
) -> list[Group]:
    rollouts = [rollout for _, rollout, _ in stages]
    if config.tree.kind == "trajectory":
        return tree.expand_trajectories(bagel, judge, parents, rollouts[0], rollouts[1], config.tree.depth, seed)
    return expand(bagel, judge, parents, rollouts[0], seed)


def _batches(rollout: Rollout, stages: Stages, config: TrainConfig) -> list[StageBatch]:
    """What each stage learns from a rollout."""
    groups, batches = [group for group, _ in rollout.kept], []
    for number, (name, one, turns) in enumerate(stages):
        advantages = [each[number] for _, each in rollout.kept]
        rows = loss_rows(groups, advantages, one.stage, turns, config.tree.balance)
        batches.append(StageBatch(name, one.stage, one.sampling, rows))
    return batches


def _advance(state: TrainState, rollout: Rollout, finite: bool, config: TrainConfig) -> TrainState:
    """The state after a rollout and its update."""
    depth = state.depth + 1 if state.parents else 0
    parents: list[Node] = []
    if config.tree.kind == "tree" and depth < config.tree.depth:
        count = config.refine.parents * (1 + config.tree.resample)
        parents = tree.pick(rollout.groups, count, config.tree, derive(config.seed, state.step, PARENTS))
    missing = sum(group.missing for group in rollout.groups)
    asked = sum(group.missing + len(group.siblings) for group in rollout.groups)
    return replace(
        state,
        step=state.step + 1,
        prompt_index=rollout.prompt_index,
        depth=depth,
        parents=tuple(parents),
        samples=state.samples + _samples(rollout.groups),
        skipped=state.skipped + (not finite),
        skipped_in_a_row=0 if finite else state.skipped_in_a_row + 1,
        verdicts=(*state.verdicts, (missing, asked))[-MISSING_WINDOW:],
    )


def _samples(groups: Sequence[Group]) -> int:
    """Texts and pictures that were sampled from these parents on."""
    pairs = [(node, len(group.parent.trace.turns)) for group in groups for node in group.siblings]
    turns = [turn for node, older in pairs for turn in node.trace.turns[older:]]
    return sum(turn.said is not None for turn in turns) + sum(turn.drew is not None for turn in turns)


def _counts(rollout: Rollout, state: TrainState, timer: Timer) -> dict[str, float]:
    """Counts, and where the time went."""
    total = max(timer.total, 1e-9)
    compared = sum(len(group.siblings) > 1 for group in rollout.groups)
    return {f"share_{part}": seconds / total for part, seconds in timer.seconds.items()} | {
        "groups": float(len(rollout.kept)),
        "dropped": float(len(rollout.groups) - compared),
        "resampled": float(compared - len(rollout.kept)),
        "samples": float(state.samples),
        "skipped": float(state.skipped),
        "waiting": float(len(state.parents)),
        "seconds": total,
        "samples_per_second": _samples(rollout.groups) / total,
    }


def _stop_if_hopeless(state: TrainState, rollout: Rollout, config: TrainConfig) -> None:
    if state.skipped_in_a_row >= config.limits.bad_steps:
        raise TrainingError(
            f"{state.skipped_in_a_row} steps in a row were skipped: a loss or gradient was not finite, or "
            "log-probabilities were further from the sampler's than --limits allow (mismatch_* in steps.jsonl); lower "
            "the learning rates, or allow more"
        )
    missing, asked = (sum(counts) for counts in zip(*state.verdicts, strict=True))
    if missing > config.limits.missing * asked:
        cause = next((group.cause for group in reversed(rollout.groups) if group.cause), "unknown")
        raise JudgeError(
            f"{missing} of {asked} verdicts of the last {len(state.verdicts)} steps are missing, more than "
            f"{config.limits.missing:.0%}; the last cause: {cause}"
        )
