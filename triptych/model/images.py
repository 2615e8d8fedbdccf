"""Images on their way in and out of the model: read, flatten, resize, normalize, write.

An image is uint8 `[height width 3]` outside the model, and float `[3 height width]` from -1 to 1 inside. Resizing is
PIL's bicubic with the checkpoint's own rules (BAGEL release, data/transforms.py); a released model depends on each
rounding.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from triptych.errors import PictureError
from triptych.files import LFS_POINTER, write_bytes
from triptych.model.config import Resize

# Formats that Pillow opens by running a program of the file's author (EPS, in Ghostscript) or hands to the system
# (WMF), and those of which it knows the name alone. They are no pictures here.
NO_PICTURES = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF", "TIFF"})  # whose frames follow each other; a PSD's are its layers
MAX_PIXELS = 50_000_000  # 150 MB of RGB; read from the file's header, before anything is decoded


def resized_size(size: tuple[int, int], rule: Resize, pictures: int = 1) -> tuple[int, int]:
    """Width and height that `rule` gives an image of (width, height) `size`, one of `pictures` that share its budget.

    The short side grows to `min_side` even past `max_side`; the last two steps then shrink, by the ratio of the areas
    (not its root) and by the ratio of the long sides, so that extreme aspects end below `min_side`, as in BAGEL.
    """
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"a picture of {width}x{height} pixels is empty; expected at least 1x1")
    # Never enlarged towards `max_side`, but enlarged to `min_side`: the inner min comes first.
    scale = max(min(rule.max_side / max(size), 1.0), rule.min_side / min(size))
    width, height = _scaled(width, height, scale, rule.stride)
    budget = rule.max_pixels / pictures
    if width * height > budget:  # by the ratio of areas: a defect of the release that its models were trained with
        width, height = _scaled(width, height, budget / (width * height), rule.stride)
    if max(width, height) > rule.max_side:  # `min_side` took it there
        width, height = _scaled(width, height, rule.max_side / max(width, height), rule.stride)
    return width, height


def resize(
    image: UInt8[np.ndarray, "height width 3"], rule: Resize, pictures: int = 1
) -> UInt8[np.ndarray, "resized_height resized_width 3"]:
    """The image at the size of `resized_size`, by PIL's (antialiased) bicubic."""
    height, width, _ = image.shape
    size = resized_size((width, height), rule, pictures)
    if size == (width, height):
        return image  # PIL would copy it; the pixels are the same
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def normalize(image: UInt8[np.ndarray, "*batch height width 3"]) -> Float[Tensor, "*batch 3 height width"]:
    """0..255 to -1..1, channels first, float32."""
    pixels = torch.from_numpy(np.array(image)).movedim(-1, -3).contiguous()  # a copy: PIL's arrays are read-only
    return (pixels.float() / 255 - 0.5) / 0.5  # ToTensor and Normalize(.5, .5) of torchvision


def to_pixels(pixels: Float[Tensor, "*batch 3 height width"]) -> UInt8[np.ndarray, "*batch height width 3"]:
    """-1..1 to 0..255, channels last; clamped, and truncated as the release does."""
    # In float32: bfloat16 has 8 bits of precision, so that its steps near 255 would be whole levels.
    levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def flatten_rgba(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB: transparency, of a palette or of one color too, is laid on white.

    Raises ValueError for numbers that are no gray levels: not finite, negative, or of an unknown range.
    """
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    # "a" is the premultiplied alpha of the modes La and RGBa; "transparency" that of a palette or of one color.
    if "transparency" not in image.info and "A" not in image.getbands() and "a" not in image.getbands():
        return image.convert("RGB") if image.mode != "RGB" else image
    rgba = image.convert("RGBA")  # a palette's, a gray image's or one color's transparency becomes an alpha channel
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits or of floats as 8-bit gray, scaled by its range and not clipped, as Pillow would."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("its pixels are not finite")
    low, high = float(values.min()), float(values.max())
    # PNG and the modes I;16 hold 16 bits. TIFF says nothing of the range: floats are shares or levels, and whole
    # numbers of 32 bits are levels of 8 or of 16 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        scale = 255 / 65535
    elif image.mode == "F" and high <= 1:
        scale = 255.0
    elif high <= 255:
        scale = 1.0
    elif high <= 65535:
        scale = 255 / 65535
    else:
        low = -1  # no range that is known
    if low < 0:
        raise ValueError(f"its pixels run from {values.min():g} to {values.max():g}; expected 0 to 1, 255 or 65535")
    gray = Image.fromarray((values * scale).round().astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):  # the one level that is transparent, in the file's own bits
        alpha = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
        gray = Image.merge("LA", (gray, alpha))
    return gray


def read_image(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """An image file as RGB, upright (EXIF), transparency on white. Raises PictureError if damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our limit of pixels is the lower one, and damage raises PictureError
            return _decoded(path)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist; expected a picture file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large; expected at most {MAX_PIXELS} pixels: scale it down") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture; expected PNG, JPEG or another that Pillow reads") from error
    except Exception as error:  # a crafted file can make a decoder raise anything
        raise PictureError(f"{path} cannot be read as a picture: {error}; save it anew") from error


def _decoded(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise PictureError(f"{path} is a Git LFS pointer, and not the picture itself: run git lfs pull")
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise PictureError(f"{path} has {width}x{height} pixels; expected at most {MAX_PIXELS}: scale it down")
        if image.format in NO_PICTURES:
            raise PictureError(f"{path} is {image.format}, which is not read here; save it as PNG")
        _scale_transparency(image)
        return np.array(flatten_rgba(ImageOps.exif_transpose(image)))


def _scale_transparency(image: Image.Image) -> None:
    """The one transparent color of a PNG in 8 bits, as Pillow gives the pixels but not that color."""
    hidden = image.info.get("transparency")
    tile = getattr(image, "tile", ())
    layout = tile[0][3] if tile else ""
    if layout in ("L;2", "L;4") and isinstance(hidden, int):
        image.info["transparency"] = hidden * {"L;2": 85, "L;4": 17}[layout]
    elif layout == "RGB;16B" and isinstance(hidden, tuple):
        # Pillow drops the lower bytes, so that colors which differ in these alone are all taken for transparent.
        image.info["transparency"] = tuple(level >> 8 for level in hidden)


def frames_note(path: str | Path) -> str:
    """That only the first frame of an animation (or the first page) is looked at; empty for a picture of one."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
    except Exception:  # what cannot be read is told by `read_image`
        return ""
    return f"{path} has {frames} frames; the first counts" if frames > 1 else ""


def write_image(path: str | Path, image: UInt8[np.ndarray, "height width 3"]) -> Path:
    """Write a PNG, whole or not at all. Raises OutputError."""
    buffer = io.BytesIO()  # encoded before the file is opened, so that an error of the encoder leaves none behind
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    return write_bytes(Path(path), buffer.getvalue())


def _scaled(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    """Both sides scaled, to whole pixels and then to the stride (Python's rounding, ties to even, each time)."""
    # Rounded twice on purpose: the release does, and one rounding gives another size for some images.
    width, height = (max(stride, round(round(side * scale) / stride) * stride) for side in (width, height))
    return width, height
