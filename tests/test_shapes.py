"""The shapes in signatures are checked while tests run (`shapes.py`): a tensor that does not fit is refused."""

from importlib import import_module

import pytest
import torch
from jaxtyping import TypeCheckError
from shapes import CHECKED

from triptych.model import flow
from triptych.model.vision import PositionTable
from triptych.rl.losses import advantages, grpo


def test_another_size_of_the_same_axis_is_refused():
    with pytest.raises(TypeCheckError, match="noise"):
        flow.noised(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), 0.5)


def test_another_number_of_axes_is_refused():
    with pytest.raises(TypeCheckError, match="rewards"):
        advantages(torch.zeros(2, 3))


def test_another_kind_of_number_is_refused():
    with pytest.raises(TypeCheckError, match="position_ids"):
        PositionTable(4, 8)(torch.zeros(2))
    with pytest.raises(TypeCheckError, match="mask"):
        grpo(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3), 0.2, 6)


def test_an_int_is_a_float():
    assert torch.equal(flow.ode_step(torch.ones(1, 2), torch.ones(1, 2), 1), torch.zeros(1, 2))


def test_every_checked_module_is_there():
    for name in CHECKED:
        assert import_module(name)
