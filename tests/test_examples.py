"""Every example runs, with a scripted policy in place of the weights, and is short enough to read."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedPolicy

from triptych import Trace

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted({*FOLDER.glob("*.py")} - {FOLDER / "07_tree_rl.py"})


def load_example(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path, capsys):
    assert len(path.read_text().splitlines()) < 60
    result = load_example(path).main(ScriptedPolicy(), tmp_path / "out")
    assert result
    assert capsys.readouterr().out
    if isinstance(result, Trace):
        assert result.finished
        assert Trace.load(tmp_path / "out").finished


def test_tree_rl_learns_the_format_of_a_thought(capsys):
    """The whole algorithm in one file, from a random model to plans that are nearly all well formed."""
    example = load_example(FOLDER / "07_tree_rl.py")
    rewards = example.main(example.random_model(), example.Brightness(), steps=30)
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.4
    assert len(capsys.readouterr().out.splitlines()) == 2 * 30
