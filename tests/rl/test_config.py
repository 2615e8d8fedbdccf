"""No option of training does nothing: each one, turned alone, changes what two steps of the debug recipe produce.

Exceptions are in tables, each with the settings under which it does, or with its reason. The runs take a process of
their own, without the checks of shapes that tests have and that would double their time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from triptych.apps.cli import main
from triptych.apps.train import parse
from triptych.data.scene import Scene
from triptych.data.specs import StickerPrompts
from triptych.errors import JudgeError, TrainingError
from triptych.model import weights
from triptych.model.config import Resize
from triptych.model.weights import fingerprint
from triptych.rewards.judge import BrightnessJudge
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import DEBUG, tiny
from triptych.rl.train import train
from triptych.trace import Verdict

PROMPTS = StickerPrompts(0)
TIMING = ("seconds", "samples_per_second", "share_")


def turned(config: Any, path: str, value: Any) -> Any:
    """The settings with one of them, such as "reason.text.lr", at another value."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: turned(getattr(config, name), rest, value) if rest else value})


def with_all(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    for path, value in changes.items():
        config = turned(config, path, value)
    return config


# The debug recipe, as small as it gets: what is short is turned often. One SDE step to check instead of three.
SMALL = with_all(
    DEBUG,
    {
        f"{stage}.{path}": value
        for stage in ("reason", "refine")
        for path, value in {
            "sampling.points": 4,
            "sampling.max_tokens": 3,
            "parents": 1,
            "group_size": 2,
            "picture.sde_window": 1,
        }.items()
    },
)


class HalfRight:
    """Every second picture is right, whatever it shows."""

    name = "half-right"

    def __call__(self, traces):
        return [Verdict(1.0 if trace.seed % 2 else 0.5) for trace in traces]


class Equal:
    """All pictures score the same."""

    name = "equal"

    def __call__(self, traces):
        return [Verdict(0.5) for _ in traces]


class Silent:
    """Gives no verdict on every second picture."""

    name = "silent"

    def __init__(self):
        self.asked = 0

    def __call__(self, traces):
        if len(traces) > 1:
            raise JudgeError("one at a time")
        self.asked += 1
        if self.asked % 2 == 0:
            raise JudgeError("silent")
        return [Verdict(0.5)]


def options(record: Any, path: str = "") -> dict[str, Any]:
    """Every option of a recipe, by its path, with its type."""
    found: dict[str, Any] = {}
    for each, hint in ((each, get_type_hints(type(record))[each.name]) for each in fields(record)):
        value, name = getattr(record, each.name), f"{path}{each.name}"
        found |= options(value, f"{name}.") if is_dataclass(value) else {name: hint}
    return found


def value_of(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def other(value: Any, hint: Any) -> Any:
    """Another legal value, where no table names one."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2


VALUES = {  # where half of it, or one more, is illegal or too little to show
    "steps": 1,
    "samples": 3,
    "keep": 1,
    "tree.depth": 0,
    "tree.kind": "trajectory",
    "tree.selection": "uniform",
    "tree.right_share": 1.0,
    "sft_mix.lr": 1e-4,
    "sft_mix.right_share": 1.0,
    "sft_mix.max_self_generated": 1,
    "weight_decay": 0.5,
    "reward.stop_cost": 0.5,
    "max_grad_norm": 1e-5,
    "lora.projections": ("q_proj",),
    "ema_decay": 0.05,  # the decay is low in the first steps whatever it is later
    "lora.experts": "both",
    "reason.plan_share": 0.0,
    "refine.sampling.image_guidance": 2.0,
    **{f"{stage}.sampling.guidance_interval": (0.0, 0.5) for stage in ("reason", "refine")},
    **{f"{stage}.{part}.clip_range": 1e-6 for stage in ("reason", "refine") for part in ("text", "picture")},
    **{f"{stage}.picture.sde_window": 1 for stage in ("reason", "refine")},
    **{f"{stage}.sampling.top_k": 2 for stage in ("reason", "refine")},
    **{f"limits.{name}": 0.0 for name in ("text_ratio", "sde_mean", "sde_step", "sde_logprob", "missing")},
}

SFT = {"sft_mix.lr": 1e-4, "sft_mix.pictures": 2, "sft_mix.edits": 1, "sft_mix.words": 4}
LORA = {"lora.rank": 2, "reference": "adapter"}
SETTINGS: dict[str, dict[str, Any]] = {  # under which an option matters, where debug is too simple for it
    **{
        f"{stage}.picture.sde_window": {f"{stage}.picture.sde_window": 3, f"{stage}.picture.num_sde_steps": 3}
        for stage in ("reason", "refine")
    },
    **{f"{stage}.picture.num_sde_steps": {f"{stage}.picture.sde_window": 2} for stage in ("reason", "refine")},
    **{f"refine.picture.{name}": {"refine.group_size": 4} for name in ("baseline", "normalize_advantages")},
    **{f"{stage}.images_per_text": {f"{stage}.group_size": 4} for stage in ("reason", "refine")},
    **{f"{stage}.text.clip_range": {f"{stage}.text.lr": 1e-2} for stage in ("reason", "refine")},
    **{f"sft_mix.{name}": SFT for name in ("pictures", "edits", "words", "plan_share", "answer_share")},
    **{f"sft_mix.{name}": SFT for name in ("self_generated_share", "max_self_generated")},
    **{f"lora.{name}": LORA for name in ("alpha", "projections")},
    "lora.experts": {**LORA, "reason.text.train": False, "refine.text.train": False, "lora.experts": "gen"},
    "limits.bad_steps": {"reason.text.kl_coef": 1e300, "limits.bad_steps": 1},
    "sft_mix.right_share": {**SFT, "sft_mix.answer_share": 0.0},
    "tree.selection": {"reason.group_size": 8, "refine.parents": 3},
    "tree.right_share": {"reason.group_size": 8},
    "tree.balance": {"refine.parents": 4, "refine.group_size": 4, "reason.group_size": 8, "tree.right_share": 0.5},
    "reward.stop_cost": {"refine.group_size": 6},
    "reference": {"reason.text.lr": 1e-2, "refine.text.lr": 1e-2},
    "lr_decay_steps": {"warmup_steps": 0},
}
JUDGES = {
    **dict.fromkeys(("tree.right_share", "tree.balance"), HalfRight),
    "tree.resample": Equal,
    "limits.missing": Silent,
}
NOTHING = {  # what a run produces does not depend on these, and why that is so
    "reason.unit": "the same tree in other units: test_tree.py compares them",
    "refine.unit": "the same tree in other units: test_tree.py compares them",
    "threads": "the same numbers up to rounding, by more threads",
    "device": "one device is there; tests/second_device.py runs on another",
    "gradient_checkpointing": "less memory and the same numbers: test_train.py compares the gradients",
    "micro_batch_size": "less memory and the same numbers up to rounding: test_train.py compares the gradients",
    "limits.text_mean": "at most chance unless something is wrong: test_logprob_check.py drops a filter",
    "limits.guidance": "at most chance unless something is wrong: test_logprob_check.py drops guidance",
    "limits.rounding": "nothing is rounded unless something is wrong: test_logprob_check.py rounds states",
    "reward.format_weight": "no text of a tiny model is well formed: tests/rewards has the table of rewards",
}
COMMAND = {"model", "judge", "tags"}  # what the command makes a model, a judge and prompts of; turned below


def outcome(config: TrainConfig, path: str, folder: Path) -> Any:
    """All that two steps produce: weights, metrics, the names of files, or the error that ends the run."""
    bagel, judge = tiny(), JUDGES.get(path, BrightnessJudge)()
    detect = None
    if path.startswith("sft_mix."):  # its pictures have 96 pixels
        side = Resize(96, 96, 16)
        bagel.config = replace(bagel.config, image_size=(96, 96), vae_resize=side, vit_resize=side)
        detect = lambda pictures: [Scene.sample(PROMPTS(0).spec, row) for row, _ in enumerate(pictures)]  # noqa: E731
    rows = []
    try:
        for step in train(bagel, PROMPTS, judge, config, folder, detect=detect):
            rows.append({name: value for name, value in step.metrics.items() if not name.startswith(TIMING)})
    except (TrainingError, JudgeError) as error:
        rows.append(str(error))
    return fingerprint(bagel), repr(rows), sorted(path.name for path in folder.glob("checkpoints/*"))


PATHS = options(DEBUG)


def idle(folder: Path) -> list[str]:
    """The options that change nothing, and those whose runs fail for another reason, with it."""
    found, seen = [], {}
    paths = sorted({*PATHS} - {*NOTHING} - COMMAND)
    for path in paths:
        start = with_all(SMALL, SETTINGS.get(path, {}))
        if path.startswith("reason.") and path not in SETTINGS:  # one step shows what Reason does, at half the cost
            start = with_all(start, {"steps": 1, "tree.depth": 0})
        value = VALUES[path] if path in VALUES else other(value_of(start, path), PATHS[path])
        key = (repr(start), JUDGES.get(path), path.startswith("sft_mix."))
        try:
            if key not in seen:
                seen[key] = outcome(start, path, folder / f"{path}-before")
            if outcome(turned(start, path, value), path, folder / path) == seen[key]:
                found.append(f"--{path} {value}")
        except Exception as error:
            found.append(f"--{path} {value}: {type(error).__name__}: {error}")
    return found


def test_no_option_does_nothing(tmp_path):
    pytest.importorskip("peft")
    command = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (result.stdout.splitlines(), result.returncode) == ([], 0), result.stderr[-2000:]


@pytest.mark.parametrize("path", sorted(COMMAND))
def test_no_option_of_the_command_does_nothing(path, tmp_path):
    weights.save(tiny(seed=1), tmp_path / "other")
    value = {"model": str(tmp_path / "other"), "judge": "world", "tags": "counting"}[path]
    rows = []
    for name, asked in (("before", []), ("after", [f"--{path}", value])):
        assert main(["train", "debug", "--steps", "1", "--out", str(tmp_path / name), *asked]) == 0
        (row,) = (json.loads(line) for line in (tmp_path / name / "steps.jsonl").read_text().splitlines())
        rows.append({key: number for key, number in row.items() if not key.startswith(TIMING)})
    assert rows[0] != rows[1]


def test_every_option_is_one_of_the_command_line_and_reaches_its_field():
    """All options at once, through the parser."""
    values = {"device": "cpu", "model": "sketch", "tags": ("counting",), **VALUES}
    config, words = DEBUG, []
    for path, hint in PATHS.items():
        value = values[path] if path in values else other(value_of(DEBUG, path), hint)
        config, option = turned(config, path, value), path.replace("_", "-")
        if isinstance(value, bool):
            record, dot, name = option.rpartition(".")
            words.append(f"--{record}{dot}{'' if value else 'no-'}{name}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    assert parse(["debug", *words]).config == config


def test_the_tables_name_options_that_exist():
    assert {*VALUES, *SETTINGS, *JUDGES, *NOTHING, *COMMAND} <= {*PATHS}
    assert all(NOTHING.values())


if __name__ == "__main__":
    print("\n".join(idle(Path(sys.argv[1]))), end="")
