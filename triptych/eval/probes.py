"""Probes: the skills behind the loop, one by one, each against the truth of the sticker world.

Drawing (one-shot, and after a plan), carrying out an edit, deciding between a stop and an edit, naming the right edit,
answering questions, and mending the model's own pictures. A loop cannot be better than these, so SFT and RL are steered
by them. Pictures are read by a sticker judge; texts by the parsers that stand beside their writers. An outcome is None
where a prompt does not test that skill. Intervals are those of `statistics.bootstrap` with prompts as clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from triptych.data.annotations import instruction_text, parse_instruction, question_answer
from triptych.data.edits import apply, fix, random_edit, spoil
from triptych.data.language import prompt_text, wording_of
from triptych.data.render import render
from triptych.data.scene import Scene, check
from triptych.eval.statistics import ClusterSums, bootstrap, estimate
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.model.templates import is_stop, parse_answer, parse_edit
from triptych.rewards.sticker_judge import StickerJudge, WorldJudge
from triptych.seeds import STRIDE
from triptych.trace import Completion, Prompt, Spec, Trace


@runtime_checkable
class ProbePolicy(Policy, Protocol):
    """A policy that also answers."""

    def answer(self, images, questions, sampling, seeds, on_text=None) -> list[Completion]: ...


@dataclass(frozen=True)
class ProbeScore:
    """A share of right answers with its bootstrap 95 % interval, and how many there were."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(outcomes: Sequence[bool | None], prompts: Sequence[int], seed: int = 0) -> ProbeScore:
        """Of outcomes, each with its prompt; None is left out. Without an outcome all is NaN: nothing was measured."""
        # A fixed order of clusters: the seed gives the same draws in whatever order outcomes come.
        pairs = sorted(zip(prompts, outcomes, strict=True), key=lambda pair: pair[0])
        known = [(prompt, [float(outcome)], [1.0]) for prompt, outcome in pairs if outcome is not None]
        share = estimate(bootstrap({"": ClusterSums.of(known, 1)}, seed)[""][:, 0])
        if share.value is None or share.low is None or share.high is None:
            return ProbeScore(float("nan"), float("nan"), float("nan"), 0)
        return ProbeScore(share.value, share.low, share.high, len(known))


def inventory(scene: Scene) -> list[tuple[str, str, str, str]]:
    """What a scene holds, cell by cell: two scenes with one inventory are the same picture to a reader.

    Positions within a cell do not count: a model that redraws a sticker puts it some pixels beside.
    """
    return sorted((sticker.cell, sticker.name, sticker.color, sticker.size) for sticker in scene.stickers)


def edit_outcomes(
    policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], judge: StickerJudge, sampling: Sampling
) -> list[bool]:
    """Whether an instruction was carried out and nothing else changed; every second one mends a flawed picture."""
    scenes, changes = [], []
    for index, (spec, seed) in enumerate(zip(specs, seeds, strict=True)):
        scene, change = Scene.sample(spec, seed), None
        # Edits of the loop mend a mistake; the others show whether any instruction is followed.
        if index % 2 == 0:
            scene = spoil(scene, spec, seed, 1)
            change = fix(scene, spec, seed)
        scenes.append(scene)
        changes.append(change or random_edit(scene, seed))
    instructions = [instruction_text(change) for change in changes]
    drawings = policy.edit(list(render(scenes).numpy()), instructions, sampling, list(seeds))
    results = judge.scenes([drawing.image for drawing in drawings])
    targets = [apply(scene, change, seed) for scene, change, seed in zip(scenes, changes, seeds, strict=True)]
    return [inventory(result) == inventory(target) for result, target in zip(results, targets, strict=True)]


def reflection_outcomes(
    policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], sampling: Sampling
) -> dict[str, list[bool | None]]:
    """Half of the pictures are right, half hold one mistake. `stops` on right ones, `edits` on flawed ones, and
    `instructions` that mend a flawed one (a stop there is a wrong instruction); `balanced` is either decision."""
    scenes = [
        Scene.sample(spec, seed) if index % 2 == 0 else spoil(Scene.sample(spec, seed), spec, seed, 1)
        for index, (spec, seed) in enumerate(zip(specs, seeds, strict=True))
    ]
    texts = [prompt_text(spec, wording_of(spec)) for spec in specs]  # in the wording in which the model learned them
    reflections = policy.reflect(texts, list(render(scenes).numpy()), sampling, list(seeds))
    instructions = [parse_edit(reflection.text) for reflection in reflections]
    return {
        "stops": [None if index % 2 else is_stop(text) for index, text in enumerate(instructions)],
        "edits": [not is_stop(text) if index % 2 else None for index, text in enumerate(instructions)],
        "instructions": [
            mends(text, scene, spec, seed) if index % 2 else None
            for index, (text, scene, spec, seed) in enumerate(zip(instructions, scenes, specs, seeds, strict=True))
        ],
        # Right and flawed ones in halves: this share is the balanced accuracy, .5 for who always stops.
        "balanced": [is_stop(text) != bool(index % 2) for index, text in enumerate(instructions)],
    }


def mends(instruction: str, scene: Scene, spec: Spec, seed: int) -> bool:
    """Whether an instruction, carried out to the letter, repairs a failed check and breaks none."""
    change = parse_instruction(instruction)
    if change is None:
        return False
    try:
        edited = apply(scene, change, seed)
    except ValueError:  # nothing of that kind is where the instruction says
        return False
    # Before the colon stands the check, after it what was seen, which an edit may change without mending it.
    before = {fact.text.split(":")[0] for fact in check(scene, spec) if not fact.held}
    after = {fact.text.split(":")[0] for fact in check(edited, spec) if not fact.held}
    return after < before


def answer_outcomes(policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], sampling: Sampling) -> list[bool]:
    """Whether compositional questions about pictures are answered right, to the word."""
    scenes = [Scene.sample(spec, seed) for spec, seed in zip(specs, seeds, strict=True)]
    pairs = [question_answer(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
    replies = policy.answer(list(render(scenes).numpy()), [question for question, _ in pairs], sampling, list(seeds))
    return [parse_answer(reply.text) == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]


def first_edit_outcomes(traces: Sequence[Trace], judge: StickerJudge) -> dict[str, list[bool | None]]:
    """Of the first edits that played traces attempted on their own flawed pictures: those that `improved` the share of
    checks that hold, and those that made the picture `right`."""
    edited = [index for index, trace in enumerate(traces) if len(trace.images) > 1 and trace.prompt.spec is not None]
    pairs: list[tuple[float, float] | None] = [None] * len(traces)
    if edited:
        first, second = (judge([Trace(traces[i].prompt, traces[i].turns[:turns]) for i in edited]) for turns in (1, 2))
        for index, before, after in zip(edited, first, second, strict=True):
            if before.score < 1:  # a right picture has nothing to mend
                pairs[index] = (before.score, after.score)
    return {
        "improved": [None if pair is None else pair[1] > pair[0] for pair in pairs],
        "right": [None if pair is None else pair[1] == 1.0 for pair in pairs],
    }


def run_probes(
    policy: ProbePolicy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
    turns: int = 4,
    batch_size: int = 70,  # the dev set in one batch
    on_score: Callable[[str, ProbeScore], None] | None = None,
    judge: StickerJudge | None = None,
) -> dict[str, ProbeScore]:
    """Every skill on prompts with a spec, once per seed; `on_score` is called with each score.

    Pictures are read by `judge`, the world's own where None.
    """
    judge = WorldJudge(strangers=False) if judge is None else judge
    scores: dict[str, ProbeScore] = {}

    def record(name: str, outcomes: Sequence[bool | None]) -> None:
        scores[name] = ProbeScore.of(outcomes, [index for _ in seeds for index in range(len(prompts))])
        if on_score is not None:
            on_score(name, scores[name])

    # A prompt has another seed under every seed of the probes, and no two prompts share one.
    rows = [(prompt, seed * STRIDE["probes"] + index) for seed in seeds for index, prompt in enumerate(prompts)]
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    batches = [
        ([p for p, _ in part], [p.spec for p, _ in part if p.spec is not None], [s for _, s in part]) for part in parts
    ]
    reflections = [reflection_outcomes(policy, specs, numbers, sampling) for _, specs, numbers in batches]
    for name in ("stops", "edits", "instructions", "balanced"):
        record(name, [value for part in reflections for value in part[name]])
    record(
        "answers",
        [value for _, specs, numbers in batches for value in answer_outcomes(policy, specs, numbers, sampling)],
    )
    record(
        "edited",
        [value for _, specs, numbers in batches for value in edit_outcomes(policy, specs, numbers, judge, sampling)],
    )
    for plan, name in ((False, "one-shot"), (True, "planned")):
        traces: list[Trace] = []
        for own, _, numbers in batches:
            *_, final = play(policy, own, numbers, turns, sampling, plan)
            traces += final
        # The first picture, the first edit and the last: the turns between tell little more, and each costs a reading.
        for turn in (0, 1, turns) if turns > 1 else range(turns + 1):
            verdicts = judge([Trace(trace.prompt, trace.turns[: turn + 1]) for trace in traces])
            record(f"{name}, turn {turn}", [verdict.score == 1.0 for verdict in verdicts])
        for kind, outcomes in first_edit_outcomes(traces, judge).items():
            record(f"{name}, own flaws {kind}", outcomes)
    return scores
