"""The door of training: every choice is a typed option, an unknown one is refused, and `debug` runs to a model."""

import json

import pytest

from triptych.apps.cli import main
from triptych.apps.train import parse
from triptych.model import weights
from triptych.rl.recipes import RECIPES, SKETCH_RL


def test_every_choice_is_an_option():
    asked = (
        "sketch --tree.parents uniform --reward.variant release --refine.text.rate 3e-5 --reason.sampling.temperature 2"
    )
    config = parse(asked.split()).config
    assert (config.tree.parents, config.reward.variant) == ("uniform", "release")
    assert (config.refine.text.rate, config.reason.sampling.temperature) == (3e-5, 2.0)
    assert config.reason.picture == SKETCH_RL.reason.picture


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_asked_for(name):
    assert parse([name]).config == RECIPES[name][0]


@pytest.mark.parametrize(
    "asked", ["sketch --tree.root 1", "sketch --tree.parents best", "sculpture", "sketch --steps x"]
)
def test_unknown_choices_are_refused(asked, capsys):
    with pytest.raises(SystemExit) as refusal:
        parse(asked.split())
    assert refusal.value.code == 2


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
        (["--reason.width", "1"], "--reason.width"),
        (["--tags", "poetry"], "poetry"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_work_is_one_line(asked, named, tmp_path, capfd):
    assert main(["train", "debug", "--out", str(tmp_path / "run"), *asked]) == 2
    error = capfd.readouterr().err
    assert named in error and error.count("\n") == 1
