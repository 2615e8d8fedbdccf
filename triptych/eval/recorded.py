"""Recorded verdicts, read line by line: GenEval detections and results, TIIF replies, GenEval++ verdicts.

A file is JSON lines, gzipped or not; each line is one picture and becomes one `RecordedVerdict`. A line that is damaged
(not JSON, a box of negative size, a field that is not there) is an error that names the file and all such lines, since
nothing else in such a file can be trusted either. A line that is whole but holds no verdict (the judge failed, or its
reply does not answer the questions) is *missing*: it is read, listed, and never counted as wrong.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from triptych.data.prompt_files import told_faults
from triptych.data.prompts import as_array, as_text, read_spec, short
from triptych.errors import JudgeError
from triptych.files import LFS_POINTER
from triptych.rewards.geneval_rules import (
    GENEVAL_COLORS,
    Detection,
    judge_detections,
    number,
    read_box,
    read_detections,
)
from triptych.rewards.vlm_prompts import LENGTHS
from triptych.rewards.vlm_replies import read_answers, read_verdict
from triptych.trace import Spec, Verdict

MAX_LINE = 64 * 2**20  # bytes: far above any picture's replies, and a file without line ends fills no memory
# That name the picture of a line, in the order in which they are looked for.
PICTURE_KEYS = ("filename", "image", "image_path", "file", "file_name", "path", "picture")
GZIP = b"\x1f\x8b"  # the first two bytes of every gzip stream


@dataclass(frozen=True)
class RecordedVerdict:
    """What one line says of one picture: `right` of `asked` questions. Where the verdict is `missing`, both are 0."""

    file: str
    line: int
    column: str  # a tag, or TIIF's attribute/length
    right: int
    asked: int
    prompt: str = ""  # pictures of one prompt share its difficulty: they are resampled together
    reasons: tuple[str, ...] = ()
    missing: str | None = None  # why there is no verdict
    claimed: bool | None = None  # the verdict that the file itself holds, where it was derived again
    picture: str = ""  # the name of the picture, where the file has one

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}"

    @property
    def correct(self) -> bool | None:
        """Whether all questions are answered right; None where the verdict is missing."""
        return None if self.missing else self.right == self.asked

    @property
    def disputed(self) -> bool:
        """Whether the rules say otherwise than the file."""
        return self.claimed is not None and self.claimed != self.correct


def read_geneval(path: Path) -> Iterator[RecordedVerdict]:
    """Lines of `{metadata, detections: {class: [{box, score, color}]}}`, or of GenEval's own results file.

    GenEval's rules decide. A results file holds boxes (`details`) but no colors; those are read off its `reason`.
    """
    return _rows(path, _geneval)


def read_tiif(path: Path) -> Iterator[RecordedVerdict]:
    """Lines of `{attribute, length, questions, gt_answers, model_output}`; only the judge's raw words are believed."""
    return _rows(path, _tiif)


def read_genevalpp(path: Path) -> Iterator[RecordedVerdict]:
    """Lines of `{tag, prompt, correct}` with 1, 0 or -1 (the judge failed), or with the judge's words.

    The words are in `correct` itself, or, where there is no `correct`, in `model_output` or `reply`.
    """
    return _rows(path, _genevalpp)


# --- one line -------------------------------------------------------------------------------------------------------


def _rows(path: Path, read: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Iterator[RecordedVerdict]:
    """Each line as `read` understands it. Raises JudgeError after the last, with all lines that are damaged."""
    count = 0
    faults: list[tuple[str, str]] = []
    for line, record in _lines(path):
        count += 1
        if isinstance(record, ValueError):
            faults.append((f"line {line}", str(record)))
            continue
        try:
            row = read(record)
        except KeyError as error:
            keys = ", ".join(sorted(map(ascii, record))[:12]) or "nothing"
            faults.append((f"line {line}", f"expected {error.args[0]!r}, found {keys}"))
            continue
        except (ValueError, RecursionError) as error:
            faults.append((f"line {line}", str(error) or "nested too deeply"))
            continue
        picture = next((record[key] for key in PICTURE_KEYS if isinstance(record.get(key), str)), "")
        yield RecordedVerdict(file=str(path), line=line, picture=picture, **row)
    if faults:
        raise JudgeError(told_faults(path, faults, count, "lines"))
    if not count:
        raise JudgeError(f"{path} holds no lines; expected one JSON object per picture")


def _geneval(record: Mapping[str, Any]) -> dict[str, Any]:
    metadata = _decoded(record["metadata"])
    spec = read_spec(metadata)
    claimed = bool(record["correct"]) if record.get("correct") in (True, False) else None  # 1 and 0 too
    if "detections" in record:
        verdict = judge_detections(spec, read_detections(record["detections"]))
    elif "details" in record:
        verdict = judge_detections(spec, _detailed(_decoded(record["details"]), spec, str(record.get("reason") or "")))
    elif claimed is not None:  # results of early versions: nothing to derive the verdict from
        verdict = Verdict(float(claimed), failed=tuple(str(record.get("reason") or "").splitlines()))
    else:
        raise KeyError("detections")
    # Pictures of one prompt are a cluster; where no sentence is recorded, the same metadata are the same prompt.
    prompt = metadata.get("prompt") or record.get("prompt") or json.dumps(metadata, sort_keys=True)
    counts = {"column": spec.tag, "right": int(verdict.score == 1.0), "asked": 1}
    return {**counts, "prompt": str(prompt), "reasons": verdict.failed, "claimed": claimed}


def _detailed(details: Any, spec: Spec, reason: str) -> dict[str, list[Detection]]:
    """The objects of a line of GenEval's results: `{class: [[left, top, right, bottom, score]]}`, most certain first.

    An item's colors are in its line of `reason` where they are wrong; else its objects have the right one.
    """
    if not isinstance(details, Mapping) or not all(isinstance(boxes, list) for boxes in details.values()):
        raise ValueError("details are no boxes by class; expected {class: [[left, top, right, bottom, score], ...]}")
    detections: dict[str, list[Detection]] = {}
    for name, boxes in details.items():
        boxes = [as_array(box, f"a box of {name!r}") for box in boxes]
        # Boxes of early versions have no score.
        scores = [1.0 if len(box) < 5 else number(box[4], f"the score of {name!r}") for box in boxes]
        detections[name] = [Detection(read_box(box, name), score) for box, score in zip(boxes, scores, strict=True)]
        detections[name].sort(key=lambda each: -each.score)  # GenEval counts the most certain `count` of a class
    # Too few objects fail by their number; their colors are then never asked for.
    for item in spec.include:
        objects = detections.get(item.name, [])
        if item.color is not None and len(objects) >= item.count:
            colors = _reason_colors(item.name, item.color, item.count, reason)
            # Not strict: beyond the first `count` objects the rules look at none.
            colored = [Detection(each.box, each.score, color) for each, color in zip(objects, colors, strict=False)]
            detections[item.name] = colored + objects[len(colored) :]
    return detections


def _reason_colors(name: str, color: str, count: int, reason: str) -> list[str]:
    """The colors of an item's objects, as GenEval's reason gives them."""
    start = f"expected {color} {name}>={count}, found "
    # A line of GenEval reads "expected red cat>=2, found 1 red; and 1 red, 1 blue": the last part has all colors.
    for line in reason.splitlines():
        if line.startswith(start):
            counts = re.findall(rf"(\d+) ({'|'.join(GENEVAL_COLORS)})\b", line.partition("; and ")[2])
            # No more of a color than are looked at: a damaged amount would fill the memory.
            return [shade for amount, shade in counts for _ in range(min(int(amount), count))][:count]
    return [color] * count  # the reason does not complain of this item, so that all its objects were right


def _tiif(record: Mapping[str, Any]) -> dict[str, Any]:
    attribute, length = as_text(record["attribute"], "attribute"), _length(record)
    questions, truths = (_texts(record[key], key) for key in ("questions", "gt_answers"))
    expected = [truth.strip().lower() for truth in truths]
    if not set(expected) <= {"yes", "no"} or len(expected) != len(questions) or not questions:
        raise ValueError(
            f"{len(questions)} questions and {len(truths)} gt_answers; expected one of yes and no for each question"
        )
    # Without an index the questions stand for the instruction: short and long of it have the same.
    column = {"column": f"{attribute}/{length}", "prompt": f"{attribute}/{record.get('index', questions)}"}
    reply = record["model_output"]
    answers = read_answers(reply, len(questions))
    if answers is None:
        return {**column, "right": 0, "asked": 0, "missing": _unanswered(record, reply, len(questions))}
    # TIIF counts questions: a picture weighs as much as it has of them.
    right = sum(answer == (truth == "yes") for answer, truth in zip(answers, expected, strict=True))
    return {**column, "right": right, "asked": len(questions)}


def _unanswered(record: Mapping[str, Any], reply: Any, asked: int) -> str:
    if not isinstance(reply, str) or not reply.strip():
        return _failed(record)
    return f"the reply does not answer {asked} questions one by one: {short(reply)}"


def _length(record: Mapping[str, Any]) -> str:
    """`short` or `long`; TIIF's own result files say `desc: short_description`."""
    key = "length" if "length" in record or "desc" not in record else "desc"
    length = as_text(record[key], key).removesuffix("_description")
    if length not in LENGTHS:
        raise ValueError(f"{key} is {short(length)}; expected short or long")
    return length


def _genevalpp(record: Mapping[str, Any]) -> dict[str, Any]:
    metadata = record.get("metadata")
    # The tag may stand under `metadata`, as GenEval writes its results.
    whole = {**metadata, **record} if isinstance(metadata, Mapping) else record
    column = {"column": as_text(whole["tag"], "tag"), "prompt": str(whole.get("prompt", ""))}
    key = next((key for key in ("correct", "model_output", "reply") if key in record), None)
    if key is None:
        raise KeyError("correct")
    value = record[key]
    if isinstance(value, str):
        verdict, why = read_verdict(value), f"no clear verdict in the reply: {short(value)}"
    elif value is None or value in (-1, 0, 1):  # True and 1.0, too, are 1
        # The official output writes -1 where the judge failed, which a careless mean would count.
        verdict, why = (None, _failed(record)) if value is None or value == -1 else (bool(value), "")
    else:
        raise ValueError(f"{key} is {short(value)}; expected 1, 0, -1 (no verdict) or the judge's reply")
    if verdict is None:
        return {**column, "right": 0, "asked": 0, "missing": why}
    return {**column, "right": int(verdict), "asked": 1}


def _failed(record: Mapping[str, Any]) -> str:
    """Why the judge gave no verdict, where the recording says so."""
    return f"the judge failed: {short(record['error'])}" if record.get("error") else "the judge did not reply"


def _decoded(value: Any) -> Any:
    """JSON within JSON, as GenEval's results hold it."""
    return json.loads(value, parse_constant=_not_finite) if isinstance(value, str) else value


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{what} is {short(value)}; expected a list of texts")
    return value


# --- a file ---------------------------------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of each line that is not blank. Raises JudgeError, with file and lines, after the last
    if there are others."""
    faults: list[tuple[str, str]] = []
    count = 0
    for line, record in _lines(path):
        count += 1
        if isinstance(record, ValueError):
            faults.append((f"line {line}", str(record)))
        else:
            yield line, record
    if faults:
        raise JudgeError(told_faults(path, faults, count, "lines"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """(line number, JSON object, or why it is none) of each line that is not blank."""
    line = 0
    if path.exists() and not path.is_file():  # a pipe or a device might never end
        raise JudgeError(f"cannot read {path}: it is no file; expected a file of JSON lines")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP  # by its content: published files are named .jsonl either way
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # pyright: ignore[reportAssignmentType]
            # One byte more than is allowed tells a line that is too long.
            while content := stream.readline(MAX_LINE + 1):
                line += 1
                if line == 1:
                    _check_start(path, content)
                if not content.strip():
                    continue
                try:
                    record = json_object(content, MAX_LINE)
                except ValueError as error:
                    yield line, error
                    if len(content) > MAX_LINE:
                        return  # the rest of it would be read as lines of their own
                else:
                    yield line, record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = f"the gzip stream is cut off or damaged ({error}); fetch the file again"
        raise JudgeError(f"{path}, line {line + 1}: {why}") from error
    except OSError as error:
        raise JudgeError(f"cannot read {path}: {error.strerror or error}; expected a file of JSON lines") from error


def _check_start(path: Path, content: bytes) -> None:
    """Raises JudgeError for a file that is whole, and no JSON lines: each of its lines would else be a fault."""
    if content.startswith(LFS_POINTER):
        raise JudgeError(f"{path} is a Git LFS pointer, and not the file itself: run git lfs pull")
    if content.strip() == b"[":
        raise JudgeError(f"{path} is a JSON array; expected one object per line, which `jq -c '.[]'` makes of it")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise JudgeError(f"{path} is UTF-16; expected JSON lines in UTF-8: save it anew")


def json_object(line: bytes, limit: int) -> dict[str, Any]:
    """A line of at most `limit` bytes as a JSON object. Raises ValueError that says what is wrong."""
    if len(line) > limit:
        raise ValueError(f"longer than {limit:,} bytes; expected one picture per line")
    try:
        record = json.loads(line.decode("utf-8-sig"), parse_constant=_not_finite)  # editors may add a byte order mark
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        start = short(line[:60].decode("utf-8", "replace"))
        raise ValueError(f"not JSON ({why}); it starts with {start}") from error
    if not isinstance(record, dict):
        kind = "an array, which `jq -c '.[]'` turns into lines" if isinstance(record, list) else short(record)
        raise ValueError(f"expected a JSON object, one picture per line; found {kind}")
    return record


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
