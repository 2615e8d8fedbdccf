"""Named runs of training. Every baseline is SKETCH's recipe with one switch turned, on the same sample budget.

`RELEASE_7B` holds the hyper-parameters of the authors' release (parity kit b.13) for BAGEL-7B-MoT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from triptych.data.lexicon import build_tokenizer
from triptych.data.sft_samples import DataMix
from triptych.model.bagel import Bagel
from triptych.model.config import (
    DRAFT,
    SKETCH_FINE,
    SKETCH_TEMPLATES,
    AutoencoderConfig,
    BagelConfig,
    LanguageConfig,
    Resize,
    VisionConfig,
)
from triptych.model.templates import CLOSE
from triptych.rewards.rewards import RewardRule
from triptych.rl.config import (
    BFLOAT16_LIMITS,
    LoraConfig,
    PictureConfig,
    SFTMix,
    StageConfig,
    TextConfig,
    TrainConfig,
    TreeConfig,
)
from triptych.sft.joint import JointConfig

# Guidance 1 draws with one branch, a half of the cost, and what is learnt carries over to 1.5. Temperature 1, since a
# sharper one hardly explores: the lessons leave an entropy of some hundredths of a nat.
_SKETCH_SAMPLING = replace(
    SKETCH_FINE,
    temperature=1.0,
    plan_temperature=None,
    draw_points=13,
    edit_points=13,
    text_guidance=1.0,
    eta_draw=1.0,
    eta_edit=1.0,
)
LESSONS_ALONE = 1e-4  # their rate where nothing else learns
# No KL: lessons beside the rewards hold the weights that beats share, at a fraction of the cost of a second forward.
SKETCH_RL = TrainConfig(
    model="sketch-lessons",
    reason=StageConfig(
        text=TextConfig(rate=2e-4, grain="strict", kl=0.0),
        picture=PictureConfig(rate=1.5e-4, divide=True, kl=0.0),
        sampling=_SKETCH_SAMPLING,
        parents=12,  # many prompts, fewer siblings: no few prompts decide a step
        width=8,
        updates=2,
        plans=0.0,  # nine of ten planned pictures are right; what there is to learn is to draw without
    ),
    refine=StageConfig(
        # Most of its groups are flat, since it is sure of its words and mostly right, and AdamW makes much of little.
        text=TextConfig(rate=3e-5, balance=True, kl=0.0),
        picture=PictureConfig(rate=5e-5, baseline="told", kl=0.0),
        # With its guidance: an edit that fails for want of it would teach to stop on wrong pictures.
        sampling=replace(_SKETCH_SAMPLING, text_guidance=SKETCH_FINE.text_guidance),
        parents=6,
        width=8,
        per_text=2,  # so that an edit is compared with edits of the same picture by the same words
        updates=2,
    ),
    tree=TreeConfig(right=0.5),
    halved=60,
    average=0.99,  # of some hundred updates: at a rate that moves anything, each of them is noisy
    # Sure of itself, a reflection explores nothing: on own wrong pictures lessons say what rewards cannot ask for. Most
    # own pictures are right, and so are most of those in lessons: else it mends what is not broken.
    replay=SFTMix(
        rate=3e-5,
        own=64,
        lessons=JointConfig(pictures=8, plans=0.6, edits=6, words=24, answers=0.3, own=0.6, mix=DataMix(right=0.75)),
    ),
)

# A model of half a million weights that cannot draw: it shows that every part of the machinery runs.
TINY = BagelConfig(
    name="tiny",
    language=LanguageConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_theta=1e4,
    ),
    vision=VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=16,
        patches_per_side=8,
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0),
    max_latent_size=8,
    image_size=(32, 32),
    vae_resize=Resize(32, 32, 16),
    vit_resize=Resize(32, 32, 16),
    world="stickers",
    templates=SKETCH_TEMPLATES,
    fine=replace(SKETCH_FINE, draw_points=4, edit_points=4, max_plan=4, max_reflection=6),
)


def tiny(seed: int = 0) -> Bagel:
    """A random tiny model that often closes its thoughts, so that some reflections ask for an edit and some do not."""
    torch.manual_seed(seed)
    bagel = Bagel(TINY, build_tokenizer())
    with torch.no_grad():
        bagel.language_model.lm_head.weight[bagel.tokenizer.token_to_id(CLOSE)] *= 8
    return bagel.eval()


_TINY_STAGE = StageConfig(
    sampling=replace(
        TINY.fine,
        temperature=1.0,
        plan_temperature=None,
        interval=(0.0, 1.0),
        text_guidance=2.0,
        image_guidance=1.5,
        eta_edit=0.7,
    ),
    parents=2,
    width=3,
    updates=2,
)
DEBUG = TrainConfig(
    model="tiny",
    judge="brightness",
    steps=2,
    every=1,
    micro=4,
    reason=_TINY_STAGE,
    refine=_TINY_STAGE,
    average=0.9,
    warmup=2,
)

_RELEASE_TEXT = TextConfig(rate=5e-6, experts="both")
_RELEASE_PICTURE = PictureConfig(rate=5e-6, weight=2.0, experts="both", window=0)
RELEASE_7B = TrainConfig(
    model="ByteDance-Seed/BAGEL-7B-MoT",
    steps=1000,
    every=50,
    micro=1,
    recompute=True,
    compute="bfloat16",
    tree=TreeConfig(parents="pools"),
    reward=RewardRule("release"),
    moments="shared",
    limits=BFLOAT16_LIMITS,
    reason=StageConfig(
        _RELEASE_TEXT, _RELEASE_PICTURE, replace(DRAFT, temperature=0.9, eta_draw=0.7), parents=2, width=16
    ),
    refine=StageConfig(
        _RELEASE_TEXT,
        replace(_RELEASE_PICTURE, window=2),
        replace(DRAFT, temperature=0.9, eta_edit=1.0),
        parents=2,
        width=16,
    ),
)

# Adapters instead of all weights, and the KL from the model without them: no optimiser state and no copy of the rest.
LORA_7B = replace(
    RELEASE_7B,
    lora=LoraConfig(rank=64, alpha=128),
    reference="adapter",
    reason=replace(
        RELEASE_7B.reason,
        text=replace(_RELEASE_TEXT, rate=5e-5),  # ten times that of all weights, as is usual for adapters
        picture=replace(_RELEASE_PICTURE, rate=5e-5),
    ),
    refine=replace(
        RELEASE_7B.refine,
        text=replace(_RELEASE_TEXT, rate=5e-5),
        picture=replace(RELEASE_7B.refine.picture, rate=5e-5),
    ),
)


def text_only(config: TrainConfig) -> TrainConfig:
    """Pictures do not learn: they are drawn without noise, and equal plans once. Every Reason says a plan."""
    return _each(config, lambda stage: replace(stage, picture=replace(stage.picture, on=False), plans=1.0))


def picture_only(config: TrainConfig) -> TrainConfig:
    """Texts do not learn."""
    return _each(config, lambda stage: replace(stage, text=replace(stage.text, on=False)))


def rewards_alone(config: TrainConfig, kl: float) -> TrainConfig:
    """No lessons beside the rewards; a pull towards the reference in their place, or nothing."""
    pulled = _each(
        config, lambda stage: replace(stage, text=replace(stage.text, kl=kl), picture=replace(stage.picture, kl=kl))
    )
    return replace(pulled, replay=replace(config.replay, rate=0.0))


def lessons_only(config: TrainConfig) -> TrainConfig:
    """Nothing learns from rewards; the tree grows the pictures that lessons are made of."""
    silent = _each(
        config,
        lambda stage: replace(
            stage, text=replace(stage.text, on=False), picture=replace(stage.picture, on=False), updates=2
        ),
    )
    return replace(silent, replay=replace(config.replay, rate=LESSONS_ALONE))


def _grown(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, tree=replace(config.tree, **changes))


def _each(config: TrainConfig, change) -> TrainConfig:
    return replace(config, reason=change(config.reason), refine=change(config.refine))


RECIPES: dict[str, tuple[TrainConfig, str]] = {
    "sketch": (SKETCH_RL, "Tree-RL from the lessons checkpoint."),
    "trajectory": (
        _grown(SKETCH_RL, kind="trajectory"),
        "Baseline: whole chains, one reward at the end.",
    ),
    "reason-only": (_grown(SKETCH_RL, depth=0), "Baseline: Reason alone is trained."),
    "text-only": (text_only(SKETCH_RL), "Baseline: only what is said is trained."),
    "image-only": (picture_only(SKETCH_RL), "Baseline: only what is drawn is trained."),
    "uniform": (_grown(SKETCH_RL, parents="uniform"), "Baseline: parents are picked evenly."),
    "deeper": (_grown(SKETCH_RL, depth=2), "Baseline: two Reflect-Refine stages after Reason."),
    "kl": (rewards_alone(SKETCH_RL, 0.001), "Baseline: the paper's KL in place of replayed lessons."),
    "no-kl": (rewards_alone(SKETCH_RL, 0.0), "Baseline: rewards alone, neither KL nor lessons."),
    "sft-only": (lessons_only(SKETCH_RL), "Baseline: lessons on the same rollouts instead of rewards."),
    "release-7b": (RELEASE_7B, "The authors' settings for BAGEL-7B-MoT; needs a judge of real pictures."),
    "lora-7b": (LORA_7B, "The same with adapters, whose absence is the KL's reference; rates are not tried yet."),
    "debug": (DEBUG, "Two steps of a tiny random model, to see that it runs."),
}
