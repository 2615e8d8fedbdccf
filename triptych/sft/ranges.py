"""What the numbers of the lessons may be, each by its name: a name means the same in every stage.

What lies outside is refused before anything is written; some of it would fail after hours, and some teach nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from triptych.errors import ConfigError


class Range(NamedTuple):
    """Lowest and highest value, and how it is said; finite, and above the lowest where that is `open`."""

    told: str
    low: float
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies inside; NaN and infinity never do."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.open and value == self.low)


SHARE = Range("a share from 0 to 1", 0, 1)
ANY = Range("0 or more", 0)
SOME = Range("1 or more", 1)
POSITIVE = Range("more than 0", 0, open=True)
RANGES = {
    "seed": Range("0 to 4294967295", 0, 2**32 - 1),  # a step's seed is a million times as large, and has 64 bits
    "own_guidance": SOME,  # 1 is off
    **dict.fromkeys(("every", "hands", "batch", "noises", "questions", "mistakes", "whites"), SOME),
    **dict.fromkeys(("workers", "own_pictures", "steps", "warmup", "pictures", "edits", "words"), ANY),
    **dict.fromkeys(("rate", "matrix_rate", "kl", "noise", "words_weight", "focus", "recall", "clip"), ANY),
    **dict.fromkeys(("loudness", "time_shift"), POSITIVE),
    **dict.fromkeys(("cooldown", "average", "strewn", "unrelated"), SHARE),
    **dict.fromkeys(("plans", "answers", "drop_text", "drop_image", "own"), SHARE),
    **dict.fromkeys(("right", "spoiled", "fits", "assorted", "describes", "listed", "bare", "hard", "few"), SHARE),
    **dict.fromkeys(("scrambled", "unseen", "canonical", "usual"), SHARE),
    **dict.fromkeys(("jitter", "shift"), ANY),  # together under half a cell: `Layout` looks after that
}


def numbers(settings: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a record and of the records in it, by its path, such as `own.mix.right`."""
    for each in fields(settings):
        value, name = getattr(settings, each.name), f"{path}{each.name}"
        if is_dataclass(value):
            yield from numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def check_ranges(settings: Any) -> None:
    """Raises ConfigError for the first number that lies outside its range, by the option that sets it."""
    for path, value in numbers(settings):
        wanted = RANGES[path.rpartition(".")[2]]
        if not wanted.holds(value):
            raise ConfigError(f"--{option(path)} {value}: expected {wanted.told}")


def option(path: str) -> str:
    """The path of a setting as the command line writes it."""
    return path.replace("_", "-")
