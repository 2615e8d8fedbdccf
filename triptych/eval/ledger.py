"""The folder of a benchmark run: `manifest.json`, `results.jsonl` and, once all rows are in, `report.json`.

The manifest is written first and says what would have to be the same for the same numbers. Rows are appended one by one
and flushed, so that a killed run loses at most the line it was writing, and can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from triptych.errors import ConfigError, OutputError
from triptych.eval.report import Report, Row
from triptych.trace import Prompt


@dataclass(frozen=True)
class Ledger:
    """A folder that takes rows; made by `Ledger.open`."""

    folder: Path

    @staticmethod
    def open(folder: Path, manifest: Mapping[str, Any], resume: bool) -> Ledger:
        """Start a new folder, or go on with one that has the same manifest when `resume` is set.

        Raises OutputError if the folder is taken (without `resume`) or cannot be written, and ConfigError if its
        manifest is another one.
        """
        ledger = Ledger(Path(folder))
        manifest = json.loads(json.dumps(manifest))  # as it will be read back: tuples are lists
        if not ledger.folder.exists():
            try:
                ledger.folder.mkdir(parents=True)
            except OSError as error:
                raise _cannot_write(ledger.folder, error) from error
            ledger._replace("manifest.json", manifest)
            return ledger
        if not resume:
            raise OutputError(f"{folder} exists; expected a new folder: choose another --out, or go on with --resume")
        ledger._check(manifest)
        ledger._drop_torn_line()
        return ledger

    def rows(self) -> list[Row]:
        """Every row so far; of rows for the same prompt and seed, the last one."""
        found: dict[tuple[int, int], Row] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                row = Row.from_record(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{self._results}:{number}"
                raise OutputError(f"{where}: expected a row of results, got {line[:60]!r}: remove that line") from error
            found[row.prompt, row.seed] = row
        return list(found.values())

    def append(self, row: Row) -> None:
        """Add one line and flush it."""
        try:
            with self._results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row.to_record(), ensure_ascii=False) + "\n")
        except OSError as error:
            raise _cannot_write(self._results, error) from error

    def finish(self, report: Report) -> None:
        """Write report.json, whole or not at all."""
        self._replace("report.json", report.to_record())

    @property
    def _results(self) -> Path:
        return self.folder / "results.jsonl"

    def _lines(self) -> list[str]:
        return self._results.read_text(encoding="utf-8").splitlines() if self._results.exists() else []

    def _check(self, manifest: Mapping[str, Any]) -> None:
        path = self.folder / "manifest.json"
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read; expected the manifest of a run: choose a new --out") from error
        changed = [key for key in {**recorded, **manifest} if recorded.get(key) != manifest.get(key)]
        if changed:
            told = "; ".join(f"{key} was {recorded.get(key)!r}, is {manifest.get(key)!r}" for key in changed)
            raise ConfigError(f"{self.folder} holds another run: {told}. Keep the settings, or choose a new --out")

    def _drop_torn_line(self) -> None:
        """A killed run may leave a last line without its end."""
        if not self._results.exists():
            return
        content = self._results.read_bytes()
        if not content.endswith(b"\n"):
            with self._results.open("r+b") as results:
                results.truncate(content.rfind(b"\n") + 1)

    def _replace(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.folder / name
        temporary = path.with_suffix(".partial")
        try:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise _cannot_write(path, error) from error


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


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    try:
        triptych = version("triptych")
    except PackageNotFoundError:
        triptych = "source"
    return {"triptych": triptych, "torch": torch.__version__, "python": platform.python_version()}


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder with --out")
