"""How long a server is waited for, and how often it is asked: waits that double, jittered from a seed."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from triptych.errors import ConfigError


@dataclass(frozen=True)
class Patience:
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
