"""`triptych report`: two processes make one run, runs stand side by side, the page tells all and loads nothing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from triptych.apps.arguments import shard_of
from triptych.apps.cli import main
from triptych.apps.run_page import MAX_BYTES, evenly_spaced
from triptych.errors import ConfigError, JudgeError
from triptych.eval.benchmark import Benchmark, run_benchmark
from triptych.eval.results import Report
from triptych.eval.run_folder import RunFolder
from triptych.model.config import Sampling
from triptych.trace import Completion, Drawing, Item, Prompt, Spec, Trace, Turn, Verdict

TESTS = Path(__file__).parents[1]


class FirstPixel:
    """A judge that reads the score off the first pixel; 255 it cannot read."""

    def __init__(self, name="first-pixel"):
        self.name = name

    def __call__(self, traces):
        return [Verdict(int(each.image[0, 0, 0]) / 100, failed=("<b>too dark</b>",)) for each in traces]

    def verdicts(self, traces):
        values = [int(each.image[0, 0, 0]) for each in traces]
        blind = JudgeError("expected a pixel below 255")
        return [blind if value == 255 else self([each])[0] for value, each in zip(values, traces, strict=True)]


def play(scores):
    """Prompt i shows a picture for each of `scores[i]`, and says what only a hostile model would."""

    def beats(policy, prompts, seeds, turns, plan, sampling) -> Iterator[list[Trace]]:
        traces = [Trace(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        for turn in range(turns + 1):
            for row, trace in enumerate(traces):
                script = scores[int(trace.prompt.text.split()[-1])]
                if turn < len(script):
                    drew = Drawing(np.full((4, 4, 3), script[turn], np.uint8))
                    traces[row] = trace + Turn(Completion("<think><script>alert(1)</script></think>mend it"), drew)
            yield list(traces)

    return beats


def played(folder: Path, *scores, judge="first-pixel", **settings) -> Path:
    prompts = tuple(
        Prompt(f"prompt {index}", Spec("one" if index % 2 else "<two>", (Item("cat"),))) for index in range(len(scores))
    )
    benchmark = Benchmark("Tiny", prompts, {"one": "One", "<two>": "$Two$ & <more>"})
    settings = {"turns": 1, "sampling": Sampling(), "play": play(scores), "out": folder, **settings}
    list(run_benchmark(benchmark, None, FirstPixel(judge), **settings))
    return folder


def report(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    code = main(["report", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


# --- shards -----------------------------------------------------------------------------------------------------------


def test_two_processes_share_a_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Together they leave what one process would: each job once, in two files, under one manifest."""
    command = [sys.executable, str(TESTS / "scripted.py"), "eval", "dev", "--limit", "6", "--turns", "1"]
    command += ["--batch", "1", "--out", str(tmp_path / "run"), "--shard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    both = [
        subprocess.Popen([*command, f"{index}/2"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for index in (1, 2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=540)
        assert process.returncode == 0, out.decode()
    run_folder = RunFolder.read(tmp_path / "run")
    jobs = {}
    for index in (1, 2):
        lines = (tmp_path / f"run/results-{index}-of-2.jsonl").read_text().splitlines()
        jobs[index] = [json.loads(line)["prompt"] for line in lines]
    assert jobs == {1: [0, 2, 4], 2: [1, 3, 5]}
    assert [(row.prompt, row.seed) for row in run_folder.rows()] == run_folder.jobs
    assert Report.load(tmp_path / "run/report.json") == run_folder.report()  # written by whichever came last
    assert all(run_folder.kept_picture(row, 0).exists() for row in run_folder.rows())
    assert report(capsys, tmp_path / "run")[0] == 0 and (tmp_path / "run/report.html").exists()


def test_a_run_of_one_shard_says_what_is_open(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = played(tmp_path / "run", *[[100]] * 5, shard=(1, 2))
    code, out, _ = report(capsys, folder, "--json")
    assert code == 0 and json.loads(out)["report"]["open"] == 2
    assert "is not finished: 2 samples" in (folder / "report.html").read_text()
    assert not (folder / "report.json").exists() and not (folder / "results_lmms.json").exists()


def test_a_shard_is_a_part():
    assert shard_of("2/3") == (2, 3) and shard_of(None) == (1, 1)
    for wrong in ("0/2", "3/2", "1", "1/", "/2", "a/b", "1/2/3", "-1/2", "1/0"):
        with pytest.raises(ConfigError, match="expected I/N"):
            shard_of(wrong)


# --- one run ----------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_numbers_and_brings_nothing_in(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = played(tmp_path / "run", [0, 100], [100], [50, 40], [0, 255])
    assert report(capsys, folder)[0] == 0
    page = (folder / "report.html").read_text()
    found = Report.load(folder / "report.json")
    assert found.missing == 1 and "1 of 7 verdicts are missing" in page and "1 missing" in page
    for turns in found.accuracy.values():
        for estimate in turns:
            assert f"{estimate.value:.3f}" in page
    assert page.count("<img ") == 7 and page.count("data:image/png;base64,") >= 7
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) and "url(http" not in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>too dark" not in page
    assert page.count("<svg") == 3 and not re.search(r"#0[1-5]0[1-5]0[1-5]", page)  # every colour is the page's own
    assert (folder / "samples_lmms.jsonl").read_text().count("\n") == 4


def test_the_page_is_the_same_when_it_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = played(tmp_path / "run", [0, 100], [100])
    report(capsys, folder)
    names = ("report.html", "report.json", "results_lmms.json", "samples_lmms.jsonl")
    first = [(folder / name).read_bytes() for name in names]
    report(capsys, folder)
    assert first == [(folder / name).read_bytes() for name in names]


def test_pictures_that_are_not_there_are_said_to_be_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = played(tmp_path / "bare", [0], [100], turns=0, keep_pictures=False)
    report(capsys, folder)
    assert "this run kept no pictures" in (folder / "report.html").read_text()
    folder = played(tmp_path / "torn", [0], [100], turns=0)
    (folder / "pictures/00000-0-0.png").write_bytes(b"\x89PNG")
    assert report(capsys, folder)[0] == 0
    assert "1 of 2 pictures are on this page" in (folder / "report.html").read_text()


def test_a_page_stays_within_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert MAX_BYTES < 10_000_000
    monkeypatch.setattr("triptych.apps.run_page.MAX_BYTES", 500)
    folder = played(tmp_path / "run", *[[0]] * 12, turns=0)
    report(capsys, folder)
    page = (folder / "report.html").read_text()
    inlined = re.findall(r'src="(data:[^"]*)"', page)
    assert 0 < sum(map(len, inlined)) <= 500 and f"{len(inlined)} of 12 pictures are on this page" in page


def test_a_selection_is_spread_evenly():
    assert (
        evenly_spaced(list(range(10)), 5) == [0, 2, 4, 6, 8]
        and evenly_spaced([1, 2], 5) == [1, 2]
        and evenly_spaced([], 3) == []
    )


# --- several runs -----------------------------------------------------------------------------------------------------


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture):
    one = played(tmp_path / "one", [0], [100], [0], [0, 100])
    two = played(tmp_path / "two", [100], [0], [0], [255])
    code, out, err = report(capsys, one, two, "--json")
    assert code == 0
    (comparison,) = json.loads(out)["comparisons"]
    assert [pair["prompt"] for pair in comparison["wins"]] == [0]
    assert [pair["prompt"] for pair in comparison["losses"]] == [1]
    assert [pair["prompt"] for pair in comparison["ties"]] == [2]
    assert [pair["prompt"] for pair in comparison["unpaired"]] == [3]
    assert comparison["differences"]["Overall"]["value"] == pytest.approx(-0.25)
    assert "two: 1 prompts won, 1 lost, 1 tied, 1 not in both" in err
    code, out, _ = report(capsys, one, two, "--turn", 0)
    assert code == 0 and "after 0 edits" in out and "(1 missing)" in " ".join(out.split())
    code, out, _ = report(capsys, one, one, "--json")
    assert json.loads(out)["comparisons"][0]["sign_p"] is None


def test_runs_of_other_judges_are_compared_only_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture):
    one, two = played(tmp_path / "one", [0], [100]), played(tmp_path / "two", [0], [100], judge="another")
    code, _, err = report(capsys, one, two)
    assert code == 2 and "judge" in err and "--anyway" in err and err.count("\n") == 1
    code, out, _ = report(capsys, one, two, "--anyway")
    assert code == 0 and "compared anyway" in out
    other = played(tmp_path / "other", [0], [100], [0])
    code, _, err = report(capsys, one, other, "--anyway")
    assert code == 2 and "expected runs of the same prompts" in err


def test_check_says_each_difference_and_whether_it_forbids(tmp_path: Path, capsys: pytest.CaptureFixture):
    one = played(tmp_path / "one", [0], [100])
    seeds = played(tmp_path / "seeds", [0], [100], seeds=(0, 1))
    judge = played(tmp_path / "judge", [0], [100], judge="another")
    assert report(capsys, one, "--check", one / "manifest.json")[:2] == (
        0,
        "comparable: the manifests are the same\n",
    )
    code, out, _ = report(capsys, one, "--check", seeds)  # a folder stands for its manifest
    assert code == 0 and out.startswith("tells    seeds: [0] here, [0, 1] there") and out.endswith("comparable\n")
    code, out, _ = report(capsys, one, "--check", judge / "manifest.json")
    assert code == 1 and out.startswith("forbids  judge: first-pixel here, another there")
    code, out, _ = report(capsys, one, "--check", judge, "--json")
    assert code == 1 and json.loads(out)["comparable"] is False


# --- refusals ---------------------------------------------------------------------------------------------------------


ROW = (
    '{"prompt": 0, "text": "x", "column": "One", "seed": 0, "stopped": false, "said": [], "pictures": [], '
    '"seconds": 1, "verdicts": [{"score": 1, "passed": [], "failed": []}]}\n'
)


def spoiled(folder: Path, name: str, content: str) -> Path:
    (played(folder, [0], [100]) / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", ""),
        ("manifest.json", "[]"),
        ("manifest.json", '{"benchmark": 3}'),
        ("manifest.json", '{"benchmark": "x", "prompts": 1e99, "turns": 0, "seeds": [0]}'),
        ("manifest.json", '{"benchmark": "x", "prompts": 9999999999999, "turns": 0, "seeds": [0]}'),
        ("manifest.json", '{"benchmark": "x", "prompts": 2, "turns": 0, "seeds": []}'),
        ("manifest.json", '{"benchmark": "x", "prompts": 2, "turns": 0, "seeds": "0"}'),
        ("manifest.json", '{"benchmark": "x", "prompts": 2, "turns": -1, "seeds": [0]}'),
        ("results.jsonl", "nonsense\n"),
        ("results.jsonl", "[1]\n"),
        ("results.jsonl", "{}\n"),
        ("results.jsonl", '{"prompt": 0, "verdicts": [{"score": NaN, "passed": [], "failed": []}], "said": []}\n'),
        ("results.jsonl", '{"prompt": "0", "text": "", "column": "One", "seed": 0, "verdicts": [], "said": []}\n'),
        ("results.jsonl", ROW.replace('"said": []', '"said": [3]')),
        ("results.jsonl", ROW.replace('"pictures": []', '"pictures": [3]')),
        ("results.jsonl", ROW.replace('"seconds": 1', '"seconds": Infinity')),
        ("results.jsonl", ROW.replace('"failed": []', '"failed": [3]')),
        ("results.jsonl", ROW.replace('"score": 1', '"score": 7')),
        ("results.jsonl", "[" * 100_000 + "\n"),
        ("manifest.json", "[" * 100_000),
    ],
)
def test_a_spoiled_folder_is_one_line(name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = spoiled(tmp_path / "run", name, content)
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = report(capsys, folder)
    assert code == 2 and out == "" and err.count("\n") == 1 and name in err and "expected" in err
    assert before == sorted(path.name for path in folder.iterdir())


def test_rows_of_another_run_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = spoiled(tmp_path / "run", "results.jsonl", ROW)
    assert report(capsys, folder)[0] == 0
    (folder / "results.jsonl").write_text(ROW.replace('"prompt": 0', '"prompt": 7'))
    code, _, err = report(capsys, folder)
    assert code == 2 and "prompt 7, seed 0; expected only jobs of its manifest" in err


def test_a_page_copies_nothing_from_outside_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = played(tmp_path / "run", [0], [100], turns=0)
    (folder / "pictures/00000-0-0.png").rename(tmp_path / "elsewhere.png")
    (folder / "pictures/00000-0-0.png").symlink_to(tmp_path / "elsewhere.png")
    assert report(capsys, folder)[0] == 0
    assert "1 of 2 pictures are on this page" in (folder / "report.html").read_text()


def test_what_cannot_be_reported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    one = played(tmp_path / "one", [0], [100])
    for words, reason in (
        ((), "no folder"),
        ((tmp_path / "missing",), "manifest.json cannot be read"),
        ((one, one, "--turn", 2), "--turn 2"),
        ((one, one, "--check", one), "--check with 2 folders"),
        ((one, "--check", tmp_path / "missing"), "cannot be read"),
    ):
        code, _, err = report(capsys, *words)
        assert code == 2 and reason in err and err.count("\n") == 1
