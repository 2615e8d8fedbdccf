"""Servers that speak OpenAI's chat API: which one is asked next, how long we wait, and when we ask again.

A question goes to the server with the fewest questions under way, then to the one asked least. What may pass is asked
again, elsewhere if there is another server: no connection, no answer in time, a 5xx or 429, a damaged body. Waits
double and are jittered from a seed; a Retry-After is kept, for every question to that server. What will not pass (a
wrong key, an unknown model, a question that the server refuses) is told at once. An answer is read up to a limit in
bytes and in time, however slowly it drips. All failures end as JudgeError: the verdict is missing.
The key comes from an environment variable and is in no record, no message and no log.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import httpx2
import openai

from triptych.errors import ConfigError, JudgeError
from triptych.rewards.patience import Patience, retry_after
from triptych.rewards.replies import LARGEST, Reply

NO_KEY = "none"  # what a server that asks for no key is sent
PASSING = {408, 409, 425, 429}  # statuses that may pass, besides 5xx
REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)
CLOSED = {401, 404}  # a wrong key, an unknown model or address: the same for every question


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
            if size > LARGEST:
                raise _Oversized(f"an answer of more than {LARGEST:,} bytes")
            if time.monotonic() > self.deadline:
                raise httpx2.ReadTimeout("the answer came too slowly")
            yield chunk

    def close(self) -> None:
        self.stream.close()


class _Server:
    """One address: its client, and what is known of its state."""

    def __init__(self, address: str, key: str, patience: Patience, concurrency: int):
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

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """The answer to one request. Raises _Again for what may pass, JudgeError for what will not."""
        wanted = "logprobs" in request and self.tells_likelihoods
        if wanted:
            with suppress(*REFUSED):  # many servers refuse to tell likelihoods, each in its own words
                return self._ask(request)
        try:
            reply = self._ask(_plain(request))
        except REFUSED as error:
            raise self._refusal(error) from None
        self.tells_likelihoods &= not wanted
        return reply

    def _ask(self, request: Mapping[str, Any]) -> Reply:
        try:
            answer = self.client.chat.completions.with_raw_response.create(**request)
            return Reply.from_completion(json.loads(answer.http_response.content))
        except openai.APITimeoutError:
            raise _Again(f"no answer from {self.address} within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Again(self._clean(f"no whole answer from {self.address}: {error.__cause__}"), down=True) from None
        except REFUSED:
            raise
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except _Oversized as error:
            raise JudgeError(f"{self.address} gave {error}; the verdict is missing") from None
        except (ValueError, RecursionError) as error:
            raise _Again(self._clean(f"{self.address} gave a damaged answer: {error}")) from None

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        status, message = error.status_code, self._clean(f"{self.address} says {error.status_code}: {_told(error)}")
        if status in PASSING or status >= 500:
            return _Again(message, retry_after(error.response.headers), down=status in (429, 503))
        if status in CLOSED:
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

    def __init__(self, addresses: Sequence[str], key: str, patience: Patience, concurrency: int):
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

    def ask(self, request: Mapping[str, Any], salt: str) -> Reply:
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
