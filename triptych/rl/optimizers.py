"""Muon for the matrices of the layers, AdamW for everything else: what teaches fastest from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from triptych.errors import ConfigError


def optimizers(parameters: Mapping[str, Tensor], matrix_rate: float, rate: float) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name; each expert's matrices have their own, so that they can step at the same time.

    Raises ConfigError where torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon; expected 2.9 or newer for lessons: upgrade it")
    matrices = {name for name, p in parameters.items() if p.dim() == 2 and ".layers." in name}
    drawing = {name for name in matrices if "_moe_gen" in name}
    parts = {"muon_und": matrices - drawing, "muon_gen": drawing}
    schools: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Muon([p for n, p in parameters.items() if n in part], lr=matrix_rate, weight_decay=0.0)
        for name, part in parts.items()
        if part
    }
    rest = [p for n, p in parameters.items() if n not in matrices]
    schools["adamw"] = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return schools


def rates(schools: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
    """The base rate of each optimiser, to be scaled by the schedule."""
    return {name: optimizer.param_groups[0]["lr"] for name, optimizer in schools.items()}


def step_all(schools: Mapping[str, torch.optim.Optimizer], hands: int = 1) -> None:
    """One step of every optimiser, `hands` of them at a time: they share no parameter."""
    with ThreadPoolExecutor(hands) as pool:
        list(pool.map(lambda optimizer: optimizer.step(), schools.values()))


def set_rates(schools: Mapping[str, torch.optim.Optimizer], bases: Mapping[str, float], share: float) -> None:
    """Bring every optimiser to a share of its base rate."""
    for name, optimizer in schools.items():
        for group in optimizer.param_groups:
            group["lr"] = bases[name] * share
