"""The size in which `triptych edit` returns its pictures: that of the input, of the model, or one that is asked for.

A model edits at a size of its own: sides are multiples of its stride, and at most so long (`Resize`). All turns of a
trace are played at that size, and only what is returned is resized, once: a picture that went to the input's size and
back between two turns would lose a little sharpness in each. Resizing maps corner to corner, so that the slight change
of aspect from rounding to the stride is undone, and what an edit left alone stays where it was.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from triptych.errors import ConfigError
from triptych.model.images import MAX_PIXELS
from triptych.trace import Drawing, Trace

Size = tuple[int, int]  # width, height in pixels, as in "640x480"


def size_of(choice: str, image: UInt8[np.ndarray, "height width 3"], world: str) -> Size | None:
    """The size that `--size` asks for; None is the model's own. ConfigError for what is no size.

    "auto" is the input's for a model of open pictures. Stickers stay at the size of their world, which its judge reads.
    """
    if choice == "auto":
        choice = "input" if world == "open" else "model"
    if choice == "model":
        return None
    if choice == "input":
        return image.shape[1], image.shape[0]
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", choice)
    if sides is None or int(sides[1]) * int(sides[2]) > MAX_PIXELS:
        limit = f"{MAX_PIXELS:,} pixels"
        raise ConfigError(f"--size {choice}: expected input, model, or WIDTHxHEIGHT such as 640x480, at most {limit}")
    return int(sides[1]), int(sides[2])


def at_size(trace: Trace, size: Size | None) -> Trace:
    """The trace with every drawn picture at a size; the given picture stays as it is."""
    if size is None:
        return trace
    turns = []
    for turn in trace.turns:
        if turn.drew is not None and turn.drew.image.shape[1::-1] != size:
            image = Image.fromarray(turn.drew.image).resize(size, Image.Resampling.BICUBIC)  # antialiased
            turn = replace(turn, drew=Drawing(np.asarray(image), turn.drew.sde_steps))
        turns.append(turn)
    return replace(trace, turns=tuple(turns))
