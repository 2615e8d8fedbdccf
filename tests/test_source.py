"""What the source must never hold: unsafe loading, kernels that most machines lack, hidden seeds, long modules."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "triptych").rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
BANNED = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "flash_attn", "mmcv", "mmdet"}
LONGEST = 350  # lines of a module

every_file = pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))


def calls(path: Path) -> list[tuple[ast.Call, str]]:
    """Every call in a file, with its dotted name."""
    tree = ast.parse(path.read_text())
    return [(node, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@every_file
def test_no_unsafe_or_rare_imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] not in BANNED, f"{path}:{node.lineno}: imports {name}"


@every_file
def test_tensors_are_loaded_without_code(path: Path):
    for call, name in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{call.lineno}: torch.load without weights_only=True"
        assert given.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}: allow_pickle"
        assert name not in ("eval", "exec"), f"{path}:{call.lineno}: {name} of text"


@every_file
def test_randomness_comes_in_by_hand(path: Path):
    for call, name in calls(path):
        hidden = name in ("np.random.seed", "random.seed", "torch.seed")
        hidden |= re.fullmatch(r"random\.(?!Random)\w+", name) is not None
        hidden |= re.fullmatch(r"np\.random\.(?!default_rng|SeedSequence|Generator)\w+", name) is not None
        assert not hidden, f"{path}:{call.lineno}: {name} draws from a generator that nobody passed"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_and_say_what_they_are(path: Path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST, f"{path} has more than {LONGEST} lines"
    assert not text or ast.get_docstring(ast.parse(text)), f"{path} does not open with its place in the story"
