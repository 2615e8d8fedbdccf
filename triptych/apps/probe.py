"""`triptych exam`: every skill behind the loop on its own, against the truth of the sticker world."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from triptych.apps.arguments import check_at_least, sampling_of
from triptych.apps.commands import Probe
from triptych.apps.options_judge import sticker_judge
from triptych.apps.terminal import open_console
from triptych.errors import ConfigError
from triptych.eval.probes import run_probes
from triptych.eval.suites import GENEVAL_PLUS, rehearsal


def run(choice: Probe, open_model: Callable[[], Any]) -> int:
    """Examine, print each score as it is known, return the exit code. Raises ConfigError for an open-world model."""
    check_at_least("turns", choice.turns, 1)
    check_at_least("seeds", choice.seeds, 1)
    suite = GENEVAL_PLUS if choice.suite == "genevalpp" else rehearsal()
    if choice.limit is not None:
        check_at_least("limit", choice.limit, 1)
        suite = suite.thinned(choice.limit)
    if choice.shift is not None and not choice.shift > 0:
        raise ConfigError(f"--shift {choice.shift}: expected more than 0; 1 leaves the times as they are")
    model = open_model()
    if model.config.world != "stickers":
        raise ConfigError(f"{choice.model} is no model of the sticker world, and the exam needs its truths: try sketch")
    sampling = sampling_of(model.config, choice.steps, choice.guidance, choice.temperature)
    if choice.shift is not None:
        sampling = replace(sampling, time_shift=choice.shift)
    console = open_console(choice.as_json)
    table = Table("skill", "right", "95 %", "of")
    scores = run_probes(
        model,
        suite.prompts,
        list(range(choice.seeds)),
        sampling,
        choice.turns,
        on_score=lambda name, score: console.print(f"  {name:<30} {_share(score.mean)}  of {score.count}", highlight=False),
        judge=sticker_judge(choice.judge),
    )
    if choice.as_json:
        print(json.dumps({name: _known(asdict(score)) for name, score in scores.items()}), flush=True)
        return 0
    for name, score in scores.items():
        table.add_row(name, _share(score.mean), f"{_share(score.low)} to {_share(score.high)}", str(score.count))
    console.print(table)
    return 0


def _share(value: float) -> str:
    """What was never tried has no share of successes."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _known(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
