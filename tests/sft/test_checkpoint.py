"""Folders that take each other's place: whole or not at all."""

import multiprocessing
import os
import shutil

import pytest
import torch

from triptych.sft import checkpoint
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


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def prune_and_die(folder) -> None:
    """Save a third checkpoint, and be killed after the first file of the oldest one was removed."""
    remove = os.unlink

    def last(path, *rest, **named):
        remove(path, *rest, **named)
        os.kill(os.getpid(), 9)

    os.unlink = last
    checkpoint.save(folder, 3, {"w": torch.zeros(2)}, {}, keep=2)


def test_a_kill_during_pruning_leaves_nothing_behind(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.full((2,), float(step))}, {})
    process = multiprocessing.get_context("fork").Process(target=prune_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert names(tmp_path) == [".step-00000001.old", "step-00000002", "step-00000003"]
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000002", "step-00000003"]
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_halves_are_swept_and_whole_checkpoints_are_not(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.zeros(2)}, {})
    for name in ("step-00000003.partial", "step-00000000"):  # half-written; and half-removed by an older version
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, 4, {"w": torch.zeros(2)}, {})
    assert names(tmp_path) == ["notes.txt", "step-00000002", "step-00000004"]


def test_nothing_is_swept_while_no_checkpoint_is_whole(tmp_path):
    """A kill while one takes another's place: the old one is aside, and may be all there is."""
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(2)}, {})
    shutil.move(tmp_path / "step-00000001", tmp_path / ".step-00000001.old")
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == [".step-00000001.old"]
