"""A step as a printed line, as a line of steps.jsonl, and as numbers for a tracker (apps/trackers.py)."""

from __future__ import annotations

from triptych.rl.train import Step

# Columns of a printed line, each where it was measured: metric, title, format.
PRINTED_METRICS = (
    ("v", "V", ".3f"),
    ("right", "right", ".2f"),
    ("improved", "up", ".2f"),
    ("worsened", "down", ".2f"),
    ("stop_precision", "stop p", ".2f"),
    ("stop_recall", "r", ".2f"),
    ("reward_text", "text", ".3f"),
    ("reward_picture", "picture", ".3f"),
    ("formed", "form", ".2f"),
    ("zero_std_text", "flat", ".2f"),
    ("text_entropy", "entropy", ".2f"),
    ("text_kl", "kl", ".1e"),
    ("grad_norm", "norm", ".2g"),
    ("samples_per_second", "/s", ".1f"),
)


def step_line(step: Step) -> str:
    """A step in one line, for people."""
    values = [f"{title} {step.metrics[name]:{form}}" for name, title, form in PRINTED_METRICS if name in step.metrics]
    counts = {name: step.metrics.get(name, 0.0) for name in ("missing", "dropped", "skipped")}
    alarms = [f"{name} {count:.0f}" for name, count in counts.items() if count]
    return f"{step.index + 1:>6}/{step.total} {step.stage:<10} " + "  ".join(values + alarms)


def step_row(step: Step) -> dict[str, object]:
    """A step as JSON values."""
    return {"index": step.index, "stage": step.stage, **step.metrics}


def step_numbers(step: Step) -> dict[str, float]:
    """Every number of a step as `stage/name`, since what Reason and Refine measure are curves of their own."""
    return {f"{step.stage}/{name}": float(value) for name, value in step.metrics.items()}
