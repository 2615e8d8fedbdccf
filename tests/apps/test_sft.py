"""The door of lessons: what cannot work is one line that names its option, and leaves no folder behind."""

from dataclasses import replace
from pathlib import Path

import pytest

from triptych.apps.cli import main
from triptych.errors import ConfigError
from triptych.sft.curriculum import MADE, SFT_DEBUG, SFT_RECIPES, SFTConfig
from triptych.sft.ranges import numbers

NUMBERS = list(numbers(SFT_DEBUG))


@pytest.mark.parametrize("config", SFT_RECIPES.values(), ids=list(SFT_RECIPES))
def test_every_recipe_can_be_taught(config: SFTConfig):
    config.check()


def changed(record, path: str, value: float):
    """The record with one number in it, or in a record that it holds, set to another value."""
    name, _, rest = path.partition(".")
    return replace(record, **{name: changed(getattr(record, name), rest, value) if rest else value})


@pytest.mark.parametrize(("path", "usual"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_every_number_has_a_range(path: str, usual: float):
    """No number of the lessons may be negative, unknown or endless, and each is refused by the name of its option."""
    for value in (-1,) if isinstance(usual, int) else (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=path.rpartition(".")[2].replace("_", "[-_]")):
            changed(SFT_DEBUG, path, value).check()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("--device abacus", "--device abacus"),
        ("--hands 0", "--hands 0: expected 1 or more"),
        ("--every 0", "--every 0: expected 1 or more"),
        ("--start nowhere", "'nowhere'"),
        ("--eyes.steps 0", "--eyes.steps 0"),
        ("--own-pictures 0", "--own-pictures 0: expected 1 or more"),
        ("--decoder.batch 0", "--decoder.batch 0: expected 1 or more"),
        ("--own.mix.right 1.5", "--own.mix.right 1.5: expected a share from 0 to 1"),
        ("--own.time-shift 0", "--own.time-shift 0.0: expected more than 0"),
        ("--model.pictures 0 --model.edits 0 --model.words 0", "--model.pictures"),
        ("--draw.words 1", "--draw.words 1"),
    ],
)
def test_what_cannot_work_is_one_line_and_takes_no_folder(asked: str, named: str, tmp_path: Path, capfd):
    out = tmp_path / "lessons"
    assert main(["lessons", "debug", "--out", str(out), *asked.split()]) == 2
    error = capfd.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not out.exists()  # so that the command, once mended, is not refused


def test_stages_without_steps_are_left_out():
    """Zero steps of a stage that nothing else waits for are a choice, whatever its rows would be."""
    nothing = replace(SFT_DEBUG.own, steps=0, pictures=0, edits=0, words=0)
    replace(SFT_DEBUG, start="sketch", own=nothing, own_pictures=0, eyes=replace(SFT_DEBUG.eyes, steps=0)).check()


@pytest.mark.parametrize("name", MADE)
def test_what_is_there_already_is_no_part_of_new_lessons(name: str, tmp_path: Path, capfd):
    """A folder with something of the name is left as it is: at their end lessons would delete another's `model`."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("kept")
    for again in ([], ["--resume"]):
        assert main(["lessons", "debug", "--out", str(tmp_path), *again]) == 2
        error = capfd.readouterr().err
        assert f"holds {name} and no lessons.json" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine.txt"]


def test_a_log_may_lie_in_the_folder_and_what_lessons_make_is_known(tmp_path: Path):
    out = tmp_path / "lessons"
    out.mkdir()
    (out / "log").write_text("")
    assert main(["lessons", "debug", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} - {"log", "lessons.json"} == {*MADE} - {"model.partial"}
    assert main(["lessons", "debug", "--out", str(out), "--resume"]) == 0  # its own model may be replaced
