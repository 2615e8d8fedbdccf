"""Pages of the site that are written elsewhere: the API by rooms, the examples, and the texts beside README.md.

MkDocs calls `on_files` and `on_page_markdown`. Links are written as they work in the repository, and are changed here
to the page that shows the same on the site.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TEXTS = {"CHANGELOG.md": "changelog.md", "LOG.md": "log.md", "CONTRIBUTING.md": "contributing.md"}
ROOMS = ("core", "data", "model", "rewards", "sft", "rl", "policies", "eval", "serve", "apps")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API pages of the rooms that there are."""
    pages = [{package(room): f"api/{room}.md"} for room in ROOMS if modules(room)]
    config.nav.append({"API": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated."""
    made = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in TEXTS.items()}
    made["examples.md"] = examples()
    made |= {f"api/{room}.md": api(room) for room in ROOMS if modules(room)}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's own pages."""
    return LINK.sub(lambda match: f"]({target(match[1], page.file.src_uri in TEXTS.values())})", markdown)


def target(link: str, from_root: bool) -> str:
    """Where a link of the repository leads on the site; unchanged where it is a page already."""
    path, _, anchor = link.partition("#")
    path = path.removeprefix("docs/") if from_root else path
    name = path.removeprefix("../")
    if name in TEXTS:
        path = TEXTS[name]
    elif name == "README.md":
        path = "index.md"
    elif name.startswith("examples"):
        path, anchor = "examples.md", Path(name).name.lower().replace(".", "") if name.endswith(".py") else ""
    return f"{path}#{anchor}" if anchor else path


def modules(room: str) -> list[str]:
    """Dotted names of a room's public modules in order of name; "core" is what stands beside the rooms."""
    folder = ROOT / "triptych" if room == "core" else ROOT / "triptych" / room
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if room == "core":
        order = ("errors", "files", "seeds", "bounds", "trace", "loop")
        names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    return [f"triptych.{name}" if room == "core" else f"triptych.{room}.{name}" for name in names]


def api(room: str) -> str:
    """The API page of a room, from its docstrings."""
    return "\n\n".join([f"# {package(room)}", *(f"::: {module}" for module in modules(room))])


def package(room: str) -> str:
    """The dotted name of a room."""
    return "triptych" if room == "core" else f"triptych.{room}"


def examples() -> str:
    """Every file of examples/, whole, under its first sentence."""
    parts = ["# Examples", "Each file runs as it is, and the tests run it: `python examples/01_draw.py`."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(code)) or "").strip()
        parts.append(
            f"## {path.name} {{#{path.name.lower().replace('.', '')}}}\n\n{about}\n\n```python\n{code.strip()}\n```"
        )
    return "\n\n".join(parts)
