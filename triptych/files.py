"""Writing to disk: a file or a folder appears under its name whole, or not at all.

Everything is written beside its final name, flushed to the disk and then renamed, so that a kill or a full disk leaves
the old version or the new one. A leftover of a killed write starts with a dot and ends in `.part`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from triptych.errors import OutputError

LFS_POINTER = b"version https://git-lfs.github.com"  # the first bytes of a file that Git LFS has not fetched


@contextmanager
def naming_errors(path: Path, remedy: str = "choose a place that can be written with --out") -> Iterator[None]:
    """Turn an OSError inside the block into the one OutputError that names `path`, the system's reason and a remedy."""
    try:
        yield
    except OSError as error:
        # Blocks nest: an OutputError from inside, made of an OSError, gets the path and the remedy of the outer one.
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if not isinstance(cause, OSError):  # an OutputError that already says what to do
            raise
        raise OutputError(f"cannot write {path}: {cause.strerror or cause}; {remedy}") from error


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file, or replace it, in one step. Raises OutputError; an older version is then untouched."""
    path = Path(path)
    part = _part(path)  # in the same folder: a rename is one step within a file system alone
    with naming_errors(path):
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the contents do
            os.replace(part, path)
            _sync(path.parent)  # the new name itself
        finally:
            part.unlink(missing_ok=True)  # of a failed write; after a good one it has its new name
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text; line ends stay as they are."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 1) -> Path:
    """`write_text` of a JSON value and a line end."""
    # A value that is no JSON fails here, before a file is opened.
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON in a single write, so that several processes may share the file. Raises OutputError.

    A line that a kill or a full disk left torn is closed first, so that it spoils no other.
    """
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate, too
    # Unbuffered, so that a line is one system call, and in append mode, where each lands whole behind the others.
    with naming_errors(path), Path(path).open("ab+", buffering=0) as file:
        if file.tell():  # append mode starts at the end: 0 is an empty file
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) != len(line):  # unbuffered writes may be short without an error
            raise OSError(0, "the disk is full")


def taken(path: Path) -> OutputError:
    """The error for an output that already exists."""
    return OutputError(f"{path} exists; expected a new folder, so that nothing is overwritten: choose another --out")


def check_writable(folder: Path) -> None:
    """Raise OutputError now, before any work, if `folder` exists or could not be made."""
    if os.path.lexists(folder):  # `exists` is False for a broken link
        raise taken(folder)
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    # By trying, since permissions do not tell of read-only and full file systems.
    with naming_errors(folder), tempfile.TemporaryDirectory(dir=parent, prefix=".triptych-"):
        pass


def unused_name(folder: Path) -> Path:
    """The first of `folder`, `folder-2`, `folder-3`, ... that does not exist."""
    candidate, number = folder, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `folder` when the block ends without an error.

    Raises OutputError if `folder` exists, before or after the block, or cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise taken(folder)
    with naming_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = _part(folder)
        part.mkdir()
        try:
            yield part
            _flush(part)  # else a crash after the rename could leave a folder of empty files
            if os.path.lexists(folder):  # rename would replace an empty folder of somebody else
                raise taken(folder)
            os.rename(part, folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it takes the place of `folder` when the block ends without an error.

    The older `folder` is whole until then, and is removed afterwards. Raises OutputError.
    """
    folder = Path(folder)
    with naming_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = _part(folder)
        part.mkdir()
        try:
            yield part
            _flush(part)
            old = _part(folder, ".old")
            if folder.exists():
                os.rename(folder, old)  # a kill between the two renames: `sweep` gives the old one its name back
            os.rename(part, folder)
            _sync(folder.parent)  # before the older one goes
            shutil.rmtree(old, ignore_errors=True)  # the new one is in place: what stays is for `sweep`
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it exists. It loses its name first, so that a kill never leaves a half folder under it."""
    folder = Path(folder)
    if folder.exists():
        aside = _part(folder, ".removed")
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writes left in `folder`. Only for a folder that no other process writes to."""
    # First the killed replacements, whose older version is the only whole one.
    for old in Path(folder).glob(".*.old.part"):
        name = old.name.removeprefix(".").rsplit(".", 3)[0]  # .NAME.PID-THREAD.old.part
        if not old.with_name(name).exists():
            os.rename(old, old.with_name(name))
    for path in Path(folder).glob(".*.part"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold a folder against other processes, by a lock file in it; a new folder is made, and goes if it stays empty.

    The system lets go of a lock when its process ends, however it ends, so that a file which a kill has left locks
    nothing. Raises OutputError if another process holds the folder.
    """
    from filelock import FileLock, Timeout  # 0.07 s, which readers of files need not wait for

    path = Path(folder) / name
    with naming_errors(path):
        is_new = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
            if not path.exists():  # taken off by a process that was just ending, as below: what is held is no name
                raise Timeout(str(path))
        except Timeout:
            lock.release()
            raise OutputError(
                f"{folder} is being written by another process; expected one that is free: wait for that process, or "
                "choose another --out"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; there, `release` does
            path.unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # not empty
                path.parent.rmdir()


def check_present(path: Path) -> None:
    """Raise OutputError where a file of a run is gone: its folder was removed, and must not be half made again."""
    if not path.exists():
        raise OutputError(
            f"{path.parent} was removed while it was being written; expected it to stay: start again, in another --out"
        )


class JsonLog:
    """A file of JSON lines that grows by one record at a time, such as steps.jsonl.

    A torn last line, which a kill or a full disk leaves, is not read, and the next append replaces it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._checked = False

    def read(self) -> list[dict[str, Any]]:
        """Every whole record, oldest first; none where there is no file."""
        return [record for _, record in self._lines()]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line and flush it. Raises OutputError."""
        with naming_errors(self.path):
            if not self._checked:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.keep(lambda record: True)  # drops a torn line, once for each log of a process
                self._checked = True
            append_json(self.path, record)

    def keep(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the records for which `holds` is true, such as those before a resumed step; drops torn lines."""
        if not self.path.exists():
            return
        text = "".join(line + "\n" for line, record in self._lines() if holds(record))
        if text.encode() != self.path.read_bytes():  # most logs are whole, and stay untouched
            write_text(self.path, text)

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # a torn line
                record = json.loads(line)
                if isinstance(record, dict):
                    yield line, record


def _part(path: Path, kind: str = "") -> Path:
    """The name beside `path` under which this thread writes it, or puts its older version aside."""
    # Process and thread in it: two writers of one name never share a half file, and the last rename wins.
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{kind}.part")


def _flush(folder: Path) -> None:
    """Bring a folder, its folders and every file in them to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if not path.is_file() and (os.name == "nt" or not path.is_dir()):  # Windows opens no folders; nor broken links
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
