"""Sums of `triptych info` that must add up."""

import pytest
import torch

from triptych.apps import info
from triptych.apps.arguments import default_threads, set_threads
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, SKETCH


@pytest.mark.parametrize("config", [SKETCH, BAGEL_7B], ids=lambda config: config.name)
def test_every_parameter_is_in_one_part(config):
    with torch.device("meta"):
        bagel = Bagel(config)
    parts = info.part_sizes(bagel)
    assert sum(parts.values()) == sum(tensor.numel() for tensor in bagel.state_dict().values())
    assert all(parts.values()) and tuple(parts) == info.MODEL_PARTS


def test_sizes_are_told_in_their_unit():
    assert [info.size_text(size) for size in (12, 3_500, 3_500_000, 29_000_000_000)] == [
        "12 B",
        "3.5 kB",
        "3.5 MB",
        "29.0 GB",
    ]


def test_a_small_model_is_given_one_thread_and_a_large_one_what_torch_takes():
    assert info.model_record("sketch")["threads"] == 1
    assert default_threads(14_000_000_000) is None


def test_threads_that_are_asked_for_are_set():
    model = torch.nn.Linear(2, 2)
    whole = torch.get_num_threads()
    try:
        set_threads(model, 3)
        assert torch.get_num_threads() == 3
        set_threads(model, 0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(whole)
