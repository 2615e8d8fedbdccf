"""A step to one printed line, to one line of steps.jsonl, and to numbers for a tracker (apps/trackers.py).

Steps that are done again after a resume replace what was logged of them, so the log of a run that was killed is that of
one that was not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from triptych.errors import OutputError
from triptych.rl.train import Step

# What a line shows, where it was measured: name, title, format.
SHOWN = (
    ("v", "V", ".3f"),
    ("right", "right", ".2f"),
    ("improved", "up", ".2f"),
    ("worsened", "down", ".2f"),
    ("stop_precision", "stop p", ".2f"),
    ("stop_recall", "r", ".2f"),
    ("reward_text", "text", ".3f"),
    ("reward_picture", "picture", ".3f"),
    ("formed", "form", ".2f"),
    ("zero_spread_text", "flat", ".2f"),
    ("text_entropy", "entropy", ".2f"),
    ("text_kl", "kl", ".1e"),
    ("norm", "norm", ".2g"),
    ("samples_per_second", "/s", ".1f"),
)


def step_line(step: Step) -> str:
    """A step in one line, for people."""
    told = [f"{title} {step.metrics[name]:{form}}" for name, title, form in SHOWN if name in step.metrics]
    counts = {name: step.metrics.get(name, 0.0) for name in ("missing", "dropped", "skipped")}
    alarms = [f"{name} {count:.0f}" for name, count in counts.items() if count]
    return f"{step.index + 1:>6}/{step.total} {step.stage:<10} " + "  ".join(told + alarms)


def step_row(step: Step) -> dict[str, object]:
    """A step as JSON values."""
    return {"index": step.index, "stage": step.stage, **step.metrics}


def step_numbers(step: Step) -> dict[str, float]:
    """Every number of a step as `stage/name`, since what Reason and Refine measure are curves of their own."""
    return {f"{step.stage}/{name}": float(value) for name, value in step.metrics.items()}


class StepLog:
    """One JSON line per step."""

    def __init__(self, path: Path):
        self.path, self.begun = Path(path), False

    def add(self, step: Step) -> None:
        """Append a step. Raises OutputError if it cannot be written."""
        try:
            if not self.begun:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._forget(step.index)
                self.begun = True
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(step_row(step)) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; choose another --out") from error

    def _forget(self, index: int) -> None:
        """Drop what was logged from this step on, and a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                known = json.loads(text)
            except ValueError:
                continue
            if known["index"] < index:
                kept.append(text)
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(text + "\n" for text in kept), encoding="utf-8")
        os.replace(aside, self.path)
