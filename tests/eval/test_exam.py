"""The exam: exact eyes pass it, a policy that never stops is half balanced, and nothing asked is nothing measured."""

import math

import pytest
from scripted import ScriptedPolicy

from triptych.data.captions import instruction_text
from triptych.data.edits import fix, spoil
from triptych.data.scene import Scene
from triptych.eval.exam import Score, exam, mends
from triptych.eval.suites import rehearsal
from triptych.model.config import SKETCH

PROMPTS = rehearsal(8).prompts
TEXT_SKILLS = ("stops", "edits", "instructions", "balanced", "edited")


def test_exact_eyes_pass():
    scores = exam(ScriptedPolicy(mistakes=1), PROMPTS, [0], SKETCH.fine, turns=4)
    assert {name: scores[name].mean for name in TEXT_SKILLS} == dict.fromkeys(TEXT_SKILLS, 1.0)
    assert scores["planned, turn 0"].mean == 0.0 and scores["planned, turn 4"].mean == 1.0
    assert scores["planned, own flaws improved"].mean == 1.0


def test_a_policy_that_never_stops_is_half_balanced():
    scores = exam(ScriptedPolicy(mistakes=1, blind=True), PROMPTS, [0], SKETCH.fine, turns=1)
    assert scores["stops"].mean == 0.0 and scores["edits"].mean == 1.0 and scores["balanced"].mean == 0.5


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_only_a_mending_instruction_is_right(index):
    spec = PROMPTS[index].spec
    scene = spoil(Scene.sample(spec, index), spec, index, 1)
    change = fix(scene, spec, index)
    assert mends(instruction_text(change), scene, spec, index)
    assert not mends("no further edit needed", scene, spec, index)
    assert not mends("add a red clock at nowhere", scene, spec, index)


def test_nothing_measured_is_not_zero():
    assert math.isnan(Score.of([]).mean) and Score.of([]).count == 0
    assert Score.of([True, False]).mean == 0.5
