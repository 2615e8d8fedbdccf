"""Signals that end a process: Ctrl-C, a scheduler's SIGTERM, and the SIGHUP of a terminal that closes.

To a run they are one thing, KeyboardInterrupt: apps/cli.py installs the handler that raises it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows


def install(handler: Handler) -> dict[int, Any]:
    """Let `handler` answer every signal that ends the process; returns the handlers before it, for `uninstall`."""
    if threading.current_thread() is not threading.main_thread():  # Python takes handlers from no other
        return {}
    # What is ignored stays so: `nohup` ignores SIGHUP, and a shell's background jobs SIGINT.
    old = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    for number in old:
        signal.signal(number, handler)
    return old


def uninstall(handlers: dict[int, Any]) -> None:
    """Undo `install`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Within the block a signal waits, so that what must be whole is not cut; the function that is yielded delivers it.

    Call it after the block, where an interruption is welcome. A second signal does not wait, and raises at once.
    """
    waiting: list[int] = []
    old: dict[int, Any] = {}

    def answer(number: int) -> None:
        if callable(old[number]):
            old[number](number, None)
        else:  # the system's own answer, which is to end the process
            signal.signal(number, old[number])
            signal.raise_signal(number)

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting:
            answer(number)
        waiting.append(number)

    def deliver() -> None:
        if waiting:
            answer(waiting[0])

    old.update(install(wait))
    try:
        yield deliver
    finally:
        uninstall(old)
