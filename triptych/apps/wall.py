"""Where exhibits hang: one folder for one trace, a folder of folders and an index.html for many."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.apps import gallery
from triptych.apps.exhibit import Exhibit, check_writable, free, naming_errors, slug, taken, write_page
from triptych.errors import OutputError


@dataclass
class Wall:
    """A run's output. Each exhibit is written when it comes, so that what is done survives what comes after."""

    folder: Path
    title: str
    many: bool
    named: bool = True  # by whoever runs it; else another name will do
    ours: bool = False  # once the folder has been made, or is about to be
    hung: list[tuple[dict[str, Any], gallery.Card]] = field(
        default_factory=list
    )  # what --json and the index say of each

    @staticmethod
    def open(out: Path | None, title: str, seed: int, many: bool) -> Wall:
        """A wall at `out`, or at the next free traces/PROMPT-SEED. OutputError if it is taken or cannot be written."""
        folder = free(Path("traces") / f"{slug(title)}-{seed}") if out is None else out
        check_writable(folder)
        return Wall(folder, title, many, named=out is not None)

    def hang(self, exhibit: Exhibit) -> Path:
        """Write one exhibit; returns its folder. OutputError if somebody else has taken the wall's folder since."""
        if not self.ours:
            self._take()
        name = f"{len(self.hung):05d}-{slug(exhibit.asked)}-{exhibit.trace.seed}"
        folder = self.folder / name if self.many else self.folder
        self.hung.append((exhibit.record(folder), gallery.card(folder.name, exhibit)))
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
        if self.many and self.hung:
            write_page(self.page, gallery.index(self.title, [card for _, card in self.hung]))

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"folder": str(self.folder), "page": str(self.page), "traces": [record for record, _ in self.hung]}
