"""The skills behind the loop, one by one, each against the truth of the sticker world.

Drawing (at once, and after a plan), carrying an edit out, deciding between a stop and an edit, naming the right edit,
answering questions, and mending the model's own pictures. A loop cannot be better than these, so lessons and training
are steered by them. Pictures are read by the judge of the world; texts by the parsers that stand beside their writers.
An outcome is None where a prompt was not asked for that skill. Intervals are the benchmark's, over prompts
(`eval/results.py`): all seeds of a prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from triptych.data.annotations import instruction_text, parse_instruction, question_answer
from triptych.data.edits import apply, fix, random_edit, spoil
from triptych.data.language import prompt_text, wording_of
from triptych.data.render import render
from triptych.data.scene import Scene, check
from triptych.eval.statistics import draws, estimate, ratio
from triptych.loop import Policy, play
from triptych.model.config import Sampling
from triptych.model.templates import is_stop, parse_answer, parse_edit
from triptych.rewards.sticker_judge import StickerJudge, WorldJudge
from triptych.trace import Completion, Prompt, Spec, Trace


@runtime_checkable
class ProbePolicy(Policy, Protocol):
    """A policy that also answers."""

    def answer(self, images, questions, sampling, seeds, tell=None) -> list[Completion]: ...


@dataclass(frozen=True)
class ProbeScore:
    """A share of right answers with its bootstrap 95 % interval, and how many there were."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(outcomes: Sequence[bool | None], prompts: Sequence[int], seed: int = 0) -> ProbeScore:
        """Of outcomes and the prompt of each; None is none. No outcome gives nan: nothing was measured."""
        known = [
            (float(outcome), prompt) for outcome, prompt in zip(outcomes, prompts, strict=True) if outcome is not None
        ]
        if not known:
            return ProbeScore(float("nan"), float("nan"), float("nan"), 0)
        values, asked = zip(*known, strict=True)
        _, unit = np.unique(asked, return_inverse=True)
        total, count = np.bincount(unit, values)[:, None], np.bincount(unit)[:, None]
        found = estimate(ratio(draws(len(total), np.random.default_rng(seed)), total, count)[:, 0])
        assert found.value is not None and found.low is not None and found.high is not None
        return ProbeScore(found.value, found.low, found.high, len(known))


def inventory(scene: Scene) -> list[tuple[str, str, str, str]]:
    """What a scene holds, cell by cell: two scenes with one inventory are the same picture to a reader."""
    return sorted((one.cell, one.name, one.color, one.size) for one in scene.stickers)


def editing(
    policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], judge: StickerJudge, sampling: Sampling
) -> list[bool]:
    """Whether an instruction was carried out and nothing else changed; every second one mends a flawed picture."""
    befores, changes = [], []
    for index, (spec, seed) in enumerate(zip(specs, seeds, strict=True)):
        scene = Scene.sample(spec, seed)
        change = None
        if index % 2 == 0:
            scene = spoil(scene, spec, seed, 1)
            change = fix(scene, spec, seed)
        befores.append(scene)
        changes.append(change or random_edit(scene, seed))
    pictures = policy.edit(
        list(render(befores).numpy()), [instruction_text(change) for change in changes], sampling, list(seeds)
    )
    found = judge.scenes([picture.image for picture in pictures])
    wanted = [apply(scene, change, seed) for scene, change, seed in zip(befores, changes, seeds, strict=True)]
    return [inventory(one) == inventory(other) for one, other in zip(found, wanted, strict=True)]


def reflecting(
    policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], sampling: Sampling
) -> dict[str, list[bool | None]]:
    """Half of the pictures are right, half hold one mistake. `stops` on right ones, `edits` on flawed ones, and
    `instructions` that mend a flawed one (a stop there is a wrong instruction); `balanced` is either decision."""
    scenes = [
        Scene.sample(spec, seed) if index % 2 == 0 else spoil(Scene.sample(spec, seed), spec, seed, 1)
        for index, (spec, seed) in enumerate(zip(specs, seeds, strict=True))
    ]
    texts = policy.reflect(_texts(specs), list(render(scenes).numpy()), sampling, list(seeds))
    asked = [parse_edit(text.text) for text in texts]
    return {
        "stops": [None if index % 2 else is_stop(text) for index, text in enumerate(asked)],
        "edits": [not is_stop(text) if index % 2 else None for index, text in enumerate(asked)],
        "instructions": [
            mends(text, scene, spec, seed) if index % 2 else None
            for index, (text, scene, spec, seed) in enumerate(zip(asked, scenes, specs, seeds, strict=True))
        ],
        "balanced": [is_stop(text) != bool(index % 2) for index, text in enumerate(asked)],
    }


def mends(instruction: str, scene: Scene, spec: Spec, seed: int) -> bool:
    """Whether an instruction, carried out to the letter, repairs a failed check and breaks none."""
    change = parse_instruction(instruction)
    if change is None:
        return False
    try:
        after = apply(scene, change, seed)
    except ValueError:
        return False
    before = {one.text.split(":")[0] for one in check(scene, spec) if not one.held}
    left = {one.text.split(":")[0] for one in check(after, spec) if not one.held}
    return left < before


def answering(policy: ProbePolicy, specs: Sequence[Spec], seeds: Sequence[int], sampling: Sampling) -> list[bool]:
    """Whether compositional questions about pictures are answered right, to the word."""
    scenes = [Scene.sample(spec, seed) for spec, seed in zip(specs, seeds, strict=True)]
    pairs = [question_answer(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
    replies = policy.answer(list(render(scenes).numpy()), [question for question, _ in pairs], sampling, list(seeds))
    return [parse_answer(reply.text) == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]


def mending(traces: Sequence[Trace], judge: StickerJudge) -> dict[str, list[bool | None]]:
    """Of the first edits that played traces attempted on their own flawed pictures: those that `improved` the share of
    checks that hold, and those that made the picture `right`."""
    places = [index for index, one in enumerate(traces) if len(one.images) > 1 and one.prompt.spec is not None]
    tried = [traces[place] for place in places]
    before = judge([Trace(trace.prompt, trace.turns[:1]) for trace in tried]) if tried else []
    after = judge([Trace(trace.prompt, trace.turns[:2]) for trace in tried]) if tried else []
    flawed = {
        place: (one.score, other.score)
        for place, one, other in zip(places, before, after, strict=True)
        if one.score < 1
    }
    pairs = [flawed.get(place) for place in range(len(traces))]
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
    batch: int = 70,
    tell: Callable[[str, ProbeScore], None] | None = None,
    judge: StickerJudge | None = None,
) -> dict[str, ProbeScore]:
    """Every skill on prompts with a spec, once per seed; `tell` hears each score as it is known.

    Pictures are read by `judge`, the world's own where None.
    """
    judge = WorldJudge() if judge is None else judge
    scores: dict[str, ProbeScore] = {}

    def note(name: str, outcomes: Sequence[bool | None]) -> None:
        scores[name] = ProbeScore.of(outcomes, [index for _ in seeds for index in range(len(prompts))])
        if tell is not None:
            tell(name, scores[name])

    rows = [(prompt, seed * 10_007 + index) for seed in seeds for index, prompt in enumerate(prompts)]
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    split = [
        ([p for p, _ in part], [p.spec for p, _ in part if p.spec is not None], [s for _, s in part]) for part in parts
    ]
    reflections = [reflecting(policy, specs, numbers, sampling) for _, specs, numbers in split]
    for name in ("stops", "edits", "instructions", "balanced"):
        note(name, [value for part in reflections for value in part[name]])
    note("answers", [value for _, specs, numbers in split for value in answering(policy, specs, numbers, sampling)])
    note("edited", [value for _, specs, numbers in split for value in editing(policy, specs, numbers, judge, sampling)])
    for plan, name in ((False, "at once"), (True, "planned")):
        played = [_last(play(policy, asked, numbers, turns, sampling, plan)) for asked, _, numbers in split]
        traces = [trace for part in played for trace in part]
        for turn in (0, 1, turns) if turns > 1 else range(turns + 1):
            note(
                f"{name}, turn {turn}",
                [v.score == 1.0 for v in judge([Trace(t.prompt, t.turns[: turn + 1]) for t in traces])],
            )
        for kind, outcomes in mending(traces, judge).items():
            note(f"{name}, own flaws {kind}", outcomes)
    return scores


def _last(traces) -> list[Trace]:
    *_, final = traces
    return final


def _texts(specs: Sequence[Spec]) -> list[str]:
    return [prompt_text(spec, wording_of(spec)) for spec in specs]
