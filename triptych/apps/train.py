"""`triptych train`: Tree-RL with a bar, a line per step, and a line of steps.jsonl per step.

The recipes are `rl.recipes.RECIPES`; every field of theirs is an option, such as `--tree.selection uniform`. Between
steps the model is validated on held-out prompts (`--evaluate.every`, eval/validation.py), and rollouts become pages of
trees (`--pages.every`, tree_page.py); neither changes what is learned. The folder holds run.json, steps.jsonl,
evaluations.jsonl, fixed.safetensors, rollouts, checkpoints and, at the end, the folder `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
from tyro.conf import Fixed, FlagCreatePairsOff, Suppress, arg

from triptych.apps import recipe_file
from triptych.apps.arguments import device_of, set_threads
from triptych.apps.console import open_console, progress_bar, say, text_column
from triptych.apps.judge_choice import check_vlm, open_judge
from triptych.apps.options import STICKER_JUDGES, VlmChoice
from triptych.apps.trackers import Kind, tracking
from triptych.apps.tree_page import Pages, TreePages
from triptych.bounds import NonNegativeFloat, Share, check_bounds
from triptych.data.prompt_checks import understand
from triptych.data.prompt_files import read_entries
from triptych.data.prompt_stream import ListedPrompts, prompts_fingerprint, split
from triptych.data.specs import Prompts, StickerPrompts
from triptych.errors import ConfigError, JudgeUnavailableError, OutputError
from triptych.eval.benchmark import Benchmark
from triptych.eval.suites import dev_set
from triptych.eval.tiif import load_tiif
from triptych.eval.validation import FixedSet, ValidationConfig, ValidationLog, fixed_sets, validation_line
from triptych.files import JsonLog, check_present, locked, write_json
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import BagelConfig
from triptych.rewards.judge import BrightnessJudge, Judge
from triptych.rewards.patience import PatientJudge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rewards.vlm_prompts import Checks
from triptych.rl.config import TrainConfig
from triptych.rl.recipes import RECIPES, tiny
from triptych.rl.train import Step, train
from triptych.rl.train_log import step_line, step_row
from triptych.rl.train_state import PUBLISHED, claim, published
from triptych.signals import held
from triptych.trace import Prompt

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later


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
    base: str = ""
    """Model from which --model was fine-tuned: parts and files that its checkpoint leaves out are taken from there."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on exactly where the run in --out was left."""
    settings: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """File of settings, as of --print-config; what the command line says counts more."""
    print_config: FlagCreatePairsOff[bool] = False
    """Print all settings as YAML for --config, and do nothing else."""
    recipe: Suppress[Fixed[str]] = ""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """Prompts to train on: a file as of `draw --prompts`, or your copy of TIIF-Bench; None is the recipe's own."""
    held_out: Share = 0.1
    """Share of the file's prompts that is not trained on, but validated on."""
    vlm: Annotated[VlmChoice, arg(name="")] = field(default_factory=VlmChoice)
    judge_patience: NonNegativeFloat = 3600.0
    """Seconds to wait for a judge's server that is down; then the run checkpoints and ends with exit code 75."""
    evaluate: ValidationConfig = field(default_factory=ValidationConfig)
    pages: Pages = field(default_factory=Pages)
    tracker: Kind = "none"
    """Where the numbers of steps.jsonl go too."""

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work."""
        self.config.check()
        check_bounds(self.vlm)
        check_bounds(self.evaluate, "evaluate")
        self.pages.check()
        check_bounds(self)  # what is left; the records above have other names on the command line than here
        if self.config.judge != "brightness":
            check_vlm(self.vlm, self.config.judge)
        if self.vlm.record is not None and self.vlm.record.exists() and not self.resume:
            raise OutputError(f"{self.vlm.record} exists; expected a new file: choose another --record")


def run(options: Training, open_model: Any = weights.load) -> int:
    """Train to the end; returns the exit code."""
    if options.print_config:
        options.config.check()
        say(recipe_file.recipe_yaml(options.recipe, options).rstrip())
        return 0
    options.check()
    config, out, console = options.config, options.out, open_console(as_json=False)
    source = PromptSource.of(options)
    bagel = _model(config, options.base, open_model)
    set_threads(bagel, config.threads)
    world = bagel.config.world
    if (world == "stickers") != (config.judge in (*STICKER_JUDGES, "brightness")):
        raise ConfigError(
            f"model={config.model} draws {'stickers' if world == 'stickers' else 'an open world'}, and --judge "
            f"{config.judge} does not look at such pictures; expected --judge "
            f"{'world or templates' if world == 'stickers' else 'vlm or detector'}"
        )
    prompts, held_out = source.understood(bagel.config)
    judge = _judge(options, source, console)
    facts = {"judge_name": judge.name, **source.facts}
    tracker = tracking(options.tracker, out, config)  # before anything is written, since it may not be installed
    try:
        with locked(out):
            claim(out, config, bagel, options.resume, facts)
            done = published(out, config)
            if done is not None and _is_validated(options, done):
                console.print(f"finished before, after {done} steps: there is nothing left to train", soft_wrap=True)
            else:
                with tracker as track, progress_bar(console, *_columns()) as progress:
                    done = _train(options, bagel, judge, prompts, held_out, track, progress)
                check_present(out / "run.json")
                weights.save(bagel, out / "model", replace=True)  # there is one where a run of fewer steps ended before
                write_json(out / PUBLISHED, {"step": done})
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; go on with --out {out} --resume", style="yellow", soft_wrap=True)
        return 130
    except JudgeUnavailableError as error:
        say(f"triptych: {error}; go on with --out {out} --resume", error=True)
        return EXIT_TRY_AGAIN
    console.print(f"{out / 'model'}/", style="bold", soft_wrap=True)
    return 0


def _train(
    options: Training,
    bagel: Bagel,
    judge: Judge,
    prompts: Prompts,
    held_out: Benchmark,
    track: Callable[[Step], None],
    progress: Progress,
) -> int:
    """Train to the end, or from where the run was left; returns how many steps it has taken in all."""
    config, out = options.config, options.out
    log, pages = JsonLog(out / "steps.jsonl"), TreePages(out / "rollouts", options.pages, config)
    detect = judge.scenes if isinstance(judge, WorldJudge) else None
    bar = progress.add_task("train", total=config.steps, v=0.0)

    def tell(text: str) -> None:
        progress.console.print(text, soft_wrap=True)  # above the bar

    validator = Validator.of(options, bagel, judge, held_out, tell) if options.evaluate.every else None
    if validator is not None:
        progress.update(bar, description="held out")
        validator.measure(0, 0.0)
    steps = train(bagel, prompts, judge, config, out, True, detect=detect)
    for number, step in enumerate(steps):
        try:
            with held() as deliver:  # a step is in the log before the state behind it is saved
                if not number:  # steps after the checkpoint that was resumed from are taken again
                    log.keep(lambda row, index=step.index: row["index"] < index)
                log.append(step_row(step))
                track(step)
                tell(step_line(step))
                pages.add(step)
            deliver()
            if validator is not None and validator.is_due(step):
                progress.update(bar, description="held out")
                validator.measure(step.index + 1, step.metrics["samples"])
        except KeyboardInterrupt as stop:
            steps.throw(stop)  # it saves the state behind this step, and passes it on
        progress.update(bar, completed=step.index + 1, v=step.metrics.get("v", 0.0), description=step.stage)
    rows = log.read()
    done = int(rows[-1]["index"]) + 1 if rows else 0
    if validator is not None and rows:
        validator.measure(done, rows[-1]["samples"], published=True)
    return done


def _is_validated(options: Training, step: int) -> bool:
    """Whether the published model was validated as these options ask for, if they do."""
    evaluations = ValidationLog(options.out / "evaluations.jsonl")
    return not options.evaluate.every or evaluations.has(step, options.evaluate, published=True)


def _columns() -> list[ProgressColumn]:
    return [
        text_column("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        text_column("V {task.fields[v]:.3f}"),
        TimeRemainingColumn(),
    ]


@dataclass(frozen=True, eq=False)
class Validator:
    """Validates a model between the steps of its training, once for each step, and prints a line of it."""

    bagel: Bagel
    config: TrainConfig
    settings: ValidationConfig
    sets: Mapping[str, FixedSet]
    judge: Judge
    held_out: Benchmark
    evaluations: ValidationLog
    say: Callable[[str], None]

    @staticmethod
    def of(options: Training, bagel: Bagel, judge: Judge, held_out: Benchmark, say: Callable[[str], None]) -> Validator:
        """Before the first step, while `bagel` is the model that the run starts from.

        In the sticker world the trained detector judges, whatever rewards are; elsewhere the judge of the rewards.
        """
        config, settings = options.config, options.evaluate
        stickers = bagel.config.world == "stickers"
        judge = WorldJudge(device_of(config.device), strangers=False) if stickers else judge
        with _precision(bagel, config):
            path = options.out / "fixed.safetensors"
            sets = fixed_sets(path, bagel, judge, settings, held_out, rendered=stickers)
        log = ValidationLog(options.out / "evaluations.jsonl")
        return Validator(bagel, config, settings, sets, judge, held_out, log, say)

    def is_due(self, step: Step) -> bool:
        """Whether a step is one of every so many. The last one is not: its model is measured as it is published."""
        last = step.index + 1 == step.total or 0 < self.config.samples <= step.metrics["samples"]
        return not last and (step.index + 1) % self.settings.every == 0

    def measure(self, step: int, samples: float, published: bool = False) -> None:
        """Validate after so many steps, unless that was done."""
        if self.evaluations.has(step, self.settings, published):
            return
        with _precision(self.bagel, self.config):
            row = self.evaluations.validate(
                self.bagel, self.settings, self.sets, self.judge, step, samples, published, self.held_out
            )
        self.say(validation_line(row))


def parse(arguments: list[str]) -> Training:
    """The training that a command line asks for: a recipe's name, then options that override its fields."""
    recipes = {name: (_default(name, config), about) for name, (config, about) in RECIPES.items()}
    about = "Train a model with Tree-RL; every field of a recipe is an option."
    return recipe_file.parse(Training, arguments, "train", about, recipes)


def _default(name: str, config: TrainConfig) -> Training:
    """A recipe as it runs when no option says otherwise: validated eight times, or never if it is shorter than that."""
    every = config.steps // 8
    out = Path("runs") / f"train-{name}"
    return Training(config=config, recipe=name, out=out, evaluate=ValidationConfig(every), pages=Pages(every))


def _precision(bagel: Bagel, config: TrainConfig) -> torch.autocast:
    """Validate in the precision of rollouts."""
    half = config.dtype == "bfloat16"
    return torch.autocast(bagel.device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def _model(config: TrainConfig, base: str, open_model: Any) -> Bagel:
    device = device_of(config.device)
    if config.model == "tiny":
        return tiny(config.seed).to(device)
    # Trained weights are float32, and --dtype is the precision of compute; weights under adapters are never trained.
    frozen = config.lora.rank and config.dtype == "bfloat16" and not config.train_vision
    dtype = torch.bfloat16 if frozen else torch.float32
    return open_model(config.model, device, dtype, *filter(None, [base]))


def _judge(options: Training, source: PromptSource, console: Console) -> Judge:
    """The judge of rewards; one behind a server is waited for while that is down."""
    config = options.config
    if config.judge == "brightness":
        return BrightnessJudge()
    if config.judge == "world":
        return WorldJudge(device_of(config.device), strangers=False)
    judge = open_judge(options.vlm, config.judge, source.checklists, config.device)
    if config.judge != "vlm":
        return judge

    def say(text: str) -> None:
        console.print(text, style="yellow", soft_wrap=True)

    return PatientJudge(judge, options.judge_patience, say)


@dataclass(frozen=True, eq=False)
class PromptSource:
    """Where the prompts of a run come from: its file, of which a share is held out, or the endless set of specs."""

    config: TrainConfig
    training: tuple[Prompt, ...] = ()  # of a file
    held_out: tuple[Prompt, ...] = ()
    checklists: Mapping[tuple[str, str], Checks] | None = None  # questions of TIIF, by source and text

    @staticmethod
    def of(options: Training) -> PromptSource:
        """Read before any model is loaded. Raises ConfigError or PromptError for what cannot be trained on."""
        config = options.config
        if options.prompts is None:
            if options.vlm.ask == "tiif":
                raise ConfigError("--ask tiif needs --prompts: your own copy of TIIF-Bench's prompts and questions")
            return PromptSource(config)
        checklists = None
        if options.vlm.ask == "tiif" or _is_tiif(options.prompts):
            suite = load_tiif(options.prompts)
            prompts, checklists = list(suite.prompts), suite.checks
        else:
            prompts = [entry.prompt for entry in read_entries(options.prompts)]
        if config.tags:
            prompts = [prompt for prompt in prompts if prompt.spec is not None and prompt.spec.tag in config.tags]
        if config.judge == "detector" and any(prompt.spec is None for prompt in prompts):
            raise ConfigError(
                f"{options.prompts}: GenEval's detector needs prompts in its layout, with tag and include"
            )
        training, held_out = split(prompts, options.held_out)
        if not training:
            raise ConfigError(
                f"{options.prompts}: no prompt is left to train on; lower --held-out, or name other --tags"
            )
        return PromptSource(config, tuple(training), tuple(held_out), checklists)

    @property
    def facts(self) -> dict[str, str]:
        """What of it must be the same in a resumed run."""
        return {"prompts": prompts_fingerprint((*self.training, *self.held_out))} if self.training else {}

    def understood(self, config: BagelConfig) -> tuple[Prompts, Benchmark]:
        """The stream to train on and the prompts to validate on, as a model of that config is given them."""
        if not self.training:
            suite = dev_set()
            specs = [prompt.spec for prompt in suite.prompts if prompt.spec is not None]
            return StickerPrompts.without(self.config.seed, specs, self.config.tags), suite
        training = tuple(understand(prompt, config.world) for prompt in self.training)
        held_out = tuple(understand(prompt, config.world) for prompt in self.held_out or self.training[:1])
        return ListedPrompts(training, self.config.seed), Benchmark("held out", held_out, {})


def _is_tiif(path: Path) -> bool:
    """Whether a file or folder holds TIIF-Bench's prompts: their lines have lists of questions."""
    if path.is_dir():
        return True
    with suppress(OSError), path.open("rb") as file:
        return b'"yn_question_list"' in file.read(1 << 16)
    return False
