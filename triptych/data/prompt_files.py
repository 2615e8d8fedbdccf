"""A user's prompts, from any file that people keep them in: lines, JSON lines, a JSON array, CSV, TSV or parquet.

What a prompt is in each:

    lines         a sentence a line; blank lines and lines that begin with "# " are skipped, and so are the markers of
                  a list ("- ", "1. ") where every line has one
    JSON          a string, or an object with `prompt`, or with `tag` and `include` from which the sentence follows; or
                  an object of these by their ids
    CSV, TSV      the column `prompt` (or another of PROMPT_COLUMNS, in any case)
    parquet       the same column; needs pyarrow (`pip install "triptych[parquet]"`)

Objects and tables may have an `id`, which names the output, and a `seed`, which is used. Anything else is refused by
name: nothing that is no prompt is ever drawn.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.data.language import prompt_text
from triptych.data.prompts import read_spec, short
from triptych.errors import PromptError
from triptych.files import LFS_POINTER
from triptych.text import clean_text, is_text
from triptych.trace import Prompt

# In this order, where a table has several: DrawBench writes Prompts, LAION TEXT, COCO caption, OneIG prompt_en.
PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption", "captions", "description", "prompt_en", "sentence")
ID_COLUMNS = ("id", "prompt_id", "item_id", "index", "key", "image_id")
# What would change the picture and is not read. To pass over it in silence would give another picture than was asked.
_UNUSED = {"negative_prompt": "there is no negative prompt here", "seeds": "expected `seed`, one number a prompt"}
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
    LFS_POINTER: "a Git LFS pointer; run git lfs pull",
    b"ARROW1": "an Arrow file; save it as parquet, CSV or JSON lines",
    b"SQLite format": "a database; save its prompts as CSV or JSON lines",
    b"\x93NUMPY": "a NumPy array; save it as lines of text",
    b"\x80\x04": "a pickle; save it as JSON lines",
    b"\x80\x05": "a pickle; save it as JSON lines",
    b"{\\rtf": "rich text; save it as plain text",
    b"<?xml": "XML; save its prompts as lines of text",
    b"<!DOCTYPE": "a web page; save its prompts as lines of text",
}
_OTHER_LANGUAGES = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".py": "Python", ".ipynb": "a notebook"}
_OTHER_LANGUAGES |= {".xml": "XML", ".html": "HTML", ".htm": "HTML"}
_MARKER = re.compile(r"(?:[-*\u2022]|[0-9]+[.)])\s+")  # of an item in a list
_SEPARATORS = ("\t", ";", "|", ",")  # a comma is the likeliest to stand within a name, so it comes last


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
    never hides another. An id stands for one prompt, and comes once with a seed.
    """
    path = Path(path)
    entries: list[PromptEntry] = []
    faults: list[tuple[str, str]] = []  # where, why
    for where, record in prompt_records(path):
        try:
            entries.append(_entry(record, f"{path}, {where}", path.stem))
        except ValueError as error:
            faults.append((where, str(error)))
    # One id may come with several seeds: that is one prompt, drawn several times.
    texts: dict[str, str] = {}
    drawn: set[tuple[str, int | None]] = set()
    for entry in entries:
        key, where = (entry.id, entry.seed), entry.where.removeprefix(f"{path}, ")
        if entry.id and texts.setdefault(entry.id, entry.prompt.text) != entry.prompt.text:
            faults.append((where, f"id {entry.id!r} stands for two prompts; expected an id of its own for each"))
        elif entry.id and key in drawn:
            faults.append((where, f"id {entry.id!r} stands twice; expected unique ids, or a seed of its own for each"))
        drawn.add(key)
    if faults:
        raise PromptError(told_faults(path, faults, len(entries) + len(faults)))
    if not entries:
        raise PromptError(f"{path} holds no prompts; expected one a line")
    return entries


def told_faults(path: Path, faults: Sequence[tuple[str, str]], total: int, kind: str = "prompts") -> str:
    """One line about every fault (where, why) of a file of `total` prompts, or of another kind."""
    told = "; ".join(f"{where}: {why}" for where, why in faults[:MAX_TOLD])
    others = ", ".join(where.removeprefix("line ") for where, _ in faults[MAX_TOLD : MAX_TOLD + 50])
    more = f"; and {others}{' and more' if len(faults) > MAX_TOLD + 50 else ''}" if others else ""
    count = f" ({len(faults)} of {total} {kind})" if len(faults) > 1 else ""
    return f"{path}, {told}{more}{count}"


# --- containers -------------------------------------------------------------------------------------------------------


def prompt_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of every prompt: a sentence, or an object; ValueError in place of a record that is damaged."""
    content = _content(path)
    if content[:4] == b"PAR1":
        yield from _parquet(path)
        return
    text = _decoded(path, content)
    # Not splitlines(): U+2028 ends no line of JSON. A byte order mark begins each of the files that `cat` joined.
    lines = [line.strip().lstrip("\ufeff") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not _is_comment(line)]
    # Not stripped: where an index has no name, the header of a table begins with its tab.
    header = text.split("\n")[numbered[0][0] - 1].strip(" \ufeff") if numbered else ""
    if (delimiter := _delimiter(path, header)) is not None:
        yield from _table(path, text, delimiter)
        return
    if (values := _json_values(path, [line for _, line in numbered])) is not None:
        yield from _json_records(path, values)
        return
    if len(numbered) > 1 and numbered[0][1].strip('"').lower() in PROMPT_COLUMNS:
        numbered = numbered[1:]  # the name of a column, of a table with one
    is_list = len(numbered) > 1 and all(_MARKER.match(line) for _, line in numbered)
    for number, line in numbered:
        yield f"line {number}", _line(_MARKER.sub("", line, count=1) if is_list else line)


def _is_comment(line: str) -> bool:
    return line.startswith("# ") or line == "#"  # and not "#sunset over a hill"


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
    if (language := _OTHER_LANGUAGES.get(path.suffix.lower())) is not None:
        raise PromptError(f"{path} is {language}; expected lines of text, JSON, CSV, TSV or parquet")
    return content


def _decoded(path: Path, content: bytes) -> str:
    """The text with newlines alone at the ends of its lines. Bytes that are no UTF-8 stay as half surrogates, so that
    every line which holds some is told (`clean_text` refuses them), and not the first alone."""
    # Some editors begin a file with a byte order mark; Windows saves "Unicode text" as UTF-16.
    if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        encoding = "utf-32"
    elif content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in content[:1000]:
        raise PromptError(f"{path} holds zero bytes: a binary file, or UTF-16 without its mark; save it as UTF-8 text")
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding, "strict" if encoding[-2:] in ("16", "32") else "surrogateescape")
    except UnicodeDecodeError as error:
        raise PromptError(f"cannot read {path}: {error}; expected a UTF-8 text file, one prompt a line") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")  # a lone carriage return ended lines on old Macs


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


def _json_values(path: Path, lines: Sequence[str]) -> list[Any] | None:
    """The values of a file that is JSON as a whole, or several of them in a row; None for a file of lines.

    Raises PromptError for what begins as JSON and is none: its lines would else be drawn as sentences.
    """
    is_named = path.suffix.lower() == ".json"
    if not lines or (lines[0][0] not in "[{" and not is_named):
        return None
    first = _line(lines[0])
    if isinstance(first, Mapping) and (len(lines) > 1 or _is_record(first)):
        return None  # JSON lines, of which each fault is told with its line
    # "[red] cat and dog" is a sentence; "['a cat']" and a line of "[" are no JSON that can be read, and none either.
    in_brackets = lines[0][0] == "{" or lines[0] == "[" or re.match(r"\[\s*['\"{\[]", lines[0]) is not None
    decoder, values, place = json.JSONDecoder(), [], 0
    text = "\n".join(lines)
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, len(text) - len(text[place:].lstrip(" \t\n,")))
        except (ValueError, RecursionError) as error:
            if not is_named and not in_brackets:
                return None
            why = "nested too deeply" if isinstance(error, RecursionError) else error
            comma = "; the comma before the last bracket is too much" if re.search(r",\s*[]}]\s*$", text) else ""
            raise PromptError(f"{path} is not JSON ({why}){comma}; expected an array, or one prompt a line") from None
        values.append(value)
        place = len(text) - len(text[end:].lstrip(" \t\n,"))
    return values


def _json_records(path: Path, values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The prompts of JSON values: of one array or object of prompts, or of values in a row."""
    records: list[Any] = list(values)
    if len(values) == 1 and isinstance(values[0], list):
        records = values[0]
    elif len(values) == 1 and isinstance(values[0], Mapping) and not _is_record(values[0]):
        records = _records_by_id(path, values[0])
    for number, record in enumerate(records, 1):
        yield f"prompt {number}", record


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool({*PROMPT_COLUMNS, "include"} & {str(key).lower() for key in value})
        and (
            not any(isinstance(value.get(key), list) for key in PROMPT_COLUMNS)  # {"prompts": [...]} is a list of them
        )
    )


def _records_by_id(path: Path, value: Mapping[str, Any]) -> list[Any]:
    """The prompts of an object: its only list, COCO's `annotations`, or the values where its keys are their ids."""
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if isinstance(value.get("annotations"), list):
        return value["annotations"]
    if len(lists) == 1:
        return lists[0]
    if value and all(map(_is_record, value.values())):  # MJHQ's meta_data.json
        return [{"id": key, **inner} for key, inner in value.items()]
    # Of sentences only under keys with numbers: {"caption_de": "...", "author": "..."} is no list of prompts.
    if value and all(isinstance(inner, str) and re.search(r"[0-9]", key) for key, inner in value.items()):
        return [{"id": key, "prompt": inner} for key, inner in value.items()]
    keys = ", ".join(sorted(map(short, value))[:8]) or "nothing"
    raise PromptError(f"{path} is a JSON object of {keys}; expected an array of prompts, or one a line")


def _delimiter(path: Path, header: str) -> str | None:
    """What separates the columns of a table with that first line; None for a file that is none.

    A table is named .csv or .tsv, or begins with a line of column names, one of which is that of a prompt.
    """
    is_named = path.suffix.lower() in (".csv", ".tsv")
    if header.lower().startswith("sep=") and len(header) == 5:  # Excel's own first line
        return header[4]
    for delimiter in _SEPARATORS:
        names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
        # "text, neon sign, night" is a prompt, too.
        is_header = is_named or delimiter != "," or ", " not in header or "prompt" in names
        if len(names) > 1 and set(PROMPT_COLUMNS) & {*names} and is_header:
            return delimiter
    if is_named and header.strip('"').lower() in PROMPT_COLUMNS:
        return ","
    if is_named:
        raise PromptError(
            f"{path}: expected a first line of column names with one of {', '.join(PROMPT_COLUMNS)}; "
            f"found {short(header)}"
        )
    return None


def _table(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    rows = io.StringIO(text, newline="")
    skipped = 0
    while (line := rows.readline()) and (not line.strip() or _is_comment(line.strip()) or line[:4].lower() == "sep="):
        skipped += 1
    start = rows.tell() - len(line)
    # Strict: a quote that is never closed would else take all other rows into one prompt. Tab-separated files often
    # mean their quotes as they stand, so one that is not strict has none.
    quoting = csv.QUOTE_MINIMAL
    if delimiter == "\t" and not _is_strict(text[start:]):
        quoting = csv.QUOTE_NONE
    rows.seek(start)
    reader = csv.DictReader(rows, delimiter=delimiter, skipinitialspace=True, strict=True, quoting=quoting)
    ends = skipped + 1  # the line on which the last row ends; at first that of the header
    try:
        for row in reader:
            ends = skipped + reader.line_num
            where = f"line {ends}"
            cells = [cell for cell in row.values() if isinstance(cell, str)]
            if not any(map(str.strip, cells)) or _is_comment(cells[0].strip()):
                continue  # spreadsheets leave rows of commas at the end
            if None in row:
                columns = len(reader.fieldnames or ())
                yield where, ValueError(f"more fields than the {columns} columns; quote the commas")
            else:
                yield where, {(name or "").strip(): value for name, value in row.items()}
    except csv.Error as error:
        why = f"{error}; a quote is doubled within quotes, and closed"
        yield f"line {ends + 1}", ValueError(why)


def _is_strict(text: str) -> bool:
    try:
        return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return False


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise PromptError(
            f"{path} is a parquet file, which needs pyarrow: pip install 'triptych[parquet]', or save it as CSV or JSON"
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow has many of its own
        raise PromptError(f"cannot read {path}: {error}; expected a parquet file with a column prompt") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


# --- one prompt -------------------------------------------------------------------------------------------------------


def _entry(record: Any, where: str, source: str) -> PromptEntry:
    """The prompt of a record. Raises ValueError that says what is wrong."""
    if isinstance(record, ValueError):
        raise record
    if isinstance(record, str):
        return PromptEntry(where, Prompt(_sentence(record), source=source))
    if not isinstance(record, Mapping):
        raise ValueError(f"a prompt is {short(record)}; expected a sentence, or a JSON object with a prompt")
    record = {str(name).lower(): _known(value) for name, value in record.items()}
    for name, why in _UNUSED.items():
        if record.get(name) not in (None, "", []):
            raise ValueError(f"{name} is {short(record[name])}: {why}")
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


def _known(value: Any) -> Any:
    """The value; None for NaN, and the whole number of a float: so pandas writes a column with a gap."""
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() else value


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
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}(\.0*)?", value.strip()):
        value = int(value.strip().partition(".")[0])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"seed is {short(value)}; expected a whole number of 0 or more")
    return value
