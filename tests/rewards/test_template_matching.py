"""Laws of the second judge, without learned parts: it reads what was rendered, and agrees with the first."""

import numpy as np
import torch

from triptych.data.edits import spoil
from triptych.data.render import render
from triptych.data.scene import BACKGROUND, Scene, Sticker
from triptych.data.specs import random_spec
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rewards.template_matching import TemplateJudge
from triptych.sft.sticker_detector import blur, facts
from triptych.trace import Drawing, Prompt, Trace, Turn

SEEDS = range(6)


def test_what_is_rendered_is_read_back_clean_or_blurred_and_noisy():
    scenes = [Scene.sample(random_spec(seed), seed) for seed in SEEDS]
    images = render(scenes)
    worn = blur(images.permute(0, 3, 1, 2).float(), torch.ones(len(images)))
    worn = worn + 12 * torch.randn(worn.shape, generator=torch.Generator().manual_seed(0))
    for pictures in (images, worn.permute(0, 2, 3, 1).clamp(0, 255).to(torch.uint8)):
        assert [facts(scene) for scene in TemplateJudge().scenes(pictures)] == [facts(scene) for scene in scenes]


def test_both_judges_give_the_same_verdicts_on_right_and_wrong_pictures():
    specs = [random_spec(seed) for seed in SEEDS]
    scenes = [Scene.sample(spec, seed) for spec, seed in zip(specs, SEEDS, strict=True)]
    scenes = [spoil(a, spec, seed) if seed % 2 else a for a, spec, seed in zip(scenes, specs, SEEDS, strict=True)]
    drawings = [Drawing(image.numpy()) for image in render(scenes)]
    traces = [Trace(Prompt("", spec)) + Turn(None, drawing) for spec, drawing in zip(specs, drawings, strict=True)]
    verdicts = TemplateJudge()(traces)
    assert [v.score for v in verdicts] == [v.score for v in WorldJudge()(traces)]
    assert [v.score == 1 for v in verdicts] == [seed % 2 == 0 for seed in SEEDS]


def test_places_are_read_to_half_a_pixel():
    (scene,) = TemplateJudge().scenes(render([Scene((Sticker("clock", "red", 20.5, 30.0),))]))
    assert scene == Scene((Sticker("clock", "red", 20.5, 30.0),))


def test_touching_stickers_of_one_colour_are_told_apart():
    truth = Scene((Sticker("cat", "blue", 36, 48), Sticker("dog", "blue", 60, 48)))
    (scene,) = TemplateJudge().scenes(render([truth]))
    assert facts(scene) == facts(truth)


def test_an_empty_canvas_a_tinted_one_and_noise_show_nothing():
    blank = np.full((96, 96, 3), BACKGROUND, np.uint8)
    noise = np.random.default_rng(0).normal(BACKGROUND, 12, (40, 70, 3)).astype(np.uint8)
    assert TemplateJudge().scenes([blank, blank - 20, noise]) == [Scene(())] * 3
