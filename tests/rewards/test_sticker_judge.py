"""Laws of the world judge: what was rendered is read back, what was spoiled is named, and nothing makes it crash."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data.edits import spoil
from triptych.data.render import render
from triptych.data.scene import BACKGROUND, Scene, Sticker, check
from triptych.data.specs import random_spec
from triptych.errors import JudgeError, ModelError, PictureError
from triptych.rewards.sticker_judge import WorldJudge, are_stickers, detect, load_detector, to_canvas
from triptych.sft.sticker_detector import facts
from triptych.trace import Drawing, Item, Prompt, Spec, Trace, Turn

SEEDS = range(24)


@pytest.fixture(scope="module")
def specs():
    return [random_spec(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def scenes(specs):
    return [Scene.sample(spec, seed) for seed, spec in zip(SEEDS, specs, strict=True)]


def traces_of(scenes, specs):
    drawings = [Drawing(image.numpy()) for image in render(scenes)]
    prompts = [Prompt("as in the spec", spec) for spec in specs]
    return [Trace(prompt) + Turn(None, drawing) for prompt, drawing in zip(prompts, drawings, strict=True)]


def test_a_scene_that_meets_its_spec_scores_one(scenes, specs):
    for verdict in WorldJudge()(traces_of(scenes, specs)):
        assert verdict.score == 1.0 and not verdict.failed, verdict


def test_a_spoiled_scene_fails_by_exactly_the_checks_that_its_truth_fails(scenes, specs):
    wrong = [spoil(scene, spec, seed, edits=1) for seed, scene, spec in zip(SEEDS, scenes, specs, strict=True)]
    for verdict, scene, spec in zip(WorldJudge()(traces_of(wrong, specs)), wrong, specs, strict=True):
        checks = check(scene, spec)
        assert verdict.failed == tuple(c.text for c in checks if not c.held)
        assert verdict.score == pytest.approx(sum(c.held for c in checks) / len(checks)) and verdict.score < 1


def test_what_is_rendered_is_read_back(scenes):
    assert [facts(scene) for scene in detect(render(scenes))] == [facts(scene) for scene in scenes]


def test_what_is_read_does_not_depend_on_the_precision_around_it(scenes):
    noisy = [
        image.float() + 12 * torch.randn(image.shape, generator=torch.Generator().manual_seed(7))
        for image in render(scenes)
    ]
    pictures = [image.clamp(0, 255).to(torch.uint8) for image in noisy]
    with torch.autocast("cpu", torch.bfloat16):
        around = detect(pictures)
    assert around == detect(pictures)


def test_places_are_read_to_less_than_a_pixel():
    truth = Scene((Sticker("clock", "red", 20.3, 30.6), Sticker("cat", "blue", 70.9, 61.2, "larger")))
    (scene,) = detect(render([truth]))
    for a, b in zip(sorted(scene.stickers, key=lambda s: s.x), truth.stickers, strict=True):
        assert abs(a.x - b.x) < 1 and abs(a.y - b.y) < 1


def test_an_empty_canvas_shows_nothing_and_passes_no_check_about_things():
    blank = np.full((96, 96, 3), BACKGROUND, np.uint8)
    assert detect([blank]) == [Scene(())]
    spec = Spec("single_object", (Item("clock"),))
    (verdict,) = WorldJudge()([Trace(Prompt("a clock", spec)) + Turn(None, Drawing(blank))])
    assert verdict.score < 1 and verdict.failed[0].startswith("one clock: found")


def test_a_row_is_judged_the_same_alone_and_in_a_batch(scenes, specs):
    traces = traces_of(scenes, specs)
    judge = WorldJudge()
    assert [judge([trace])[0] for trace in traces[:6]] == judge(traces)[:6]
    assert [judge.scenes([trace.image])[0] for trace in traces[:6]] == judge.scenes([t.image for t in traces])[:6]
    assert judge([]) == []


@pytest.mark.parametrize("shape", [(96, 96), (1, 1), (13, 200), (512, 512), (95, 97)])
def test_no_picture_of_noise_at_any_size_crashes_the_detector(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    flat = [np.full((*shape, 3), value, np.uint8) for value in (0, 255)]
    assert len(detect([noise, *flat])) == 3


def test_a_picture_of_another_size_is_read_as_if_brought_to_the_canvas(scenes):
    large = render(scenes[:4]).repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert [facts(scene) for scene in detect(large)] == [facts(scene) for scene in scenes[:4]]


@pytest.mark.parametrize(("shape", "dtype"), [((96, 96), "uint8"), ((96, 96, 4), "uint8"), ((96, 96, 3), "float32")])
def test_what_is_not_a_picture_is_an_error_and_no_score(shape, dtype):
    bad = np.zeros(shape, dtype)
    with pytest.raises(PictureError, match="expected a picture"):
        detect([bad])
    with pytest.raises(JudgeError, match="cannot look"):
        WorldJudge()([Trace(Prompt("a clock", Spec("single_object", (Item("clock"),)))) + Turn(None, Drawing(bad))])


def test_without_a_spec_or_a_picture_there_is_no_verdict():
    drawing = Drawing(np.zeros((96, 96, 3), np.uint8))
    with pytest.raises(JudgeError, match="spec"):
        WorldJudge()([Trace(Prompt("a clock")) + Turn(None, drawing)])
    with pytest.raises(JudgeError, match="picture"):
        WorldJudge()([Trace(Prompt("a clock", Spec("single_object", (Item("clock"),))))])


def test_the_name_holds_the_fingerprint_of_the_weights(tmp_path):
    assert WorldJudge().name.startswith("world-") and len(WorldJudge().name) == len("world-") + 12
    with pytest.raises(ModelError, match="no judge weights"):
        load_detector(tmp_path / "absent.safetensors")


def test_judging_is_the_same_after_heavy_use_of_randomness(scenes):
    torch.rand(3)
    assert detect(render(scenes[:2])) == detect(render(scenes[:2]))


# --- pictures that are none of stickers -------------------------------------------------------------------------------


def test_two_thousand_scenes_are_stickers():
    scenes = [Scene.sample(random_spec(seed), seed) for seed in range(2000)]
    assert all(bool(are_stickers(render(scenes[start : start + 200])).all()) for start in range(0, 2000, 200))


@pytest.mark.parametrize(("side", "quality"), [(96, 30), (96, 75), (512, 60), (48, 50)])
def test_a_scene_that_a_user_scaled_and_compressed_is_still_one_of_stickers(scenes, side, quality):
    for image in render(scenes):
        buffer = io.BytesIO()
        Image.fromarray(image.numpy()).resize((side, side)).save(buffer, "JPEG", quality=quality)
        assert are_stickers(to_canvas(np.array(Image.open(buffer)))[None])[0]


def judged(picture):
    return WorldJudge()([Trace(Prompt("a cat", Spec("single_object", (Item("cat"),)))) + Turn(None, Drawing(picture))])


def test_no_photograph_has_a_score():
    data = Path(pytest.importorskip("skimage", reason="scikit-image is not installed").__file__).parent / "data"
    files = sorted([*data.glob("*.png"), *data.glob("*.jpg")])
    assert len(files) > 20
    random = np.random.default_rng(0)
    for file in files:
        photograph = np.array(Image.open(file).convert("RGB"))
        with pytest.raises(JudgeError, match="--judge vlm"):
            judged(photograph)
        for _ in range(10):  # its parts are photographs too
            side = int(random.integers(min(40, *photograph.shape[:2]), min(photograph.shape[:2]) + 1))
            top, left = (int(random.integers(size - side + 1)) for size in photograph.shape[:2])
            part = np.ascontiguousarray(photograph[top : top + side, left : left + side])
            assert not are_stickers(to_canvas(part)[None])[0], (file.name, top, left, side)


def test_noise_gradients_flat_colors_and_pages_have_no_score():
    random, ramp = np.random.default_rng(0), np.linspace(0, 255, 128).astype(np.uint8)
    page = np.full((200, 200, 3), 255, np.uint8)
    page[20:180:12, 20:180] = 0  # lines of a text
    drawn = np.full((200, 200, 3), (196, 206, 212), np.uint8)
    drawn[:, :130] = random.integers(0, 256, (200, 130, 3))  # a photograph beside an empty canvas
    others = [random.integers(0, 256, (128, 128, 3), dtype=np.uint8), np.dstack([np.tile(ramp, (128, 1))] * 3), page]
    others += [np.full((96, 96, 3), value, np.uint8) for value in (0, 128, 204, 206, 255)]  # gray of each brightness
    for picture in [*others, drawn]:
        with pytest.raises(JudgeError, match="no stickers"):
            judged(picture)


def test_what_a_model_of_the_world_draws_badly_is_wrong_and_not_missing():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    trace = Trace(Prompt("a cat", Spec("single_object", (Item("cat"),)))) + Turn(None, Drawing(noise))
    assert WorldJudge(strangers=False)([trace])[0].score < 1
    with pytest.raises(JudgeError, match="no stickers"):
        WorldJudge()([trace])
