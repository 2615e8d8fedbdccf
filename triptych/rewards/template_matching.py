"""A second judge of sticker pictures, without learned parts, to check the first one.

It explains a picture by stickers, one at a time (matching pursuit): of every class, size, color and place it takes the
sticker that removes most of what differs from the canvas, subtracts it, and goes on until no sticker fits at half its
opacity or more. Silhouettes are first correlated with the picture at half resolution; the best few are then fitted at
half pixels. Far slower than `WorldJudge` and independent of it: they share only `data/scene.check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from triptych.data.scene import SIZES, Scene, Sticker
from triptych.data.stickers import CLASSES, COLORS, silhouettes
from triptych.rewards.sticker_judge import canvas_color, judge_with, to_canvas
from triptych.trace import Trace, Verdict

MAX_FITS = 16  # stickers per picture: a few more than any spec demands
MIN_FIT_OPACITY, MAX_FIT_OPACITY = 0.5, 1.1  # of a sticker that counts: the middle of what the other judge learns
MIN_EXPLAINED = 0.5  # of the squared error under its silhouette that a sticker must remove: no patching of patches
COARSE_CANDIDATES = 12  # kinds (size and class) fitted at full resolution, each at its best coarse place
MATCHING_BATCH = 8  # pictures per search: the coarse correlations of one take some 6 MB
WINDOW = 36  # px: side of the square around every silhouette, with room for a shift by half a pixel
PICTURE_MARGIN = WINDOW // 2 + 4  # px of empty canvas around a picture: a sticker's center may lie up to 2 px outside

ResidualPicture = Float[Tensor, "batch 3 padded padded"]  # picture minus canvas and the stickers so far


@dataclass(frozen=True)
class Fit:
    """A sticker at its best fit: its `kind` (size and class), color, place and opacity."""

    kind: int
    color: int
    half: int  # which of the four half-pixel positions: 0, right, down, both
    corner: tuple[int, int]  # of the window in the padded picture (x, y)
    opacity: float


@dataclass(frozen=True)
class TemplateJudge:
    """Judge of traces whose prompt has a spec, by matching silhouettes: `TemplateJudge()(traces)`."""

    name: str = "templates-1"
    strangers: bool = True  # pictures may be anybody's: those without stickers are refused; a model's own are wrong

    def scenes(self, images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor) -> list[Scene]:
        """What each picture `[height width 3] uint8` shows."""
        canvases = [to_canvas(image) for image in images]
        starts = range(0, len(canvases), MATCHING_BATCH)
        batches = (torch.stack(canvases[start : start + MATCHING_BATCH]) for start in starts)
        return [scene for batch in batches for scene in explain(batch)]

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. JudgeError if one has no spec or no picture."""
        return judge_with(self.scenes, traces, self.strangers)


@torch.inference_mode()
def explain(images: UInt8[Tensor, "batch 96 96 3"]) -> list[Scene]:
    """The stickers of each picture, the one that explains most first."""
    canvas = canvas_color(images)
    pixels = images.permute(0, 3, 1, 2).float() - canvas[:, :, None, None]
    residual = F.pad(pixels, (PICTURE_MARGIN, PICTURE_MARGIN, PICTURE_MARGIN, PICTURE_MARGIN))
    stickers: list[list[Sticker]] = [[] for _ in images]
    rows = list(range(len(images)))
    for _ in range(MAX_FITS):
        fits = [
            best_fit(residual[row], canvas[row], kinds)
            for row, kinds in zip(rows, coarse_candidates(residual[rows]), strict=True)
        ]
        # A picture that nothing fits is explained.
        rows = [row for row, fit in zip(rows, fits, strict=True) if fit is not None]
        for row, fit in zip(rows, filter(None, fits), strict=True):
            stickers[row].append(_sticker(fit))
            x, y = fit.corner
            paint = fit.opacity * (_palette() - canvas[row])[fit.color, :, None, None] * _windows()[fit.kind, fit.half]
            residual[row, :, y : y + WINDOW, x : x + WINDOW] -= paint
        if not rows:
            break
    return [Scene(tuple(own)) for own in stickers]


def coarse_candidates(residual: ResidualPicture) -> Int[Tensor, "batch few 3"]:
    """For each row the kinds that, in their best color, explain most: (kind, x and y of the corner).

    At half resolution: a silhouette alpha of any color removes at most |sum alpha residual|^2 / sum alpha^2.
    """
    half = F.avg_pool2d(residual, 2).flatten(0, 1)[:, None]
    silhouette = F.avg_pool2d(_windows()[:, 0], 2)[:, None]
    overlap = F.conv2d(half, silhouette).unflatten(0, (len(residual), 3))
    gain = overlap.square_().sum(1) / silhouette.square().sum((1, 2, 3))[:, None, None]
    best, place = gain.flatten(2).max(dim=2)
    kind = best.topk(COARSE_CANDIDATES).indices
    place = place.gather(1, kind)
    return torch.stack([kind, 2 * (place % gain.shape[3]), 2 * (place // gain.shape[3])], dim=2)


def best_fit(
    residual: Float[Tensor, "3 padded padded"], canvas: Float[Tensor, " 3"], kinds: Int[Tensor, "few 3"]
) -> Fit | None:
    """The best of the candidates in a color of the palette, at half pixels around its coarse place, if any fits.

    What counts is the squared error that a sticker removes, times its share of the error that lies under
    it: else a large silhouette thrown over two touching stickers would beat either of them.
    """
    kind, x, y = kinds.unbind(1)
    ink = _palette() - canvas
    across, along = (corner[:, None] + torch.arange(-1, WINDOW + 2) for corner in (x, y))
    inside = [steps.clamp(0, residual.shape[-1] - 1) for steps in (across, along)]
    patch = residual[:, inside[1][:, :, None], inside[0][:, None, :]]
    shifted = patch.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # [3 few down right y x], by -1 to 2 px
    silhouette = _windows()[kind]
    overlap = torch.einsum("cfduyx,fhyx,kc->fduhk", shifted, silhouette, ink)
    energy = (silhouette.square().sum((2, 3))[:, :, None] * ink.square().sum(1))[:, None, None]
    opacity = (overlap / energy).clamp(max=MAX_FIT_OPACITY)
    gain = 2 * opacity * overlap - opacity**2 * energy  # squared error before, less that after
    unexplained = torch.einsum("cfduyx,fhyx->fduh", shifted.square(), (silhouette > 0.05).float())[..., None]
    share = gain / unexplained.clamp(min=1.0)  # where nothing is left, no division by 0
    worth = torch.where((opacity < MIN_FIT_OPACITY) | (share < MIN_EXPLAINED), -1.0, gain * share)
    f, d, u, h, k = (int(i) for i in torch.unravel_index(worth.argmax(), worth.shape))
    if worth[f, d, u, h, k] <= 0:
        return None
    corner = (int(x[f]) + u - 1, int(y[f]) + d - 1)
    return Fit(int(kind[f]), k, h, corner, float(opacity[f, d, u, h, k]))


def _sticker(fit: Fit) -> Sticker:
    """The fit as a fact about the scene."""
    size, name = divmod(fit.kind, len(CLASSES))
    down, right = divmod(fit.half, 2)
    x, y = (corner + WINDOW / 2 - PICTURE_MARGIN for corner in fit.corner)
    return Sticker(CLASSES[name], list(COLORS)[fit.color], x + right / 2, y + down / 2, list(SIZES)[size])


@lru_cache(maxsize=1)
def _palette() -> Float[Tensor, "10 3"]:
    return torch.tensor(list(COLORS.values()), dtype=torch.float32)


@lru_cache(maxsize=1)
def _windows() -> Float[Tensor, "240 4 window window"]:
    """Every silhouette of every size in the middle of a window, and moved half a pixel right, down, and both."""
    rooms = [(WINDOW - side) // 2 for side in SIZES.values()]
    still = torch.cat([F.pad(silhouettes(s), (r,) * 4) for s, r in zip(SIZES.values(), rooms, strict=True)])
    right = (still + still.roll(1, 2)) / 2  # half a pixel by linear interpolation
    return torch.stack([still, right, (still + still.roll(1, 1)) / 2, (right + right.roll(1, 1)) / 2], dim=1)
