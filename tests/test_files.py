"""Files and folders appear whole or not at all, and a JSON log survives a torn line."""

import json
import os
from pathlib import Path

import pytest

from triptych import files
from triptych.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"é": 1})
    assert path.read_text(encoding="utf-8") == '{\n "é": 1\n}\n'
    with pytest.raises(TypeError):
        files.write_json(path, object())
    with pytest.raises(OutputError, match="cannot write"):
        files.write_text(tmp_path / "absent" / "a.txt", "b")
    assert path.read_text(encoding="utf-8") == '{\n "é": 1\n}\n' and names(tmp_path) == ["a.json"]


def test_a_new_folder_appears_whole_and_never_over_another(tmp_path):
    with files.new_folder(tmp_path / "out" / "run") as inside:
        (inside / "a").write_text("1")
        assert not (tmp_path / "out" / "run").exists()
    assert names(tmp_path / "out" / "run") == ["a"]
    with pytest.raises(OutputError, match="exists"), files.new_folder(tmp_path / "out" / "run"):
        raise AssertionError("never entered")
    with pytest.raises(KeyError), files.new_folder(tmp_path / "other") as inside:
        raise KeyError
    with pytest.raises(OutputError, match="exists"), files.new_folder(tmp_path / "raced"):
        (tmp_path / "raced").mkdir()
    assert names(tmp_path) == ["out", "raced"] and names(tmp_path / "out") == ["run"]


def test_a_folder_is_replaced_whole_or_left_as_it_was(tmp_path):
    for text in ("1", "2"):
        with files.replaced_folder(tmp_path / "model") as inside:
            (inside / "a").write_text(text)
    with pytest.raises(KeyError), files.replaced_folder(tmp_path / "model") as inside:
        (inside / "a").write_text("3")
        raise KeyError
    assert (tmp_path / "model" / "a").read_text() == "2" and names(tmp_path) == ["model"]


def test_a_kill_between_the_two_renames_of_a_replaced_folder_loses_nothing(tmp_path):
    (tmp_path / ".model.77.old.part").mkdir()
    (tmp_path / ".model.77.old.part" / "a").write_text("old")
    (tmp_path / ".model.77.part").mkdir()
    files.sweep(tmp_path)
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "a").read_text() == "old"


def test_a_sweep_removes_leftovers_and_nothing_else(tmp_path):
    for name in (".step-1.5.part", ".step-2.5.removed.part", "step-3", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.json.5.part").write_text("half")
    files.sweep(tmp_path)
    assert names(tmp_path) == [".hidden", "step-3"]


def test_a_log_forgets_its_torn_line_and_what_is_done_again(tmp_path):
    log = files.JsonLog(tmp_path / "new" / "steps.jsonl")
    assert log.read() == []
    for index in range(3):
        log.append({"index": index})
    with log.path.open("a") as file:
        file.write('{"index": 3, "lo')
    assert [record["index"] for record in log.read()] == [0, 1, 2]
    again = files.JsonLog(log.path)
    again.keep(lambda record: record["index"] < 2)
    again.append({"index": 2, "again": True})
    assert again.read() == [{"index": 0}, {"index": 1}, {"index": 2, "again": True}]
    assert log.path.read_text().count("\n") == 3


def test_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"torn": ')
    files.append_json(path, {"a": "ü\ud800"})
    files.append_json(path, {"b": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"a": "ü\ud800"}, {"b": 2}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"):
        files.check_writable(tmp_path / "out")
