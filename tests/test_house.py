"""Rooms only look left: an import in one room names that room or one further left, never one to its right."""

import ast
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "triptych"
ROOMS = ["errors", "trace", "data", "model", "loop", "rewards", "rl", "eval", "apps"]


def looks(path: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of the house in a file, those inside functions and for types included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it from triptych"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found += [(node.lineno, part[1]) for part in parts if part[0] == "triptych" and len(part) > 1]
    return found


def test_rooms_only_look_left():
    for path in sorted(HOUSE.rglob("*.py")):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in ROOMS, f"{path}: {room} is no room of the house; expected one of {ROOMS}"
        for line, seen in looks(path):
            right = seen in ROOMS and ROOMS.index(seen) > ROOMS.index(room)
            assert not right, f"{path}:{line}: room {room} looks right, into {seen}; pass what it needs in"


def test_errors_and_trace_stand_alone():
    assert not looks(HOUSE / "errors.py")
    assert {room for _, room in looks(HOUSE / "trace.py")} <= {"errors"}
