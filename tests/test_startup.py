"""What a process imports before it needs it. Modules are counted, not seconds: a busy machine changes only these."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Each takes a tenth of a second or more to import, and most commands never use it.
LATE = {"torch._dynamo", "torch._inductor", "transformers", "matplotlib", "huggingface_hub", "scipy", "peft"}


def _modules(code: str, folder: Path) -> set[str]:
    """The modules that a process has imported after it ran `code`."""
    code += "\nimport json, sys\nopen('modules.json', 'w').write(json.dumps(list(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    return set(json.loads((folder / "modules.json").read_text()))


def test_the_package_and_its_help_need_neither_torch_nor_numpy(tmp_path: Path) -> None:
    assert not {"torch", "numpy"} & _modules("import triptych", tmp_path)
    code = "from triptych.apps.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "numpy"} & _modules(code, tmp_path)


def test_no_module_imports_what_it_needs_only_now_and_then(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, triptych
for module in pkgutil.walk_packages(triptych.__path__, "triptych."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    modules = _modules(code, tmp_path)
    assert "triptych.rl.train" in modules and "triptych.apps.draw" in modules
    assert not (LATE | {"jinja2"}) & modules


def test_a_draw_imports_no_compiler_and_no_other_library_it_does_not_use(tmp_path: Path) -> None:
    arguments = ["draw", "three red apples", "--out", "trace", "--turns", "1", "--steps", "2"]
    modules = _modules(f"from triptych.apps.cli import main\nassert main({arguments}) == 0", tmp_path)
    assert (tmp_path / "trace" / "trace.html").is_file()
    assert "torch" in modules and not LATE & modules
