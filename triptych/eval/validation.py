"""Watching a run of training: what the model can do on prompts that no reward is given for.

Prompts are those of `suites.rehearsal`, which the prompts of training leave out (no benchmark is used to choose by; of
replayed lessons one in a thousand asks what one of them asks). Each is played with a plan and without. On the model's
own first pictures two more things are asked, as the paper asks them of R3: does the picture fit its prompt (ITA), and
questions about it (VQA). False stops and false edits are counted on a set of pictures that stays the same all along.
Measuring leaves the model and every generator as they were.

Pictures that stay the same all along a run, right ones and flawed ones, to count false stops and false edits on.

Half are rendered; the others are first pictures of the model that the run starts from, drawn once. Both are kept in the
folder of the run (fixed.safetensors), so that every evaluation of it asks about the same pixels.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from triptych.data.annotations import question_answer
from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import ConfigError, OutputError
from triptych.eval.benchmark import run
from triptych.eval.probes import ProbePolicy
from triptych.eval.results import Row
from triptych.eval.suites import rehearsal
from triptych.loop import Policy, play
from triptych.model.templates import is_stop, parse_answer, parse_edit
from triptych.rewards.judge import Judge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.tree import judged
from triptych.trace import Prompt, Spec, Trace, Verdict

MODES = {"planned": True, "at_once": False}  # whether a plan is said first


@dataclass(frozen=True)
class ValidationConfig:
    """What an evaluation measures, and how often. It fixes nothing of a run: a resumed one may change it."""

    every: int = 0  # steps; 0 is never
    prompts: int = 35  # held-out prompts, evenly spread over the kinds; at most 70
    turns: int = 4  # most Reflect-Refine turns
    fixed: int = 35  # rendered pictures that are right, and as many with one mistake; a run keeps its first set
    own: int = 35  # first pictures of the model that the run starts from, drawn once; a run keeps its first set
    seed: int = 0
    batch: int = 35  # traces played at once

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work."""
        if not 1 <= self.prompts <= HELD_OUT or not 0 <= self.own <= HELD_OUT:
            raise ConfigError(
                f"prompts={self.prompts}, own={self.own}: {HELD_OUT} prompts are held out of training; expected 1 to "
                f"{HELD_OUT} prompts and at most as many own pictures: set --evaluate.prompts, --evaluate.own"
            )
        if min(self.every, self.turns, self.fixed, self.seed) < 0 or self.batch < 1:
            raise ConfigError(
                f"every={self.every}, turns={self.turns}, fixed={self.fixed}, seed={self.seed}, batch={self.batch}: "
                "expected 0 or more, and a batch of 1 or more; set --evaluate.every, .turns, .fixed, .seed, .batch"
            )

    def settings(self) -> dict[str, int]:
        """What makes two evaluations of one model the same."""
        return {name: value for name, value in asdict(self).items() if name not in ("every", "batch")}


def evaluate_fixed(
    policy: ProbePolicy, watch: ValidationConfig, sets: Mapping[str, FixedPicture], judge: WorldJudge
) -> dict[str, float]:
    """Everything an evaluation tells, as plain numbers; what could not be measured is left out.

    `planned_right_T` and `planned_score_T` are the share of right pictures and the mean share of checks that hold after
    at most T turns, `at_once_...` the same without a plan. `ita` is the share of own first pictures of which the model
    says rightly whether they fit, `ita_balanced` the mean of that over right and wrong ones, `vqa` the share of
    questions about them answered to the word. `fixed_false_stop` is the share of flawed pictures of a set on which it
    stops, `fixed_false_edit` that of right ones which it would edit.
    """
    found: dict[str, float | None] = {}
    rows, traces = [], []
    with untouched(policy):
        for name, plan in MODES.items():
            some, theirs = _played(policy, watch, judge, plan)
            for turn in range(watch.turns + 1):
                scores = [score for row in some if (score := row.score(turn)) is not None]
                found[f"{name}_right_{turn}"] = _mean([score == 1 for score in scores])
                found[f"{name}_score_{turn}"] = _mean(scores)
            rows, traces = rows + some, traces + theirs
        found |= _agreement(rows, traces)
        found["vqa"] = _mean(_answers(policy, rows, traces, watch, judge))
        for name, known in sets.items():
            found |= _decisions(policy, name, known, watch)
    found["missing"] = float(sum(verdict is None for row in rows for verdict in row.verdicts))
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Validation:
    """evaluations.jsonl of a run: a line per evaluation, each `step` (updates before it), `samples`, `watch` and what
    `measure` tells."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Every line, in the order of steps; a torn one is left out."""
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return sorted(found, key=lambda row: row["step"])

    def has(self, step: int, watch: ValidationConfig, published: bool = False) -> bool:
        """Whether that step was evaluated by the same settings."""
        mine = (step, watch.settings(), published)
        return any((row["step"], row["watch"], row["published"]) == mine for row in self.rows())

    def evaluate(
        self,
        policy: ProbePolicy,
        watch: ValidationConfig,
        sets: Mapping[str, FixedPicture],
        judge: WorldJudge,
        step: int,
        samples: float,
        published: bool = False,
    ) -> dict[str, Any]:
        """Measure and append a line, whole. `published` says that the weights are those that a run hands over."""
        start = time.perf_counter()
        told = evaluate_fixed(policy, watch, sets, judge)
        seconds = time.perf_counter() - start
        head = {"step": step, "samples": samples, "published": published, "watch": watch.settings()}
        row = {**head, **told, "seconds": seconds}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                    file.write(b"\n" if torn else b"")
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; choose another --out") from error
        return row


def line(row: Mapping[str, Any]) -> str:
    """An evaluation in one line, for people; an arrow leads from the first picture to that after the last turn."""
    last = row["watch"]["turns"]

    def shown(name: str) -> str:
        return f"{row[name]:.2f}" if name in row else "-"

    def pair(name: str) -> str:
        return f"{shown(f'{name}_0')}→{shown(f'{name}_{last}')}" if last else shown(f"{name}_0")

    parts = [f"{mode.replace('_', ' ')} right {pair(f'{mode}_right')} V {pair(f'{mode}_score')}" for mode in MODES]
    parts.append(f"ITA {shown('ita')} (balanced {shown('ita_balanced')})  VQA {shown('vqa')}")
    for name, title in (("fixed", "false stops"), ("own", "on own")):
        parts.append(f"{title} {shown(f'{name}_false_stop')} edits {shown(f'{name}_false_edit')}")
    missing = f"  missing {row['missing']:.0f}" if row["missing"] else ""
    return f"{row['step']:>6} held out   " + "  ".join(parts) + missing


def _played(
    policy: ProbePolicy, watch: ValidationConfig, judge: WorldJudge, plan: bool
) -> tuple[list[Row], list[Trace]]:
    """Held-out prompts with their rows and finished traces, in one order."""
    traces: list[Trace] = []

    def keeping(*arguments: Any, **settings: Any) -> Iterator[list[Trace]]:
        beat: list[Trace] = []
        for beat in play(*arguments, **settings):
            yield beat
        traces.extend(beat)

    held_out = rehearsal(HELD_OUT).thinned(watch.prompts)
    rows = run(held_out, policy, judge, watch.turns, (watch.seed,), None, plan, watch.batch, play=keeping)
    return list(rows), traces


def _agreement(rows: Sequence[Row], traces: Sequence[Trace]) -> dict[str, float | None]:
    """Whether the first reflection says of its picture what the judge says."""
    pairs = [
        (score == 1, trace.turns[1].drew is None)
        for row, trace in zip(rows, traces, strict=True)
        if len(trace.turns) > 1 and (score := row.score(0)) is not None
    ]
    sides = [_mean([stopped == right for right, stopped in pairs if right is side]) for side in (True, False)]
    both = None if None in sides else sum(side for side in sides if side is not None) / 2
    return {"ita": _mean([right == stopped for right, stopped in pairs]), "ita_balanced": both}


def _answers(
    policy: ProbePolicy, rows: Sequence[Row], traces: Sequence[Trace], watch: ValidationConfig, judge: WorldJudge
) -> list[bool]:
    """Whether a question about each own first picture is answered to the word; the judge's eyes tell the truth."""
    pictures = [trace.images[0] for row, trace in zip(rows, traces, strict=True) if row.score(0) is not None]
    scenes = judge.scenes(pictures) if pictures else []
    pairs = [question_answer(scene, watch.seed + index) for index, scene in enumerate(scenes)]
    replies = []
    for part in _parts(len(pairs), watch.batch):
        asked = [question for question, _ in pairs[part]]
        seeds = list(range(watch.seed, watch.seed + len(pairs)))[part]
        replies += policy.answer(pictures[part], asked, policy.config.sampling, seeds)
    return [parse_answer(reply.text) == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]


def _decisions(policy: ProbePolicy, name: str, known: FixedPicture, watch: ValidationConfig) -> dict[str, float | None]:
    """False stops and false edits on a set of pictures."""
    stopped: list[bool] = []
    for part in _parts(len(known.right), watch.batch):
        asked = [prompt.text for prompt in known.prompts[part]]
        seeds = list(range(watch.seed, watch.seed + len(known.right)))[part]
        said = policy.reflect(asked, list(known.pictures[part]), policy.config.sampling, seeds)
        stopped += [is_stop(parse_edit(one.text)) for one in said]
    pairs = list(zip(stopped, known.right, strict=True))
    return {
        f"{name}_false_stop": _mean([stop for stop, right in pairs if not right]),
        f"{name}_false_edit": _mean([not stop for stop, right in pairs if right]),
        f"{name}_right": float(sum(known.right)),
        f"{name}_flawed": float(len(pairs) - sum(known.right)),
    }


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


HELD_OUT = 70  # rehearsal prompts, which the prompts of training leave out


@dataclass(frozen=True, eq=False)
class FixedPicture:
    """Pictures `[picture height width 3] uint8`, each with the prompt it was made for and whether it is right."""

    prompts: tuple[Prompt, ...]
    pictures: np.ndarray
    right: tuple[bool, ...]


def rendered(count: int, seed: int = 0) -> FixedPicture:
    """`count` right pictures and `count` with one mistake each, in turn, of held-out specs."""
    prompts, images, right = [], [], []
    held_out = rehearsal(HELD_OUT).prompts
    for index in range(2 * count):
        prompt = held_out[index % HELD_OUT]
        assert prompt.spec is not None
        scene = Scene.sample(prompt.spec, seed + index)
        flawed = index % 2 == 1
        images.append(render_array(spoil(scene, prompt.spec, seed + index, 1) if flawed else scene))
        prompts.append(prompt)
        right.append(not flawed)
    return FixedPicture(tuple(prompts), _stacked(images), tuple(right))


def drawn(policy: Policy, count: int, judge: Judge, seed: int = 0, batch: int = 35) -> FixedPicture:
    """Planned first pictures of a policy for `count` held-out prompts; what the judge cannot tell is left out."""
    held_out = rehearsal(HELD_OUT).thinned(count).prompts if count else ()
    traces = []
    for start in range(0, len(held_out), batch):
        asked = held_out[start : start + batch]
        (beat,) = play(policy, asked, [seed] * len(asked), turns=0)
        traces += beat
    verdicts = judged(judge, traces, [None] * len(traces))
    told = [(trace, one.score == 1) for trace, one in zip(traces, verdicts, strict=True) if isinstance(one, Verdict)]
    images = [trace.images[0] for trace, _ in told]
    return FixedPicture(tuple(trace.prompt for trace, _ in told), _stacked(images), tuple(right for _, right in told))


def fixed_set(
    path: Path, policy: Policy, judge: Judge, count: int, own: int, seed: int, batch: int
) -> dict[str, FixedPicture]:
    """The sets "fixed" (rendered, `count` of each kind) and "own" (`own` pictures of `policy`) that `path` keeps.

    What it holds already is taken as it is. Raises OutputError if it cannot be written or read.
    """
    if path.exists():
        return _read(path)
    with untouched(policy):
        sets = {"fixed": rendered(count, seed), "own": drawn(policy, own, judge, seed, batch)}
    _write(path, sets)
    return sets


@contextmanager
def untouched(policy: Any) -> Iterator[None]:
    """Leave torch's generators, and the mode of every module of `policy`, as they were."""
    modules = list(policy.modules()) if isinstance(policy, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _write(path: Path, sets: Mapping[str, FixedPicture]) -> None:
    told = {"sets": json.dumps({name: _records(known) for name, known in sets.items()})}  # one key: the same bytes
    aside = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.from_numpy(known.pictures) for name, known in sets.items()}, aside, told)
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _records(known: FixedPicture) -> list[dict[str, Any]]:
    return [
        {"text": prompt.text, "spec": None if prompt.spec is None else prompt.spec.to_metadata(), "right": right}
        for prompt, right in zip(known.prompts, known.right, strict=True)
    ]


def _read(path: Path) -> dict[str, FixedPicture]:
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("sets", "{}"))
            pictures = {name: file.get_tensor(name).numpy() for name in told}
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be read ({error}); remove it, and the same pictures are drawn again by --resume"
        ) from error
    return {name: _known(records, pictures[name]) for name, records in told.items()}


def _known(records: Sequence[Mapping[str, Any]], pictures: np.ndarray) -> FixedPicture:
    specs = [None if one["spec"] is None else Spec.from_metadata(one["spec"]) for one in records]
    prompts = tuple(Prompt(one["text"], spec) for one, spec in zip(records, specs, strict=True))
    return FixedPicture(prompts, pictures, tuple(bool(one["right"]) for one in records))


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
