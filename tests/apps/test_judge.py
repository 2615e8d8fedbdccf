"""`triptych judge` on folders and lists of pictures: every picture is judged or told why not, and nothing is lost."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from http_judge import Answer, Request, Server, refusing, right, says, status, wrong
from PIL import Image

from triptych.apps.cli import main
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import PictureError
from triptych.eval.submissions import Entry, Fault, list_pictures
from triptych.trace import Item, Spec

pytest.importorskip("openai", reason="a judge over a network needs triptych[judge]")

CLOCKS = Spec("counting", (Item("clock", 2),))
CATS = Spec("colors", (Item("cat", 1, "black"),))


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TRIPTYCH_JUDGE_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def folder(index: int, metadata: object, *pictures: np.ndarray | bytes, root: str = "drawn") -> Path:
    """One prompt in GenEval's layout."""
    place = Path(root) / f"{index:05d}"
    (place / "samples").mkdir(parents=True)
    (place / "metadata.jsonl").write_text(metadata if isinstance(metadata, str) else json.dumps(metadata))
    for number, picture in enumerate(pictures):
        path = place / "samples" / f"{number:04d}.png"
        path.write_bytes(picture) if isinstance(picture, bytes) else Image.fromarray(picture).save(path)
    return place


def metadata(spec: Spec, prompt: str = "") -> dict[str, object]:
    return {**spec.to_metadata(), **({"prompt": prompt} if prompt else {})}


def sticker_picture(spec: Spec, seed: int = 0) -> np.ndarray:
    return render_array(Scene.sample(spec, seed))


def shade(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def judged(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, dict, list[str]]:
    """Exit code, JSON, and lines of stderr that tell what is missing."""
    code = main([*map(str, ["judge", *words]), "--json"])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("missing: ")]
    return code, json.loads(printed.out), lines


# --- the sticker world ------------------------------------------------------------------------------------------------


def test_a_folder_of_sticker_pictures(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS), sticker_picture(CLOCKS), sticker_picture(CATS))
    folder(1, metadata(CATS, "A photo of a black cat"), sticker_picture(CATS, 3))
    code, record, lines = judged(capsys, "drawn")
    assert (code, lines) == (0, [])
    assert [row["correct"] for row in record["results"]] == [True, False, True]
    assert [row["picture"] for row in record["results"]] == [
        *(f"00000/samples/{number:04d}.png" for number in range(2)),
        "00001/samples/0000.png",
    ]
    assert record["tags"] == {"counting": 0.5, "colors": 1.0} and record["overall"] == 0.75
    assert "two clocks: found zero" in record["results"][1]["reasons"]
    assert main(["judge", "drawn"]) == 0
    assert "0.7500" in capsys.readouterr().out


def test_the_second_judge_sees_the_same(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS), sticker_picture(CLOCKS), sticker_picture(CATS))
    (_, first, _), (code, second, _) = (judged(capsys, "drawn", "--judge", name) for name in ("world", "templates"))
    assert code == 0 and second["judge"] == "templates-1" != first["judge"]
    assert second["results"] == first["results"] and second["overall"] == 0.5
    picture = "drawn/00000/samples/0000.png"
    told = [judged(capsys, picture, "three clocks", "--judge", name)[1] for name in ("world", "templates")]
    assert told[0]["score"] == told[1]["score"] < 1 and told[0]["seen"] == told[1]["seen"]


def test_a_list_of_sticker_pictures_with_plain_prompts(capsys: pytest.CaptureFixture):
    Image.fromarray(sticker_picture(CLOCKS)).save("ein Bild\u00e4.png")
    lines = [
        {"image": "ein Bild\u00e4.png", "prompt": "two clocks"},
        {"image": "ein Bild\u00e4.png", "prompt": "two clocks and a unicorn"},
        {"image": "ein Bild\u00e4.png", "metadata": metadata(Spec("counting", (Item("clock", 3),)))},
        {"image": "ein Bild\u00e4.png", **metadata(Spec("counting", (Item("clock", 12),)), "twelve clocks")},
    ]
    Path("list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    code, record, told = judged(capsys, "list.jsonl")
    assert code == 1
    assert [row["correct"] for row in record["results"]] == [True, None, False, None]
    assert len(told) == 2 and "unicorn" in told[0] and "12 clock" in told[1]


# --- a vision-language model ------------------------------------------------------------------------------------------


def by_prompt(request: Request) -> Answer:
    return right("so it is") if "two clocks" in request.text else wrong("no cat")


def test_a_folder_judged_over_the_network(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), shade(1), shade(2))
    folder(1, metadata(CATS, "a black cat"), shade(3))
    with Server(by_prompt) as server:
        options = [
            "drawn",
            "--address",
            server.address,
            "--model",
            "m",
            "--cache",
            "cache",
            "--record",
            "replies.jsonl",
        ]
        code, record, _ = judged(capsys, *options)
        assert code == 0 and len(server.requests) == 3
        assert record["tags"] == {"counting": 1.0, "colors": 0.0}
        assert record["judge"].startswith("m/strict-")
        code, again, _ = judged(capsys, *options[:-1], "again.jsonl")
        assert again == record and len(server.requests) == 3  # all from the cache
    assert Path("again.jsonl").read_text() == Path("replies.jsonl").read_text()
    assert main(["score", "genevalpp", "replies.jsonl", "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert [replayed[key] for key in ("overall", "tags", "cells")] == [
        record[key] for key in ("overall", "tags", "cells")
    ]


def test_one_picture_judged_over_the_network(capsys: pytest.CaptureFixture):
    Image.fromarray(shade(1)).save("one.png")
    with Server(by_prompt) as server:
        code, record, _ = judged(capsys, "one.png", "two clocks", "--address", server.address, "--model", "m")
    assert code == 0 and record["results"][0]["reasons"] == [] and record["results"][0]["passed"] == ["so it is"]


def test_lists_of_questions(capsys: pytest.CaptureFixture):
    Image.fromarray(shade(1)).save("one.png")
    asked = {"questions": ["Is it grey?", "Is it a cat?"], "gt_answers": ["yes", "yes"], "attribute": "shape+color"}
    rows = [{"image": "one.png", "prompt": f"grey {n}", "length": "short", "index": n, **asked} for n in range(3)]
    rows += [{"image": "one.png", "prompt": "no list"}, {**rows[0], "questions": ["Other?"], "gt_answers": ["no"]}]
    Path("list.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def play(request: Request) -> Answer:
        return says("yes, it is\nno") if "1. Is it grey?" in request.text else status(500)

    with Server(play) as server:
        options = ["--ask", "tiif", "--address", server.address, "--model", "m", "--record", "replies.jsonl"]
        code, record, told = judged(capsys, "list.jsonl", *options)
        assert len(server.requests) == 1  # the same picture and the same questions
    assert code == 1 and len(told) == 2 and "questions" in told[0]
    assert record["cells"]["shape+color/short"] == {"right": 3, "asked": 6}
    assert main(["score", "tiif", "replies.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == {"shape+color/short": {"right": 3, "asked": 6}}


def test_the_probability_of_yes(capsys: pytest.CaptureFixture):
    Image.fromarray(shade(1)).save("one.png")
    places = [[("yes", float(np.log(0.75))), ("no", float(np.log(0.25)))]]
    with Server(lambda _: says("yes", logprobs=places)) as server:
        options = ["--ask", "yesno", "--address", server.address, "--model", "m"]
        _, record, _ = judged(capsys, "one.png", "a cat", *options)
    assert record["results"][0]["score"] == pytest.approx(0.75) and record["results"][0]["correct"] is True


def test_the_words_of_a_file(capsys: pytest.CaptureFixture):
    Image.fromarray(shade(1)).save("one.png")
    Path("words.txt").write_text("Officially: {prompt}?")
    with Server(lambda _: right()) as server:
        judged(capsys, "one.png", "a cat", "--wording", "words.txt", "--address", server.address, "--model", "m")
        assert server.requests[0].text == "Officially: a cat?"


def test_a_dry_run_asks_nobody(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), shade(1, 280), shade(2, 280), b"not a picture")
    options = ["--address", refusing(), "--model", "m", "--dry-run"]
    code, record, _ = judged(capsys, "drawn", *options)
    assert code == 0
    assert (record["calls"], record["pictures"], record["missing"]) == (2, 2, 1)
    assert 2 * 100 < record["tokens_in"] < 2 * 700 and record["tokens_out"] == 2 * 2048
    assert main(["judge", "drawn", *options]) == 0
    assert "2 calls to m" in capsys.readouterr().out


def test_a_judge_is_asked_as_its_options_say_and_what_was_cut_is_counted(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), shade(1))
    with Server(lambda request: right() if request.number else says("<think>no", "length")) as server:
        options = ["--judge-tokens", "50", "--judge-thinking", "off", "--judge-temperature", "0.5"]
        options += ["--judge-extra", '{"seed": 3}', "--address", server.address, "--model", "m"]
        code, record, _ = judged(capsys, "drawn", *options)
        bodies = [request.body for request in server.requests]
    assert code == 0 and record["cut"] == 1 and record["results"][0]["score"] == 1
    assert [body["max_tokens"] for body in bodies] == [50, 200]
    assert all(body["seed"] == 3 and body["temperature"] == 0.5 for body in bodies)
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("extra", ["{", "[1]", '{"model": "x"}'])
def test_what_is_no_further_field_is_refused(capsys: pytest.CaptureFixture, extra: str):
    folder(0, metadata(CLOCKS, "two clocks"), shade(1))
    code = main(["judge", "drawn", "--address", refusing(), "--model", "m", "--judge-extra", extra])
    assert code == 2 and "--judge-extra" in capsys.readouterr().err


def test_agreement_with_itself(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), *(shade(index) for index in range(6)))
    with Server(by_prompt) as server:
        options = ["--address", server.address, "--model", "m", "--self-check", "4"]
        code, record, _ = judged(capsys, "drawn", *options)
        assert len(server.requests) == 8
    assert (code, record["agreement"], record["pictures"]) == (0, 1.0, 4)


def test_a_run_without_hope_stops_with_the_cause(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), *(shade(index) for index in range(24)))

    def play(request: Request) -> Answer:
        return right() if request.number < 12 else status(400, body=b'{"error": {"message": "out of credit"}}')

    with Server(play) as server:
        options = ["--address", server.address, "--model", "m"]
        assert main(["judge", "drawn", *options]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("triptych: ") and "out of credit" in told and "--max-missing" in told
        code, record, lines = judged(capsys, "drawn", *options, "--max-missing", "1")
    assert code == 1 and len(lines) == 24 and record["overall"] is None  # missing is not 0


def test_two_addresses(capsys: pytest.CaptureFixture):
    folder(0, metadata(CLOCKS, "two clocks"), *(shade(index) for index in range(6)))
    with Server(by_prompt) as one, Server(by_prompt) as other:
        addresses = ["--address", one.address, "--address", other.address]
        code, _, _ = judged(capsys, *addresses, "--model", "m", "--concurrency", "1", "drawn")
    assert code == 0 and len(one.requests) == len(other.requests) == 3


@pytest.mark.parametrize(
    "options, told",
    [
        (["--model", "m"], "--judge-model: of use only"),
        (["--judge", "detector", "--address", "http://127.0.0.1:1"], "not with detector"),
        (["--address", "http://127.0.0.1:1"], "--address and --judge-model"),
        (["--record", "r.jsonl"], "--record: of use only"),
        (["--dry-run", "--ask", "yesno"], "--ask, --dry-run: of use only"),
        (["a prompt"], "brings its own prompts"),
        (["--address", "http://127.0.0.1:1", "--model", "m", "--record", "drawn/00000/metadata.jsonl"], "exists"),
        (["--address", "http://127.0.0.1:1", "--model", "m", "--wording", "none.txt"], "cannot read none.txt"),
        (["--address", "nowhere", "--model", "m"], "expected a base URL"),
        (["--address", "http://127.0.0.1:1", "--model", "m", "--concurrency", "0"], "concurrency"),
        (["--address", "http://127.0.0.1:1", "--model", "m", "--timeout", "0"], "timeout"),
        (["--max-missing", "2"], "--max-missing"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture, options: list[str], told: str):
    folder(0, metadata(CLOCKS, "two clocks"), shade(1))
    before = sorted(Path().rglob("*"))
    assert main(["judge", "drawn", *options]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("triptych: ") == 1 and printed.out == ""
    assert sorted(Path().rglob("*")) == before


def test_the_detector_says_what_it_lacks(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "nothing-here")
    folder(0, metadata(CLOCKS, "two clocks"), shade(1))
    assert main(["judge", "drawn", "--judge", "detector"]) == 2
    assert "mask2former" in capsys.readouterr().err


# --- hostile submissions ----------------------------------------------------------------------------------------------


def claimed_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its body does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def hostile_folder() -> None:
    """Twenty prompts; the even ones have a good picture."""
    Image.fromarray(shade(9)).save("outside.png")
    (Path("elsewhere") / "samples").mkdir(parents=True)
    good = metadata(CLOCKS, "two clocks")
    for index in range(0, 20, 2):
        folder(index, good, shade(index))
    folder(1, '{"tag": "counting", "include": [')
    folder(3, "")
    folder(5, "[1, 2]")
    folder(
        7, good, b"", b"GIF89a", claimed_size(20_000, 20_000), claimed_size(0, 0), claimed_size(2**31 - 1, 2**31 - 1)
    )
    folder(9, good, shade(1, 1))  # one pixel is a picture
    os.symlink(Path("outside.png").resolve(), folder(11, good) / "samples" / "0000.png")
    os.symlink("nowhere.png", folder(13, good) / "samples" / "0000.png")
    os.symlink("0000.png", folder(15, good) / "samples" / "0000.png")
    place = folder(17, good, shade(1))
    (place / "metadata.jsonl").unlink()
    os.symlink(Path("outside.png").resolve(), place / "metadata.jsonl")
    place = folder(19, good)
    (place / "samples" / "b\u00fccher \u4e2d\x1b[31m.PNG").write_bytes((Path("outside.png")).read_bytes())
    os.mkfifo(place / "samples" / "pipe.png")
    (place / "samples" / "folder.png").mkdir()
    os.symlink(Path("elsewhere").resolve(), "drawn/linked")
    folder(21, '{"prompt": "' + "x" * 2_000_000 + '"}')
    folder(23, "[" * 100_000)
    folder(25, {"prompt": "\ud800"}, shade(1))
    folder(27, {"prompt": None}, shade(1))
    folder(29, {**good, "include": [{"class": "clock", "count": 10**400}]}, shade(1))
    folder(31, json.dumps(good) + "\n" + json.dumps(good), shade(1))
    folder(33, {**good, "include": "clock"}, shade(1))
    Path("drawn/notes.txt").write_text("a stray file")
    Path("drawn/empty").mkdir()


def test_a_hostile_folder_gives_one_line_each_and_loses_nothing(capsys: pytest.CaptureFixture):
    hostile_folder()
    with Server(by_prompt) as server:
        code, record, lines = judged(capsys, "drawn", "--address", server.address, "--model", "m")
    assert code == 1
    found = {row["picture"]: row for row in record["results"]}
    assert len(found) == len(record["results"])  # one line each
    good = [f"{index:05d}/samples/0000.png" for index in range(0, 20, 2)]
    assert all(found[name]["correct"] for name in [*good, "00009/samples/0000.png"])
    missing = [name for name, row in found.items() if row["correct"] is None]
    assert sorted(missing) == sorted(row["file"] for row in record["missing"])
    assert len(lines) == len(missing) and all(line.isprintable() for line in lines)
    for index, why in {
        "00001": "not JSON",
        "00003": "0 lines",
        "00005": "array",
        "00007/samples/0000.png": "not a picture",
        "00007/samples/0001.png": "not a picture",
        "00007/samples/0002.png": "too large",
        "00007/samples/0003.png": "picture",
        "00007/samples/0004.png": "too large",
        "00011/samples/0000.png": "leads out",
        "00013/samples/0000.png": "no such file",
        "00015/samples/0000.png": "",
        "00017": "leads out",
        "00019/samples/pipe.png": "no file",
        "00019/samples/folder.png": "no file",
        "linked": "leads out",
        "00021": "bytes",
        "00023": "nested",
        "00025": "not text",
        "00027": "prompt is None",
        "00029/samples/0000.png": "",
        "00031": "2 lines",
        "00033": "include",
    }.items():
        assert (why in (found[index]["reasons"][0] or "")) if index in missing else index == "00029/samples/0000.png", (
            index
        )
    strange = next(name for name in found if name.startswith("00019/samples/b"))
    assert found[strange]["correct"] is True and strange.isprintable()


def test_a_hostile_list_gives_one_line_each_and_loses_nothing(capsys: pytest.CaptureFixture):
    Path("list").mkdir()
    Image.fromarray(shade(9)).save("outside.png")
    Image.fromarray(shade(1)).save("list/good.png")
    os.symlink("../outside.png", "list/link.png")
    os.symlink("good.png", "list/fine.png")
    lines = [
        *(json.dumps({"image": image, "prompt": "two clocks"}) for image in ["good.png", "fine.png", "./good.png"]),
        *(
            json.dumps({"image": image, "prompt": "two clocks"})
            for image in ["../outside.png", "link.png", "/etc/passwd"]
        ),
        *(
            json.dumps({"image": image, "prompt": "two clocks"})
            for image in [None, 3, "", "a\0b", ".", "x" * 5000, "no.png"]
        ),
        *("{", "nonsense", "null", "[]", '"text"', "NaN", '{"prompt": "two clocks"}', '{"image": "good.png"}'),
        json.dumps({"image": "good.png", "prompt": "x" * 2_000_000}),
        json.dumps({"image": "good.png", "prompt": "x" * 20_000}),
        json.dumps({"image": "good.png", "prompt": "a\x07b"}),
        json.dumps({"image": "good.png", "prompt": {"a": 1}, "metadata": 7}),
    ]
    content = "\n".join(lines).encode() + b"\n\xff\xfe\n" + lines[0].encode()
    Path("list/list.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    with Server(by_prompt) as server:
        code, record, told = judged(capsys, "list/list.jsonl", "--address", server.address, "--model", "m")
        assert len(server.requests) == 1
    assert code == 1 and [row["line"] for row in record["results"]] == list(range(1, len(lines) + 3))
    assert [row["correct"] for row in record["results"]] == [True] * 3 + [None] * (len(lines) - 2) + [True]
    assert len(told) == len(lines) - 2 and all(line.isprintable() and len(line) < 6000 for line in told)


@pytest.mark.parametrize("make", ["nothing", "empty", "pipe", "blank"])
def test_nothing_to_judge(capsys: pytest.CaptureFixture, make: str):
    path = Path("drawn" if make == "empty" else "list.jsonl")
    {"empty": path.mkdir, "blank": path.touch, "pipe": lambda: os.mkfifo(path), "nothing": lambda: None}[make]()
    assert main(["judge", str(path)]) == 2
    assert capsys.readouterr().err.startswith("triptych: ")


def test_pictures_come_in_counting_order():
    for index in (10, 9, 2):
        place = folder(0, metadata(CLOCKS), root=f"drawn/{index}")
        place.rename(f"drawn/{index}-prompt")
        Image.fromarray(shade(index)).save(f"drawn/{index}-prompt/samples/{index}.png")
        Path(f"drawn/{index}").rmdir()
    entries = [entry for entry in list_pictures(Path("drawn")) if isinstance(entry, Entry)]
    assert [entry.picture.name for entry in entries] == ["2.png", "9.png", "10.png"]


def test_any_bytes_are_entries_faults_or_a_refusal():
    rng = np.random.default_rng(0)
    good = json.dumps({"image": "a.png", **metadata(CLOCKS, "two clocks")}).encode()
    for _ in range(300):
        broken = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 6)):
            broken[place] = rng.integers(0, 256)
        Path("list.jsonl").write_bytes(bytes(broken))
        try:
            found = list_pictures(Path("list.jsonl"))
        except PictureError:
            continue
        assert all(isinstance(each, Entry | Fault) for each in found)
