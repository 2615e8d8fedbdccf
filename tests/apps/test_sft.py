"""`triptych sft`: what cannot work is one line that names its option, and leaves no folder behind."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from triptych.apps.cli import main
from triptych.apps.sft import RENAMED_OPTIONS, StepLog, parse
from triptych.errors import ConfigError
from triptych.sft.curriculum import SFT_DEBUG, SFT_RECIPES, SFTConfig
from triptych.sft.optim import SFTStep
from triptych.sft.run import SETTINGS


def numbers(settings: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a record and of the records in it, by its path, such as `joint.mix.repairs`."""
    for each in fields(settings):
        value, name = getattr(settings, each.name), f"{path}{each.name}"
        if is_dataclass(value):
            yield from numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def changed(record: Any, path: str, value: float) -> Any:
    """The record with one number in it, or in a record that it holds, set to another value."""
    name, _, rest = path.partition(".")
    return replace(record, **{name: changed(getattr(record, name), rest, value) if rest else value})


NUMBERS = list(numbers(SFT_DEBUG))


@pytest.mark.parametrize(("path", "usual"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_every_number_has_bounds(path: str, usual: float):
    """No number may be negative, unknown or endless, and each is refused by the name of its option."""
    for value in (-1,) if isinstance(usual, int) else (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=path.rpartition(".")[2].replace("_", "[-_]")):
            changed(SFT_DEBUG, path, value).check()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--device abacus", "--device abacus"),
        ("--threads 0", "--threads 0: expected 1 or more"),
        ("--save-every 0", "--save-every 0: expected 1 or more"),
        ("--start nowhere", "'nowhere'"),
        ("--vision.steps 0", "--vision.steps 0"),
        ("--self-generated.images 0", "--self-generated.images 0: expected 1 or more"),
        ("--self-generated.guidance 0.5", "--self-generated.guidance 0.5: expected 1 or more"),
        ("--decoder.batch 0", "--decoder.batch 0: expected 1 or more"),
        ("--joint.mix.repairs 1.5", "--joint.mix.repairs 1.5: expected a share from 0 to 1"),
        ("--joint.pictures 0 --joint.edits 0 --joint.words 0", "--joint.pictures"),
        ("--gen.words 1", "--gen.words 1"),
        ("--model.own 0.5", "`--model.own`"),
        ("--joint.self-generated-share 0.5", "`--joint.self-generated-share`"),
        ("--eyes.rate 1", "`--eyes.rate` is `--vision.lr` now"),
        ("--own.clip 1", "`--own.clip` is `--self-generated.max-grad-norm` now"),
        ("--model.noises 1", "`--model.noises` is no longer an option"),
    ],
)
def test_what_cannot_work_is_one_line_and_takes_no_folder(options: str, named: str, tmp_path: Path, capfd):
    out = tmp_path / "sft"
    assert main(["sft", "debug", "--out", str(out), *options.split()]) == 2
    error = capfd.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not out.exists()  # so that the command, once corrected, is not refused


# Options of 0.1, with a value, by the stages that had them.
OF_ALL_STAGES = {"steps": "1", "rate": "0.15", "warmup": "1", "cooldown": "0.15", "average": "0.15", "clip": "0.7"}
OF_JOINT_STAGES = OF_ALL_STAGES | {
    **{"matrix-rate": "0.15", "pictures": "1", "edits": "1", "words": "1", "plans": "0.15", "answers": "0.15"},
    **{
        "own": "0.15",
        "recall": "0.15",
        "words-weight": "2",
        "experts": "und",
        "mix.right": "0.15",
        "mix.questions": "2",
    },
    **{
        "mix.spoiled": "0.15",
        "mix.fits": "0.15",
        "mix.assorted": "0.15",
        "mix.describes": "0.15",
        "mix.listed": "0.15",
    },
    **{"mix.bare": "0.15", "mix.hard": "0.15", "mix.whites": "2", "mix.mistakes": "2", "mix.scrambled": "0.15"},
    **{"mix.unseen": "0.15", "mix.layout.jitter": "1", "mix.at-once.shift": "1"},
}
OLD_OPTIONS = {
    **{"--every": "3", "--hands": "1", "--workers": "1", "--own-pictures": "3", "--own-guidance": "2", "--seed": "4"},
    **{f"--{stage}.{name}": value for stage in ("model", "own", "draw") for name, value in OF_JOINT_STAGES.items()},
    **{
        f"--{stage}.{name}": value
        for stage in ("autoencoder", "eyes", "connector", "decoder", "polish")
        for name, value in (OF_ALL_STAGES | {"batch": "3"}).items()
    },
    **{"--eyes.matrix-rate": "0.1", "--decoder.few": "0.1", "--polish.noise": "0.1", "--autoencoder.kl": "0.1"},
}
for gone in ("--model.own", "--draw.own"):  # they did nothing
    del OLD_OPTIONS[gone]


def test_every_old_option_has_a_name_of_today_that_sets_one_field():
    prefixes = sorted(RENAMED_OPTIONS, key=len, reverse=True)
    options = []
    for old, value in OLD_OPTIONS.items():
        prefix = next((each for each in prefixes if old == each or (each.endswith(".") and old.startswith(each))), old)
        options += [RENAMED_OPTIONS.get(prefix, prefix) + old[len(prefix) :], value]
    config, usual = parse(["sketch", *options]).config, SFT_RECIPES["sketch"][0]
    changed = [path for (path, one), (_, other) in zip(numbers(config), numbers(usual), strict=True) if one != other]
    assert len(changed) == len(OLD_OPTIONS) - 3  # the experts of three stages are no number


def test_an_option_overrides_its_field():
    options = parse(["sketch", "--joint.steps", "7", "--seed", "3", "--out", "here", "--resume"])
    config = options.config
    assert isinstance(config, SFTConfig) and config.joint.steps == 7 and config.seed == 3
    assert config.vision == SFT_RECIPES["sketch"][0].vision and options.out == Path("here") and options.resume
    assert parse(["debug"]).out == Path("runs/sft-debug")
    with pytest.raises(
        ConfigError, match=r"--joint.stepz: no option of triptych sft sketch, did you mean --joint.steps"
    ):
        parse(["sketch", "--joint.stepz", "7"])


def test_a_log_may_lie_in_the_folder_and_a_finished_run_can_be_resumed(tmp_path: Path, capfd):
    out = tmp_path / "sft"
    out.mkdir()
    (out / "log").write_text("")
    assert main(["sft", "debug", "--out", str(out)]) == 0
    assert capfd.readouterr().out.strip().endswith(str(out / "model"))
    assert {path.name for path in out.iterdir()} - {"log", SETTINGS} == {*SFTConfig.outputs}
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows[::2]] == list(SFTConfig.outputs[:8])
    assert all({*row} == {"stage", "index", "total", "loss", "metrics"} for row in rows)
    assert main(["sft", "debug", "--out", str(out), "--resume"]) == 0  # its own model may be replaced
    assert len((out / "steps.jsonl").read_text().splitlines()) == len(rows)
    assert main(["sft", "debug", "--out", str(out)]) == 2
    assert "go on with it by --resume" in capfd.readouterr().err


def test_a_resumed_log_is_the_log_of_a_straight_run(tmp_path: Path):
    steps = [SFTStep(stage, index, 4, 0.5, {}) for stage in ("one", "two") for index in range(4)]
    straight, resumed = StepLog(tmp_path / "straight"), StepLog(tmp_path / "resumed")
    for step in steps:
        straight.add(step)
    for step in steps[:7]:
        resumed.add(step)
    with (tmp_path / "resumed").open("a") as file:
        file.write('{"stage": "tw')  # killed while writing
    again = StepLog(tmp_path / "resumed")
    for step in steps[5:]:
        again.add(step)
    assert (tmp_path / "resumed").read_text() == (tmp_path / "straight").read_text()
    assert [json.loads(line)["index"] for line in (tmp_path / "straight").read_text().splitlines()] == [*range(4)] * 2
