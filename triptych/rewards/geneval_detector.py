"""GenEval's detector without mmdet: Mask2Former finds objects, CLIP reads their colors, `geneval_rules` decides.

Follows the official evaluation step by step: a picture is scaled to 800 pixels (its shorter side); the 100 likeliest
pairs of query and class are objects, each with the score of its class times its mask's; at most 16 per class above the
threshold stay. A color is the likeliest of ten for CLIP ViT-L/14 on the object cut out on gray, over three templates.
What differs: these are the weights of Mask2Former's authors (Swin-S, COCO), since mmdet's own run of the same network
loads only there. Weights are fetched by name at first use. Boxes are pixels, y downwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from triptych.errors import JudgeError, ModelError
from triptych.rewards.geneval_rules import (
    CONFIDENCE,
    GENEVAL_COLORS,
    MAX_OBJECTS,
    Detection,
    confidence,
    judge_detections,
)
from triptych.trace import Spec, Trace, Verdict

# Sizes, padding, candidates and normalization are those of the official run's mmdet configuration,
# mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
INPUT_SIDES = (800, 1333)  # pixels: the shorter side becomes the first, unless the longer one would pass the second
PAD_MULTIPLE = 32  # pixels: stride of the network's coarsest map
MAX_CANDIDATES = 100  # pairs of query and class per picture
BATCH_SIZE = 8  # pictures per forward pass
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GRAY = 0x99  # level around an object that is cut out, as in the official evaluation
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# GenEval's names of COCO's classes, in COCO's order, which is that of the network's outputs
COCO_NAMES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n   ", "").split(", ")
)
CHECKED_CLASSES = (0, 15, 79)  # person, cat, toothbrush: every list of COCO's classes has these names

ImageArray = UInt8[np.ndarray, "_ _ 3"]  # height, width, RGB; a batch may mix sizes


@dataclass(frozen=True, eq=False)
class DetectedObject:
    """One object of a picture: its detection, without a color, and its mask."""

    detection: Detection
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True, eq=False)
class GenEvalDetector:
    """The two networks, loaded: pictures to detections. Make one with `GenEvalDetector.load`."""

    objects: Any  # transformers.Mask2FormerForUniversalSegmentation
    clip: Any  # transformers.CLIPModel
    tokenizer: Any  # transformers.CLIPTokenizer
    device: str
    name: str
    sides: tuple[int, int] = INPUT_SIDES
    color_embeddings: dict[str, Tensor] = field(default_factory=dict, repr=False)  # [10 width] by class, made on demand

    @staticmethod
    def load(
        objects: str = MASK2FORMER, clip: str = CLIP, device: str = "cpu", sides: tuple[int, int] = INPUT_SIDES
    ) -> GenEvalDetector:
        """Both networks by hub name or folder, in float32. ModelError if one cannot be had or is another network."""
        from transformers import CLIPModel, CLIPTokenizer, Mask2FormerForUniversalSegmentation

        try:
            mask2former = Mask2FormerForUniversalSegmentation.from_pretrained(objects)
            clip_model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"cannot load {objects} and {clip}: {' '.join(str(error).split())[:200]}; expected names of the "
                "Hugging Face hub, and a network the first time, or folders that hold the weights"
            ) from error
        labels = getattr(mask2former.config, "id2label", {})
        if len(labels) != len(COCO_NAMES) or any(labels[index] != COCO_NAMES[index] for index in CHECKED_CLASSES):
            raise ModelError(f"{objects} knows {len(labels)} classes; expected COCO's 80 things: use an instance model")
        for model in (mask2former, clip_model):
            model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)  # pyright: ignore
        parts = [f"{Path(name).name}@{_version(model)}" for name, model in ((objects, mask2former), (clip, clip_model))]
        return GenEvalDetector(mask2former, clip_model, tokenizer, device, f"geneval {' '.join(parts)}", sides)

    def detect(self, pictures: Sequence[ImageArray], specs: Sequence[Spec]) -> list[dict[str, list[Detection]]]:
        """The objects of each picture above the threshold of its spec, most confident first, by class.

        Colors are read only of the objects that the rules will look at: CLIP takes most of the time.
        """
        objects = self.find_objects(pictures)
        return [self._detections(*each) for each in zip(pictures, objects, specs, strict=True)]

    def _detections(
        self, picture: ImageArray, objects: dict[str, list[DetectedObject]], spec: Spec
    ) -> dict[str, list[Detection]]:
        threshold = confidence(spec.tag)
        certain = {name: [each for each in own if each.detection.score > threshold] for name, own in objects.items()}
        detections = {name: [each.detection for each in own] for name, own in certain.items() if own}
        for item in spec.include:
            if item.color is not None and len(detections.get(item.name, ())) >= item.count:
                counted = certain.get(item.name, [])[: item.count]
                colors = self.colors(picture, counted, item.name)
                for index, (each, color) in enumerate(zip(counted, colors, strict=True)):
                    detections[item.name][index] = Detection(each.detection.box, each.detection.score, color)
        return detections

    @torch.no_grad()
    def find_objects(self, pictures: Sequence[ImageArray]) -> list[dict[str, list[DetectedObject]]]:
        """Every object above CONFIDENCE, most confident first, at most MAX_OBJECTS per class, by class."""
        objects: list[dict[str, list[DetectedObject]]] = [{} for _ in pictures]
        for indices in _batches(pictures):
            inputs = [self._scaled(pictures[index]) for index in indices]
            height, width = inputs[0].shape[1:]
            padded = F.pad(torch.stack(inputs), (0, -width % PAD_MULTIPLE, 0, -height % PAD_MULTIPLE))
            outputs = self.objects(pixel_values=padded)
            logits = zip(indices, outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
            for index, classes, masks in logits:
                # The maps cover the padded input: the padding is cut off before they take the size of the picture.
                full = F.interpolate(masks[None], padded.shape[2:], mode="bilinear")[:, :, :height, :width]
                objects[index] = objects_from_logits(classes, full, pictures[index].shape[:2])
        return objects

    @torch.no_grad()
    def colors(self, picture: ImageArray, objects: Sequence[DetectedObject], name: str) -> list[str]:
        """The color of each object of class `name`, each alone on gray."""
        if not objects:
            return []
        side = self.clip.config.vision_config.image_size
        crops = torch.stack([cut_out(picture, each, side) for each in objects]).to(self.device)
        embeddings = _unit(self.clip.visual_projection(self.clip.vision_model(pixel_values=crops).pooler_output))
        return [GENEVAL_COLORS[index] for index in (embeddings @ self._colors_of(name).T).argmax(1).tolist()]

    def _colors_of(self, name: str) -> Float[Tensor, "10 width"]:
        """CLIP's direction of each color for a class: the mean over the templates."""
        if name not in self.color_embeddings:
            texts = [template.format(color=color, name=name) for color in GENEVAL_COLORS for template in COLOR_PROMPTS]
            # CLIP's longest text.
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
            inputs = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
            # Unit vectors before the mean and after it, as in clip_benchmark, which the official script calls.
            directions = _unit(self.clip.text_projection(self.clip.text_model(**inputs).pooler_output))
            means = directions.unflatten(0, (len(GENEVAL_COLORS), len(COLOR_PROMPTS))).mean(1)
            self.color_embeddings[name] = _unit(means)
        return self.color_embeddings[name]

    def _scaled(self, picture: ImageArray) -> Float[Tensor, "3 h w"]:
        """A picture at the network's size, normalized."""
        shorter, longer = sorted(picture.shape[:2])
        scale = min(self.sides[0] / shorter, self.sides[1] / longer)
        size = [max(1, int(side * scale + 0.5)) for side in picture.shape[:2]]  # as mmcv rounds
        pixels = torch.tensor(picture, device=self.device).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0]
        return _normalized(pixels, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class GenEvalJudge:
    """GenEval's official verdict on traces whose prompt has a spec. Loads its weights at the first call."""

    objects: str = MASK2FORMER
    clip: str = CLIP
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Names both networks and their versions, for manifests."""
        return self.detector.name

    @property
    def detector(self) -> GenEvalDetector:
        """The networks of this judge, loaded once."""
        return loaded_detector(self.objects, self.clip, self.device)

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        """One verdict per trace, on its newest picture. JudgeError if one has no spec or no picture, or a spec with
        regions or sizes, which GenEval's rules do not have."""
        pictures, specs = [], []
        for index, trace in enumerate(traces):
            if trace.prompt.spec is None or trace.image is None:
                raise JudgeError(f"trace {index}, {trace.prompt.text!r}: expected a spec and a picture; one is absent")
            pictures.append(trace.image)
            specs.append(trace.prompt.spec)
        try:
            detections = self.detector.detect(pictures, specs)
            return [judge_detections(spec, each) for spec, each in zip(specs, detections, strict=True)]
        except ValueError as error:
            raise JudgeError(f"GenEval cannot judge this: {error}") from error


@lru_cache(maxsize=1)
def loaded_detector(objects: str, clip: str, device: str) -> GenEvalDetector:
    """A detector, loaded once per process."""
    return GenEvalDetector.load(objects, clip, device)


def objects_from_logits(
    classes: Float[Tensor, "query 81"], masks: Float[Tensor, "1 query h w"], size: tuple[int, ...]
) -> dict[str, list[DetectedObject]]:
    """The objects of one picture of `size` (height, width), by class."""
    probabilities = classes.softmax(-1)[:, :-1]  # the last class is "no object"
    scores, places = probabilities.flatten().topk(min(MAX_CANDIDATES, probabilities.numel()))
    scores, places = scores[scores > CONFIDENCE], places[scores > CONFIDENCE]  # a mask can only lower a score
    objects: dict[str, list[DetectedObject]] = {}
    if not len(places):
        return objects
    logits = F.interpolate(masks[:, places // len(COCO_NAMES)], size, mode="bilinear")[0]
    # As Mask2Former scores instances: the mean probability of a mask where it is above one half.
    inside = logits > 0
    mask_scores = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    scores = scores * mask_scores
    # Stable: equal scores stay in the order of the network, the same in every run.
    for index in scores.argsort(descending=True, stable=True).tolist():
        own = objects.setdefault(COCO_NAMES[int(places[index]) % len(COCO_NAMES)], [])
        if scores[index] > CONFIDENCE and len(own) < MAX_OBJECTS:
            own.append(_boxed(inside[index].cpu().numpy(), float(scores[index])))
    return {name: own for name, own in objects.items() if own}


def cut_out(picture: ImageArray, one: DetectedObject, side: int) -> Float[Tensor, "3 side side"]:
    """An object alone on gray, cropped to its box, as CLIP expects it: shorter side scaled, center cropped."""
    alone = np.where(one.mask[..., None], picture, np.uint8(GRAY))
    # Whole pixels, as PIL's crop of the official script rounds them.
    left, top, right, bottom = (round(edge) for edge in one.detection.box)
    crop = Image.fromarray(alone[top:bottom, left:right])
    shorter = min(crop.size)
    # Truncated and rounded as in torchvision's Resize and CenterCrop, of which CLIP's own transform is made.
    crop = crop.resize((side * crop.width // shorter, side * crop.height // shorter), Image.Resampling.BICUBIC)
    x, y = round((crop.width - side) / 2), round((crop.height - side) / 2)
    square = np.array(crop.crop((x, y, x + side, y + side)))
    return _normalized(torch.from_numpy(square).permute(2, 0, 1).float(), CLIP_MEAN, CLIP_STD)


def _batches(pictures: Sequence[ImageArray]) -> Iterator[list[int]]:
    """Indices of pictures of one size, a few at a time: padding to a common size would change the maps."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        sizes.setdefault(picture.shape, []).append(index)
    for indices in sizes.values():
        for start in range(0, len(indices), BATCH_SIZE):
            yield indices[start : start + BATCH_SIZE]


def _boxed(mask: Bool[np.ndarray, "height width"], score: float) -> DetectedObject:
    """An object with the box around its mask; the right and lower edges are one past the last pixel."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return DetectedObject(Detection(box, score), mask)


def _normalized(pixels: Float[Tensor, "3 h w"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "3 h w"]:
    """Levels of 0 to 255 to mean 0 and standard deviation 1 over the training set, by channel."""
    center, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels / 255 - center) / scale


def _unit(vectors: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    return F.normalize(vectors, dim=-1)


def _version(model: nn.Module) -> str:
    """The hub's commit of the weights, or a digest of weights that come from a folder."""
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if commit:
        return str(commit)[:12]
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
