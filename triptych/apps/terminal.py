"""Progress on the terminal: the text as it is sampled, and a bar of flow steps per beat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triptych.apps.console import say
from triptych.apps.trace_view import TraceView
from triptych.data.language import plural
from triptych.loop import Listener
from triptych.model.images import frames_note, read_image
from triptych.model.templates import CLOSE, parse_thought
from triptych.trace import Item, Prompt, Verdict

LABEL = 10  # characters of the word at the left
BEAT_COLORS = {"plan": "blue", "draw": "blue", "reflect": "yellow", "edit": "cyan"}


def read_picture(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A picture of the user's; of an animation the first frame, which is said on stderr. Raises PictureError."""
    image = read_image(path)
    if note := frames_note(path):
        say(f"note: {note}", error=True)
    return image


class TurnListener(Listener):
    """A listener that is also told when a turn has ended."""

    def close(self) -> None:
        """The turn has ended, or was interrupted."""


class TerminalListener(TurnListener):
    """Prints the progress of a batch of `count` traces."""

    def __init__(self, console: Console, count: int):
        self.console, self.count = console, count
        self.turn = 0
        self._begin("", 0)
        self.end_time: float | None = self.start_time  # no beat has begun

    def on_beat(self, name: str, rows: list[int]) -> None:
        self.close()
        self.turn += name == "reflect"  # each turn of Refine begins with it
        titles = {"plan": "Reason", "draw": "" if self.name == "plan" else "Reason", "reflect": f"Turn {self.turn}"}
        title = titles.get(name)  # edit stands under the title of its reflection
        self._begin(name, len(rows))
        if title:
            self.console.print(Text(f"\n{title}", "bold"))
        if self.console.is_terminal:  # a file or a pipe gets only the last state of a beat, from `close`
            self.live = live = Live(self._render(), console=self.console, refresh_per_second=12)
            live.start()

    def on_text(self, row: int, text: str) -> None:
        self.texts[row] = text
        self._update()

    def on_step(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._update()

    def close(self) -> None:
        """End the current beat; its last state stays on the screen."""
        if self.end_time is not None:
            return
        self.end_time = time.perf_counter()
        if self.live is None:
            self.console.print(self._render())
            return
        self.live.update(self._render())
        self.live.stop()
        self.live = None

    def _begin(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows
        self.texts: dict[int, str] = {}
        self.done, self.total = 0, 0
        self.start_time, self.end_time = time.perf_counter(), None
        self.live: Live | None = None

    def _update(self) -> None:
        if self.live is not None:
            self.live.update(self._render())

    def _render(self) -> RenderableType:
        if self.name in ("draw", "edit"):
            return _line(self.name, _bar(self.done, self.total, self._clock()))
        if self.count > 1:
            newest = parse_thought(next(reversed(self.texts.values()), ""))
            newest = newest if len(newest) <= 48 else newest[:47] + "…"  # 48: one line of 80 columns
            return _line(self.name, Text.assemble(f"{self.rows} traces  ", (newest, "dim"), "  ", self._clock()))
        return _text_lines(self.name, self.texts.get(0, ""), self._clock())

    def _clock(self) -> Text:
        if self.end_time is None:
            return Text("")
        return Text(f"{self.end_time - self.start_time:.2f} s", "dim")


def _line(name: str, content: RenderableType) -> Table:
    """A row: the beat's name at the left, the rest beside it."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=LABEL, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(f"  {name}", BEAT_COLORS.get(name, "dim")), content)
    return row


def _text_lines(name: str, text: str, clock: Text) -> Group:
    """The thought so far, and below it the instruction once the thought is closed."""
    lines = [_line(name, Text.assemble(parse_thought(text), "  ", clock))]
    if name == "reflect" and CLOSE in text:
        lines.append(_line("", Text.assemble(("→ ", "bold cyan"), (text.rsplit(CLOSE, 1)[1].strip(), "bold"))))
    return Group(*lines)


def _bar(done: int, total: int, clock: Text) -> Table:
    row = Table.grid(padding=(0, 2))
    # 36: beside the label there is room for the count and the seconds in 80 columns
    bar = ProgressBar(total=max(total, 1), completed=done, width=36)
    row.add_row(bar, Text(f"{done}/{total}" if total else ""), clock)
    return row


def print_prompt(console: Console, user_prompt: str, prompt: Prompt) -> None:
    """The prompt as it was typed, and the spec that was read from it, if any."""
    console.print(Text(user_prompt, "bold"))
    if prompt.spec is not None:
        items = [item_words(item, prompt.spec.include) for item in prompt.spec.include]
        console.print(_line("spec", Text(", ".join(items), "dim")))


def item_words(item: Item, others: Sequence[Item]) -> str:
    """An item in short: "3 red clocks (left)"."""
    words = [str(item.count), item.size, item.color, plural(item.name) if item.count > 1 else item.name]
    place = item.region and f"({item.region})"
    relation = item.position and f"({item.position[0]} {others[item.position[1]].name})"
    return " ".join(word for word in (*words, place, relation) if word)


def print_result(console: Console, view: TraceView) -> None:
    """Why a single trace stopped, and the verdict on its last image."""
    console.print()
    console.print(_line("stopped", Text(f"{view.why}, {view.seconds:.2f} s of model time")))
    if view.verdict is not None:
        console.print(_line("judge", verdict_text(view.verdict)))


def print_row(console: Console, view: TraceView, folder: Path) -> None:
    """One of many traces, in one line."""
    right = view.verdict and view.verdict.score == 1.0
    mark = Text("  ") if view.verdict is None else Text("✓ ", "green") if right else Text("✗ ", "red")
    facts = f"{view.edits} edit{'' if view.edits == 1 else 's'}, stopped by {view.stop}"
    console.print(Text.assemble("  ", mark, f"{folder.name}  ", (facts, "dim")), soft_wrap=True)


def print_folder(console: Console, folder: Path, page: Path) -> None:
    """The last line: where everything is."""
    console.print(Text.assemble(f"  {'folder':<{LABEL - 1}}", (f"{folder}/", "bold")), soft_wrap=True)
    console.print(Text.assemble(f"  {'open':<{LABEL - 1}}", (str(page), "dim")), soft_wrap=True)


def verdict_text(verdict: Verdict) -> Text:
    """The checks, the failed ones first."""
    failed = [part for check in verdict.failed for part in (Text("✗ ", "red"), Text(f"{check}  "))]
    passed = f"✓ {len(verdict.passed)} of {len(verdict.passed) + len(verdict.failed)} checks pass"
    return Text.assemble(*failed, (passed, "green" if not verdict.failed else "dim"))
