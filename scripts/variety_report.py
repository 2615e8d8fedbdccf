"""How visibly the pictures of one prompt differ from seed to seed: all pairs of seeds of a `triptych eval` folder.

    python scripts/variety_report.py runs/lessons runs/r3

The run must have kept its pictures. "Places" is the share of pairs whose stickers stand in other cells of the 3 x 3
grid, "things" of those that show other classes, colours or sizes; "either" counts a pair once. Wrong pictures differ as
they please, so the shares are told of all pairs, and of those in which both pictures are right. The finder says what is
seen.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from triptych.data.scene import CANVAS, Scene
from triptych.eval.run_folder import RunFolder
from triptych.model.images import read_image
from triptych.rewards.sticker_judge import detect

Look = tuple[frozenset, tuple]  # cells that are taken; what stands there, in any order


def main(folders: Sequence[str]) -> None:
    for folder in folders:
        run_folder = RunFolder.read(Path(folder))
        for name, last in (("first pictures", False), ("last pictures", True)):
            rows = run_folder.rows()
            turns = [row.edits if last else 0 for row in rows]
            scenes = detect([read_image(run_folder.kept_picture(row, turn)) for row, turn in zip(rows, turns, strict=True)])
            looks: dict[int, list[tuple[Look, bool]]] = defaultdict(list)
            for row, turn, scene in zip(rows, turns, scenes, strict=True):
                looks[row.prompt].append((look(scene), row.score(turn) == 1))
            pairs = [pair for each in looks.values() for pair in combinations(each, 2)]
            print(f"{folder}, {name}: {told(pairs)}; both right: {told(p for p in pairs if p[0][1] and p[1][1])}")


def look(scene: Scene) -> Look:
    """Where stickers stand, and what they are."""
    side = CANVAS / 3
    cells = frozenset((int(sticker.x // side), int(sticker.y // side)) for sticker in scene.stickers)
    return cells, tuple(sorted((sticker.name, sticker.color, sticker.size) for sticker in scene.stickers))


def told(pairs: Iterable[tuple[tuple[Look, bool], tuple[Look, bool]]]) -> str:
    """The three shares of these pairs."""
    differ = [(a[0] != b[0], a[1] != b[1]) for (a, _), (b, _) in pairs]
    if not differ:
        return "no pairs"
    places, things = (sum(column) / len(differ) for column in zip(*differ, strict=True))
    either = sum(any(each) for each in differ) / len(differ)
    return f"places {places:.2f}, things {things:.2f}, either {either:.2f} of {len(differ)} pairs"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python scripts/variety_report.py RUN [RUN ...]; expected folders of `triptych eval`")
    main(sys.argv[1:])
