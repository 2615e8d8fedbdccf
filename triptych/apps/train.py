"""`triptych train`: Tree-RL with a bar, a line per step, and a line of steps.jsonl per step.

The recipes are `rl.recipes.RECIPES`; every field of theirs is an option, such as `--tree.selection uniform`. Between
steps the model is validated on held-out prompts (`--evaluate.every`, eval/validation.py), and rollouts become pages of
trees (`--pages.every`, tree_page.py); neither changes what is learned. The folder holds run.json, steps.jsonl,
evaluations.jsonl, fixed.safetensors, rollouts, checkpoints and, at the end, the folder `model`.
"""

from __future__ import annotations

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
from triptych.bounds import check_bounds
from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError
from triptych.eval.suites import dev_set
from triptych.eval.validation import FixedSet, ValidationConfig, ValidationLog, fixed_sets, validation_line
from triptych.files import JsonLog
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.rewards.judge import BrightnessJudge, Judge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES, tiny
from triptych.rl.train import Step, train
from triptych.rl.train_log import step_line, step_row
from triptych.rl.train_state import claim

_COLUMNS = (
    TextColumn("{task.description:<10}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("V {task.fields[v]:.3f}"),
    TimeRemainingColumn(),
)


def _of_stages(table: Mapping[str, str]) -> dict[str, str]:
    """Renames of options that Reason and Refine both have."""
    both = [
        (f"--{stage}.{old}", new and f"--{stage}.{new}") for stage in ("reason", "refine") for old, new in table.items()
    ]
    return dict(both)


# Options of 0.1 and their names of today, "" for those that are gone: cli.py answers with them.
RENAMED_OPTIONS = {
    **{"--every": "--save-every", "--micro": "--micro-batch-size", "--compute": "--dtype"},
    **{"--recompute": "--gradient-checkpointing", "--no-recompute": "--no-gradient-checkpointing"},
    **{"--vision": "--train-vision", "--no-vision": "--no-train-vision"},
    **{"--average": "--ema-decay", "--warmup": "--warmup-steps", "--halved": "--lr-decay-steps"},
    **{
        "--decay": "--weight-decay",
        "--norm": "--max-grad-norm",
        "--betas": "",
        "--eps": "",
        "--limits.window": "",
        "--limits.stroke-gap": "--limits.sde-logprob",
    },
    **{"--tree.parents": "--tree.selection", "--tree.right": "--tree.right-share"},
    **{"--replay.rate": "--sft-mix.lr", "--replay.own": "--sft-mix.max-self-generated"},
    **{f"--replay.lessons.{rows}": f"--sft-mix.{rows}" for rows in ("pictures", "edits", "words")},
    "--replay.lessons.plans": "--sft-mix.plan-share",
    "--replay.lessons.answers": "--sft-mix.answer-share",
    "--replay.lessons.own": "--sft-mix.self-generated-share",
    "--replay.lessons.mix.right": "--sft-mix.right-share",
    "--replay.lessons.": "",
    **_of_stages(
        {
            **{"width": "group-size", "per-text": "images-per-text", "updates": "inner-epochs", "plans": "plan-share"},
            **{
                f"{part}.{old}": f"{part}.{new}"
                for part in ("text", "picture")
                for old, new in (
                    *(
                        ("on", "train"),
                        ("no-on", "no-train"),
                        ("rate", "lr"),
                        ("clip", "clip-range"),
                        ("kl", "kl-coef"),
                    ),
                    *(("divide", "normalize-advantages"), ("no-divide", "no-normalize-advantages")),
                )
            },
            **{"text.weight": "picture.loss-weight", "picture.weight": "picture.loss-weight"},
            **{"picture.window": "picture.sde-window", "picture.strokes": "picture.num-sde-steps"},
            **{f"sampling.{beat}-points": "sampling.points" for beat in ("draw", "edit")},
            **{f"sampling.{beat}-renorm": "sampling.renorm" for beat in ("draw", "edit")},
            **{f"sampling.eta-{beat}": "sampling.eta" for beat in ("draw", "edit")},
            **{f"sampling.max-{text}": "sampling.max-tokens" for text in ("plan", "reflection")},
            **{"sampling.interval": "sampling.guidance-interval", "sampling.plan-temperature": "sampling.temperature"},
            **{"text.experts": "", "sampling.max-answer": "", "sampling.renorm-floor": "", "sampling.stochastic": ""},
        }
    ),
    **{"--refine.text.balance": "--tree.balance", "--refine.text.no-balance": "--tree.no-balance"},
    **{
        "--refine.plans": "",
        "--reason.text.balance": "",
        "--reason.text.no-balance": "",
        "--reason.sampling.image-guidance": "",
    },
    **{"told": "same-text", "average": "ema"},  # values of --refine.picture.baseline and --reference
}


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

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work."""
        self.config.check()
        check_bounds(self.evaluate, "evaluate")
        self.pages.check()


def run(options: Training, open_model: Any = weights.load) -> int:
    """Train to the end; returns the exit code."""
    options.check()
    config, out, console = options.config, options.out, open_console(as_json=False)
    bagel = _model(config, open_model)
    if bagel.config.world != "stickers":
        raise ConfigError(
            f"model={config.model} draws an open world, and judge={config.judge} knows stickers alone; "
            "from Python, give rl.train.train prompts and a judge of real pictures"
        )
    held_out = [prompt.spec for prompt in dev_set().prompts if prompt.spec is not None]
    prompts = StickerPrompts.without(config.seed, held_out, config.tags)
    judge = _judge(config)
    detect = judge.scenes if isinstance(judge, WorldJudge) else None
    log, pages = JsonLog(out / "steps.jsonl"), TreePages(out / "rollouts", options.pages, config)
    tracker = tracking(options.tracker, out, config)
    claim(out, config, bagel, options.resume)  # before anything is measured or written
    try:
        with tracker as track, Progress(*_COLUMNS, console=console, refresh_per_second=2) as progress:
            bar = progress.add_task("train", total=config.steps, v=0.0)

            def say(text: str) -> None:
                progress.console.print(text, highlight=False, soft_wrap=True)

            validator = Validator.of(options, bagel, say) if options.evaluate.every else None
            if validator is not None:
                progress.update(bar, description="held out")
                validator.measure(0, 0.0)
            first = True
            for step in train(bagel, prompts, judge, config, out, True, detect=detect):
                if first:  # steps after the checkpoint that was resumed from are taken again
                    log.keep(lambda row, index=step.index: row["index"] < index)
                    first = False
                log.append(step_row(step))
                track(step)
                say(step_line(step))
                pages.add(step)
                if validator is not None and validator.is_due(step):
                    progress.update(bar, description="held out")
                    validator.measure(step.index + 1, step.metrics["samples"])
                v = step.metrics.get("v", 0.0)
                progress.update(bar, completed=step.index + 1, v=v, description=step.stage)
            if validator is not None and (rows := log.read()):
                validator.measure(int(rows[-1]["index"]) + 1, rows[-1]["samples"], published=True)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; go on with --out {out} --resume", style="yellow")
        return 130
    weights.save(bagel, out / "model", replace=True)  # there is one where a run of fewer steps ended before
    console.print(f"{out / 'model'}/", style="bold", soft_wrap=True)
    return 0


@dataclass(frozen=True, eq=False)
class Validator:
    """Validates a model between the steps of its training, once for each step, and prints a line of it."""

    bagel: Bagel
    config: TrainConfig
    settings: ValidationConfig
    sets: Mapping[str, FixedSet]
    judge: WorldJudge
    evaluations: ValidationLog
    say: Callable[[str], None]

    @staticmethod
    def of(options: Training, bagel: Bagel, say: Callable[[str], None]) -> Validator:
        """Before the first step, while `bagel` is the model that the run starts from."""
        config, settings = options.config, options.evaluate
        judge = WorldJudge(device_of(config.device))
        with _precision(bagel, config):
            path = options.out / "fixed.safetensors"
            sets = fixed_sets(path, bagel, judge, settings)
        return Validator(bagel, config, settings, sets, judge, ValidationLog(options.out / "evaluations.jsonl"), say)

    def is_due(self, step: Step) -> bool:
        """Whether a step is one of every so many. The last one is not: its model is measured as it is published."""
        last = step.index + 1 == step.total or 0 < self.config.samples <= step.metrics["samples"]
        return not last and (step.index + 1) % self.settings.every == 0

    def measure(self, step: int, samples: float, published: bool = False) -> None:
        """Validate after so many steps, unless that was done."""
        if self.evaluations.has(step, self.settings, published):
            return
        with _precision(self.bagel, self.config):
            row = self.evaluations.validate(self.bagel, self.settings, self.sets, self.judge, step, samples, published)
        self.say(validation_line(row))


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
    """A recipe as it runs when no option says otherwise: validated eight times, or never if it is shorter than that."""
    every = config.steps // 8
    return Training(
        config=config, out=Path("runs") / f"train-{name}", evaluate=ValidationConfig(every), pages=Pages(every)
    )


def _precision(bagel: Bagel, config: TrainConfig) -> torch.autocast:
    """Validate in the precision of rollouts."""
    half = config.dtype == "bfloat16"
    return torch.autocast(bagel.device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def _model(config: TrainConfig, open_model: Any) -> Bagel:
    device = device_of(config.device)
    if config.model == "tiny":
        return tiny(config.seed).to(device)
    # Trained weights are float32, and --dtype is the precision of compute; weights under adapters are never trained.
    frozen = config.lora.rank and config.dtype == "bfloat16" and not config.train_vision
    return open_model(config.model, device, torch.bfloat16 if frozen else torch.float32)


def _judge(config: TrainConfig) -> Judge:
    return BrightnessJudge() if config.judge == "brightness" else WorldJudge(device_of(config.device))
