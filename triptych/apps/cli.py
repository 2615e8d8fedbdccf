"""The command line: parse, call one function, print.

Each command is a typed record and its `run`. Rooms are imported when a command runs, so that `triptych --help` is
quick. Results go to stdout (with `--json` nothing else does). What went wrong goes to stderr in one line, and the exit
code is 2; after Ctrl-C it is 130.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from triptych.apps.commands import SFT, Ask, Bench, Draw, Edit, Evaluate, Info, Probe, Train, _print
from triptych.apps.judge import JudgePictures
from triptych.apps.options import Open
from triptych.apps.report import ReportRuns
from triptych.apps.score import Score
from triptych.apps.study import Study
from triptych.errors import TriptychError

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel


COMMANDS = {
    "draw": Draw,
    "edit": Edit,
    "ask": Ask,
    "judge": JudgePictures,
    "eval": Evaluate,
    "exam": Probe,
    "score": Score,
    "report": ReportRuns,
    "lessons": SFT,
    "train": Train,
    "study": Study,
    "info": Info,
    "bench": Bench,
}
EPILOG = "Reason, Reflect, Refine: a model that draws, looks at its picture and corrects it."


def main(argv: Sequence[str] | None = None, open_model: Open | None = None) -> int:
    """Run one command line; returns the exit code. `open_model` stands in for `weights.load`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show costs nobody a picture
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if arguments in ([], ["help"]):
        arguments = ["--help"]
    if arguments in (["--version"], ["-V"]):
        from triptych import __version__

        _print(f"triptych {__version__}")
        return 0
    if open_model is None:
        open_model = _load
    try:
        return _parse(arguments).run(open_model)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; let the exit be quiet too
        return 0
    except (TriptychError, OSError, MemoryError) as error:
        return _complain(str(error) or type(error).__name__, 2)
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in ("out of memory", "allocate memory")):  # CUDA's; the CPU's
            raise
        return _complain("the device is out of memory; lower --batch, or set --dtype bfloat16", 2)


def _parse(arguments: list[str]) -> Any:
    if arguments[0] in ("lessons", "train"):  # their options are the fields of recipes, which live in a heavy room
        from triptych.apps import sft as school
        from triptych.apps import train

        return (school if arguments[0] == "lessons" else train).parse(arguments[1:])
    choices = tuple(Annotated[command, subcommand(name)] for name, command in COMMANDS.items())
    union = Union[choices]  # noqa: UP007  (built from a table)
    return tyro.cli(union, args=arguments, prog="triptych", description=EPILOG)  # pyright: ignore


def _load(*arguments: Any) -> Bagel:
    from triptych.model.weights import load

    return load(*arguments)


def _complain(text: str, code: int) -> int:
    print("triptych: " + " ".join(text.split()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
