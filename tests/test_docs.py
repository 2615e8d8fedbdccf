"""Every command, option, name and link of README.md, CONTRIBUTING.md and docs/ works.

Fenced `sh` blocks are run page by page, in order, in one folder: what a page says first is there for what it says next.
Three tables below say what is not run as it stands, and why: LIGHTER replaces a part, PARSED takes the command line
apart and runs nothing, OTHERS belong to other programs. `pytest -m slow` runs what SLOW names as it stands.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted import ScriptedPolicy

from triptych.apps import cli
from triptych.rl.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "triptych"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

# What is replaced, by what, and why. Later options win.
LIGHTER = (
    (r"triptych sft sketch", "triptych sft debug", "hours become two updates of every stage"),
    (r"triptych train [\w-]+", "triptych train debug", "minutes become two steps of a tiny random model"),
    (r"(triptych (?:train|sft) .*--resume)", r"\1", "an ended run is resumed: nothing is left to do"),
    (
        r"(triptych eval geneval(?:pp)?\b(?!.*--drawn).*)",
        r"\1 --limit 7 --seeds 1 --turns 1",
        "7 of 280 prompts, not all",
    ),
    (r"(triptych eval genevalpp.*--drawn.*)", r"\1 --limit 7", "the 7 prompts that were drawn"),
    (r"(triptych eval (?:ita|vqa).*)", r"\1 --limit 4", "4 questions a column"),
    (r"(triptych probe.*)", r"\1 --limit 1 --seeds 1 --turns 1", "one of 70 prompts"),
    (r"(triptych bench.*)", r"\1 --draws 1 --batch 2 --train-steps 0", "one draw instead of medians"),
)
# Only taken apart: the parser knows every option and value.
PARSED = (
    (r"--model (ByteDance-Seed/|/models/|\.\.\.)", "29 GB of weights and a GPU"),
    (r"--address ", "a server with a vision-language model"),
    (r"--device cuda", "a GPU"),
    (r"triptych judge drawn/", "a folder of a user's pictures, judged by a server"),
    (r"triptych eval tiif", "TIIF-Bench has no licence: its prompts are the user's own copy"),
    (r"triptych study ", "needs finished runs of hours; tests/eval/test_studies.py and tests/apps read small ones"),
)
# Commands of other programs.
OTHERS = (
    (r"(pip|python -m (venv|pip)|source) ", "installs"),
    (r"(pytest|scripts/check)", "the tests themselves"),
    (r"mkdocs ", ".ci/run builds the site"),
    (r"vllm serve ", "a server with a GPU"),
    (r"python (examples|scripts|tests)/", "tests/test_examples.py runs the examples; the file has to be there"),
)
SLOW = (
    (r"triptych sft (?!.*--help)", "two updates of eight stages take a quarter of a minute; tests/sft runs them, too"),
    (r"triptych bench", "half a minute"),
    (r"triptych probe", "draws and reads pictures with every skill"),
    (r"triptych eval (ita|vqa) (?!.*--drawn)", "renders a set of 3,360 pictures"),
)


@dataclass(frozen=True)
class Command:
    """A command line of a page, with the line that it stands in."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"

    def matches(self, table) -> bool:
        return any(re.search(row[0], self.text) for row in table)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start()) + 2, match[2]


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page in order: continued lines are joined, comments left out, `&&` parts two."""
    for language in ("sh", "console"):
        for start, block in blocks(page, language):
            line = start
            for text in block.replace("\\\n", "\0").split("\n"):
                words = shlex.split(text.replace("\0", " "), comments=True)
                for part in split(words, "&&"):
                    yield Command(page, line, shlex.join(part))
                line += 1 + text.count("\0")


def split(words: list[str], mark: str) -> Iterator[list[str]]:
    """The parts of a list between marks, empty ones left out."""
    part: list[str] = []
    for word in [*words, mark]:
        if word != mark:
            part.append(word)
        elif part:
            yield part
            part = []


def lighter(text: str) -> str:
    """The command as it is run here."""
    for pattern, instead, _ in LIGHTER:
        text = re.sub(pattern, instead, text)
    return text


COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if command.text.startswith("triptych ")]


@cache
def sketch(*arguments):
    """The packaged weights, loaded once; commands that train get a model of their own."""
    return cli._load(*arguments)


def play(arguments: list[str], page: Path) -> int:
    """Run a command line of triptych in this process; returns the exit code."""
    if arguments[0] in ("train", "sft"):
        return cli.main(arguments)
    if page.stem != "README" and arguments[0] in ("draw", "edit", "eval", "probe"):
        return cli.main(arguments, lambda *_: ScriptedPolicy())  # many pictures: of the same world, without weights
    return cli.main(arguments, sketch)


def prepare(page: Path) -> None:
    """Files that a reader of the page has already, in the current folder."""
    Path("prompts.txt").write_text("A photo of two red apples\nA photo of a blue cup\n")
    for name in ("photo.png", "clocks.png"):
        Image.fromarray(np.full((96, 96, 3), 200, np.uint8)).save(name)
    tiif = {
        "attribute": "color",
        "length": "short",
        "questions": ["Red?"],
        "gt_answers": ["yes"],
        "model_output": "yes",
    }
    reply = tiif if page.stem == "tiif" else {"tag": "color", "prompt": "a red apple", "correct": 1}
    Path("replies.jsonl").write_text(json.dumps(reply) + "\n")
    for before in ("runs/theirs", "OTHER"):
        if f"{before}/" in page.read_text() or f"{before} " in page.read_text():
            assert play(["eval", "genevalpp", "--limit", "7", "--turns", "1", "--out", before], page) == 0


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_known(command: Command):
    """Ours are run or at least taken apart; another program's is in the table with its reason."""
    assert command in OURS or command.matches(OTHERS), f"{command}: neither triptych nor in OTHERS"
    for file in re.findall(r"\b(?:examples|scripts|tests)/\S+\.py", command.text):
        assert (ROOT / file).is_file(), f"{command}: {file} is not there"


@pytest.mark.parametrize("command", OURS, ids=str)
def test_every_option_is_known_to_the_parser(command: Command):
    arguments = shlex.split(command.text)[1:]
    try:
        cli._parse(arguments)
    except SystemExit as stop:
        assert not stop.code and "--help" in arguments, f"{command}: the parser refuses it"


def run_page(page: Path, capfd, slow: bool) -> None:
    """Run the commands of a page in order, then its python blocks; with the slow ones, or without."""
    prepare(page)
    for command in OURS:
        if command.page != page or command.matches(PARSED) or (command.matches(SLOW) and not slow):
            continue
        capfd.readouterr()
        code = run(lighter(command.text), page)
        assert code == 0, f"{command}\nrun as {lighter(command.text)}\n{capfd.readouterr().err[-2000:]}"
    run_python(page)


@pytest.mark.parametrize("page", [p for p in PAGES if any(c.page == p for c in OURS)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_page(page, capfd, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({c.page for c in OURS if c.matches(SLOW)}), ids=lambda page: page.stem)
def test_pages_run_with_their_slow_commands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_page(page, capfd, slow=True)


def run(text: str, page: Path) -> int:
    arguments = shlex.split(text)[1:]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        return int(stop.value.code or 0)
    return play(arguments, page)


# Python blocks whose weights or servers are not here: their imports are run, the rest is compiled.
IMPORTED = {
    "geneval.md": "GenEval's detector is downloaded",
    "judges.md": "needs a server; tests/rewards/test_vlm.py runs it on one",
    "CONTRIBUTING.md": "lines of style",
}


def run_python(page: Path) -> None:
    """Run a page's python blocks one after another, in one namespace."""
    names: dict[str, object] = {}
    for _, block in blocks(page, "python"):
        tree = ast.parse(block)
        if page.name in IMPORTED:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, page.name, "exec"), names)


@pytest.mark.parametrize("page", [p for p in PAGES if not any(c.page == p for c in OURS)], ids=lambda p: p.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_python(page)


@cache
def options() -> set[str]:
    """Every option of every command, as the parser tells it."""
    texts = [help_of(command) for command in cli.COMMANDS if command not in ("train", "sft")]
    texts += [help_of("train", recipe) for recipe in RECIPES] + [help_of("sft", "sketch")]
    return {option for text in texts for option in re.findall(r"--?[a-z][\w.-]*", text)}


def help_of(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_in_the_text_exists(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = [span for span in SPAN.findall(text) if not span.startswith(("python ", "pip ", "mkdocs ", "pytest "))]
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", span)}
    unknown = sorted(named - options())
    assert not unknown, f"{page.name} names options that no command has: {', '.join(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_in_the_text_is_there(page: Path):
    """`loop.play` and `rl/tree.py` stand for names and files of the package; commands in the text are parsed."""
    for span in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if any(word in span for word in ("ROOM", "MODULE")):
            continue
        name = span.split("(")[0].removeprefix("triptych.")
        for file in re.findall(r"^(?:python )?([\w/-]+\.py)", span):
            assert any((folder / file).exists() for folder in (ROOT, PACKAGE)), f"{page.name}: no file {file}"
        if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[0] in MODULES and not name.endswith(SUFFIXES):
            assert resolve(name) is not None, f"{page.name}: no {span} in the package"
        elif span.startswith("triptych ") and span.split()[1] in cli.COMMANDS and span.split()[1:] != ["train"]:
            parse_span(page, span)


MODULES = {path.stem for path in [*PACKAGE.glob("*.py"), *(init.parent for init in PACKAGE.glob("*/__init__.py"))]}
SUFFIXES = (".py", ".json", ".jsonl", ".html", ".png", ".txt", ".md")


def resolve(name: str) -> object | None:
    """What a dotted name of the package stands for; None where there is no such thing."""
    parts = ["triptych", *name.split(".")]
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, part) and part not in fields:
                return None
            found = getattr(found, part, part)
        return found
    return None


def parse_span(page: Path, span: str) -> None:
    """A command in the text has options that exist; DIR, FILE, N and the like stand for something."""
    words = [re.sub(r"^[A-Z]$", "1", word) for word in shlex.split(span)[1:]]
    if any(word in ("...", "|") for word in words) or words in (["sft"], ["train"]):
        return
    unknown = {w for w in words if w.startswith("--")} - options()
    assert not unknown, f"{page.name}: `{span}` has options that do not exist: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / link).resolve()
        made = page.parent.name == "docs" and link in ("examples.md", "changelog.md", "log.md", "contributing.md")
        assert target.exists() or made, f"{page.name}: {link} is not there"


def test_every_key_of_a_training_step_is_documented(tmp_path: Path):
    assert cli.main(["train", "debug", "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    section = (ROOT / "docs" / "training.md").read_text().split("## Keys of steps.jsonl")[1].split("\n## ")[0]
    patterns = [re.escape(key).replace(r"\.\.\.", ".*") for key in SPAN.findall(section)]
    missing = [key for row in rows for key in row if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert not missing, f"training.md does not say what these keys of steps.jsonl are: {sorted(set(missing))}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
