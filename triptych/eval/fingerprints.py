"""What tells whether two runs can be compared: marks of weights, prompts, pictures and code, and versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych.trace import Prompt


def fingerprint(policy: Any) -> str:
    """A policy's name, and 16 hex digits over its configuration and every weight where it has weights."""
    config = getattr(policy, "config", None)
    name = getattr(config, "name", None) or getattr(policy, "name", type(policy).__name__)
    if not isinstance(policy, torch.nn.Module):
        return str(name)
    digest = hashlib.sha256(repr(config).encode())
    for key, weight in sorted(policy.state_dict().items()):
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"{name}-{digest.hexdigest()[:16]}"


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Over text, spec and picture of every prompt, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        spec = None if prompt.spec is None else prompt.spec.to_metadata()
        digest.update(json.dumps([prompt.text, spec, None if prompt.image is None else prompt.image.shape]).encode())
        digest.update(b"" if prompt.image is None else prompt.image.tobytes())
    return digest.hexdigest()


def pixels_sha256(picture: np.ndarray) -> str:
    """16 hex digits over size and pixels of a picture `[height width 3] uint8`, the same for equal pictures only."""
    return hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()[:16]


@cache
def code_sha256() -> str:
    """16 hex digits over every module of this package: names and text, in order of names."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    try:
        triptych = version("triptych")
    except PackageNotFoundError:
        triptych = "source"
    return {"triptych": triptych, "torch": torch.__version__, "python": platform.python_version()}
