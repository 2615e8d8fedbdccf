"""Every sticker class on one page: large, and as the model sees it (24 px, enlarged without smoothing).

python scripts/contact_sheet.py docs/contact-sheet.png    makes the figure of the docs; run it when a class changes
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from triptych.data.scene import BACKGROUND, SIZES
from triptych.data.stickers import CLASSES, COLORS, silhouettes

LARGE = 72  # px of a thumbnail; three times the normal sticker
GAP = 8
COLUMNS = 10


def thumbnail(mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """A mask as an inked square of LARGE px, without smoothing."""
    alpha = mask[..., None]
    pixels = np.asarray(color) * alpha + np.asarray(BACKGROUND) * (1 - alpha)
    return Image.fromarray(pixels.round().astype(np.uint8)).resize((LARGE, LARGE), Image.Resampling.NEAREST)


def contact_sheet() -> Image.Image:
    """One cell a class: the silhouette large, the same at 24 px, and the name below."""
    wide, high = 2 * LARGE + 3 * GAP, LARGE + 3 * GAP + 4
    page = Image.new("RGB", (COLUMNS * wide, len(CLASSES) // COLUMNS * high), BACKGROUND)
    pen = ImageDraw.Draw(page)
    large, small = silhouettes(LARGE).numpy(), silhouettes(SIZES["normal"]).numpy()
    for index, name in enumerate(CLASSES):
        left, top = index % COLUMNS * wide + GAP, index // COLUMNS * high + GAP
        color = list(COLORS.values())[index % len(COLORS)]
        page.paste(thumbnail(large[index], color), (left, top))
        page.paste(thumbnail(small[index], color), (left + LARGE + GAP, top))
        pen.text((left, top + LARGE + 2), name, fill=(40, 44, 52))
    return page


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/contact-sheet.png")
    contact_sheet().save(out, optimize=True)
    print(f"{out}: {len(CLASSES)} classes")
