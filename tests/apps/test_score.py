"""`triptych score`: what it prints for the published files, what it lists as missing, and how it refuses."""

import json
from pathlib import Path

import pytest

from triptych.apps.cli import main
from triptych.data.prompts import benchmark

RED = {"box": [10, 10, 60, 60], "score": 0.9, "color": "red"}
TIIF = {"attribute": "style", "length": "short", "questions": ["Round?", "Red?"], "gt_answers": ["yes", "no"]}


def score(*words: object) -> int:
    return main(["score", *map(str, words)])


def printed(capsys: pytest.CaptureFixture, *words: object) -> dict:
    assert score(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def picture(tag: str, color: str, prompt: str) -> dict:
    include = [{"class": "cat", "count": 1, "color": color}]
    return {"metadata": {"tag": tag, "include": include, "prompt": prompt}, "detections": {"cat": [RED]}}


def reply(said: str | None, **other: object) -> dict:
    return {**TIIF, "model_output": said, **other}


# --- GenEval ----------------------------------------------------------------------------------------------------------


def test_geneval_agrees_with_all_recorded_verdicts(shared: Path, capsys: pytest.CaptureFixture):
    path = shared / "benchmarks" / "geneval_verdicts.jsonl"
    recorded = [json.loads(line) for line in path.open()]
    found = printed(capsys, "geneval", path)
    assert [each["correct"] for each in found["results"]] == [each["correct"] for each in recorded]
    assert [len(each["reasons"]) for each in found["results"]] == [each["n_reasons"] for each in recorded]
    tags = {tag: [each["correct"] for each in recorded if each["metadata"]["tag"] == tag] for tag in found["tags"]}
    assert found["tags"] == {tag: pytest.approx(sum(own) / len(own)) for tag, own in tags.items()}
    assert found["overall"] == pytest.approx(sum(found["tags"].values()) / 6)
    assert found["pictures_right"] == pytest.approx(248 / 400)
    assert not found["missing"] and not found["disputed"]


def test_overall_is_the_mean_of_tags_and_pictures_are_counted_beside_it(tmp_path: Path, capsys):
    right, wrong = picture("colors", "red", "one"), picture("colors", "blue", "two")
    path = write(tmp_path / "f.jsonl", right, wrong, wrong, wrong, picture("color_attr", "red", "three"))
    found = printed(capsys, "geneval", path)
    assert found["tags"] == {"colors": 0.25, "color_attr": 1.0} and found["overall"] == 0.625
    assert found["pictures_right"] == 0.4 and found["prompts_right"] == pytest.approx(2 / 3)
    assert found["cells"]["colors"] == {"right": 1, "asked": 4}
    assert found["interval"][0] <= found["overall"] <= found["interval"][1]
    assert found["results"][1] == {"correct": False, "reasons": ["cat: expected 1 blue, found 1 red"]}


def test_the_table_and_what_is_disputed(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "f.jsonl", {**picture("colors", "red", "one"), "correct": False})
    assert score("geneval", path) == 0
    told = capsys.readouterr()
    assert "Colors" in told.out and "Overall" in told.out and "1.0000" in told.out
    assert f"disputed: {path}, line 1: the file says wrong, the rules say right" in told.err


def test_files_are_counted_together_and_each_for_itself(tmp_path: Path, capsys: pytest.CaptureFixture):
    one = write(tmp_path / "one.jsonl", picture("colors", "red", "one"))
    two = write(tmp_path / "two.jsonl", picture("colors", "blue", "two"))
    found = printed(capsys, "geneval", one, two)
    assert [each["correct"] for each in found["results"]] == [True, False] and found["overall"] == 0.5
    assert [found["files"][str(path)]["overall"] for path in (one, two)] == [1.0, 0.0]
    assert score("geneval", one, two) == 0
    assert capsys.readouterr().out.count("Overall") == 3


# --- TIIF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overall"), [("GPT-4o/Janus-Pro", None), ("QwenVL/sd35", {"short": 0.6869, "long": 0.6492})]
)
def test_tiif_gives_the_published_counts(shared: Path, capsys: pytest.CaptureFixture, name: str, overall: dict | None):
    folder = shared / "benchmarks" / "tiif_replies"
    expected = json.loads((folder / "expected_counts.json").read_text())[name]
    found = printed(capsys, "tiif", folder / f"{name.replace('/', '__')}.jsonl.gz")
    assert found["cells"] == {key: {"right": right, "asked": asked} for key, (right, asked) in expected.items()}
    assert found["missing"] == found["absent"] == found["ungrouped"] == []
    groups = [lengths for name, lengths in found["groups"].items() if not name.endswith("Following")]
    for length in ("short", "long"):
        assert found["overall"][length] == pytest.approx(sum(group[length] for group in groups) / 9)
        if overall:
            assert found["overall"][length] == pytest.approx(overall[length], abs=5e-5)
    assert found["mean"] == pytest.approx((found["overall"]["short"] + found["overall"]["long"]) / 2)


def test_a_missing_reply_is_listed_and_left_out_or_fatal(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "f.jsonl", reply("yes\nno"), reply("yes"), reply(None), reply("no\nno"))
    found = printed(capsys, "tiif", path)
    assert found["cells"] == {"style/short": {"right": 3, "asked": 4}} and found["pictures"] == 4
    assert [(each["file"], each["line"], each["cell"]) for each in found["missing"]] == [
        (str(path), 2, "style/short"), (str(path), 3, "style/short"),
    ]  # fmt: skip
    assert found["overall"] == {"short": 0.75, "long": None} and len(found["absent"]) == 77

    assert score("tiif", path, "--missing", "exclude") == 0
    told = capsys.readouterr()
    assert f"missing: {path}, line 2: the reply does not answer 2 questions" in told.err
    assert "replies missing: 2" in told.out

    assert score("tiif", path, "--missing", "fail") == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert "2 of 4 verdicts are missing" in told.err and f"{path}, line 2" in told.err


def test_all_missing_is_no_score(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "f.jsonl", *[reply("")] * 30)
    found = printed(capsys, "tiif", path)
    assert found["overall"] == {"short": None, "long": None} and found["mean"] is None and len(found["missing"]) == 30
    assert score("tiif", path) == 0
    told = capsys.readouterr()
    assert "... and 10 more" in told.err and "0 of 0 questions" in told.out


# --- GenEval++ --------------------------------------------------------------------------------------------------------


def test_genevalpp_has_seven_columns_and_a_failed_judge_is_no_wrong_picture(tmp_path: Path, capsys):
    prompts = benchmark("genevalpp")
    records = [
        {"tag": prompt.spec.tag, "prompt": prompt.text, "correct": (1, 0, '{"correct": 1}', -1)[index % 4]}
        for index, prompt in enumerate(prompts)
        if prompt.spec
    ]
    path = write(tmp_path / "f.jsonl", *records)
    found = printed(capsys, "genevalpp", path)
    assert len(found["tags"]) == 7 and len(found["missing"]) == 70 and found["pictures"] == 280
    assert found["tags"]["counting"] == found["overall"] == pytest.approx(2 / 3)
    assert found["results"][3] == {"correct": None, "reasons": ["the judge did not reply"]}
    for tag, (low, high) in found["intervals"].items():
        assert 0.4 < low < found["tags"][tag] < high < 0.9
    assert score("genevalpp", path) == 0
    table = capsys.readouterr().out
    for title in ("Color", "Count", "Color/Count", "Color/Pos", "Pos/Count", "Pos/Size", "Multi-Count", "Overall"):
        assert title in table


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    good = write(tmp_path / "good.jsonl", reply("yes\nno"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text(good.read_text() + '{"attribute": ')
    nan = write(
        tmp_path / "nan.jsonl", {**picture("colors", "red", "x"), "detections": {"cat": [{"box": [float("nan")]}]}}
    )
    (tmp_path / "empty.jsonl").touch()
    for words, reason in [
        (("tiif", broken), f"{broken}, line 2: not JSON"),
        (("tiif", good, broken), f"{broken}, line 2: not JSON"),
        (("geneval", good), f"{good}, line 1: expected 'metadata'"),
        (("geneval", nan), f"{nan}, line 1: not JSON (NaN is no number)"),
        (("genevalpp", tmp_path / "empty.jsonl"), "holds no lines"),
        (("tiif", tmp_path), "cannot read"),
        (("tiif", tmp_path / "nowhere"), "cannot read"),
        (("tiif", good, good), "named twice"),
        (("tiif",), "no file was given"),
    ]:
        assert score(*words) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("triptych: ") and reason in told.err


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Markup is printed as text; what a terminal would obey is refused, and is not repeated as it stands."""
    markup = write(tmp_path / "markup.jsonl", reply("yes\nno", attribute="[bold]x[/bold]" + "y" * 99))
    assert score("tiif", markup) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "in no group" in shown and "[bold]x[/bold]" in shown and "y" * 99 not in shown
    for attribute in ("\x1b[31mred", "\x1b[2J", "a\ud800b"):
        assert score("tiif", write(tmp_path / "codes.jsonl", reply("no", attribute=attribute))) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.strip().isprintable() and "line 1: attribute is" in told.err
