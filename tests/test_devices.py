"""Nothing stays behind on the CPU: every command runs on a device that refuses what lies elsewhere, and on CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.utils.backend_registration
from PIL import Image

import triptych

HERE = Path(__file__).parent
SCRIPT = """
import json, sys
if "other" in sys.argv[1]:
    import second_device
from triptych.apps.cli import main
sys.exit(sum(main(command) for command in json.loads(sys.argv[1])))
"""
PROMPT = "two red cats and a white cow"

written = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)
there = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
devices = pytest.mark.parametrize("device", [pytest.param("other", marks=written), pytest.param("cuda", marks=there)])


def ran(script: str, *commands: list) -> subprocess.CompletedProcess:
    """Commands one after another, in a process in which the other device exists."""
    told = json.dumps([[str(word) for word in command] for command in commands])
    paths = os.pathsep.join([str(HERE), str(Path(triptych.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, told],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def expect_done(device: str, *commands: list) -> None:
    done = ran(SCRIPT, *([*command, "--device", device] for command in commands))
    assert done.returncode == 0, done.stderr


@written
def test_tensors_of_two_devices_do_not_mix():
    done = ran("import torch, second_device; torch.ones(2, device='other') + torch.ones(2)")
    assert done.returncode == 1 and "among those of 'other'" in done.stderr


@written
def test_the_other_device_has_no_wide_numbers():
    done = ran("import torch, second_device; torch.ones(2, device='other').double()")
    assert done.returncode == 1 and "no float64" in done.stderr


@devices
def test_what_draws_and_sees(tmp_path, device: str):
    draw = ["draw", PROMPT, "--seed", 3, "--dtype", "float32", "--out"]
    edit = ["edit", tmp_path / device / "final.png", "two red cats and a blue cow", "--out", tmp_path / "edit"]
    ask = ["ask", tmp_path / device / "final.png", "how many cats are there?"]
    scores = ["eval", "genevalpp", "--limit", 2, "--turns", 1, "--understanding", "--out", tmp_path / "scores"]
    expect_done(device, [*draw, tmp_path / device], edit, ask, scores)  # all but the draw in bfloat16, as on a GPU
    here = ran(SCRIPT, [*draw, tmp_path / "cpu", "--device", "cpu"])
    assert here.returncode == 0, here.stderr
    pictures = [np.asarray(Image.open(tmp_path / out / "turn-0.png"), dtype=float) for out in ("cpu", device)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1  # of 255: kernels add up in another order


@devices
def test_what_learns(tmp_path, device: str):
    start = ["train", "debug", "--out", tmp_path / "run"]
    expect_done(
        device,
        start,
        [*start, "--resume", "--steps", 3],
        ["train", "debug", "--lora.rank", 4, "--reference", "adapter", "--out", tmp_path / "adapters"],
        ["sft", "debug", "--out", tmp_path / "sft"],
    )
