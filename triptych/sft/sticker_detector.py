"""How the finder of the world judge learns: endless rendered scenes, spoiled the way generated pictures are.

Picture `i` comes from `seed + i`: half are scenes that meet some spec, half are strewn freely, so that any picture can
be read. Then they are warped, faded, blended, blurred, tinted and made noisy. A sticker below `GONE` of its opacity
counts as absent, above `THERE` as present; nothing is taught in between.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from triptych.data.layout import FREE_LAYOUT
from triptych.data.render import render
from triptych.data.scene import CANVAS, SIZES, Scene, Sticker
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.model.vae import Autoencoder
from triptych.rewards.sticker_judge import STRIDE, StickerDetections, StickerDetector
from triptych.sft import checkpoint

GONE, THERE = 0.35, 0.65
MAP = CANVAS // STRIDE
Pixels = Float[Tensor, "batch 3 96 96"]  # 0 to 255
Veil = Callable[[Pixels], Pixels]  # what stands between a scene and the judge, such as an autoencoder


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of one training run; every field is an option of scripts/train_finder.py."""

    steps: int = 1100  # about 12 minutes on one CPU core; read back 99.5 % of clean scenes after 400
    batch: int = 64
    rate: float = 3e-3  # AdamW, linear warm-up over a twentieth of the run, linear decay to 0 over the rest
    weight_decay: float = 0.02
    clean: float = 0.25  # share of pictures left as rendered
    seed: int = 1_000_000  # far from the seeds of tests and reports, which start at 0
    device: str = "cpu"
    half: bool = True  # bfloat16 convolutions: twice the speed on CPU

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2:
            raise ConfigError(f"steps={self.steps}, batch={self.batch}: expected 1 step or more, a batch of 2 or more")


@dataclass(frozen=True)
class Truth:
    """Where the stickers of a batch really are: one entry per sticker. `centre` in map cells (x, y)."""

    row: Int[Tensor, " sticker"]
    name: Int[Tensor, " sticker"]
    size: Int[Tensor, " sticker"]
    centre: Float[Tensor, "sticker 2"]

    @staticmethod
    def of(scenes: Sequence[Scene], device: str = "cpu") -> Truth:
        sizes = list(SIZES)
        rows = [(row, sticker) for row, scene in enumerate(scenes) for sticker in scene.stickers]
        facts = [(row, CLASSES.index(s.name), sizes.index(s.size)) for row, s in rows]
        row, name, size = torch.tensor(facts, dtype=torch.long, device=device).reshape(-1, 3).unbind(1)
        centre = torch.tensor([(s.x, s.y) for _, s in rows], dtype=torch.float32, device=device).reshape(-1, 2)
        return Truth(row, name, size, centre / STRIDE)


def strew(seed: int) -> Scene:
    """A scene nobody asked for: 0 to 9 stickers anywhere on the canvas, boxes overlapping by at most a quarter."""
    chance = random.Random(seed)
    placed: list[Sticker] = []
    wanted = chance.choice((0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9))
    few = chance.sample(CLASSES, 2) if chance.random() < 0.3 else CLASSES  # crowds of look-alikes, as in counting
    for _ in range(6 * wanted):
        if len(placed) == wanted:
            break
        size = chance.choices(list(SIZES), weights=(3, 4, 2))[0]
        edge = SIZES[size] / 2 - 1
        x, y = chance.uniform(edge, CANVAS - edge), chance.uniform(edge, CANVAS - edge)
        gap = [max(abs(x - s.x), abs(y - s.y)) / ((SIZES[size] + s.side) / 2) for s in placed]
        if min(gap, default=1.0) >= 0.75:
            placed.append(Sticker(chance.choice(few), chance.choice(list(COLORS)), x, y, size))
    return Scene(tuple(placed))


def detector_scene(seed: int) -> Scene:
    """Scene number `seed`: even ones meet a spec, odd ones are strewn."""
    return strew(seed) if seed % 2 else Scene.sample(random_spec(seed), seed, FREE_LAYOUT)


def detector_sample(
    config: DetectorConfig, index: int, veil: Veil | None = None
) -> tuple[UInt8[Tensor, "batch 96 96 3"], Truth]:
    """Batch number `index`: worn pictures and what they really show. The `veil` covers half of them."""
    first = config.seed + index * config.batch
    chance = random.Random(first)
    generator = torch.Generator(config.device).manual_seed(first)
    scenes = [detector_scene(first + row) for row in range(config.batch)]
    present, mixed, share = [], [], []
    for scene in scenes:  # a faint sticker is a mix of the scene with it and without it
        other, opacity = scene, 1.0
        if scene.stickers and chance.random() < 0.4:
            faint = chance.randrange(len(scene.stickers))
            other = Scene(tuple(s for i, s in enumerate(scene.stickers) if i != faint))
            opacity = chance.choice([chance.uniform(0, GONE), chance.uniform(THERE, 1)])
        elif chance.random() < 0.3:  # a double exposure: everything once more, a pixel or so away
            other, opacity = Scene(tuple(_nudged(s, chance) for s in scene.stickers)), chance.uniform(0.6, 1)
        present.append(other if opacity < 0.5 else scene)
        mixed.append(other)
        share.append(opacity)
    opacity = torch.tensor(share, device=config.device)[:, None, None, None]
    pixels = opacity * render(scenes, config.device).float() + (1 - opacity) * render(mixed, config.device).float()
    pixels = pixels.permute(0, 3, 1, 2)
    if veil is not None:
        covered = torch.rand(config.batch, generator=generator, device=config.device) < 0.5
        pixels[covered] = veil(pixels[covered])
    worn = wear(pixels, generator)
    kept = torch.rand(config.batch, generator=generator, device=config.device) < config.clean
    pixels = torch.where(kept[:, None, None, None], pixels, worn)
    return pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8), Truth.of(present, config.device)


def _nudged(sticker: Sticker, chance: random.Random) -> Sticker:
    return replace(sticker, x=sticker.x + chance.uniform(-1.5, 1.5), y=sticker.y + chance.uniform(-1.5, 1.5))


def wear(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Pixels as a generator of pictures might leave them: warped, blurred, tinted, noisy; each row differently."""
    count, device = len(pixels), pixels.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    bend = F.interpolate((uniform(2, 7, 7) - 0.5) * 4 * uniform(1, 1, 1), CANVAS, mode="bicubic")  # up to 2 px, smooth
    steps = (torch.arange(CANVAS, device=device) + 0.5) * 2 / CANVAS - 1
    straight = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    grid = straight + bend.permute(0, 2, 3, 1) * 2 / CANVAS
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels = blur(pixels, 1.2 * uniform(1)[:, 0])
    pixels = pixels * (0.94 + 0.12 * uniform(3, 1, 1)) + 12 * (uniform(3, 1, 1) - 0.5)
    haze = F.interpolate(torch.randn(count, 3, 12, 12, generator=generator, device=device), CANVAS, mode="bilinear")
    grain = torch.randn(pixels.shape, generator=generator, device=device)
    return pixels + 20 * uniform(1, 1, 1) ** 1.5 * grain + 8 * uniform(1, 1, 1) * haze


def blur(pixels: Pixels, sigma: Float[Tensor, " batch"]) -> Pixels:
    """Gaussian blur with each row's own standard deviation in pixels; 0 leaves the row as it is."""
    reach = torch.arange(-4, 5, device=pixels.device)
    kernel = torch.exp(-(reach**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = pixels.shape
    kernel = kernel.repeat_interleave(channels, 0)
    flat = F.pad(pixels, (4, 4, 4, 4), mode="replicate").reshape(1, count * channels, height + 8, width + 8)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    return flat.reshape(count, channels, height, width)


def detector_loss(sight: StickerDetections, truth: Truth) -> dict[str, Float[Tensor, ""]]:
    """The parts of the loss: focal on the heat (arXiv 1808.01244), cross entropy on class and size, L1 on the offset.

    Class, size and offset are taught in the four cells nearest to a centre, where the peak of the heat may fall.
    """
    batch, device = len(sight.heat), sight.heat.device
    home = truth.centre.floor().long().clamp(0, MAP - 1)
    cells = torch.arange(MAP, device=device)
    gap = (cells + 0.5) - truth.centre[:, :, None]
    bump = torch.exp(-(gap[:, 1, :, None] ** 2 + gap[:, 0, None, :] ** 2) / (2 * 0.8**2))
    place = truth.row[:, None, None].expand_as(bump)
    near = torch.zeros(batch, MAP, MAP, device=device).scatter_reduce_(0, place, bump, "amax")
    centre = torch.zeros(batch, MAP, MAP, dtype=torch.bool, device=device)
    centre[truth.row, home[:, 1], home[:, 0]] = True
    chance = sight.heat.sigmoid()
    right = (1 - chance) ** 2 * F.logsigmoid(sight.heat)
    wrong = (1 - near) ** 4 * chance**2 * F.logsigmoid(-sight.heat)
    stickers = max(len(truth.row), 1)
    heat = -torch.where(centre, right, wrong).sum() / stickers

    corner = (truth.centre - 0.5).floor().long()
    square = torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)], device=device)
    cell = (corner[:, None] + square).clamp(0, MAP - 1)
    row, down, along = truth.row[:, None], cell[..., 1], cell[..., 0]
    names, sizes = truth.name[:, None].expand(-1, 4), truth.size[:, None].expand(-1, 4)
    name = F.cross_entropy(sight.name[row, :, down, along].transpose(1, 2), names, reduction="sum")
    size = F.cross_entropy(sight.size[row, :, down, along].transpose(1, 2), sizes, reduction="sum")
    offset = (sight.offset[row, :, down, along] - (truth.centre[:, None] - cell)).abs().sum()
    taught = 4 * stickers
    return {"heat": heat, "name": name / taught, "size": size / taught, "offset": offset / taught}


class DetectorTraining:
    """A finder in training: weights, optimiser and the number of steps done; saved and loaded exactly."""

    def __init__(self, config: DetectorConfig) -> None:
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            finder = StickerDetector()
        self.finder = finder.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.finder.parameters(), config.rate, weight_decay=config.weight_decay)
        self.steps = 0

    def rate(self) -> float:
        """Learning rate of the next step."""
        warm = max(1, self.config.steps // 20)
        left = (self.config.steps - self.steps) / (self.config.steps - warm + 1)
        return self.config.rate * min((self.steps + 1) / warm, left)

    def save(self, folder: Path) -> None:
        """Everything needed to go on, as a checkpoint in `folder`."""
        tensors = {f"finder/{name}": tensor for name, tensor in self.finder.state_dict().items()}
        checkpoint.save(folder, self.steps, tensors | checkpoint.pack_optimizer("adamw", self.optimizer), {})

    @staticmethod
    def resume(config: DetectorConfig, folder: Path) -> DetectorTraining:
        """The pupil of the newest checkpoint in `folder`; a new one where there is none."""
        pupil = DetectorTraining(config)
        if (found := checkpoint.latest(folder, config.device)) is not None:
            tensors, record = found
            state = {name.removeprefix("finder/"): t for name, t in tensors.items() if name.startswith("finder/")}
            pupil.finder.load_state_dict(state)
            checkpoint.unpack_optimizer("adamw", pupil.optimizer, tensors)
            pupil.steps = record["step"]
        return pupil


def train_detector(pupil: DetectorTraining, veil: Veil | None = None) -> Iterator[dict[str, float]]:
    """Train the pupil to the end of its schedule, yielding the losses of each step; the listener prints and saves."""
    config = pupil.config
    while pupil.steps < config.steps:
        images, truth = detector_sample(config, pupil.steps, veil)
        pupil.finder.train()
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.half):
            sight = pupil.finder(images)
        parts = detector_loss(sight, truth)
        for group in pupil.optimizer.param_groups:
            group["lr"] = pupil.rate()
        pupil.optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(pupil.finder.parameters(), 5.0)
        if not math.isfinite(float(norm)):
            raise ConfigError(
                f"step {pupil.steps}: the gradient is {norm}; lower FinderConfig.rate (now {config.rate})"
            )
        pupil.optimizer.step()
        pupil.steps += 1
        yield {key: value.item() for key, value in parts.items()} | {"norm": float(norm)}


def through(autoencoder: Autoencoder) -> Veil:
    """The veil of an autoencoder: pixels to latent and back, as in every picture that the model draws."""

    @torch.no_grad()
    def veil(pixels: Pixels) -> Pixels:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            decoded = autoencoder.decode(autoencoder.encode(pixels / 127.5 - 1))
        return ((decoded.float() + 1) * 127.5).round().clamp(0, 255)

    return veil


def facts(scene: Scene) -> Counter[tuple[str, str, str, str]]:
    """What must be read back: the class, colour, cell and size of every sticker."""
    return Counter((s.name, s.color, s.cell, s.size) for s in scene.stickers)
