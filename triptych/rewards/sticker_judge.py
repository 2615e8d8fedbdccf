"""The judge of sticker pictures: a small detector reads the stickers, exact rules check them against the spec.

The detector follows Objects as Points (arXiv 1904.07850) on the 96 px canvas at stride 4: every cell of a 24 x 24 map
says whether a sticker's center lies in it, where inside the cell, which of the 80 classes it is, and its size. The
color is not learned: it is the palette color that explains the silhouette's pixels best. Coordinates are pixels of the
canvas, x to the right and y down. `triptych sft sticker-detector` trains the network.

The score is the share of checks of `data/scene.check` that hold: a dense reward, and at 1.0 a strict verdict, since
every sticker of the spec is there as demanded and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from triptych.data.scene import BACKGROUND, CANVAS, SIZES, Scene, Sticker, check
from triptych.data.stickers import CLASSES, COLORS, silhouettes
from triptych.errors import JudgeError, ModelError, PictureError
from triptych.rewards.judge import Judge
from triptych.trace import Spec, Trace, Verdict

WEIGHTS = Path(__file__).parents[1] / "weights" / "judge" / "detector.safetensors"
MAP_STRIDE = 4  # pixels per map cell: the centers of two small stickers side by side stay 4 cells apart
THRESHOLD = 0.5  # of the center heat; in training, a sticker below a third of full opacity counts as absent
DETECTOR_BATCH = 64  # pictures per forward pass: beyond this a CPU gains nothing
COLOR_GRID = 24  # points per side of a box at which its color is read
MIN_OPACITY, MAX_OPACITY = 0.45, 1.15  # that a color may be read at: blur and fading mix in the canvas
OPACITY_PENALTY = 0.2  # weight of an opacity other than 1 against a color: a dark green is no faded black
MAX_TINT = 24  # levels by which a picture's own canvas may differ from the true one
# What tells a sticker picture from any other (see `are_stickers`); pictures of the model stay far inside, photographs
# of scikit-image and gray skies outside: the canvas is bluish, and covers 0.6 or more of every scene of the suites.
CANVAS_SHARE = 0.35  # of the pixels, at least, lie within MAX_TINT levels of the picture's own canvas
CANVAS_TINT = 16  # levels by which that may differ from the true canvas, in each channel
CANVAS_HUE = 10  # levels by which its blue minus red may differ: gray of any brightness differs by 16


class StickerJudge(Judge, Protocol):
    """A judge that also says what each picture shows, sticker by sticker."""

    def scenes(self, images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor) -> list[Scene]: ...


@dataclass(frozen=True)
class WorldJudge:
    """Judge of traces whose prompt has a spec: `WorldJudge()(traces)`. Loads its weights at the first call."""

    device: str = "cpu"
    weights: Path = WEIGHTS
    strangers: bool = True  # pictures may be anybody's: those without stickers are refused; a model's own are wrong

    @property
    def name(self) -> str:
        """Name and fingerprint of the weights, for manifests: two judges of one name give the same verdicts."""
        return f"world-{detector_fingerprint(self.weights)}"

    def scenes(self, images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor) -> list[Scene]:
        """What each picture `[height width 3] uint8` shows."""
        return detect(images, packaged_detector(self.weights, self.device))

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. JudgeError if one has no spec or no picture."""
        return judge_with(self.scenes, traces, self.strangers)


def judge_with(
    scenes: Callable[[list[np.ndarray]], list[Scene]], traces: Sequence[Trace], strangers: bool = True
) -> list[Verdict]:
    """Verdicts on the newest pictures, by a function that reads their scenes. JudgeError if there is none to judge.

    With `strangers`, pictures that show no stickers are refused. A model of this world draws nothing else: what it
    draws badly is wrong, and never missing.
    """
    specs, pictures = [], []
    for index, trace in enumerate(traces):
        if trace.prompt.spec is None:
            raise JudgeError(
                f"trace {index}, {trace.prompt.text!r}: expected a prompt with a spec to check, found none; "
                "parse one with data.language.parse_prompt, or ask a judge that reads sentences"
            )
        if trace.image is None:
            raise JudgeError(f"trace {index}, {trace.prompt.text!r}: expected a picture, found none; draw first")
        specs.append(trace.prompt.spec)
        pictures.append(trace.image)
    if strangers:
        check_stickers(pictures)
    try:
        return [scene_verdict(scene, spec) for scene, spec in zip(scenes(pictures), specs, strict=True)]
    except PictureError as error:
        raise JudgeError(f"cannot look at a picture: {error}") from error


def are_stickers(images: UInt8[Tensor, "batch 96 96 3"]) -> Bool[Tensor, " batch"]:
    """Whether each picture may be one of stickers: most of it is the canvas.

    Stickers that are badly drawn lie on the same canvas, so this holds for them too; an empty canvas is a legal scene.
    """
    pixels = images.flatten(1, 2).float()
    true = torch.tensor(BACKGROUND, dtype=torch.float32, device=images.device)
    # The median of what may be canvas, not of all: compression lets the stickers of a full picture bleed into it.
    maybe = ((pixels - true).abs().amax(2) <= CANVAS_TINT + MAX_TINT)[..., None]
    own = torch.where(maybe, pixels, torch.nan).nanmedian(dim=1).values
    tint = own - true
    near = ((pixels - own[:, None]).abs().amax(2) <= MAX_TINT).float().mean(1)
    hue = (tint[:, 2] - tint[:, 0]).abs()
    # Where nothing may be canvas, these are NaN, and no comparison holds.
    return (near >= CANVAS_SHARE) & (tint.abs().amax(1) <= CANVAS_TINT) & (hue <= CANVAS_HUE)


def check_stickers(images: Sequence[np.ndarray | Tensor]) -> None:
    """Raises JudgeError if a picture is none of stickers: its score would say nothing. What is no picture passes."""
    for index, image in enumerate(images):
        try:
            canvas = to_canvas(image)
        except PictureError:
            continue  # the detector names what is wrong with it
        if not are_stickers(canvas[None].cpu())[0]:
            raise JudgeError(
                f"picture {index} shows no stickers on their canvas, but a photograph or another drawing, perhaps; "
                "expected a picture of the sticker world: judge others with --judge vlm or --judge detector"
            )


def check_sticker_input(image: np.ndarray) -> None:
    """Raises PictureError if a picture that a model of the sticker world should look at shows no stickers."""
    if not are_stickers(to_canvas(image)[None])[0]:
        raise PictureError(
            "this picture shows no stickers on their canvas, and this model has seen nothing else: expected a picture "
            "of the sticker world; take another --model, or overrule it with --force"
        )


def scene_verdict(scene: Scene, spec: Spec) -> Verdict:
    """The verdict on a picture that shows `scene`: the share of the spec's checks that hold."""
    checks = check(scene, spec)
    passed = tuple(each.text for each in checks if each.held)
    failed = tuple(each.text for each in checks if not each.held)
    return Verdict(score=len(passed) / len(checks), passed=passed, failed=failed)


@torch.inference_mode()
def detect(
    images: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor, detector: StickerDetector | None = None
) -> list[Scene]:
    """The stickers of each picture `[height width 3] uint8`, row by row from the top. Any size is brought to 96 px.

    Uses the packaged network on the CPU unless a `detector` is given; in its own precision, whatever the caller
    computes in, so that a picture has one verdict.
    """
    detector = packaged_detector() if detector is None else detector
    device = next(detector.parameters()).device
    canvases = [to_canvas(image) for image in images]
    scenes: list[Scene] = []
    with torch.autocast(device.type, enabled=False):  # in bfloat16 the heat of neighboring cells would be equal
        for start in range(0, len(canvases), DETECTOR_BATCH):
            batch = torch.stack(canvases[start : start + DETECTOR_BATCH]).to(device)
            scenes.extend(scenes_from_detections(batch, detector(batch)))
    return scenes


def to_canvas(image: np.ndarray | Tensor) -> UInt8[Tensor, "96 96 3"]:
    """One picture `[height width 3] uint8` of any size, brought to 96 x 96. PictureError for anything else."""
    pixels = torch.as_tensor(np.asarray(image) if not isinstance(image, Tensor) else image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape or pixels.dtype != torch.uint8:
        actual = f"{list(pixels.shape)} {pixels.dtype}".replace("torch.", "")
        raise PictureError(f"expected a picture [height width 3] uint8, found {actual}; convert it to RGB first")
    if pixels.shape[:2] == (CANVAS, CANVAS):
        return pixels
    channels = pixels.permute(2, 0, 1)[None].float()
    resized = F.interpolate(channels, (CANVAS, CANVAS), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4)
def packaged_detector(path: Path = WEIGHTS, device: str = "cpu") -> StickerDetector:
    """`load_detector`, once per file and device. Without arguments, the detector that ships with the package."""
    return load_detector(path, device)


def load_detector(path: Path = WEIGHTS, device: str = "cpu") -> StickerDetector:
    """A detector from the weights of a folded one. ModelError if the file is missing or does not fit."""
    remedy = "train one with triptych sft sticker-detector, or reinstall triptych"
    if not Path(path).is_file():
        raise ModelError(f"no judge weights at {path}; {remedy}")
    detector = fold(StickerDetector())
    try:
        detector.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the detector: {error}; {remedy}") from error
    return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@lru_cache(maxsize=4)
def detector_fingerprint(path: Path = WEIGHTS) -> str:
    """First 12 hex digits of the sha256 of a weights file, for manifests."""
    return sha256(Path(path).read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class StickerDetections:
    """The network's output maps, before any decision. `offset` is in cells, 0 to 1 from the top left of the cell."""

    heat: Float[Tensor, "batch 24 24"]  # logit of a center in the cell
    name: Float[Tensor, "batch 80 24 24"]
    size: Float[Tensor, "batch 3 24 24"]
    offset: Float[Tensor, "batch 2 24 24"]


class ConvNorm(nn.Sequential):
    """Convolution, then batch norm: `fold` turns the pair into one convolution for inference."""

    def __init__(self, into: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(out))


class DetectorBlock(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(width, width), ConvNorm(width, width)

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        return F.relu(x + self.second(F.relu(self.first(x))))


class StickerDetector(nn.Module):
    """Pictures to detections: fine maps (stride 4) for places, coarse maps (stride 8) for classes."""

    def __init__(self, fine: int = 64, coarse: int = 128) -> None:
        super().__init__()
        self.stem = ConvNorm(3 * MAP_STRIDE**2, fine)
        self.places = DetectorBlock(fine)
        self.down = ConvNorm(fine, coarse, stride=2)
        self.things = nn.Sequential(DetectorBlock(coarse), DetectorBlock(coarse), DetectorBlock(coarse))
        self.up = ConvNorm(coarse, fine, kernel=1)
        self.join = ConvNorm(fine, fine)
        self.head = nn.Conv2d(fine, 1 + len(CLASSES) + len(SIZES) + 2, 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # type: ignore[index]  # a prior of .018: few cells hold one

    def forward(self, images: UInt8[Tensor, "batch 96 96 3"]) -> StickerDetections:
        background = torch.tensor(BACKGROUND, dtype=torch.float32, device=images.device)
        pixels = ((images.float() - background) / 64).permute(0, 3, 1, 2)  # black is -3, white 0.7 to 0.9
        x = F.pixel_unshuffle(pixels, MAP_STRIDE).contiguous(memory_format=torch.channels_last)
        fine = self.places(F.relu(self.stem(x)))
        coarse = self.things(F.relu(self.down(fine)))
        fine = F.relu(fine + F.interpolate(self.up(coarse), scale_factor=2))
        maps = self.head(F.relu(self.join(fine))).float()
        heat, name, size, offset = maps.split([1, len(CLASSES), len(SIZES), 2], dim=1)
        return StickerDetections(heat[:, 0], name, size, offset)


def fold(detector: StickerDetector) -> StickerDetector:
    """The same detector with every batch norm folded into its convolution: for inference only."""
    for module in list(detector.modules()):
        if isinstance(module, ConvNorm):
            convolution, norm = module
            module[0] = fuse_conv_bn_eval(convolution.eval(), norm.eval())  # type: ignore[arg-type]
            module[1] = nn.Identity()
    return detector.eval()


def scenes_from_detections(images: UInt8[Tensor, "batch 96 96 3"], maps: StickerDetections) -> list[Scene]:
    """Peaks of the heat become stickers, with class and size of their cell and the color of their pixels."""
    # A peak is the highest within 2 cells (8 px): half the distance of two small stickers side by side.
    highest = F.max_pool2d(maps.heat[:, None], kernel_size=5, stride=1, padding=2)[:, 0]
    peak = (maps.heat == highest) & (maps.heat.sigmoid() > THRESHOLD)
    row, down, right = peak.nonzero(as_tuple=True)
    name = maps.name[row, :, down, right].argmax(1)
    size = maps.size[row, :, down, right].argmax(1)
    cell = torch.stack([right, down], dim=1).float()
    inside = maps.offset[row, :, down, right].clamp(-0.5, 1.5)  # the peak may be the next cell's, as in training
    center = ((cell + inside) * MAP_STRIDE * 4).round() / 4  # quarter pixels: the same in a batch of any size
    color = sticker_colors(images, row, name, center, torch.tensor(list(SIZES.values()), device=row.device)[size])
    stickers: list[list[Sticker]] = [[] for _ in images]
    sizes, colors = list(SIZES), list(COLORS)
    facts = torch.stack([row, name, color, size], dim=1).tolist()
    for (r, n, c, s), (x, y) in zip(facts, center.tolist(), strict=True):
        stickers[r].append(Sticker(CLASSES[n], colors[c], x, y, sizes[s]))
    return [Scene(tuple(own)) for own in stickers]


def sticker_colors(
    images: UInt8[Tensor, "batch 96 96 3"],
    row: Int[Tensor, " sticker"],
    name: Int[Tensor, " sticker"],
    center: Float[Tensor, "sticker 2"],
    side: Int[Tensor, " sticker"],
) -> Int[Tensor, " sticker"]:
    """Index into COLORS of each sticker: the palette color that, at some opacity, explains its pixels best.

    Least squares on pixels = canvas + alpha (color - canvas), alpha being the class's silhouette in the sticker's box.
    """
    device = images.device
    canvas = canvas_color(images)[row]
    ink = torch.tensor(list(COLORS.values()), dtype=torch.float32, device=device) - canvas[:, None]
    alpha = silhouettes(COLOR_GRID).to(device)[name].flatten(1)
    steps = (torch.arange(COLOR_GRID, device=device) + 0.5) / COLOR_GRID - 0.5
    spot = (center[:, :, None] + steps * side[:, None, None]).floor().long()
    inside = ((spot >= 0) & (spot < CANVAS)).float()
    alpha = alpha * (inside[:, 1, :, None] * inside[:, 0, None, :]).flatten(1)
    across, along = spot.clamp(0, CANVAS - 1).unbind(1)
    pixels = images[row[:, None, None], along[:, :, None], across[:, None, :]].float().flatten(1, 2) - canvas[:, None]
    # The clamp: a box that lies wholly outside the picture has no pixels to fit.
    actual = torch.einsum("sp,spc->sc", alpha, pixels) / (alpha**2).sum(1, keepdim=True).clamp(min=1e-6)
    opacity = (torch.einsum("sc,skc->sk", actual, ink) / (ink**2).sum(2)).clamp(MIN_OPACITY, MAX_OPACITY)
    misfit = (actual[:, None] - opacity[:, :, None] * ink).norm(dim=2)
    return (misfit + OPACITY_PENALTY * (1 - opacity).abs() * ink.norm(dim=2)).argmin(1)


def canvas_color(images: UInt8[Tensor, "batch 96 96 3"]) -> Float[Tensor, "batch 3"]:
    """Each picture's own canvas: its median color, unless so many stickers cover it that this is one of theirs."""
    true = torch.tensor(BACKGROUND, dtype=torch.float32, device=images.device)
    tint = images.flatten(1, 2).float().median(dim=1).values - true
    return true + tint.clamp(-MAX_TINT, MAX_TINT)
