"""Bounds of settings, written beside each field as annotated-types and checked by one function.

    lr: Annotated[float, Gt(0)] = 1e-4
    share: Share = 0.5

`check_bounds(settings)` walks a record and the records in it. It needs no torch, so that a command checks what was
typed before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from triptych.errors import ConfigError

# The names that pydantic gives to the same bounds.
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]


def check_bounds(record: Any, path: str = "") -> None:
    """Raise ConfigError for the first number of a record that is out of bounds, by the option that sets it.

    `path` is where the record stands in a larger one: with "reason" the message begins "--reason.lr -1.0: expected".
    """
    for place, value, expected in violations(record, path):
        raise ConfigError(f"--{place.replace('_', '-')} {value}: expected {expected}")


def violations(record: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(path, value, what was expected) of every number out of bounds in a dataclass, its dataclasses and its tuples.

    None and booleans are never out of bounds; NaN and infinity always are, also where a field has none.
    """
    hints = _hints(type(record))  # resolved, since `from __future__ import annotations` leaves strings in the fields
    for each in fields(record):
        yield from _violations(
            getattr(record, each.name), hints[each.name], f"{path}.{each.name}" if path else each.name
        )


def _violations(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    constraints = list(_constraints(hint))
    if is_dataclass(value):  # by the value, not by the hint: a field may be `Record | None`
        yield from violations(value, path)
    elif isinstance(value, tuple | list):
        shortest = max((each.min_length for each in constraints if isinstance(each, MinLen)), default=0)
        if len(value) < shortest:
            yield path, value, f"{shortest} or more values"
        for index, element in enumerate(value):
            # All elements are of one option, so that the path has no index.
            yield from _violations(element, _element(hint, index), path)
    elif isinstance(value, int | float) and not isinstance(value, bool):  # bool is an int to Python
        bounds = {name: bound for name in ("ge", "gt", "le", "lt") for bound in _bounds(constraints, name)}
        if not (math.isfinite(value) and _inside(value, bounds)):
            yield path, value, _sentence(hint, bounds)


@cache  # a configuration holds the same few classes many times
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _constraints(hint: Any) -> Iterator[Any]:
    """What `Annotated` says about a value itself, whichever alternative of a union it is."""
    if get_origin(hint) is Annotated:
        yield from hint.__metadata__  # a grouped one, such as Interval, is read as it is
        yield from _constraints(hint.__origin__)
    elif get_origin(hint) in (Union, UnionType):
        for alternative in get_args(hint):
            yield from _constraints(alternative)


def _element(hint: Any, index: int) -> Any:
    """The hint of one element of a tuple or list; Any where it is not written."""
    if get_origin(hint) is Annotated:
        return _element(hint.__origin__, index)
    if get_origin(hint) in (Union, UnionType):
        return next((each for each in (_element(part, index) for part in get_args(hint)) if each is not Any), Any)
    parts = [part for part in get_args(hint) if part is not Ellipsis]  # tuple[X, ...] has one hint for all
    return parts[min(index, len(parts) - 1)] if parts and get_origin(hint) in (tuple, list) else Any


def _bounds(constraints: list[Any], name: str) -> Iterator[float]:
    for each in constraints:
        # An Interval has all four names, most of them None.
        if isinstance(each, Ge | Gt | Le | Lt | Interval) and getattr(each, name, None) is not None:
            yield getattr(each, name)


def _inside(value: float, bounds: dict[str, float]) -> bool:
    return (
        value >= bounds.get("ge", -math.inf)
        and value > bounds.get("gt", -math.inf)
        and value <= bounds.get("le", math.inf)
        and value < bounds.get("lt", math.inf)
    )


def _sentence(hint: Any, bounds: dict[str, float]) -> str:
    """The bounds in words: "1 or more", "0 to 10,000", "a share from 0 to 1", "more than 0 and less than 1"."""
    if not bounds:
        return "a finite number"
    if "ge" in bounds and "le" in bounds:
        # 0 to 1 of whole numbers is a choice of two, not a share
        whole = hint is int or int in (hint, *get_args(hint))
        share = (bounds["ge"], bounds["le"]) == (0, 1) and not whole
        return "a share from 0 to 1" if share else f"{bounds['ge']:,} to {bounds['le']:,}"
    low = f"more than {bounds['gt']:,}" if "gt" in bounds else f"{bounds['ge']:,} or more" if "ge" in bounds else ""
    high = f"less than {bounds['lt']:,}" if "lt" in bounds else f"at most {bounds['le']:,}" if "le" in bounds else ""
    return " and ".join(part for part in (low, high) if part)
