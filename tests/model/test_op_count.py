"""How many operations a step takes, views left out: what a small model and a GPU in eager mode wait for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.sampler import DenoisingState, draw_branches, initial_noise, sample_text


class OpCount(TorchDispatchMode):
    """Counts operations that compute or copy; a view does neither."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.name() != "aten::_unsafe_view" and not any(
            result.alias_info and not result.alias_info.is_write for result in func._schema.returns
        ):
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def sketch() -> Bagel:
    return weights.load("sketch")


@torch.no_grad()
def test_a_guided_step_takes_half_the_operations_of_0_1(sketch: Bagel) -> None:
    sampling = sketch.config.sampling
    state = DenoisingState.of(
        sketch, draw_branches(sketch, ["three red apples"], [None], sampling), sketch.config.token_grid
    )
    noise = initial_noise(sketch, [0], sketch.config.token_grid)
    state.velocity(sketch, noise, 0.9, sampling.draw_renorm, sampling)  # weights are joined at the first use
    with OpCount() as count:
        state.velocity(sketch, noise, 0.9, sampling.draw_renorm, sampling)
    assert count.counts.total() <= 713 // 2, count.counts.most_common(12)


@torch.no_grad()
def test_a_token_takes_two_thirds_of_the_operations_of_0_1(sketch: Bagel) -> None:
    cache = sketch.prefill([sketch.plan_blocks("three red apples")])
    totals = []
    for tokens in (2, 7):
        with OpCount() as count:
            (text,) = sample_text(sketch, cache, sketch.config.sampling, tokens, [0])
        assert len(text.tokens) == tokens
        totals.append(count.counts)
    assert (totals[1].total() - totals[0].total()) / 5 <= 367 * 2 // 3, (totals[1] - totals[0]).most_common(16)
