"""SFT samples: a function of kind, seed and mix alone, true about their pictures; a share of prompts is hard."""

from dataclasses import replace
from random import Random

import pytest

from triptych.data.annotations import parse_instruction, remarks
from triptych.data.edits import apply
from triptych.data.layout import Layout
from triptych.data.scene import Scene, check
from triptych.data.sft_samples import DataMix, sample_spec, sft_sample, shuffled_scene
from triptych.data.specs import random_spec

SEEDS = range(200)


def is_small(spec) -> bool:
    return any(item.size == "smaller" for item in spec.include)


def is_white(spec) -> bool:
    return any(item.color == "white" for item in spec.include)


def test_without_hard_prompts_specs_are_those_of_the_endless_set():
    assert [sample_spec(seed, DataMix(hard_prompts=0.0)) for seed in SEEDS] == [random_spec(seed) for seed in SEEDS]


def is_crowded(spec) -> bool:
    return len(spec.include) > 1 and sum(item.count for item in spec.include) > 4


def test_hard_prompts_ask_for_small_for_white_and_for_many_stickers():
    specs = [sample_spec(seed, DataMix(hard_prompts=1.0)) for seed in SEEDS]
    for hard in (is_small, is_white, is_crowded):
        assert 40 < sum(map(hard, specs)) < 110  # a third of each, and some by chance
    assert all(is_small(spec) or is_white(spec) or is_crowded(spec) for spec in specs)
    assert specs == [sample_spec(seed, DataMix(hard_prompts=1.0)) for seed in SEEDS]


def test_white_prompts_are_so_many_times_as_frequent_as_small_ones():
    specs = [sample_spec(seed, DataMix(hard_prompts=1.0, white_weight=3)) for seed in SEEDS]
    assert 95 < sum(map(is_white, specs)) < 160  # three of five, and some by chance
    assert 20 < sum(map(is_small, specs)) < 70


def test_a_share_of_hard_prompts_leaves_the_others_alone():
    changed = [sample_spec(seed, DataMix(hard_prompts=0.3)) != random_spec(seed) for seed in SEEDS]
    assert 35 < sum(changed) < 85


@pytest.mark.parametrize("kind", ["draw", "plan"])
def test_a_picture_of_a_hard_prompt_is_right(kind):
    mix = replace(DataMix(), hard_prompts=1.0)
    for seed in SEEDS:
        after = sft_sample(kind, seed, mix).after
        assert after and all(one.held for one in check(after, sample_spec(seed, mix)))


@pytest.mark.parametrize("seed", range(40))
def test_samples_are_true(seed):
    plan, edit, reflection = (sft_sample(kind, seed) for kind in ("plan", "edit", "reflect"))
    assert plan.thought is not None and plan.after is not None
    after = apply(edit.before, parse_instruction(edit.prompt), seed)
    assert [(s.name, s.color, s.cell, s.size) for s in after.stickers] == [
        (s.name, s.color, s.cell, s.size) for s in edit.after.stickers
    ]
    if reflection.reply is None:
        assert reflection.thought.endswith("all as asked.")


def test_reflections_on_right_and_wrong_pictures_are_both_common():
    samples = [sft_sample("reflect", seed) for seed in range(200)]
    assert 60 < sum(one.reply is None for one in samples) < 130
    assert 35 < sum(one.before is None for one in samples) < 75
    flawed = [
        sft_sample("reflect", seed, DataMix(correct_pictures=0.0, shuffled_scenes=share, text_only_reflections=1.0))
        for seed in range(20)
        for share in (0, 1)
    ]
    assert all(one.before is None for one in flawed)


def test_pictures_without_a_plan_are_laid_out_as_usual_and_others_freely():
    rows, columns = Layout(canonical=1.0, usual=1.0), Layout(canonical=1.0, usual=0.0)
    mix = DataMix(layout=columns, one_shot_layout=rows)
    for seed in range(20):
        spec = random_spec(seed)
        assert sft_sample("draw", seed, mix).after == Scene.sample(spec, seed, rows)
        assert sft_sample("plan", seed, mix).after == Scene.sample(spec, seed, columns)
    right = DataMix(correct_pictures=1.0, layout=columns)
    assert sft_sample("reflect", 3, right).before == Scene.sample(random_spec(3), 3, columns)


def test_only_whether_a_picture_fits_is_thought_about_unless_lists_are_asked_for():
    samples = [sft_sample("answer", seed, DataMix(fit_questions=0.5)) for seed in range(80)]
    fitting = [one.prompt.startswith("does the picture show") for one in samples]
    assert [one.thought is not None for one in samples] == fitting and 5 < sum(fitting) < 40
    assert all(one.before is not None for one in samples)


def test_shuffled_scenes_hold_the_words_of_the_prompt_and_are_mostly_wrong():
    wrong = total = 0
    for seed in range(100):
        spec = random_spec(seed)
        scene = shuffled_scene(spec, Random(seed), Layout())
        named = {item.name for item in spec.include}
        assert 1 <= len(scene.stickers) <= 9 and len({one.name for one in scene.stickers} - named) <= 1
        listed = remarks(scene, spec)
        wrong += sum(" no" in one or "extra" in one for one in listed)
        total += len(listed)
    assert 0.4 < wrong / total < 0.8
