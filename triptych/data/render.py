"""Scenes to pixels: flat colors on a flat canvas, antialiased, the same on every run.

Pixel i covers [i, i + 1), so a sticker of side s at center x covers [x - s / 2, x + s / 2]. A silhouette lands between
pixels by linear interpolation, which keeps its centroid exact. Later stickers cover earlier ones; what lies outside the
canvas is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from triptych.data.scene import BACKGROUND, CANVAS, SIZES, Scene
from triptych.data.stickers import CLASSES, COLORS, silhouettes

OVERHANG = max(SIZES.values()) + 2  # px around the canvas for stickers that hang over its edge; cut off at the end
PADDED = CANVAS + 2 * OVERHANG

_CLASS_INDEX = {name: index for index, name in enumerate(CLASSES)}
_COLOR_INDEX = {name: index for index, name in enumerate(COLORS)}


def render(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> UInt8[Tensor, "batch 96 96 3"]:
    """Paint a batch of scenes; a row does not depend on the other rows."""
    background = torch.tensor(BACKGROUND, dtype=torch.float32, device=device)
    canvas = background.repeat(len(scenes) * PADDED * PADDED, 1)  # flat: [batch * y * x, 3]
    # By layers, since later stickers cover earlier ones; stickers of one layer and size are painted at once.
    for layer in range(max((len(scene.stickers) for scene in scenes), default=0)):
        for size, side in SIZES.items():
            _stamp(canvas, scenes, layer, size, side)
    picture = canvas.view(len(scenes), PADDED, PADDED, 3)[:, OVERHANG:-OVERHANG, OVERHANG:-OVERHANG]
    return picture.round().to(torch.uint8)


def render_array(scene: Scene) -> np.ndarray:
    """One scene as `[96 96 3]` uint8."""
    return render([scene])[0].numpy()


def _stamp(canvas: Float[Tensor, "pixel 3"], scenes: Sequence[Scene], layer: int, size: str, side: int) -> None:
    """Paint into `canvas` the sticker number `layer` of every scene that has it in this size."""
    rows = [
        (index, _CLASS_INDEX[sticker.name], _COLOR_INDEX[sticker.color], sticker.x, sticker.y)
        for index, scene in enumerate(scenes)
        if layer < len(scene.stickers) and (sticker := scene.stickers[layer]).size == size
    ]
    if not rows:
        return
    # float64 for exact indices and centers, on the CPU: some devices have none.
    table = torch.tensor(rows, dtype=torch.float64)
    where, name, color = table[:, :3].long().unbind(1)
    corner = (table[:, 3:] - side / 2).clamp(-OVERHANG + 1, CANVAS) + OVERHANG  # centers far outside stay outside
    whole = corner.floor()
    right, down = (corner - whole).to(canvas.dtype).to(canvas.device).unbind(1)
    start = ((where * PADDED + whole[:, 1].long()) * PADDED + whole[:, 0].long()).to(canvas.device)
    alpha = _shifted(_padded_masks(side, canvas.device)[name.to(canvas.device)], right, down)
    span = torch.arange(side + 1, device=canvas.device)  # + 1: a silhouette between pixels touches one more
    pixels = (start[:, None, None] + span[:, None] * PADDED + span).flatten()
    alpha = alpha.reshape(-1, 1)
    ink = _palette(canvas.device)[color.to(canvas.device)].repeat_interleave((side + 1) ** 2, dim=0)
    canvas[pixels] = torch.lerp(canvas[pixels], ink, alpha)


def _shifted(
    masks: Float[Tensor, "sticker side2 side2"], right: Float[Tensor, " sticker"], down: Float[Tensor, " sticker"]
) -> Float[Tensor, "sticker side1 side1"]:
    """Shift masks that are padded by a pixel all round by a fraction of a pixel to the right and down."""
    right, down = right[:, None, None], down[:, None, None]
    rows = torch.lerp(masks[:, 1:], masks[:, :-1], down)
    return torch.lerp(rows[:, :, 1:], rows[:, :, :-1], right)


@lru_cache(maxsize=16)
def _padded_masks(side: int, device: torch.device) -> Float[Tensor, "80 side2 side2"]:
    return F.pad(silhouettes(side), (1, 1, 1, 1)).to(device)


@lru_cache(maxsize=4)
def _palette(device: torch.device) -> Float[Tensor, "10 3"]:
    return torch.tensor(list(COLORS.values()), dtype=torch.float32, device=device)
