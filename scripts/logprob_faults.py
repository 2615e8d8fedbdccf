"""What the log-probability check sees of faults that are put in by hand (LOG.md E80).

    python scripts/logprob_faults.py                       sketch, bfloat16, sampled as the release's training does
    python scripts/logprob_faults.py --dtype float32 --model runs/train/model

Each fault stands in what is scored, and not in what was sampled. One line a fault and stage: the errors by the names of
`Limits`, and which of them are beyond their limits. A fault without any goes unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import tyro

from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.logprobs import ImageSample, SDELogprobs, TextLogprobs, TextSample
from triptych.rl.config import BFLOAT16_LIMITS, Limits
from triptych.rl.logprob_check import WORDS, mismatches, problems
from triptych.rl.recipes import RELEASE_7B
from triptych.trace import Prompt

PROMPTS = (Prompt("a photo of three clocks"), Prompt("a photo of a red cat and a blue bus"))
MAX_TOKENS = 40  # of a text: enough for a mean log-ratio, and short enough for a CPU
FAULTS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "image guidance dropped": {"image_guidance": 1.0},
    "image guidance x .9": {"image_guidance": 0.9 * RELEASE_7B.refine.sampling.image_guidance},
    "text guidance x .9": {"text_guidance": 0.9 * RELEASE_7B.refine.sampling.text_guidance},
    "all guidance dropped": {"text_guidance": 1.0, "image_guidance": 1.0},
    "filter dropped": {"top_p": 1.0, "top_k": 0},
    "states rounded to bfloat16": {},
}


class Faulty:
    """The model, with one fault in its log-probabilities."""

    def __init__(self, bagel: Bagel, fault: str):
        self._bagel, self._fault = bagel, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bagel, name)

    def text_logprobs(self, rows: Sequence[TextSample], sampling: Sampling) -> TextLogprobs:
        if "filter" in self._fault:
            rows = [replace(row, completion=replace(row.completion, kept=None)) for row in rows]
        return self._bagel.text_logprobs(rows, replace(sampling, **FAULTS[self._fault]))

    def sde_logprobs(self, rows: Sequence[ImageSample], sampling: Sampling) -> list[SDELogprobs]:
        if "rounded" in self._fault:
            rows = [replace(row, sde_steps=_rounded(row.sde_steps)) for row in rows]
        return self._bagel.sde_logprobs(rows, replace(sampling, **FAULTS[self._fault]))


def _rounded(steps: Any) -> Any:
    states = {name: torch.from_numpy(getattr(steps, name)).bfloat16().float().numpy() for name in ("before", "after")}
    return replace(steps, **states)


@dataclass(frozen=True)
class Options:
    """Which model is checked, and how it computes."""

    model: str = "sketch"  # a packaged name or a checkpoint folder
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 1


def main(options: Options) -> None:
    """Print a table of errors, one line a fault and stage."""
    bagel, limits = weights.load(options.model), BFLOAT16_LIMITS if options.dtype == "bfloat16" else Limits()
    reason, refine = (
        replace(stage, sampling=replace(stage.sampling, max_tokens=MAX_TOKENS))
        for stage in (RELEASE_7B.reason, RELEASE_7B.refine)
    )
    config = replace(RELEASE_7B, reason=reason, refine=refine, dtype=options.dtype, micro_batch_size=16)
    print(f"| fault | stage | {' | '.join(WORDS)} | beyond its limit |\n|{'---|' * (len(WORDS) + 3)}")
    for fault in FAULTS:
        model: Any = Faulty(bagel, fault)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16", cache_enabled=False):
            by_stage = mismatches(model, PROMPTS, config, options.seed)
        for stage, mismatch in by_stage.items():
            beyond = [name for name, value in mismatch.items() if problems(stage, {name: value}, limits)]
            errors = " | ".join(f"{mismatch[name]:.1e}" for name in WORDS)
            print(f"| {fault} | {stage} | {errors} | {', '.join(beyond) or '-'} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
