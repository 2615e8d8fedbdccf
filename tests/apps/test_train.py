"""The door of training: every choice is a typed option, an unknown one is refused, and `debug` runs to a model."""

import json

import pytest

from triptych.apps.cli import main
from triptych.apps.train import parse
from triptych.errors import ConfigError
from triptych.model import weights
from triptych.rl.recipes import RECIPES, SKETCH_RL
from triptych.rl.train_state import MADE


def test_every_choice_is_an_option():
    asked = (
        "sketch --tree.selection uniform --reward.variant release --refine.text.lr 3e-5 --reason.sampling.temperature 2"
    )
    config = parse(asked.split()).config
    assert (config.tree.selection, config.reward.variant) == ("uniform", "release")
    assert (config.refine.text.lr, config.reason.sampling.temperature) == (3e-5, 2.0)
    assert config.reason.picture == SKETCH_RL.reason.picture


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_asked_for(name):
    assert parse([name]).config == RECIPES[name][0]


@pytest.mark.parametrize(
    "asked", ["sketch --tree.root 1", "sketch --tree.selection best", "sculpture", "sketch --steps x"]
)
def test_unknown_choices_are_refused(asked):
    with pytest.raises(ConfigError):
        parse(asked.split())


def test_debug_runs_to_a_model(tmp_path, capfd):
    out = tmp_path / "run"
    assert main(["train", "debug", "--out", str(out)]) == 0
    assert weights.load(out / "model").config.name == "tiny"
    rows = [json.loads(text) for text in (out / "steps.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["reason", "refine"]
    assert main(["train", "debug", "--out", str(out)]) == 2
    assert "--resume" in capfd.readouterr().err
    assert main(["train", "debug", "--out", str(out), "--resume"]) == 0


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["--reason.group-size", "1"], "--reason.group-size"),
        (["--tags", "poetry"], "poetry"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--evaluate.prompts", "0"], "--evaluate.prompts"),
        (["--timeout", "0"], "--timeout"),
        (["--held-out", "2"], "--held-out"),
        (["--pages.every", "-1"], "--pages.every"),
    ],
)
def test_what_cannot_work_is_one_line(asked, named, tmp_path, capfd):
    assert main(["train", "debug", "--out", str(tmp_path / "run"), *asked]) == 2
    error = capfd.readouterr().err
    assert named in error and error.count("\n") == 1


@pytest.mark.parametrize("name", MADE)
def test_what_is_there_already_is_no_part_of_a_new_run(name, tmp_path, capfd):
    """A folder with something of the name is left as it is: at its end a run would delete another's `model`."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("kept")
    for again in ([], ["--resume"]):
        assert main(["train", "debug", "--out", str(tmp_path), *again]) == 2
        error = capfd.readouterr().err
        assert f"holds {name} and no run.json" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine.txt"]


def test_a_log_may_lie_in_the_folder_and_what_a_run_makes_is_known(tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "run"
    out.mkdir()
    (out / "log").write_text("")
    looking = ["--evaluate.every", "1", "--pages.every", "1", "--lora.rank", "2", "--reference", "adapter"]
    assert main(["train", "debug", "--out", str(out), *looking, *LOOKS]) == 0
    assert {path.name for path in out.iterdir()} - {"log", "run.json"} <= {*MADE}


LOOKS = [f"--evaluate.{what}" for what in ("prompts=2", "turns=1", "fixed=1", "own=2", "batch=2")]


def lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_evaluating_changes_nothing_but_what_is_known(tmp_path, capfd):
    """Weights to the byte, and the log without its clock, are those of a run that nobody looked at."""
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    assert main(["train", "debug", "--steps", "3", "--out", str(alone)]) == 0
    watching = ["--evaluate.every", "1", "--pages.every", "1", *LOOKS]
    assert main(["train", "debug", "--steps", "3", "--out", str(watched), *watching]) == 0
    for name in ("ema.safetensors", "ae.safetensors"):
        assert (alone / "model" / name).read_bytes() == (watched / "model" / name).read_bytes()
    assert (alone / "run.json").read_bytes() == (watched / "run.json").read_bytes()
    clock = ("seconds", "samples_per_second", "share_")
    one, two = (
        [
            {name: value for name, value in row.items() if not name.startswith(clock)}
            for row in lines(out / "steps.jsonl")
        ]
        for out in (alone, watched)
    )
    assert one == two and not (alone / "evaluations.jsonl").exists() and not (alone / "rollouts").exists()
    found = lines(watched / "evaluations.jsonl")
    assert [(row["step"], row["published"]) for row in found] == [(0, False), (1, False), (2, False), (3, True)]
    assert [row["samples"] for row in found] == [0.0, *(row["samples"] for row in lines(watched / "steps.jsonl"))]
    assert capfd.readouterr().out.count("held out") >= 4
    assert (watched / "rollouts" / "index.html").is_file()


def test_a_resumed_run_may_look_in_another_way_and_looks_once(tmp_path):
    out = tmp_path / "run"
    assert main(["train", "debug", "--out", str(out), "--evaluate.every", "1", *LOOKS]) == 0
    fixed = (out / "fixed.safetensors").read_bytes()
    assert main(["train", "debug", "--out", str(out), "--resume", "--evaluate.every", "2", *LOOKS]) == 0
    assert [row["step"] for row in lines(out / "evaluations.jsonl")] == [0, 1, 2]
    more = ["--steps", "3", "--evaluate.every", "1", *LOOKS, "--evaluate.prompts", "3"]
    assert main(["train", "debug", "--out", str(out), "--resume", *more]) == 0
    found = [(row["step"], row["settings"]["prompts"]) for row in lines(out / "evaluations.jsonl")]
    assert found == [(0, 2), (1, 2), (2, 2), (0, 3), (3, 3)]  # what it started from is measured in the new way too
    assert (out / "fixed.safetensors").read_bytes() == fixed


def test_a_folder_that_is_taken_is_left_as_it_is(tmp_path, capfd):
    out = tmp_path / "run"
    assert main(["train", "debug", "--steps", "1", "--out", str(out)]) == 0
    before = sorted(path.name for path in out.iterdir())
    assert main(["train", "debug", "--out", str(out), "--evaluate.every", "1", *LOOKS]) == 2
    assert "--resume" in capfd.readouterr().err and sorted(path.name for path in out.iterdir()) == before
