"""The terminal: a run told as it happens, line by line, with the text as it is written and a bar per beat."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triptych.apps.output import TraceView
from triptych.data.language import plural
from triptych.loop import Listener
from triptych.model.templates import CLOSE, parse_thought
from triptych.trace import Item, Prompt, Verdict

LABEL = 10  # columns of the word at the left
# of a bar that counts samples; the field `right` tells how they fare
COUNTING = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[right]}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
HUES = {"plan": "blue", "draw": "blue", "reflect": "yellow", "edit": "cyan"}


class Steady(Console):
    """A console whose reader may leave: the run goes on in silence, and what it makes is kept."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def open_console(as_json: bool) -> Console:
    """Where a run is told: on stderr when stdout is kept for JSON."""
    return Steady(stderr=as_json, highlight=False, emoji=False)


class TurnListener(Listener):
    """A listener that is also told when the beats that it has heard of are over."""

    def close(self) -> None:
        """Nothing more comes for now."""


class Narrator(TurnListener):
    """Tells a play of `count` traces as it goes."""

    def __init__(self, console: Console, count: int):
        self.console, self.count = console, count
        self.turn = 0
        self._begin("", 0)
        self.ended: float | None = self.began  # nothing to tell yet

    def beat(self, name: str, rows: list[int]) -> None:
        self.close()
        self.turn += name == "reflect"
        titles = {"plan": "Reason", "draw": "" if self.name == "plan" else "Reason", "reflect": f"Turn {self.turn}"}
        title = titles.get(name)
        self._begin(name, len(rows))
        if title:
            self.console.print(Text(f"\n{title}", "bold"))
        if self.console.is_terminal:
            self.live = live = Live(self._render(), console=self.console, refresh_per_second=12)
            live.start()

    def said(self, row: int, text: str) -> None:
        self.texts[row] = text
        self._update()

    def step(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._update()

    def close(self) -> None:
        """End the beat that is being told, its last state left standing."""
        if self.ended is not None:
            return
        self.ended = time.perf_counter()
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
        self.began, self.ended = time.perf_counter(), None
        self.live: Live | None = None

    def _update(self) -> None:
        if self.live is not None:
            self.live.update(self._render())

    def _render(self) -> RenderableType:
        if self.name in ("draw", "edit"):
            return _line(self.name, _bar(self.done, self.total, self._clock()))
        if self.count > 1:
            newest = _short(parse_thought(next(reversed(self.texts.values()), "")), 48)
            return _line(self.name, Text.assemble(f"{self.rows} traces  ", (newest, "dim"), "  ", self._clock()))
        return _spoken(self.name, self.texts.get(0, ""), self._clock())

    def _clock(self) -> Text:
        if self.ended is None:
            return Text("")
        return Text(f"{self.ended - self.began:.2f} s", "dim")


def _line(name: str, content: RenderableType) -> Table:
    """A row: the beat's name at the left, the rest beside it."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=LABEL, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(f"  {name}", HUES.get(name, "dim")), content)
    return row


def _spoken(name: str, text: str, clock: Text) -> Group:
    """What is being said: the thought, and below it the instruction once the thought is closed."""
    lines = [_line(name, Text.assemble(parse_thought(text), "  ", clock))]
    if name == "reflect" and CLOSE in text:
        lines.append(_line("", Text.assemble(("→ ", "bold cyan"), (text.rsplit(CLOSE, 1)[1].strip(), "bold"))))
    return Group(*lines)


def _bar(done: int, total: int, clock: Text) -> Table:
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(total, 1), completed=done, width=36)
    row.add_row(bar, Text(f"{done}/{total}" if total else ""), clock)
    return row


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def show_prompt(console: Console, asked: str, prompt: Prompt) -> None:
    """The prompt, and how it was understood where a spec was read from it."""
    console.print(Text(asked, "bold"))
    if prompt.spec is not None:
        items = [item_words(item, prompt.spec.include) for item in prompt.spec.include]
        console.print(_line("asked", Text(", ".join(items), "dim")))


def item_words(item: Item, others: Sequence[Item]) -> str:
    """An item in short: "3 red clocks (left)"."""
    words = [str(item.count), item.size, item.color, plural(item.name) if item.count > 1 else item.name]
    place = item.region and f"({item.region})"
    relation = item.position and f"({item.position[0]} {others[item.position[1]].name})"
    return " ".join(word for word in (*words, place, relation) if word)


def show_end(console: Console, exhibit: TraceView) -> None:
    """Why one trace stopped, and what the judge says of its last picture."""
    console.print()
    console.print(_line("stopped", Text(f"{exhibit.why}, {exhibit.seconds:.2f} s of model time")))
    if exhibit.verdict is not None:
        console.print(_line("judge", verdict_text(exhibit.verdict)))


def show_row(console: Console, exhibit: TraceView, folder: Path) -> None:
    """One of many traces in a line."""
    right = exhibit.verdict and exhibit.verdict.score == 1.0
    mark = Text("  ") if exhibit.verdict is None else Text("✓ ", "green") if right else Text("✗ ", "red")
    facts = f"{exhibit.edits} edit{'' if exhibit.edits == 1 else 's'}, stopped by {exhibit.stop}"
    console.print(Text.assemble("  ", mark, f"{folder.name}  ", (facts, "dim")), soft_wrap=True)


def show_folder(console: Console, folder: Path, page: Path) -> None:
    """The last line: where everything is."""
    console.print(Text.assemble(f"  {'folder':<{LABEL - 1}}", (f"{folder}/", "bold")), soft_wrap=True)
    console.print(Text.assemble(f"  {'open':<{LABEL - 1}}", (str(page), "dim")), soft_wrap=True)


def verdict_text(verdict: Verdict) -> Text:
    """The checks, the failed ones first."""
    failed = [part for check in verdict.failed for part in (Text("✗ ", "red"), Text(f"{check}  "))]
    held = f"✓ {len(verdict.passed)} of {len(verdict.passed) + len(verdict.failed)} checks hold"
    return Text.assemble(*failed, (held, "green" if not verdict.failed else "dim"))
