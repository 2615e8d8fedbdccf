"""Bounds beside fields: what is inside passes, what is outside is named by its option; NaN is never inside."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from hypothesis import given
from hypothesis import strategies as st

from triptych.bounds import NonNegativeFloat, PositiveInt, Share, check_bounds
from triptych.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    drop_text: Share = 0.1
    seeds: tuple[PositiveInt, ...] = (1, 2)
    interval: tuple[Share, Annotated[float, Ge(2)]] = (0.0, 2.0)


@dataclass(frozen=True)
class Settings:
    name: str = "sketch"
    on: bool = True
    free: float = -5.0
    kind: Literal["a", "b"] = "a"
    steps: Annotated[int, Ge(1), Le(10_000)] = 50
    lr: Annotated[float, Gt(0)] = 1e-4
    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    below: Annotated[float, Gt(0), Lt(1)] = 0.5
    limit: PositiveInt | None = None
    norm: NonNegativeFloat = 0.0
    most: Annotated[int, Le(3)] = 0
    tags: Annotated[tuple[str, ...], MinLen(1)] = ("counting",)
    inner: Inner = field(default_factory=Inner)


def test_bounds_themselves_are_inside():
    check_bounds(Settings())
    check_bounds(Settings(steps=1, limit=1, decay=0.0, most=3, free=-1e300))
    check_bounds(Settings(steps=10_000, inner=Inner(drop_text=1.0, interval=(0.0, 9.0))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps 0: expected 1 to 10,000"),
        ({"steps": 10_001}, "--steps 10001: expected 1 to 10,000"),
        ({"lr": 0.0}, "--lr 0.0: expected more than 0"),
        ({"decay": 1.0}, "--decay 1.0: expected 0 or more and less than 1"),
        ({"below": 1.0}, "--below 1.0: expected more than 0 and less than 1"),
        ({"limit": 0}, "--limit 0: expected 1 or more"),
        ({"most": 4}, "--most 4: expected at most 3"),
        ({"free": float("inf")}, "--free inf: expected a finite number"),
        ({"norm": float("nan")}, "--norm nan: expected 0 or more"),
        ({"tags": ()}, "--tags (): expected 1 or more values"),
        ({"inner": Inner(drop_text=7.0)}, "--inner.drop-text 7.0: expected a share from 0 to 1"),
        ({"inner": Inner(seeds=(3, 0))}, "--inner.seeds 0: expected 1 or more"),
        ({"inner": Inner(interval=(2.0, 2.0))}, "--inner.interval 2.0: expected a share from 0 to 1"),
        ({"inner": Inner(interval=(1.0, 1.0))}, "--inner.interval 1.0: expected 2 or more"),
    ],
)
def test_a_number_out_of_bounds_is_named_by_its_option(change, message):
    with pytest.raises(ConfigError) as error:
        check_bounds(replace(Settings(), **change))
    assert str(error.value) == message


def test_a_record_inside_another_is_named_by_its_path():
    with pytest.raises(ConfigError, match=r"^--reason\.sampling\.drop-text 2\.0: "):
        check_bounds(Inner(drop_text=2.0), "reason.sampling")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_share_is_checked_as_python_compares(value):
    try:
        check_bounds(Inner(drop_text=value))
        held = True
    except ConfigError:
        held = False
    assert held == (0 <= value <= 1)


def test_checking_needs_no_torch():
    code = "import sys, triptych.bounds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
