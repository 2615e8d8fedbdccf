"""The 80 sticker classes and 10 colors, and the silhouette of each class as an alpha mask of any size.

Most silhouettes are glyphs of the Material Design Icons font (see NOTICE). Where no glyph shows the thing clearly, or
two glyphs are too alike at 24 px, the silhouette is composed of a few bold shapes in the font's own units: a square of
24 x 24, x to the right, y down. `stickers.json` holds them, a class a line: the name of a glyph, or a list of shapes.
Classes and colors are those of GenEval and GenEval++.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from io import BytesIO

import numpy as np
import torch
from fonticon_mdi7 import MDI7
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GRID = 24  # units of a silhouette's side, as in the font
DETAIL = 16  # pixels per unit before a silhouette is scaled down: enough for smooth edges at any sticker size

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 26, 34),
    "orange": (250, 128, 14),
    "yellow": (252, 220, 28),
    "green": (30, 146, 56),
    "blue": (26, 84, 214),
    "purple": (122, 36, 166),
    "pink": (250, 132, 190),
    "brown": (122, 68, 24),
    "black": (16, 16, 18),
    "white": (255, 255, 255),
}

# A shape is [kind, numbers...]: disc cx cy rx ry; box x0 y0 x1 y1 radius; poly x y x y ...; line width x y x y ... with
# round ends. A kind ending in "-" cuts the same shape out. ["glyph", name] stamps a glyph of the font.
Shape = list[str | float]

_SILHOUETTES: dict[str, str | list[Shape]] = json.loads(
    (resources.files("triptych.data") / "stickers.json").read_text(encoding="utf-8")
)
CLASSES: tuple[str, ...] = tuple(_SILHOUETTES)  # in alphabetical order, which is that of the tokens and of the detector


@lru_cache(maxsize=8)
def silhouettes(side: int) -> Float[Tensor, "80 side side"]:
    """Alpha masks in [0, 1] in the order of `CLASSES`; each fills the box with its longer side and is centered.

    The tensor is cached and shared: do not write into it.
    """
    return torch.from_numpy(np.stack([_scaled(_silhouette(name), side) for name in CLASSES]))


def _scaled(image: Image.Image, side: int) -> np.ndarray:
    width, height = image.size
    longer = max(width, height)
    square = Image.new("L", (longer, longer))  # "L": 8-bit gray, here the alpha
    square.paste(image, ((longer - width) // 2, (longer - height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@lru_cache(maxsize=len(CLASSES))
def _silhouette(name: str) -> Image.Image:
    """The silhouette in full detail, cropped to its ink."""
    shapes = _SILHOUETTES[name]
    if isinstance(shapes, str):
        shapes = [["glyph", shapes]]
    image = Image.new("L", (GRID * DETAIL, GRID * DETAIL))
    pen = ImageDraw.Draw(image)
    for kind, *numbers in shapes:
        _draw(pen, str(kind), numbers)
    return image.crop(image.getbbox())


def _draw(pen: ImageDraw.ImageDraw, kind: str, numbers: list) -> None:
    if kind == "glyph":
        middle = GRID * DETAIL / 2
        pen.text((middle, middle), getattr(MDI7, numbers[0])[-1], font=_font(), fill=255, anchor="mm")
        return
    fill = 0 if kind.endswith("-") else 255
    at = [number * DETAIL for number in numbers]
    match kind.rstrip("-"):
        case "disc":
            x, y, across, down = at
            pen.ellipse((x - across, y - down, x + across, y + down), fill=fill)
        case "box":
            pen.rounded_rectangle(at[:4], radius=at[4], fill=fill)
        case "poly":
            pen.polygon(at, fill=fill)
        case "line":
            width, *path = at
            pen.line(path, fill=fill, width=round(width), joint="curve")
            # Pillow ends lines flat; a disc at each point makes the ends and joints round.
            for x, y in zip(path[::2], path[1::2], strict=True):
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)
        case _:
            raise ValueError(f"shape {kind!r}: expected glyph, disc, box, poly or line")


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    # BASIC layout: the same pixels whether Raqm is installed or not.
    file = resources.files("fonticon_mdi7") / "fonts" / "materialdesignicons-webfont.ttf"
    return ImageFont.truetype(BytesIO(file.read_bytes()), GRID * DETAIL, layout_engine=ImageFont.Layout.BASIC)
