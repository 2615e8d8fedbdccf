"""GenEval's detector, with tiny random weights: what they keep and cut out; a picture's company does not matter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.data import stickers
from triptych.errors import JudgeError, ModelError
from triptych.eval import recorded
from triptych.rewards import geneval_rules
from triptych.rewards.geneval_detector import (
    CLIP_MEAN,
    CLIP_STD,
    COCO_NAMES,
    GRAY,
    DetectedObject,
    GenEvalDetector,
    GenEvalJudge,
    cut_out,
    objects_from_logits,
)
from triptych.rewards.geneval_rules import GENEVAL_COLORS, Detection, to_record
from triptych.trace import Drawing, Item, Prompt, Spec, Trace, Turn

pytest.importorskip("scipy", reason="transformers builds Mask2Former only where scipy is")
INPUT_SIDES = (64, 96)  # of tiny pictures, which tiny networks see at this size
SURE, NOT = 20.0, -20.0  # logits


def tiny_objects(folder: Path, names: tuple[str, ...] = COCO_NAMES) -> Path:
    """A checkpoint of Mask2Former with a few thousand weights, so sure of itself that it finds something anywhere."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=32, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=12,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    torch.nn.init.normal_(model.class_predictor.weight, std=4.0)
    model.save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A checkpoint of CLIP with a few thousand weights, and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    raw = folder / "raw"
    raw.mkdir(parents=True)
    (raw / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (raw / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(raw).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = {**small, **ends, "vocab_size": len(words), "max_position_embeddings": 77}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tiny")
    return str(tiny_objects(folder / "objects")), str(tiny_clip(folder / "clip"))


@pytest.fixture(scope="module")
def detector(folders: tuple[str, str]) -> GenEvalDetector:
    return GenEvalDetector.load(*folders, sides=INPUT_SIDES)


def noise(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def boxed(mask: np.ndarray) -> DetectedObject:
    """An object with this mask, boxed as the detector box it."""
    down, across = mask.nonzero()
    box = (float(across.min()), float(down.min()), float(across.max() + 1), float(down.max() + 1))
    return DetectedObject(Detection(box, 1.0), mask)


def test_the_lists_are_the_worlds():
    assert len(COCO_NAMES) == 80 and set(COCO_NAMES) == set(stickers.CLASSES)
    assert tuple(stickers.COLORS) == GENEVAL_COLORS


# --- from the network's outputs to objects --------------------------------------------------------------------------


def outputs(objects: list[tuple[str, float, tuple[int, int, int, int]]], size: int = 32):
    """Class and mask logits of queries that each see one class, with this chance, in a box."""
    classes, masks = torch.full((len(objects), 81), NOT), torch.full((1, len(objects), size, size), NOT)
    for query, (name, chance, (left, top, right, bottom)) in enumerate(objects):
        classes[query, COCO_NAMES.index(name)] = torch.log(torch.tensor(chance))
        classes[query, 80] = torch.log(torch.tensor(1 - chance + 1e-12))
        masks[0, query, top:bottom, left:right] = SURE
    return classes, masks


def test_a_clear_object_is_found_where_it_is():
    seen = objects_from_logits(*outputs([("cat", 1.0, (4, 8, 20, 30)), ("dog", 0.6, (0, 0, 5, 5))]), (32, 32))
    assert {name: [each.detection.box for each in own] for name, own in seen.items()} == {
        "cat": [(4.0, 8.0, 20.0, 30.0)], "dog": [(0.0, 0.0, 5.0, 5.0)],
    }  # fmt: skip
    assert seen["cat"][0].detection.score == pytest.approx(1.0, abs=1e-4)
    assert seen["dog"][0].detection.score == pytest.approx(0.6, abs=1e-4)
    assert seen["cat"][0].mask.sum() == 16 * 22


def test_the_sixteen_most_certain_above_the_threshold_stay_in_order():
    chances = [0.31 + index / 40 for index in range(20)]
    seen = objects_from_logits(*outputs([("cat", chance, (0, 0, 8, 8)) for chance in [*chances, 0.29]]), (32, 32))
    kept = [each.detection.score for each in seen["cat"]]
    assert kept == pytest.approx(sorted(chances, reverse=True)[:16], abs=1e-4)


def test_a_doubtful_or_empty_mask_lowers_the_score():
    classes, masks = outputs([("cat", 1.0, (4, 4, 20, 20)), ("dog", 1.0, (0, 0, 0, 0))])
    masks[0, 0, 4:20, 4:20] = 0.5  # certain to 62 %
    seen = objects_from_logits(classes, masks, (32, 32))
    assert set(seen) == {"cat"}
    assert seen["cat"][0].detection.score == pytest.approx(torch.tensor(0.5).sigmoid().item(), abs=1e-4)


def test_nothing_is_found_where_nothing_is():
    classes, masks = outputs([("cat", 0.2, (4, 4, 20, 20))])
    assert objects_from_logits(classes, masks, (32, 32)) == {}


# --- colors --------------------------------------------------------------------------------------------------------


def test_an_object_is_alone_on_gray():
    mask = np.zeros((48, 64), bool)
    mask[10:30, 20:40] = True
    mask[10:20, 20:30] = False  # a corner of its box is not the object
    cut = cut_out(np.full((48, 64, 3), 255, np.uint8), boxed(mask), 20)
    pixels = cut * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    expected = np.where(mask[10:30, 20:40], 255, GRAY) / 255
    assert torch.allclose(pixels, torch.tensor(expected, dtype=torch.float32).expand(3, -1, -1), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 33)])
def test_any_object_can_be_cut_out(size: tuple[int, int]):
    cut = cut_out(noise(0, *size), boxed(np.ones(size, bool)), 32)
    assert cut.shape == (3, 32, 32) and cut.isfinite().all()


def test_colors_are_the_nearest_words(detector: GenEvalDetector):
    """CLIP's whole forward pass, one text at a time, gives the same color as directions that are kept."""
    picture, objects = noise(1), [boxed(np.ones((48, 64), bool)), boxed(np.eye(48, 64, dtype=bool))]
    templates = ("a photo of a {} cat", "a photo of a {}-colored cat", "a photo of a {} object")
    scores = []
    for color in GENEVAL_COLORS:
        tokens = [detector.tokenizer(template.format(color), return_tensors="pt") for template in templates]
        pixels = torch.stack([cut_out(picture, each, 32) for each in objects])
        seen = [detector.clip(pixel_values=pixels, input_ids=each["input_ids"]) for each in tokens]
        text = torch.nn.functional.normalize(torch.stack([each.text_embeds[0] for each in seen]).mean(0), dim=0)
        scores.append(seen[0].image_embeds @ text)
    expected = [GENEVAL_COLORS[index] for index in torch.stack(scores).argmax(0).tolist()]
    assert detector.colors(picture, objects, "cat") == expected
    assert [detector.colors(picture, [each], "cat")[0] for each in objects] == expected
    assert torch.allclose(detector.color_embeddings["cat"].norm(dim=1), torch.ones(10))


# --- whole ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_seen_alike_alone_and_in_company(detector: GenEvalDetector):
    pictures = [noise(0), noise(1, 40, 40), noise(2), noise(3, 1, 1), noise(4, 3, 90)]
    together = detector.find_objects(pictures)
    assert any(together)
    for picture, sight in zip(pictures, together, strict=True):
        (alone,) = detector.find_objects([picture])
        assert alone.keys() == sight.keys()
        for name, own in alone.items():
            assert [each.detection.box for each in own] == [each.detection.box for each in sight[name]]
            assert [e.detection.score for e in own] == pytest.approx([e.detection.score for e in sight[name]], abs=1e-4)
            assert all(each.mask.shape == picture.shape[:2] for each in own)


def test_counting_takes_only_certain_objects(detector: GenEvalDetector):
    picture = noise(0)
    (seen,) = detector.find_objects([picture])
    spec = Spec("two_object", (Item(next(iter(seen))),))
    counted = Spec("counting", spec.include)
    (loose,), (strict,) = detector.detect([picture], [spec]), detector.detect([picture], [counted])
    scores = [each.score for own in loose.values() for each in own]
    assert min(scores) > 0.3 and min(scores) < 0.9
    assert all(each.score > 0.9 for own in strict.values() for each in own)


def test_a_recording_replays_to_the_same_verdict(detector: GenEvalDetector, folders: tuple[str, str], tmp_path: Path):
    pictures = [noise(seed) for seed in range(4)]
    names = [next(iter(sight)) for sight in detector.find_objects(pictures)]
    specs = [Spec("colors", (Item(name, color=color),)) for name, color in zip(names, GENEVAL_COLORS[3:], strict=False)]
    seen = detector.detect(pictures, specs)
    assert all(seen[index][name][0].color in GENEVAL_COLORS for index, name in enumerate(names))
    lines = [json.dumps(to_record(spec, "a photo", detections)) for spec, detections in zip(specs, seen, strict=True)]
    (tmp_path / "seen.jsonl").write_text("\n".join(lines))
    rows = list(recorded.read_geneval(tmp_path / "seen.jsonl"))
    verdicts = [geneval_rules.judge_detections(spec, detections) for spec, detections in zip(specs, seen, strict=True)]
    assert [(row.correct, row.reasons) for row in rows] == [(each.score == 1, each.failed) for each in verdicts]


def test_the_judge_judges_traces(folders: tuple[str, str]):
    judge = GenEvalJudge(*folders)
    spec = Spec("single_object", (Item("cat", 200),))
    trace = Trace(Prompt("two hundred cats", spec)) + Turn(None, Drawing(noise(0)))
    (verdict,) = judge([trace])
    assert verdict.score == 0.0 and verdict.failed[0].startswith("cat: expected 200")
    assert judge.name == GenEvalJudge(*folders).name and "objects@" in judge.name
    sided = Spec("color_spatial_attr", (Item("cat", region="left"),))
    for prompt in (Prompt("no spec", image=noise(0)), Prompt("no picture", spec), Prompt("x", sided, noise(0))):
        with pytest.raises(JudgeError):
            judge([Trace(prompt)])


def test_what_is_not_the_network_is_refused(folders: tuple[str, str], tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load"):
        GenEvalDetector.load(str(tmp_path / "nowhere"), folders[1])
    with pytest.raises(ModelError, match="expected COCO's 80 things"):
        GenEvalDetector.load(str(tiny_objects(tmp_path / "other", COCO_NAMES[:79])), folders[1])
