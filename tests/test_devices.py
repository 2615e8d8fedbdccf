"""Nothing stays behind on the CPU: every command runs on a device that refuses what lies elsewhere."""

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
import second_device
from triptych.apps.cli import main
sys.exit(sum(main(command) for command in json.loads(sys.argv[1])))
"""
PROMPT = "two red cats and a white cow"

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)


def ran(script: str, *commands: list) -> subprocess.CompletedProcess:
    """Commands one after another, in a process in which the other device exists."""
    told = json.dumps([[str(word) for word in command] for command in commands])
    paths = f"{HERE}{os.pathsep}{Path(triptych.__file__).parents[1]}"
    return subprocess.run(
        [sys.executable, "-c", script, told],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def expect_done(*commands: list) -> None:
    done = ran(SCRIPT, *([*command, "--device", "other"] for command in commands))
    assert done.returncode == 0, done.stderr


def test_tensors_of_two_devices_do_not_mix():
    done = ran("import torch, second_device; torch.ones(2, device='other') + torch.ones(2)")
    assert done.returncode == 1 and "among those of 'other'" in done.stderr


def test_what_draws_and_sees(tmp_path):
    draw = ["draw", PROMPT, "--seed", 3, "--dtype", "float32", "--out"]
    edit = ["edit", tmp_path / "other" / "final.png", "two red cats and a blue cow", "--out", tmp_path / "edit"]
    ask = ["ask", tmp_path / "other" / "final.png", "how many cats are there?"]
    scores = ["eval", "genevalpp", "--limit", 2, "--turns", 1, "--understanding", "--out", tmp_path / "scores"]
    expect_done([*draw, tmp_path / "other"], edit, ask, scores)  # all but the draw in bfloat16, as on a GPU
    here = ran(SCRIPT, [*draw, tmp_path / "cpu", "--device", "cpu"])
    assert here.returncode == 0, here.stderr
    pictures = [np.asarray(Image.open(tmp_path / out / "turn-0.png"), dtype=float) for out in ("cpu", "other")]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1  # of 255: kernels add up in another order


def test_what_learns(tmp_path):
    start = ["train", "debug", "--out", tmp_path / "run"]
    expect_done(
        start,
        [*start, "--resume", "--steps", 3],
        ["train", "debug", "--lora.rank", 4, "--reference", "adapter", "--out", tmp_path / "adapters"],
        ["lessons", "debug", "--out", tmp_path / "lessons"],
    )
