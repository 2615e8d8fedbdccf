"""A judge's question and its reply as records: read from a chat completion, and kept in a cache on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.errors import JudgeError, UnfinishedError
from triptych.files import naming_errors, write_text
from triptych.rewards.vlm_replies import final_text, is_refusal

MAX_REPLY_BYTES = 1 << 20  # of one answer or one cache file; a verdict has a few hundred
LOGPROB_TOKENS = 4  # first tokens whose likelihoods are kept: enough to step over a quote or a line break
CUT_FINISHES = ("length", "max_tokens", "model_length")  # as servers name an answer that was cut
WITHHELD_FINISHES = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "error")


@dataclass(frozen=True)
class JudgeRequest:
    """One question about one picture; equal requests may share an answer."""

    picture: str  # fingerprint of its pixels
    question: str  # the whole text as it is sent
    model: str
    form: str  # name of the wording and its parser
    tokens: int  # longest answer

    @property
    def digest(self) -> str:
        """The sha256 of all of it: the name of the answer in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class JudgeReply:
    """What a server answered. `top` holds, for each of the first tokens, (token, log-probability) pairs, the chosen
    token first; it is empty where the server gives none."""

    text: str
    finish: str = "stop"  # "length" where it was cut, "content_filter" where the server withheld it
    top: tuple[tuple[tuple[str, float], ...], ...] = ()
    refusal: str = ""  # the server's own field for the words of a model that will not answer

    @property
    def answer(self) -> str:
        """The text behind the thoughts of a reasoning model; empty where a thought was not closed."""
        return final_text(self.text) or ""

    def require_answer(self) -> str:
        """The answer of a reply that is whole. Raises JudgeError, with the server's words, for a refusal or what was
        withheld; UnfinishedError for what was cut, which more tokens may mend."""
        start = " ".join(self.text[-60:].split())
        if self.finish.lower() in CUT_FINISHES:
            raise UnfinishedError(f"the answer was cut at its longest, after {start!r}; the verdict is missing")
        if final_text(self.text) is None:
            raise UnfinishedError(f"the thought was not closed, after {start!r}; the verdict is missing")
        if self.refusal or self.finish.lower() in WITHHELD_FINISHES:
            why = "refused" if self.refusal else f"withheld ({self.finish})"
            words = " ".join((self.refusal or self.text).split())[:200]
            raise JudgeError(f"the server {why}: {words!r}; the verdict is missing")
        # JSON after an apology still counts.
        if is_refusal(self.answer) and not self.answer.rstrip("`\n ").endswith("}"):
            raise JudgeError(f"the model refused: {self.answer[:200]!r}; the verdict is missing")
        return self.answer

    @staticmethod
    def from_completion(payload: Any) -> JudgeReply:
        """Read the JSON of a chat completion. Raises ValueError where it is none."""
        _raise_error_inside(payload)
        try:
            choice = payload["choices"][0]
            message = choice["message"]
            text, finish, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from error
        _raise_error_inside(choice)
        if isinstance(text, list):  # parts, as in a request
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
        if text is not None and not isinstance(text, str):
            raise ValueError(f"not a chat completion (its content is of type {type(text).__name__})")
        refusal = refusal if isinstance(refusal, str) else ""
        return JudgeReply(text or "", str(finish or "stop"), _top_logprobs(choice.get("logprobs")), refusal)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> JudgeReply:
        """Read what the cache holds. Raises KeyError, TypeError or ValueError where it is something else."""
        top = tuple(tuple((str(token), float(value)) for token, value in place) for place in record["top"])
        if not isinstance(record["text"], str):
            raise TypeError("text is no text")
        return JudgeReply(record["text"], str(record["finish"]), top, str(record.get("refusal", "")))


def picture_fingerprint(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The sha256 of size and pixels: the same for any file format, and for any version of the PNG encoder."""
    digest = hashlib.sha256(f"{picture.shape} {picture.dtype}".encode())
    digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReplyCache:
    """A folder with one small JSON file per request, made at the first `put`.

    A file is whole or absent, so that a killed run leaves every finished reply. Any number of processes may share a
    folder, on a network disk too, and caches merge by copying. (One SQLite file would need locks that network disks do
    not keep.) A file that cannot be read, or that answers another request, counts as absent and is written anew.
    """

    folder: Path

    def path(self, request: JudgeRequest) -> Path:
        """Where the reply to a request lies, if it is there."""
        digest = request.digest
        return Path(self.folder) / digest[:2] / f"{digest}.json"  # 256 folders keep listings short

    def get(self, request: JudgeRequest) -> JudgeReply | None:
        """The reply to exactly this request, or None."""
        try:
            with self.path(request).open("rb") as file:
                record = json.loads(file.read(MAX_REPLY_BYTES + 1))
            return JudgeReply.from_record(record["reply"]) if record["asked"] == asdict(request) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, request: JudgeRequest, reply: JudgeReply) -> None:
        """Keep a reply; of two writers at once, either one's file stays. Raises OutputError if it cannot be written."""
        path = self.path(request)
        with naming_errors(Path(self.folder), "choose another folder for the cache"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # ASCII JSON: a reply may hold half a surrogate pair, which UTF-8 has no bytes for.
            write_text(path, json.dumps({"asked": asdict(request), "reply": asdict(reply)}))


def _raise_error_inside(record: Any) -> None:
    """Raise ValueError for an error that a server put into an answer with status 200, in its words."""
    error = record.get("error") if isinstance(record, Mapping) else None
    if error:
        words = error.get("message", error) if isinstance(error, Mapping) else error
        raise ValueError(f"an error in place of an answer: {' '.join(str(words).split())}")


def _top_logprobs(logprobs: Any) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The likelihoods of the first tokens; none where the server's are absent or not as documented."""
    try:
        places = (logprobs or {}).get("content") or []
        return tuple(_choices(place) for place in places[:LOGPROB_TOKENS])
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()


def _choices(place: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """(token, log-probability) pairs at one place, the chosen token first."""
    values: dict[str, float] = {}
    # 20: the most that the API gives.
    for choice in [place, *(place.get("top_logprobs") or [])[:20]]:
        value = float(choice["logprob"])
        if math.isfinite(value):
            values.setdefault(str(choice["token"]), min(value, 0.0))  # rounding may give 1e-7
    return tuple(values.items())
