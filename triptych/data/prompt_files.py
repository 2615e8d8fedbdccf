"""A user's prompts, from any file that people keep them in: lines, JSON lines, a JSON array, CSV, TSV or parquet.

What a prompt is in each:

    lines         a sentence a line; blank lines and lines that begin with "# " are skipped
    JSON          a string, or an object with `prompt`, or with `tag` and `include` from which the sentence follows
    CSV, TSV      the column `prompt` (or text, caption, description)
    parquet       the same column; needs pyarrow

Objects and tables may have an `id`, which names the output, and a `seed`, which is used. Anything else is refused by
name: nothing that is no prompt is ever drawn.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.data.language import prompt_text
from triptych.data.prompts import read_spec, short
from triptych.errors import PromptError
from triptych.text import clean_text, is_text
from triptych.trace import Prompt

PROMPT_COLUMNS = ("prompt", "text", "caption", "description")  # in this order, where a table has several
ID_COLUMNS = ("id", "index", "key", "name", "image_id", "prompt_id")
MAX_TOLD = 5  # faults of a file that are told one by one
MAX_FILE = 1 << 30  # bytes
# First bytes of what people mistake for a text file, and what it is.
_SIGNATURES = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip file or a spreadsheet; save it as CSV or JSON lines",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet; save it as CSV or JSON lines",
    b"%PDF": "a PDF; save its prompts as text",
    b"\x89PNG": "a picture; expected a file of prompts",
    b"\xff\xd8\xff": "a picture; expected a file of prompts",
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
}


@dataclass(frozen=True)
class PromptEntry:
    """A prompt of a file: where it stands ("FILE, line 3"), its own id, and its own seed, if it has them."""

    where: str
    prompt: Prompt
    id: str = ""
    seed: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order; see `read_entries`."""
    return [entry.prompt for entry in read_entries(path)]


def read_entries(path: Path) -> list[PromptEntry]:
    """The prompts of a file with their places, ids and seeds.

    Raises PromptError that names the file and every line that cannot be read (the first MAX_TOLD in full): one bad line
    never hides another. Ids are unique; two of one name are an error.
    """
    path = Path(path)
    entries: list[PromptEntry] = []
    faults: list[tuple[str, str]] = []  # where, why
    for where, record in _records(path):
        try:
            entries.append(_entry(record, f"{path}, {where}", path.stem))
        except ValueError as error:
            faults.append((where, str(error)))
    places: dict[str, str] = {}
    for entry in entries:
        if entry.id and places.setdefault(entry.id, entry.where) != entry.where:
            faults.append((entry.where.removeprefix(f"{path}, "), f"id {entry.id!r} stands twice; expected unique ids"))
    if faults:
        raise PromptError(told_faults(path, faults, len(entries) + len(faults)))
    if not entries:
        raise PromptError(f"{path} holds no prompts; expected one a line")
    return entries


def told_faults(path: Path, faults: Sequence[tuple[str, str]], total: int) -> str:
    """One line about every fault (where, why) of a file of `total` prompts."""
    told = "; ".join(f"{where}: {why}" for where, why in faults[:MAX_TOLD])
    others = ", ".join(where.removeprefix("line ") for where, _ in faults[MAX_TOLD : MAX_TOLD + 50])
    more = f"; and {others}{' and more' if len(faults) > MAX_TOLD + 50 else ''}" if others else ""
    count = f" ({len(faults)} of {total} prompts)" if len(faults) > 1 else ""
    return f"{path}, {told}{more}{count}"


# --- containers -------------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of every prompt: a sentence, or an object; ValueError in place of a record that is damaged."""
    content = _content(path)
    if content[:4] == b"PAR1":
        yield from _parquet(path)
        return
    text = _decoded(path, content)
    # -sig and not splitlines(): U+2028 ends no line of JSON.
    lines = text.split("\n")
    if (delimiter := _delimiter(path, lines)) is not None:
        yield from _table(path, text, delimiter)
        return
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and len([line for line in lines if line.strip()]) > 1):
        try:
            yield from _json_document(path, json.loads(text))
            return
        except (ValueError, RecursionError) as error:
            if isinstance(error, PromptError) or path.suffix.lower() == ".json":
                why = "nested too deeply" if isinstance(error, RecursionError) else error
                raise PromptError(f"{path} is not JSON ({why}); expected an array of prompts, or one a line") from None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line and not (line.startswith("# ") or line == "#"):
            yield f"line {number}", _line(line)


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise PromptError(f"cannot read {path}: it is no file; expected a file of prompts, one a line")
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        why = error.strerror or error
        raise PromptError(f"cannot read {path}: {why}; expected a UTF-8 text file, one prompt a line") from error
    if len(content) > MAX_FILE:
        raise PromptError(f"{path} has more than {MAX_FILE:,} bytes; expected a file of prompts: split it")
    for signature, kind in _SIGNATURES.items():
        if content.startswith(signature):
            raise PromptError(f"{path} is {kind}")
    return content


def _decoded(path: Path, content: bytes) -> str:
    # Some editors begin a file with a byte order mark; Windows saves "Unicode text" as UTF-16.
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PromptError(
            f"cannot read {path}, line {line}: {error}; expected a UTF-8 text file, one prompt a line"
        ) from error


def _line(line: str) -> Any:
    """A sentence, or the JSON value of a line that is one; ValueError as a value where it cannot be read."""
    if line[0] not in '{"[':
        return line
    try:
        return json.loads(line.removesuffix(","))  # a line cut out of an array
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
        if line[0] != "{":
            return line  # '"Hello" says the cat' is a sentence
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        return ValueError(f"not JSON ({why}); expected GenEval's layout, or a plain sentence")


def _json_document(path: Path, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        if PROMPT_COLUMNS[0] in value or "include" in value:
            value = [value]
        elif len(lists) == 1:  # {"prompts": [...]}
            value = value[lists[0]]
        else:
            keys = ", ".join(sorted(map(short, value))[:8])
            raise PromptError(f"{path} is a JSON object of {keys}; expected an array of prompts, or one a line")
    for number, record in enumerate(value, 1):
        yield f"prompt {number}", record


def _delimiter(path: Path, lines: Sequence[str]) -> str | None:
    """What separates the columns of a table; None for a file that is none.

    A table is named .csv or .tsv, or begins with a line of column names, one of which is that of a prompt.
    """
    header = next((line for line in lines if line.strip()), "")
    for delimiter in ("\t", ";", ","):
        names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
        if len(names) > 1 and set(PROMPT_COLUMNS) & {*names} and all(name.isidentifier() for name in names if name):
            return delimiter
    if header.strip().strip('"').lower() in PROMPT_COLUMNS and path.suffix.lower() in (".csv", ".tsv"):
        return ","
    if path.suffix.lower() in (".csv", ".tsv"):
        raise PromptError(
            f"{path}: expected a first line of column names with one of {', '.join(PROMPT_COLUMNS)}; "
            f"found {short(header.strip())}"
        )
    return None


def _table(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row:
                yield (
                    where,
                    ValueError(f"more fields than the {len(reader.fieldnames or ())} columns; quote the commas"),
                )
            else:
                yield where, {(name or "").strip().lower(): value for name, value in row.items()}
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise PromptError(
            f"{path} is a parquet file, which needs pyarrow: pip install pyarrow, or save it as CSV or JSON lines"
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow has many of its own
        raise PromptError(f"cannot read {path}: {error}; expected a parquet file with a column prompt") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", {str(name).lower(): value for name, value in row.items()}


# --- one prompt -------------------------------------------------------------------------------------------------------


def _entry(record: Any, where: str, source: str) -> PromptEntry:
    """The prompt of a record. Raises ValueError that says what is wrong."""
    if isinstance(record, ValueError):
        raise record
    if isinstance(record, str):
        return PromptEntry(where, Prompt(_sentence(record), source=source))
    if not isinstance(record, Mapping):
        raise ValueError(f"a prompt is {short(record)}; expected a sentence, or a JSON object with a prompt")
    spec = read_spec(record, least=1) if record.get("include") is not None else None
    if spec is not None and not spec.include:
        raise ValueError("include is empty; expected one object or more, or no include")
    column = next((name for name in PROMPT_COLUMNS if record.get(name) is not None), None)
    try:
        text = prompt_text(spec) if spec is not None and column is None else record.get(column or PROMPT_COLUMNS[0])
    except IndexError as error:
        raise ValueError("a count beyond nine; expected a `prompt` that says it in words") from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"prompt is {short(text)}; expected a sentence, or `tag` and `include` to make one from")
    return replace(
        PromptEntry(where, Prompt(_sentence(text), spec, source=source)), id=_id_of(record), seed=_seed_of(record)
    )


def _sentence(text: str) -> str:
    try:
        cleaned = clean_text(text)
    except ValueError as error:
        raise ValueError(f"the prompt {short(text)} is not text: {error}; expected UTF-8 text") from None
    if not cleaned:
        raise ValueError("the prompt is empty; expected a sentence")
    return cleaned


def _id_of(record: Mapping[str, Any]) -> str:
    value = next((record[name] for name in ID_COLUMNS if record.get(name) not in (None, "")), "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"id is {short(value)}; expected a word or a number")
    if value != "" and not is_text(str(value)):
        raise ValueError(f"id is {short(value)}; expected a word or a number")
    return str(value).strip()


def _seed_of(record: Mapping[str, Any]) -> int | None:
    value = record.get("seed")
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"seed is {short(value)}; expected a whole number of 0 or more")
    return value
