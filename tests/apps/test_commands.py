"""Info, bench, lessons: sums that must add up, and settings that must arrive."""

import json
from pathlib import Path

import pytest
import torch
from scripted import ScriptedPolicy

from triptych.apps import bench, info
from triptych.apps.sft import StepLog, parse
from triptych.data.lexicon import build_tokenizer
from triptych.loop import play
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, SKETCH
from triptych.sft.curriculum import SFT_RECIPES, SFTStep
from triptych.trace import Prompt


@pytest.mark.parametrize("config", [SKETCH, BAGEL_7B], ids=lambda config: config.name)
def test_every_parameter_is_in_one_part(config):
    with torch.device("meta"):
        bagel = Bagel(config)
    parts = info.part_sizes(bagel)
    assert sum(parts.values()) == sum(tensor.numel() for tensor in bagel.state_dict().values())
    assert all(parts.values()) and tuple(parts) == info.MODEL_PARTS


def test_sizes_are_told_in_their_unit():
    assert [info.size_text(size) for size in (12, 3_500, 3_500_000, 29_000_000_000)] == [
        "12 B",
        "3.5 kB",
        "3.5 MB",
        "29.0 GB",
    ]


def test_a_policy_that_never_stops_uses_every_turn():
    prompt = Prompt("a photo of two cats")
    *_, (own,) = play(ScriptedPolicy(mistakes=0), [prompt], [0], turns=3)
    *_, (forced,) = play(bench.NeverStop(ScriptedPolicy(mistakes=0)), [prompt], [0], turns=3)  # pyright: ignore
    assert own.finished and len(own.images) == 1
    assert not forced.finished and len(forced.images) == 4


def test_packed_guidance_is_guidance_branch_by_branch():
    model = Bagel(SKETCH, build_tokenizer()).eval()
    torch.nn.init.normal_(model.llm2vae.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    step = bench.time_guidance(model, batch=3, repeats=1)
    assert step["largest_difference"] < 1e-4


def test_an_option_of_lessons_overrides_its_field():
    course = parse(["sketch", "--model.steps", "7", "--seed", "3", "--out", "here", "--resume"])
    assert course.config.model.steps == 7 and course.config.seed == 3
    assert course.config.eyes == SFT_RECIPES["sketch"].eyes
    assert course.out == Path("here") and course.resume
    with pytest.raises(SystemExit) as stop:
        parse(["sketch", "--model.stepz", "7"])
    assert stop.value.code == 2


def test_a_resumed_log_is_the_log_of_a_straight_run(tmp_path: Path):
    steps = [SFTStep(stage, index, 4, 0.5, {}) for stage in ("one", "two") for index in range(4)]
    straight, resumed = StepLog(tmp_path / "straight"), StepLog(tmp_path / "resumed")
    for step in steps:
        straight.add(step)
    for step in steps[:7]:
        resumed.add(step)
    with (tmp_path / "resumed").open("a") as file:
        file.write('{"stage": "tw')  # killed while writing
    again = StepLog(tmp_path / "resumed")
    for step in steps[5:]:
        again.add(step)
    assert (tmp_path / "resumed").read_text() == (tmp_path / "straight").read_text()
    assert [json.loads(line)["index"] for line in (tmp_path / "straight").read_text().splitlines()] == [*range(4)] * 2
