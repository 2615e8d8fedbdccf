"""The folder of a run: what would have to be the same for the same numbers, every row, every picture, and the report.

    manifest.json          settings, and fingerprints of weights, prompts, judge and code; written once, never changed
    results.jsonl          a line per row, flushed as it comes; a shard writes results-1-of-2.jsonl
    pictures/00007-0-2.png pixels that were judged: prompt 7, seed 0, after 2 edits; lossless
    report.json            once no job is open

A killed run loses at most the line it was writing, and can be resumed. Processes share a run as shards: each takes
every n-th job and is the only one to write its file; readers merge the files. A row that another one repeats is
superseded by it, unless only the earlier one has all its verdicts.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from triptych import __version__
from triptych.errors import ConfigError, OutputError
from triptych.eval.results import Report, Row, summarize
from triptych.files import append_json, naming_errors, new_folder, write_json
from triptych.model.config import current_names
from triptych.model.images import write_image
from triptych.model.weights import fingerprint
from triptych.trace import Prompt

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing keeps a user from starting one shard twice
    fcntl = None

EvalJob = tuple[int, int]  # index of a prompt, seed
Shard = tuple[int, int]  # (i, n): part i of n, counted from 1
JobResult = tuple[Row, Sequence[np.ndarray]]  # a row, and the pictures `[height width 3] uint8` to keep with it
Work = Callable[[Sequence[EvalJob]], Iterable[JobResult]]  # one result per job, in order

WHOLE: Shard = (1, 1)
MOST_TURNS, MOST_SEEDS = 1_000, 10_000  # of a run: no more is read, so no more is begun
_NEEDED: dict[str, Callable[[Any], bool]] = {  # of a manifest, and what a reader can work with
    "benchmark": lambda name: isinstance(name, str),
    "columns": lambda titles: titles is None or _all(titles, str),
    "prompts": lambda count: type(count) is int and 0 <= count <= 10_000_000,  # a job list that fits in memory
    "turns": lambda count: type(count) is int and 0 <= count <= MOST_TURNS,
    "seeds": lambda seeds: _all(seeds, int) and 0 < len(seeds) <= MOST_SEEDS,
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, seen by one of its processes or by a reader; made by `open` or `read`."""

    folder: Path
    shard: Shard = WHOLE
    keep_pictures: bool = True

    @staticmethod
    def open(
        folder: Path, manifest: Mapping[str, Any], resume: bool, shard: Shard = WHOLE, keep_pictures: bool = True
    ) -> RunFolder:
        """Start a new folder, join the other shards of a run, or go on with one when `resume` is set.

        Raises OutputError if the folder (of a shard: its own file) exists without `resume`, or cannot be written;
        ConfigError if its manifest is another one, or none that could be read back, or if `shard` is no part.
        """
        if not 1 <= shard[0] <= shard[1]:
            raise ConfigError(f"shard {shard[0]}/{shard[1]}: expected I/N with I from 1 to N, such as 1/2")
        run_folder = RunFolder(Path(folder), shard, keep_pictures)
        manifest = json.loads(json.dumps(manifest))  # as it will be read back: tuples are lists
        if fault := _fault(manifest):
            raise ConfigError(f"{fault}; expected at most {MOST_TURNS:,} turns and 1 to {MOST_SEEDS:,} seeds of a run")
        if not run_folder.folder.exists() and run_folder._create(manifest):
            return run_folder
        # A shard may join a folder that is there, and only its own file must be new.
        output = run_folder.folder if shard == WHOLE else run_folder.results
        if output.exists() and not resume:
            raise OutputError(f"{output} exists; expected a new one: choose another --out, or go on with --resume")
        run_folder._expect_same(manifest)  # of another shard, too: it must play the same run
        return run_folder

    @staticmethod
    def read(folder: Path) -> RunFolder:
        """The folder of a run, finished or not, to be read. Raises OutputError if it is none."""
        run_folder = RunFolder(Path(folder))
        if fault := _fault(run_folder.manifest):
            raise OutputError(
                f"{folder}/manifest.json: {fault}; expected the folder of a `triptych eval`: name another"
            )
        return run_folder

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json. Raises OutputError if it cannot be read."""
        return read_manifest(self.folder / "manifest.json")

    @property
    def jobs(self) -> list[EvalJob]:
        """Every (prompt, seed) of the run, in the order in which they are played."""
        manifest = self.manifest
        return [(index, seed) for seed in manifest["seeds"] for index in range(manifest["prompts"])]

    def rows(self) -> list[Row]:
        """The rows so far of every shard, each job once, in the order of their jobs.

        Of several rows of a job the last one that is complete counts, or else the last. Raises OutputError for a row
        of another run.
        """
        rows: dict[EvalJob, Row] = {}
        # Of any number of shards, since a run may go on in others than it began with. Sorted: of two whole rows the
        # same one counts on every disk.
        for path in sorted(self.folder.glob("results*.jsonl")):
            for row in _read_rows(path):
                if row.complete or not rows.get((row.prompt, row.seed), row).complete:
                    rows[row.prompt, row.seed] = row
        jobs = self.jobs
        if strangers := rows.keys() - {*jobs}:
            prompt, seed = min(strangers)
            raise OutputError(
                f"{self.folder} holds rows of prompt {prompt}, seed {seed}; expected only jobs of its manifest: remove "
                "what belongs to another run"
            )
        return [rows[job] for job in jobs if job in rows]

    def columns(self, rows: Iterable[Row]) -> list[str]:
        """The columns of its table, in order: those of the manifest, then others that `rows` have."""
        return list(dict.fromkeys([*(self.manifest.get("columns") or ()), *(row.column for row in rows)]))

    def open_jobs(self, rows: Iterable[Row]) -> list[EvalJob]:
        """The jobs that have no row among `rows`."""
        done = {(row.prompt, row.seed) for row in rows}
        return [job for job in self.jobs if job not in done]

    def report(self) -> Report:
        """What the rows so far show, under the manifest's columns and turns."""
        manifest, rows = self.manifest, self.rows()
        left = len(self.open_jobs(rows))
        return summarize(manifest["benchmark"], rows, self.columns(rows), manifest["turns"], open_jobs=left)

    def picture_path(self, row: Row, turn: int) -> Path:
        """Where the picture that stands after `turn` edits at most belongs."""
        return self.folder / "pictures" / f"{row.prompt:05d}-{row.seed}-{min(turn, row.edits)}.png"

    def kept_picture(self, row: Row, turn: int) -> Path:
        """The file of the picture that stands after `turn` edits at most. Raises OutputError if it was not kept."""
        path = self.picture_path(row, turn)
        if not path.exists():
            raise OutputError(f"{path} is missing; expected a run that kept its pictures: play it with --keep-pictures")
        return path

    def append(self, row: Row, pictures: Sequence[UInt8[np.ndarray, "height width 3"]] = ()) -> None:
        """Keep the pictures, then add one line and flush it. Called by the process that holds the `lock`.

        The line comes last: after a kill, a row that is in the file has its pictures. Raises OutputError.
        """
        if self.keep_pictures and len(pictures):
            with naming_errors(self.folder / "pictures"):
                (self.folder / "pictures").mkdir(exist_ok=True)
            for turn, picture in enumerate(pictures):
                write_image(self.picture_path(row, turn), picture)
        append_json(self.results, row.to_record())

    def finish(self, report: Report) -> None:
        """Write report.json, whole or not at all. Raises OutputError."""
        write_json(self.folder / "report.json", report.to_record())

    @property
    def results(self) -> Path:
        """The file that this shard alone writes."""
        index, count = self.shard
        return self.folder / ("results.jsonl" if self.shard == WHOLE else f"results-{index}-of-{count}.jsonl")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the results file against a second writer; a line that a kill tore off is dropped first.

        Raises OutputError if another process has it, or if it cannot be written.
        """
        with naming_errors(self.results):
            results = self.results.open("ab")
        with results:
            if fcntl is not None:
                try:
                    fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it after a kill, too
                except BlockingIOError as error:
                    raise OutputError(
                        f"{self.results} is being written by another process; expected a shard that nobody plays: "
                        "wait for it, or take another --shard"
                    ) from error
            # Appending to a torn line would spoil the next row as well.
            results.truncate(self.results.read_bytes().rfind(b"\n") + 1)
            yield

    def _create(self, manifest: Mapping[str, Any]) -> bool:
        """Make the folder with its manifest in it, in one step; False where another process was quicker."""
        try:
            with new_folder(self.folder) as folder:
                write_json(folder / "manifest.json", manifest)
        except OutputError:
            if (self.folder / "manifest.json").exists():  # another shard's process made it at the same time
                return False
            raise
        return True

    def _expect_same(self, manifest: Mapping[str, Any]) -> None:
        try:
            recorded = self.manifest
        except OutputError as error:
            raise ConfigError(f"{error}; or choose a new --out") from error
        changed = [key for key in {**recorded, **manifest} if recorded.get(key) != manifest.get(key)]
        if changed:
            changes = "; ".join(f"{key} was {recorded.get(key)!r}, is {manifest.get(key)!r}" for key in changed)
            raise ConfigError(f"{self.folder} holds another run: {changes}. Keep the settings, or choose a new --out")


def play_jobs(
    jobs: Sequence[EvalJob], work: Work, run_folder: RunFolder | None = None, batch_size: int = 16
) -> Iterator[Row]:
    """Yield a Row per job: the loop of every benchmark, be it drawn or asked.

    `work` is given up to `batch_size` jobs at a time and returns for each, in order, its Row and the pictures to keep
    with it (none for a quiz about pictures that are kept elsewhere). With a run folder

    - only every n-th job is played, where the folder is that of a shard of n;
    - rows that are in the folder and complete come first and are not played again, whoever wrote them; others are;
    - each row is in the folder before it is yielded, so that who stops listening loses nothing;
    - report.json is written at the end, if no job of any shard is open.

    `jobs` are then all jobs of the run, those of `RunFolder.jobs`: its manifest holds `benchmark`, `prompts` (how
    many), `seeds`, `turns` and `columns`. Raises OutputError where the folder cannot be written, or another process
    plays this shard.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected 1 or more")
    if run_folder is None:
        yield from (row for batch in _batches(jobs, batch_size) for row, _ in work(batch))
        return
    index, count = run_folder.shard
    own = list(jobs[index - 1 :: count])  # every n-th: columns are spread evenly over shards
    with run_folder.lock():
        done = {(row.prompt, row.seed): row for row in run_folder.rows() if row.complete}
        yield from (done[job] for job in own if job in done)
        for batch in _batches([job for job in own if job not in done], batch_size):
            for row, pictures in work(batch):
                run_folder.append(row, pictures)
                yield row
    # Shards that end together may both write it: the same report, each time whole.
    report = run_folder.report()  # of all shards: whoever comes last writes it
    if not report.open:
        run_folder.finish(report)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run, under today's names. Raises OutputError if the file is none."""
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read; expected the manifest of a run: name the folder of one") from error
    if not isinstance(manifest, dict):
        raise OutputError(f"{path} holds no settings; expected the manifest of a run: name the folder of one")
    for record in (manifest, manifest.get("drawn")):  # `drawn`: of a quiz, the settings of the run that drew
        if isinstance(record, dict):
            record.update(_current(record))
    return manifest


def _current(record: Mapping[str, Any]) -> dict[str, Any]:
    """What 0.1 called by another name: settings of sampling, and the dev set."""
    changes: dict[str, Any] = {}
    if isinstance(record.get("sampling"), dict):
        changes["sampling"] = current_names(record["sampling"])
    if isinstance(record.get("benchmark"), str):
        # `rehearsal (20 of 70)` as well, the name that --limit gives.
        changes["benchmark"] = re.sub(r"^rehearsal(?= \(|$)", "dev-set", record["benchmark"])
    return changes


def _fault(manifest: Mapping[str, Any]) -> str:
    """What makes a manifest unfit to be read back, in words; empty where nothing does."""
    wrong = [name for name, holds in _NEEDED.items() if not holds(manifest.get(name))]
    return f"{wrong[0]} is {str(manifest.get(wrong[0]))[:40]!r}" if wrong else ""


def _all(values: object, kind: type) -> bool:
    # JSON's true is an instance of int.
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _batches(jobs: Sequence[EvalJob], size: int) -> Iterator[Sequence[EvalJob]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))


def _read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file; a last line without its end is still being written, or never will be."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            yield Row.from_record(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{path}:{number}: expected a row of results, got {line[:60].decode(errors='replace')!r}: remove that "
                "line"
            ) from error


def model_settings(policy: Any) -> dict[str, Any]:
    """What a manifest says of the model: its fingerprint, and where and in which precision it computes."""
    dtype = getattr(policy, "dtype", None)
    return {
        "model": fingerprint(policy),
        "device": getattr(getattr(policy, "device", None), "type", "cpu"),  # shards may play on cuda:0 and cuda:1
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }


def code_settings() -> dict[str, Any]:
    """What a manifest says of the code: a hash of it, and the versions of what computes the numbers."""
    return {"code_sha256": code_sha256(), "versions": versions()}


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Over text, spec and picture of every prompt, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        # The shape too: pictures of other sizes can have the same bytes.
        spec = None if prompt.spec is None else prompt.spec.to_metadata()
        digest.update(json.dumps([prompt.text, spec, None if prompt.image is None else prompt.image.shape]).encode())
        digest.update(b"" if prompt.image is None else prompt.image.tobytes())
    return digest.hexdigest()


def pixels_sha256(picture: np.ndarray) -> str:
    """16 hex digits over size and pixels of a picture `[height width 3] uint8`, the same for equal pictures only."""
    return hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()[:16]


@cache
def code_sha256() -> str:
    """16 hex digits over every module of this package: names and text, in order of names.

    Line ends are made the same, so that a checkout on Windows is the same code.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    return {"triptych": __version__, "torch": torch.__version__, "python": platform.python_version()}
