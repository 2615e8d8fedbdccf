"""More than 300 hostile inputs through the doors: each gives one clear line, nothing is lost, no file is changed.

What is scored or reported ends the command: exit code 2. What is judged costs itself: a row without verdict, listed.
"""

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted import ScriptedPolicy

from triptych.apps.cli import main
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.trace import Item, Spec

NAN, INF = float("nan"), float("inf")
STRANGE = "\ud800\x1b[31m\u202e" * 9
BOX = {"box": [10.0, 10.0, 60.0, 60.0], "score": 0.9, "color": "red"}
CAT = {"class": "cat", "count": 1, "color": "red"}
GOOD: dict[str, dict[str, Any]] = {
    "geneval": {
        "metadata": {"tag": "colors", "include": [CAT], "prompt": "a red cat"},
        "detections": {"cat": [BOX]},
    },
    "tiif": {
        **{"attribute": "style", "length": "short", "questions": ["Round?", "Red?"], "gt_answers": ["yes", "no"]},
        "model_output": "yes, it is.\nno, blue.",
    },
    "genevalpp": {"tag": "counting", "prompt": "A photo of six cats", "correct": 1},
}
ABSENT = object()

# What is put where, by benchmark: the path to a field, and the values that it must not hold
DAMAGE: dict[str, dict[str, list[Any]]] = {
    "geneval": {
        "detections.cat.0.box": [
            *([60, 10, 10, 60], [10, 60, 60, 10], [NAN, 0, 1, 1], [0, INF, 1, 1], [0, 0, -INF, 1], [1e30, 0, 2e30, 1]),
            *([0, 0, 1], [], None, 3, "box", {}, [None] * 4, ["0", "0", "1", "1"], [True] * 4, [[0], 0, 1, 1]),
            *([0, 0, 1, 10**400], ABSENT),
        ],
        "detections.cat.0.score": [NAN, INF, -INF, "0.9", None, True, [], {}, 10**400, ABSENT],
        "detections.cat.0.color": ["rainbow", "", "RED", 3, [], {}, True, STRANGE, None, ABSENT],
        "detections.cat.0": [None, 3, "cat", [], [10, 10, 60, 60]],
        "detections.cat": [None, 3, "cat", {}, True],
        "detections": [None, 3, "cat", [], True, ABSENT],
        "metadata.tag": [None, 3, "", [], {}, ABSENT],
        "metadata.include.0.class": [None, 3, "", [], {}, ABSENT],
        "metadata.include.0.count": [-1, 1.5, "two", "1", None, NAN, INF, [], True],
        "metadata.include.0.color": [3, [], {}, True],
        "metadata.include.0.region": ["left", 3, []],
        "metadata.include.0.size": ["larger", 3, []],
        "metadata.include.0.position": [[], ["left of"], ["left of", 0], ["left of", -1], ["beside", 0], "left of", 3],
        "metadata.include.0": [None, 3, "cat", []],
        "metadata.include": [None, 3, "cat", {}],
        "metadata.exclude": [3, "cat", {}, [3], [None], [{"class": "cat", "count": 0}]],
        "metadata": [None, 3, [], "{", "[]", "metadata", ABSENT],
    },
    "tiif": {
        "attribute": [None, 3, "", [], {}, True, ABSENT],
        "length": [None, 3, "", "medium", STRANGE, [], ABSENT],
        "questions": [None, 3, "Round?", [], ["Round?"], [3, 4], ["a?", "b?", "c?"], {}, ABSENT],
        "gt_answers": [None, 3, "yes", [], ["yes"], ["yes", "maybe"], ["yes", ""], [True, False], {}, ABSENT],
        "model_output": [
            *(None, 3, "", " ", "yes", "yes\nno\nyes", "1. yes", "I cannot see it.", STRANGE, [], {}, True, NAN),
            *("2. yes\n1. no", "yes" * 2_000_000, "maybe\nperhaps", "<think>yes\nno</think>", ABSENT),
        ],
    },
    "genevalpp": {
        "tag": [None, 3, "", [], {}, True, ABSENT],
        "correct": [
            *(-1, None, "", " ", 2, -2, 0.5, NAN, INF, [], {}, "unclear", "yes and no", "Correct: 7", STRANGE, ABSENT),
            *('{"correct": 1} {"correct": 0}', '{"correct": "perhaps"}', "{" * 10_000, "yes" * 1_000_000),
        ],
    },
}
LINES = [
    *(
        b"{",
        b"}",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"NaN",
        b"\xff\xfe",
        b"\x00" * 9,
        b"{}{}",
        b"not json",
        b"9" * 9_999,
    ),
    *(
        b"[" * 100_000,
        b'{"a":' * 9_999,
        b"x" * 10_000_000,
        b'{"a": "' + b"y" * 10_000_000,
        b"{'single': 1}",
        b"-",
        b"{}",
    ),
]


def changed(record: Any, path: list[str], value: Any) -> Any:
    """The record with another value at a path, or without it."""
    key: Any = int(path[0]) if isinstance(record, list) else path[0]
    copy = list(record) if isinstance(record, list) else dict(record)
    if len(path) > 1:
        copy[key] = changed(copy.get(key) if isinstance(copy, dict) else copy[key], path[1:], value)
    elif value is ABSENT:
        del copy[key]
    else:
        copy[key] = value
    return copy


def recordings() -> Iterator[tuple[str, bytes]]:
    """Benchmark and second line of a file whose first line is good."""
    for name, fields in DAMAGE.items():
        good = GOOD[name]
        for path, values in fields.items():
            start = good if "." not in path else changed(good, path.split(".")[:1], dict(good[path.split(".")[0]]))
            for value in values:
                if value is not ABSENT and path.rpartition(".")[2] in ("region", "size", "position"):
                    record = changed(start, path.split(".")[:-1], {**CAT, path.rpartition(".")[2]: value})
                elif path == "metadata.exclude":
                    record = changed(start, ["metadata"], {**start["metadata"], "exclude": value})
                else:
                    record = changed(start, path.split("."), value)
                yield name, json.dumps(record).encode()
        yield from ((name, line) for line in LINES)


# --- pictures to be judged --------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int = 8, color: int = 2, body: bytes = b"\0" * 100, extra: bytes = b""
) -> bytes:
    """A PNG whose header claims what its body may not hold; `extra` chunks come before the body."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def wordy() -> list[bytes]:
    """Whole pictures of 8 x 8 pixels whose texts unpack to more than Pillow reads."""
    body, text = (b"\0" + b"\1" * 24) * 8, zlib.compress(b"x" * (1 << 21))
    texts = [chunk(b"zTXt", b"key\0\0" + text), chunk(b"iTXt", b"key\0\1\0\0\0" + text)]
    texts.append(chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 1_000_000)) * 70)
    return [png(8, 8, body=body, extra=extra) for extra in texts]


def short() -> list[bytes]:
    """Pictures of formats whose readers do not say OSError of what is missing or makes no sense."""
    dds = b"DDS " + struct.pack("<7I", 124, 0x1007, 8, 8, 0, 0, 0) + b"\0" * 44 + struct.pack("<2I4s", 32, 4, b"????")
    return [b"P6 8 8 99999 " + b"\0" * 99, b"P6 x 8 255 ", b"P6 8", dds + b"\0" * 60]


def whole(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(file, format=kind)
    return file.getvalue()


def pictures() -> list[bytes]:
    """Files that are no pictures, or too large ones."""
    torn = [whole(kind)[:size] for kind in ("PNG", "JPEG", "WEBP", "BMP") for size in (1, 8, 20, 100)]
    giants = [png(*size) for size in [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 0), (1, 0), (50_000_001, 1)]]
    bitmap = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0)
    odd = [b"", b" ", b"GIF89a", b"not a picture", b"\0" * 10_000, b"<svg/>", b"%PDF-1.7", b"PK\x03\x04", bitmap]
    return [
        *torn,
        *giants,
        *odd,
        png(8, 8, 7),
        png(8, 8, 8, 9),
        png(8, 8)[:40] + b"\xff" * 40,
        b"\x89PNG\r\n\x1a\n" * 99,
        *wordy(),
        *short(),
    ]


def wishes() -> list[Any]:
    """Lines about a good picture that do not say what can be judged."""
    image = {"image": "good.png"}
    texts = [
        "",
        " ",
        None,
        3,
        [],
        {},
        "\ud800",
        "a\x07b",
        "x" * 20_000,
        "x " * 2_000,
        "\x00",
        "two qubits",
        "\u202e\u200b",
    ]
    items = [None, 3, "clock", {}, [], {"class": "clock", "count": -1}, {"class": "clock", "count": 10**400}]
    items += [{"class": "unicorn"}, {"class": "clock", "color": "plaid"}, {"class": "clock", "count": 12}]
    items += [{"class": "clock", "position": ["left of", 3]}, {"class": "clock", "region": "inside"}, {"count": 1}]
    found = [{**image, "prompt": text} for text in texts]
    found += [{**image, "tag": "counting", "include": [item]} for item in items]
    found += [{**image, "tag": tag, "include": [{"class": "clock", "count": 1}]} for tag in (None, 3, "", [])]
    found += [{**image, "metadata": each} for each in (None, 3, "x", [], {})]
    paths = [
        "/etc/passwd",
        "../outside.png",
        "link.png",
        "no.png",
        "",
        ".",
        "a\0b",
        "x" * 5000,
        None,
        3,
        [],
        {},
        "loop.png",
    ]
    found += [{"image": path, "prompt": "two clocks"} for path in (*paths, "folder.png", "pipe.png", "\ud800.png")]
    return [*found, image, {"prompt": "two clocks"}]


def submission(root: Path) -> tuple[list[bytes], int]:
    """The lines of a list of pictures in `root`, good ones first and last, and how many of them are hostile."""
    root.mkdir()
    spec = Spec("counting", (Item("clock", 2),))
    Image.fromarray(render_array(Scene.sample(spec, 0))).save(root / "good.png")
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(root / "dot.png")  # small, but a picture
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root.parent / "outside.png")
    os.symlink("../outside.png", root / "link.png")
    os.symlink("loop.png", root / "loop.png")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    lines = [json.dumps(wish).encode() for wish in wishes()] + [line for line in LINES if line.strip()]
    for number, content in enumerate(pictures()):
        (root / f"{number}.png").write_bytes(content)
        lines.append(json.dumps({"image": f"{number}.png", "prompt": "two clocks"}).encode())
    good = [json.dumps({"image": image, "prompt": "two clocks"}).encode() for image in ("good.png", "dot.png")]
    return [*good, *lines, *good], len(lines)


# --- run folders to be read -------------------------------------------------------------------------------------------

JUNK = [b"", b"{", b"[]", b"3", b"null", b'"text"', b"NaN", b"\xff\xfe\x00", b"[" * 100_000, b"x" * 1_000_000, b"{}"]
MANIFEST = {
    "benchmark": [None, 3, [], ABSENT],
    "prompts": [None, "8", -1, [], ABSENT],
    "turns": [None, "1", -1, [], ABSENT],
    "seeds": [None, 0, "0", {}, ["0"], ABSENT],
}
ROW = {
    "prompt": [None, "0", -1, [], 1.5, True, ABSENT],
    "seed": [None, "0", [], 0.5, ABSENT],
    "column": [None, 3, [], ABSENT],
    "verdicts": [None, 3, [3], [{}], [{"score": NAN, "passed": [], "failed": []}], ABSENT],
    "seconds": ["soon", NAN, INF, None, ABSENT],
    "said": [None, 3, ABSENT],
}


def runs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """File of a run folder, and what it is replaced by."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    first, *rest = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    yield from (("manifest.json", junk) for junk in JUNK)
    yield from (("results.jsonl", junk + b"\n" + first) for junk in JUNK if junk)
    for key, values in MANIFEST.items():
        yield from (("manifest.json", json.dumps(changed(manifest, [key], value)).encode()) for value in values)
    for key, values in ROW.items():
        rows = [json.dumps(changed(json.loads(first), [key], value)).encode() for value in values]
        yield from (("results.jsonl", row + b"\n" + b"".join(rest)) for row in rows)


# --- through the doors ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def state(root: Path = Path()) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change."""
    found = ((path, path.lstat()) for path in sorted(root.rglob("*")) if not path.is_dir())
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


def one_line(capsys: pytest.CaptureFixture, *words: object) -> str:
    """What is said when a command refuses: one line, exit code 2, no file changed."""
    before = state()
    assert main(list(map(str, words))) == 2, words
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("triptych: "), words
    assert printed.err.strip().isprintable() and len(printed.err) < 800, words
    assert state() == before
    return printed.err


RECORDINGS = list(recordings())


def test_there_are_more_than_300_and_no_two_are_the_same(tmp_path: Path):
    judged, _ = submission(tmp_path / "list")
    assert len(set(RECORDINGS)) == len(RECORDINGS) > 240
    assert len(set(pictures())) == len(pictures())
    assert len(RECORDINGS) + len(set(judged)) > 350


@pytest.mark.parametrize("benchmark", GOOD)
def test_recordings_are_refused_or_listed(benchmark: str, capsys: pytest.CaptureFixture):
    good = json.dumps(GOOD[benchmark]).encode()
    for line in (line for name, line in RECORDINGS if name == benchmark):
        Path("file.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
        told = one_line(capsys, "score", benchmark, "file.jsonl", "--missing", "fail")
        assert "file.jsonl, line 2" in told and ("damaged" not in told), line[:200]
        if "verdicts are missing" in told:  # whole, but without verdict: left out and listed on request
            before = state()
            assert main(["score", benchmark, "file.jsonl", "--json"]) == 0
            printed = capsys.readouterr()
            record = json.loads(printed.out)
            assert [each["line"] for each in record["missing"]] == [2]
            # Beside it stand notes on what the set lacks.
            assert [line[:8] for line in printed.err.splitlines() if not line.startswith("note: ")] == ["missing:"]
            assert record["pictures"] == 3 and state() == before
            (cell,) = record["cells"].values()
            assert cell["right"] == cell["asked"] > 0  # the two others, and no 0 for this one


def test_files_that_are_none(capsys: pytest.CaptureFixture):
    Path("folder").mkdir()
    Path("empty").touch()
    Path("torn.gz").write_bytes(gzip.compress(json.dumps(GOOD["tiif"]).encode() * 9)[:40])
    os.symlink("loop", "loop")
    os.mkfifo("pipe")
    for name in ("folder", "empty", "torn.gz", "loop", "pipe", "nowhere", "x" * 300, "/dev/null"):
        for benchmark in GOOD:
            one_line(capsys, "score", benchmark, name)
        one_line(capsys, "judge", f"{name}.jsonl")
        one_line(capsys, "report", name)


def test_a_hostile_submission_costs_only_itself(capsys: pytest.CaptureFixture):
    lines, hostile = submission(Path("list"))
    Path("list/list.jsonl").write_bytes(b"\n".join(lines))
    before = state()
    assert main(["judge", "list/list.jsonl", "--json"]) == 1
    printed = capsys.readouterr()
    record, told = json.loads(printed.out), [line for line in printed.err.splitlines() if line.startswith("missing: ")]
    verdicts = {row["line"]: row["correct"] for row in record["results"]}
    assert len(verdicts) == len(record["results"]) == len(lines)
    wrongly_judged = [lines[line - 1][:200] for line in sorted(verdicts)[2:-2] if verdicts[line] is not None]
    assert not wrongly_judged and hostile > 90
    assert [verdicts[line] for line in (1, 2, len(lines) - 1, len(lines))] == [True, None, True, None]
    assert len(told) == len(record["missing"]) == hostile + 2  # two pictures are no stickers
    assert all(line.isprintable() and len(line) < 6000 for line in told) and "Traceback" not in printed.err
    assert state() == before


def test_a_hostile_picture_is_one_line_at_every_door(capsys: pytest.CaptureFixture):
    for number, content in enumerate(pictures()):
        path = Path(f"{number}.png")
        path.write_bytes(content)
        for words in (["edit", path, "two clocks"], ["ask", path, "how many clocks?"], ["judge", path, "two clocks"]):
            assert path.name in one_line(capsys, *words)


def test_a_damaged_run_is_one_line_and_stays_as_it_is(capsys: pytest.CaptureFixture):
    words = ["eval", "dev", "--limit", "2", "--turns", "1", "--out", "run"]
    assert main(words, lambda *_: ScriptedPolicy()) == 0  # pyright: ignore[reportArgumentType]
    capsys.readouterr()
    cases = list(runs(Path("run")))
    assert len({content for _, content in cases}) > 50
    for name, content in cases:
        path = Path("run") / name
        kept = path.read_bytes()
        path.write_bytes(content)
        one_line(capsys, "report", "run")
        path.write_bytes(kept)
    assert main(["report", "run"]) == 0
