"""A real HTTP server on loopback that plays a judge: it answers well, badly, slowly or not at all, as a script says.

`with Server(play) as server:` calls `play(request)` for each request and does what it returns: `says("...")`,
`status(429, {"Retry-After": "0"})`, `raw(b"...")`, `cut(b"...")`, `never()`, ... Requests are in `server.requests`.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request, the `number`-th since the server began."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The question."""
        return self.body["messages"][0]["content"][1]["text"]


Answer = Callable[[BaseHTTPRequestHandler, "Server"], None]


def says(text: str | None, finish: str = "stop", logprobs: Any = None) -> Answer:
    """A chat completion. `logprobs` holds, for each token, its (token, log-probability) pairs, the chosen one first."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        places = [[{"token": token, "logprob": value, "bytes": None} for token, value in place] for place in logprobs]
        choice["logprobs"] = {"content": [{**place[0], "top_logprobs": place} for place in places]}
    return raw(json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}).encode())


def right(reason: str = "two clocks") -> Answer:
    return says(json.dumps({"reason": reason, "correct": 1}))


def wrong(reason: str = "three clocks") -> Answer:
    return says(json.dumps({"reason": reason, "correct": 0}))


def status(
    code: int, headers: Mapping[str, str] | None = None, body: bytes = b'{"error": {"message": "no"}}'
) -> Answer:
    return lambda handler, _: _send(handler, code, body, headers or {})


def raw(body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    return lambda handler, _: _send(handler, 200, body, headers or {})


def cut(body: bytes) -> Answer:
    """Half of the body that was announced, then the connection is closed."""

    def play(handler: BaseHTTPRequestHandler, _: Server) -> None:
        _send(handler, 200, body, {}, half=True)
        handler.connection.shutdown(socket.SHUT_RDWR)

    return play


def drips(body: bytes = b" " * 1000) -> Answer:
    """A body that comes byte by byte, forever as far as a client is concerned."""

    def play(handler: BaseHTTPRequestHandler, server: Server) -> None:
        _send(handler, 200, body, {}, half=None)
        for index in range(len(body)):
            if server.over.wait(0.02):
                return
            handler.wfile.write(body[index : index + 1])
            handler.wfile.flush()

    return play


def never() -> Answer:
    """No answer until the server is closed."""
    return lambda _, server: server.over.wait(60) and None


class Server:
    """The server; `max_under_way` is the largest number of requests that were under way at once."""

    def __init__(self, play: Callable[[Request], Answer]):
        self.play = play
        self.requests: list[Request] = []
        self.under_way = self.max_under_way = 0
        self.changed = threading.Condition()
        self.over = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.http.block_on_close = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def wait_for(self, true: Callable[[], bool]) -> bool:
        """Wait until something has become true of the requests, such as `lambda: server.max_under_way == 3`."""
        with self.changed:
            return self.changed.wait_for(true, timeout=20)

    def __enter__(self) -> Server:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.changed:
                    request = Request(
                        len(server.requests),
                        self.path,
                        {name.lower(): value for name, value in self.headers.items()},
                        body,
                    )
                    server.requests.append(request)
                    server.under_way += 1
                    server.max_under_way = max(server.max_under_way, server.under_way)
                    server.changed.notify_all()
                try:
                    answer = server.play(request)
                finally:
                    with server.changed:
                        server.under_way -= 1
                try:
                    answer(self, server)
                except OSError:
                    self.close_connection = True  # the client has gone

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def refusing() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def _send(
    handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: Mapping[str, str], half: bool | None = False
) -> None:
    """Headers and body: all of it, half of it, or (None) nothing yet."""
    handler.send_response(code)
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    for name, value in given.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body if half is False else body[: len(body) // 2] if half else b"")
    handler.wfile.flush()
