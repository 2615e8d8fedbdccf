"""A client of OpenAI's chat API for judges: requests and replies, a cache on disk, retries, several servers at once.

A request goes to the server with the fewest requests under way, then to the one that had fewest so far. What may pass
is tried again, elsewhere if there is another server: no connection, no answer in time, a 5xx or 429, a damaged body.
Waits double and are jittered from a seed; a Retry-After holds for every request to that server. What will not pass (a
wrong key, an unknown model, a request that the server refuses) fails at once. An answer is read up to a limit in bytes
and in time, however slowly it arrives. All failures end as JudgeError: the verdict is missing.

The API key comes from an environment variable and is in no record, no message and no log.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from triptych.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, check_bounds
from triptych.errors import ConfigError, JudgeError, JudgeUnavailableError
from triptych.rewards.judge_reply import MAX_REPLY_BYTES, JudgeReply

NO_KEY = "none"  # the key for a server that needs none
RETRIED_STATUSES = {408, 409, 425, 429}  # timeout, conflict, too early, too many requests; besides 5xx
REFUSAL_STATUSES = {400, 422}  # this request, as it is
FATAL_STATUSES = {401, 404}  # a wrong key, an unknown model or address: the same for every request
MAX_ADJUSTMENTS = 6  # forms in which a server is asked: without likelihoods, temperature, ...
CONNECT_TIMEOUT = 10.0  # seconds; a server that is there accepts at once, however busy its model is


@dataclass(frozen=True)
class RetryPolicy:
    """How long a client waits for a slow or busy server, and how often it tries; all times in seconds."""

    timeout: PositiveFloat = 60.0  # for one whole answer
    tries: PositiveInt = 5
    backoff: NonNegativeFloat = 1.0  # before the second try, doubled before each further one; times 0.5 to 1.5
    max_wait: NonNegativeFloat = 60.0  # between tries; a server that asks for a longer rest is tried again after it
    seed: int = 0  # of the jitter

    def __post_init__(self) -> None:
        check_bounds(self)

    def jitter(self, salt: str) -> random.Random:
        """Random numbers for the waits of one request: they depend on the seed and on `salt`, not on other requests."""
        return random.Random(f"{self.seed} {salt}")

    def delay(self, failures: int, jitter: random.Random) -> float:
        """Seconds to wait after so many failures in a row, one or more."""
        # The exponent is bounded, or it would overflow long after max_wait decides.
        return min(self.backoff * 2 ** min(failures - 1, 30) * jitter.uniform(0.5, 1.5), self.max_wait)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone: a number, or an HTTP date. None where it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


class Endpoints:
    """The servers of one run, as a context: leaving it closes their connections and wakes every waiting thread.

    Neither the client's own retries nor tenacity fit: both repeat one call at one address, while here a try goes to
    another server, a server's rest holds for all threads, and the end of a run cuts every wait short.
    """

    def __init__(self, addresses: Sequence[str], key: str, retry: RetryPolicy, concurrency: int):
        """`key` names the environment variable that holds the API key. Raises ConfigError."""
        self.retry = retry
        secret = _secret(key)
        self.servers = [_Server(each, secret, retry, concurrency) for each in addresses]
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for server in self.servers:
            server.client.close()

    def complete(self, request: Mapping[str, Any], salt: str) -> JudgeReply:
        """The answer to one chat completion, after as many tries as allowed; `salt` sets its jitter apart.

        Raises JudgeError with the last cause; JudgeUnavailableError where another time may do.
        """
        jitter = self.retry.jitter(salt)
        cause, last, unavailable = "", None, False
        for attempt in range(self.retry.tries):
            if attempt:
                self._wait(self.retry.delay(attempt, jitter))
            server = self._acquire(last)
            try:
                self._wait(max(server.ready - time.monotonic(), 0.0))
                reply = server.complete(request)
                server.failures = 0
                return reply
            except _Retry as failure:
                cause, last, unavailable = str(failure), server, failure.unavailable
                self._rest(server, failure, jitter)
                if len(self.servers) == 1 and failure.after is not None and failure.after > self.retry.max_wait:
                    wish = f"it wants to rest for {failure.after:.0f} s, and we wait {self.retry.max_wait:g} s at most"
                    raise JudgeUnavailableError(f"{cause}; {wish}; the verdict is missing") from None
            finally:
                with self._lock:
                    server.under_way -= 1
        error = JudgeUnavailableError if unavailable else JudgeError
        raise error(f"{cause} (tried {self.retry.tries} times); the verdict is missing")

    def _acquire(self, last: _Server | None) -> _Server:
        """The server for the next try, counted as busy: one that need not rest, and not the one that just failed."""
        with self._lock:
            now = time.monotonic()
            usable = [server for server in self.servers if server.fatal is None]
            if not usable:
                raise JudgeError(f"{self.servers[-1].fatal}; the verdict is missing")
            best = min(usable, key=lambda s: (max(s.ready - now, 0.0), s is last, s.under_way, s.total))
            best.under_way += 1
            best.total += 1
            return best

    def _rest(self, server: _Server, failure: _Retry, jitter: random.Random) -> None:
        """Let a server rest as long as it asks, or longer each time where it is down."""
        if failure.after is None and not failure.down:
            return
        with self._lock:
            now = time.monotonic()
            server.failures += failure.down and server.ready <= now  # requests that fail together are one failure
            # However long a rest it asks for, it is tried again after max_wait: it may have recovered.
            pause = self.retry.delay(server.failures, jitter) if failure.after is None else failure.after
            pause = min(pause, self.retry.max_wait)
            server.ready = max(server.ready, now + pause)

    def _wait(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise JudgeError("the run was stopped; the verdict is missing")


class _Retry(Exception):
    """This try failed, but another may not. `after` is how long the server wants to rest, where it says so; `down`
    means that it would fail on any request now, and `late` that it did not answer in time."""

    def __init__(self, message: str, after: float | None = None, down: bool = False, late: bool = False):
        super().__init__(message)
        self.after, self.down = after, down
        self.unavailable = down or late or after is not None


class _Refusal(Exception):
    """The server does not take this request, as it is; `parameter` is the field that it names, if any."""

    def __init__(self, message: str, parameter: str = ""):
        super().__init__(message)
        self.parameter = parameter


class _Oversized(Exception):
    """An answer is larger than any verdict."""


class _TooSlow(Exception):
    """The whole exchange took longer than the timeout."""


class _Deadline:
    """Closes the connection of one request when its time is up.

    The timeouts of HTTP clients are of one read each, so that a server which sends a byte now and then, in the headers
    say, is never timed out by them.
    """

    def __init__(self, seconds: float):
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._close)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """The client's trace: takes note of the connection of this request."""
        opened = event in ("connection.connect_tcp.complete", "connection.start_tls.complete")
        if opened and (connection := info["return_value"].get_extra_info("socket")):
            self._sockets.append(connection)

    def stop(self) -> None:
        self._timer.cancel()

    def _close(self) -> None:
        self.passed = True
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server:
    """One address: its client, and the state that its requests have shown."""

    def __init__(self, address: str, key: str, retry: RetryPolicy, concurrency: int):
        self.address, self.key, self.timeout = address, key, retry.timeout
        self.under_way = self.total = self.failures = 0  # requests now, requests so far, failures in a row
        self.ready = 0.0  # when it may have the next request, on the monotonic clock
        self.fatal: str | None = None  # why it is of no use at all
        self.refused: set[str] = set()  # fields of a request that it does not take
        self.local = threading.local()  # the deadline of the request of each thread
        self.openai, httpx2 = _libraries()
        self.client = self.openai.OpenAI(
            base_url=address,
            api_key=key,
            max_retries=0,  # `Endpoints` tries again, elsewhere
            default_headers={"Accept-Encoding": "identity"},  # so that the limit in bytes is one of what is read
            http_client=self.openai.DefaultHttpxClient(
                timeout=httpx2.Timeout(retry.timeout, connect=min(retry.timeout, CONNECT_TIMEOUT)),
                # A connection serves one request: what a server sends beyond its answer can then be no other's answer.
                limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=0),
                verify=_certificates(),
                follow_redirects=False,  # key and picture go to the named address alone
                event_hooks={"request": [self._start_clock], "response": [self._bound]},
            ),
        )
        # The client takes these from OPENAI_ORG_ID and OPENAI_PROJECT_ID, whatever the server.
        self.client.organization = self.client.project = None

    def complete(self, request: Mapping[str, Any]) -> JudgeReply:
        """The answer to one request, asked as this server wants. Raises _Retry for what may pass, JudgeError for what
        will not."""
        for _ in range(MAX_ADJUSTMENTS):
            try:
                return self._complete(self.adjusted(request))
            except _Refusal as refusal:
                if not self._adjust(request, refusal):
                    raise JudgeError(f"{refusal}; the verdict is missing") from None
        raise JudgeError(f"{self.address} refused {MAX_ADJUSTMENTS} forms of the request; the verdict is missing")

    def adjusted(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request without what this server has refused, and with its name for the longest answer."""
        fields = {name: value for name, value in request.items() if name not in self.refused}
        if "max_tokens" in self.refused and "max_tokens" in request and "max_completion_tokens" not in self.refused:
            fields["max_completion_tokens"] = request["max_tokens"]
        extra = {name: value for name, value in request.get("extra_body", {}).items() if name not in self.refused}
        return {**fields, "extra_body": extra} if extra else {n: v for n, v in fields.items() if n != "extra_body"}

    def _adjust(self, request: Mapping[str, Any], refusal: _Refusal) -> bool:
        """Leave out, from now on, the fields that a refusal names; False where it names none that were sent.

        Newer models refuse max_tokens or temperature, many servers refuse likelihoods, each in its own words.
        """
        adjusted = self.adjusted(request)
        sent = {*adjusted, *adjusted.get("extra_body", {})} - {"model", "messages", "extra_body"}
        words = f"{refusal.parameter} {refusal}"
        named = {name for name in sent if re.search(rf"(?<![\w]){name}(?![\w])", words)}
        if "max_tokens" in named and "max_completion_tokens" in named:  # "use max_completion_tokens instead"
            named -= {"max_completion_tokens"}
        if not named and {"logprobs", "top_logprobs"} & sent:  # likelihoods are what a refusal is most often about
            named = {"logprobs"}
        if "logprobs" in named or "top_logprobs" in named:
            named |= {"logprobs", "top_logprobs"}
        self.refused |= named
        return bool(named)

    def _complete(self, request: Mapping[str, Any]) -> JudgeReply:
        try:
            with self._within_deadline():
                response = self.client.chat.completions.with_raw_response.create(**request)
            body = response.http_response.content.decode("utf-8", "replace")
            return JudgeReply.from_completion(json.loads(self._without_key(body)))
        except _TooSlow:
            raise _Retry(f"no whole answer from {self.address} within {self.timeout:g} s", late=True) from None
        except self.openai.APITimeoutError:
            raise _Retry(f"no answer from {self.address} within {self.timeout:g} s", late=True) from None
        except self.openai.APIConnectionError as error:
            raise _Retry(self._clean(f"no whole answer from {self.address}: {error.__cause__}"), down=True) from None
        except self.openai.APIStatusError as error:
            raise self._failure(error, _server_message(error)) from None
        except _Oversized as error:
            raise JudgeError(f"{self.address} gave {error}; the verdict is missing") from None
        except (ValueError, RecursionError) as error:
            raise _Retry(self._clean(f"{self.address} gave a damaged answer: {error}")) from None

    def _failure(self, error: Any, message: str) -> Exception:
        """What an `openai.APIStatusError` means for this try."""
        status, headers = error.status_code, error.response.headers
        message = self._clean(f"{self.address} says {status}: {message}")
        if status in RETRIED_STATUSES or status >= 500:
            return _Retry(message, retry_after(headers), down=status in (429, 503))  # too busy for any request
        if status in REFUSAL_STATUSES:
            return _Refusal(message, str(error.param or ""))
        if status in FATAL_STATUSES:
            self.fatal = message
            return _Retry(message)  # another server may do
        return JudgeError(f"{message}; the verdict is missing")

    def _clean(self, text: str) -> str:
        """A server's words as one short line of a message, and without the key even if the server sent it back."""
        return "".join(letter if letter.isprintable() else " " for letter in self._without_key(text))[:300]

    def _without_key(self, text: str) -> str:
        """A server may send the key back; it reaches no message, cache or record."""
        return text if self.key == NO_KEY else text.replace(self.key, "***")

    @contextmanager
    def _within_deadline(self) -> Iterator[None]:
        """Raises _TooSlow where the whole exchange took longer than the timeout."""
        self.local.deadline = None
        try:
            yield
        except Exception:
            if self.local.deadline is not None and self.local.deadline.passed:
                raise _TooSlow from None
            raise
        finally:
            if self.local.deadline is not None:
                self.local.deadline.stop()

    def _start_clock(self, request: Any) -> None:
        deadline = _Deadline(self.timeout)
        request.extensions["trace"] = deadline.watch
        self.local.deadline = deadline

    def _bound(self, response: Any) -> None:
        _, httpx2 = _libraries()
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("it compressed its answer, which we did not ask for")
        response.stream = _bounded_stream()(response.stream)


@cache
def _libraries() -> tuple[Any, Any]:
    """The modules openai and httpx2, which come with an extra. Raises ConfigError where they are not installed."""
    try:
        import httpx2
        import openai
    except ImportError as error:
        raise ConfigError(f"{error}; a judge over a network needs it: pip install 'triptych[judge]'") from error
    return openai, httpx2


@cache
def _bounded_stream() -> type:
    """The class of an answer's body that ends with an error when it is too large.

    It is made here, since its base class comes with an extra.
    """
    _, httpx2 = _libraries()

    class BoundedStream(httpx2.SyncByteStream):
        def __init__(self, stream: Any):
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self.stream:
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise _Oversized(f"an answer of more than {MAX_REPLY_BYTES:,} bytes")
                yield chunk

        def close(self) -> None:
            self.stream.close()

    return BoundedStream


@cache
def _certificates() -> Any:
    """An SSL context, made once a process: reading the certificates takes longer than many an answer."""
    _, httpx2 = _libraries()
    return httpx2.create_ssl_context()


def _secret(variable: str) -> str:
    secret = os.environ.get(variable, "").strip()
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError(f"the environment variable {variable} holds no API key: it has characters that no key has")
    return secret or NO_KEY


def _server_message(error: Any) -> str:
    """The server's own words, wherever it put them in the body of an `openai.APIStatusError`."""
    body = error.body
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    return " ".join(str(body or error.response.reason_phrase).split())
