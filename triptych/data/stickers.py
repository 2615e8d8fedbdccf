"""The 80 sticker classes and 10 colors, and the silhouette of each class as an alpha mask of any size.

Most silhouettes are glyphs of the Material Design Icons font (see NOTICE). Where no glyph shows the thing clearly, or
two glyphs are too alike at 24 px, the silhouette is composed of a few bold shapes in the font's own units: a square of
24 x 24, x to the right, y down. Classes and colors are those of GenEval and GenEval++.
"""

from __future__ import annotations

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

# A shape is (kind, numbers...): disc cx cy rx ry; box x0 y0 x1 y1 radius; poly x y x y ...; line width x y x y ... with
# round ends. A kind ending in "-" cuts the same shape out. ("glyph", name) stamps a glyph of the font.
Shape = tuple[str | float, ...]

GLYPHS: dict[str, str] = {
    "airplane": "airplane",
    "apple": "food_apple",
    "backpack": "bag_personal",
    "baseball bat": "baseball_bat",
    "baseball glove": "boxing_glove",
    "bed": "bed",
    "bench": "bench_back",
    "bicycle": "bicycle",
    "bird": "bird",
    "boat": "sail_boat",
    "book": "book_open_variant",
    "bowl": "bowl_mix",
    "bus": "bus_side",
    "cake": "cake_variant",
    "car": "car",
    "cat": "cat",
    "cell phone": "cellphone",
    "computer keyboard": "keyboard",
    "couch": "sofa",
    "cow": "cow",
    "cup": "coffee",
    "dining table": "table_furniture",
    "dog": "dog",
    "fire hydrant": "fire_hydrant",
    "hair drier": "hair_dryer",
    "handbag": "purse",
    "horse": "horse",
    "knife": "knife",
    "laptop": "laptop",
    "microwave": "microwave",
    "motorcycle": "motorbike",
    "oven": "stove",
    "pizza": "pizza",
    "refrigerator": "fridge",
    "scissors": "content_cut",
    "sheep": "sheep",
    "sports ball": "soccer",
    "suitcase": "bag_suitcase",
    "teddy bear": "teddy_bear",
    "tie": "tie",
    "toilet": "toilet",
    "traffic light": "traffic_light",
    "train": "train",
    "truck": "truck",
    "tv": "television_classic",
    "umbrella": "umbrella",
    "wine glass": "glass_wine",
}

COMPOSED: dict[str, tuple[Shape, ...]] = {
    "banana": (("disc", 11, 8, 11, 12), ("disc-", 8, 4, 11.5, 11), ("line", 2.6, 20.5, 2.2, 20.3, 6)),
    "bear": (
        ("disc", 10, 11, 9, 5.6),
        ("disc", 19, 10, 4.2, 3.8),
        ("disc", 22.6, 11.4, 1.8, 1.7),
        ("disc", 17.2, 6.2, 1.7, 1.7),
        ("box", 1.2, 11, 5.6, 21, 1),
        ("box", 6.6, 13, 10, 21, 1),
        ("box", 11.4, 13, 14.6, 21, 1),
        ("box", 15.4, 11, 19, 21, 1),
        ("disc-", 19.8, 9, 0.9, 0.9),
    ),
    "bottle": (
        ("box", 9.6, 0, 14.4, 3, 0.6),
        ("box", 10.4, 2, 13.6, 9, 0),
        ("poly", 10.4, 7, 13.6, 7, 17, 11.5, 7, 11.5),
        ("box", 7, 11, 17, 24, 1.6),
        ("box-", 7, 14.4, 17, 18.6, 0),
        ("box", 9.4, 14.4, 14.6, 18.6, 0),
    ),
    "broccoli": (
        ("disc", 6, 9, 5, 5),
        ("disc", 18, 9, 5, 5),
        ("disc", 12, 6, 5.4, 5.4),
        ("disc", 12, 11, 4, 4),
        ("line", 3, 6.5, 12, 11, 17, 12, 21.5),
        ("line", 3, 17.5, 12, 13, 17, 12, 21.5),
        ("box", 9.8, 15, 14.2, 23, 1),
        ("disc-", 9, 13.6, 1, 1.4),
        ("disc-", 15, 13.6, 1, 1.4),
    ),
    "carrot": (
        ("line", 3, 14, 10, 15.4, 2),
        ("line", 3, 14, 10, 19.6, 4.4),
        ("line", 3, 14, 10, 22, 8.6),
        ("disc", 13, 11, 5.4, 5.4),
        ("poly", 8.8, 7.6, 16.4, 15.2, 0.6, 23.6),
        ("line-", 1.2, 6.4, 10, 10, 13.6),
        ("line-", 1.2, 10.4, 21, 8, 18.4),
    ),
    "chair": (
        ("box", 4, 0.5, 7.6, 23.5, 0.8),
        ("box", 4, 11.4, 20, 15, 0.8),
        ("box", 16.4, 12, 20, 23.5, 0.8),
    ),
    "clock": (
        ("line", 3.6, 2.6, 5.6, 6, 2.6),
        ("line", 3.6, 21.4, 5.6, 18, 2.6),
        ("line", 2.6, 5, 22.4, 8, 18.5),
        ("line", 2.6, 19, 22.4, 16, 18.5),
        ("disc", 12, 13, 10, 10),
        ("disc-", 12, 13, 7.4, 7.4),
        ("line", 2.4, 12, 7.6, 12, 13.4, 15.8, 15.6),
    ),
    "computer mouse": (
        ("disc", 12, 10.4, 6.6, 6),
        ("box", 5.4, 10, 18.6, 17, 0),
        ("disc", 12, 17, 6.6, 7),
        ("line-", 1.4, 5.4, 12.4, 18.6, 12.4),
        ("box-", 11.2, 4, 12.8, 12.4, 0),
        ("line", 1.6, 12, 5, 12.4, 2.6, 15, 1.4, 19, 1.6),
    ),
    "donut": (
        ("disc", 12, 12, 12, 12),
        ("disc-", 12, 12, 4, 4),
        ("line-", 1.5, 4, 8.4, 6, 10),
        ("line-", 1.5, 12, 2.4, 13.6, 4.6),
        ("line-", 1.5, 18.4, 7.6, 20.4, 9.4),
        ("line-", 1.5, 17.8, 15.4, 20, 14.6),
        ("line-", 1.5, 12.6, 19.2, 14.2, 21),
        ("line-", 1.5, 4.4, 16.6, 6.6, 15.2),
    ),
    "elephant": (
        ("glyph", "elephant"),
        ("line-", 1.1, 12.4, 5.4, 10.6, 7.6, 11, 10.6, 13.4, 11.4, 14.6, 9.4),
        ("disc-", 17.6, 7.6, 0.9, 0.9),
    ),
    "fork": (
        ("box", 5, 0, 7.6, 9, 1),
        ("box", 10.7, 0, 13.3, 9, 1),
        ("box", 16.4, 0, 19, 9, 1),
        ("disc", 12, 8.4, 7, 4.4),
        ("box-", 7.6, 0, 10.7, 7.4, 1),
        ("box-", 13.3, 0, 16.4, 7.4, 1),
        ("box", 10.3, 10, 13.7, 24, 1.6),
    ),
    "frisbee": (
        ("disc", 12, 11, 12, 5.4),
        ("box", 0, 11, 24, 13.6, 0),
        ("disc", 12, 13.6, 12, 5.4),
        ("disc-", 12, 10.4, 8.8, 3),
        ("disc", 12, 10.9, 6.4, 1.7),
    ),
    "giraffe": (
        ("poly", 13.2, 3, 17.2, 3, 15.6, 14, 10, 14),
        ("poly", 13.4, 1.8, 17.4, 1.8, 22, 5, 22, 7.2, 15, 7),
        ("line", 1.3, 14.4, 3, 14, 0.6),
        ("line", 1.3, 16.8, 3, 17, 0.6),
        ("disc", 9.6, 14, 6.4, 3.2),
        ("line", 2, 4.8, 13, 4.4, 23),
        ("line", 2, 7.6, 15, 7.4, 23),
        ("line", 2, 11.6, 15, 12, 23),
        ("line", 2, 14.8, 13, 15, 23),
        ("line", 1.2, 3.6, 13, 2.4, 17),
        ("disc-", 14.4, 8.6, 0.9, 1),
        ("disc-", 12.6, 12.2, 1, 1),
        ("disc-", 8.4, 13.6, 1, 1),
    ),
    "hot dog": (
        ("line", 5.2, 2.6, 11.4, 21.4, 11.4),
        ("box", 2.4, 4, 21.6, 9, 2.5),
        ("box", 2.4, 13.4, 21.6, 19.4, 3),
        ("line-", 1, 2.4, 8.4, 21.6, 8.4),
        ("line-", 1, 2.4, 14.2, 21.6, 14.2),
        ("line-", 1.3, 4.4, 12.2, 7.2, 10.4, 10, 12.2, 12.8, 10.4, 15.6, 12.2, 18.4, 10.4),
    ),
    "kite": (
        ("poly", 14.5, 0, 22.5, 7, 14.5, 18, 6.5, 7),
        ("line-", 1.1, 14.5, 0, 14.5, 18),
        ("line-", 1.1, 6.5, 7, 22.5, 7),
        ("line", 1.6, 14, 17, 11, 19, 12, 21.4, 8, 21, 6, 23.4),
        ("poly", 2, 19, 6, 21.4, 2, 23.6),
        ("poly", 9, 19, 6, 21.4, 10, 24),
    ),
    "orange": (
        ("disc", 12, 13.6, 10.4, 10.4),
        ("disc-", 12, 13.6, 8.6, 8.6),
        ("disc", 12, 13.6, 7.4, 7.4),
        ("line-", 1.2, 12, 5, 12, 22.4),
        ("line-", 1.2, 4.4, 9.4, 19.6, 17.8),
        ("line-", 1.2, 4.4, 17.8, 19.6, 9.4),
        ("poly", 12, 4.4, 14, 0.8, 19, 0, 17, 3.6),
    ),
    "parking meter": (
        ("disc", 12, 6.6, 6.6, 6.6),
        ("box", 5.4, 6, 18.6, 13, 1.4),
        ("box", 10.2, 12, 13.8, 24, 0),
        ("box", 7.4, 21.4, 16.6, 24, 0.6),
        ("disc-", 12, 6.4, 4.2, 4),
        ("line", 1.8, 12, 7.4, 14, 4.4),
    ),
    "person": (
        ("disc", 12, 3.6, 3.6, 3.6),
        ("box", 5.6, 8, 18.4, 11.4, 1.6),
        ("box", 5.6, 8, 8.2, 16.4, 1.3),
        ("box", 15.8, 8, 18.4, 16.4, 1.3),
        ("box", 8.9, 8, 15.1, 16.4, 0),
        ("box", 8.9, 14, 11.4, 24, 0.8),
        ("box", 12.6, 14, 15.1, 24, 0.8),
    ),
    "potted plant": (
        ("poly", 5, 15.4, 19, 15.4, 17.2, 24, 6.8, 24),
        ("box", 4, 14.6, 20, 17.4, 0.5),
        ("line", 1.8, 12, 15, 12, 7),
        ("disc", 12, 4.4, 2.9, 4.4),
        ("poly", 11.6, 14, 3, 11.6, 1.6, 5.4, 8.4, 7.4),
        ("poly", 12.4, 14, 21, 11.6, 22.4, 5.4, 15.6, 7.4),
    ),
    "sandwich": (
        ("poly", 1, 8.4, 12, 0.8, 23, 8.4),
        ("box", 0.6, 10.2, 23.4, 13, 1.2),
        ("line", 2.2, 1.4, 15, 5, 17, 8.6, 15, 12, 17, 15.4, 15, 19, 17, 22.6, 15),
        ("box", 0.8, 19, 23.2, 23.2, 1.2),
    ),
    "sink": (
        ("poly", 0.6, 12, 23.4, 12, 20, 19.4, 4, 19.4),
        ("box", 9.6, 18, 14.4, 24, 0),
        ("line", 2.6, 7.6, 12, 7.6, 4.4, 10, 2.6, 13, 2.6, 14.6, 4.4, 14.6, 7.4),
        ("line", 2.2, 4.4, 8.4, 8, 8.4),
    ),
    "skateboard": (
        ("line", 3.2, 1.6, 7.4, 4.6, 10.6, 19.4, 10.6, 22.4, 7.4),
        ("disc", 6.6, 15, 2.8, 2.8),
        ("disc", 17.4, 15, 2.8, 2.8),
    ),
    "skis": (
        ("line", 3, 7.4, 4, 7.4, 22.4),
        ("line", 3, 16.6, 4, 16.6, 22.4),
        ("line", 2.2, 7.4, 4, 4.6, 1.2),
        ("line", 2.2, 16.6, 4, 19.4, 1.2),
        ("line", 1.2, 2, 6.6, 2, 23),
        ("line", 1.2, 22, 6.6, 22, 23),
        ("line", 1.2, 0.6, 19.6, 3.4, 19.6),
        ("line", 1.2, 20.6, 19.6, 23.4, 19.6),
    ),
    "snowboard": (
        ("line", 8, 5, 19, 19, 5),
        ("line-", 1.5, 6.2, 12.4, 11.6, 17.8),
        ("line-", 1.5, 12.4, 6.2, 17.8, 11.6),
    ),
    "spoon": (("line", 10, 5, 5, 8, 8), ("line", 3.4, 8, 8, 22.3, 22.3)),
    "stop sign": (
        ("poly", 7.5, 0, 16.5, 0, 22, 5.4, 22, 13, 16.5, 18.4, 7.5, 18.4, 2, 13, 2, 5.4),
        ("box-", 5, 7, 19, 11.4, 0.4),
        ("box", 10.4, 17, 13.6, 24, 0),
    ),
    "surfboard": (
        ("disc", 12, 13, 5.6, 11),
        ("poly", 12, 0, 16.6, 8, 7.4, 8),
        ("poly-", 5, 24, 12, 20.4, 19, 24),
        ("line-", 1.3, 5, 9, 12, 12.6, 19, 9),
        ("line-", 1.3, 5, 12, 12, 15.6, 19, 12),
    ),
    "tennis racket": (
        ("disc", 15, 9, 9, 9),
        ("disc-", 15, 9, 6.6, 6.6),
        ("line", 1.1, 12.4, 2, 12.4, 16),
        ("line", 1.1, 17.6, 2, 17.6, 16),
        ("line", 1.1, 8, 6.4, 22, 6.4),
        ("line", 1.1, 8, 11.6, 22, 11.6),
        ("line", 3.4, 8.8, 15.2, 2, 22),
    ),
    "toaster": (
        ("box", 0.6, 10, 21, 22, 2.6),
        ("box", 3.4, 21, 7, 24, 0.4),
        ("box", 14.6, 21, 18.2, 24, 0.4),
        ("box", 4, 1.4, 17.6, 8.6, 2.4),
        ("line", 2, 21, 14, 23.2, 14),
        ("disc-", 15.6, 16.4, 2.2, 2.2),
    ),
    "toothbrush": (
        ("line", 3, 1.6, 17.4, 22.4, 17.4),
        ("box", 14.4, 8.4, 23.6, 15.6, 0.6),
        ("line-", 0.9, 17.4, 8, 17.4, 14),
        ("line-", 0.9, 20.6, 8, 20.6, 14),
    ),
    "tv remote": (
        ("box", 6.6, 0, 17.4, 24, 2.6),
        ("disc-", 12, 5.4, 3, 3),
        ("disc", 12, 5.4, 1.1, 1.1),
        ("box-", 8.8, 11, 11, 13.2, 0.4),
        ("box-", 13, 11, 15.2, 13.2, 0.4),
        ("box-", 8.8, 15, 11, 17.2, 0.4),
        ("box-", 13, 15, 15.2, 17.2, 0.4),
        ("box-", 8.8, 19, 11, 21.2, 0.4),
        ("box-", 13, 19, 15.2, 21.2, 0.4),
    ),
    "vase": (
        ("disc", 12, 8.4, 9, 5.4),
        ("disc-", 12, 8.4, 6.8, 3.4),
        ("box", 6.8, 0, 17.2, 2.8, 0.8),
        ("poly", 8.8, 2, 15.2, 2, 14.4, 9, 9.6, 9),
        ("disc", 12, 15, 7.6, 6.4),
        ("poly", 6.4, 18, 17.6, 18, 15.6, 24, 8.4, 24),
        ("line-", 1.4, 4.4, 13.6, 8.2, 16, 12, 13.6, 15.8, 16, 19.6, 13.6),
    ),
    "zebra": (
        ("glyph", "donkey"),
        *(("line-", 1.1, x, 0, x - 2, 24) for x in (8.4, 11.4, 14.4)),
    ),
}

CLASSES: tuple[str, ...] = tuple(sorted(GLYPHS.keys() | COMPOSED.keys()))


@lru_cache(maxsize=8)
def silhouettes(side: int) -> Float[Tensor, "80 side side"]:
    """Alpha masks in [0, 1] in the order of `CLASSES`; each fills the box with its longer side and is centered.

    The tensor is cached and shared: do not write into it.
    """
    return torch.from_numpy(np.stack([_scaled(_silhouette(name), side) for name in CLASSES]))


def _scaled(image: Image.Image, side: int) -> np.ndarray:
    width, height = image.size
    longer = max(width, height)
    square = Image.new("L", (longer, longer))
    square.paste(image, ((longer - width) // 2, (longer - height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@lru_cache(maxsize=len(CLASSES))
def _silhouette(name: str) -> Image.Image:
    """The silhouette in full detail, cropped to its ink."""
    shapes = COMPOSED.get(name) or (("glyph", GLYPHS[name]),)
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
            for x, y in zip(path[::2], path[1::2], strict=True):
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)
        case _:
            raise ValueError(f"shape {kind!r}: expected glyph, disc, box, poly or line")


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    file = resources.files("fonticon_mdi7") / "fonts" / "materialdesignicons-webfont.ttf"
    return ImageFont.truetype(BytesIO(file.read_bytes()), GRID * DETAIL, layout_engine=ImageFont.Layout.BASIC)
