"""A set that is not what it seems is told beside its number: doubles, spellings, gaps, single tags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.apps.cli import main
from triptych.data.prompts import benchmark
from triptych.errors import JudgeError
from triptych.eval.completeness import Expected, completeness, each_picture_once, one_spelling
from triptych.eval.recorded import RecordedVerdict


def verdict(line: int, right: int = 1, tag: str = "colors", prompt: str = "a", picture: str = "") -> RecordedVerdict:
    return RecordedVerdict("f", line, tag, right, 1, prompt, picture=picture)


def test_of_two_verdicts_on_a_picture_one_counts():
    rows = [verdict(1, 1, picture="x.png"), verdict(2, 1, picture="y.png"), verdict(3, 0, picture="x.png")]
    kept, told = each_picture_once(rows, "last")
    assert [row.line for row in kept] == [2, 3] and "different verdicts (lines 1, 3); line 3 counts" in told[0]
    kept, _ = each_picture_once(rows, "first")
    assert [row.line for row in kept] == [1, 2]
    with pytest.raises(JudgeError, match="stands 2 times"):
        each_picture_once(rows, "fail")


def test_pictures_without_a_name_are_all_different():
    rows = [verdict(1), verdict(2)]
    assert each_picture_once(rows, "last") == (rows, [])


def test_spellings_of_a_tag_are_one_tag():
    rows = [verdict(1, tag="Colors"), verdict(2, tag="colors "), verdict(3, tag="My Tag"), verdict(4, tag="my  tag")]
    renamed, merged = one_spelling(rows, ["colors"])
    assert [row.column for row in renamed] == ["colors", "colors", "My Tag", "My Tag"]
    assert merged == {"colors": ("Colors", "colors "), "My Tag": ("My Tag", "my  tag")}
    assert one_spelling([verdict(1)], ["colors"]) == ([verdict(1)], {})


@pytest.mark.parametrize("spelling", ["SINGLE_OBJECT", "single-object", "Single Object", " single__object\u200b"])
def test_a_spelling_is_that_of_the_benchmark(spelling: str):
    ((row,), merged) = one_spelling([verdict(1, tag=spelling)], ["single_object"])
    assert row.column == "single_object" and merged == {"single_object": (spelling,)}


def test_a_picture_keeps_its_name_under_another_path():
    rows = [verdict(1, picture="./a//x.png"), verdict(2, picture="a/x.png"), verdict(3, picture="a\\x.png")]
    assert [row.line for row in each_picture_once(rows, "last")[0]] == [3]


def test_a_picture_of_two_files_is_told_and_counts_twice():
    rows = [verdict(1, picture="x.png"), replace(verdict(1, picture="x.png"), file="g"), verdict(2, picture="y.png")]
    assert completeness(rows, None).in_several_files == 1
    assert "more than one file" in completeness(rows, None).lines("Toy")[0]
    assert len(each_picture_once(rows, "last")[0]) == 3


def test_what_a_set_lacks_is_counted():
    whole = Expected("Toy", frozenset("abc"), ("colors", "counting"))
    odd = completeness([verdict(1), verdict(2), verdict(3, prompt="b"), verdict(4, prompt="z")], whole)
    assert (odd.prompts, odd.of_prompts, odd.other_prompts, odd.uneven, odd.most_pictures) == (2, 3, 1, 2, 2)
    assert odd.absent_tags == ("counting",) and not odd.is_complete
    assert "incomplete: no picture of counting" in odd.lines("Toy")
    seven = completeness([verdict(1, tag=f"t{number}") for number in range(7)], whole)
    assert "tags that Toy does not have: 't0', 't1', 't2', 't3', 't4' and 2 more" in seven.lines("Toy")
    rows = [
        verdict(i, prompt=prompt, tag=tag)
        for i, (prompt, tag) in enumerate([("a", "colors"), ("b", "colors"), ("c", "counting")])
    ]
    assert completeness(rows, whole).is_complete and not completeness(rows, whole).lines("Toy")


def results(tmp_path: Path, count: int = 553, pictures: int = 1) -> Path:
    lines = []
    for index, prompt in enumerate(benchmark("geneval")[:count]):
        metadata = {**prompt.spec.to_metadata(), "prompt": prompt.text}
        for number in range(pictures):
            name = f"{index:05d}/samples/{number:04d}.png"
            lines.append(json.dumps({"filename": name, "metadata": metadata, "correct": True}))
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_whole_set_has_no_note(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["score", "geneval", str(results(tmp_path)), "--json", "--incomplete", "fail"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["set"]["complete"] is True and "note" not in printed.err


def test_three_of_553_prompts_are_told_beside_the_number(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = str(results(tmp_path, 3, 2))
    assert main(["score", "geneval", path]) == 0
    printed = capsys.readouterr()
    assert "3 of 553 prompts" in printed.out and "3 of 553 prompts" in printed.err
    assert main(["score", "geneval", path, "--incomplete", "fail"]) == 2
    assert "--incomplete" in capsys.readouterr().err


def test_absent_columns_of_tiif_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    line = {"attribute": "Style", "length": "short", "questions": ["Is it?"], "gt_answers": ["yes"]}
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(line | {"model_output": "yes"}))
    assert main(["score", "tiif", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["cells"] == {"style/short": {"right": 1, "asked": 1}} and len(record["set"]["absent_tags"]) == 77
    assert "incomplete: no picture of" in printed.err and "'style/short', is spelled 'Style/short'" in printed.err
    assert main(["score", "tiif", str(path), "--incomplete", "fail"]) == 2


def test_the_shared_cases(shared: Path, capsys: pytest.CaptureFixture):
    cases = {path.name[:2]: path for path in (shared / "cases").iterdir()}
    assert main(["score", "geneval", str(cases["25"] / "results.jsonl"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["pictures"] == 2 and "different verdicts" in printed.err
    assert main(["score", "genevalpp", str(cases["27"] / "verdicts.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == {"color": pytest.approx(2 / 3)}
    assert main(["score", "geneval", str(cases["28"] / "results.jsonl")]) == 0
    assert "1 of 553 prompts" in capsys.readouterr().out
