"""A finite list of prompts as an endless stream for training, and the share of it that is held out for validation.

Which prompts are held out follows from their text alone: not from the seed of a run, nor from their order in a file. So
two runs on one file validate on the same prompts, and a longer file keeps them held out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from triptych.errors import ConfigError
from triptych.seeds import derive
from triptych.trace import Prompt


@dataclass(frozen=True, eq=False)
class ListedPrompts:
    """Prompts of a list, over and over: `ListedPrompts(prompts, seed)(index)`; every epoch has an order of its own."""

    prompts: tuple[Prompt, ...]
    seed: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("no prompts to train on; expected one or more beside those that are held out")

    def __call__(self, index: int) -> Prompt:
        # A function of the index alone, so that a resumed run goes on with the prompt at which it stopped.
        epoch, place = divmod(index, len(self.prompts))
        return self.prompts[_order(len(self.prompts), self.seed, epoch)[place]]


@lru_cache(maxsize=2)  # a batch may lie across two epochs
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    places = list(range(count))
    Random(derive(seed, epoch)).shuffle(places)
    return tuple(places)


def split(prompts: Sequence[Prompt], held_out_share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and a share of about `held_out_share` that is held out; equal texts stay together."""
    training: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).digest()
        part = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
        (held_out if part < held_out_share else training).append(prompt)
    return training, held_out


def prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Twelve hex digits over all texts and specs in their order: the same where training would be the same."""
    records = [[one.text, None if one.spec is None else one.spec.to_metadata()] for one in prompts]
    return hashlib.sha256(json.dumps(records).encode("utf-8", "surrogatepass")).hexdigest()[:12]
