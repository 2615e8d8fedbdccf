"""`triptych train`: Tree-RL with a bar, a line per step, and a line of steps.jsonl per step.

The recipes are `rl.recipes.RECIPES`; every field of theirs is an option, such as `--tree.parents uniform`. The folder
holds run.json, steps.jsonl, checkpoints and, at the end, the folder `model`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, arg, subcommand

from triptych.apps.inputs import device_of
from triptych.apps.terminal import open_console
from triptych.errors import ConfigError
from triptych.eval.suites import rehearsal
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.rewards.brightness import BrightnessJudge
from triptych.rewards.judge import Judge
from triptych.rewards.world import WorldJudge
from triptych.rl import log
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES, tiny
from triptych.rl.stream import StickerPrompts
from triptych.rl.train import train

COLUMNS = (
    TextColumn("{task.description:<10}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("V {task.fields[v]:.3f}"),
    TimeRemainingColumn(),
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Tree-RL by one recipe."""

    config: Annotated[TrainConfig, arg(name="")]
    out: Path
    """Where checkpoints, the log and, at the end, the folder `model` go."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on exactly where the run in --out was left."""

    def run(self, open_model: Any = weights.load) -> int:
        """Train to the end; returns the exit code."""
        config, console = self.config, open_console(as_json=False)
        config.check()
        bagel = _model(config, open_model)
        if bagel.config.world != "stickers":
            raise ConfigError(
                f"model={config.model} draws an open world, and judge={config.judge} knows stickers alone; "
                "from Python, give rl.train.train prompts and a judge of real pictures"
            )
        held_out = [prompt.spec for prompt in rehearsal().prompts if prompt.spec is not None]
        prompts = StickerPrompts.without(config.seed, held_out, config.tags)
        judge = _judge(config)
        find = judge.scenes if isinstance(judge, WorldJudge) else None
        journal = log.StepLog(self.out / "steps.jsonl")
        try:
            with Progress(*COLUMNS, console=console, refresh_per_second=2) as progress:
                bar = progress.add_task("train", total=config.steps, v=0.0)
                for step in train(bagel, prompts, judge, config, self.out, self.resume, find=find):
                    journal.add(step)
                    progress.console.print(log.line(step), highlight=False, soft_wrap=True)
                    shown = step.metrics.get("v", 0.0)
                    progress.update(bar, completed=step.index + 1, v=shown, description=step.stage)
        except KeyboardInterrupt:
            console.print(f"\ninterrupted; go on with --out {self.out} --resume", style="yellow")
            return 130
        publish(bagel, self.out / "model")
        console.print(f"{self.out / 'model'}/", style="bold", soft_wrap=True)
        return 0


def publish(bagel: Bagel, folder: Path) -> None:
    """Write the trained model as a checkpoint folder, in place of one from an earlier end of the run."""
    fresh = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    weights.save(bagel, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def parse(arguments: list[str]) -> Training:
    """The training that a command line asks for: a recipe's name, then options that override its fields."""
    recipes = tuple(
        Annotated[
            Training,
            subcommand(name, default=Training(config=config, out=Path("runs") / f"train-{name}"), description=about),
        ]
        for name, (config, about) in RECIPES.items()
    )
    union = Union[recipes]  # noqa: UP007  (built from a table)
    about = "Train a model with Tree-RL; every field of a recipe is an option."
    return tyro.cli(union, args=arguments, prog="triptych train", description=about)  # pyright: ignore


def _model(config: TrainConfig, open_model: Any) -> Bagel:
    device = device_of(config.device)
    if config.model == "tiny":
        return tiny(config.seed).to(device)
    return open_model(config.model, device, torch.float32)  # master weights; --compute is the precision of the work


def _judge(config: TrainConfig) -> Judge:
    return BrightnessJudge() if config.judge == "brightness" else WorldJudge(device_of(config.device))
