"""Where drawn traces are written: one folder for one trace, a folder of folders and an index.html for many.

The folder of a trace holds what `Trace.save` writes, with verdicts and settings in trace.json and a page, trace.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.apps.trace_page import TraceCard, trace_card, trace_index, trace_page
from triptych.apps.trace_view import TraceView
from triptych.errors import OutputError
from triptych.files import check_writable, naming_errors, taken, unused_name, write_text


def write_trace(view: TraceView, folder: Path) -> Path:
    """Write the folder of one trace, page included, whole or not at all. Raises OutputError."""
    return view.trace.save(folder, view.extra(), {"trace.html": trace_page(view)})


def slug(text: str, longest: int = 48) -> str:
    """A folder name for a prompt: lower case, words joined by hyphens, cut at a word.

    >>> slug("A photo of three clocks on the left!")
    'a-photo-of-three-clocks-on-the-left'
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = ""
    for word in words:
        if len(name) + len(word) + 1 > longest:
            break
        name = f"{name}-{word}" if name else word
    return name or "untitled"


@dataclass
class OutputFolder:
    """The output of a run. Each trace is written when it is done, so that an error later on does not lose it."""

    folder: Path
    title: str
    many: bool
    named: bool = True  # by --out; a default name gives way to the next unused one
    claimed: bool = False  # whether the folder has been made, or is about to be
    records: list[dict[str, Any]] = field(default_factory=list)  # of each trace, for --json
    cards: list[TraceCard] = field(default_factory=list)  # of each trace, for the index

    @staticmethod
    def open(out: Path | None, title: str, seed: int, many: bool) -> OutputFolder:
        """The output at `out`, or at the next unused traces/PROMPT-SEED. OutputError if it exists or is read-only."""
        folder = unused_name(Path("traces") / f"{slug(title)}-{seed}") if out is None else out
        check_writable(folder)  # before the model is loaded, so that a bad --out costs no time
        return OutputFolder(folder, title, many, named=out is not None)

    def write(self, view: TraceView) -> Path:
        """Write one trace; returns its folder. OutputError if another process has taken the folder since `open`."""
        if not self.claimed:
            self._claim()
        # The user's own id: letters of every script, and no more bytes than leave room in a name of 255.
        own = (
            re.sub(r"[^\w.-]+", "_", str(view.settings.get("id", "")))
            .encode()[:120]
            .decode(errors="ignore")
            .strip("._")
        )
        name = f"{len(self.records):05d}-{own or slug(view.user_prompt)}-{view.trace.seed}"
        folder = self.folder / name if self.many else self.folder
        # Ctrl-C may come between the write and a later line, so the lists are filled first and checked afterwards.
        self.records.append(view.record(folder))
        self.cards.append(trace_card(folder.name, view))
        try:
            return write_trace(view, folder)
        finally:
            if not folder.exists():  # the write appears whole or not at all, so this tells which
                del self.records[-1], self.cards[-1]

    def _claim(self) -> None:
        """Make the folder of many in this process alone; a default name gives way to the next unused one."""
        self.claimed = True
        while True:
            if self.folder.exists() and not self.named:
                self.folder = unused_name(self.folder)
            if not self.many:
                return
            try:
                with naming_errors(self.folder):
                    self.folder.parent.mkdir(parents=True, exist_ok=True)
                    self.folder.mkdir()  # fails if it exists, so that of two processes one gets it
                return
            except OutputError:
                if not self.folder.exists():
                    raise
                if self.named:
                    raise taken(self.folder) from None

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.folder / ("index.html" if self.many else "trace.html")

    def close(self) -> None:
        """Write the index of many."""
        if self.many and self.cards:  # one trace has its own page; without a card there is no folder
            write_text(self.page, trace_index(self.title, self.cards))

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"folder": str(self.folder), "page": str(self.page), "traces": self.records}
