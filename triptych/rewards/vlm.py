"""A vision-language model as judge, over any OpenAI-compatible API: `Vlm("http://127.0.0.1:8000", "Qwen/...")`.

Each newest picture goes to the server as a PNG, with a question in the words of a `Form`; temperature is 0 unless said
otherwise. Equal questions are sent once, and with a `cache` never again. Where there is no verdict, it is missing and
never 0: a call raises JudgeError, and `verdicts` gives one Verdict or JudgeError per trace.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from triptych import files
from triptych.errors import ConfigError, JudgeError, UnfinishedError
from triptych.rewards.judge_reply import JudgeReply, JudgeRequest, ReplyCache, picture_fingerprint
from triptych.rewards.vlm_client import Endpoints, RetryPolicy
from triptych.rewards.vlm_prompts import Form, Strict
from triptych.trace import Prompt, Trace, Verdict

KEY_VARIABLE = "TRIPTYCH_JUDGE_KEY"  # not OPENAI_API_KEY: that one goes to another server only if it is named
MAX_READINGS = 2  # answers per question until one can be read: at temperature 0 a third would hardly differ
TOKENS_GROWTH = 4  # times as long may the second answer be, where the first was cut
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
    """A picture, the prompt that it is about, and the question about it."""

    prompt: Prompt
    picture: UInt8[np.ndarray, "height width 3"]
    request: JudgeRequest


@dataclass(frozen=True)
class Vlm:
    """A judge at one or more addresses, all of which serve `model`.

    `key` names the environment variable that holds the API key; a server may need none. At most `concurrency` requests
    are under way at once. `record` is a file to which each reply is added as a line that `triptych score` reads.
    """

    address: str | tuple[str, ...]
    model: str
    form: Form = field(default_factory=Strict)
    key: str = KEY_VARIABLE
    concurrency: int = 8
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    cache: Path | None = None
    record: Path | None = None
    tokens: int = 0  # longest answer, thoughts included; 0 is the form's own
    temperature: float = 0.0  # so that a reply from the cache is the one that the server would give again
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request, as the server names them
    cut: list[str] = field(default_factory=list, compare=False, repr=False)  # one entry per answer that was cut

    def __post_init__(self) -> None:
        if not self.addresses or not self.model or self.concurrency < 1:
            values = f"addresses={self.addresses}, model={self.model!r}, concurrency={self.concurrency}"
            raise ConfigError(
                f"{values}: expected one or more addresses, a model's name, and a concurrency of 1 or more"
            )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The base URLs, as the client needs them. ConfigError if one is none."""
        return tuple(map(check_address, (self.address,) if isinstance(self.address, str) else self.address))

    @property
    def name(self) -> str:
        """Model, wording and settings, for manifests: what verdicts depend on, as far as a client can know it."""
        return f"{self.model}/{self._form_name}"

    @property
    def _form_name(self) -> str:
        """The form, with a digest of temperature and further fields where they are not the usual ones."""
        if not self.temperature and not self.extra:
            return self.form.name
        settings = json.dumps([self.temperature, dict(self.extra)], sort_keys=True)
        return f"{self.form.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. Raises JudgeError if any is missing; the others are cached."""
        outcomes = self.verdicts(traces)
        missing = [each for each in outcomes if isinstance(each, JudgeError)]
        if missing:
            raise JudgeError(f"{len(missing)} of {len(outcomes)} verdicts are missing; the first: {missing[0]}")
        return [each for each in outcomes if isinstance(each, Verdict)]

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One verdict per trace, in order, or why it is missing. Raises only for what concerns all of them."""
        questions = [self._question(trace) for trace in traces]
        distinct = {each.request: each for each in questions if isinstance(each, PictureQuestion)}
        replies: dict[JudgeRequest, JudgeReply | JudgeError | None] = {
            request: self._cached(question) for request, question in distinct.items()
        }
        new = [each for each in distinct.values() if replies[each.request] is None]
        # With every reply in the cache no server is needed, nor a key.
        if new:
            with Endpoints(self.addresses, self.key, self.retry, self.concurrency) as endpoints:
                answers = side_by_side(lambda each: self._send(endpoints, each), new, self.concurrency)
            replies.update((each.request, answer) for each, answer in zip(new, answers, strict=True))
        return [
            each if isinstance(each, JudgeError) else self._verdict(each, replies[each.request]) for each in questions
        ]

    def cost(self, traces: Sequence[Trace]) -> Cost:
        """What `verdicts` would cost now. Sends nothing."""
        questions = [self._question(trace) for trace in traces]
        distinct = {each.request: each for each in questions if isinstance(each, PictureQuestion)}
        new = [each for each in distinct.values() if self._cached(each) is None]
        return Cost(
            pictures=len(traces),
            calls=len(new),
            cached=len(distinct) - len(new),
            tokens_in=sum(_tokens(each) for each in new),
            tokens_out=len(new) * (self.tokens or self.form.tokens),
        )

    def _question(self, trace: Trace) -> PictureQuestion | JudgeError:
        prompt, picture = trace.prompt, trace.image
        if picture is None:
            return JudgeError(f"{prompt.text!r}: expected a picture, found none; draw first")
        try:
            text = self.form.ask(prompt)
            text.encode()  # a lone surrogate cannot be sent
        except JudgeError as error:
            return error
        except UnicodeEncodeError:
            return JudgeError(f"{prompt.text!r}: expected text, found half a character; the verdict is missing")
        tokens = self.tokens or self.form.tokens
        request = JudgeRequest(picture_fingerprint(picture), text, self.model, self._form_name, tokens)
        return PictureQuestion(prompt, picture, request)

    def _cached(self, question: PictureQuestion) -> JudgeReply | None:
        """The reply in the cache, unless it holds no verdict: an older version may have kept it."""
        reply = None if self.cache is None else ReplyCache(self.cache).get(question.request)
        return reply if reply is not None and self._unreadable(question, reply) is None else None

    def _send(self, endpoints: Endpoints, question: PictureQuestion) -> JudgeReply | JudgeError:
        """A readable reply, which is cached; else an unreadable one; else why there is none.

        What cannot be read is asked for once more, and what was cut with room for more.
        """
        reply: JudgeReply | JudgeError = JudgeError("not sent")
        tokens = question.request.tokens
        try:
            for attempt in range(MAX_READINGS):
                reply = endpoints.complete(self._completion(question, tokens), f"{question.request.digest} {attempt}")
                problem = self._unreadable(question, reply)
                if problem is None:
                    # Only a readable reply is kept: a later run asks for the others again.
                    if self.cache is not None:
                        ReplyCache(self.cache).put(question.request, reply)
                    break
                if isinstance(problem, UnfinishedError):
                    self.cut.append(question.request.digest)
                    tokens *= TOKENS_GROWTH
        except JudgeError as error:
            return error
        return reply

    def _unreadable(self, question: PictureQuestion, reply: JudgeReply) -> JudgeError | None:
        try:
            self.form.read(question.prompt, reply)
        except JudgeError as error:
            return error
        return None

    def _completion(self, question: PictureQuestion, tokens: int) -> Mapping[str, Any]:
        """The body of the chat completion: picture first, then the question."""
        picture = {"type": "image_url", "image_url": {"url": data_uri(question.picture)}}
        content = [picture, {"type": "text", "text": question.request.question}]
        body: dict[str, Any] = {"model": self.model, "temperature": self.temperature, "max_tokens": tokens}
        if self.form.likelihoods:
            body |= {"logprobs": True, "top_logprobs": 5}  # "yes" and "no" in more than one spelling
        if self.extra:
            body["extra_body"] = dict(self.extra)
        return {**body, "messages": [{"role": "user", "content": content}]}

    def _verdict(self, question: PictureQuestion, reply: JudgeReply | JudgeError | None) -> Verdict | JudgeError:
        assert reply is not None  # every question was sent
        outcome: Verdict | JudgeError
        try:
            outcome = reply if isinstance(reply, JudgeError) else self.form.read(question.prompt, reply)
        except JudgeError as error:
            outcome = error
        if self.record is not None:
            self._append_record(self.record, question, reply, outcome)
        return outcome

    def _append_record(
        self, path: Path, question: PictureQuestion, reply: JudgeReply | JudgeError, outcome: Verdict | JudgeError
    ) -> None:
        """A missing verdict is written, too, so that a replay lists it as missing."""
        verdict = None if isinstance(outcome, JudgeError) else outcome
        row = self.form.record(question.prompt, JudgeReply("") if isinstance(reply, JudgeError) else reply, verdict)
        error = {"error": str(outcome)} if isinstance(outcome, JudgeError) else {}
        with files.naming_errors(path, "choose another --record"):
            files.append_json(path, {**row, **error, "judge": self.name, "picture": question.request.picture})


def self_agreement(judge: Vlm, traces: Sequence[Trace]) -> float | None:
    """How far a judge agrees with itself: the share of equal scores when all questions are sent twice, past the cache,
    first one at a time and then side by side. None where no trace has a verdict both times."""
    # Alone and in company: batches change the last digits of a server (docs/judges.md).
    alone = replace(judge, cache=None, record=None, concurrency=1).verdicts(traces)
    together = replace(judge, cache=None, record=None).verdicts(traces)
    outcomes = zip(alone, together, strict=True)
    pairs = [(a, b) for a, b in outcomes if isinstance(a, Verdict) and isinstance(b, Verdict)]
    return sum(a.score == b.score for a, b in pairs) / len(pairs) if pairs else None


def check_address(address: str) -> str:
    """A base URL as the client needs it; `/v1` is added where there is no path. ConfigError if it is none."""
    try:
        parts = urlsplit(address)
        # `port` raises ValueError for what is no port.
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a judge's address holds a user name or password; put the key into an environment variable")
    if not usable:
        raise ConfigError(f"judge address {address!r}: expected a base URL such as http://127.0.0.1:8000/v1")
    return address.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The picture as a PNG inside a URI. JudgeError if it is no picture."""
    file = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")  # lossless: what was drawn
    except (TypeError, ValueError, OSError) as error:
        raise JudgeError(f"not a picture [height width 3] uint8: {error}") from error
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def side_by_side(work: Callable[[T], R], items: Sequence[T], width: int) -> list[R]:
    """`work` on every item, `width` at a time, results in the order of the items; what it raises is raised.

    Not a ThreadPoolExecutor: its threads are joined at exit, while daemons let Ctrl-C end a run at once, without
    waiting for a server that does not answer.
    """
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for pair in enumerate(items):
        todo.put(pair)
    stopped = threading.Event()

    def run() -> None:
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
        threading.Thread(target=run, daemon=True).start()
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


def _tokens(question: PictureQuestion) -> int:
    """About how many tokens a question has: one per square of the picture, and one per four characters."""
    height, width, _ = question.picture.shape
    return -(-height // TOKEN_SIDE) * -(-width // TOKEN_SIDE) + -(-len(question.request.question) // 4)
