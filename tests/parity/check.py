"""A line of the report: one run of one case, what was compared in it, and how near its limit the nearest value came."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# The kit's tolerances (its README, part a): absolute, relative.
VALUES = (5e-5, 1e-4)
PICTURES = (1e-4, 1e-4)
GRADIENTS = (1e-6, 1e-3)
STEPS = (1e-5, 1e-4)
EXACT = (0.0, 0.0)
LEVELS = (1.0, 0.0)  # uint8


@dataclass
class Run:
    """Comparisons of one run, gathered as they are made."""

    case: str
    name: str
    checks: list[tuple[float, float, str, tuple[float, float]]] = field(default_factory=list)

    def close(self, what: str, got: Any, expected: Any, limit: tuple[float, float] = VALUES) -> None:
        """Compare two arrays; another shape or a NaN is an infinite error. None: a debugging value that a set lacks."""
        if expected is None:
            return
        ours, theirs = (torch.as_tensor(value).detach().double() for value in (got, expected))
        if ours.shape != theirs.shape:
            self.checks.append(
                (float("inf"), float("inf"), f"{what}: {list(ours.shape)} for {list(theirs.shape)}", limit)
            )
            return
        if not theirs.numel():
            return
        error = torch.nan_to_num((ours - theirs).abs(), nan=float("inf"))
        allowed = limit[0] + limit[1] * theirs.abs()
        share = torch.where(error == 0, 0.0, error / allowed)  # an exact limit allows nothing: any error is infinite
        self.checks.append((float(share.max()), float(error.max()), what, limit))

    def equal(self, what: str, got: Any, expected: Any) -> None:
        """Compare two values that must be the same: ids, sizes, words."""
        if got == expected:
            self.checks.append((0.0, 0.0, what, EXACT))
        else:
            told = f"{what}: {got!r:.80} for {expected!r:.80}"
            self.checks.append((float("inf"), float("inf"), told, EXACT))

    @property
    def held(self) -> bool:
        return bool(self.checks) and all(share <= 1 for share, *_ in self.checks)

    def __str__(self) -> str:
        if not self.checks:
            return f"case {self.case:<3} {self.name:<34} FAIL  nothing was compared"
        _, error, what, (absolute, relative) = max(self.checks)
        limit = f"{absolute:g} + {relative:g}|x|" if relative else f"{absolute:g}"
        verdict = "ok  " if self.held else "FAIL"
        nearest = f"{what} ({len(self.checks)} checks)"
        return f"case {self.case:<3} {self.name:<34} {verdict}  error {error:.2e} of {limit:<15} {nearest}"


def read_case(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The json and the tensors of a case; either may be absent."""
    facts, tensors = folder / f"{name}.json", folder / f"{name}.safetensors"
    return (
        json.loads(facts.read_text()) if facts.is_file() else {},
        load_file(tensors) if tensors.is_file() else {},
    )


def picture(tensor: Tensor) -> np.ndarray:
    """A golden uint8 picture as the model takes it."""
    return tensor.numpy()
