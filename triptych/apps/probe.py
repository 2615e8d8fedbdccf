"""`triptych probe`: every skill of the loop by itself, against the ground truth of the sticker world."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

from rich.table import Table

from triptych.apps.arguments import load_model, sampling_of
from triptych.apps.commands import ProbeOptions
from triptych.apps.console import open_console
from triptych.apps.judge_choice import sticker_judge
from triptych.apps.options import OpenModel
from triptych.errors import ConfigError
from triptych.eval.probes import ProbeScore, run_probes
from triptych.eval.suites import GENEVAL_PLUS, dev_set


def run(options: ProbeOptions, open_model: OpenModel) -> int:
    """Print each score once it is known; returns the exit code. Raises ConfigError for an open-world model."""
    suite = GENEVAL_PLUS if options.suite == "genevalpp" else dev_set()
    if options.limit is not None:
        suite = suite.thinned(options.limit)
    model = load_model(options, open_model)
    if model.config.world != "stickers":
        raise ConfigError(f"{options.model} does not draw stickers, and the probes need their ground truth: try sketch")
    sampling = sampling_of(model.config, options)
    if options.shift is not None:
        sampling = replace(sampling, time_shift=options.shift)
    console = open_console(options.as_json)

    def print_score(name: str, score: ProbeScore) -> None:
        console.print(f"  {name:<30} {_format(score.mean)}  of {score.count}")

    seeds, judge = list(range(options.seeds)), sticker_judge(options.judge, strangers=False)
    scores = run_probes(model, suite.prompts, seeds, sampling, options.turns, on_score=print_score, judge=judge)
    if options.as_json:
        # JSON has no NaN, which stands for a skill that was never tried
        numbers = {
            name: {key: None if math.isnan(value) else value for key, value in asdict(score).items()}
            for name, score in scores.items()
        }
        print(json.dumps(numbers), flush=True)
        return 0
    table = Table("skill", "right", "95 %", "of")
    for name, score in scores.items():
        interval = f"{_format(score.low)} to {_format(score.high)}"
        table.add_row(name, _format(score.mean), interval, str(score.count))
    console.print(table)
    return 0


def _format(value: float) -> str:
    """A share of successes; a dash for a skill that was never tried."""
    return "-" if math.isnan(value) else f"{value:.3f}"
