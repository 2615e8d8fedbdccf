"""Every example runs, with a scripted policy in place of the weights, and is short enough to read."""

import importlib.util
from pathlib import Path

import pytest
from scripted import ScriptedPolicy

from triptych import Trace

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


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
