"""The command line: a table of commands, each with its options (commands.py) and the module that runs them.

A module is imported when its command runs, so that `triptych --help` needs no torch. Results go to stdout, and with
`--json` nothing else does. An error is one line on stderr, and the exit code is 2; after Ctrl-C it is 130.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from triptych.apps import commands
from triptych.apps.options import OpenModel
from triptych.bounds import check_bounds
from triptych.errors import ConfigError, TriptychError, TriptychWarning

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

# Name of the command: its options, and the module of triptych.apps whose `run(options, open_model)` it calls.
COMMANDS: dict[str, tuple[type, str]] = {
    "draw": (commands.DrawOptions, "draw"),
    "edit": (commands.EditOptions, "draw"),
    "ask": (commands.AskOptions, "ask"),
    "judge": (commands.JudgeOptions, "judge"),
    "import": (commands.ImportOptions, "import_run"),
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
# The options of these are the fields of recipes, which need torch: the module has a `parse` of its own.
RECIPE_COMMANDS = ("sft", "train")

# Names of 0.1, which are answered with those of today. The two commands above have RENAMED_OPTIONS of their own: a key
# that ends in a dot stands for all options that begin with it, and a value is the new name, or "" where it is gone.
RENAMED_COMMANDS = {"lessons": "sft", "exam": "probe"}
RENAMED_VALUES = {"eval": {"rehearsal": "dev"}, "probe": {"rehearsal": "dev"}}

DESCRIPTION = "Reason, Reflect, Refine: a model that draws, looks at its image and corrects it."


def main(argv: Sequence[str] | None = None, open_model: OpenModel | None = None) -> int:
    """Run one command line; returns the exit code. `open_model` stands in for `weights.load`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end the run
    if arguments in ([], ["help"]):
        arguments = ["--help"]
    if arguments in (["--version"], ["-V"]):  # tyro has no such option
        from triptych import __version__

        print(f"triptych {__version__}", flush=True)
        return 0
    try:
        options = _parse(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("always", TriptychWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            return _module(arguments[0]).run(options, open_model or _load)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)  # 128 + SIGINT, as shells count
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail once more
        return 0
    except (TriptychError, OSError, MemoryError) as error:  # any other one is a fault of ours and keeps its traceback
        return _complain(str(error) or type(error).__name__, 2)
    except RuntimeError as error:
        # torch has a class for CUDA's out-of-memory error and none for the CPU's
        if not any(words in str(error).lower() for words in ("out of memory", "allocate memory")):
            raise
        return _complain("the device is out of memory; lower --batch, or set --dtype bfloat16", 2)


def _parse(arguments: list[str]) -> Any:
    """The options of a command line, within their bounds. Raises ConfigError, or SystemExit as argparse does."""
    changes, line = _renamed(arguments)
    if not changes:
        return _parsed(arguments)
    answer = f"{', '.join(changes)}: {line}"
    if arguments[0] in RENAMED_COMMANDS:
        raise ConfigError(answer)
    try:
        with redirect_stderr(io.StringIO()):  # where the old name is a file or a prompt, it is valid as it stands
            return _parsed(arguments)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(answer) from None


def _parsed(arguments: list[str]) -> Any:
    if arguments[0] in RECIPE_COMMANDS:
        return _module(arguments[0]).parse(arguments[1:])
    choices = tuple(Annotated[options, subcommand(name)] for name, (options, _) in COMMANDS.items())
    union = Union[choices]  # noqa: UP007  (built from a table)
    options = tyro.cli(union, args=arguments, prog="triptych", description=DESCRIPTION)  # pyright: ignore
    check_bounds(options)
    return options


def _renamed(arguments: list[str]) -> tuple[list[str], str]:
    """A sentence for each older name in a command line, and the command line in the new names."""
    name, *words = arguments
    command = RENAMED_COMMANDS.get(name, name)
    changes = [f"`{name}` is `{command}` now"] if command != name else []
    table = dict(RENAMED_VALUES.get(command, {}))
    if command in RECIPE_COMMANDS:
        table |= _module(command).RENAMED_OPTIONS
    line = ["triptych", command]
    for word in words:
        option, equals, value = word.partition("=")
        new = _new_name(option, table)
        if new == "":
            changes.append(f"`{option}` is no longer an option")
        elif new is not None:
            changes.append(f"`{option}` is `{new}` now")
        line.append(word if not new else new + equals + value)
    return changes, shlex.join(line)


def _new_name(option: str, table: dict[str, str]) -> str | None:
    """The new name of an option, "" where it is gone, None where it is not renamed; of prefixes the longest counts."""
    for old in sorted(table, key=len, reverse=True):
        if option == old or (old.endswith(".") and option.startswith(old)):
            return table[old] and table[old] + option[len(old) :]
    return None


def _module(name: str) -> ModuleType:
    """The module that runs a command."""
    return import_module(f"triptych.apps.{COMMANDS[name][1]}")


def _load(*arguments: Any) -> Bagel:
    from triptych.model.weights import load

    return load(*arguments)


def _show_warning(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any) -> None:
    if issubclass(category, TriptychWarning):
        _complain(str(message), 0)
    else:
        otherwise(message, category, *rest)


def _complain(text: str, code: int) -> int:
    print("triptych: " + " ".join(text.split()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
