"""Benchmarks as values, each with its paper's column titles; the prompts come with the package.

TIIF-Bench has no licence, so nothing of it is here: `tiif.load_tiif` reads the user's own copy. Settings are chosen on
`dev_set`, whose specs are in no benchmark, so that a benchmark's number is not fitted to it.
"""

from __future__ import annotations

from triptych.data.language import prompt_text, wording_of
from triptych.data.prompts import benchmark
from triptych.data.specs import random_spec
from triptych.eval.benchmark import Benchmark
from triptych.seeds import START
from triptych.trace import Prompt

GENEVAL_COLUMNS = {
    "single_object": "Single",
    "two_object": "Two",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Attribution",
}
# Titles and order as in the table of the R3 paper (arXiv 2602.15772); keys are the tags of the published metadata.
GENEVAL_PLUS_COLUMNS = {
    "color_attr": "Color",
    "counting": "Count",
    "color_count_attr": "Color/Count",
    "color_spatial_attr": "Color/Pos",
    "spatial_count_attr": "Pos/Count",
    "size_spatial_attr": "Pos/Size",
    "multi_object_count_attr": "Multi-Count",
}

GENEVAL = Benchmark("GenEval", tuple(benchmark("geneval")), GENEVAL_COLUMNS)  # 553 prompts
GENEVAL_PLUS = Benchmark("GenEval++", tuple(benchmark("genevalpp")), GENEVAL_PLUS_COLUMNS)  # 280, 40 a column


def dev_set(count: int = 70) -> Benchmark:
    """`count` sampled prompts of the benchmarks' kinds, in no benchmark and in no training data (seeds.START)."""
    specs = [random_spec(START["dev_set"] + index) for index in range(count)]
    prompts = tuple(Prompt(prompt_text(spec, wording_of(spec)), spec, source="dev_set") for spec in specs)
    # The two benchmarks share the tags "counting" and "color_attr": GenEval++'s titles win.
    return Benchmark("dev-set", prompts, {**GENEVAL_COLUMNS, **GENEVAL_PLUS_COLUMNS})
