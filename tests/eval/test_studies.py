"""Studies: curves with known answers, runs told apart by their settings, and honest where something is missing."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scripted import ScriptedPolicy

from triptych.apps.cli import main
from triptych.errors import ConfigError, OutputError
from triptych.eval import studies
from triptych.eval.benchmark import run_benchmark
from triptych.eval.studies import TrainingRun, curve, grouped, name_of, smooth
from triptych.eval.suites import dev_set
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.config import TreeConfig
from triptych.rl.recipes import RECIPES, SKETCH_RL


def folder(path, config=SKETCH_RL, values=(0.25, 0.5), evaluated=True):
    """A run of training that never was: V and accuracy `values` after 10, 20, ... samples."""
    path.mkdir()
    (path / "run.json").write_text(json.dumps(asdict(config) | {"start": "s"}))
    rows = [
        {"index": i, "stage": stage, "v": value if stage == "reason" else 9.0, "samples": 10.0 * (i + 1)}
        for i, value in enumerate(values)
        for stage in ("reason", "refine")
    ]
    (path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"index": 9, "st')
    if evaluated:
        settings = {"prompts": 2, "turns": 1}
        rows = [
            {"step": i, "samples": 10.0 * i, "settings": settings, "published": False, "planned_right_1": value}
            for i, value in enumerate(values)
        ]
        (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_curve_is_the_mean_and_the_extremes_where_all_runs_have_been():
    one, two = np.array([[0, 0.0], [10, 1.0], [20, 1.0]]), np.array([[5, 0.5], [10, 0.0], [30, 0.0]])
    found = curve([one, two])
    assert found.samples.tolist() == [5, 10, 20] and found.runs == 2
    assert found.low.tolist() == [0.5, 0, 0] and found.high.tolist() == [0.5, 1, 1]
    assert found.mean.tolist() == [0.5, 0.5, 0.5]
    assert curve([one, np.zeros((0, 2))]) is None and curve([]) is None
    assert curve([one, np.add(one, [100, 0])]) is None  # nothing in common


@pytest.mark.parametrize("count", [1, 4, 10, 100])
def test_smoothing_keeps_points_and_constants(count):
    points = np.column_stack([np.arange(count), np.full(count, 0.3)])
    assert np.allclose(smooth(points), points)
    line = np.column_stack([np.arange(count), np.arange(count)])
    assert np.allclose(smooth(line, 1), line) and smooth(line).shape == line.shape


def test_steps_that_begin_at_a_prompt_make_the_curve(tmp_path):
    training_run = TrainingRun.read(folder(tmp_path / "run"))
    assert training_run.points("step", "v").tolist() == [[10, 0.25], [20, 0.5]]  # no Refine, no torn line
    assert training_run.points("validation", "planned_right_1").tolist() == [[0, 0.25], [10, 0.5]]
    assert len(training_run.points("validation", "ita")) == 0 and training_run.turns == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_known_by_its_settings_alone(recipe):
    config = replace(RECIPES[recipe][0], seed=7, steps=3, samples=99, save_every=1)
    assert name_of(json.loads(json.dumps(asdict(config)))) == studies.TITLES.get(recipe, recipe)


def test_settings_of_no_recipe_are_named_by_their_kind():
    named = [
        name_of(asdict(replace(SKETCH_RL, max_grad_norm=0.5, tree=tree)))
        for tree in (TreeConfig(), TreeConfig(depth=0), TreeConfig(kind="trajectory"))
    ]
    assert named == ["Tree-RL, own settings", "Reason only, own settings", "full trajectory, own settings"]


def test_runs_are_one_curve_only_if_nothing_but_the_seed_differs(tmp_path):
    seeds = [folder(tmp_path / str(seed), replace(SKETCH_RL, seed=seed)) for seed in (0, 1)]
    other = folder(tmp_path / "other", replace(SKETCH_RL, max_grad_norm=0.5))
    assert {name: len(runs) for name, runs in grouped(map(TrainingRun.read, seeds)).items()} == {"Tree-RL": 2}
    with pytest.raises(ConfigError, match="max_grad_norm"):
        grouped([TrainingRun.read(seeds[0], "mine"), TrainingRun.read(other, "mine")])
    with pytest.raises(ConfigError, match="seed 0"):
        grouped([TrainingRun.read(seeds[0]), TrainingRun.read(seeds[0])])
    assert len(grouped([TrainingRun.read(seeds[0]), TrainingRun.read(other)])) == 2


def test_what_was_not_measured_is_said(tmp_path):
    bare = TrainingRun.read(folder(tmp_path / "bare", replace(SKETCH_RL, seed=1), evaluated=False))
    full = TrainingRun.read(folder(tmp_path / "full"))
    found = studies.curves([bare, full])
    assert found["v"]["Tree-RL"].runs == 2 and found["planned_right_1"]["Tree-RL"] is None
    notes = "\n".join(studies.notes([bare, full]))
    assert "--evaluate.every" in notes and "planned_right_1 is in some of its runs only" in notes
    assert "one seed" in "\n".join(studies.notes([full]))
    studies.figure([bare, full])


def test_the_papers_rows_are_filled_from_named_folders(tmp_path):
    benchmark, judge = dev_set().thinned(3), WorldJudge()
    list(run_benchmark(benchmark, ScriptedPolicy(mistakes=1), judge, 1, out=tmp_path / "plan"))
    list(run_benchmark(benchmark, ScriptedPolicy(mistakes=0), judge, 0, plan=False, out=tmp_path / "once"))
    (lines,) = studies.paper_table([("sft", tmp_path / "plan"), ("lessons", tmp_path / "once")]).values()
    overall = {line.title: line.cells["Overall"].value for line in lines if line.cells}
    assert overall == {
        "SFT, one-shot, <= 0 turns": 1,
        "SFT, planned, <= 0 turns": 0,
        "SFT, planned, <= 1 turns": 1,
    }
    assert [line.title for line in lines] == [slot[0] for slot in studies.SLOTS]
    assert "R3, planned, <= 4 turns: not measured" in studies.missing(lines)
    assert "| R3, one-shot, <= 4 turns | - |" in studies.markdown("dev-set", lines)
    (lines,) = studies.paper_table([("mine", tmp_path / "plan")]).values()
    assert [line.title for line in lines] == ["mine, <= 0 turns", "mine, <= 1 turns"]
    with pytest.raises(ConfigError, match="both"):
        studies.paper_table([("r3", tmp_path / "plan"), ("r3", tmp_path / "plan")])


def test_runs_that_cannot_be_compared_are_in_no_table(tmp_path):
    benchmark, judge = dev_set().thinned(2), WorldJudge()
    for seed in (0, 1):
        list(run_benchmark(benchmark, ScriptedPolicy(mistakes=0), judge, 0, (seed,), out=tmp_path / str(seed)))
    with pytest.raises(ConfigError, match="seeds"):
        studies.paper_table([("lessons", tmp_path / "0"), ("r3", tmp_path / "1")])
    with pytest.raises(OutputError):
        studies.paper_table([("lessons", tmp_path)])


def test_two_runs_of_training_make_a_study(tmp_path, capfd):
    """From `triptych train debug` twice to a figure and its numbers; nothing is overwritten."""
    validation = [f"--evaluate.{what}" for what in ("every=1", "prompts=1", "turns=0", "fixed=1", "own=0")]
    for kind in ("tree", "trajectory"):
        words = ["--tree.kind", kind, "--steps", "1", "--out", str(tmp_path / kind)]
        assert main(["train", "debug", *words, *validation]) == 0
    words = ["study", str(tmp_path / "tree"), f"chains={tmp_path / 'trajectory'}", "--out", str(tmp_path / "study")]
    assert main(words) == 0
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert set(record["curves"]["v"]) == {"debug", "chains"} and record["curves"]["v"]["chains"]["runs"] == 1
    rows = [json.loads(text) for text in (tmp_path / "tree" / "steps.jsonl").read_text().splitlines()]
    assert record["curves"]["v"]["debug"]["mean"] == [rows[0]["v"]]
    assert record["curves"]["one_shot_right_0"]["debug"]["samples"] == [0, rows[0]["samples"]]
    assert {path.name for path in (tmp_path / "study").iterdir()} == {
        "curves.svg",
        "curves.png",
        "study.md",
        "study.json",
    }
    assert "chains (1 seed)" in (tmp_path / "study" / "curves.svg").read_text()
    assert main(words) == 2 and "exists" in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["nowhere"], ["a=nowhere"]])
def test_what_is_no_run_is_refused_in_one_line(words, tmp_path, capfd):
    assert main(["study", *words, "--out", str(tmp_path / "study")]) == 2
    error = capfd.readouterr().err
    assert "DIR" in error and error.count("\n") == 1 and not (tmp_path / "study").exists()
