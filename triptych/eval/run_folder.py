"""The folder of a run: what would have to be the same, every row as it came, every picture, and the report.

    manifest.json          settings, and fingerprints of weights, prompts, judge and code; written once, never changed
    results.jsonl          a line per row, flushed as it comes; a shard writes results-1-of-2.jsonl
    pictures/00007-0-2.png pixels that were judged: prompt 7, seed 0, after 2 edits; lossless
    report.json            once no job is open

A killed run loses at most the line it was writing, and can be resumed. Processes share a run as shards: each takes
every n-th job and is the only one to write its file; readers merge the files. A row that another one repeats is
superseded by it, unless only the earlier one has all its verdicts.

What tells whether two runs can be compared: marks of weights, prompts, pictures and code, and versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych.errors import ConfigError, OutputError
from triptych.eval.results import Report, Row, summarize
from triptych.model.config import current_names
from triptych.model.images import write_picture
from triptych.trace import Prompt

try:
    import fcntl
except ImportError:  # a system without it trusts its users not to start one shard twice
    fcntl = None

Job = tuple[int, int]  # index of a prompt, seed
Shard = tuple[int, int]  # (i, n): part i of n, counted from 1
Result = tuple[Row, Sequence[np.ndarray]]  # a row, and the pictures `[height width 3] uint8` to keep with it
Work = Callable[[Sequence[Job]], Iterable[Result]]  # one Result per job, in order

WHOLE: Shard = (1, 1)
MOST_TURNS, MOST_SEEDS = 1_000, 10_000  # of a run: no more is read, so no more is begun
_NEEDED: dict[str, Callable[[Any], bool]] = {  # of a manifest, and what a reader can work with
    "benchmark": lambda name: isinstance(name, str),
    "columns": lambda titles: titles is None or _all(titles, str),
    "prompts": lambda count: type(count) is int and 0 <= count <= 10_000_000,
    "turns": lambda count: type(count) is int and 0 <= count <= MOST_TURNS,
    "seeds": lambda seeds: _all(seeds, int) and 0 < len(seeds) <= MOST_SEEDS,
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, seen by one of its processes or by a reader; made by `open` or `read`."""

    folder: Path
    shard: Shard = WHOLE
    keep: bool = True  # pictures, too

    @staticmethod
    def open(
        folder: Path, manifest: Mapping[str, Any], resume: bool, shard: Shard = WHOLE, keep: bool = True
    ) -> RunFolder:
        """Start a new folder, join the other shards of a run, or go on with one when `resume` is set.

        Raises OutputError if the folder (of a shard: its own file) is taken without `resume`, or cannot be written;
        ConfigError if its manifest is another one, or none that could be read back, or if `shard` is no part.
        """
        if not 1 <= shard[0] <= shard[1]:
            raise ConfigError(f"shard {shard[0]}/{shard[1]}: expected I/N with I from 1 to N, such as 1/2")
        ledger = RunFolder(Path(folder), shard, keep)
        manifest = json.loads(json.dumps(manifest))  # as it will be read back: tuples are lists
        if told := _unreadable(manifest):
            raise ConfigError(f"{told}; expected at most {MOST_TURNS:,} turns and 1 to {MOST_SEEDS:,} seeds of a run")
        if not ledger.folder.exists() and ledger._found(manifest):
            return ledger
        taken = ledger.folder if shard == WHOLE else ledger.results
        if taken.exists() and not resume:
            raise OutputError(f"{taken} exists; expected a new one: choose another --out, or go on with --resume")
        ledger._check(manifest)
        return ledger

    @staticmethod
    def read(folder: Path) -> RunFolder:
        """The folder of a run, finished or not, to be read. Raises OutputError if it is none."""
        ledger = RunFolder(Path(folder))
        if told := _unreadable(ledger.manifest):
            raise OutputError(f"{folder}/manifest.json: {told}; expected the folder of a `triptych eval`: name another")
        return ledger

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json. Raises OutputError if it cannot be read."""
        return read_manifest(self.folder / "manifest.json")

    @property
    def jobs(self) -> list[Job]:
        """Every (prompt, seed) of the run, in the order in which they are played."""
        manifest = self.manifest
        return [(index, seed) for seed in manifest["seeds"] for index in range(manifest["prompts"])]

    def rows(self) -> list[Row]:
        """Every row so far of every shard, each (prompt, seed) once: the last one that is whole, or else the last."""
        found: dict[Job, Row] = {}
        for path in sorted(self.folder.glob("results*.jsonl")):
            for row in _rows(path):
                if row.complete or not found.get((row.prompt, row.seed), row).complete:
                    found[row.prompt, row.seed] = row
        return list(found.values())

    @property
    def columns(self) -> list[str]:
        """The columns of its table, in order."""
        return list(dict.fromkeys([*(self.manifest.get("columns") or ()), *(row.column for row in self.played())]))

    def open_jobs(self, rows: Iterable[Row] | None = None) -> list[Job]:
        """The jobs that have no row yet."""
        found = {(row.prompt, row.seed) for row in (self.rows() if rows is None else rows)}
        return [job for job in self.jobs if job not in found]

    def played(self) -> list[Row]:
        """The rows so far in the order of their jobs, whoever wrote them. OutputError for a row of another run."""
        found, jobs = {(row.prompt, row.seed): row for row in self.rows()}, self.jobs
        if strange := found.keys() - {*jobs}:
            told = f"{self.folder} holds rows of prompt {min(strange)[0]}, seed {min(strange)[1]}"
            raise OutputError(f"{told}; expected only jobs of its manifest: remove what belongs to another run")
        return [found[job] for job in jobs if job in found]

    def report(self) -> Report:
        """What the rows so far show, under the manifest's columns and turns."""
        manifest, rows = self.manifest, self.played()
        left = self.open_jobs(rows)
        return summarize(manifest["benchmark"], rows, self.columns, manifest["turns"], open_jobs=len(left))

    def place(self, row: Row, turn: int) -> Path:
        """Where the picture that stands after `turn` edits at most belongs."""
        return self.folder / "pictures" / f"{row.prompt:05d}-{row.seed}-{min(turn, row.edits)}.png"

    def picture(self, row: Row, turn: int) -> Path:
        """The file of the picture that stands after `turn` edits at most. Raises OutputError if it was not kept."""
        path = self.place(row, turn)
        if not path.exists():
            raise OutputError(f"{path} is missing; expected a run that kept its pictures: play it with --keep-pictures")
        return path

    def append(self, row: Row, pictures: Sequence[np.ndarray] = ()) -> None:
        """Keep the pictures, then add one line and flush it. Called by the one process that has the file `claimed`."""
        try:
            if self.keep and len(pictures):
                (self.folder / "pictures").mkdir(exist_ok=True)
                for turn, picture in enumerate(pictures):
                    write_picture(self.place(row, turn), picture)
            with self.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row.to_record(), ensure_ascii=False) + "\n")
        except OutputError:  # of a picture, which it names
            raise
        except OSError as error:
            raise _cannot_write(self.results, error) from error

    def finish(self, report: Report) -> None:
        """Write report.json, whole or not at all."""
        self.replace("report.json", json.dumps(report.to_record(), indent=1, ensure_ascii=False) + "\n")

    def replace(self, name: str, text: str) -> Path:
        """Write a file of the folder so that a reader sees the old one or the new one, whole."""
        path = self.folder / name
        part = path.with_name(f".{name}.{os.getpid()}.part")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error
        return path

    @property
    def results(self) -> Path:
        """The file that this shard alone writes."""
        index, count = self.shard
        return self.folder / ("results.jsonl" if self.shard == WHOLE else f"results-{index}-of-{count}.jsonl")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the results file against a second writer; a line that a kill tore off is dropped first.

        Raises OutputError if another process has it.
        """
        try:
            results = self.results.open("ab")
        except OSError as error:
            raise _cannot_write(self.results, error) from error
        with results:
            if fcntl is not None:
                try:
                    fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OutputError(
                        f"{self.results} is being written by another process; expected a shard that nobody plays: "
                        "wait for it, or take another --shard"
                    ) from error
            results.truncate(self.results.read_bytes().rfind(b"\n") + 1)
            yield

    def _found(self, manifest: Mapping[str, Any]) -> bool:
        """Make the folder with its manifest in it, in one step; False where another process was quicker."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=f".{self.folder.name}-") as temporary:
                new = Path(temporary) / self.folder.name
                new.mkdir()
                text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
                (new / "manifest.json").write_text(text, encoding="utf-8")
                os.rename(new, self.folder)
        except OSError as error:
            if (self.folder / "manifest.json").exists():
                return False
            raise _cannot_write(self.folder, error) from error
        return True

    def _check(self, manifest: Mapping[str, Any]) -> None:
        try:
            recorded = self.manifest
        except OutputError as error:
            raise ConfigError(f"{error}; or choose a new --out") from error
        changed = [key for key in {**recorded, **manifest} if recorded.get(key) != manifest.get(key)]
        if changed:
            told = "; ".join(f"{key} was {recorded.get(key)!r}, is {manifest.get(key)!r}" for key in changed)
            raise ConfigError(f"{self.folder} holds another run: {told}. Keep the settings, or choose a new --out")


def read_rows(jobs: Sequence[Job], work: Work, ledger: RunFolder | None = None, batch_size: int = 16) -> Iterator[Row]:
    """Yield a Row per job: the loop of every benchmark, be it drawn or asked.

    `work` is given up to `batch_size` jobs at a time and returns for each, in order, its Row and the pictures to keep
    with it (none for a quiz about pictures that are kept elsewhere). With a ledger

    - only every n-th job is played, where the ledger is a shard of n;
    - rows that are in the folder and whole come first and are not played again, whoever wrote them; the others are;
    - each row is in the folder before it is yielded, so that who stops listening loses nothing;
    - report.json is written at the end, if no job of any shard is open.

    `jobs` are then all jobs of the run, those of `RunFolder.jobs`: its manifest holds `benchmark`, `prompts` (how many),
    `seeds`, `turns` and `columns`. Raises OutputError where the folder cannot be written, or another process plays
    this shard.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected 1 or more")
    if ledger is None:
        yield from (row for batch in _batches(jobs, batch_size) for row, _ in work(batch))
        return
    index, count = ledger.shard
    own = list(jobs[index - 1 :: count])
    with ledger.claimed():
        done = {(row.prompt, row.seed): row for row in ledger.rows() if row.complete}
        yield from (done[job] for job in own if job in done)
        left = [job for job in own if job not in done]
        for batch in _batches(left, batch_size):
            for row, pictures in work(batch):
                ledger.append(row, pictures)
                yield row
    report = ledger.report()
    if not report.open:
        ledger.finish(report)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run. Raises OutputError if the file is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read; expected the manifest of a run: name the folder of one") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path} holds no settings; expected the manifest of a run: name the folder of one")
    if isinstance(found.get("sampling"), dict):
        found["sampling"] = current_names(found["sampling"])  # a run of 0.1
    return found


def _unreadable(manifest: Mapping[str, Any]) -> str:
    wrong = [name for name, holds in _NEEDED.items() if not holds(manifest.get(name))]
    return f"{wrong[0]} is {str(manifest.get(wrong[0]))[:40]!r}" if wrong else ""


def _all(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _batches(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))


def _rows(path: Path) -> Iterator[Row]:
    """The rows of one file; a last line without its end is still being written, or never will be."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            yield Row.from_record(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            told = f"got {line[:60].decode(errors='replace')!r}: remove that line"
            raise OutputError(f"{path}:{number}: expected a row of results, {told}") from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder with --out")


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
