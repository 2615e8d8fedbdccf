"""A trace made ready to be shown: why it stopped, what a judge says of each picture, and how it was drawn.

The folder that every door leaves behind is written here: what `Trace.save` writes, with the extra facts in trace.json
and the page trace.html beside it. It appears under its name whole, or not at all.

Where exhibits hang: one folder for one trace, a folder of folders and an index.html for many.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from triptych.errors import OutputError
from triptych.trace import Trace, Verdict

Stop = Literal["model", "unread", "limit", "interrupted"]


@dataclass(frozen=True, eq=False)
class TraceView:
    """A trace with what a reader wants to know of it; `verdicts` has one per picture, or none where nobody judged."""

    trace: Trace
    stop: Stop
    turns: int  # the limit it was drawn under
    verdicts: tuple[Verdict, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The prompt as a person typed it; the trace holds what the model was told."""
        return self.settings.get("asked", self.trace.prompt.text)

    @property
    def edits(self) -> int:
        """Pictures that were made from another picture."""
        return sum(turn.drew is not None and turn.instruction is not None for turn in self.trace.turns)

    @property
    def why(self) -> str:
        """Why it stopped, in words."""
        return {
            "model": "the model said that no further edit is needed",
            "unread": "the reflection holds no instruction, which counts as a stop",
            "limit": f"turn limit reached ({self.turns})",
            "interrupted": "interrupted",
        }[self.stop]

    @property
    def verdict(self) -> Verdict | None:
        """The judge's word on the final picture."""
        return self.verdicts[-1] if self.verdicts else None

    @property
    def seconds(self) -> float:
        """Model time of the whole trace."""
        return sum(sum(turn.seconds.values()) for turn in self.trace.turns)

    def extra(self) -> dict[str, Any]:
        """What joins the trace's own record in trace.json."""
        return {
            "stop": self.stop,
            "turn_limit": self.turns,
            "verdicts": [_verdict_record(verdict) for verdict in self.verdicts],
            "settings": dict(self.settings),
        }

    def record(self, folder: Path) -> dict[str, Any]:
        """One trace as `--json` prints it; everything else is in the folder's trace.json."""
        return {
            "folder": str(folder),
            "asked": self.asked,
            "prompt": self.trace.prompt.text,
            "seed": self.trace.seed,
            "final": str(folder / "final.png") if self.trace.image is not None else None,
            "edits": self.edits,
            "stop": self.stop,
            "why": self.why,
            "verdict": None if self.verdict is None else _verdict_record(self.verdict),
            "seconds": [dict(turn.seconds) for turn in self.trace.turns],
        }

    def hang(self, folder: Path) -> Path:
        """Write the folder, page included. Raises OutputError, and leaves nothing behind, if that cannot be done."""
        from triptych.apps import trace_page

        folder = Path(folder)
        with naming_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
                inside = self.trace.save(Path(temporary) / folder.name, self.extra())
                (inside / "trace.html").write_text(trace_page.page(self), encoding="utf-8")
                if folder.exists():
                    raise taken(folder)
                os.rename(inside, folder)
        return folder

    @staticmethod
    def load(folder: Path) -> TraceView:
        """Read back what `hang` wrote."""
        record = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))
        verdicts = tuple(Verdict(v["score"], tuple(v["passed"]), tuple(v["failed"])) for v in record["verdicts"])
        return TraceView(Trace.load(folder), record["stop"], record["turn_limit"], verdicts, record["settings"])


def _verdict_record(verdict: Verdict) -> dict[str, Any]:
    return {"score": verdict.score, "passed": list(verdict.passed), "failed": list(verdict.failed)}


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


def free(folder: Path) -> Path:
    """The first of `folder`, `folder-2`, `folder-3`, ... that does not exist."""
    tried, number = folder, 1
    while tried.exists():
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


def taken(folder: Path) -> OutputError:
    """The error for an output folder that is already there."""
    return OutputError(f"{folder} exists; expected a new folder, so that nothing is overwritten: choose another --out")


def check_writable(folder: Path) -> None:
    """Raise OutputError now, before any work, if `folder` exists or could not be made."""
    if folder.exists():
        raise taken(folder)
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    with naming_errors(folder), tempfile.TemporaryDirectory(dir=parent, prefix=".triptych-"):
        pass


@contextmanager
def naming_errors(folder: Path) -> Iterator[None]:
    """Turn the system's word on why `folder` cannot be written into one line that says what to do."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        raise OutputError(f"cannot write {folder}: {reason}; choose a folder that can be written with --out") from error


def write_page(path: Path, text: str) -> None:
    """Write a page under its name whole or not at all; an older one is replaced. Raises OutputError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_errors(path):
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@dataclass
class OutputFolder:
    """A run's output. Each exhibit is written when it comes, so that what is done survives what comes after."""

    folder: Path
    title: str
    many: bool
    named: bool = True  # by whoever runs it; else another name will do
    ours: bool = False  # once the folder has been made, or is about to be
    hung: list[tuple[dict[str, Any], Any]] = field(default_factory=list)  # what --json and the index say of each

    @staticmethod
    def open(out: Path | None, title: str, seed: int, many: bool) -> OutputFolder:
        """A wall at `out`, or at the next free traces/PROMPT-SEED. OutputError if it is taken or cannot be written."""
        folder = free(Path("traces") / f"{slug(title)}-{seed}") if out is None else out
        check_writable(folder)
        return OutputFolder(folder, title, many, named=out is not None)

    def hang(self, exhibit: TraceView) -> Path:
        """Write one exhibit; returns its folder. OutputError if somebody else has taken the wall's folder since."""
        from triptych.apps import trace_page

        if not self.ours:
            self._take()
        name = f"{len(self.hung):05d}-{slug(exhibit.asked)}-{exhibit.trace.seed}"
        folder = self.folder / name if self.many else self.folder
        self.hung.append((exhibit.record(folder), trace_page.card(folder.name, exhibit)))
        try:
            return exhibit.hang(folder)
        finally:
            if not folder.exists():  # an error, or Ctrl-C while writing
                self.hung.pop()

    def _take(self) -> None:
        """Make the folder of many ours alone; where the name was not asked for, the next free one."""
        self.ours = True
        while True:
            if self.folder.exists() and not self.named:
                self.folder = free(self.folder)
            if not self.many:
                return
            try:
                with naming_errors(self.folder):
                    self.folder.parent.mkdir(parents=True, exist_ok=True)
                    self.folder.mkdir()
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
        from triptych.apps import trace_page

        if self.many and self.hung:
            write_page(self.page, trace_page.index(self.title, [card for _, card in self.hung]))

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"folder": str(self.folder), "page": str(self.page), "traces": [record for record, _ in self.hung]}
