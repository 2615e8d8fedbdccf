"""What a vision-language judge answered, and how it is kept: a disk cache, and recordings that scores replay.

The cache is a folder with one small JSON file per question, written aside and renamed. A file is there whole or not at
all, so a killed run leaves every finished reply; any number of processes may share a folder, on a network disk too, and
caches merge by copying. (One SQLite file would need locks that network disks do not keep.) A file that cannot be read,
or that answers another question, counts as absent and is written anew. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.errors import OutputError

LARGEST = 1 << 20  # bytes of one answer or one cache file; a verdict has a few hundred
PLACES = 4  # first tokens whose likelihoods are kept: enough to step over a quote or a line break
THOUGHT = "</think>"  # a reasoning model's answer follows the last of these


@dataclass(frozen=True)
class Asked:
    """One question about one picture; equal questions may share an answer."""

    picture: str  # fingerprint of its pixels
    question: str  # the whole text as it is sent
    model: str
    form: str  # name of the wording and its parser
    tokens: int  # longest answer

    @property
    def digest(self) -> str:
        """The sha256 of all of it: the name under which the answer is kept."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a server answered. `top` holds, for each of the first tokens, (token, log-probability) pairs, the chosen
    token first; it is empty where the server gives none."""

    text: str
    finish: str = "stop"  # "length" where it was cut, "content_filter" where the server withheld it
    top: tuple[tuple[tuple[str, float], ...], ...] = ()

    @property
    def said(self) -> str:
        """The answer without the thoughts of a reasoning model."""
        return self.text.rpartition(THOUGHT)[2].strip()

    @staticmethod
    def from_completion(payload: Any) -> Reply:
        """Read the JSON of a chat completion. Raises ValueError where it is none."""
        try:
            choice = payload["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from error
        if text is not None and not isinstance(text, str):
            raise ValueError(f"not a chat completion (its content is of type {type(text).__name__})")
        return Reply(text or "", str(finish or "stop"), _likeliest(choice.get("logprobs")))

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Reply:
        """Read what the cache holds. Raises KeyError, TypeError or ValueError where it is something else."""
        top = tuple(tuple((str(token), float(value)) for token, value in place) for place in record["top"])
        if not isinstance(record["text"], str):
            raise TypeError("text is no text")
        return Reply(record["text"], str(record["finish"]), top)


def fingerprint(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The sha256 of size and pixels: the same for any file format, and for any version of the PNG encoder."""
    digest = hashlib.sha256(f"{picture.shape} {picture.dtype}".encode())
    digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of replies, made at the first `put`."""

    folder: Path

    def path(self, asked: Asked) -> Path:
        """Where the reply to `asked` lies, if it is there."""
        digest = asked.digest
        return Path(self.folder) / digest[:2] / f"{digest}.json"  # 256 folders keep listings short

    def get(self, asked: Asked) -> Reply | None:
        """The reply kept for exactly this question, or None."""
        try:
            with self.path(asked).open("rb") as file:
                record = json.loads(file.read(LARGEST + 1))
            return Reply.from_record(record["reply"]) if record["asked"] == asdict(asked) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, asked: Asked, reply: Reply) -> None:
        """Keep a reply; of two writers at once, either one's file stays. Raises OutputError if it cannot be written."""
        path = self.path(asked)
        part = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"asked": asdict(asked), "reply": asdict(reply)}), encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise OutputError(
                f"cannot write the cache {self.folder}: {error.strerror or error}; choose another folder"
            ) from error


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON to a recording, in a single write, so that several processes may share the file.

    A line that a full disk once left torn is closed first, so that it spoils no other. Raises OutputError.
    """
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    try:
        with Path(path).open("ab+", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if file.write(line) != len(line):
                raise OSError(0, "the disk is full")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --record") from error


def _likeliest(logprobs: Any) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The likelihoods of the first tokens; none where the server's are absent or not as documented."""
    try:
        places = (logprobs or {}).get("content") or []
        return tuple(_choices(place) for place in places[:PLACES])
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()


def _choices(place: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for choice in [place, *(place.get("top_logprobs") or [])[:20]]:
        value = float(choice["logprob"])
        if math.isfinite(value):
            found.setdefault(str(choice["token"]), min(value, 0.0))
    return tuple(found.items())
