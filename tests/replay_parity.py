"""Replay golden files of the reference implementation: one line per run, exit code 0 only if all hold.

python tests/replay_parity.py ../shared/parity --cases 1,2,3

Without --cases it replays every case that the folder has files of; a case that is asked for must be there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the house itself, installed or not

CASES = ("1", "2", "3", "4", "5", "6", "7", "8")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the cases and tiny_ckpt")
    parser.add_argument("--cases", help="which ones, by number; those that the folder has by default")
    arguments = parser.parse_args(words)
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    there = [case for case in CASES if any(arguments.folder.glob(f"case{case}_*"))]
    if not there:
        parser.error(f"{arguments.folder} has no case: expected files such as case1_*.json")
    wanted = there if arguments.cases is None else arguments.cases.split(",")
    if not set(wanted) <= set(CASES):
        parser.error(f"--cases {arguments.cases}: expected numbers among {','.join(CASES)}")
    failed = total = 0
    for case in wanted:
        for line, held in _lines(case, arguments.folder):
            print(line, flush=True)
            total, failed = total + 1, failed + (not held)
    print(f"{total - failed} of {total} runs hold")
    return 1 if failed or not total else 0


def _lines(case: str, folder: Path) -> Iterator[tuple[str, bool]]:
    """A case's runs; one that breaks off is a failure of its own, and the other cases go on."""
    try:
        for run in importlib.import_module(f"parity.case{case}").replay(folder):
            yield str(run), run.held
    except Exception as error:
        yield f"case {case:<3} {'breaks off':<34} FAIL  {type(error).__name__}: {error}", False


if __name__ == "__main__":
    sys.exit(main())
