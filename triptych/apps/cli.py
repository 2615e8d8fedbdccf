"""The command line: a table of commands, each with its options (commands.py) and the module that runs them.

A module is imported when its command runs, so that `triptych --help` needs no torch. Results go to stdout, and with
`--json` nothing else does. An error is one line on stderr, and the exit code is 2; after Ctrl-C it is 130.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from triptych.apps import commands
from triptych.apps.options import OpenModel
from triptych.bounds import check_bounds
from triptych.errors import ConfigError, TriptychError

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

# Name of the command: its options, and the module of triptych.apps whose `run(options, open_model)` it calls.
COMMANDS: dict[str, tuple[type, str]] = {
    "draw": (commands.DrawOptions, "draw"),
    "edit": (commands.EditOptions, "draw"),
    "ask": (commands.AskOptions, "ask"),
    "judge": (commands.JudgeOptions, "judge"),
    "eval": (commands.EvalOptions, "evaluate"),
    "probe": (commands.ProbeOptions, "probe"),
    "score": (commands.ScoreOptions, "score"),
    "report": (commands.ReportOptions, "report"),
    "sft": (commands.SFTCommand, "sft"),
    "train": (commands.TrainCommand, "train"),
    "study": (commands.StudyOptions, "study"),
    "info": (commands.InfoOptions, "info"),
    "bench": (commands.BenchOptions, "bench"),
}
RECIPES = ("sft", "train")  # their options are fields of recipes, which need torch: the module has its own `parse`

# Older names, which are answered with the new ones. A module may have RENAMED_OPTIONS of its own: a key that ends in a
# dot stands for all options that begin with it, and a value is the new name, or "" where the option is gone.
RENAMED_COMMANDS = {"lessons": "sft", "exam": "probe"}
RENAMED_VALUES = {"eval": {"rehearsal": "dev"}, "probe": {"rehearsal": "dev"}}

EPILOG = "Reason, Reflect, Refine: a model that draws, looks at its picture and corrects it."


def main(argv: Sequence[str] | None = None, open_model: OpenModel | None = None) -> int:
    """Run one command line; returns the exit code. `open_model` stands in for `weights.load`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end the run
    if arguments in ([], ["help"]):
        arguments = ["--help"]
    if arguments in (["--version"], ["-V"]):
        from triptych import __version__

        print(f"triptych {__version__}", flush=True)
        return 0
    try:
        options = _parse(arguments)
        module = _module(arguments[0])
        run = module.run if hasattr(module, "run") else lambda options, open_model: options.run(open_model)
        return run(options, open_model or _load)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail once more
        return 0
    except (TriptychError, OSError, MemoryError) as error:
        return _complain(str(error) or type(error).__name__, 2)
    except RuntimeError as error:
        # torch has a class for CUDA's out-of-memory error and none for the CPU's
        if not any(words in str(error).lower() for words in ("out of memory", "allocate memory")):
            raise
        return _complain("the device is out of memory; lower --batch, or set --dtype bfloat16", 2)


def _parse(arguments: list[str]) -> Any:
    """The options of a command line, within their bounds. Raises ConfigError, or SystemExit as argparse does."""
    if renamed := RENAMED_COMMANDS.get(arguments[0]):
        line = " ".join(["triptych", renamed, *arguments[1:]])
        raise ConfigError(f"`{arguments[0]}` is `{renamed}` now: {line}")
    renames = _renames(arguments)
    if not renames:
        return _parsed(arguments)
    try:
        with redirect_stderr(io.StringIO()):  # an old name may stand for a file or a prompt, where it is valid
            return _parsed(arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError("; ".join(renames)) from None


def _parsed(arguments: list[str]) -> Any:
    if arguments[0] in RECIPES:
        return _module(arguments[0]).parse(arguments[1:])
    choices = tuple(Annotated[options, subcommand(name)] for name, (options, _) in COMMANDS.items())
    union = Union[choices]  # noqa: UP007  (built from a table)
    options = tyro.cli(union, args=arguments, prog="triptych", description=EPILOG)  # pyright: ignore
    check_bounds(options)
    return options


def _renames(arguments: list[str]) -> list[str]:
    """For each older name in a command line, a sentence with the new one."""
    name, *words = arguments
    table = dict(RENAMED_VALUES.get(name, {}))
    if name in RECIPES:
        table |= getattr(_module(name), "RENAMED_OPTIONS", {})
    return list(filter(None, (_rename(word.partition("=")[0], table) for word in words)))


def _rename(word: str, table: dict[str, str]) -> str | None:
    # of several prefixes the longest one counts
    for old in sorted(table, key=len, reverse=True):
        if word == old or (old.endswith(".") and word.startswith(old)):
            new = table[old] + word[len(old) :] if table[old] else ""
            return f"`{word}` is `{new}` now" if new else f"`{word}` is no longer an option"
    return None


def _module(name: str) -> ModuleType:
    """The module that runs a command."""
    return import_module(f"triptych.apps.{COMMANDS[name][1]}")


def _load(*arguments: Any) -> Bagel:
    from triptych.model.weights import load

    return load(*arguments)


def _complain(text: str, code: int) -> int:
    print("triptych: " + " ".join(text.split()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
