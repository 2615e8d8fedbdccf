"""Judge the judges: both judges of stickers look at fresh pictures, right and flawed, clean and degraded.

`python examples/08_compare_judges.py 2000` gives the table of docs/judges.md (about six minutes on one core).
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from triptych import files
from triptych.data.edits import spoil
from triptych.data.layout import DEFAULT_LAYOUT, FREE_LAYOUT
from triptych.data.render import render
from triptych.data.scene import Scene
from triptych.data.specs import random_spec
from triptych.rewards.sticker_judge import WorldJudge, scene_verdict
from triptych.rewards.template_matching import TemplateJudge
from triptych.sft.sticker_detector import blur

LAYOUTS = {"centered": DEFAULT_LAYOUT, "free": FREE_LAYOUT}
# Standard deviations of a blur in px, and of noise in levels of 255.
WEAR = {"none": (0.0, 0.0), "blur 1": (1.0, 0.0), "noise 16": (0.0, 16.0), "blur 1, noise 16": (1.0, 16.0)}


def degrade(image: torch.Tensor, sigma: float, noise: float, seed: int) -> torch.Tensor:
    pixels = blur(image.permute(2, 0, 1)[None].float(), torch.full([1], sigma))
    pixels = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return pixels[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def main(policy, folder: Path, count: int = 16) -> dict[str, list[float]]:
    world, templates, rows = WorldJudge(), TemplateJudge(), {}
    for seed in range(count):
        layout, wear = list(LAYOUTS)[seed % 2], list(WEAR)[seed // 4 % 4]
        spec = random_spec(seed)
        scene, flawed = Scene.sample(spec, seed, LAYOUTS[layout]), seed // 2 % 2
        scene = spoil(scene, spec, seed) if flawed else scene
        image = degrade(render([scene])[0], *WEAR[wear], seed)
        met = [scene_verdict(each, spec).score == 1 for each in (*world.scenes([image]), *templates.scenes([image]))]
        kinds = ("all", "flawed" if flawed else "right", f"layout {layout}", f"wear: {wear}")
        for kind in kinds:
            outcome = (met[0] == met[1], met[0] != flawed, met[1] != flawed)
            rows.setdefault(kind, []).append(outcome)
    table = Table("pictures", "number", "both agree", "world is right", "templates is right")
    shares = {kind: torch.tensor(outcomes).float().mean(0).tolist() for kind, outcomes in rows.items()}
    for kind, values in shares.items():
        table.add_row(kind, str(len(rows[kind])), *(f"{value:.2%}" for value in values))
    Console().print(table)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "judges.json", shares)
    return shares


if __name__ == "__main__":
    main(None, Path("runs/example-8"), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
