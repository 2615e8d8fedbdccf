"""Validation of a training run: what the model can do on prompts that no reward is given for.

Prompts are those of `suites.dev_set`, which the prompts of RL leave out and no benchmark holds (of the SFT mix one
prompt in a thousand asks what one of them asks), or the held-out share of a user's file. Each is played with a plan and
without. On the model's own first pictures two more things are asked, as the paper asks them of R3: does the picture fit
its prompt (ITA), and questions about it (VQA).

False stops and false edits are counted on pictures that stay the same all along a run, right ones and flawed ones. Half
are rendered; the others are first pictures of the model that the run starts from, drawn once. Both are kept in the
folder of the run (fixed.safetensors), so that every validation asks about the same pixels. Validating leaves the model
and every generator as they were.

Of an open world there are no rendered pictures, and VQA needs a judge that says what it sees: both are left out there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from triptych.bounds import NonNegativeInt, PositiveInt
from triptych.data.annotations import question_answer
from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import OutputError
from triptych.eval.benchmark import Benchmark, picture_verdicts, run_benchmark
from triptych.eval.probes import ProbePolicy
from triptych.eval.results import Row
from triptych.eval.suites import dev_set
from triptych.files import JsonLog, write_bytes
from triptych.loop import Policy, play
from triptych.model.templates import is_stop, parse_answer, parse_edit
from triptych.rewards.judge import Judge
from triptych.rewards.sticker_judge import StickerJudge
from triptych.trace import Prompt, Spec, Trace

HELD_OUT = 70  # prompts of the dev set, which the prompts of training leave out
MODES = {"planned": True, "one_shot": False}  # whether there is a plan
_OLD_MODE = "at_once"  # 0.1's name of one_shot, in evaluations.jsonl


@dataclass(frozen=True)
class ValidationConfig:
    """What a validation measures, and how often. It fixes nothing of a run: a resumed one may change it."""

    # 35 prompts: half of the dev set. One of them is .03 of a share (LOG.md E23).
    every: NonNegativeInt = 0  # steps; 0 is never
    prompts: PositiveInt = 35  # held-out prompts at most, evenly spread over the kinds
    turns: NonNegativeInt = 4  # most Reflect-Refine turns
    fixed: NonNegativeInt = 35  # rendered pictures that are right, and as many with one mistake
    own: NonNegativeInt = 35  # first pictures at most of the model that the run starts from
    seed: NonNegativeInt = 0
    batch: PositiveInt = 35  # traces played at once

    def settings(self) -> dict[str, int]:
        """What makes two validations of one model the same."""
        return {name: value for name, value in asdict(self).items() if name not in ("every", "batch")}


@dataclass(frozen=True, eq=False)
class FixedSet:
    """Pictures, each with the prompt it was made for and whether it is right."""

    prompts: tuple[Prompt, ...]
    pictures: UInt8[np.ndarray, "picture height width 3"]
    right: tuple[bool, ...]

    @staticmethod
    def of(members: Sequence[tuple[Prompt, np.ndarray, bool]]) -> FixedSet:
        pictures = np.stack([picture for _, picture, _ in members]) if members else np.zeros((0, 1, 1, 3), np.uint8)
        return FixedSet(tuple(prompt for prompt, _, _ in members), pictures, tuple(right for _, _, right in members))

    @staticmethod
    def rendered(count: int, seed: int = 0) -> FixedSet:
        """`count` right pictures and `count` with one mistake each, in turn, of held-out specs."""
        members = []
        for index in range(2 * count):
            prompt, right = dev_set(HELD_OUT).prompts[index % HELD_OUT], index % 2 == 0
            assert prompt.spec is not None
            scene = Scene.sample(prompt.spec, seed + index)  # prompts repeat after HELD_OUT, scenes do not
            picture = render_array(scene if right else spoil(scene, prompt.spec, seed + index, 1))
            members.append((prompt, picture, right))
        return FixedSet.of(members)

    @staticmethod
    def self_generated(
        policy: Policy, count: int, judge: Judge, seed: int = 0, batch: int = 35, held_out: Benchmark | None = None
    ) -> FixedSet:
        """Planned first pictures of a policy for `count` held-out prompts, without those that the judge cannot read."""
        prompts = (held_out or dev_set(HELD_OUT)).thinned(count).prompts if count else ()
        traces: list[Trace] = []
        for part in _parts(len(prompts), batch):
            (beat,) = play(policy, prompts[part], [seed] * len(prompts[part]), turns=0)  # one beat: Reason
            traces += beat
        pairs = zip(traces, picture_verdicts(judge, traces), strict=True)
        return FixedSet.of(
            [(trace.prompt, trace.images[0], verdict.score == 1) for trace, (verdict,) in pairs if verdict is not None]
        )


# --- measures ---------------------------------------------------------------------------------------------------------


def validate(
    policy: ProbePolicy,
    config: ValidationConfig,
    sets: Mapping[str, FixedSet],
    judge: Judge,
    held_out: Benchmark | None = None,
) -> dict[str, float]:
    """The measures of a validation, as plain numbers; what could not be measured is left out.

    `planned_right_T` and `planned_score_T` are the share of right pictures and the mean share of checks that hold after
    at most T turns, `one_shot_...` the same without a plan. `ita` is the share of own first pictures of which the model
    says rightly whether they fit, `ita_balanced` the mean of that over right and wrong ones, `vqa` the share of
    questions about them answered to the word. `fixed_false_stop` is the share of flawed pictures of a set on which it
    stops, `fixed_false_edit` that of right ones which it would edit.
    """
    measures: dict[str, float | None] = {}
    rows: list[Row] = []
    traces: list[Trace] = []
    with preserved_state(policy):
        for mode, plan in MODES.items():
            mode_rows, mode_traces = _play(policy, config, judge, plan, held_out or dev_set(HELD_OUT))
            for turn in range(config.turns + 1):
                scores = [score for row in mode_rows if (score := row.score(turn)) is not None]
                measures[f"{mode}_right_{turn}"] = _mean([score == 1 for score in scores])
                measures[f"{mode}_score_{turn}"] = _mean(scores)
            rows, traces = rows + mode_rows, traces + mode_traces
        measures |= _alignment(rows, traces)
        if hasattr(judge, "scenes"):  # a StickerJudge: only it says what a picture shows
            measures["vqa"] = _mean(_answers(policy, rows, traces, config, cast(StickerJudge, judge)))
        for name, pictures in sets.items():
            measures |= _decisions(policy, name, pictures, config)
    measures["missing"] = float(sum(verdict is None for row in rows for verdict in row.verdicts))
    return {name: value for name, value in measures.items() if value is not None}


def _play(
    policy: ProbePolicy, config: ValidationConfig, judge: Judge, plan: bool, held_out: Benchmark
) -> tuple[list[Row], list[Trace]]:
    """Held-out prompts with their rows and finished traces, in one order."""
    traces: list[Trace] = []

    # Rows have no pixels; ITA and VQA are asked about the pictures of these traces.
    def collecting_play(*arguments: Any, **settings: Any) -> Iterator[list[Trace]]:
        beat: list[Trace] = []
        for beat in play(*arguments, **settings):
            yield beat
        traces.extend(beat)

    prompts = held_out.thinned(config.prompts)
    settings = (config.turns, (config.seed,), None, plan, config.batch)  # sampling is the model's own
    rows = list(run_benchmark(prompts, policy, judge, *settings, play=collecting_play))
    return rows, traces


def _alignment(rows: Sequence[Row], traces: Sequence[Trace]) -> dict[str, float | None]:
    """Whether the first reflection says of its picture what the judge says."""
    pairs = [
        (score == 1, trace.turns[1].drew is None)  # a stop draws nothing
        for row, trace in zip(rows, traces, strict=True)
        if len(trace.turns) > 1 and (score := row.score(0)) is not None
    ]
    on_right = _mean([stopped for right, stopped in pairs if right])
    on_wrong = _mean([not stopped for right, stopped in pairs if not right])
    # Balanced, since a model that is nearly always right would score high by stopping every time.
    balanced = None if on_right is None or on_wrong is None else (on_right + on_wrong) / 2
    return {"ita": _mean([right == stopped for right, stopped in pairs]), "ita_balanced": balanced}


def _answers(
    policy: ProbePolicy, rows: Sequence[Row], traces: Sequence[Trace], config: ValidationConfig, judge: StickerJudge
) -> list[bool]:
    """Whether a question about each own first picture is answered to the word; the truth is what the judge detects."""
    pictures = [trace.images[0] for row, trace in zip(rows, traces, strict=True) if row.score(0) is not None]
    scenes = judge.scenes(pictures) if pictures else []
    pairs = [question_answer(scene, config.seed + index) for index, scene in enumerate(scenes)]
    replies = []
    for part in _parts(len(pairs), config.batch):
        questions, seeds = [question for question, _ in pairs[part]], _seeds(config, part)
        replies += policy.answer(pictures[part], questions, policy.config.sampling, seeds)
    return [parse_answer(reply.text) == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]


def _decisions(policy: ProbePolicy, name: str, pictures: FixedSet, config: ValidationConfig) -> dict[str, float | None]:
    """False stops and false edits on a set of pictures."""
    stops: list[bool] = []
    for part in _parts(len(pictures.right), config.batch):
        texts, seeds = [prompt.text for prompt in pictures.prompts[part]], _seeds(config, part)
        reflections = policy.reflect(texts, list(pictures.pictures[part]), policy.config.sampling, seeds)
        # As the loop decides: text without a closing tag is a stop.
        stops += [is_stop(parse_edit(reflection.text)) for reflection in reflections]
    pairs = list(zip(stops, pictures.right, strict=True))
    return {
        f"{name}_false_stop": _mean([stop for stop, right in pairs if not right]),
        f"{name}_false_edit": _mean([not stop for stop, right in pairs if right]),
        f"{name}_right": float(sum(pictures.right)),
        f"{name}_flawed": float(len(pairs) - sum(pictures.right)),
    }


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _seeds(config: ValidationConfig, part: slice) -> list[int]:
    return list(range(config.seed + part.start, config.seed + part.stop))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


@contextmanager
def preserved_state(policy: Any) -> Iterator[None]:
    """Leave torch's generators, and the mode of every module of `policy`, as they were."""
    modules = list(policy.modules()) if isinstance(policy, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


# --- the log ----------------------------------------------------------------------------------------------------------


class ValidationLog:
    """evaluations.jsonl of a run: a line per validation, each with `step` (updates before it), `samples`, `published`,
    `settings`, the measures of `validate` and `seconds`."""

    def __init__(self, path: Path):
        self._log = JsonLog(path)

    def rows(self) -> list[dict[str, Any]]:
        """Every line, in the order of steps; a torn one is left out."""
        rows = [{_current_name(key): value for key, value in row.items()} for row in self._log.read()]
        return sorted(rows, key=lambda row: row["step"])

    def has(self, step: int, config: ValidationConfig, published: bool = False) -> bool:
        """Whether that step was validated by the same settings."""
        key = (step, config.settings(), published)
        # The batch size may differ: it changes no measure.
        return any((row["step"], row["settings"], row["published"]) == key for row in self.rows())

    def validate(
        self,
        policy: ProbePolicy,
        config: ValidationConfig,
        sets: Mapping[str, FixedSet],
        judge: Judge,
        step: int,
        samples: float,
        published: bool = False,
        held_out: Benchmark | None = None,
    ) -> dict[str, Any]:
        """Measure and append a line. `published` says that the weights are those that a run hands over (EMA)."""
        start = time.perf_counter()
        measures = validate(policy, config, sets, judge, held_out)
        seconds = time.perf_counter() - start
        settings = {"step": step, "samples": samples, "published": published, "settings": config.settings()}
        row = {**settings, **measures, "seconds": seconds}
        self._log.append(row)
        return row


def _current_name(key: str) -> str:
    """A key of evaluations.jsonl, as 0.1 wrote it or as it is today."""
    return "settings" if key == "watch" else key.replace(_OLD_MODE, "one_shot")


def validation_line(row: Mapping[str, Any]) -> str:
    """A validation in one line, for people; an arrow leads from the first picture to that after the last turn."""
    last = row["settings"]["turns"]

    def number(name: str) -> str:
        return f"{row[name]:.2f}" if name in row else "-"

    def change(name: str) -> str:
        return f"{number(f'{name}_0')}→{number(f'{name}_{last}')}" if last else number(f"{name}_0")

    parts = [f"{mode.replace('_', '-')} right {change(f'{mode}_right')} V {change(f'{mode}_score')}" for mode in MODES]
    parts.append(f"ITA {number('ita')} (balanced {number('ita_balanced')})  VQA {number('vqa')}")
    for name, title in (("fixed", "false stops"), ("own", "on own")):
        parts.append(f"{title} {number(f'{name}_false_stop')} edits {number(f'{name}_false_edit')}")
    missing = f"  missing {row['missing']:.0f}" if row["missing"] else ""
    return f"{row['step']:>6} held out   " + "  ".join(parts) + missing


# --- the fixed sets ---------------------------------------------------------------------------------------------------


def fixed_sets(
    path: Path,
    policy: Policy,
    judge: Judge,
    config: ValidationConfig,
    held_out: Benchmark | None = None,
    rendered: bool = True,
) -> dict[str, FixedSet]:
    """The sets "fixed" (rendered, where the world can be) and "own" (pictures of `policy`) that the file `path` keeps.

    A run keeps its first sets: what the file holds is taken as it is, whatever `config` says. Raises OutputError if it
    cannot be written or read.
    """
    if path.exists():
        return _read(path)
    with preserved_state(policy):
        sets = {
            **({"fixed": FixedSet.rendered(config.fixed, config.seed)} if rendered else {}),
            "own": FixedSet.self_generated(policy, config.own, judge, config.seed, config.batch, held_out),
        }
    # One key for all records: safetensors keeps its keys in no fixed order, and the same sets shall be the same bytes.
    records = {"sets": json.dumps({name: _records(pictures) for name, pictures in sets.items()})}
    write_bytes(path, save({name: torch.from_numpy(own.pictures) for name, own in sets.items()}, records))
    return sets


def _records(pictures: FixedSet) -> list[dict[str, Any]]:
    return [
        {"text": prompt.text, "spec": None if prompt.spec is None else prompt.spec.to_metadata(), "right": right}
        for prompt, right in zip(pictures.prompts, pictures.right, strict=True)
    ]


def _read(path: Path) -> dict[str, FixedSet]:
    try:
        with safe_open(path, "pt") as file:
            records = json.loads((file.metadata() or {}).get("sets", "{}"))
            pictures = {name: file.get_tensor(name).numpy() for name in records}
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be read ({error}); remove it, and the same pictures are drawn again by --resume"
        ) from error
    return {name: _fixed_set(own, pictures[name]) for name, own in records.items()}


def _fixed_set(records: Sequence[Mapping[str, Any]], pictures: np.ndarray) -> FixedSet:
    specs = [None if record["spec"] is None else Spec.from_metadata(record["spec"]) for record in records]
    prompts = tuple(Prompt(record["text"], spec) for record, spec in zip(records, specs, strict=True))
    return FixedSet(prompts, pictures, tuple(bool(record["right"]) for record in records))
