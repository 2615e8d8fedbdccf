"""The command line: a table of commands, each with its options (commands.py) and the module that runs them.

A module is imported when its command runs, so that `triptych --help` needs no torch. Results go to stdout, and with
`--json` nothing else does. An error is one line on stderr, and the exit code is 2; after a signal it is 128 and the
signal's number, as shells count: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

from triptych.errors import ConfigError, TriptychError, TriptychWarning
from triptych.signals import install, uninstall
from triptych.text import printable

if TYPE_CHECKING:
    from triptych.apps.options import OpenModel
    from triptych.model.bagel import Bagel

# What is imported above takes a hundredth of a second; tyro and all else come within `main`, which knows of signals.

# Name of the command: the record of its options in commands.py, and the module of triptych.apps whose
# `run(options, open_model)` it calls.
COMMANDS: dict[str, tuple[str, str]] = {
    "draw": ("DrawOptions", "draw"),
    "edit": ("EditOptions", "draw"),
    "ask": ("AskOptions", "ask"),
    "judge": ("JudgeOptions", "judge"),
    "import": ("ImportOptions", "import_run"),
    "eval": ("EvalOptions", "evaluate"),
    "probe": ("ProbeOptions", "probe"),
    "score": ("ScoreOptions", "score"),
    "report": ("ReportOptions", "report"),
    "sft": ("SFTCommand", "sft"),
    "train": ("TrainCommand", "train"),
    "study": ("StudyOptions", "study"),
    "info": ("InfoOptions", "info"),
    "bench": ("BenchOptions", "bench"),
}
# The options of these are the fields of recipes, which need torch: the module has a `parse` of its own.
RECIPE_COMMANDS = ("sft", "train")

# Names of 0.1, which are answered with those of today. The two commands above have RENAMED_OPTIONS of their own: a key
# that ends in a dot stands for all options that begin with it, and a value is the new name, or "" where it is gone.
RENAMED_COMMANDS = {"lessons": "sft", "exam": "probe"}
RENAMED_VALUES = {"eval": {"rehearsal": "dev"}, "probe": {"rehearsal": "dev"}}

DESCRIPTION = "Reason, Reflect, Refine: a model that draws, looks at its image and corrects it."


class _Signals:
    """The signals that this process has received, and what they do to it."""

    def __init__(self, quiet: bool):
        self.quiet = quiet  # nothing is at stake: the process ends at once
        self.received: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.quiet:
            # No exception: in the middle of an import some libraries answer one with a traceback of their own.
            os._exit(128 + number)
        self.received.append(number)
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        raise KeyboardInterrupt

    def code(self, code: int) -> int:
        """The exit code of a run: where a signal has ended it, that of the first signal."""
        return 128 + self.received[0] if self.received and code == 130 else code


def main(argv: Sequence[str] | None = None, open_model: OpenModel | None = None) -> int:
    """Run one command line; returns the exit code. `open_model` stands in for `weights.load`."""
    is_program = argv is None  # else a caller's own process, which must not end while something is imported
    signals = _Signals(quiet=is_program)
    handlers = install(signals)
    try:
        return signals.code(_main(list(sys.argv[1:] if argv is None else argv), open_model, signals))
    finally:
        signals.quiet = is_program
        if not is_program:
            uninstall(handlers)


def _main(arguments: list[str], open_model: OpenModel | None, signals: _Signals) -> int:
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
            run = _module(arguments[0]).run
            signals.quiet = False  # from here on a signal keeps what is done
            return run(options, open_model or _load)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
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


def _leave_terminal() -> None:
    """Silence the streams of a terminal that is gone: a line to it would be an error, and end what is being kept."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream without a descriptor, as under test
            descriptor = stream.fileno()
            # A terminal that was hung up is still a device, and no terminal any more.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _parse(arguments: list[str]) -> Any:
    """The options of a command line, within their bounds. Raises ConfigError, or SystemExit after --help."""
    from triptych.apps.parsing import UsageError

    changes, line = _renamed(arguments)
    if not changes:
        return _parsed(arguments)
    answer = f"{', '.join(changes)}: {line}"
    if arguments[0] in RENAMED_COMMANDS:
        raise ConfigError(answer)
    try:  # where the old name is a file or a prompt, it is valid as it stands
        return _parsed(arguments)
    except UsageError:
        raise ConfigError(answer) from None


def _parsed(arguments: list[str]) -> Any:
    from triptych.apps import commands
    from triptych.apps.parsing import first_word, parse_options
    from triptych.bounds import check_bounds

    if arguments[0] in ("-h", "--help"):
        return _print_help()
    name, rest = first_word(arguments, COMMANDS, "command", "triptych")
    if name in RECIPE_COMMANDS:
        return _module(name).parse(rest)
    options = parse_options(getattr(commands, COMMANDS[name][0]), rest, f"triptych {name}")
    check_bounds(options)
    return options


def _print_help() -> None:
    """The list of commands. Raises SystemExit, as argparse does."""
    import tyro
    from tyro.conf import subcommand

    from triptych.apps import commands

    choices = tuple(Annotated[getattr(commands, options), subcommand(name)] for name, (options, _) in COMMANDS.items())
    union = Union[choices]  # noqa: UP007  (built from a table)
    tyro.cli(union, args=["--help"], prog="triptych", description=DESCRIPTION)  # pyright: ignore


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
        otherwise(printable(message), category, *rest)


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # a terminal that is gone
        print("triptych: " + printable(" ".join(text.split())), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
