"""What `import triptych` offers: exactly `__all__`, sorted, each name from one home, nothing heavy until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import triptych


def imported_for_types() -> set[str]:
    """Names under `if TYPE_CHECKING:`: what a type checker believes is exported."""
    tree = ast.parse(Path(triptych.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_all_is_sorted_and_complete():
    homes = [name for names in triptych._HOMES.values() for name in names]
    assert triptych.__all__ == sorted(triptych.__all__)
    assert sorted(homes) == triptych.__all__
    assert imported_for_types() == set(triptych.__all__)


def test_every_name_is_what_its_home_says():
    for home, names in triptych._HOMES.items():
        module = __import__(home, fromlist=["_"])
        for name in names:
            assert getattr(triptych, name) is getattr(module, name)


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(triptych, "Trainer")


def test_help_does_not_load_torch():
    code = """
import sys
from triptych.apps.cli import main
try:
    main(["--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
