"""Sums of `triptych info` that must add up."""

import pytest
import torch

from triptych.apps import info
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
