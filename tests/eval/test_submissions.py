"""Pictures of any system: lists in every container, and what a folder leaves out, has twice or lacks is told."""

import json
from pathlib import Path

import pytest
from PIL import Image

from triptych.apps.cli import main
from triptych.eval.submissions import Entry, Fault, folder_notes, list_notes, list_pictures

RED_DOG = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"}


def folder(root: Path, number: int, *names: str) -> Path:
    """A folder of GenEval's layout with pictures of as many shades."""
    samples = root / f"{number:05d}" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(RED_DOG))
    for shade, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * shade, 0, 0)).save(samples / name)
    return samples


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.jsonl", '{"image": "a.png", "prompt": "a cat"}\n{"image": "b.png", "prompt": "a dog"}\n'),
        ("l.ndjson", '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": "a dog"}\n'),
        ("l.json", json.dumps([{"image_path": "a.png", "Prompt": "a cat"}, {"image": "b.png", "caption": "a dog"}])),
        ("l.csv", 'file_name,text\na.png,"a cat"\nb.png,a dog\n'),
        ("l.csv", "Image;Prompt\na.png;a cat\nb.png;a \u200bdo\u00adg\n"),
        ("l.TSV", "path\tprompt\na.png\ta cat\nb.png\ta dog\n"),
    ],
)
def test_lists_of_every_container_hold_the_same_pictures(tmp_path: Path, name: str, content: str):
    for picture in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / picture)
    (tmp_path / name).write_text(content)
    entries = list_pictures(tmp_path / name)
    assert [(entry.name, entry.prompt.text) for entry in entries if isinstance(entry, Entry)] == [
        ("a.png", "a cat"),
        ("b.png", "a dog"),
    ]


def test_a_bad_line_of_a_list_loses_no_other(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("image,prompt\n,a cat\na.png,a dog\na.png\nz.png,a cat\n")
    first, good, third, last = list_pictures(tmp_path / "l.csv")
    assert isinstance(good, Entry) and isinstance(last, Fault) and last.why == "no such file"
    assert isinstance(first, Fault) and first.line == 2 and "image is ''" in first.why
    assert isinstance(third, Fault) and third.line == 4 and "prompt is None" in third.why


def test_a_picture_that_a_list_has_twice_is_told(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "prompt": prompt} for prompt in ("a cat", "a dog", "a cat")]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (note,) = list_notes(list_pictures(tmp_path / "l.jsonl"))
    assert note == "a.png stands 2 times with one prompt (lines 1, 3); each counts"


def test_a_whole_folder_has_no_note(tmp_path: Path):
    for number in range(3):
        folder(tmp_path, number, "0000.png", "0001.jpg")
    assert folder_notes(tmp_path) == []


def test_what_is_odd_about_a_folder_is_told(tmp_path: Path):
    samples = folder(tmp_path, 0, "0000.png", "0001.tiff", "0002.gif")
    (samples / "0003.png").write_bytes((samples / "0000.png").read_bytes())
    (samples / "more").mkdir()
    for name in ("a.heic", "a.eps", "a.svg"):
        (samples / name).write_text("x")
    folder(tmp_path, 3, "0000.png")
    (tmp_path / "00004").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "00004" / "0000.png")
    left_out = "is left out: no format that is read here"
    assert folder_notes(tmp_path) == [
        f"00000/samples/a.eps {left_out}",
        f"00000/samples/a.heic {left_out}",
        f"00000/samples/a.svg {left_out}",
        "00000/samples/more/ is left out: a folder within samples/",
        "00004/ is left out: pictures without metadata.jsonl and samples/",
        "00000/samples: 0000.png, 0003.png are one picture; each counts",
        "absent: 00001, 00002",
        "uneven: 00003 has 1, where others have 4 pictures",
    ]


def test_the_notes_stand_beside_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    folder(Path("set"), 0, "0000.png")
    samples = folder(Path("set"), 2, "0000.png")
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    red.save(samples / "0001.gif", save_all=True, append_images=[blue])
    main(["judge", "set", "--judge", "world", "--json"])  # whose verdicts, if any, are not looked at here
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    notes = ["absent: 00001", "uneven: 00000 has 1, where others have 2 pictures"]
    assert record["notes"] == [*notes, "set/00002/samples/0001.gif has 2 frames; the first counts"]
    assert all(f"note: {note}" in printed.err for note in record["notes"])
    assert record["set"]["prompts"] == 1 and record["set"]["of_prompts"] == 553 and not record["set"]["complete"]


def test_the_shared_cases_of_pictures_in_folders(shared: Path):
    (case,) = (shared / "cases").glob("34-*")
    entries = list_pictures(case)
    assert len(entries) == 6 and all(isinstance(entry, Entry) for entry in entries)
    (case,) = (shared / "cases").glob("17-*")
    (entry,) = list_pictures(case / "pics.jsonl")
    assert isinstance(entry, Entry) and "\u200c" in entry.prompt.text
