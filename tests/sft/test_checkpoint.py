"""Checkpoints are there whole or not at all, whatever a kill leaves, and a folder belongs to one run."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from triptych import files
from triptych.errors import ConfigError, ModelError, OutputError, TriptychWarning
from triptych.sft import checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoint.save_checkpoint(folder, step, {"w": torch.full((2,), float(step))}, {"note": step}, keep)


def test_the_newest_checkpoint_is_read_and_so_many_are_kept(tmp_path: Path):
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 1, 2, 10, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000010"]
    tensors, record = checkpoint.latest(tmp_path)
    assert record == {"step": 10, "note": 10} and torch.equal(tensors["w"], torch.tensor([10.0, 10.0]))


def remove_and_die(folder: Path) -> None:
    """Save a third checkpoint, and be killed after the first file of the oldest one was removed."""
    unlink = os.unlink

    def last(path, *rest, **named):
        unlink(path, *rest, **named)
        os.kill(os.getpid(), 9)

    os.unlink = last
    save(folder, 3)


def write_and_die(folder: Path) -> None:
    """Be killed between the files of a third checkpoint."""
    files.write_json = lambda *_, **__: os.kill(os.getpid(), 9)
    save(folder, 3)


@pytest.mark.parametrize(
    ("die", "whole"),
    [(remove_and_die, ["step-00000002", "step-00000003"]), (write_and_die, ["step-00000001", "step-00000002"])],
)
def test_a_kill_leaves_whole_checkpoints_and_what_is_swept(die, whole: list[str], tmp_path: Path):
    save(tmp_path, 1, 2)
    process = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert [path.name for path in checkpoint.steps(tmp_path)] == whole
    (left,) = {*names(tmp_path)} - {*whole}
    assert left.startswith(".step-0000000") and left.endswith(".part")
    files.sweep(tmp_path)
    assert names(tmp_path) == whole


def test_a_folder_without_its_record_is_no_checkpoint(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / "step-00000003").mkdir()
    _, record = checkpoint.latest(tmp_path)
    assert record["step"] == 1


def test_a_place_that_cannot_be_written_is_named_with_its_remedy(tmp_path: Path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*step-00000001.*the checkpoint before it is untouched"):
        save(tmp_path / "run", 1)


def test_a_foreign_optimizer_state_is_refused():
    small, large = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(size))]) for size in (2, 3))
    large.param_groups[0]["params"][0].grad = torch.ones(3)
    large.step()
    with pytest.raises(ModelError, match="resume with the same config"):
        checkpoint.unpack_optimizer("adamw", small, checkpoint.pack_optimizer("adamw", large))


def test_a_folder_with_the_names_of_a_run_is_not_taken(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.check_free(tmp_path, ["checkpoints"], "run.json")
    with pytest.raises(ConfigError, match=r"holds model and no run.json.*choose another --out"):
        checkpoint.check_free(tmp_path, ["checkpoints", "model"], "run.json")


TORN = {
    "cut": lambda folder: os.truncate(folder / "state.safetensors", 20),
    "empty": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "zeros": lambda folder: (folder / "state.safetensors").write_bytes(bytes(200)),
    "absent": lambda folder: (folder / "state.safetensors").unlink(),
    "cut record": lambda folder: (folder / "state.json").write_text('{"step": 2, "no'),
    "no record": lambda folder: (folder / "state.json").write_text("[]"),
    "another step's": lambda folder: (folder / "state.json").write_text('{"step": 1}'),
}


@pytest.mark.parametrize("tear", TORN.values(), ids=TORN)
def test_a_torn_checkpoint_is_told_and_the_one_before_it_is_used(tear, tmp_path: Path):
    save(tmp_path, 1, 2)
    tear(tmp_path / "step-00000002")
    with pytest.warns(TriptychWarning, match="step-00000002 is torn.*the checkpoint before it is used") as told:
        tensors, record = checkpoint.latest(tmp_path)
    assert len(told) == 1 and record["step"] == 1 and torch.equal(tensors["w"], torch.ones(2))
    save(tmp_path, 3, keep=2)  # the torn one is none of the two that are kept
    assert names(tmp_path) == ["step-00000001", "step-00000003", "torn-step-00000002"]


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(tmp_path: Path):
    save(tmp_path, 1)
    os.truncate(tmp_path / "step-00000001" / "state.safetensors", 20)
    with pytest.raises(ModelError, match="step-00000001 is torn"):
        checkpoint.latest(tmp_path)


def test_a_weight_of_another_kind_of_number_is_refused():
    weight = torch.nn.Parameter(torch.zeros(2))
    whole = {"model/w": torch.ones(2), "average/w": torch.ones(2), "o/0/exp_avg": torch.ones(2)}
    whole |= {"o/0/exp_avg_sq": torch.ones(2), "o/0/step": torch.ones(())}
    optimizer = torch.optim.AdamW([weight])
    checkpoint.unpack(whole, {"w": weight}, {"w": torch.zeros(2)}, {"o": optimizer})
    for name in whole:
        with pytest.raises(ModelError, match=f"{name}.*int32"):
            checkpoint.unpack(
                whole | {name: torch.ones(2, dtype=torch.int32)},
                {"w": weight},
                {"w": torch.zeros(2)},
                {"o": torch.optim.AdamW([weight])},
            )
