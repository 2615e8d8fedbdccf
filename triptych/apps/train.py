"""`triptych train`: Tree-RL with a bar, a line per step, and a line of steps.jsonl per step.

The recipes are `rl.recipes.RECIPES`; every field of theirs is an option, such as `--tree.parents uniform`. Between
steps the model is evaluated on held-out prompts (`--evaluate.every`, eval/validation.py), and rollouts become pages of trees
(`--pages.every`, rollouts.py); neither changes what is learnt. The folder holds run.json, steps.jsonl,
evaluations.jsonl, fixed.safetensors, rollouts, checkpoints and, at the end, the folder `model`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union

import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, arg, subcommand

from triptych.apps.arguments import device_of
from triptych.apps.terminal import open_console
from triptych.apps.trackers import Kind, tracking
from triptych.apps.tree_page import Pages, TreePages
from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError
from triptych.eval.suites import rehearsal
from triptych.eval.validation import FixedPicture, Validation, ValidationConfig, fixed_set, line
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.rewards.judge import BrightnessJudge, Judge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl import train_log
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES, tiny
from triptych.rl.train import Step, train
from triptych.rl.train_state import claim
from triptych.sft.checkpoint import anew

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
    evaluate: ValidationConfig = field(default_factory=ValidationConfig)
    pages: Pages = field(default_factory=Pages)
    tracker: Kind = "none"
    """Where the numbers of steps.jsonl go too."""

    def run(self, open_model: Any = weights.load) -> int:
        """Train to the end; returns the exit code."""
        config, console = self.config, open_console(as_json=False)
        config.check()
        self.evaluate.check()
        self.pages.check()
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
        journal, album = (
            train_log.StepLog(self.out / "steps.jsonl"),
            TreePages(self.out / "rollouts", self.pages, config),
        )
        tracker = tracking(self.tracker, self.out, config)
        claim(self.out, config, bagel, self.resume)  # before anything is measured or written
        try:
            with tracker as track, Progress(*COLUMNS, console=console, refresh_per_second=2) as progress:
                bar = progress.add_task("train", total=config.steps, v=0.0)

                def tell(text: str) -> None:
                    progress.console.print(text, highlight=False, soft_wrap=True)

                watching = Watching.of(self, bagel, tell) if self.evaluate.every else None
                if watching is not None:
                    progress.update(bar, description="held out")
                    watching.look(0, 0.0)
                for step in train(bagel, prompts, judge, config, self.out, True, find=find):
                    journal.add(step)
                    track(step)
                    tell(train_log.step_line(step))
                    album.add(step)
                    if watching is not None and watching.due(step):
                        progress.update(bar, description="held out")
                        watching.look(step.index + 1, step.metrics["samples"])
                    shown = step.metrics.get("v", 0.0)
                    progress.update(bar, completed=step.index + 1, v=shown, description=step.stage)
                if watching is not None and (last := newest(journal.path)) is not None:
                    watching.look(int(last["index"]) + 1, last["samples"], published=True)
        except KeyboardInterrupt:
            console.print(f"\ninterrupted; go on with --out {self.out} --resume", style="yellow")
            return 130
        publish(bagel, self.out / "model")
        console.print(f"{self.out / 'model'}/", style="bold", soft_wrap=True)
        return 0


@dataclass(frozen=True, eq=False)
class Watching:
    """Evaluates a model between the steps of its training, once for each step, and tells a line of it."""

    bagel: Bagel
    config: TrainConfig
    watch: ValidationConfig
    sets: Mapping[str, FixedPicture]
    judge: WorldJudge
    evaluations: Validation
    tell: Callable[[str], None]

    @staticmethod
    def of(training: Training, bagel: Bagel, tell: Callable[[str], None]) -> Watching:
        """Before the first step, while `bagel` is the model that the run starts from."""
        config, watch = training.config, training.evaluate
        judge = WorldJudge(device_of(config.device))
        with _precision(bagel, config):
            path = training.out / "fixed.safetensors"
            sets = fixed_set(path, bagel, judge, watch.fixed, watch.own, watch.seed, watch.batch)
        return Watching(bagel, config, watch, sets, judge, Validation(training.out / "evaluations.jsonl"), tell)

    def due(self, step: Step) -> bool:
        """Whether a step is one of every so many. The last one is not: its model is measured as it is published."""
        over = step.index + 1 == step.total or 0 < self.config.samples <= step.metrics["samples"]
        return not over and (step.index + 1) % self.watch.every == 0

    def look(self, step: int, samples: float, published: bool = False) -> None:
        """Evaluate after so many steps, unless that was done."""
        if self.evaluations.has(step, self.watch, published):
            return
        with _precision(self.bagel, self.config):
            row = self.evaluations.evaluate(self.bagel, self.watch, self.sets, self.judge, step, samples, published)
        self.tell(line(row))


def publish(bagel: Bagel, folder: Path) -> None:
    """Write the trained model as a checkpoint folder, in place of one from an earlier end of the run."""
    with anew(folder) as fresh:
        weights.save(bagel, fresh)


def newest(path: Path) -> dict[str, Any] | None:
    """The last line of a steps.jsonl, or None where there is none yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None


def parse(arguments: list[str]) -> Training:
    """The training that a command line asks for: a recipe's name, then options that override its fields."""
    recipes = tuple(
        Annotated[Training, subcommand(name, default=_default(name, config), description=about)]
        for name, (config, about) in RECIPES.items()
    )
    union = Union[recipes]  # noqa: UP007  (built from a table)
    about = "Train a model with Tree-RL; every field of a recipe is an option."
    return tyro.cli(union, args=arguments, prog="triptych train", description=about)  # pyright: ignore


def _default(name: str, config: TrainConfig) -> Training:
    """A recipe as it is run when no option says otherwise: looked at eight times, or not at all if it is that short."""
    every = config.steps // 8
    return Training(
        config=config, out=Path("runs") / f"train-{name}", evaluate=ValidationConfig(every), pages=Pages(every)
    )


def _precision(bagel: Bagel, config: TrainConfig) -> torch.autocast:
    """Evaluate in the precision of rollouts."""
    half = config.compute == "bfloat16"
    return torch.autocast(bagel.device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def _model(config: TrainConfig, open_model: Any) -> Bagel:
    device = device_of(config.device)
    if config.model == "tiny":
        return tiny(config.seed).to(device)
    # What learns is held in float32, and --compute is the precision of the work; weights under adapters only work.
    frozen = config.lora.rank and config.compute == "bfloat16" and not config.vision
    return open_model(config.model, device, torch.bfloat16 if frozen else torch.float32)


def _judge(config: TrainConfig) -> Judge:
    return BrightnessJudge() if config.judge == "brightness" else WorldJudge(device_of(config.device))
