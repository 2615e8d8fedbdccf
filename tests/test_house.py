"""The floor plan: rooms only look left, and no import goes in a circle, lazy and TYPE_CHECKING ones included."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "triptych"
# Each room imports from itself and from rooms further left.
ROOMS = [
    "errors",
    "text",
    "files",
    "seeds",
    "signals",
    "bounds",
    "trace",
    "data",
    "model",
    "loop",
    "rewards",
    "sft",
    "rl",
    "eval",
    "apps",
]
SAME_IN_EVERY_COMMAND = {"run", "parse", "RENAMED_OPTIONS"}  # what `cli` asks of the module of a command


def module_name(path: Path) -> str:
    """The name without `triptych.`, such as `rl.tree`; a package is its own name."""
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(HOUSE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of triptych in a file, those in functions and for types alone included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it from triptych"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "triptych":
                continue
            candidates = [".".join(parts[1:end]) for end in (len(parts), len(parts) - 1)]
            yield node.lineno, next((name for name in candidates if name in MODULES), "__init__")


def first_circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_rooms_only_look_left():
    for name, path in MODULES.items():
        room = name.split(".")[0]
        if room == "__init__":
            continue
        assert room in ROOMS, f"{path}: {room} is no room of the house; expected one of {ROOMS}"
        for line, target in imports(path):
            other = target.split(".")[0]
            right = other in ROOMS and ROOMS.index(other) > ROOMS.index(room)
            assert not right, f"{path}:{line}: room {room} looks right, into {other}; pass what it needs in"


def test_no_import_goes_in_a_circle():
    graph = {name: {target for _, target in imports(path)} - {"__init__"} for name, path in MODULES.items()}
    assert first_circle(graph) is None


def public_names(path: Path) -> set[str]:
    """Names that a module defines at its top level, without those of one underscore."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_has_one_home():
    homes: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for public in public_names(path):
            homes.setdefault(public, []).append(name)
    twice = {public: modules for public, modules in homes.items() if len(modules) > 1}
    for public, modules in twice.items():
        assert public in SAME_IN_EVERY_COMMAND and all(name.startswith("apps.") for name in modules), (public, modules)


def test_a_circle_and_a_lazy_import_are_seen(tmp_path):
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and first_circle({"a": {"b"}, "b": set()}) is None
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from triptych import trace\n"
    source += "def f():\n    from triptych.rl.tree import pick\n    import triptych.loop\n"
    (tmp_path / "a.py").write_text(source)
    assert list(imports(tmp_path / "a.py")) == [(3, "trace"), (5, "rl.tree"), (6, "loop")]


@pytest.mark.parametrize("name", ["errors", "seeds"])
def test_the_leftmost_rooms_stand_alone(name):
    assert not list(imports(MODULES[name]))
