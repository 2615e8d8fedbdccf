"""`triptych sft`: supervised fine-tuning by a recipe, with a bar per stage and a line of steps.jsonl per update.

The recipes are `sft.curriculum.SFT_RECIPES`; every field of theirs is an option, such as `--joint.steps 9000`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TimeRemainingColumn
from tyro.conf import Fixed, FlagCreatePairsOff, Suppress, arg

from triptych.apps import recipe_file
from triptych.apps.arguments import device_of
from triptych.apps.console import open_console, progress_bar, say, text_column
from triptych.files import JsonLog, locked
from triptych.sft.curriculum import SFT_RECIPES
from triptych.sft.optim import SFTStep
from triptych.sft.run import LOG, RecipeConfig, run_sft
from triptych.signals import held

# Options of 0.1 and their names of today, "" for those that are gone: cli.py answers with them.
_STAGES = {
    **{"autoencoder": "vae", "eyes": "vision", "connector": "connector", "model": "joint", "decoder": "decoder"},
    **{"own": "self-generated", "draw": "gen", "polish": "final-decoder"},
}
_FIELDS = {
    **{"rate": "lr", "matrix-rate": "muon-lr", "warmup": "warmup-steps", "average": "ema-decay"},
    **{"clip": "max-grad-norm", "few": "few-colors", "plans": "plan-share", "answers": "answer-share"},
    **{"own": "self-generated-share", "recall": "previous-token-weight"},
    **dict.fromkeys(
        ("noises", "focus", "time-shift", "drop-text", "drop-image", "strewn", "unrelated", "loudness"), ""
    ),
    **{"mix.right": "mix.correct-pictures", "mix.spoiled": "mix.repairs", "mix.fits": "mix.fit-questions"},
    "mix.no-listing": "mix.no-list-first",
    **{"mix.assorted": "mix.random-scenes", "mix.describes": "mix.descriptions", "mix.listing": "mix.list-first"},
    **{"mix.listed": "mix.text-only-questions", "mix.questions": "mix.questions-per-picture"},
    **{"mix.bare": "mix.drop-prefix", "mix.hard": "mix.hard-prompts", "mix.whites": "mix.white-weight"},
    **{"mix.mistakes": "mix.max-mistakes", "mix.scrambled": "mix.shuffled-scenes"},
    **{"mix.unseen": "mix.text-only-reflections", "mix.at-once.": "mix.one-shot-layout."},
}
RENAMED_OPTIONS = {
    **{"--every": "--save-every", "--hands": "--threads", "--workers": "--num-workers"},
    **{"--own-pictures": "--self-generated.images", "--own-guidance": "--self-generated.guidance"},
    **{f"--{old}.": f"--{new}." for old, new in _STAGES.items() if old != new},
    **{
        f"--{old}.{field}": name and f"--{new}.{name}"
        for old, new in _STAGES.items()
        for field, name in _FIELDS.items()
    },
    # They did nothing: only one stage has self-generated samples.
    **dict.fromkeys(("--model.own", "--draw.own", "--joint.self-generated-share", "--gen.self-generated-share"), ""),
}


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """Supervised fine-tuning by one recipe."""

    config: Annotated[RecipeConfig, arg(name="")]
    out: Path
    """Where checkpoints, the log and, at the end, the result go."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on exactly where the run in --out was left."""
    settings: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """File of settings, as of --print-config; what the command line says counts more."""
    print_config: FlagCreatePairsOff[bool] = False
    """Print all settings as YAML for --config, and do nothing else."""
    recipe: Suppress[Fixed[str]] = ""


def run(options: SFTOptions, open_model: Any = None) -> int:
    """Train to the end; returns the exit code."""
    config, out = options.config, options.out
    if options.print_config:
        config.check()
        say(recipe_file.recipe_yaml(options.recipe, options).rstrip())
        return 0
    device_of(config.device)  # an unknown one is refused before there is a folder
    log, console = StepLog(out / LOG), open_console(as_json=False)
    bars: dict[str, TaskID] = {}
    try:
        with locked(out), progress_bar(console, *_columns()) as progress:
            for step in (steps := run_sft(config, out, options.resume)):
                try:
                    with held() as deliver:  # a line of the log is written, or the state behind it is not saved
                        log.add(step)
                    deliver()
                    if step.stage not in bars:
                        bars[step.stage] = progress.add_task(step.stage, total=step.total, loss=step.loss)
                    progress.update(bars[step.stage], completed=step.index + 1, loss=step.loss)
                except KeyboardInterrupt as stop:
                    steps.throw(stop)  # it saves the state after this update, and passes it on
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; go on with --out {out} --resume", style="yellow", soft_wrap=True)
        return 130  # 128 + SIGINT, as a shell counts it
    if options.resume and not bars:
        console.print("finished before: there is nothing left to train, and what is published stays", soft_wrap=True)
    console.print(str(out / config.result), style="bold", soft_wrap=True)
    return 0


def _columns() -> list[ProgressColumn]:
    return [
        text_column("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        text_column("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    ]


class StepLog:
    """One JSON line per update. Updates that are done again after a resume replace what was logged of them."""

    def __init__(self, path: Path):
        self._log = JsonLog(path)
        self._stages: set[str] = set()

    def add(self, step: SFTStep) -> None:
        """Append an update. Raises OutputError if it cannot be written."""
        if step.stage not in self._stages:
            self._stages.add(step.stage)
            # A resume repeats the updates behind the last checkpoint; their first lines go.
            self._log.keep(lambda record: record["stage"] != step.stage or record["index"] < step.index)
        self._log.append(asdict(step))


def parse(arguments: list[str]) -> SFTOptions:
    """The run that a command line asks for: a recipe's name, then options that override its fields."""
    recipes = {
        name: (SFTOptions(config=config, recipe=name, out=Path("runs") / f"sft-{name}"), about)
        for name, (config, about) in SFT_RECIPES.items()
    }
    about = "Supervised fine-tuning from nothing; every field of a recipe is an option."
    return recipe_file.parse(SFTOptions, arguments, "sft", about, recipes)
