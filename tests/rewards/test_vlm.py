"""A judge over a real network: what it asks, believes and keeps, and that a failure is missing, never 0."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import http_judge
import numpy as np
import pytest
from http_judge import Answer, Request, Server, raw, refusing, right, says, status, wrong
from PIL import Image

from triptych.errors import ConfigError, JudgeError, OutputError
from triptych.rewards.vlm import KEY_VARIABLE, Vlm, data_uri, self_agreement, side_by_side
from triptych.rewards.vlm_client import RetryPolicy
from triptych.rewards.vlm_prompts import STRICT_WORDING, Strict, YesNo
from triptych.trace import Drawing, Prompt, Trace, Turn, Verdict

pytest.importorskip("openai", reason="a judge over a network needs triptych[judge]")

HASTE = RetryPolicy(timeout=30, tries=3, backoff=0.001)  # quick to ask again; 30 s because a busy machine may be slow
FLEETING = RetryPolicy(timeout=0.3, tries=2, backoff=0.001)


@pytest.fixture(autouse=True)
def no_keys_and_no_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in (KEY_VARIABLE, "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def trace_of(index: int, text: str = "") -> Trace:
    """A trace with its own picture and prompt."""
    picture = np.full((8, 8, 3), index, np.uint8)
    return Trace(Prompt(text or f"picture {index}")) + Turn(None, Drawing(picture))


def traces(count: int) -> list[Trace]:
    return [trace_of(index) for index in range(count)]


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    """Each answer once, then the last one for good."""
    return lambda request: answers[min(request.number, len(answers) - 1)]


def judge(server: Server, **changes) -> Vlm:
    return replace(Vlm(server.address, "m", retry=HASTE), **changes)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_each_verdict_belongs_to_its_trace():
    def play(request: Request) -> Answer:
        number = int(request.text.split("picture ")[1].split('"')[0])
        return right(f"saw {number}") if number % 3 else wrong(f"saw {number}")

    with Server(play) as server:
        verdicts = judge(server)(traces(10))
    assert [verdict.score for verdict in verdicts] == [float(index % 3 > 0) for index in range(10)]
    assert [(*verdict.passed, *verdict.failed) for verdict in verdicts] == [(f"saw {index}",) for index in range(10)]


def test_it_asks_with_the_picture_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    prompt = Prompt('a "photo" of {questions} and {metadata}')
    with Server(in_turn(right())) as server:
        judge(server)([Trace(prompt) + Turn(None, Drawing(picture))])
        (request,) = server.requests
    image, text = request.body["messages"][0]["content"]
    sent = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), picture)
    assert prompt.text in text["text"]  # what is filled in is not filled in again
    assert request.body["temperature"] == 0 and request.body["model"] == "m"
    assert request.path == "/v1/chat/completions"


def test_the_newest_picture_is_judged():
    with Server(in_turn(right())) as server:
        judge(server)([trace_of(1) + Turn(None, Drawing(np.full((8, 8, 3), 9, np.uint8)))])
        sent = server.requests[0].body["messages"][0]["content"][0]["image_url"]["url"]
    assert sent == data_uri(np.full((8, 8, 3), 9, np.uint8))


def test_equal_questions_are_asked_once():
    with Server(in_turn(right())) as server:
        assert len(judge(server)([trace_of(1, "same"), trace_of(1, "same"), trace_of(2, "same")])) == 3
        assert len(server.requests) == 2


def test_the_bound_on_concurrency_is_used_and_kept():
    def play(_: Request) -> Answer:
        server.wait_for(lambda: server.max_under_way == 3)
        return right()

    with Server(play) as server:
        judge(server, concurrency=3)(traces(12))
    assert server.max_under_way == 3 and len(server.requests) == 12


def test_servers_are_asked_equally_often():
    with Server(in_turn(right())) as one, Server(in_turn(right())) as other:
        both = Vlm((one.address, other.address), "m", retry=HASTE, concurrency=1)
        both(traces(10))
    assert len(one.requests) == len(other.requests) == 5


def test_a_busy_server_is_spared():
    def slow(_: Request) -> Answer:
        one.wait_for(lambda: len(other.requests) >= 7)
        return right()

    def tell(_: Request) -> Answer:
        with one.changed:
            one.changed.notify_all()
        return right()

    with Server(slow) as one, Server(tell) as other:
        Vlm((one.address, other.address), "m", retry=HASTE, concurrency=2)(traces(8))
    assert (len(one.requests), len(other.requests)) == (1, 7)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_named_variable_and_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-house")
    caplog.set_level("DEBUG")
    echo = json.dumps({"error": {"message": "bad key sk-very-secret"}}).encode()
    with Server(in_turn(right(), status(401, body=echo), right())) as server:
        trusted, anonymous = judge(server, key="MY_KEY"), judge(server)
        trusted([trace_of(1)])
        (missing,) = trusted.verdicts([trace_of(2)])
        anonymous([trace_of(3)])
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer sk-very-secret"] * 2 + ["Bearer none"]
    assert isinstance(missing, JudgeError) and "bad key ***" in str(missing)
    told = "".join([repr(trusted), trusted.name, str(missing), caplog.text, *capfd.readouterr()])
    assert "sk-" not in told


def test_a_key_that_is_none_is_refused_without_being_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "se\ncret")
    with pytest.raises(ConfigError, match="MY_KEY") as refusal, Server(in_turn(right())) as server:
        judge(server, key="MY_KEY")([trace_of(1)])
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "address", ["judge:8000", "ftp://judge", "http://", "http://judge:99999", "http://me:pw@judge", ""]
)
def test_addresses_that_are_none_are_refused(address: str):
    with pytest.raises(ConfigError) as refusal:
        Vlm(address, "m")([trace_of(1)])
    assert "pw" not in str(refusal.value)


# --- failures that pass -----------------------------------------------------------------------------------------------

PASSING = {
    "429": status(429, {"Retry-After": "0"}),
    "429 without a word": status(429),
    "429 with nonsense": status(429, {"Retry-After": "soon"}),
    "429 until a date": status(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": status(500),
    "502 in HTML": status(502, body=b"<html>bad gateway</html>"),
    "503": status(503, {"Retry-After": "0.01"}),
    "half a body": http_judge.cut(b'{"choices": []}' * 100),
    "half of a JSON": raw(b'{"choices": [{"message": {"content": "{'),
    "no JSON": raw(b"it works!"),
    "no bytes": raw(b""),
    "not UTF-8": raw(b"\xff\xfe\x00"),
    "another JSON": raw(b"[]"),
    "no choices": raw(b'{"choices": []}'),
    "no message": raw(b'{"choices": [null]}'),
    "a number": raw(b'{"choices": [{"message": {"content": 1}}]}'),
    "deep": raw(b"[" * 200_000),
    "packed": raw(b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    "no verdict": says("I would rather not say."),
    "two verdicts": says('{"correct": 1} {"correct": 0}'),
    "nothing said": says(None, "content_filter"),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_passes_is_asked_again(failure: Answer):
    with Server(in_turn(failure, right())) as server:
        assert judge(server)([trace_of(1)])[0].score == 1.0
        assert len(server.requests) == 2


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_is_missing_and_never_zero(failure: Answer, tmp_path: Path):
    """Forbids c.A6 of the parity kit: calls that failed or cannot be read as a score of 0."""

    def play(request: Request) -> Answer:
        return failure if "picture 1" in request.text else right()

    with Server(play) as server:
        look = judge(server, cache=tmp_path, retry=replace(HASTE, tries=2))
        one, missing, other = look.verdicts([trace_of(0), trace_of(1), trace_of(2)])
        assert isinstance(one, Verdict) and isinstance(other, Verdict) and one.score == other.score == 1.0
        assert isinstance(missing, JudgeError) and "\n" not in str(missing)
        with pytest.raises(JudgeError, match="1 of 3 verdicts are missing"):
            look([trace_of(0), trace_of(1), trace_of(2)])
    assert len(list(tmp_path.rglob("*.json"))) == 2  # a missing verdict is not kept


@pytest.mark.parametrize("failure", [http_judge.never(), http_judge.drips()], ids=["never", "drips"])
def test_a_server_that_does_not_answer_in_time_is_missing(failure: Answer):
    with Server(in_turn(failure)) as server:
        (missing,) = judge(server, retry=FLEETING).verdicts([trace_of(1)])
        assert len(server.requests) == 2
    assert isinstance(missing, JudgeError) and "within 0.3 s" in str(missing)


def test_one_slow_answer_does_not_cost_the_verdict():
    with Server(in_turn(http_judge.never(), right())) as server:
        assert judge(server, retry=FLEETING)([trace_of(1)])[0].score == 1.0


def test_nobody_there():
    (missing,) = Vlm(refusing(), "m", retry=FLEETING).verdicts([trace_of(1)])
    assert isinstance(missing, JudgeError) and "tried 2 times" in str(missing)


def test_the_server_that_lives_answers_for_the_one_that_does_not():
    with Server(in_turn(right())) as server:
        found = Vlm((refusing(), server.address), "m", retry=HASTE).verdicts(traces(20))
    assert all(isinstance(verdict, Verdict) for verdict in found)


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_comes_through_while_a_question_is_under_way():
    with Server(in_turn(http_judge.never())) as server:

        def interrupt() -> None:
            server.wait_for(lambda: len(server.requests) == 1)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            judge(server, retry=RetryPolicy(timeout=3600))([trace_of(1)])


# --- failures that do not pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 403, 413, 422, 302])
def test_a_refused_question_is_not_repeated(code: int):
    with Server(in_turn(status(code, {"Location": "http://127.0.0.1:1/"}), right())) as server:
        missing, found = judge(server, concurrency=1).verdicts(traces(2))
        assert len(server.requests) == 2
    assert isinstance(missing, JudgeError) and str(code) in str(missing)
    assert isinstance(found, Verdict)


@pytest.mark.parametrize("code", [401, 404])
def test_a_server_of_no_use_is_asked_once(code: int):
    with Server(in_turn(status(code), right())) as server:
        found = judge(server, concurrency=1).verdicts(traces(5))
        assert len(server.requests) == 1
    assert all(isinstance(each, JudgeError) and str(code) in str(each) for each in found)


def test_the_other_server_answers_for_one_of_no_use():
    with Server(in_turn(status(404))) as one, Server(in_turn(right())) as other:
        found = Vlm((one.address, other.address), "m", retry=HASTE, concurrency=1).verdicts(traces(5))
        assert len(one.requests) == 1 and len(other.requests) == 5
    assert all(isinstance(each, Verdict) for each in found)


def test_an_answer_without_end_is_cut_off():
    with Server(in_turn(raw(b" " * (1 << 22)))) as server:
        (missing,) = judge(server).verdicts([trace_of(1)])
        assert len(server.requests) == 1
    assert isinstance(missing, JudgeError) and "bytes" in str(missing)


def test_an_error_without_end_is_cut_off():
    with Server(in_turn(status(500, body=b" " * (1 << 22)))) as server:
        (missing,) = judge(server).verdicts([trace_of(1)])
    assert isinstance(missing, JudgeError)


def test_a_rest_longer_than_our_patience_costs_one_verdict_and_a_server_that_recovers_is_used_again():
    patience = RetryPolicy(timeout=30, tries=3, backoff=0.001, max_wait=0.05)
    with Server(in_turn(status(429, {"Retry-After": "3600"}), right())) as server:
        missing, *found = judge(server, retry=patience, concurrency=1).verdicts(traces(3))
        assert len(server.requests) == 3
    assert isinstance(missing, JudgeError) and "rest for 3600 s" in str(missing)
    assert all(isinstance(each, Verdict) for each in found)


# --- servers with their own ways --------------------------------------------------------------------------------------


def refuses(parameter: str, words: str = "Unsupported parameter: '{}' is not supported with this model.") -> Answer:
    error = {"message": words.format(parameter), "param": parameter, "code": "unsupported_parameter"}
    return status(400, body=json.dumps({"error": error}).encode())


def test_a_newer_model_is_asked_as_it_wants():
    words = "Unsupported parameter: '{}' is not supported with this model. Use 'max_completion_tokens' instead."

    def play(request: Request) -> Answer:
        if "max_tokens" in request.body:
            return refuses("max_tokens", words)
        return refuses("temperature") if "temperature" in request.body else right()

    with Server(play) as server:
        found = judge(server, concurrency=1)(traces(3))
        assert [verdict.score for verdict in found] == [1.0] * 3
        assert len(server.requests) == 5  # what it refuses is remembered
        assert server.requests[-1].body["max_completion_tokens"] == Strict().tokens


def test_fields_of_the_users_own_are_sent_and_left_out_where_refused():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "seed": 3}

    def play(request: Request) -> Answer:
        return refuses("seed", "extra inputs are not permitted: {}") if "seed" in request.body else right()

    with Server(play) as server:
        judge(server, extra=extra, temperature=0.5)(traces(1))
        first, last = server.requests
        assert first.body["seed"] == 3 and first.body["temperature"] == 0.5
        assert last.body["chat_template_kwargs"] == {"enable_thinking": False} and "seed" not in last.body
        assert judge(server, extra=extra).name != judge(server).name


def test_what_is_refused_for_another_reason_is_missing():
    with Server(lambda _: status(400, body=b'{"error": {"message": "the picture is too large"}}')) as server:
        (missing,) = judge(server).verdicts(traces(1))
        assert len(server.requests) == 1
    assert isinstance(missing, JudgeError) and "too large" in str(missing)


def test_a_cut_answer_is_asked_for_again_with_more_room_and_never_kept(tmp_path: Path):
    cache = tmp_path / "cache"
    with Server(in_turn(says("<think>no", "length"), right())) as server:
        look = judge(server, cache=cache, concurrency=1)
        assert [verdict.score for verdict in look(traces(1))] == [1.0]
        tokens = [request.body["max_tokens"] for request in server.requests]
        assert tokens[1] > tokens[0] and len(look.cut) == 1
    with Server(in_turn(says("no", "length"))) as server:
        (missing,) = judge(server, cache=tmp_path / "other").verdicts(traces(1))
        assert isinstance(missing, JudgeError) and not list((tmp_path / "other").rglob("*.json"))


def test_a_kept_reply_that_holds_no_verdict_is_asked_for_again(tmp_path: Path):
    with Server(in_turn(right())) as server:
        judge(server, cache=tmp_path)(traces(1))
        (file,) = tmp_path.rglob("*.json")
        record = json.loads(file.read_text())
        record["reply"]["text"] = "<think>no"
        file.write_text(json.dumps(record))
        assert judge(server, cache=tmp_path)(traces(1))[0].score == 1.0
        assert len(server.requests) == 2


def test_bytes_left_over_on_a_connection_answer_no_other_question():
    def two_answers(handler, _) -> None:
        first, second = (says_body(right_text), says_body(wrong_text))
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        handler.wfile.write(b"".join(head.format(len(body)).encode() + body for body in (first, second)))
        handler.wfile.flush()

    right_text, wrong_text = json.dumps({"correct": 1}), json.dumps({"correct": 0})

    def says_body(text: str) -> bytes:
        return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": text}}]}).encode()

    with Server(lambda _: two_answers) as server:
        found = judge(server, concurrency=2)(traces(12))
    assert [verdict.score for verdict in found] == [1.0] * 12


def test_headers_that_drip_end_with_the_timeout():
    def dripping(handler, server: Server) -> None:
        for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
            if server.over.wait(0.02):
                return
            handler.wfile.write(bytes([letter]))
            handler.wfile.flush()

    with Server(lambda _: dripping) as server:
        (missing,) = judge(server, retry=FLEETING).verdicts(traces(1))
    assert isinstance(missing, JudgeError) and "within 0.3 s" in str(missing)


def test_a_key_that_is_sent_back_reaches_no_cache_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-of-mine")
    reply = json.dumps({"reason": "Bearer secret-of-mine", "correct": 1})
    with Server(in_turn(says(reply))) as server:
        (found,) = judge(server, cache=tmp_path / "cache", record=tmp_path / "record.jsonl")(traces(1))
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert written and "secret-of-mine" not in written + str(found)


def test_an_organization_of_openai_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "my-org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "my-project")
    with Server(in_turn(right())) as server:
        judge(server)(traces(1))
        sent = str(server.requests[0].headers)
    assert "my-org" not in sent and "my-project" not in sent


def test_a_trace_without_a_picture_is_missing_and_the_others_are_judged():
    with Server(in_turn(right())) as server:
        missing, found = judge(server).verdicts([Trace(Prompt("nothing drawn")), trace_of(1)])
    assert isinstance(missing, JudgeError) and isinstance(found, Verdict)


def test_without_the_client_it_says_what_to_install():
    hidden = "import sys; sys.modules['openai'] = None; sys.argv[1:] = ['http://127.0.0.1:1', 'cache', '1', '1']"
    run = subprocess.run([sys.executable, "-c", hidden + OTHER_PROCESS], capture_output=True, text=True)
    assert "ConfigError" in run.stderr and "pip install 'triptych[judge]'" in run.stderr


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_not_asked_again(tmp_path: Path):
    with Server(in_turn(right(), wrong())) as server:
        first = judge(server, cache=tmp_path / "cache")(traces(6))
        again = judge(server, cache=tmp_path / "cache")(traces(6))
        assert len(server.requests) == 6
    assert first == again
    assert Vlm(refusing(), "m", cache=tmp_path / "cache")(traces(6)) == first  # nobody needs to be there


def test_another_picture_question_model_or_wording_is_asked(tmp_path: Path):
    with Server(in_turn(right())) as server:
        look = judge(server, cache=tmp_path)
        look([trace_of(1, "clocks")])
        for other, trace in [
            (look, trace_of(2, "clocks")),
            (look, trace_of(1, "cats")),
            (replace(look, model="n"), trace_of(1, "clocks")),
            (replace(look, form=Strict(STRICT_WORDING + " ")), trace_of(1, "clocks")),
        ]:
            before = len(server.requests)
            other([trace])
            assert len(server.requests) == before + 1


def test_damaged_files_of_the_cache_are_asked_for_again_and_mended(tmp_path: Path):
    with Server(in_turn(right())) as server:
        look = judge(server, cache=tmp_path)
        look(traces(6))
        one, two, three, four, five, six = sorted(tmp_path.rglob("*.json"))
        one.write_text("")
        two.write_bytes(two.read_bytes()[:40])
        three.write_text("[" * 100_000)
        four.write_bytes(five.read_bytes())  # the answer to another question
        six.write_bytes(b" " * (1 << 21))
        look(traces(6))
        assert len(server.requests) == 11
        look(traces(6))
        assert len(server.requests) == 11


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with Server(in_turn(right())) as server, pytest.raises(OutputError, match="cache"):
        judge(server, cache=tmp_path / "cache")(traces(4))


OTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from triptych.rewards.vlm import Vlm
from triptych.trace import Drawing, Prompt, Trace, Turn
address, cache, count, concurrency = sys.argv[1:]
pictures = [np.full((8, 8, 3), index, np.uint8) for index in range(int(count))]
traces = [Trace(Prompt(f"picture {index}")) + Turn(None, Drawing(each)) for index, each in enumerate(pictures)]
print(len(Vlm(address, "m", cache=Path(cache), concurrency=int(concurrency))(traces)))
"""


def start(server: Server, cache: Path, count: int, concurrency: int) -> subprocess.Popen:
    command = [sys.executable, "-c", OTHER_PROCESS, server.address, str(cache), str(count), str(concurrency)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_cache(tmp_path: Path):
    with Server(in_turn(right())) as server:
        both = [start(server, tmp_path, 12, 4) for _ in range(2)]
        assert [process.communicate(timeout=60)[0].strip() for process in both] == ["12", "12"]
        before = len(server.requests)
        assert 12 <= before <= 24
        judge(server, cache=tmp_path)(traces(12))
        assert len(server.requests) == before
    assert len(list(tmp_path.rglob("*.*"))) == 12


def test_a_killed_run_keeps_what_was_answered(tmp_path: Path):
    killed = threading.Event()

    def play(request: Request) -> Answer:
        return right() if request.number < 5 or killed.is_set() else http_judge.never()

    with Server(play) as server:
        process = start(server, tmp_path, 12, 1)
        assert server.wait_for(lambda: len(server.requests) == 6)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed.set()
        assert len(judge(server, cache=tmp_path)(traces(12))) == 12
        assert len(server.requests) == 6 + 7


# --- likelihoods ------------------------------------------------------------------------------------------------------


def test_the_probability_of_yes_is_asked_for_and_believed():
    places = [[(" Yes", np.log(0.6)), ("No", np.log(0.2)), ("yes", np.log(0.1)), ("Maybe", np.log(0.1))]]
    with Server(in_turn(says("Yes", logprobs=places))) as server:
        (verdict,) = judge(server, form=YesNo())([trace_of(1)])
        assert server.requests[0].body["logprobs"] is True
    assert verdict.score == pytest.approx(0.7 / 0.9)


def test_a_server_that_refuses_likelihoods_is_asked_without_them():
    def play(request: Request) -> Answer:
        return status(400) if "logprobs" in request.body else says("no, there is none")

    with Server(play) as server:
        verdicts = judge(server, form=YesNo(), concurrency=1)(traces(4))
        assert len(server.requests) == 5  # refused once, then known
    assert [verdict.score for verdict in verdicts] == [0.0] * 4


# --- cost, agreement --------------------------------------------------------------------------------------------------


def test_the_cost_is_told_without_a_call(tmp_path: Path):
    with Server(in_turn(right())) as server:
        look = judge(server, cache=tmp_path)
        look(traces(3))
        cost = look.cost([*traces(5), trace_of(4), Trace(Prompt("nothing drawn"))])
        assert len(server.requests) == 3
    assert (cost.pictures, cost.calls, cost.cached) == (7, 2, 3)
    assert cost.tokens_out == 2 * Strict().tokens and cost.tokens_in > 2 * len(STRICT_WORDING) // 4


def test_self_agreement_goes_past_the_cache(tmp_path: Path):
    def fickle(request: Request) -> Answer:
        return right() if "picture 0" in request.text or request.number >= 4 else wrong()

    with Server(fickle) as server:
        assert self_agreement(judge(server, cache=tmp_path), traces(4)) == 0.25
    with Server(in_turn(right())) as server:
        assert self_agreement(judge(server), traces(4)) == 1.0
    with Server(in_turn(status(400))) as server:
        assert self_agreement(judge(server), traces(2)) is None


def test_side_by_side_keeps_the_order_and_raises_what_is_raised():
    assert side_by_side(lambda item: item * item, range(50), 7) == [item * item for item in range(50)]
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 // (item - 3), range(50), 2)


def test_names_tell_what_verdicts_depend_on():
    look = Vlm("http://one", "m")
    assert look.name == replace(look, address="http://two", concurrency=2).name
    assert len({look.name, replace(look, model="n").name, replace(look, form=YesNo()).name}) == 3
    assert replace(look, form=Strict(STRICT_WORDING + "!")).name != look.name


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("clocks.png")
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    with Server(in_turn(right())) as server:
        names: dict[str, object] = {}
        exec(code.replace("http://127.0.0.1:8000", server.address), names)
    assert names["found"] == Verdict(1.0, passed=("two clocks",))
