"""Whether a set of verdicts is what it seems: the same picture twice, one tag in several spellings, prompts that are
absent, prompts with fewer pictures than others.

A number over 3 of 553 prompts looks like one over all of them. So each of these is told beside the number; which of
two verdicts on one picture counts, and whether an incomplete set has a number at all, is the user's to say.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from posixpath import normpath
from typing import Any, Literal

from triptych.errors import JudgeError
from triptych.eval.recorded import RecordedVerdict
from triptych.text import clean_text

Duplicates = Literal["last", "first", "fail"]
MAX_NAMED = 5  # of a kind, in a sentence


@dataclass(frozen=True)
class Expected:
    """What a whole set of a benchmark holds: its name, prompts (none where they are the user's own) and tags."""

    name: str
    prompts: frozenset[str]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Completeness:
    """What is odd about a set; everything is empty, and prompts are all there, where nothing is."""

    duplicates: tuple[str, ...] = ()  # a sentence for each picture that stands twice
    in_several_files: int = 0  # pictures of one name and prompt that more than one file has
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # tag to the spellings that were merged
    absent_tags: tuple[str, ...] = ()
    unknown_tags: tuple[str, ...] = ()
    prompts: int = 0  # of the benchmark that have a line
    of_prompts: int = 0  # of the benchmark in all; 0 where that is not known
    other_prompts: int = 0  # that are none of the benchmark's
    uneven: int = 0  # prompts with fewer pictures than the most have
    most_pictures: int = 0  # of one prompt

    @property
    def is_complete(self) -> bool:
        return not (self.absent_tags or self.uneven or self.prompts < self.of_prompts)

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "complete": self.is_complete}

    def lines(self, name: str) -> list[str]:
        """What to say of it, a sentence for each kind; `name` is the benchmark's."""
        lines = [*self.duplicates[:MAX_NAMED]]
        if len(self.duplicates) > MAX_NAMED:
            lines.append(f"... and {len(self.duplicates) - MAX_NAMED} more pictures stand twice")
        if self.in_several_files:
            lines.append(
                f"{self.in_several_files} pictures stand in more than one file; each counts, as of two systems"
            )
        for tag, spellings in self.labels.items():
            lines.append(f"one tag, {tag!r}, is spelled {', '.join(map(repr, spellings))}")
        if self.prompts < self.of_prompts:
            lines.append(f"incomplete: {self.prompts} of {self.of_prompts} prompts of {name}")
        if self.other_prompts and self.of_prompts:
            lines.append(f"{self.other_prompts} prompts are none of {name}'s")
        if self.absent_tags:
            lines.append(f"incomplete: no picture of {_named(self.absent_tags)}")
        if self.unknown_tags:
            lines.append(f"tags that {name} does not have: {_named([*map(repr, self.unknown_tags)])}")
        if self.uneven:
            lines.append(f"uneven: {self.uneven} prompts have fewer than {self.most_pictures} pictures")
        return lines


def _named(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMED + 1:  # "and 1 more" would be no shorter than its name
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"


def one_spelling(rows: Sequence[RecordedVerdict], tags: Iterable[str]) -> tuple[list[RecordedVerdict], dict]:
    """The rows with one spelling of each tag, and the spellings that were merged by tag.

    "Color" and "color " are "color", and "single-object" is "single_object": the benchmark's own spelling of `tags`, or
    else the one that comes first.
    """
    own = {_key(tag): tag for tag in tags}
    spellings: dict[str, set[str]] = defaultdict(set)
    renamed = []
    for row in rows:
        tag = own.setdefault(_key(row.column), clean_text(row.column))
        spellings[tag].add(row.column)
        renamed.append(row if row.column == tag else replace(row, column=tag))
    return renamed, {tag: tuple(sorted(found)) for tag, found in spellings.items() if found != {tag}}


def _key(tag: str) -> str:
    """What the spellings of one tag have in common: case, width, invisible marks and the sign between words aside."""
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", clean_text(tag)).casefold())


def each_picture_once(rows: Sequence[RecordedVerdict], policy: Duplicates) -> tuple[list[RecordedVerdict], list[str]]:
    """The rows with one verdict on each picture, the last or the first, and a sentence for each that stood twice.

    A run that was resumed writes a picture again, so that the last verdict is the newest. Pictures without a name are
    all different. Raises JudgeError for policy "fail".
    """
    lines_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.picture:  # one picture may be judged against several prompts
            lines_of[row.file, _picture(row), row.column, row.prompt].append(place)
    dropped: set[int] = set()
    sentences = []
    for (_, picture, *_), places in lines_of.items():
        if len(places) == 1:
            continue
        kept = places[-1] if policy == "last" else places[0]
        dropped.update(place for place in places if place != kept)
        outcomes = {(rows[place].right, rows[place].asked) for place in places}
        verdicts = "with different verdicts" if len(outcomes) > 1 else "with one verdict"
        numbers = ", ".join(str(rows[place].line) for place in places)
        sentences.append(
            f"{picture} stands {len(places)} times {verdicts} (lines {numbers}); line {rows[kept].line} counts"
        )
    if sentences and policy == "fail":
        raise JudgeError(f"{sentences[0].rpartition(';')[0]}, and {len(sentences) - 1} more; see --duplicates")
    return [row for place, row in enumerate(rows) if place not in dropped], sentences


def _picture(row: RecordedVerdict) -> str:
    return normpath(row.picture.replace("\\", "/"))  # "./a/0.png" of one run is "a/0.png" of the next


def completeness(
    rows: Sequence[RecordedVerdict],
    expected: Expected | None,
    duplicates: Sequence[str] = (),
    labels: Mapping[str, tuple[str, ...]] | None = None,
) -> Completeness:
    """What is odd about rows whose tags and pictures are settled; `expected` is None for a set of the user's own."""
    pictures = Counter((row.column, row.prompt) for row in rows if row.prompt)
    most = max(pictures.values(), default=0)
    found = {prompt for _, prompt in pictures}
    tags = {row.column for row in rows}
    named = {(row.file, _picture(row), row.column, row.prompt) for row in rows if row.picture}
    several = Counter(key[1:] for key in named)
    result = Completeness(
        duplicates=tuple(duplicates),
        in_several_files=sum(count > 1 for count in several.values()),
        labels=labels or {},
        uneven=sum(count < most for count in pictures.values()),
        most_pictures=most,
    )
    if expected is None:
        return result
    return replace(
        result,
        absent_tags=tuple(tag for tag in expected.tags if tag not in tags),
        unknown_tags=tuple(sorted(tags - {*expected.tags})),
        prompts=len(found & expected.prompts),
        of_prompts=len(expected.prompts),
        other_prompts=len(found - expected.prompts),
    )
