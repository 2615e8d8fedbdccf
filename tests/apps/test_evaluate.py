"""`triptych eval` with every judge, and TIIF from a user's copy: what is asked, what is missing, what is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from http_judge import Answer, Request, Server, refusing, right, says, status, wrong
from PIL import Image
from scripted import ScriptedPolicy

from triptych.apps.cli import main
from triptych.eval.tiif import load_tiif
from triptych.model.config import SKETCH, BagelConfig
from triptych.model.templates import wrap_plan, wrap_reflection
from triptych.trace import Completion, Drawing

pytest.importorskip("openai", reason="a judge over a network needs triptych[judge]")

INSTRUCTIONS = [  # of our own; TIIF's may not be shipped
    ("style", "A lake in oils.", "A wide, calm lake, painted in oils.", ["Is there a lake?", "Is it in oils?"]),
    ("text", "A sign that says OPEN.", "A wooden sign on a door that says OPEN.", ["Does the sign say OPEN?"]),
    ("numeracy", "Two pears.", "Two ripe pears on a table.", ["Are there two pears?", "Is there an apple?"]),
]


@dataclass
class Painter:
    """An open-world model: a dark picture at first, a light one after its only edit, then it stops."""

    config: BagelConfig = field(default_factory=lambda: replace(SKETCH, name="painter", world="open"))

    def plan(self, prompts, sampling, seeds, on_text=None) -> list[Completion]:
        return [Completion(wrap_plan(f"paint {prompt}")) for prompt in prompts]

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]:
        return [Drawing(np.full((8, 8, 3), sum(prompt.encode()) % 100, np.uint8)) for prompt in prompts]

    def reflect(self, prompts, images, sampling, seeds, on_text=None) -> list[Completion]:
        return [Completion(wrap_reflection("dark", "lighten it" if image.max() < 100 else None)) for image in images]

    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None) -> list[Drawing]:
        return [Drawing(image + np.uint8(100)) for image in images]


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TRIPTYCH_JUDGE_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def painted(*words: object) -> int:
    return main(["eval", *map(str, words)], lambda *_: Painter())  # pyright: ignore[reportArgumentType]


def scripted(*words: object, command: str = "eval") -> int:
    return main([command, *map(str, words)], lambda *_: ScriptedPolicy())  # pyright: ignore[reportArgumentType]


def at(server: Server) -> list[str]:
    return ["--address", server.address, "--judge-model", "m"]


def copy_of_tiif(path: str = "tiif.jsonl", lines: int | None = None) -> Path:
    records = [
        {
            "type": kind,
            "short_description": short,
            "long_description": long,
            "yn_question_list": questions,
            "yn_answer_list": ["yes", "no"][: len(questions)],
        }
        for kind, short, long, questions in INSTRUCTIONS
    ]
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records[:lines]))
    return Path(path)


def all_yes(request: Request) -> Answer:
    return says("\n".join("yes" for _ in re.findall(r"^\d+\. ", request.text, re.MULTILINE)))


# --- TIIF -------------------------------------------------------------------------------------------------------------


def test_tiif_asks_its_questions_in_short_and_long(capsys: pytest.CaptureFixture):
    with Server(all_yes) as server:
        asked = ["--prompts", copy_of_tiif(), "--turns", 0, "--out", "run", "--record", "replies.jsonl", "--json"]
        assert painted("tiif", *asked, *at(server)) == 0
        assert len(server.requests) == 6
        assert any("1. Is there a lake?\n2. Is it in oils?" in request.text for request in server.requests)
    printed = json.loads(capsys.readouterr().out)
    (figures,) = printed["tiif"]
    halves = {f"{kind}/{length}": {"right": 1, "asked": 2} for kind in ("style", "numeracy") for length in TWO}
    assert figures["cells"] == halves | {f"text/{length}": {"right": 1, "asked": 1} for length in TWO}
    assert figures["groups"]["Style"] == figures["groups"]["Reasoning"] == {"short": 0.5, "long": 0.5}
    assert figures["overall"] == {"short": pytest.approx(2 / 3), "long": pytest.approx(2 / 3)}
    assert json.loads(Path("run/tiif.json").read_text()) == printed["tiif"]
    assert main(["score", "tiif", "replies.jsonl", "--json"]) == 0  # the same numbers again, from the record alone
    replayed = json.loads(capsys.readouterr().out)
    assert [replayed[key] for key in ("cells", "groups", "overall")] == [
        figures[key] for key in ("cells", "groups", "overall")
    ]


def knowing(share: float) -> Callable[[Request], Answer]:
    """A judge that gives so large a share of the answers that TIIF expects, and else the contrary."""
    coin = Random(0)

    def reply(request: Request) -> Answer:
        expected = ["yes", "no"][: len(re.findall(r"^\d+\. ", request.text, re.MULTILINE))]
        other = {"yes": "no", "no": "yes"}
        return says("\n".join(each if coin.random() < share else other[each] for each in expected))

    return reply


@pytest.mark.parametrize(("share", "spread"), [(1.0, 0.0), (0.0, 0.0), (0.5, 0.5)])
def test_tiif_is_one_for_right_pictures_zero_for_contrary_ones_and_half_for_a_coin(
    share: float, spread: float, capsys: pytest.CaptureFixture
):
    with Server(knowing(share)) as server:
        asked = ["--prompts", copy_of_tiif(), "--turns", 0, "--seeds", 20, "--out", "run", "--json"]
        assert painted("tiif", *asked, *at(server)) == 0
    (figures,) = json.loads(capsys.readouterr().out)["tiif"]
    counts = [(cell["right"], cell["asked"]) for cell in figures["cells"].values()]
    assert len(counts) == 6 and all(abs(right / of - share) <= 5 * spread / of**0.5 for right, of in counts)
    if not spread:
        assert figures["overall"] == {"short": share, "long": share}


TWO = ("short", "long")


def test_tiif_counts_every_number_of_turns_and_misses_no_reply_silently(capsys: pytest.CaptureFixture):
    def play(request: Request) -> Answer:
        return says("yes\nyes\nyes") if "OPEN" in request.text else all_yes(request)

    with Server(play) as server:
        words = ["tiif", "--prompts", copy_of_tiif(), "--turns", 1, "--out", "run", "--max-missing", 1, *at(server)]
        assert painted(*words) == 1
    told = capsys.readouterr()
    assert told.err.count("missing: ") == 4 and "expected 1 answers" in told.err
    assert "up to 0 edits" in told.out and "up to 1 edits" in told.out and "replies missing: 2" in told.out
    for figures in json.loads(Path("run/tiif.json").read_text()):
        assert figures["overall"] == {"short": 0.5, "long": 0.5} and len(figures["missing"]) == 2
        assert figures["groups"]["Text"] == {"short": None, "long": None}  # missing is not 0


def test_a_copy_may_be_a_folder_and_its_name_tells_copies_apart():
    Path("copy").mkdir()
    whole, folder = load_tiif(copy_of_tiif()), load_tiif(copy_of_tiif("copy/a.jsonl").parent)
    assert [prompt.text for prompt in whole.prompts] == [prompt.text for prompt in folder.prompts]
    assert whole.titles == folder.titles and len(whole.titles) == 6
    assert load_tiif(copy_of_tiif(lines=2)).name != whole.name


def test_the_users_copy_is_whole(shared: Path):
    found = load_tiif(shared / "benchmarks" / "tiif_testmini.jsonl")
    assert len(found.prompts) == len(found.checks) == 2 * 277 and len(found.titles) == 78


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected type, short_description"),
        ('{"short_description": "a"}', "line 1"),
        (json.dumps({"yn_question_list": ["a?"], "yn_answer_list": []}), "line 1"),
        ("", "holds no lines"),
        ("\ufffe" * 9, "line 1"),
    ],
)
def test_a_damaged_copy_is_one_line(line: str, told: str, capsys: pytest.CaptureFixture):
    Path("tiif.jsonl").write_text(line)
    refused(capsys, told, "tiif", "--prompts", "tiif.jsonl", "--address", refusing(), "--judge-model", "m")


@pytest.mark.parametrize("change", [{"short_description": None}, {"yn_answer_list": ["maybe", "no"]}, {"type": []}])
def test_a_wrong_field_of_a_copy_is_named(change: dict, capsys: pytest.CaptureFixture):
    record = json.loads(copy_of_tiif().read_text().splitlines()[0])
    Path("tiif.jsonl").write_text(json.dumps({**record, **change}))
    words = ["tiif", "--prompts", "tiif.jsonl", "--address", refusing(), "--judge-model", "m"]
    refused(capsys, "tiif.jsonl, line 1", *words)


# --- GenEval and GenEval++ of an open model ---------------------------------------------------------------------------


def test_genevalpp_of_an_open_model_and_one_reply_that_never_comes(capsys: pytest.CaptureFixture):
    broken = [True]

    def play(request: Request) -> Answer:
        first = request.text == server.requests[0].text
        return status(400) if first and broken else right("fine") if first or request.number % 2 else wrong("not so")

    with Server(play) as server:
        words = ["genevalpp", "--limit", 8, "--turns", 0, "--out", "run", "--cache", "cache", "--json", *at(server)]
        assert painted(*words, "--concurrency", 1) == 1
        first = json.loads(capsys.readouterr().out)
        count = len(server.requests)
        broken.clear()
        assert painted(*words, "--concurrency", 1, "--resume") == 0
        assert len(server.requests) == count + 1  # only what was missing
    second = json.loads(capsys.readouterr().out)
    assert first["manifest"] == second["manifest"] and first["manifest"]["judge"].startswith("m/strict-")
    assert (first["report"]["missing"], second["report"]["missing"]) == (1, 0)
    rows = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert sum(row["verdicts"] == [None] for row in rows) == 1 and len(rows) == 9


def test_a_judge_that_is_down_ends_the_run_with_its_cause(capsys: pytest.CaptureFixture):
    with Server(lambda _: status(400, body=b'{"error": {"message": "out of credit"}}')) as server:
        assert painted("geneval", "--limit", 40, "--turns", 0, "--out", "run", *at(server)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("triptych: ") and "out of credit" in last and "--resume" in last
    assert len(Path("run/results.jsonl").read_text().splitlines()) == 32  # whole batches


# --- the sticker world's second judge ---------------------------------------------------------------------------------


def test_a_result_can_be_shown_under_the_swapped_judge(capsys: pytest.CaptureFixture):
    words = ["dev", "--limit", 2, "--json"]
    assert scripted(*words, "--turns", 1, "--out", "first") == 0
    first = json.loads(capsys.readouterr().out)
    assert scripted(*words, "--drawn", "first", "--judge", "templates", "--out", "second") == 0  # nothing is drawn
    second = json.loads(capsys.readouterr().out)
    assert first["manifest"]["judge"].startswith("world-") and second["manifest"]["judge"] == "templates-1"
    assert {**second["manifest"], "judge": first["manifest"]["judge"]} == first["manifest"]
    assert first["report"]["score"] == second["report"]["score"]
    drawn = [sorted((Path(folder) / "pictures").iterdir()) for folder in ("first", "second")]
    assert [one.read_bytes() for one in drawn[0]] == [other.read_bytes() for other in drawn[1]]
    assert main(["report", "first", "second", "--anyway", "--json"]) == 0
    (compared,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert compared["wins"] == compared["losses"] == []


def test_only_the_pictures_that_were_drawn_are_judged_again(capsys: pytest.CaptureFixture):
    assert scripted("dev", "--limit", 2, "--turns", 0, "--out", "run") == 0
    capsys.readouterr()
    again = ["sticker-model", "dev", "--drawn", "run", "--out", "again"]
    refused(capsys, "other prompts", *again, "--limit", 3)
    refused(capsys, "--seeds: of no use", *again, "--limit", 2, "--seeds", 2)
    refused(capsys, "manifest", *again[:-3], "nowhere", "--limit", 2)
    picture = sorted(Path("run/pictures").iterdir())[0]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    assert scripted(*again[1:], "--limit", 2) == 2
    assert "not the picture that was drawn" in capsys.readouterr().err
    picture.unlink()
    refused(capsys, "is missing", *again[:-1], "other", "--limit", 2)
    rows = Path("run/results.jsonl").read_text().splitlines(keepends=True)
    Path("run/results.jsonl").write_text(rows[0])
    refused(capsys, "not finished", *again[:-1], "other", "--limit", 2)


def test_probes_may_be_read_by_the_second_judge(capsys: pytest.CaptureFixture):
    words = ["dev", "--limit", 1, "--turns", 1, "--json"]
    printed = []
    for judge in ("world", "templates"):
        assert scripted(*words, "--judge", judge, command="probe") == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert str(printed[0]) == str(printed[1])
    assert "NaN" not in json.dumps(printed[0])  # null where nothing was measured


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture, told: str, *words: object) -> None:
    """One line that says so, exit code 2, and nothing written."""
    before = sorted(Path().rglob("*"))
    player = scripted if "sticker-model" in words else painted
    assert player(*(word for word in words if word != "sticker-model")) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("triptych: ") and printed.err.count("\n") == 1 and told in printed.err
    assert printed.out == "" and sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["genevalpp", "--judge", "world"], "draws open pictures; expected detector or vlm"),
        (["genevalpp", "--judge", "templates"], "draws open pictures; expected detector or vlm"),
        (["genevalpp"], "--address and --judge-model"),
        (["tiif"], "--prompts goes with tiif"),
        (["geneval", "--prompts", "tiif.jsonl"], "--prompts goes with tiif"),
        (["tiif", "--prompts", "tiif.jsonl"], "--address and --judge-model"),
        (["tiif", "--prompts", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["genevalpp", "--judge", "detector"], "no regions, sizes or questions"),
        (["tiif", "--prompts", "tiif.jsonl", "--judge", "detector"], "no regions, sizes or questions"),
        (["geneval", "--cache", "c"], "--cache: of use only"),
        (["geneval", "--address", "http://127.0.0.1:1"], "--address and --judge-model"),
        (["geneval", *(VLM := ["--address", "http://127.0.0.1:1", "--judge-model", "m"]), "--ask", "yesno"], "--ask"),
        (["geneval", *VLM, "--ask", "tiif"], "--ask tiif does not go"),
        (["geneval", *VLM, "--record", "tiif.jsonl"], "tiif.jsonl exists"),
        (["geneval", *VLM, "--max-missing", "7"], "--max-missing 7"),
        (["geneval", *VLM, "--judge", "world"], "not with world"),
        (["sticker-model", "geneval", *VLM], "draws stickers; expected world or templates"),
        (["sticker-model", "geneval", "--judge", "detector"], "draws stickers; expected world or templates"),
        (["sticker-model", "tiif", "--prompts", "tiif.jsonl"], "more than stickers"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture):
    copy_of_tiif()
    refused(capsys, told, *words)
