"""The stage that trains the sticker judge's detector: endless rendered scenes, degraded as generated pictures are.

Picture `i` comes from `seed + i`: half are scenes that meet some spec, half lie freely, so that any picture can be
read. Then they are blended, warped, faded, blurred, tinted and made noisy. A sticker below `ABSENT` of its opacity
counts as absent, above `PRESENT` as present; none is in between, where nobody could say.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from triptych import files
from triptych.bounds import NonNegativeFloat, NonNegativeInt, Share
from triptych.data.layout import FREE_LAYOUT
from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, Sticker
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ModelError
from triptych.model.config import AutoencoderConfig, BagelConfig
from triptych.model.vae import Autoencoder
from triptych.rewards.sticker_judge import MAP_STRIDE, StickerDetections, StickerDetector, detect, fold, load_detector
from triptych.seeds import START
from triptych.sft.optim import FitConfig, Metrics, Part, SFTStage, adamw, copies
from triptych.sft.run import LOG, RecipeConfig

ABSENT, PRESENT = 0.35, 0.65  # opacities
CLEAN_SHARE = 0.25  # of the pictures stay as rendered
READ_BACK = 400  # clean scenes, in no update, on which the result is measured
MAP = CANVAS // MAP_STRIDE  # cells of a side of the detector's maps
Levels = Float[Tensor, "batch 3 96 96"]  # pixels from 0 to 255, as the judge reads them; `vae.Pixels` are in [-1, 1]
Filter = Callable[[Levels], Levels]  # what stands between a scene and the judge, such as an autoencoder


@dataclass(frozen=True)
class DetectorConfig(FitConfig):
    """How the detector learns."""

    steps: NonNegativeInt = 1100  # about 12 minutes on one CPU core; read back 99.5 % of clean scenes after 400
    batch: Annotated[int, Ge(2)] = 64  # batch norm needs two
    lr: NonNegativeFloat = 3e-3
    warmup_steps: NonNegativeInt = 55
    cooldown: Share = 1046 / 1100  # all of the run that the warm-up leaves
    ema_decay: Share = 0.0  # the last weights are published: batch norm's statistics are theirs
    weight_decay: NonNegativeFloat = 0.02
    max_grad_norm: NonNegativeFloat = 5.0


@dataclass(frozen=True)
class DetectorRecipe(RecipeConfig):
    """The recipe of the sticker judge's detector; the result is `detector.safetensors`, with its accuracy beside it."""

    autoencoder: str = ""  # an ae.safetensors of SKETCH's size: half of the pictures then pass through it
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    outputs: ClassVar[tuple[str, ...]] = ("sticker_detector", "detector.safetensors", "detector.json", LOG)
    result: ClassVar[str] = "detector.safetensors"
    beside_result: ClassVar[tuple[str, ...]] = ("detector.json",)

    def stages(self, out: Path, model_config: BagelConfig) -> Iterator[SFTStage]:
        device, seed = self.torch_device, START["sticker_detector"] + self.seed
        pixel_filter = load_filter(self.autoencoder, model_config.autoencoder, device) if self.autoencoder else None
        model = new_detector(seed, device)
        yield detector_stage(self.detector, model, seed, pixel_filter)
        folded = fold(deepcopy(model)).state_dict()  # in half precision, a sixth of the checkpoint
        halves = {name: tensor.cpu().half().contiguous() for name, tensor in folded.items()}
        path = files.write_bytes(out / self.result, to_bytes(halves))
        accuracy = read_back(path, str(device))
        files.write_json(out / "detector.json", {"scenes": READ_BACK, "read_exactly": accuracy})


@dataclass(frozen=True)
class DetectorTargets:
    """Where the stickers of a batch are: one entry per sticker. `center` is in map cells (x, y)."""

    row: Int[Tensor, " sticker"]
    name: Int[Tensor, " sticker"]
    size: Int[Tensor, " sticker"]
    center: Float[Tensor, "sticker 2"]

    @staticmethod
    def of(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> DetectorTargets:
        """The targets of scenes, in order."""
        sizes = list(SIZES)
        rows = [(row, sticker) for row, scene in enumerate(scenes) for sticker in scene.stickers]
        classes = [(row, CLASSES.index(s.name), sizes.index(s.size)) for row, s in rows]
        row, name, size = torch.tensor(classes, dtype=torch.long, device=device).reshape(-1, 3).unbind(1)
        center = torch.tensor([(s.x, s.y) for _, s in rows], dtype=torch.float32, device=device).reshape(-1, 2)
        return DetectorTargets(row, name, size, center / MAP_STRIDE)


class DetectorBatch(NamedTuple):
    """Scenes, the scenes that they are blended with, their opacities, what counts as present, and the noise's seed."""

    scenes: list[Scene]
    blended: list[Scene]
    opacity: list[float]
    present: list[Scene]
    seed: int


def free_scene(seed: int) -> Scene:
    """A scene that meets no spec: 0 to 9 stickers anywhere on the canvas, boxes overlapping by at most a quarter."""
    rng = random.Random(seed)
    placed: list[Sticker] = []
    count = rng.choice((0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9))  # crowds more often: they are hardest to read
    names = rng.sample(CLASSES, 2) if rng.random() < 0.3 else CLASSES  # crowds of look-alikes, as in counting
    for _ in range(6 * count):
        if len(placed) == count:
            break
        size = rng.choices(list(SIZES), weights=(3, 4, 2))[0]
        edge = SIZES[size] / 2 - 1
        x, y = rng.uniform(edge, CANVAS - edge), rng.uniform(edge, CANVAS - edge)
        gaps = [max(abs(x - s.x), abs(y - s.y)) / ((SIZES[size] + s.side) / 2) for s in placed]
        if min(gaps, default=1.0) >= 0.75:
            placed.append(Sticker(rng.choice(names), rng.choice(list(COLORS)), x, y, size))
    return Scene(tuple(placed))


def detector_scene(seed: int) -> Scene:
    """Scene number `seed`: even ones meet a spec, odd ones lie freely."""
    return free_scene(seed) if seed % 2 else Scene.sample(random_spec(seed), seed, FREE_LAYOUT)


def detector_batch(first: int, size: int) -> DetectorBatch:
    """The scenes from number `first` on, some with a faint sticker or a double exposure."""
    rng = random.Random(first)
    batch = DetectorBatch([detector_scene(first + row) for row in range(size)], [], [], [], first)
    for scene in batch.scenes:
        other, opacity = scene, 1.0
        if scene.stickers and rng.random() < 0.4:  # a faint sticker: the scene blended with itself without it
            faint = rng.randrange(len(scene.stickers))
            other = Scene(tuple(s for index, s in enumerate(scene.stickers) if index != faint))
            opacity = rng.choice([rng.uniform(0, ABSENT), rng.uniform(PRESENT, 1)])
        elif rng.random() < 0.3:  # a double exposure: everything once more, a pixel or so away
            other, opacity = Scene(tuple(_nudged(s, rng) for s in scene.stickers)), rng.uniform(0.6, 1)
        batch.present.append(other if opacity < 0.5 else scene)
        batch.blended.append(other)
        batch.opacity.append(opacity)
    return batch


def detector_images(
    batch: DetectorBatch, device: torch.device, pixel_filter: Filter | None = None, clean: float = CLEAN_SHARE
) -> UInt8[Tensor, "batch 96 96 3"]:
    """The pictures of a batch, a share `clean` of them as rendered; half of them pass the filter first."""
    generator, count = torch.Generator(device).manual_seed(batch.seed), len(batch.scenes)
    opacity = torch.tensor(batch.opacity, device=device)[:, None, None, None]
    scenes, blended = (render(each, device).float() for each in (batch.scenes, batch.blended))
    pixels = (opacity * scenes + (1 - opacity) * blended).permute(0, 3, 1, 2)
    if pixel_filter is not None:
        filtered = torch.rand(count, generator=generator, device=device) < 0.5
        pixels[filtered] = pixel_filter(pixels[filtered])
    corrupted = corrupt(pixels, generator)
    is_clean = torch.rand(count, generator=generator, device=device) < clean
    pixels = torch.where(is_clean[:, None, None, None], pixels, corrupted)
    return pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)


def new_detector(seed: int, device: torch.device) -> StickerDetector:
    """An untrained detector; the caller's generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = StickerDetector()
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def detector_stage(
    config: DetectorConfig, model: StickerDetector, seed: int, pixel_filter: Filter | None = None
) -> SFTStage:
    """All weights of a detector, and the running statistics of its batch norms."""
    device = next(model.parameters()).device

    def samples(step: int) -> list[Part]:
        return [(detector_batch(seed + step * config.batch, config.batch), 1.0)]

    def loss(batch: DetectorBatch) -> tuple[Tensor, Metrics]:
        images = detector_images(batch, device, pixel_filter)
        with torch.autocast(device.type, torch.bfloat16):  # convolutions at twice the speed, on a CPU too
            detections = model.train()(images)
        parts = detector_loss(detections, DetectorTargets.of(batch.present, device))
        return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}

    parameters = dict(model.named_parameters())
    tensors = parameters | dict(model.named_buffers())
    optimizers = adamw(parameters.values(), config, betas=(0.9, 0.999))
    return SFTStage("sticker_detector", config, tensors, copies(tensors), optimizers, samples, loss)


def load_filter(path: str, config: AutoencoderConfig, device: torch.device) -> Filter:
    """Pixels to latent and back, as in every picture of the model. Raises ModelError for weights that do not fit."""
    if not Path(path).is_file():
        raise ModelError(f"no file {path}; expected the ae.safetensors of a checkpoint folder: set --autoencoder")
    autoencoder = Autoencoder(config)
    try:
        autoencoder.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} is no autoencoder of this size: {error}; set --autoencoder") from error
    autoencoder.to(device).eval()

    @torch.no_grad()
    def pixel_filter(pixels: Levels) -> Levels:
        with torch.autocast(device.type, torch.bfloat16):
            decoded = autoencoder.decode(autoencoder.encode(pixels / 127.5 - 1))
        return ((decoded.float() + 1) * 127.5).round().clamp(0, 255)

    return pixel_filter


def read_back(path: Path, device: str, count: int = READ_BACK) -> float:
    """Share of clean scenes, none of them of training, that published weights read back exactly."""
    scenes = [detector_scene(2 * seed) for seed in range(count)]
    read = detect(render(scenes), load_detector(path, device))
    return sum(facts(a) == facts(b) for a, b in zip(read, scenes, strict=True)) / count


def _nudged(sticker: Sticker, rng: random.Random) -> Sticker:
    return replace(sticker, x=sticker.x + rng.uniform(-1.5, 1.5), y=sticker.y + rng.uniform(-1.5, 1.5))


def corrupt(pixels: Levels, generator: torch.Generator) -> Levels:
    """Pixels as a generator of pictures might leave them: warped, blurred, tinted, noisy; each row differently."""
    count, device = len(pixels), pixels.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    warp = F.interpolate((uniform(2, 7, 7) - 0.5) * 4 * uniform(1, 1, 1), CANVAS, mode="bicubic")  # up to 2 px, smooth
    coordinates = (torch.arange(CANVAS, device=device) + 0.5) * 2 / CANVAS - 1  # -1 to 1, as grid_sample has them
    straight = torch.stack(torch.meshgrid(coordinates, coordinates, indexing="xy"), dim=-1)
    grid = straight + warp.permute(0, 2, 3, 1) * 2 / CANVAS
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels = blur(pixels, 1.2 * uniform(1)[:, 0])
    pixels = pixels * (0.94 + 0.12 * uniform(3, 1, 1)) + 12 * (uniform(3, 1, 1) - 0.5)  # levels, of each channel
    haze = F.interpolate(torch.randn(count, 3, 12, 12, generator=generator, device=device), CANVAS, mode="bilinear")
    grain = torch.randn(pixels.shape, generator=generator, device=device)
    # Grain of up to 20 levels, mostly little; and blotches of the size of a latent cell, 8 px.
    return pixels + 20 * uniform(1, 1, 1) ** 1.5 * grain + 8 * uniform(1, 1, 1) * haze


def blur(pixels: Levels, sigma: Float[Tensor, " batch"]) -> Levels:
    """Gaussian blur with each row's own standard deviation in pixels; 0 leaves the row as it is."""
    offsets = torch.arange(-4, 5, device=pixels.device)  # 3 deviations of the strongest blur
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = pixels.shape
    kernel = kernel.repeat_interleave(channels, 0)
    # Rows as groups of one convolution, since each has a kernel of its own; a Gaussian is separable.
    flat = F.pad(pixels, (4, 4, 4, 4), mode="replicate").reshape(1, count * channels, height + 8, width + 8)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    return flat.reshape(count, channels, height, width)


def detector_loss(detections: StickerDetections, targets: DetectorTargets) -> dict[str, Float[Tensor, ""]]:
    """The parts of the loss: focal on the heat (arXiv 1808.01244), cross entropy on class and size, L1 on the offset.

    Class, size and offset are learned in the four cells nearest to a center, where the peak of the heat may fall.
    """
    count, device = len(detections.heat), detections.heat.device
    home = targets.center.floor().long().clamp(0, MAP - 1)
    gap = (torch.arange(MAP, device=device) + 0.5) - targets.center[:, :, None]
    bump = torch.exp(-(gap[:, 1, :, None] ** 2 + gap[:, 0, None, :] ** 2) / (2 * 0.8**2))  # 0.8 cells wide
    row = targets.row[:, None, None].expand_as(bump)
    near = torch.zeros(count, MAP, MAP, device=device).scatter_reduce_(0, row, bump, "amax")
    is_center = torch.zeros(count, MAP, MAP, dtype=torch.bool, device=device)
    is_center[targets.row, home[:, 1], home[:, 0]] = True
    probability = detections.heat.sigmoid()
    positive = (1 - probability) ** 2 * F.logsigmoid(detections.heat)
    negative = (1 - near) ** 4 * probability**2 * F.logsigmoid(-detections.heat)  # little beside a center
    stickers = max(len(targets.row), 1)
    heat = -torch.where(is_center, positive, negative).sum() / stickers

    corner = (targets.center - 0.5).floor().long()
    square = torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)], device=device)
    cell = (corner[:, None] + square).clamp(0, MAP - 1)
    row, down, along = targets.row[:, None], cell[..., 1], cell[..., 0]
    names, sizes = targets.name[:, None].expand(-1, 4), targets.size[:, None].expand(-1, 4)
    name = F.cross_entropy(detections.name[row, :, down, along].transpose(1, 2), names, reduction="sum")
    size = F.cross_entropy(detections.size[row, :, down, along].transpose(1, 2), sizes, reduction="sum")
    offset = (detections.offset[row, :, down, along] - (targets.center[:, None] - cell)).abs().sum()
    cells = 4 * stickers
    return {"heat": heat, "name": name / cells, "size": size / cells, "offset": offset / cells}


def facts(scene: Scene) -> Counter[tuple[str, str, str, str]]:
    """What must be read back: the class, color, cell and size of every sticker."""
    return Counter((s.name, s.color, s.cell, s.size) for s in scene.stickers)
