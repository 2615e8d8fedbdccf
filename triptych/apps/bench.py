"""`triptych bench`: where the time of a draw goes, and what batching saves, as ratios within one run.

Five measurements: scenes of the sticker world a second; single draws by beat, and from process start to the written
trace; a batch that stops when the model says so against the same batch made to use every turn; a guided flow step with
its branches in one forward against branch after branch; and steps of training, by part. Numbers depend on the machine,
so its cores and threads are part of the result.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from triptych.apps import bench_training
from triptych.apps.arguments import check_at_least
from triptych.apps.terminal import open_console
from triptych.data.language import prompt_text, wording_of
from triptych.data.render import render
from triptych.data.scene import Scene
from triptych.data.specs import random_spec
from triptych.eval.run_folder import versions
from triptych.loop import Policy, play
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.kv_cache import KVCache
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Completion, Prompt, Trace

if TYPE_CHECKING:
    from triptych.apps.commands import Bench
    from triptych.apps.options import Open

EXAMPLE = "A photo of three clocks on the left and one cats on the right"
ORDER = "paint the sticker at center red"  # what a model that may not stop is made to ask for; any order costs the same
TURNS = 4


def run(choice: Bench, open_model: Open) -> int:
    """Measure, print, return the exit code."""
    check_at_least("draws", choice.draws, 1)
    check_at_least("batch", choice.batch, 1)
    check_at_least("train-steps", choice.train_steps, 0)
    model = choice.load(open_model)
    result = {
        "machine": machine(),
        "render": rendering(),
        "draw": {**draws(model, choice.draws), "process_seconds": process_seconds(choice.model, starts=3)},
        "stops": stops(model, choice.batch),
        "guidance": {f"batch {batch}": guidance(model, batch) for batch in (1, 16)},
    }
    if choice.train_steps:
        config = bench_training.course(model, choice.train_steps)
        trained = model if config.lora.rank else model.float()  # what learns is held in float32
        result["training"] = bench_training.measure(trained, WorldJudge(str(model.device)), config)
    if choice.as_json:
        print(json.dumps(result), flush=True)
    else:
        open_console(as_json=False).print(table(result))
    return 0


def machine() -> dict[str, Any]:
    """What the seconds depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def prompts(count: int) -> list[Prompt]:
    """Prompts of the sticker world that are in no benchmark; an open model can read them too."""
    specs = [random_spec(3_000_000_000 + index) for index in range(count)]
    return [Prompt(prompt_text(spec, wording_of(spec)), spec) for spec in specs]


def played(policy: Policy, given: Sequence[Prompt]) -> list[Trace]:
    """The finished traces of prompts, seeds 0, 1, ..."""
    *_, traces = play(policy, given, range(len(given)), TURNS)
    return traces


def draws(policy: Policy, count: int) -> dict[str, Any]:
    """Median seconds of model work of single draws, in all and by beat (of those that had the beat)."""
    played(policy, prompts(1))  # warm up: first calls allocate
    traces = [played(policy, [prompt])[0] for prompt in prompts(count)]
    beats: dict[str, list[float]] = {}
    for trace in traces:
        for turn in trace.turns:
            for beat, seconds in turn.seconds.items():
                beats.setdefault(beat, []).append(seconds)
    whole = [sum(sum(turn.seconds.values()) for turn in trace.turns) for trace in traces]
    edits = [sum(turn.drew is not None for turn in trace.turns) - 1 for trace in traces]
    by_beat = {beat: median(seconds) for beat, seconds in beats.items()}
    return {"draws": count, "median_seconds": median(whole), "median_by_beat": by_beat, "edits": edits}


def rendering(batch: int = 64, repeats: int = 5) -> dict[str, Any]:
    """Scenes a second of the sticker world, on the CPU: sampled from specs, and rendered in batches."""
    specs = [random_spec(3_000_000_000 + index) for index in range(batch)]
    sampling, scenes = timed(lambda: [Scene.sample(spec, seed) for seed, spec in enumerate(specs)])
    render(scenes)  # silhouettes are read once
    seconds = median(timed(lambda: render(scenes))[0] for _ in range(repeats))
    return {"batch": batch, "sampled_per_second": batch / sampling, "rendered_per_second": batch / seconds}


def process_seconds(model: str, starts: int) -> float:
    """Median seconds of `triptych draw` as a process of its own, from its start to its end with the trace written."""
    taken = []
    for seed in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "trace")
            command = [sys.executable, "-m", "triptych.apps.cli", "draw", EXAMPLE, "--model", model]
            start = time.perf_counter()
            subprocess.run([*command, "--seed", str(seed), "--out", out], check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
    return median(taken)


@dataclass(frozen=True)
class Tireless:
    """A policy that never stops: where it would, it gives an order instead."""

    policy: Policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def reflect(self, *arguments: Any, **named: Any) -> list[Completion]:
        """Reflect as the policy does, and go on."""
        return [self._go_on(completion) for completion in self.policy.reflect(*arguments, **named)]

    def _go_on(self, said: Completion) -> Completion:
        if not templates.is_stop(templates.parse_edit(said.text)):
            return said
        return replace(said, text=templates.wrap_reflection(templates.parse_thought(said.text), ORDER))


def stops(policy: Policy, batch: int) -> dict[str, Any]:
    """Seconds of one batch with the model's own stops, and of the same with every turn used."""
    given = prompts(batch)
    own, traces = timed(lambda: played(policy, given))
    forced, _ = timed(lambda: played(Tireless(policy), given))  # pyright: ignore[reportArgumentType]
    edits = sum(sum(turn.drew is not None for turn in trace.turns) - 1 for trace in traces)
    return {
        "batch": batch,
        "own_seconds": own,
        "forced_seconds": forced,
        "speedup": forced / own,
        "own_edits": edits,
        "forced_edits": batch * TURNS,
    }


@torch.no_grad()
def guidance(model: Bagel, batch: int, repeats: int = 9) -> dict[str, Any]:
    """Seconds of one guided flow step of a draw: both branches in one forward, and one after the other."""
    height, width = model.config.image_size
    grid = (height // model.config.latent_downsample, width // model.config.latent_downsample)
    full = model.blank(batch)
    bare = full.fork()
    model.read(full, [[model.text_block(prompt.text)] for prompt in prompts(batch)])
    both = KVCache.stack([full, bare], extra=grid[0] * grid[1] + 2)
    shape = (batch, grid[0] * grid[1], model.config.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    twice = noise.repeat(2, 1, 1)

    def packed() -> torch.Tensor:
        return model.velocity(both, twice, 0.9, grid)

    def separate() -> torch.Tensor:
        return torch.cat([model.velocity(context, noise, 0.9, grid) for context in (full, bare)])

    apart = float((packed() - separate()).abs().max())
    seconds = [(timed(packed)[0], timed(separate)[0]) for _ in range(repeats)]
    one, two = median(first for first, _ in seconds), median(second for _, second in seconds)
    return {"packed_seconds": one, "separate_seconds": two, "speedup": two / one, "largest_difference": apart}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def table(result: dict[str, Any]) -> Table:
    """The result for a person."""
    about, draw, stop, scenes = result["machine"], result["draw"], result["stops"], result["render"]
    printed = Table(
        title=f"{about['cores']} cores, {about['threads']} threads, torch {about['torch']}", show_header=False
    )
    printed.add_row("a draw, model work (median)", f"{draw['median_seconds']:.2f} s")
    for beat, seconds in draw["median_by_beat"].items():
        printed.add_row(f"  {beat}", f"{seconds:.3f} s")
    printed.add_row("a draw, process start to written trace", f"{draw['process_seconds']:.2f} s")
    printed.add_section()
    printed.add_row(f"batch of {stop['batch']}, own stops", f"{stop['own_seconds']:.2f} s, {stop['own_edits']} edits")
    printed.add_row("  all turns forced", f"{stop['forced_seconds']:.2f} s, {stop['forced_edits']} edits")
    printed.add_row("  stopping is faster by", f"{stop['speedup']:.2f} x")
    printed.add_section()
    printed.add_row(f"scenes rendered, batch of {scenes['batch']}", f"{scenes['rendered_per_second']:.0f} a second")
    printed.add_section()
    for name, step in result["guidance"].items():
        printed.add_row(f"guided step, {name}: packed", f"{step['packed_seconds'] * 1000:.1f} ms")
        printed.add_row("  branch by branch", f"{step['separate_seconds'] * 1000:.1f} ms")
        printed.add_row("  packing is faster by", f"{step['speedup']:.2f} x")
    if "training" in result:
        printed.add_section()
        for title, told in bench_training.rows(result["training"]):
            printed.add_row(title, told)
    return printed
