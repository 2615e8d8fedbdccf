"""The one place that writes to a terminal: no prompt, file name, reply or error text steers it or is read as markup.

Rich prints through `open_console`, and single lines through `say`; `text.printable` writes out what is no plain text.
A test holds that no other module of the apps prints in its own way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from triptych.text import printable


def printable_lines(text: object) -> str:
    """`printable` of every line: the line ends of a text stay."""
    return "\n".join(map(printable, str(text).split("\n")))


def say(text: object, error: bool = False) -> None:
    """Print a result; or, with `error`, one line on stderr, whatever line ends its parts have."""
    # Flushed, so that it stands before what a crash or a closed pipe adds.
    print(printable(text) if error else printable_lines(text), file=sys.stderr if error else sys.stdout, flush=True)


class SafeConsole(Console):
    """A console to which every text is text, and which falls silent when its pipe is closed: the run goes on then, and
    no finished image is lost."""

    def on_broken_pipe(self) -> None:  # rich's own ends the process
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def render_str(self, text: str, **options: Any) -> Text:  # every string, those in the cells of tables too
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # A `Text` has its styles by position. Only a hostile one is rebuilt, and then in its base style alone.
        if isinstance(renderable, Text) and (plain := printable_lines(renderable.plain)) != renderable.plain:
            renderable = renderable.blank_copy(plain)
        return super().render(renderable, options)


def open_console(as_json: bool) -> Console:
    """Where progress is printed: on stderr when stdout is kept for JSON."""
    return SafeConsole(stderr=as_json, highlight=False, emoji=False, markup=False)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar, such as "{task.description}", whose values are no markup."""
    return TextColumn(template, markup=False)


def progress_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """A progress bar; without columns of its own it counts samples, and its field `right` holds a running result."""
    # Twice a second: a bar should cost nothing beside the work that it shows.
    return Progress(*(columns or _count_columns()), console=console, refresh_per_second=2)


def _count_columns() -> list[ProgressColumn]:
    return [
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        text_column("{task.fields[right]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
