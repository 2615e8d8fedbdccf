"""What a lesson asks for: a function of its seed alone, and a share of them is hard."""

from dataclasses import replace

import pytest

from triptych.data.scene import check
from triptych.data.sft_samples import DataMix, sample_spec, sft_sample
from triptych.data.specs import random_spec

SEEDS = range(200)


def is_small(spec) -> bool:
    return any(item.size == "smaller" for item in spec.include)


def is_white(spec) -> bool:
    return any(item.color == "white" for item in spec.include)


def test_without_a_share_lessons_are_those_of_the_endless_set():
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
