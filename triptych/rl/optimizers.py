"""Muon for the matrices of the layers, AdamW for everything else: what teaches fastest from nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.errors import ConfigError


def optimizers(parameters: Mapping[str, Tensor], matrix_rate: float, rate: float) -> dict[str, torch.optim.Optimizer]:
    """Both optimisers by name. Raises ConfigError where torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon; expected 2.9 or newer for lessons: upgrade it")
    matrices = {name for name, p in parameters.items() if p.dim() == 2 and ".layers." in name}
    muon = torch.optim.Muon([p for n, p in parameters.items() if n in matrices], lr=matrix_rate, weight_decay=0.0)
    rest = [p for n, p in parameters.items() if n not in matrices]
    return {"muon": muon, "adamw": torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)}


def set_rates(schools: Mapping[str, torch.optim.Optimizer], bases: Mapping[str, float], share: float) -> None:
    """Bring every optimiser to a share of its base rate."""
    for name, optimizer in schools.items():
        for group in optimizer.param_groups:
            group["lr"] = bases[name] * share
