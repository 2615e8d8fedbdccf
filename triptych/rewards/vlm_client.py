"""Servers that speak OpenAI's chat API: which one is asked next, how long we wait, and when we ask again.

A question goes to the server with the fewest questions under way, then to the one asked least. What may pass is asked
again, elsewhere if there is another server: no connection, no answer in time, a 5xx or 429, a damaged body. Waits
double and are jittered from a seed; a Retry-After is kept, for every question to that server. What will not pass (a
wrong key, an unknown model, a question that the server refuses) is told at once. An answer is read up to a limit in
bytes and in time, however slowly it drips. All failures end as JudgeError: the verdict is missing.
The key comes from an environment variable and is in no record, no message and no log.

How long a server is waited for, and how often it is asked: waits that double, jittered from a seed.

What a vision-language judge answered, and how it is kept: a disk cache, and recordings that scores replay.

The cache is a folder with one small JSON file per question, written aside and renamed. A file is there whole or not at
all, so a killed run leaves every finished reply; any number of processes may share a folder, on a network disk too, and
caches merge by copying. (One SQLite file would need locks that network disks do not keep.) A file that cannot be read,
or that answers another question, counts as absent and is written anew. Nothing is ever unpickled.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import math
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
from jaxtyping import UInt8

from triptych.errors import ConfigError, JudgeError, OutputError

NO_KEY = "none"  # what a server that asks for no key is sent
RETRIED_STATUSES = {408, 409, 425, 429}  # statuses that may pass, besides 5xx
REFUSALS = (openai.BadRequestError, openai.UnprocessableEntityError)
FATAL_STATUSES = {401, 404}  # a wrong key, an unknown model or address: the same for every question


class _Again(Exception):
    """This try failed, but another may not. `after` is how long the server wants to rest, where it says so; `down`
    means that it would fail on any question now."""

    def __init__(self, message: str, after: float | None = None, down: bool = False):
        super().__init__(message)
        self.after, self.down = after, down


class _Oversized(Exception):
    """An answer is larger than any verdict."""


class _Bounded(httpx2.SyncByteStream):
    """An answer's body that ends with an error when it is too large or takes too long."""

    def __init__(self, stream: Any, deadline: float):
        self.stream, self.deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise _Oversized(f"an answer of more than {MAX_REPLY_BYTES:,} bytes")
            if time.monotonic() > self.deadline:
                raise httpx2.ReadTimeout("the answer came too slowly")
            yield chunk

    def close(self) -> None:
        self.stream.close()


class _Server:
    """One address: its client, and what is known of its state."""

    def __init__(self, address: str, key: str, patience: RetryPolicy, concurrency: int):
        self.address, self.key, self.timeout = address, key, patience.timeout
        self.under_way = self.asked = self.failures = 0
        self.ready = 0.0  # when it may be asked again, on the monotonic clock
        self.closed: str | None = None  # why it is of no use at all
        self.tells_likelihoods = True  # until it refuses to
        self.client = openai.OpenAI(
            base_url=address,
            api_key=key,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},  # so that the limit in bytes is one of what is read
            http_client=openai.DefaultHttpxClient(
                timeout=httpx2.Timeout(patience.timeout, connect=min(patience.timeout, 10.0)),
                limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                verify=_certificates(),
                follow_redirects=False,
                event_hooks={"request": [self._begin], "response": [self._bound]},
            ),
        )

    def ask(self, request: Mapping[str, Any]) -> JudgeReply:
        """The answer to one request. Raises _Again for what may pass, JudgeError for what will not."""
        wanted = "logprobs" in request and self.tells_likelihoods
        if wanted:
            with suppress(*REFUSALS):  # many servers refuse to tell likelihoods, each in its own words
                return self._ask(request)
        try:
            reply = self._ask(_plain(request))
        except REFUSALS as error:
            raise self._refusal(error) from None
        self.tells_likelihoods &= not wanted
        return reply

    def _ask(self, request: Mapping[str, Any]) -> JudgeReply:
        try:
            answer = self.client.chat.completions.with_raw_response.create(**request)
            return JudgeReply.from_completion(json.loads(answer.http_response.content))
        except openai.APITimeoutError:
            raise _Again(f"no answer from {self.address} within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Again(self._clean(f"no whole answer from {self.address}: {error.__cause__}"), down=True) from None
        except REFUSALS:
            raise
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except _Oversized as error:
            raise JudgeError(f"{self.address} gave {error}; the verdict is missing") from None
        except (ValueError, RecursionError) as error:
            raise _Again(self._clean(f"{self.address} gave a damaged answer: {error}")) from None

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        status, message = error.status_code, self._clean(f"{self.address} says {error.status_code}: {_told(error)}")
        if status in RETRIED_STATUSES or status >= 500:
            return _Again(message, retry_after(error.response.headers), down=status in (429, 503))
        if status in FATAL_STATUSES:
            self.closed = message
            return _Again(message)  # another server may do
        return JudgeError(f"{message}; the verdict is missing")

    def _clean(self, text: str) -> str:
        """What a server said, as one short line of a message, and without the key even if the server sent it back."""
        if self.key != NO_KEY:
            text = text.replace(self.key, "***")
        return "".join(letter if letter.isprintable() else " " for letter in text)[:300]

    def _begin(self, request: httpx2.Request) -> None:
        request.extensions["deadline"] = time.monotonic() + self.timeout

    def _bound(self, response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("it compressed its answer, which we did not ask for")
        response.stream = _Bounded(response.stream, response.request.extensions["deadline"])


class Endpoints:
    """The servers of one run, as a context: leaving it closes their connections and wakes whoever is waiting."""

    def __init__(self, addresses: Sequence[str], key: str, patience: RetryPolicy, concurrency: int):
        """`key` names the environment variable that holds the API key. Raises ConfigError."""
        self.patience = patience
        secret = _secret(key)
        self.servers = [_Server(each, secret, patience, concurrency) for each in addresses]
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for server in self.servers:
            server.client.close()

    def ask(self, request: Mapping[str, Any], salt: str) -> JudgeReply:
        """The answer to one request, after as many tries as patience allows; `salt` sets its jitter apart.

        Raises JudgeError with the last cause.
        """
        jitter = self.patience.jitter(salt)
        cause, last = "", None
        for attempt in range(self.patience.tries):
            if attempt:
                self._wait(self.patience.delay(attempt, jitter))
            server = self._take(last)
            try:
                self._wait(max(server.ready - time.monotonic(), 0.0))
                reply = server.ask(request)
                server.failures = 0
                return reply
            except _Again as again:
                cause, last = str(again), server
                self._rest(server, again, jitter)
            finally:
                with self._lock:
                    server.under_way -= 1
        raise JudgeError(f"{cause} (tried {self.patience.tries} times); the verdict is missing")

    def _take(self, last: _Server | None) -> _Server:
        """The server to ask now, counted as asked: one that need not rest, and not the one that just failed."""
        with self._lock:
            now = time.monotonic()
            usable = [server for server in self.servers if server.closed is None]
            if not usable:
                raise JudgeError(f"{self.servers[-1].closed}; the verdict is missing")
            best = min(usable, key=lambda s: (max(s.ready - now, 0.0), s is last, s.under_way, s.asked))
            if best.ready - now > self.patience.longest:
                rest = f"{best.address} wants to rest for {best.ready - now:.0f} s"
                raise JudgeError(f"{rest}, and we wait {self.patience.longest:g} s at most; the verdict is missing")
            best.under_way += 1
            best.asked += 1
            return best

    def _rest(self, server: _Server, again: _Again, jitter: random.Random) -> None:
        """Let a server rest as long as it asks, or longer each time where it is down."""
        if again.after is None and not again.down:
            return
        with self._lock:
            now = time.monotonic()
            server.failures += again.down and server.ready <= now  # questions that fail together are one failure
            pause = self.patience.delay(server.failures, jitter) if again.after is None else again.after
            server.ready = max(server.ready, now + pause)

    def _wait(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise JudgeError("the run was stopped; the verdict is missing")


@cache
def _certificates() -> ssl.SSLContext:
    """Read once a process: it takes longer than many an answer."""
    return httpx2.create_ssl_context()


def _secret(variable: str) -> str:
    secret = os.environ.get(variable, "").strip()
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError(f"the environment variable {variable} holds no API key: it has characters that no key has")
    return secret or NO_KEY


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in ("logprobs", "top_logprobs")}


def _told(error: openai.APIStatusError) -> str:
    """The server's own words, wherever it put them."""
    body = error.body
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    return " ".join(str(body or error.response.reason_phrase).split())


@dataclass(frozen=True)
class RetryPolicy:
    """What a client of a slow or busy server lives by; all times in seconds."""

    timeout: float = 60.0  # for one whole answer
    tries: int = 5
    backoff: float = 1.0  # before the second try, doubled before each further one; half to one and a half of it
    longest: float = 60.0  # no wait between tries is longer; a server that asks for more is given up
    seed: int = 0  # of the jitter

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.tries >= 1 and self.backoff >= 0 and self.longest >= 0):
            raise ConfigError(f"{self}: expected a timeout above 0, 1 or more tries, and waits of 0 or more seconds")

    def jitter(self, salt: str) -> random.Random:
        """Random numbers for one question's waits: they depend on the seed and on `salt`, not on who else waits."""
        return random.Random(f"{self.seed} {salt}")

    def delay(self, failures: int, jitter: random.Random) -> float:
        """Seconds to wait after so many failures in a row, one or more."""
        return min(self.backoff * 2 ** min(failures - 1, 30) * jitter.uniform(0.5, 1.5), self.longest)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone: a number, or an HTTP date. None where it does not say."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


MAX_REPLY_BYTES = 1 << 20  # bytes of one answer or one cache file; a verdict has a few hundred
LOGPROB_TOKENS = 4  # first tokens whose likelihoods are kept: enough to step over a quote or a line break
THINK_END = "</think>"  # a reasoning model's answer follows the last of these


@dataclass(frozen=True)
class JudgeRequest:
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
class JudgeReply:
    """What a server answered. `top` holds, for each of the first tokens, (token, log-probability) pairs, the chosen
    token first; it is empty where the server gives none."""

    text: str
    finish: str = "stop"  # "length" where it was cut, "content_filter" where the server withheld it
    top: tuple[tuple[tuple[str, float], ...], ...] = ()

    @property
    def said(self) -> str:
        """The answer without the thoughts of a reasoning model."""
        return self.text.rpartition(THINK_END)[2].strip()

    @staticmethod
    def from_completion(payload: Any) -> JudgeReply:
        """Read the JSON of a chat completion. Raises ValueError where it is none."""
        try:
            choice = payload["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from error
        if text is not None and not isinstance(text, str):
            raise ValueError(f"not a chat completion (its content is of type {type(text).__name__})")
        return JudgeReply(text or "", str(finish or "stop"), _likeliest(choice.get("logprobs")))

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> JudgeReply:
        """Read what the cache holds. Raises KeyError, TypeError or ValueError where it is something else."""
        top = tuple(tuple((str(token), float(value)) for token, value in place) for place in record["top"])
        if not isinstance(record["text"], str):
            raise TypeError("text is no text")
        return JudgeReply(record["text"], str(record["finish"]), top)


def request_fingerprint(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The sha256 of size and pixels: the same for any file format, and for any version of the PNG encoder."""
    digest = hashlib.sha256(f"{picture.shape} {picture.dtype}".encode())
    digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReplyCache:
    """A folder of replies, made at the first `put`."""

    folder: Path

    def path(self, asked: JudgeRequest) -> Path:
        """Where the reply to `asked` lies, if it is there."""
        digest = asked.digest
        return Path(self.folder) / digest[:2] / f"{digest}.json"  # 256 folders keep listings short

    def get(self, asked: JudgeRequest) -> JudgeReply | None:
        """The reply kept for exactly this question, or None."""
        try:
            with self.path(asked).open("rb") as file:
                record = json.loads(file.read(MAX_REPLY_BYTES + 1))
            return JudgeReply.from_record(record["reply"]) if record["asked"] == asdict(asked) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, asked: JudgeRequest, reply: JudgeReply) -> None:
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
        return tuple(_choices(place) for place in places[:LOGPROB_TOKENS])
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()


def _choices(place: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for choice in [place, *(place.get("top_logprobs") or [])[:20]]:
        value = float(choice["logprob"])
        if math.isfinite(value):
            found.setdefault(str(choice["token"]), min(value, 0.0))
    return tuple(found.items())
