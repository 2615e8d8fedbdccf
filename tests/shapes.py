"""What each call of the modules in CHECKED must show while tests run: the types and shapes that its annotations say.

`jaxtyping` binds the axes of one call together, the same name to the same size, and asks `checked` for the rest.
"""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import BeartypeConf, beartype

CHECKED = [
    "triptych.data.render",
    "triptych.data.stickers",
    "triptych.model",
    "triptych.rewards.geneval_detector",
    "triptych.rewards.sticker_judge",
    "triptych.rewards.template_matching",
    "triptych.rl",
    "triptych.sft",
]

Function = TypeVar("Function", bound=Callable)
_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker


def checked(function: Function) -> Function:
    """The function, refusing what its annotations do not say. Protocols are left to the type checker."""
    hints = function.__annotations__
    function.__annotations__ = {name: Any if _has_protocol(hint) else hint for name, hint in hints.items()}
    return _typed(function)


def _has_protocol(hint: object) -> bool:
    return getattr(hint, "_is_protocol", False) or any(_has_protocol(part) for part in get_args(hint))
