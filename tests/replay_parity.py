"""Replay golden files of the reference implementation: one line per run, exit code 0 only if all hold.

python tests/replay_parity.py ../shared/parity --cases 1,2,3
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

CASES = ("1", "2", "3", "4", "5", "6", "7", "8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the cases and tiny_ckpt")
    parser.add_argument("--cases", default=",".join(CASES), help="which ones, by number; all by default")
    arguments = parser.parse_args()
    wanted = arguments.cases.split(",")
    if not set(wanted) <= set(CASES):
        parser.error(f"--cases {arguments.cases}: expected numbers among {','.join(CASES)}")
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    failed = total = 0
    for case in wanted:
        for run in importlib.import_module(f"parity.case{case}").replay(arguments.folder):
            print(run, flush=True)
            total, failed = total + 1, failed + (not run.held)
    print(f"{total - failed} of {total} runs hold")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
