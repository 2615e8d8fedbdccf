"""Where exhibits hang: one folder for one trace, a folder of folders and an index.html for many."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.apps import gallery
from triptych.apps.exhibit import Exhibit, check_writable, free, slug, write_page


@dataclass
class Wall:
    """A run's output. Each exhibit is written when it comes, so that what is done survives what comes after."""

    folder: Path
    title: str
    many: bool
    hung: list[dict[str, Any]] = field(default_factory=list)
    cards: list[gallery.Card] = field(default_factory=list)

    @staticmethod
    def open(out: Path | None, title: str, seed: int, many: bool) -> Wall:
        """A wall at `out`, or at the next free traces/PROMPT-SEED. OutputError if it is taken or cannot be written."""
        folder = free(Path("traces") / f"{slug(title)}-{seed}") if out is None else out
        check_writable(folder)
        return Wall(folder, title, many)

    def hang(self, exhibit: Exhibit) -> Path:
        """Write one exhibit; returns its folder."""
        name = f"{len(self.hung):05d}-{slug(exhibit.asked)}-{exhibit.trace.seed}"
        folder = exhibit.hang(self.folder / name if self.many else self.folder)
        self.hung.append(exhibit.record(folder))
        self.cards.append(gallery.card(folder.name, exhibit))
        return folder

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.folder / ("index.html" if self.many else "trace.html")

    def close(self) -> None:
        """Write the index of many."""
        if self.many and self.cards:
            write_page(self.page, gallery.index(self.title, self.cards))

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"folder": str(self.folder), "page": str(self.page), "traces": self.hung}
