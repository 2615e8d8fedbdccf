"""The exam: exact eyes pass it, a policy that never stops is half balanced, and nothing asked is nothing measured."""

import math

import pytest
from scripted import ScriptedPolicy

from triptych.data.annotations import instruction_text
from triptych.data.edits import fix, spoil
from triptych.data.scene import Scene
from triptych.eval.probes import ProbeScore, mends, run_probes
from triptych.eval.results import Row, summarize
from triptych.eval.suites import dev_set
from triptych.model.config import SKETCH
from triptych.trace import Verdict

PROMPTS = dev_set(8).prompts
TEXT_SKILLS = ("stops", "edits", "instructions", "balanced", "edited")


def test_exact_eyes_pass():
    scores = run_probes(ScriptedPolicy(mistakes=1), PROMPTS, [0], SKETCH.sampling, turns=4)
    assert {name: scores[name].mean for name in TEXT_SKILLS} == dict.fromkeys(TEXT_SKILLS, 1.0)
    assert scores["planned, turn 0"].mean == 0.0 and scores["planned, turn 4"].mean == 1.0
    assert scores["planned, own flaws improved"].mean == 1.0


def test_a_policy_that_never_stops_is_half_balanced():
    scores = run_probes(ScriptedPolicy(mistakes=1, blind=True), PROMPTS, [0], SKETCH.sampling, turns=1)
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
    for nothing in (ProbeScore.of([], []), ProbeScore.of([None, None], [0, 1])):
        assert math.isnan(nothing.mean) and nothing.count == 0
    score = ProbeScore.of([True, None, False], [0, 1, 2])
    assert score.mean == 0.5 and score.count == 2


def test_seeds_of_one_prompt_add_no_certainty_and_other_prompts_do():
    """1.96 sqrt(p (1 - p) / prompts) each way, however often each prompt was asked; the benchmark's own interval."""
    once, prompts = [index % 5 < 3 for index in range(300)], [*range(300)]
    alone, thrice = ProbeScore.of(once, prompts), ProbeScore.of(once * 3, prompts * 3)
    assert (alone.mean, alone.low, alone.high) == (thrice.mean, thrice.low, thrice.high) and thrice.count == 900
    assert [alone.low, alone.high] == pytest.approx([0.6 - 0.0554, 0.6 + 0.0554], abs=0.01)
    assert thrice.high - thrice.low > 1.5 * (
        ProbeScore.of(once * 3, [*range(900)]).high - ProbeScore.of(once * 3, [*range(900)]).low
    )
    rows = [Row(index, "", "all", 0, (Verdict(float(right)),), False, (None,), 0.0) for index, right in enumerate(once)]
    theirs = summarize("exam", rows, ("all",), 0).accuracy["all"][0]
    assert (alone.mean, alone.low, alone.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_every_skill_of_an_exam_knows_its_prompts():
    """A policy that does the same under every seed is as uncertain after three seeds as after one."""
    once, thrice = (
        run_probes(ScriptedPolicy(mistakes=1, blind=True), PROMPTS, seeds, SKETCH.sampling, 1)
        for seeds in ([0], [0, 1, 2])
    )
    for name in ("stops", "edits", "balanced"):
        assert thrice[name].count == 3 * once[name].count
        assert (thrice[name].low, thrice[name].high) == (once[name].low, once[name].high)
    assert once["stops"].count == once["edits"].count == once["instructions"].count == len(PROMPTS) // 2
    assert once["balanced"].low < 0.5 < once["balanced"].high
