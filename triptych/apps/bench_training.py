"""The part of `triptych bench` that trains: where the time, the memory and the FLOPs of a step go."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from triptych.data.specs import StickerPrompts
from triptych.model.bagel import Bagel
from triptych.rewards.judge import Judge
from triptych.rl.config import StageConfig, TrainConfig
from triptych.rl.metrics import Timer
from triptych.rl.recipes import LORA_7B, SKETCH_RL
from triptych.rl.train import Step, train

PARTS = ("rollout", "judge", "score", "update")  # update: backward and the optimiser's step


def course(model: Bagel, steps: int) -> TrainConfig:
    """The recipe that is measured, with few siblings: all weights of a small model, the adapters of a large one."""
    if model.config.world == "stickers":
        return narrow(SKETCH_RL, steps, parents=2, group_size=8)
    return narrow(LORA_7B, steps, parents=1, group_size=2)


def narrow(config: TrainConfig, steps: int, parents: int, group_size: int) -> TrainConfig:
    """Steps of a recipe with so many siblings, at rates of 0: they cost the same, and the model stays as it is."""

    def still(stage: StageConfig) -> StageConfig:
        text, picture = replace(stage.text, lr=0.0), replace(stage.picture, lr=0.0)
        images_per_text = min(stage.images_per_text, group_size)
        return replace(
            stage, text=text, picture=picture, parents=parents, group_size=group_size, images_per_text=images_per_text
        )

    return replace(config, steps=steps, reason=still(config.reason), refine=still(config.refine))


def measure(model: Bagel, judge: Judge, config: TrainConfig, side: int = 0) -> dict[str, Any]:
    """Seconds, peak memory and FLOPs of a training step by part, and how near it comes to bare matrix products.

    The steps are taken twice, which gives the same since rates are 0: once to count FLOPs and bytes (which warms up),
    once to take the time. FLOPs are those of matrix products, convolutions and attention, forward and backward, with
    two for a multiplication and its addition. The rate that they are a share of is that of a bfloat16 product of two
    matrices of `side`. Memory is what CUDA has allocated, or else what the process has resident; null where neither is
    known.
    """
    memory = peak_of(model.device)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        counted, _ = clocked(model, judge, config, lambda: Timer(read=counter.get_total_flops, memory=memory))
    clocks, steps = clocked(model, judge, config, lambda: Timer(read=settled))
    seconds, flops = by_part(clocks), by_part(counted)
    rate = matmul_rate(model.device, side)
    samples = int(steps[-1].metrics["samples"])
    peaks = {part: max((clock.peaks.get(part, 0) for clock in counted), default=0) or None for part in PARTS}
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
            part: flops[part] / seconds[part] / rate if seconds[part] else None for part in (*PARTS, "total")
        },
    }


def clocked(
    model: Bagel, judge: Judge, config: TrainConfig, make: Callable[[], Timer]
) -> tuple[list[Timer], list[Step]]:
    """Steps of training, and the clock of each."""
    clocks: list[Timer] = []

    def make_timer() -> Timer:
        clocks.append(make())
        return clocks[-1]

    return clocks, list(train(model, StickerPrompts(config.seed), judge, config, make_timer=make_timer))


def by_part(clocks: Sequence[Timer]) -> dict[str, float]:
    """The mean of each part over steps, and their sum."""
    means = {part: sum(clock.seconds.get(part, 0.0) for clock in clocks) / len(clocks) for part in PARTS}
    return means | {"total": sum(means.values())}


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Of one fused attention, from the shapes `[batch head time size]`: scores, and the mean of values."""
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[2] * (size + value[3])


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}  # unknown to the counter


def matmul_rate(device: torch.device, side: int = 0, repeats: int = 5) -> float:
    """FLOPs per second of the fastest of a few bfloat16 products of two square matrices; by default of a fair size."""
    side = side or (8192 if device.type == "cuda" else 1024)
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    taken = []
    for _ in range(repeats + 1):  # the first one warms up
        start = settled()
        _ = matrix @ matrix
        taken.append(settled() - start)
    return 2 * side**3 / min(taken)


def peak_of(device: torch.device) -> Callable[[], int] | None:
    """Something that tells the most bytes in use since it was asked last, where that can be known."""
    if device.type == "cuda":

        def allocated() -> int:
            peak = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return peak

        return allocated
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)

    def resident() -> int:
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        give_back(0)  # what was freed is no longer resident, so that it is not booked on the next part
        reset.write_text("5", encoding="ascii")  # start a new high-water mark
        return int(line.split()[1]) * 1024

    try:
        resident()
    except (OSError, ValueError):
        return None
    return resident


def settled() -> float:
    """Seconds, once all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rows(learnt: dict[str, Any]) -> list[tuple[str, str]]:
    """The result of `measure` for a person: title and what is told."""
    seconds, shares = learnt["seconds_per_step"], learnt["share_of_matmul"]
    title = f"a training step of {learnt['parents']} x {learnt['group_size']} siblings"
    found = [(title, f"{seconds['total']:.2f} s, {learnt['samples_per_second']:.2f} samples/s")]
    for part in (*PARTS, "total"):
        peak, share = learnt["peak_bytes"].get(part), shares[part]
        told = [f"{seconds[part]:.2f} s"] + ([] if peak is None else [f"peak {peak / 1e9:.2f} GB"])
        told += [] if share is None else [f"{share:.1%} of the bf16 matmul rate"]
        found.append((f"  {part}", ", ".join(told)))
    return found
