"""The doors of ITA and VQA: one command for drawing and looking, pictures of another run, and what is refused."""

import json
from pathlib import Path

import pytest
from scripted import ScriptedPolicy

from triptych.apps.cli import main
from triptych.eval.results import OVERALL
from triptych.eval.run_folder import RunFolder
from triptych.trace import Completion


class Agreeing(ScriptedPolicy):
    """Draws and reflects by the script, and says yes to everything."""

    def answer(self, images, questions, sampling, seeds, on_text=None):
        return [Completion("yes") for _ in images]


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def triptych(*words: object) -> int:
    return main([str(word) for word in words], lambda *arguments: Agreeing())  # pyright: ignore


def printed(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    before = sorted(Path().rglob("*"))
    assert triptych(*words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return told.err


def test_one_command_draws_and_looks(capsys: pytest.CaptureFixture):
    command = ("eval", "genevalpp", "--limit", 7, "--turns", 2, "--understanding", "--out", "run", "--json")
    assert triptych(*command) == 0
    told = printed(capsys)
    assert told["ita"]["accuracies"][OVERALL]["accuracy"]["value"] == 0.5  # half of the pairs fit
    vqa = told["vqa"]["accuracies"]
    assert vqa["Presence"]["accuracy"]["value"] == 0.5 and vqa["Count"]["accuracy"]["value"] == 0.0
    assert vqa["Count"]["unreadable"] == vqa["Count"]["questions"] > 0
    for name in ("ita", "vqa"):
        page = Path("run", name, "report.html").read_text()
        assert "data:image/png" in page and told[name]["manifest"] == RunFolder.read(Path("run", name)).manifest

    assert triptych(*command, "--resume") == 0
    again = printed(capsys)
    assert [again[name]["accuracies"] for name in ("ita", "vqa")] == [
        told[name]["accuracies"] for name in ("ita", "vqa")
    ]

    assert triptych("eval", "ita", "--drawn", "run", "--by", "reflection", "--out", "stops", "--json") == 0
    stops = printed(capsys)
    assert stops["accuracies"][OVERALL]["accuracy"]["value"] == 1.0  # the script sees exactly


def test_what_cannot_be_asked_is_refused(capsys: pytest.CaptureFixture):
    assert "manifest.json" in refused(capsys, "eval", "ita", "--drawn", "nowhere")
    assert "manifest.json" in refused(capsys, "eval", "genevalpp", "--drawn", "nowhere")
    assert "--by" in refused(capsys, "eval", "genevalpp", "--by", "reflection")
    assert "--turns" in refused(capsys, "eval", "vqa", "--drawn", "run", "--turns", 2)
    assert "--judge" in refused(capsys, "eval", "ita", "--drawn", "run", "--judge", "world")
    assert "--address" in refused(capsys, "eval", "vqa", "--drawn", "run", "--address", "http://127.0.0.1:9")
    assert "--keep-pictures" in refused(capsys, "eval", "vqa", "--drawn", "run", "--no-keep-pictures")
    assert "kept" in refused(capsys, "eval", "genevalpp", "--understanding", "--no-keep-pictures")
    assert triptych("eval", "dev", "--limit", 2, "--turns", 0, "--out", "bare", "--no-keep-pictures") == 0
    capsys.readouterr()
    assert "kept its pictures" in refused(capsys, "eval", "ita", "--drawn", "bare")


def test_a_quiz_is_told_with_its_chance(capsys: pytest.CaptureFixture):
    """On the terminal, on the page and in the export: right answers beside chance, never right pictures."""
    assert triptych("eval", "genevalpp", "--limit", 7, "--turns", 2, "--out", "run") == 0
    assert triptych("eval", "vqa", "--drawn", "run", "--limit", 4, "--out", "vqa", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert triptych("report", "vqa") == 0
    shown = capsys.readouterr().out
    assert "chance" in shown and "majority" in shown and "s a picture" not in shown
    assert triptych("report", "vqa", "--json") == 0
    assert printed(capsys)["accuracies"] == told["accuracies"]
    page = Path("vqa/report.html").read_text()
    assert "<dt>chance</dt>" in page and "right answers" in page and "a question" in page
    assert "right in every check" not in page and "a picture, without judging" not in page
    results = json.loads(Path("vqa/results_lmms.json").read_text())["results"]
    overall = told["accuracies"][OVERALL]
    assert results["vqa"]["chance,none"] == overall["chance"] and results["vqa"]["majority,none"] == overall["majority"]
    asked = [json.loads(line) for line in Path("vqa/questions.jsonl").read_text().split("\n")[:-1]]
    samples = [json.loads(line) for line in Path("vqa/samples_lmms.jsonl").read_text().split("\n")[:-1]]
    assert [each["target"] for each in samples] == [each["answer"] for each in asked]
    assert all(each["filtered_resps"] == (["yes"] if "yes" in each["doc"]["options"] else []) for each in samples)


def test_shards_of_a_quiz_make_one_quiz(capsys: pytest.CaptureFixture):
    assert "--shard" in refused(capsys, "eval", "ita", "--shard", "1/2", "--out", "ita")
    assert triptych("eval", "genevalpp", "--limit", 7, "--turns", 2, "--out", "run") == 0
    command = ("eval", "ita", "--drawn", "run", "--json")
    capsys.readouterr()
    assert triptych(*command, "--out", "whole") == 0
    whole = printed(capsys)
    assert triptych(*command, "--out", "parts", "--shard", "2/2") == 0
    half = printed(capsys)
    left = half["report"]["open"]
    assert left == -(-whole["report"]["rows"] // 2) and not Path("parts/report.json").exists()
    assert triptych(*command, "--out", "parts", "--shard", "1/2") == 0
    parts = printed(capsys)
    assert parts["accuracies"] == whole["accuracies"] and parts["manifest"] == whole["manifest"]
    assert Path("parts/report.json").exists() and not Path("parts/results.jsonl").exists()


@pytest.mark.parametrize("spoil", ["", "nonsense\n", "[1]\n", "{}\n", "swapped"])
def test_questions_that_were_not_asked_are_one_line(spoil: str, capsys: pytest.CaptureFixture):
    assert triptych("eval", "ita", "--limit", 2, "--out", "ita") == 0
    capsys.readouterr()
    path = Path("ita/questions.jsonl")
    path.write_text(path.read_text().replace("yes", "no") if spoil == "swapped" else spoil)
    assert "questions.jsonl" in refused(capsys, "report", "ita")


def test_without_a_set_one_is_painted(capsys: pytest.CaptureFixture):
    assert triptych("eval", "ita", "--limit", 2, "--out", "ita", "--json") == 0
    told = printed(capsys)
    assert {each["accuracy"]["value"] for each in told["accuracies"].values()} == {0.5}
    assert told["accuracies"][OVERALL]["questions"] == 14 and told["manifest"]["drawn"]["model"] == "synthetic"
    assert RunFolder.read(Path("ita-set")).manifest["judge"] == "world-truth"
    assert "ita exists" in refused(capsys, "eval", "ita", "--limit", 2, "--out", "ita")


def test_nothing_fits_and_nothing_is_claimed(capsys: pytest.CaptureFixture):
    assert triptych("eval", "dev", "--limit", 2, "--turns", 0, "--out", "run") == 0
    capsys.readouterr()
    assert triptych("eval", "ita", "--drawn", "run", "--json") == 0
    told = printed(capsys)["accuracies"]
    assert Path("runs/ita-sketch/report.json").exists()
    assert {each["accuracy"]["value"] for each in told.values()} == {None} and told[OVERALL]["questions"] == 0
