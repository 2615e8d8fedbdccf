"""What a judge's client keeps and how long it waits: replies, the cache, and waits between tries."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import ConfigError
from triptych.rewards.judge_reply import JudgeReply, JudgeRequest, ReplyCache, picture_fingerprint
from triptych.rewards.vlm_client import RetryPolicy, retry_after
from triptych.rewards.vlm_prompts import probability_of_yes

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_replies_are_read_and_kept_without_the_extra():
    """The client of the servers is imported where it connects: scores of recorded replies need neither library."""
    hidden = "import sys; sys.modules['openai'] = sys.modules['httpx2'] = None; import triptych.rewards.vlm"
    subprocess.run([sys.executable, "-c", hidden], check=True)


@given(anything | st.builds(lambda inner: {"choices": [{"message": {"content": "yes"}, "logprobs": inner}]}, anything))
def test_any_json_is_a_reply_or_a_value_error(payload: object):
    try:
        reply = JudgeReply.from_completion(payload)
    except ValueError:
        return
    assert isinstance(reply.text, str) and (probability_of_yes(reply) or 0.0) <= 1.0


# --- waits ------------------------------------------------------------------------------------------------------------


def test_waits_double_within_their_jitter_and_follow_the_seed():
    patience = RetryPolicy(backoff=1.0, max_wait=10.0, seed=3)
    waits = [patience.delay(failures, patience.jitter("a")) for failures in range(1, 9)]
    assert waits == [patience.delay(failures, patience.jitter("a")) for failures in range(1, 9)]
    assert waits != [patience.delay(failures, patience.jitter("b")) for failures in range(1, 9)]
    assert waits != [patience.delay(failures, replace(patience, seed=4).jitter("a")) for failures in range(1, 9)]
    for failures, wait in enumerate(waits, 1):
        assert min(0.5 * 2 ** (failures - 1), 10.0) <= wait <= min(1.5 * 2 ** (failures - 1), 10.0)
    assert patience.delay(10**9, patience.jitter("a")) == 10.0


@pytest.mark.parametrize(
    "told, seconds", [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("x", None), ("", None), ("nan", None)]
)
def test_retry_after(told: str, seconds: float | None):
    assert retry_after({"retry-after": told}) == seconds


def test_retry_after_a_date():
    far = retry_after({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"})
    assert far is not None and far > 1e8


@pytest.mark.parametrize("wrong_one", [{"timeout": 0}, {"tries": 0}, {"backoff": -1}, {"max_wait": -1}])
def test_impatience_is_refused(wrong_one: dict[str, float]):
    with pytest.raises(ConfigError):
        RetryPolicy(**wrong_one)  # pyright: ignore[reportArgumentType]


# --- the cache --------------------------------------------------------------------------------------------------------


@given(st.text(), st.lists(st.lists(st.tuples(st.text(), st.floats(-1e9, 0)), max_size=3), max_size=3))
def test_a_reply_comes_back_from_the_cache_as_it_went_in(tmp_path_factory, text: str, top: list):
    cache, asked = ReplyCache(tmp_path_factory.mktemp("cache")), JudgeRequest("p", text, "m", "f", 1)
    reply = JudgeReply(text, top=tuple(tuple(place) for place in top))
    assert cache.get(asked) is None
    cache.put(asked, reply)
    assert cache.get(asked) == reply


def test_pictures_of_other_shape_have_other_fingerprints():
    flat = np.zeros(24, np.uint8)
    assert len({picture_fingerprint(flat.reshape(shape)) for shape in [(1, 8, 3), (8, 1, 3), (2, 4, 3)]}) == 3


def test_threads_that_keep_the_same_reply_do_not_meet(tmp_path: Path):
    asked, cache = JudgeRequest("p", "q", "m", "f", 1), ReplyCache(tmp_path)
    replies: list[JudgeReply | None] = []

    def work() -> None:
        for index in range(15):
            cache.put(asked, JudgeReply("x" * index))
            replies.append(cache.get(asked))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 60 and None not in replies
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".json"]
