"""A picture set that no model drew: scenes of the sticker world, right and spoiled, with the exact truth of each.

For models too weak to draw what ITA needs, pictures that fit their prompts, and for numbers that compare across
machines: a set follows from prompts and seeds alone. Its folder is that of any run, without edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from triptych.data.edits import spoil
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import ConfigError
from triptych.eval.benchmark import Benchmark
from triptych.eval.fingerprints import code_sha256, pixels_sha256, prompts_sha256, versions
from triptych.eval.ledger import Job, Ledger, Result, recorded
from triptych.eval.report import Row
from triptych.rewards.world import verdict

PAINTER, TRUTH = "painted", "world-truth"  # for manifests: who drew, and whose word counts
MISTAKES = {0: 6, 1: 3, 2: 2, 3: 1}  # mistakes of a picture, and how often: half are right, half of the others near


def paint(benchmark: Benchmark, seeds: Sequence[int], out: Path, resume: bool = False) -> Iterator[Row]:
    """Paint a picture for each prompt and seed into the folder `out`; yield a Row each. Errors are those of
    `benchmark.run`, and ConfigError for a prompt without a spec."""
    ledger = Ledger.open(out, _manifest(benchmark, seeds), resume)

    def work(jobs: Sequence[Job]) -> Iterator[Result]:
        for index, seed in jobs:
            prompt = benchmark.prompts[index]
            if prompt.spec is None:
                raise ConfigError(f"{prompt.text!r} has no spec; expected prompts of the sticker world")
            scene = painting(benchmark, index, seed)
            picture, told = render_array(scene), verdict(scene, prompt.spec)
            column, sha256 = benchmark.column(prompt), (pixels_sha256(picture),)
            yield Row(index, prompt.text, column, seed, (told,), False, (None,), 0.0, sha256), [picture]

    yield from recorded([(index, seed) for seed in seeds for index in range(len(benchmark.prompts))], work, ledger)


def painting(benchmark: Benchmark, index: int, seed: int) -> Scene:
    """The scene of a prompt and a seed: right, or with a few mistakes."""
    spec = benchmark.prompts[index].spec
    assert spec is not None
    rng = Random(f"painted {index} {seed}")
    (count,) = rng.choices(list(MISTAKES), list(MISTAKES.values()))
    own = rng.randrange(1 << 40)
    scene = Scene.sample(spec, own)
    return spoil(scene, spec, own, count) if count else scene


def _manifest(benchmark: Benchmark, seeds: Sequence[int]) -> dict[str, object]:
    return {
        "benchmark": benchmark.name,
        "columns": list(benchmark.titles),
        "prompts": len(benchmark.prompts),
        "prompts_sha256": prompts_sha256(benchmark.prompts),
        "model": PAINTER,
        "judge": TRUTH,
        "turns": 0,
        "seeds": list(seeds),
        "mistakes": {str(count): weight for count, weight in MISTAKES.items()},
        "code_sha256": code_sha256(),
        "versions": versions(),
    }
