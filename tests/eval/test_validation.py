"""Validation of a run: known answers from scripted players, fixed sets for a whole run, nothing disturbed."""

import json

import numpy as np
import pytest
import torch
from scripted import ScriptedPolicy

from triptych.bounds import check_bounds
from triptych.data.scene import check
from triptych.data.specs import StickerPrompts, spec_key
from triptych.errors import ConfigError, OutputError
from triptych.eval.suites import dev_set
from triptych.eval.validation import (
    HELD_OUT,
    FixedSet,
    ValidationConfig,
    ValidationLog,
    fixed_sets,
    preserved_state,
    validate,
    validation_line,
)
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.recipes import tiny

JUDGE = WorldJudge()
CONFIG = ValidationConfig(every=1, prompts=4, turns=4, fixed=3, own=3)


def sets_of(policy, tmp_path, config=CONFIG):
    return fixed_sets(tmp_path / "fixed.safetensors", policy, JUDGE, config)


def test_exact_eyes_are_measured_as_such(tmp_path):
    """One mistake in each first picture, seen and mended in one turn."""
    policy = ScriptedPolicy(mistakes=1)
    found = validate(policy, CONFIG, sets_of(policy, tmp_path), JUDGE)
    for mode in ("planned", "one_shot"):
        assert found[f"{mode}_right_0"] == 0 and found[f"{mode}_right_4"] == found[f"{mode}_score_4"] == 1
        assert 0 < found[f"{mode}_score_0"] < 1
    assert found["ita"] == 1 and "ita_balanced" not in found  # no picture was right at first
    assert found["fixed_false_stop"] == found["fixed_false_edit"] == found["own_false_stop"] == found["missing"] == 0
    assert "own_false_edit" not in found and (found["own_right"], found["own_flawed"]) == (0, 3)
    assert found["vqa"] == 0  # it says what it sees, whatever it is asked


def test_what_never_stops_and_what_always_stops_are_told_apart(tmp_path):
    class Content(ScriptedPolicy):
        def reflect(self, prompts, images, sampling, seeds, on_text=None):
            return self._say(["<think>all is well</think>no further edit needed"] * len(prompts), on_text)

    blind = validate(ScriptedPolicy(mistakes=0, blind=True), CONFIG, {"fixed": FixedSet.rendered(3)}, JUDGE)
    assert (blind["fixed_false_stop"], blind["fixed_false_edit"], blind["ita"]) == (0, 1, 0)
    content = validate(Content(mistakes=1), CONFIG, {"fixed": FixedSet.rendered(3)}, JUDGE)
    assert (content["fixed_false_stop"], content["fixed_false_edit"], content["ita"]) == (1, 0, 0)
    assert content["planned_right_4"] == content["planned_right_0"]


def test_held_out_prompts_never_come_in_training():
    held_out = {spec_key(prompt.spec.include) for prompt in dev_set(HELD_OUT).prompts}
    stream = StickerPrompts.without(0, [prompt.spec for prompt in dev_set().prompts])
    assert not held_out & {spec_key(stream(place).spec.include) for place in range(300)}
    assert {spec_key(prompt.spec.include) for prompt in FixedSet.rendered(5).prompts} <= held_out


def test_rendered_pictures_are_right_and_flawed_in_halves():
    known = FixedSet.rendered(6)
    held = [
        all(one.held for one in check(scene, prompt.spec))
        for scene, prompt in zip(JUDGE.scenes(list(known.pictures)), known.prompts, strict=True)
    ]
    assert held == list(known.right) == [True, False] * 6


def test_a_run_keeps_its_first_pictures(tmp_path):
    first = sets_of(ScriptedPolicy(mistakes=1), tmp_path)
    again = sets_of(ScriptedPolicy(mistakes=0), tmp_path, ValidationConfig(fixed=9, own=9, seed=5))
    for name in ("fixed", "own"):
        assert np.array_equal(first[name].pictures, again[name].pictures) and first[name].right == again[name].right
        assert [p.text for p in first[name].prompts] == [p.text for p in again[name].prompts]
        assert [p.spec for p in first[name].prompts] == [p.spec for p in again[name].prompts]
    (tmp_path / "again").mkdir()
    sets_of(ScriptedPolicy(mistakes=1), tmp_path / "again")
    one, two = (folder / "fixed.safetensors" for folder in (tmp_path, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    (tmp_path / "fixed.safetensors").write_bytes(b"torn")
    with pytest.raises(OutputError, match="remove it"):
        sets_of(ScriptedPolicy(), tmp_path)


def test_no_picture_of_a_kind_is_no_rate(tmp_path):
    found = validate(
        ScriptedPolicy(), CONFIG, sets_of(ScriptedPolicy(), tmp_path, ValidationConfig(fixed=0, own=0)), JUDGE
    )
    assert not [name for name in found if "false" in name]
    assert len(FixedSet.self_generated(ScriptedPolicy(), 0, JUDGE).right) == 0


def test_measuring_disturbs_neither_generators_nor_modes(tmp_path):
    bagel = tiny().train()
    bagel.autoencoder.eval()  # a module in another mode than the whole
    modes = [module.training for module in bagel.modules()]
    before, weights = torch.random.get_rng_state(), {name: p.clone() for name, p in bagel.state_dict().items()}
    validate(bagel, ValidationConfig(prompts=2, turns=1), {"own": FixedSet.self_generated(bagel, 2, JUDGE)}, JUDGE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in bagel.modules()] == modes
    assert all(torch.equal(p, weights[name]) for name, p in bagel.state_dict().items())
    with preserved_state(bagel):
        bagel.eval()
        torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before) and [m.training for m in bagel.modules()] == modes


def test_an_evaluation_is_a_line_and_is_known_by_its_settings(tmp_path):
    log = ValidationLog(tmp_path / "evaluations.jsonl")
    config = ValidationConfig(every=5, prompts=2, turns=1)
    row = log.validate(ScriptedPolicy(mistakes=1), config, {"fixed": FixedSet.rendered(2)}, JUDGE, 5, 40.0)
    assert log.has(5, config) and log.has(5, ValidationConfig(every=9, prompts=2, turns=1, batch=2))
    assert (
        not log.has(5, config, published=True)
        and not log.has(5, ValidationConfig(prompts=3, turns=1))
        and not log.has(6, config)
    )
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 10, "wat')  # torn by a kill
    log = ValidationLog(tmp_path / "evaluations.jsonl")  # of the process that resumes
    log.validate(ScriptedPolicy(), config, {}, JUDGE, 10, 80.0)
    assert [one["step"] for one in log.rows()] == [5, 10] and log.rows()[0] == json.loads(json.dumps(row))
    line = validation_line(row)
    assert "right 0.00→1.00" in line and "ITA 1.00 (balanced -)" in line and "\n" not in line


@pytest.mark.parametrize(
    "config",
    [
        ValidationConfig(prompts=0),
        ValidationConfig(own=-1),
        ValidationConfig(turns=-1),
        ValidationConfig(batch=0),
    ],
)
def test_settings_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match="--evaluate"):
        check_bounds(config, "evaluate")


def test_lines_of_older_runs_are_read(tmp_path):
    """Version 0.1 wrote the settings as `watch`, and measures without a plan as `at_once_...`."""
    config = ValidationConfig(prompts=2)
    old = {"step": 5, "samples": 9.0, "published": False, "watch": config.settings(), "at_once_right_0": 0.5}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(old) + "\n")
    log = ValidationLog(tmp_path / "evaluations.jsonl")
    assert log.has(5, config) and log.rows()[0]["one_shot_right_0"] == 0.5
