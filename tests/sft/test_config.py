"""No option of SFT does nothing: each one, turned alone, changes what the debug recipe produces.

An option of a stage is turned in two updates of that stage, one of the mix of samples in the samples themselves, since
what is rare shows in many samples only. Other stages take no updates. The runs take a process of their own, without the
checks of shapes that tests have and that would double their time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from triptych.apps.sft import parse
from triptych.data.lexicon import build_tokenizer
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH, LanguageConfig
from triptych.sft.curriculum import SFT_DEBUG, SFTConfig
from triptych.sft.optim import fit

pytestmark = pytest.mark.slow  # every option of every stage is turned: a minute of one core

# Pictures of 96 px, as the renderer draws them, and all else as small as it gets.
TINY = replace(
    SKETCH,
    language=LanguageConfig(SKETCH.language.vocab_size, 32, 48, 2, 4, 2, rope_theta=1e4),
    vision=replace(SKETCH.vision, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2),
    autoencoder=replace(SKETCH.autoencoder, ch=32, ch_mult=(1,) * len(SKETCH.autoencoder.ch_mult), num_res_blocks=1),
    sampling=replace(SKETCH.sampling, draw_points=3, max_plan=4),
)
JOINT_STAGES, DECODER_STAGES = ("joint", "self_generated", "gen"), ("decoder", "final_decoder")
STAGES = ("vae", "vision", "connector", "joint", "decoder", "self_generated", "gen", "final_decoder")
BATCHES = 6  # of samples, in which an option of their mix must show
ROWS = {"pictures": 8, "edits": 8, "words": 24}

VALUES = {  # where half of it, or one more, is illegal or too little to show
    "start": "other",
    "save_every": 1,
    **{f"{stage}.cooldown": 1.0 for stage in STAGES},
    **{f"{stage}.ema_decay": 0.05 for stage in STAGES},  # the decay is low in the first steps whatever it is later
    **{f"{stage}.weight_decay": 0.5 for stage in STAGES},
    **{f"{stage}.max_grad_norm": 1e-5 for stage in STAGES},
    **{f"{stage}.few_colors": 1.0 for stage in DECODER_STAGES},
    **{f"{stage}.{name}": 1.0 for stage in JOINT_STAGES for name in ("plan_share", "answer_share")},
    **{f"{stage}.previous_token_weight": 2.0 for stage in JOINT_STAGES},
    **{f"{stage}.experts": "und" for stage in JOINT_STAGES},
    **{f"{stage}.mix.{name}": 1.0 for stage in JOINT_STAGES for name in ("hard_prompts", "layout.usual")},
    **{
        f"{stage}.mix.{name}.{side}": 2.0
        for stage in JOINT_STAGES
        for name in ("layout", "one_shot_layout")
        for side in ("jitter", "shift")
    },
}
TEXTS = {"gen.experts": "both", "gen.words": 3}  # a stage of generation has no texts that learn
SETTINGS: dict[str, dict[str, Any]] = {  # under which an option matters, where debug is too simple for it
    **dict.fromkeys(("gen.words", "gen.answer_share", "gen.previous_token_weight", "gen.muon_lr"), TEXTS),
    **{f"{stage}.mix.text_only_questions": {f"{stage}.mix.list_first": True} for stage in JOINT_STAGES},
    **{f"{stage}.mix.white_weight": {f"{stage}.mix.hard_prompts": 1.0} for stage in JOINT_STAGES},
}
NOTHING = {  # what a run produces does not depend on these, and why that is so
    "device": "one device is there; tests/second_device.py runs on another",
    "num_workers": "more processes and the same numbers: test_optim.py compares them",
}
# Stages that show what is of no stage, or of another one.
ELSEWHERE = {"seed": "vae", "save_every": "vae", "start": "joint", "threads": "joint", "vision.frozen": "joint"}


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


def turned(config: Any, path: str, value: Any) -> Any:
    """The settings with one of them, such as "joint.mix.repairs", at another value."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: turned(getattr(config, name), rest, value) if rest else value})


def other(value: Any, hint: Any) -> Any:
    """Another legal value, where no table names one."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2


PATHS = options(SFT_DEBUG)


def outcome(config: SFTConfig, path: str, folder: Path) -> Any:
    """What the stage of an option produces: its checkpoints and metrics, or for an option of the mix its samples."""
    config.check()
    wanted = ELSEWHERE.get(path, path.partition(".")[0])
    stage = next(stage for stage in config.stages(folder, TINY) if stage.name == wanted)
    if ".mix." in path:
        return repr([[part.samples for part, _ in stage.samples(step)] for step in range(BATCHES)])
    steps = list(fit(stage, folder / stage.name, config.save_every))
    return steps, {file.parent.name: file.read_bytes() for file in (folder / stage.name).rglob("*.safetensors")}


def idle(folder: Path) -> list[str]:
    """The options that change nothing, and those whose runs fail for another reason, with it."""
    for seed in range(2):
        torch.manual_seed(seed)
        weights.save(Bagel(TINY, build_tokenizer()), folder / ("model", "other")[seed])
    found, seen = [], {}
    for path in sorted({*PATHS} - {*NOTHING}):
        wanted = ELSEWHERE.get(path, path.partition(".")[0])
        start = replace(SFT_DEBUG, save_every=2)
        if wanted not in STAGES[:3]:  # all else goes on from a checkpoint, since nothing before it is in question
            start = replace(start, start=str(folder / "model"))
        for stage in {"self_generated", "gen"} - {wanted}:
            start = turned(start, f"{stage}.steps", 0)
        rows = {f"{wanted}.{name}": count for name, count in ROWS.items()} if ".mix." in path else {}
        rows |= {"gen.experts": "both"} if rows and wanted == "gen" else {}
        for name, value in {**rows, **SETTINGS.get(path, {})}.items():
            start = turned(start, name, value)
        value = VALUES[path] if path in VALUES else other(value_of(start, path), PATHS[path])
        value = str(folder / value) if path == "start" else value
        key = (repr(start), wanted, ".mix." in path)
        try:
            if key not in seen:
                seen[key] = outcome(start, path, Path(tempfile.mkdtemp(dir=folder)))
            if outcome(turned(start, path, value), path, Path(tempfile.mkdtemp(dir=folder))) == seen[key]:
                found.append(f"--{path} {value}")
        except Exception as error:
            found.append(f"--{path} {value}: {type(error).__name__}: {error}")
    return found


def test_no_option_does_nothing(tmp_path: Path):
    command = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (result.stdout.splitlines(), result.returncode) == ([], 0), result.stderr[-2000:]


def test_every_option_is_one_of_the_command_line_and_reaches_its_field():
    """All options at once, through the parser."""
    config, words = SFT_DEBUG, []
    for path, hint in PATHS.items():
        value = "cpu" if path == "device" else VALUES.get(path)
        value = other(value_of(SFT_DEBUG, path), hint) if value is None else value
        config, option = turned(config, path, value), path.replace("_", "-")
        if isinstance(value, bool):
            record, dot, name = option.rpartition(".")
            words.append(f"--{record}{dot}{'' if value else 'no-'}{name}")
        else:
            words += [f"--{option}", str(value)]
    assert parse(["debug", *words]).config == config


def test_the_tables_name_options_that_exist():
    assert {*VALUES, *SETTINGS, *NOTHING, *ELSEWHERE} <= {*PATHS}
    assert all(NOTHING.values())


if __name__ == "__main__":
    print("\n".join(idle(Path(sys.argv[1]))), end="")
