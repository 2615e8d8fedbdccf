"""What the source must never hold: unsafe loading, kernels that most machines lack, hidden seeds, long modules."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "triptych").rglob("*.py"))
PYTHON = [*PACKAGE, *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
BANNED = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "flash_attn", "mmcv", "mmdet"}
# Where the name of a package is not that of what installs it.
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow", "fonticon_mdi7": "fonticon_materialdesignicons7"}
LONGEST = 500  # lines of a module
HIDDEN_SEEDS = re.compile(r"np\.random\.(?!default_rng|SeedSequence|Generator)\w+|random\.(?!Random)\w+|torch\.seed")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def calls(path: Path) -> Iterator[tuple[str, str, dict[str | None, str]]]:
    """Every call in a file: where it is, its dotted name, and its named arguments as text."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield f"{path}:{node.lineno}", ast.unparse(node.func), named


def imports(path: Path, typed: bool) -> Iterator[tuple[str, str]]:
    """Every package that a file imports and where, those under `if TYPE_CHECKING:` only if `typed`."""
    blocks = [node for node in ast.walk(tree(path)) if isinstance(node, ast.If)]
    guarded = [block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
    left_out = set() if typed else {id(node) for block in guarded for node in ast.walk(block)}
    for node in ast.walk(tree(path)):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from ((f"{path}:{node.lineno}", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield f"{path}:{node.lineno}", node.module.split(".")[0]


def test_no_unsafe_or_rare_imports():
    assert not [found for path in PYTHON for found in imports(path, typed=True) if found[1] in BANNED]


def test_loading_never_runs_code():
    for path in PYTHON:
        for where, name, named in calls(path):
            if name == "torch.load":
                assert named.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
            assert named.get("allow_pickle", "False") == "False", f"{where}: allow_pickle"
            assert named.get("trust_remote_code", "False") == "False", f"{where}: trust_remote_code"
            assert name not in ("eval", "exec"), f"{where}: {name} of text"


def test_randomness_comes_in_by_hand():
    found = [(where, name) for path in PYTHON for where, name, _ in calls(path) if HIDDEN_SEEDS.fullmatch(name)]
    assert not found, "these draw from a generator that nobody passed"


def texts_without_encoding(module: ast.Module) -> Iterator[int]:
    """Lines that read or write text in a file and leave its encoding to the machine's locale."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        name = ast.unparse(node.func)
        values = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        binary = any(re.fullmatch("[rwaxbt+]+", mode) and "b" in mode for mode in modes)
        opens = name == "open" or (name.endswith(".open") and not re.match(r"os\.|[A-Z]\w*\.", name))  # not Image.open
        if name.endswith((".read_text", ".write_text")) or (opens and not binary):
            yield node.lineno


def test_text_in_files_has_the_same_encoding_on_every_machine():
    for path in PACKAGE:
        for line in texts_without_encoding(tree(path)):
            raise AssertionError(f'{path}:{line}: text in a file; expected encoding="utf-8"')


def test_text_without_encoding_is_found():
    bad = [
        'open("b.txt")',
        'open(p, "w")',
        "p.open()",
        'p.open(mode="a")',
        "(p / q).read_text()",
        "Path(p).write_text(t)",
    ]
    good = ['open(p, "rb")', 'p.open(mode="ab+")', 'p.open("a", encoding="utf-8")', "Image.open(p)", "os.open(p, 1)"]
    assert list(texts_without_encoding(ast.parse("\n".join([*bad, *good])))) == list(range(1, len(bad) + 1))


def test_imports_are_dependencies():
    """Whatever a module imports when it runs is brought by `pip install triptych`, or by an extra that names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "test"]
    lines = [line for group in (project["dependencies"], *extras) for line in group]
    declared = {re.split(r"[<>=!\[ ]", line)[0].lower().replace("-", "_") for line in lines}
    for path in PACKAGE:
        for where, package in imports(path, typed=False):
            name = DISTRIBUTIONS.get(package, package).lower()
            known = name in declared or package in sys.stdlib_module_names or package == "triptych"
            assert known, f"{where}: {package} is not among the project's dependencies"


def test_modules_are_short_and_say_what_they_are():
    for path in PACKAGE:
        lines = path.read_text().count("\n")
        assert lines <= LONGEST, f"{path} has {lines} lines; expected at most {LONGEST}: give a part its own home"
        assert not lines or ast.get_docstring(tree(path)), f"{path} does not open with its place in the story"
