"""A vision-language model as judge, over any OpenAI-compatible API: `Vlm("http://127.0.0.1:8000", "Qwen/...")`.

Each newest picture goes to the server as a PNG, with a question in the words of a `Form`; temperature is 0. Questions
that are the same are asked once, and with a `cache` never again. Where no verdict is to be had, it is missing and never
0: a call raises JudgeError, and `verdicts` gives one Verdict or JudgeError per trace.
"""

from __future__ import annotations

import base64
import io
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from triptych.errors import ConfigError, JudgeError
from triptych.rewards.vlm_client import JudgeReply, JudgeRequest, ReplyCache, RetryPolicy, append, request_fingerprint
from triptych.rewards.vlm_prompts import Form, Strict
from triptych.trace import Prompt, Trace, Verdict

if TYPE_CHECKING:
    from triptych.rewards.vlm_client import Endpoints

KEY_VARIABLE = "TRIPTYCH_JUDGE_KEY"  # not OPENAI_API_KEY: that one is sent elsewhere only if it is named
MAX_READINGS = 2  # at a readable answer: at temperature 0 a third would hardly differ
TOKEN_SIDE = 28  # pixels: Qwen2.5-VL reads one token per square of this side

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Cost:
    """What judging will cost before retries; tokens are estimates, those of the answers an upper bound."""

    pictures: int
    calls: int  # different questions that the cache does not hold
    cached: int  # different questions that it holds
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class PictureQuestion:
    """A picture, the prompt that it is about, and the question that is put."""

    prompt: Prompt
    picture: UInt8[np.ndarray, "height width 3"]
    asked: JudgeRequest


@dataclass(frozen=True)
class Vlm:
    """A judge at one or more addresses, all of which serve `model`.

    `key` names the environment variable that holds the API key; a server that asks for none needs none. At most
    `concurrency` questions are under way at once. `record` is a file to which each reply is added as a line that
    `triptych score` reads.
    """

    address: str | tuple[str, ...]
    model: str
    form: Form = field(default_factory=Strict)
    key: str = KEY_VARIABLE
    concurrency: int = 8
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    cache: Path | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        if not self.addresses or not self.model or self.concurrency < 1:
            told = f"addresses={self.addresses}, model={self.model!r}, concurrency={self.concurrency}"
            raise ConfigError(f"{told}: expected one or more addresses, a model's name, and a concurrency of 1 or more")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The base URLs, as the client needs them. ConfigError if one is none."""
        return tuple(map(check_address, (self.address,) if isinstance(self.address, str) else self.address))

    @property
    def name(self) -> str:
        """Model and wording, for manifests: what the verdicts depend on, as far as a client can know it."""
        return f"{self.model}/{self.form.name}"

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. Raises JudgeError if any is missing; the others are cached."""
        found = self.verdicts(traces)
        missing = [each for each in found if isinstance(each, JudgeError)]
        if missing:
            raise JudgeError(f"{len(missing)} of {len(found)} verdicts are missing; the first: {missing[0]}")
        return [each for each in found if isinstance(each, Verdict)]

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One verdict per trace, in order, or why it is missing. Raises only for what concerns all of them."""
        jobs = [self._job(trace) for trace in traces]
        asked = {job.asked: job for job in jobs if isinstance(job, PictureQuestion)}
        replies = {job.asked: self._kept(job) for job in asked.values()}
        new = [job for job in asked.values() if replies[job.asked] is None]
        if new:
            with self._endpoints() as endpoints:
                answers = side_by_side(lambda job: self._ask(endpoints, job), new, self.concurrency)
            replies.update((job.asked, answer) for job, answer in zip(new, answers, strict=True))
        return [job if isinstance(job, JudgeError) else self._verdict(job, replies[job.asked]) for job in jobs]

    def cost(self, traces: Sequence[Trace]) -> Cost:
        """What `verdicts` would cost now. Asks nobody."""
        jobs = [self._job(trace) for trace in traces]
        asked = {job.asked: job for job in jobs if isinstance(job, PictureQuestion)}
        new = [job for job in asked.values() if self._kept(job) is None]
        return Cost(
            pictures=len(traces),
            calls=len(new),
            cached=len(asked) - len(new),
            tokens_in=sum(_tokens(job) for job in new),
            tokens_out=len(new) * self.form.tokens,
        )

    def _job(self, trace: Trace) -> PictureQuestion | JudgeError:
        prompt, picture = trace.prompt, trace.image
        if picture is None:
            return JudgeError(f"{prompt.text!r}: expected a picture, found none; draw first")
        try:
            question = self.form.ask(prompt)
            question.encode()
        except JudgeError as error:
            return error
        except UnicodeEncodeError:
            return JudgeError(f"{prompt.text!r}: expected text, found half a character; the verdict is missing")
        return PictureQuestion(
            prompt,
            picture,
            JudgeRequest(request_fingerprint(picture), question, self.model, self.form.name, self.form.tokens),
        )

    def _kept(self, job: PictureQuestion) -> JudgeReply | JudgeError | None:
        return None if self.cache is None else ReplyCache(self.cache).get(job.asked)

    def _ask(self, endpoints: Endpoints, job: PictureQuestion) -> JudgeReply | JudgeError:
        """A readable reply, which is cached; else an unreadable one; else why there is none."""
        reply: JudgeReply | JudgeError = JudgeError("not asked")
        try:
            request = self._request(job)
            for attempt in range(MAX_READINGS):
                reply = endpoints.ask(request, f"{job.asked.digest} {attempt}")
                if self._readable(job, reply):
                    if self.cache is not None:
                        ReplyCache(self.cache).put(job.asked, reply)
                    break
        except JudgeError as error:
            return error
        return reply

    def _readable(self, job: PictureQuestion, reply: JudgeReply) -> bool:
        try:
            self.form.read(job.prompt, reply)
        except JudgeError:
            return False
        return True

    def _request(self, job: PictureQuestion) -> Mapping[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": data_uri(job.picture)}}
        content = [picture, {"type": "text", "text": job.asked.question}]
        request: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": self.form.tokens}
        if self.form.likelihoods:
            request |= {"logprobs": True, "top_logprobs": 5}
        return {**request, "messages": [{"role": "user", "content": content}]}

    def _verdict(self, job: PictureQuestion, reply: JudgeReply | JudgeError | None) -> Verdict | JudgeError:
        assert reply is not None  # every question has been put
        verdict: Verdict | JudgeError
        try:
            verdict = reply if isinstance(reply, JudgeError) else self.form.read(job.prompt, reply)
        except JudgeError as error:
            verdict = error
        if self.record is not None:
            self._write_down(job, reply, verdict)
        return verdict

    def _write_down(self, job: PictureQuestion, reply: JudgeReply | JudgeError, verdict: Verdict | JudgeError) -> None:
        """A missing verdict is written, too, so that a replay lists it as missing."""
        given = None if isinstance(verdict, JudgeError) else verdict
        row = self.form.record(job.prompt, JudgeReply("") if isinstance(reply, JudgeError) else reply, given)
        error = {"error": str(verdict)} if isinstance(verdict, JudgeError) else {}
        append(Path(self.record or ""), {**row, **error, "judge": self.name, "picture": job.asked.picture})

    @contextmanager
    def _endpoints(self) -> Iterator[Endpoints]:
        try:
            from triptych.rewards.vlm_client import Endpoints
        except ImportError as error:
            raise ConfigError(f"{error}; a judge over a network needs it: pip install 'triptych[judge]'") from error
        with Endpoints(self.addresses, self.key, self.patience, self.concurrency) as endpoints:
            yield endpoints


def self_agreement(judge: Vlm, traces: Sequence[Trace]) -> float | None:
    """How far a judge agrees with itself: the share of equal scores when all questions are put twice, past the cache,
    first one at a time and then side by side. None where no trace has a verdict both times."""
    alone = replace(judge, cache=None, record=None, concurrency=1).verdicts(traces)
    among = replace(judge, cache=None, record=None).verdicts(traces)
    pairs = [(a, b) for a, b in zip(alone, among, strict=True) if isinstance(a, Verdict) and isinstance(b, Verdict)]
    return sum(a.score == b.score for a, b in pairs) / len(pairs) if pairs else None


def check_address(address: str) -> str:
    """A base URL as the client needs it; `/v1` is added where there is no path. ConfigError if it is none."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a judge's address holds a user name or password; put the key into an environment variable")
    if not usable:
        raise ConfigError(f"judge address {address!r}: expected a base URL such as http://127.0.0.1:8000/v1")
    return address.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The picture as a PNG inside a URI."""
    file = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")
    except (TypeError, ValueError, OSError) as error:
        raise JudgeError(f"not a picture [height width 3] uint8: {error}") from error
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def side_by_side(work: Callable[[T], R], items: Sequence[T], width: int) -> list[R]:
    """`work` on every item, `width` at a time, results in the order of the items; what it raises is raised.

    The threads are daemons: Ctrl-C ends a run at once, without waiting for a server that does not answer.
    """
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)
    stopped = threading.Event()

    def labour() -> None:
        while not stopped.is_set():
            try:
                index, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, work(item), None))
            except BaseException as error:
                done.put((index, None, error))

    for _ in range(min(width, len(items))):
        threading.Thread(target=labour, daemon=True).start()
    results: dict[int, R] = {}
    try:
        while len(results) < len(items):
            index, result, error = done.get()
            if error is not None:
                raise error
            results[index] = result
    finally:
        stopped.set()
    return [results[index] for index in range(len(items))]


def _tokens(job: PictureQuestion) -> int:
    """About what a question costs: a token per square of the picture, and one per four characters."""
    height, width, _ = job.picture.shape
    return -(-height // TOKEN_SIDE) * -(-width // TOKEN_SIDE) + -(-len(job.asked.question) // 4)
