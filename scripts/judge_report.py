"""How far the judges of the sticker world can be trusted: `python scripts/judge_report.py` prints every figure.

Scenes are fresh: they meet specs of the benchmarks' kinds, with seeds from `--seed` on (training starts at a million).
"Exact" means that the class, colour, cell and size of every sticker were read back, and that nothing else was.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

from triptych.data.edits import spoil
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker, check, random_spec
from triptych.model.config import SKETCH
from triptych.model.vae import Autoencoder
from triptych.rewards.finder import WEIGHTS
from triptych.rewards.templates import TemplateJudge
from triptych.rewards.world import WorldJudge
from triptych.rl.finder_lessons import blur, facts, strew, through
from triptych.trace import Spec

NEAR = 2.0  # px: on strewn scenes a place is right within this distance, for a cell's border may run through a sticker
Eyes = Callable[[Tensor], list[Scene]]


@dataclass(frozen=True)
class JudgeReport:
    """Measure the world judge on fresh scenes, and the second judge on the first of them."""

    scenes: int = 2000
    templates: int = 200  # scenes for the second judge, which is far slower
    seed: int = 0
    weights: Path = WEIGHTS
    autoencoder: Path = WEIGHTS.parents[1] / "sketch" / "ae.safetensors"  # figures after it are left out if absent
    out: Path | None = None  # write the figures there as JSON, too
    device: str = "cpu"


def exact(found: Sequence[Scene], truth: Sequence[Scene]) -> float:
    """Share of scenes read back exactly."""
    return sum(facts(a) == facts(b) for a, b in zip(found, truth, strict=True)) / len(truth)


def placed(found: Sequence[Scene], truth: Sequence[Scene]) -> float:
    """Share of scenes in which every sticker was found within `NEAR` px, and nothing else."""

    def same(a: Sticker, b: Sticker) -> bool:
        apart = max(abs(a.x - b.x), abs(a.y - b.y))
        return (a.name, a.color, a.size) == (b.name, b.color, b.size) and apart <= NEAR

    def right(a: Scene, b: Scene) -> bool:
        return len(a.stickers) == len(b.stickers) and all(any(same(s, t) for s in a.stickers) for t in b.stickers)

    return sum(right(a, b) for a, b in zip(found, truth, strict=True)) / len(truth)


def meets(found: Sequence[Scene], specs: Sequence[Spec]) -> list[bool]:
    """Whether each scene would score 1.0."""
    return [all(c.held for c in check(scene, spec)) for scene, spec in zip(found, specs, strict=True)]


def worn(images: Tensor, sigma: float, noise: float, seed: int) -> Tensor:
    """Pictures `[batch 96 96 3] uint8` blurred by `sigma` pixels, with noise of standard deviation `noise` of 255."""
    pixels = blur(images.permute(0, 3, 1, 2).float(), torch.full([len(images)], sigma))
    pixels = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)


def decoded(images: Tensor, path: Path) -> Tensor:
    """Pictures after the autoencoder of SKETCH at `path`, in batches of 64."""
    autoencoder = Autoencoder(SKETCH.autoencoder).eval()
    autoencoder.load_state_dict(load_file(path))
    veil = through(autoencoder)
    pixels = [veil(part.permute(0, 3, 1, 2).float()) for part in images.split(64)]
    return torch.cat(pixels).permute(0, 2, 3, 1).to(torch.uint8)


def measure(eyes: Eyes, options: JudgeReport, count: int) -> dict[str, float]:
    """Every figure of one judge on `count` scenes."""
    seeds = range(options.seed, options.seed + count)
    specs = [random_spec(seed) for seed in seeds]
    truth = [Scene.sample(spec, seed) for spec, seed in zip(specs, seeds, strict=True)]
    wrong = [spoil(scene, spec, seed, edits=1) for scene, spec, seed in zip(truth, specs, seeds, strict=True)]
    strewn = [strew(seed) for seed in seeds]
    images = render(truth)

    eyes(images[:64])
    start = time.perf_counter()
    clean = eyes(images)
    pace = count / (time.perf_counter() - start)
    figures = {"clean, exact": exact(clean, truth), "clean, score 1": sum(meets(clean, specs)) / count}
    if options.autoencoder.is_file():
        figures["after the autoencoder, exact"] = exact(eyes(decoded(images, options.autoencoder)), truth)
    figures["blur sigma 1, exact"] = exact(eyes(worn(images, 1.0, 0, 1)), truth)
    figures["noise sd 16, exact"] = exact(eyes(worn(images, 0.0, 16, 2)), truth)
    figures["blur 1 and noise 16, exact"] = exact(eyes(worn(images, 1.0, 16, 3)), truth)
    figures["strewn and overlapping, within 2 px"] = placed(eyes(render(strewn)), strewn)
    seen = eyes(render(wrong))
    figures["one mistake, rejected"] = 1 - sum(meets(seen, specs)) / count
    figures["one mistake, exact"] = exact(seen, wrong)
    figures["pictures a second, one thread"] = pace
    _show_mistakes(clean, truth)
    return figures


def _show_mistakes(found: Sequence[Scene], truth: Sequence[Scene]) -> None:
    def words(stickers: Counter[tuple[str, str, str, str]]) -> str:
        return ", ".join(" ".join(fact) for fact in stickers.elements()) or "nothing"

    for a, b in zip(found, truth, strict=True):
        if facts(a) != facts(b):
            print(f"  misread: {words(facts(b) - facts(a))} as {words(facts(a) - facts(b))}")


def agreement(one: Eyes, other: Eyes, options: JudgeReport) -> float:
    """Share of verdicts (met or not) on which two judges agree, over right and spoiled pictures, half of them worn."""
    seeds = range(options.seed, options.seed + options.templates)
    specs = [random_spec(seed) for seed in seeds]
    scenes = [Scene.sample(spec, seed) for spec, seed in zip(specs, seeds, strict=True)]
    scenes = [spoil(a, spec, seed) if seed % 2 else a for a, spec, seed in zip(scenes, specs, seeds, strict=True)]
    images = render(scenes)
    half = len(images) // 2
    images = torch.cat([images[:half], worn(images[half:], 1.0, 16, 4)])
    return sum(a == b for a, b in zip(meets(one(images), specs), meets(other(images), specs), strict=True)) / len(specs)


def main(options: JudgeReport) -> None:
    torch.set_num_threads(1)
    world, templates = WorldJudge(options.device, options.weights), TemplateJudge()
    report: dict[str, dict[str, float]] = {
        f"{world.name}, {options.scenes} scenes": measure(world.scenes, options, options.scenes)
    }
    if options.templates:
        report[f"{templates.name}, {options.templates} scenes"] = measure(templates.scenes, options, options.templates)
        report["both"] = {"verdicts agree": agreement(world.scenes, templates.scenes, options)}
    for judge, figures in report.items():
        print(judge)
        for figure, value in figures.items():
            print(f"  {figure:40s} {value:.4f}")
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(JudgeReport))
