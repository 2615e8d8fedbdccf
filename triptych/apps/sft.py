"""`triptych lessons`: teach a model, with a bar per stage and a line of steps.jsonl per update.

The recipes are `rl.lessons.RECIPES`; every field of theirs is an option, such as `--model.steps 9000`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, arg, subcommand

from triptych.apps.arguments import device_of
from triptych.apps.output import naming_errors
from triptych.apps.terminal import open_console
from triptych.sft.curriculum import SFT_RECIPES, SFTConfig, SFTStep, run_sft

COLUMNS = (
    TextColumn("{task.description:<12}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("loss {task.fields[loss]:.4f}"),
    TimeRemainingColumn(),
)


ABOUT = {"sketch": "The recipe of the packaged weights.", "debug": "Two steps of everything, to see that it runs."}


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """Lessons by one recipe."""

    config: Annotated[SFTConfig, arg(name="")]
    out: Path
    """Where checkpoints, the log and, at the end, the folder `model` go."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on exactly where the lessons in --out were left."""

    def run(self, open_model: Any = None) -> int:
        """Teach to the end; returns the exit code."""
        device_of(self.config.device)  # an unknown one is refused before there is a folder
        log, console = StepLog(self.out / "steps.jsonl"), open_console(as_json=False)
        bars: dict[str, TaskID] = {}
        try:
            with Progress(*COLUMNS, console=console, refresh_per_second=2) as progress:
                for step in run_sft(self.config, self.out, self.resume):
                    log.add(step)
                    if step.stage not in bars:
                        bars[step.stage] = progress.add_task(step.stage, total=step.total, loss=step.loss)
                    progress.update(bars[step.stage], completed=step.index + 1, loss=step.loss)
        except KeyboardInterrupt:
            console.print(f"\ninterrupted; go on with --out {self.out} --resume", style="yellow")
            return 130
        console.print(f"{self.out / 'model'}/", style="bold", soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> SFTOptions:
    """The course that a command line asks for: a recipe's name, then options that override its fields."""
    recipes = tuple(
        Annotated[
            SFTOptions,
            subcommand(
                name, default=SFTOptions(config=config, out=Path("runs") / f"lessons-{name}"), description=ABOUT[name]
            ),
        ]
        for name, config in SFT_RECIPES.items()
    )
    union = Union[recipes]  # noqa: UP007  (built from a table)
    about = "Teach a model from nothing; every field of a recipe is an option."
    return tyro.cli(union, args=arguments, prog="triptych lessons", description=about)  # pyright: ignore


class StepLog:
    """One JSON line per update. Steps that are taught again after a resume replace what was logged of them."""

    def __init__(self, path: Path):
        self.path = path
        self.stages: set[str] = set()

    def add(self, step: SFTStep) -> None:
        """Append a step. Raises OutputError if it cannot be written."""
        with naming_errors(self.path):
            if step.stage not in self.stages:
                self.stages.add(step.stage)
                self._forget(step)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")

    def _forget(self, step: SFTStep) -> None:
        """Drop what was logged of this stage from this step on, and a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                old = json.loads(line)
            except ValueError:
                continue
            if old["stage"] != step.stage or old["index"] < step.index:
                kept.append(line)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
