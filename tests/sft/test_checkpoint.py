"""Folders that take each other's place: whole or not at all."""

import pytest

from triptych.sft.checkpoint import anew


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    for text in ("first", "second"):
        with anew(tmp_path / "model") as fresh:
            fresh.mkdir()
            (fresh / "weights").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "second"


def test_a_failure_leaves_the_old_folder_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("first")
    with pytest.raises(OSError, match="disk"), anew(tmp_path / "model") as fresh:
        fresh.mkdir()
        (fresh / "weights").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "model" / "weights").read_text() == "first"
    with anew(tmp_path / "model") as fresh:
        assert not fresh.exists()
        fresh.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
