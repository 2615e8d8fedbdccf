"""`triptych bench`: where the time of a draw and of a training step goes, as ratios within one process.

Five measurements: scenes of the sticker world rendered per second; single draws by beat, and from process start to the
written trace; a batch with early stopping against the same batch with every turn used; a guided flow step with its
branches in one forward against one branch after the other; and training steps, by part. Numbers depend on the machine,
so its cores and threads are part of the result.
"""

from __future__ import annotations

import ctypes
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
from typing import Any

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from triptych.apps.arguments import load_model
from triptych.apps.commands import BenchOptions
from triptych.apps.console import open_console
from triptych.apps.options import OpenModel
from triptych.data.language import prompt_text, wording_of
from triptych.data.render import render
from triptych.data.scene import Scene
from triptych.data.specs import StickerPrompts, random_spec
from triptych.eval.run_folder import versions
from triptych.loop import Policy, play
from triptych.model import templates
from triptych.model.bagel import Bagel
from triptych.model.kv_cache import KVCache
from triptych.rewards.judge import Judge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.config import StageConfig, TrainConfig
from triptych.rl.metrics import Timer
from triptych.rl.recipes import LORA_7B, SKETCH_RL
from triptych.rl.train import Step, train
from triptych.seeds import START
from triptych.trace import Completion, Prompt, Trace

EXAMPLE = "A photo of three clocks on the left and one cat on the right"
INSTRUCTION = "paint the sticker at center red"  # for a policy that may not stop; any instruction costs the same
TURNS = 4
STEP_PARTS = ("rollout", "judge", "score", "update")  # update: backward, and the optimizer's step


def run(options: BenchOptions, open_model: OpenModel) -> int:
    """Measure everything and print it; returns the exit code."""
    model = load_model(options, open_model)
    result = {
        "machine": machine_record(),
        "render": time_rendering(),
        "draw": {**time_draws(model, options.draws), "process_seconds": process_seconds(options.model, starts=3)},
        "stops": time_stops(model, options.batch),
        # one draw, and the default --batch of `triptych draw`
        "guidance": {f"batch {batch}": time_guidance(model, batch) for batch in (1, 16)},
    }
    if options.train_steps:
        config = measured_recipe(model, options.train_steps)
        trained = model if config.lora.rank else model.float()  # weights that are trained are held in float32
        result["training"] = measure_training(trained, WorldJudge(str(model.device), strangers=False), config)
    if options.as_json:
        print(json.dumps(result), flush=True)
    else:
        open_console(as_json=False).print(result_table(result))
    return 0


def machine_record() -> dict[str, Any]:
    """The machine and the versions that the seconds depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def bench_prompts(count: int) -> list[Prompt]:
    """Prompts of the sticker world that are in no benchmark; a model of any world can draw them."""
    specs = [random_spec(START["bench"] + index) for index in range(count)]
    return [Prompt(prompt_text(spec, wording_of(spec)), spec) for spec in specs]


def play_all(policy: Policy, prompts: Sequence[Prompt]) -> list[Trace]:
    """The finished traces of prompts, seeds 0, 1, ..."""
    *_, traces = play(policy, prompts, range(len(prompts)), TURNS)
    return traces


def time_draws(policy: Policy, count: int) -> dict[str, Any]:
    """Median seconds of model time of single draws, in all and by beat (of the turns that had the beat)."""
    play_all(policy, bench_prompts(1))  # warm up: first calls allocate
    traces = [play_all(policy, [prompt])[0] for prompt in bench_prompts(count)]
    beats: dict[str, list[float]] = {}
    for trace in traces:
        for turn in trace.turns:
            for beat, seconds in turn.seconds.items():
                beats.setdefault(beat, []).append(seconds)
    whole = [sum(sum(turn.seconds.values()) for turn in trace.turns) for trace in traces]
    edits = [sum(turn.drew is not None for turn in trace.turns) - 1 for trace in traces]  # 1: the first image
    by_beat = {beat: median(seconds) for beat, seconds in beats.items()}
    return {"draws": count, "median_seconds": median(whole), "median_by_beat": by_beat, "edits": edits}


def time_rendering(batch: int = 64, repeats: int = 5) -> dict[str, Any]:
    """Scenes of the sticker world per second on the CPU: sampled from specs, and rendered in batches."""
    specs = [random_spec(START["bench"] + index) for index in range(batch)]
    sampling, scenes = timed(lambda: [Scene.sample(spec, seed) for seed, spec in enumerate(specs)])
    render(scenes)  # warm up: the font is read once
    seconds = median(timed(lambda: render(scenes))[0] for _ in range(repeats))
    return {"batch": batch, "sampled_per_second": batch / sampling, "rendered_per_second": batch / seconds}


def process_seconds(model: str, starts: int) -> float:
    """Median seconds of `triptych draw` as a process of its own, from its start to its end with the trace written."""
    seconds = []
    for seed in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "trace")
            command = [sys.executable, "-m", "triptych.apps.cli", "draw", EXAMPLE, "--model", model]
            start = time.perf_counter()
            subprocess.run([*command, "--seed", str(seed), "--out", out], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
    return median(seconds)


@dataclass(frozen=True)
class NeverStop:
    """A policy that uses every turn: where it would stop, it gives an instruction instead."""

    policy: Policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def reflect(self, *arguments: Any, **named: Any) -> list[Completion]:
        """Reflect as the policy does, with an instruction in place of a stop."""
        return [self._without_stop(completion) for completion in self.policy.reflect(*arguments, **named)]

    def _without_stop(self, completion: Completion) -> Completion:
        if not templates.is_stop(templates.parse_edit(completion.text)):
            return completion
        thought = templates.parse_thought(completion.text)
        return replace(completion, text=templates.wrap_reflection(thought, INSTRUCTION))


def time_stops(policy: Policy, batch: int) -> dict[str, Any]:
    """Seconds of one batch with early stopping, and of the same batch with every turn used."""
    prompts = bench_prompts(batch)
    own, traces = timed(lambda: play_all(policy, prompts))
    forced, _ = timed(lambda: play_all(NeverStop(policy), prompts))  # pyright: ignore[reportArgumentType]
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
def time_guidance(model: Bagel, batch: int, repeats: int = 9) -> dict[str, Any]:
    """Seconds of one guided flow step of a draw: both branches in one forward, and one after the other."""
    height, width = model.config.image_size
    grid = (height // model.config.latent_downsample, width // model.config.latent_downsample)
    conditional = model.empty_cache(batch)
    unconditional = conditional.copy()
    model.extend(conditional, [[model.text_block(prompt.text)] for prompt in bench_prompts(batch)])
    both = KVCache.cat([conditional, unconditional], extra=grid[0] * grid[1] + 2)  # 2: the brackets of the noise block
    shape = (batch, grid[0] * grid[1], model.config.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    twice = noise.repeat(2, 1, 1)

    def packed() -> torch.Tensor:
        return model.velocity(both, twice, 0.9, grid)  # every time of the flow costs the same

    def separate() -> torch.Tensor:
        return torch.cat([model.velocity(cache, noise, 0.9, grid) for cache in (conditional, unconditional)])

    difference = float((packed() - separate()).abs().max())  # warms up, too
    # Taken in turn, so that what else the machine does falls on both.
    seconds = [(timed(packed)[0], timed(separate)[0]) for _ in range(repeats)]
    one, two = median(first for first, _ in seconds), median(second for _, second in seconds)
    return {"packed_seconds": one, "separate_seconds": two, "speedup": two / one, "largest_difference": difference}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and its result."""
    start = synchronized_time()
    result = work()
    return synchronized_time() - start, result


# --- training ---------------------------------------------------------------------------------------------------------


def measured_recipe(model: Bagel, steps: int) -> TrainConfig:
    """The recipe to measure, with few siblings: all weights of a small model, the LoRA adapters of a large one."""
    if model.config.world == "stickers":
        return shorten(SKETCH_RL, steps, parents=2, group_size=8)
    # 2 is the smallest group that has a baseline; a step of the whole recipe may need more than 80 GB (LOG.md E56).
    return shorten(LORA_7B, steps, parents=1, group_size=2)


def shorten(config: TrainConfig, steps: int, parents: int, group_size: int) -> TrainConfig:
    """A recipe with few steps and siblings at learning rate 0: a step costs the same and leaves the model as it is."""

    def frozen(stage: StageConfig) -> StageConfig:
        text, picture = replace(stage.text, lr=0.0), replace(stage.picture, lr=0.0)
        count = min(stage.images_per_text, group_size)  # a group holds whole sets of images of one text
        return replace(stage, text=text, picture=picture, parents=parents, group_size=group_size, images_per_text=count)

    return replace(config, steps=steps, reason=frozen(config.reason), refine=frozen(config.refine))


def measure_training(model: Bagel, judge: Judge, config: TrainConfig, side: int = 0) -> dict[str, Any]:
    """Seconds, peak memory and FLOPs of a training step by part, and how near it comes to bare matrix products.

    The steps are taken twice, which gives the same since rates are 0: once to count FLOPs and bytes (which warms up),
    once to take the time. FLOPs are those of matrix products, convolutions and attention, forward and backward, with
    two for a multiplication and its addition. The rate that they are a share of is that of a bfloat16 product of two
    matrices of `side`. Memory is what CUDA has allocated, or else what the process has resident; null where neither can
    be read.
    """
    memory = peak_memory(model.device)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        counted, _ = timed_steps(model, judge, config, lambda: Timer(read=counter.get_total_flops, memory=memory))
    timers, steps = timed_steps(model, judge, config, lambda: Timer(read=synchronized_time))
    seconds, flops = mean_by_part(timers), mean_by_part(counted)
    rate = matmul_rate(model.device, side)
    samples = int(steps[-1].metrics["samples"])
    peaks = {part: max((timer.peaks.get(part, 0) for timer in counted), default=0) or None for part in STEP_PARTS}
    return {
        "parents": config.reason.parents,
        "group_size": config.reason.group_size,
        "lora_rank": config.lora.rank,
        "stages": [step.stage for step in steps],
        "samples": samples,
        "samples_per_second": samples / (seconds["total"] * len(steps)),
        "seconds_per_step": seconds,
        "flops_per_step": flops,
        "peak_bytes": peaks,
        "bfloat16_matmul_flops_per_second": rate,
        "share_of_matmul": {
            part: flops[part] / seconds[part] / rate if seconds[part] else None for part in (*STEP_PARTS, "total")
        },
    }


def timed_steps(
    model: Bagel, judge: Judge, config: TrainConfig, make: Callable[[], Timer]
) -> tuple[list[Timer], list[Step]]:
    """Steps of training, and the timer of each."""
    timers: list[Timer] = []

    def make_timer() -> Timer:
        timers.append(make())
        return timers[-1]

    return timers, list(train(model, StickerPrompts(config.seed), judge, config, make_timer=make_timer))


def mean_by_part(timers: Sequence[Timer]) -> dict[str, float]:
    """The mean of each part over steps, and their sum."""
    means = {part: sum(timer.seconds.get(part, 0.0) for timer in timers) / len(timers) for part in STEP_PARTS}
    return means | {"total": sum(means.values())}


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Of one fused attention, from the shapes `[batch head time size]`: scores, and the mean of values."""
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[2] * (size + value[3])


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}  # unknown to the counter


def matmul_rate(device: torch.device, side: int = 0) -> float:
    """FLOPs per second of the fastest of a few bfloat16 products of two square matrices; by default of a fair size."""
    # large enough to reach the peak rate, small enough to take a fraction of a second
    side = side or (8192 if device.type == "cuda" else 1024)
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(6):  # the first one warms up
        start = synchronized_time()
        _ = matrix @ matrix
        seconds.append(synchronized_time() - start)
    return 2 * side**3 / min(seconds)


def peak_memory(device: torch.device) -> Callable[[], int] | None:
    """A function that returns the peak of bytes in use since its last call; None where that cannot be measured."""
    if device.type == "cuda":

        def allocated() -> int:
            peak = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return peak

        return allocated
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)

    def resident() -> int:
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        trim(0)  # else memory that one part freed would still be resident, and count for the next one
        reset.write_text("5", encoding="ascii")  # start a new high-water mark (man proc_pid_clear_refs)
        return int(line.split()[1]) * 1024  # the kernel writes kB

    try:
        resident()
    except (OSError, ValueError):  # no /proc (macOS, Windows), or one that may not be written, as in some containers
        return None
    return resident


def synchronized_time() -> float:
    """The clock in seconds, read after all work that is queued on the device."""
    if torch.cuda.is_available():  # CUDA queues work and returns at once
        torch.cuda.synchronize()
    return time.perf_counter()


# --- tables -----------------------------------------------------------------------------------------------------------


def result_table(result: dict[str, Any]) -> Table:
    """The result as a table."""
    about, draw, stop, scenes = result["machine"], result["draw"], result["stops"], result["render"]
    table = Table(
        title=f"{about['cores']} cores, {about['threads']} threads, torch {about['torch']}", show_header=False
    )
    table.add_row("a draw, model work (median)", f"{draw['median_seconds']:.2f} s")
    for beat, seconds in draw["median_by_beat"].items():
        table.add_row(f"  {beat}", f"{seconds:.3f} s")
    table.add_row("a draw, process start to written trace", f"{draw['process_seconds']:.2f} s")
    table.add_section()
    table.add_row(f"batch of {stop['batch']}, own stops", f"{stop['own_seconds']:.2f} s, {stop['own_edits']} edits")
    table.add_row("  all turns forced", f"{stop['forced_seconds']:.2f} s, {stop['forced_edits']} edits")
    table.add_row("  stopping is faster by", f"{stop['speedup']:.2f} x")
    table.add_section()
    table.add_row(f"scenes rendered, batch of {scenes['batch']}", f"{scenes['rendered_per_second']:.0f} a second")
    table.add_section()
    for name, step in result["guidance"].items():
        table.add_row(f"guided step, {name}: packed", f"{step['packed_seconds'] * 1000:.1f} ms")
        table.add_row("  branch by branch", f"{step['separate_seconds'] * 1000:.1f} ms")
        table.add_row("  packing is faster by", f"{step['speedup']:.2f} x")
    if "training" in result:
        table.add_section()
        for title, cell in training_rows(result["training"]):
            table.add_row(title, cell)
    return table


def training_rows(training: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and cell of each row of `measure_training`."""
    seconds, shares = training["seconds_per_step"], training["share_of_matmul"]
    title = f"a training step of {training['parents']} x {training['group_size']} siblings"
    rows = [(title, f"{seconds['total']:.2f} s, {training['samples_per_second']:.2f} samples/s")]
    for part in (*STEP_PARTS, "total"):
        peak, share = training["peak_bytes"].get(part), shares[part]
        cells = [f"{seconds[part]:.2f} s"] + ([] if peak is None else [f"peak {peak / 1e9:.2f} GB"])
        cells += [] if share is None else [f"{share:.1%} of the bf16 matmul rate"]
        rows.append((f"  {part}", ", ".join(cells)))
    return rows
