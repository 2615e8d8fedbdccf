"""Pictures that any system drew, to be judged: GenEval's folders, or a list of image and prompt.

GenEval's layout has a folder per prompt, with one line in `metadata.jsonl` and the pictures in `samples/`. A list (JSON
lines, a JSON array, CSV, TSV or parquet) has `image` or another of PICTURE_KEYS (a path from the file's own folder),
`prompt` or GenEval's metadata, and for TIIF's kind of judging the questions. Whatever cannot be judged is a `Fault`
with one reason, and the others are judged all the same. A link or a path that leads out of the folder is a fault: a
submission shows its own pictures and nothing else of the machine.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.data.language import prompt_text
from triptych.data.prompt_files import PROMPT_COLUMNS, prompt_records
from triptych.data.prompts import read_spec, short
from triptych.errors import JudgeError, PictureError, PromptError
from triptych.eval.recorded import PICTURE_KEYS, json_object
from triptych.model.images import NO_PICTURES, read_image
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.vlm_prompts import Checks
from triptych.text import clean_text, printable
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

LISTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # the suffixes of lists of pictures
MAX_METADATA = 1 << 20  # bytes of a line of metadata; GenEval's have a few hundred
JUDGE_BATCH = 64  # pictures judged together
BATCH_PIXELS = 100_000_000  # fewer where they are large: 300 MB
MAX_NOTED = 20  # files that are left out and named one by one


@dataclass(frozen=True)
class Entry:
    """A picture and what it was asked to show; `checks` are the questions about it, where there are any."""

    name: str
    line: int  # of the list; 1 in a folder's metadata
    picture: Path
    prompt: Prompt
    checks: Checks | None = None

    def load(self) -> Trace:
        """The picture as the only one of a trace. Raises PictureError."""
        return Trace(self.prompt) + Turn(None, Drawing(read_image(self.picture)))


@dataclass(frozen=True)
class Fault:
    """Something that cannot be judged, and why."""

    name: str
    line: int
    why: str


def list_pictures(path: Path) -> list[Entry | Fault]:
    """Every picture of a folder or a list, in order, without opening any. Raises PictureError if there is none, and
    PromptError for a list that is none."""
    path = Path(path)
    try:
        entries = list(_folder_entries(path) if path.is_dir() else _list_entries(path))
    except OSError as error:
        why = error.strerror or error
        raise PictureError(f"cannot read {printable(path)}: {why}; expected a folder or a jsonl") from error
    if not entries:
        layout = "folders such as 00000/metadata.jsonl with 00000/samples/0000.png, or a jsonl of image and prompt"
        raise PictureError(f"{printable(path)} holds no pictures to judge; expected {layout}")
    return entries


def folder_notes(root: Path) -> list[str]:
    """What is odd about a folder in GenEval's layout: what is left out, pictures that are copies of each other, gaps in
    its numbers, prompts with fewer pictures than others."""
    left_out: list[str] = []
    copies: list[str] = []
    counts: dict[str, int] = {}
    for folder in sorted(root.iterdir(), key=_natural):
        name = printable(folder.name)
        if not (folder / "samples").is_dir():
            # Without a samples/ of its own: with metadata it is a fault, and named as such.
            if folder.is_dir() and not (folder / "metadata.jsonl").exists() and any(map(_is_picture, folder.iterdir())):
                left_out.append(f"{name}/ is left out: pictures without metadata.jsonl and samples/")
            continue
        pictures: list[Path] = []
        for each in sorted((folder / "samples").iterdir(), key=_natural):
            if each.is_dir():
                if not _is_picture(each):  # a folder named like a picture is a fault
                    left_out.append(f"{printable(each.relative_to(root))}/ is left out: a folder within samples/")
            elif _is_picture(each):
                pictures.append(each)
            else:
                left_out.append(f"{printable(each.relative_to(root))} is left out: no format that is read here")
        counts[folder.name] = len(pictures)
        copies += [f"{name}/samples: {', '.join(names)} are one picture; each counts" for names in _copies(pictures)]
    notes: list[str] = []
    for told, kind in ((left_out, "left out"), (copies, "folders with copies")):
        notes += told[:MAX_NOTED] + ([f"... and {len(told) - MAX_NOTED} more {kind}"] if len(told) > MAX_NOTED else [])
    numbers = {int(name): name for name in counts if re.fullmatch(r"[0-9]{1,9}", name)}
    gaps = [number for number in range(min(numbers, default=0), max(numbers, default=-1)) if number not in numbers]
    if gaps:
        width = len(next(iter(numbers.values())))
        named = ", ".join(f"{number:0{width}d}" for number in gaps[:MAX_NOTED])
        notes.append(f"absent: {named}{f' and {len(gaps) - MAX_NOTED} more' if len(gaps) > MAX_NOTED else ''}")
    most = max(counts.values(), default=0)
    fewer = [f"{printable(name)} has {count}" for name, count in counts.items() if 0 < count < most]
    if fewer:
        more = f" and {len(fewer) - MAX_NOTED} more" if len(fewer) > MAX_NOTED else ""
        notes.append(f"uneven: {', '.join(fewer[:MAX_NOTED])}{more}, where others have {most} pictures")
    return notes


def list_notes(entries: Iterable[Entry | Fault]) -> list[str]:
    """Pictures that a list has more than once with one prompt."""
    lines: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, Entry):
            lines[entry.picture, entry.prompt.text].append(str(entry.line))
    doubles = [(path, found) for (path, _), found in lines.items() if len(found) > 1]
    notes = [
        f"{printable(path.name)} stands {len(found)} times with one prompt (lines {', '.join(found[:MAX_NOTED])}); "
        "each counts"
        for path, found in doubles[:MAX_NOTED]
    ]
    more = len(doubles) - MAX_NOTED
    return notes + ([f"... and {more} more pictures stand more than once"] if more > 0 else [])


def _copies(pictures: Sequence[Path]) -> list[list[str]]:
    """The names of pictures that are equal to the byte, in groups; only files of one size are read."""
    sizes = Counter(path.stat().st_size for path in pictures if path.is_file())
    names: dict[str, list[str]] = defaultdict(list)
    for path in pictures:
        if path.is_file() and sizes[path.stat().st_size] > 1:
            with path.open("rb") as file:
                names[hashlib.file_digest(file, "sha256").hexdigest()].append(printable(path.name))
    return [group for group in names.values() if len(group) > 1]


def _folder_entries(root: Path) -> Iterator[Entry | Fault]:
    for folder in sorted(root.iterdir(), key=_natural):  # without recursion: links may lead in circles
        metadata, samples = folder / "metadata.jsonl", folder / "samples"
        if not (metadata.exists() or metadata.is_symlink() or samples.is_dir()):
            continue  # a grid, a results file: no prompt's folder
        name = printable(folder.relative_to(root))
        try:
            prompt, checks = _prompt_and_checks(_only_line(_inside(root, metadata)))
            pictures = sorted((each for each in _inside(root, samples).iterdir() if _is_picture(each)), key=_natural)
            if not pictures:
                raise ValueError("no pictures in samples/")
        except (OSError, ValueError) as error:
            yield Fault(name, 1, _why(error))
            continue
        for picture in pictures:
            yield _entry(root, picture, printable(picture.relative_to(root)), 1, prompt, checks)


def _list_entries(path: Path) -> Iterator[Entry | Fault]:
    if not path.is_file():  # a pipe or a device would never end
        raise PictureError(f"{printable(path)} is no file; expected a folder or list of pictures")
    if path.suffix.lower() in LISTS[2:]:
        for where, record in prompt_records(path):
            if isinstance(record, Mapping):
                record = {str(name).lower(): value for name, value in record.items()}
            yield _listed(path, int(where.split()[-1]), record)
        return
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                record = json_object(line, MAX_METADATA)
            except ValueError as error:
                record = error
            yield _listed(path, number, record)


def _listed(path: Path, number: int, record: Any) -> Entry | Fault:
    """The picture of a record of a list, or why there is none; the record may be that ValueError itself."""
    try:
        if isinstance(record, ValueError):
            raise record
        if not isinstance(record, Mapping):
            raise ValueError(f"{short(record)} is no object; expected image and prompt")
        prompt, checks = _prompt_and_checks(record)
        image = next((record[key] for key in ("image", *PICTURE_KEYS) if record.get(key) is not None), None)
        if not isinstance(image, str) or not image or "\0" in image:
            raise ValueError(f"image is {short(image)}; expected a path")
    except ValueError as error:
        return Fault(printable(path), number, _why(error))
    return _entry(path.parent, path.parent / image, printable(image), number, prompt, checks)


def _entry(root: Path, picture: Path, name: str, line: int, prompt: Prompt, checks: Checks | None) -> Entry | Fault:
    try:
        if not _inside(root, picture).is_file():
            return Fault(name, line, "no such file" if not picture.exists() else "no file")
    except (OSError, ValueError) as error:
        return Fault(name, line, _why(error))
    return Entry(name, line, picture, prompt, checks)


def _inside(root: Path, path: Path) -> Path:
    """The path, once it is known to lie in `root` after all links are followed. ValueError if it does not."""
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except RuntimeError:  # a loop of links
        within = False
    if not within:
        raise ValueError("leads out of the folder; put the picture itself there")
    return path


def _only_line(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError("no metadata.jsonl")
    with path.open("rb") as file:
        lines = [line for line in _lines(file) if line.strip()]
    if len(lines) != 1:
        raise ValueError(f"metadata.jsonl has {len(lines)} lines; expected 1")
    return json_object(lines[0], MAX_METADATA)


def _lines(file: Any) -> Iterator[bytes]:
    """The lines of a file, at most one byte more than MAX_METADATA of each; the rest of a longer one is skipped."""
    while line := file.readline(MAX_METADATA + 1):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_METADATA)):
            pass
        yield line


def _prompt_and_checks(record: Mapping[str, Any]) -> tuple[Prompt, Checks | None]:
    """Prompt and questions of a line, or ValueError. The sentence is made from the metadata where it is not given."""
    metadata = record.get("metadata", record)
    # GenEval puts tag and include on the line itself; its results file has them under `metadata`.
    spec = read_spec(metadata) if isinstance(metadata, dict) and "include" in metadata else None
    text = record.get("prompt", metadata.get("prompt") if isinstance(metadata, dict) else None)
    try:
        # The first key is that of recordings, the second TIIF's own.
        checks = Checks.from_record(record) if {"questions", "yn_question_list"} & record.keys() else None
    except (KeyError, TypeError) as error:
        raise ValueError(f"no list of questions ({type(error).__name__}: {error})") from None
    if text is None and checks is not None:
        text = record.get(f"{checks.length}_description")  # a line of TIIF's prompts
    if text is None and spec is not None:
        try:
            text = prompt_text(spec)
        except (PromptError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"no prompt, and none can be made from the metadata ({error})") from None
    if text is None:  # as other tools name it
        text = next((record[name] for name in PROMPT_COLUMNS if record.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"prompt is {text!r}; expected a sentence, or GenEval's tag and include")
    # The form of TIIF finds the questions of a prompt by its source and text (vlm_prompts.Checklist).
    try:
        text = clean_text(text)
    except ValueError as error:
        raise ValueError(f"the prompt is not text: {error}") from None
    return Prompt(text, spec, source=f"tiif/{checks.length}" if checks else "pictures"), checks


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    """The suffixes of all formats that the reader opens."""
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in NO_PICTURES)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _suffixes() and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts 2 before 10."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", path.name)  # \d would match digits of other scripts, too
    return [(bool(word), int(number or 0), word) for number, word in parts]


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(reason.split())[:200])


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedEntry:
    """An entry with its verdict, or why there is none; `judged` is False where the file was at fault, and no judge was
    asked."""

    entry: Entry | Fault
    verdict: Verdict | None
    missing: str | None
    judged: bool = True

    @property
    def judge_failed(self) -> bool:
        """Whether the judge was asked, and had no verdict."""
        return self.judged and self.missing is not None


def judge_pictures(entries: Iterable[Entry | Fault], judge: Judge) -> Iterator[JudgedEntry]:
    """Yield every entry in order, judged a batch at a time; few pictures are in memory at once."""
    for batch in load_entries(entries):
        verdicts = iter(verdicts_of(judge, [trace for _, trace in batch if isinstance(trace, Trace)]))
        for entry, trace in batch:
            if isinstance(trace, str):
                yield JudgedEntry(entry, None, trace, judged=False)
            elif isinstance(verdict := next(verdicts), JudgeError):
                yield JudgedEntry(entry, None, _why(verdict))
            else:
                yield JudgedEntry(entry, verdict, None)


def load_entries(entries: Iterable[Entry | Fault]) -> Iterator[list[tuple[Entry | Fault, Trace | str]]]:
    """Batches of entries, each with its picture's trace or with why there is none."""
    batch: list[tuple[Entry | Fault, Trace | str]] = []
    pixels = 0
    for entry in entries:
        loaded = _loaded(entry)
        batch.append((entry, loaded))
        if isinstance(loaded, Trace) and loaded.image is not None:
            pixels += loaded.image.shape[0] * loaded.image.shape[1]
        if len(batch) >= JUDGE_BATCH or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _loaded(entry: Entry | Fault) -> Trace | str:
    try:
        return entry.why if isinstance(entry, Fault) else entry.load()
    except PictureError as error:
        return _why(error)
