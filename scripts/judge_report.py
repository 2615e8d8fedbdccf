"""How far the judges of the sticker world can be trusted: `python scripts/judge_report.py` prints every figure.

Scenes are fresh: they meet specs of the benchmarks' kinds, with seeds from `--seed` on (training starts at a million).
"Exact" means that the class, colour, cell and size of every sticker were read back, and that nothing else was.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

from triptych.data.edits import spoil
from triptych.data.layout import DEFAULT_LAYOUT, FREE_LAYOUT
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker, check
from triptych.data.specs import random_spec
from triptych.errors import ConfigError
from triptych.model.config import SKETCH
from triptych.model.vae import Autoencoder
from triptych.rewards.sticker_judge import WEIGHTS, WorldJudge, verdict
from triptych.rewards.template_matching import TemplateJudge
from triptych.sft.sticker_detector import blur, facts, free_scene, through
from triptych.trace import Spec

LAYOUTS = {"centred": DEFAULT_LAYOUT, "free": FREE_LAYOUT}
WEAR = {"none": (0.0, 0.0), "blur 1": (1.0, 0.0), "noise 16": (0.0, 16.0), "blur 1, noise 16": (1.0, 16.0)}
AT_ONCE = 32  # pictures between two writes of --rows
NEAR = 2.0  # px: on strewn scenes a place is right within this distance, for a cell's border may run through a sticker
Eyes = Callable[[Tensor], list[Scene]]


@dataclass(frozen=True)
class JudgeReport:
    """Measure the world judge on fresh scenes, and the second judge on the first of them."""

    scenes: int = 2000
    templates: int = 200  # scenes for the second judge, which is far slower
    agreement: int = 2000  # pictures that both judges are shown
    rows: Path | None = None  # keep what they said of each there, and go on from what is there
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
    strewn = [free_scene(seed) for seed in seeds]
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


@dataclass(frozen=True)
class Case:
    """One picture that both judges are shown: right and flawed in turn, in both layouts, and worn in four ways."""

    index: int

    @property
    def layout(self) -> str:
        return tuple(LAYOUTS)[self.index % len(LAYOUTS)]

    @property
    def flawed(self) -> bool:
        return bool(self.index // 2 % 2)

    @property
    def wear(self) -> str:
        return tuple(WEAR)[self.index // 4 % len(WEAR)]

    def scene(self, spec: Spec, seed: int) -> Scene:
        scene = Scene.sample(spec, seed, LAYOUTS[self.layout])
        return spoil(scene, spec, seed, edits=1) if self.flawed else scene


def looked_at(cases: Sequence[Case], first: int, eyes: Mapping[str, Eyes]) -> list[dict[str, Any]]:
    """A row per case: what it is, and the score that the truth and each judge give it."""
    seeds = [first + case.index for case in cases]
    specs = [random_spec(seed) for seed in seeds]
    truth = [case.scene(spec, seed) for case, spec, seed in zip(cases, specs, seeds, strict=True)]
    images = torch.cat(
        [
            worn(image[None], *WEAR[case.wear], seed)
            for image, case, seed in zip(render(truth), cases, seeds, strict=True)
        ]
    )
    seen = {"truth": truth, **{name: each(images) for name, each in eyes.items()}}
    scores = {name: [verdict(*each).score for each in zip(scenes, specs, strict=True)] for name, scenes in seen.items()}
    return [
        {"index": case.index, "layout": case.layout, "flawed": case.flawed, "wear": case.wear}
        | {name: own[row] for name, own in scores.items()}
        for row, case in enumerate(cases)
    ]


def compared(eyes: Mapping[str, Eyes], options: JudgeReport, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of all cases. Those in `options.rows` are taken from there; new ones are added to it as they come."""
    done = kept_rows(options.rows, about)
    todo = [Case(index) for index in range(options.agreement) if index not in done]
    for start in range(0, len(todo), AT_ONCE):
        fresh = looked_at(todo[start : start + AT_ONCE], options.seed, eyes)
        done.update((row["index"], row) for row in fresh)
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
    return [done[index] for index in range(options.agreement)]


def kept_rows(path: Path | None, about: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Rows of an earlier run by index; a new file gets `about`, judges and seed, as its first line.

    Raises ConfigError for a file of other judges.
    """
    if path is None:
        return {}
    if not path.exists():
        path.write_text(json.dumps(about) + "\n")
        return {}
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    head, *rows = map(json.loads, whole.splitlines())
    if head != about:
        raise ConfigError(f"{path} holds rows of {head}, not of {dict(about)}: name a new file with --rows")
    path.write_bytes(whole)  # a killed run may have left the start of a line
    return {row["index"]: row for row in rows}


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far both judges agree, and how far each agrees with the truth, all told and by kind of picture.

    A verdict is met or not (a score of 1 or less). Kappa is Cohen's: agreement beyond what chance would give.
    """

    def share(hits: Sequence[bool]) -> float:
        return sum(hits) / len(hits)

    def agree(part: Sequence[dict[str, Any]], one: str, other: str) -> float:
        return share([(row[one] == 1) == (row[other] == 1) for row in part])

    figures = {"verdicts agree": agree(rows, "world", "templates")}
    low, high = wilson(figures["verdicts agree"], len(rows))
    figures |= {"verdicts agree, 95 % from": low, "verdicts agree, 95 % to": high}
    met = [share([row[name] == 1 for row in rows]) for name in ("world", "templates")]
    chance = met[0] * met[1] + (1 - met[0]) * (1 - met[1])
    figures["kappa"] = (figures["verdicts agree"] - chance) / (1 - chance)
    figures["scores equal"] = share([row["world"] == row["templates"] for row in rows])
    for kind in dict.fromkeys(kind for row in rows for kind in kinds(row)):
        part = [row for row in rows if kind in kinds(row)]
        for one, other in (("world", "templates"), ("world", "truth"), ("templates", "truth")):
            figures[f"{kind} ({len(part)}), {one} and {other}"] = agree(part, one, other)
    return figures


def kinds(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of pictures that a row is counted in."""
    rightness = "flawed pictures" if row["flawed"] else "right pictures"
    return ("all pictures", rightness, f"layout {row['layout']}", f"wear: {row['wear']}")


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which holds near 0 and 1 too."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def main(options: JudgeReport) -> None:
    torch.set_num_threads(1)
    world, templates = WorldJudge(options.device, options.weights), TemplateJudge()
    report: dict[str, dict[str, float]] = {}
    if options.scenes:
        report[f"{world.name}, {options.scenes} scenes"] = measure(world.scenes, options, options.scenes)
    if options.templates:
        report[f"{templates.name}, {options.templates} scenes"] = measure(templates.scenes, options, options.templates)
    if options.agreement:
        about = {"world": world.name, "templates": templates.name, "seed": options.seed}
        rows = compared({"world": world.scenes, "templates": templates.scenes}, options, about)
        report[f"{world.name} and {templates.name}, {len(rows)} pictures"] = agreement(rows)
    for judge, figures in report.items():
        print(judge)
        for figure, value in figures.items():
            print(f"  {figure:60s} {value:.4f}")
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(JudgeReport))
