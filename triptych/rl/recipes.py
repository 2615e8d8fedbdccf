"""Named runs of training. Every baseline is SKETCH's recipe with one switch turned, on the same sample budget.

`RELEASE_7B` holds the hyper-parameters of the authors' training script for BAGEL-7B-MoT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from triptych.data.lexicon import build_tokenizer
from triptych.model.bagel import Bagel
from triptych.model.config import (
    SKETCH_SAMPLING,
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
    ReasonConfig,
    RefineConfig,
    RefineSampling,
    SFTMix,
    StageSampling,
    TextConfig,
    TrainConfig,
    TreeConfig,
)

Stage = TypeVar("Stage", ReasonConfig, RefineConfig)

_GENEVAL_KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SFT_ONLY_LR = 1e-4  # of the SFT mix where nothing else learns
# No KL: the SFT mix holds the weights that all beats share, at a fraction of the cost of a second forward.
SKETCH_RL = TrainConfig(
    model="sketch-lessons",
    reason=ReasonConfig(
        text=TextConfig(lr=2e-4, grain="strict", kl_coef=0.0),
        picture=PictureConfig(lr=1.5e-4, normalize_advantages=True, kl_coef=0.0),
        # Without guidance a picture costs one branch instead of two, and what is learnt carries over to 1.5.
        # Temperature 1, since a lower one hardly explores: SFT leaves an entropy of some hundredths of a nat.
        sampling=StageSampling(temperature=1.0, max_tokens=96, text_guidance=1.0),
        parents=12,  # many prompts, fewer siblings: no few prompts decide a step
        group_size=8,
        inner_epochs=2,
        plan_share=0.0,  # nine of ten planned pictures are right; what there is to learn is to draw without a plan
    ),
    refine=RefineConfig(
        # Most of its groups are flat, since it is sure of its words and mostly right, and AdamW's normalization
        # amplifies small gradients.
        text=TextConfig(lr=3e-5, kl_coef=0.0),
        picture=PictureConfig(lr=5e-5, baseline="same-text", kl_coef=0.0),
        # With its guidance: an edit that fails for want of it would teach to stop on wrong pictures.
        sampling=RefineSampling(temperature=1.0, text_guidance=SKETCH_SAMPLING.text_guidance),
        parents=6,
        group_size=8,
        images_per_text=2,  # so that an edit is compared with edits of the same picture by the same instruction
        inner_epochs=2,
    ),
    tree=TreeConfig(right_share=0.5, balance=True),
    lr_decay_steps=60,
    ema_decay=0.99,  # of some hundred updates: at a rate that moves anything, each of them is noisy
    # A reflection that is sure of itself explores nothing: on its own wrong pictures SFT says what rewards cannot ask
    # for. Most own pictures are right, and so are most of those in the mix: else it edits what is right already.
    sft_mix=SFTMix(
        lr=3e-5,
        max_self_generated=64,
        pictures=8,
        plan_share=0.6,
        words=24,
        answer_share=0.3,
        self_generated_share=0.6,
        right_share=0.75,
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
    sampling=replace(SKETCH_SAMPLING, draw_points=4, edit_points=4, max_plan=4, max_reflection=6),
)


def tiny(seed: int = 0) -> Bagel:
    """A random tiny model that often closes its thoughts, so that some reflections ask for an edit and some do not."""
    torch.manual_seed(seed)
    bagel = Bagel(TINY, build_tokenizer())
    with torch.no_grad():
        bagel.language_model.lm_head.weight[bagel.tokenizer.token_to_id(CLOSE)] *= 8
    return bagel.eval()


DEBUG = TrainConfig(
    model="tiny",
    judge="brightness",
    steps=2,
    save_every=1,
    micro_batch_size=4,
    reason=ReasonConfig(
        sampling=StageSampling(max_tokens=4, points=4, text_guidance=2.0, eta=0.7),
        parents=2,
        group_size=3,
        inner_epochs=2,
    ),
    refine=RefineConfig(
        sampling=RefineSampling(max_tokens=6, points=4, text_guidance=2.0, image_guidance=1.5, eta=0.7),
        parents=2,
        group_size=3,
        inner_epochs=2,
    ),
    ema_decay=0.9,
    warmup_steps=2,
)


def _release(lr: float) -> tuple[ReasonConfig, RefineConfig]:
    """The two stages of the release at a learning rate, which is one for all its weights."""
    text = TextConfig(lr=lr)
    picture = PictureConfig(lr=lr, loss_weight=2.0, experts="both", sde_window=0)
    sampling = {
        "temperature": 0.9,
        "top_p": 0.9,
        "time_shift": 3.0,
        "text_guidance": 4.0,
        "guidance_interval": (0.4, 1.0),
    }
    draw = StageSampling(**sampling, max_tokens=196, points=16, renorm="global", eta=0.7)
    edit = RefineSampling(**sampling, max_tokens=384, points=21, image_guidance=1.5, eta=1.0)
    return (
        ReasonConfig(text, picture, draw, parents=2, group_size=16),
        RefineConfig(text, replace(picture, sde_window=2), edit, parents=2, group_size=16),
    )


_REASON, _REFINE = _release(5e-6)
RELEASE_7B = TrainConfig(
    model="ByteDance-Seed/BAGEL-7B-MoT",
    judge="vlm",
    steps=1000,
    save_every=50,
    micro_batch_size=1,
    gradient_checkpointing=True,
    dtype="bfloat16",
    tree=TreeConfig(selection="pools"),
    reward=RewardRule("release"),
    moments="shared",
    limits=BFLOAT16_LIMITS,
    reason=_REASON,
    refine=_REFINE,
)

# Adapters instead of all weights, and the KL from the model without them: no optimizer state and no copy of the rest.
_REASON, _REFINE = _release(5e-5)  # ten times that of all weights, as is usual for adapters
LORA_7B = replace(RELEASE_7B, lora=LoraConfig(rank=64, alpha=128), reference="adapter", reason=_REASON, refine=_REFINE)


# What the paper trains on, with adapters so that it fits one GPU of 80 GB. They differ from `release-7b` in three
# things: adapters (no optimizer state of the rest), the paper's rewards in place of the script's, and units of one
# parent, so that the judge looks at one group while the next is drawn.
GENEVALPP_7B = replace(
    LORA_7B,
    reward=RewardRule("paper"),
    reason=replace(LORA_7B.reason, unit=1),
    refine=replace(LORA_7B.refine, unit=1),
)
GENEVAL_7B = replace(GENEVALPP_7B, judge="detector", tags=_GENEVAL_KINDS)
# On the user's copy of TIIF-Bench's prompts and questions; its long instructions take longer plans.
TIIF_7B = replace(
    GENEVALPP_7B,
    reason=replace(GENEVALPP_7B.reason, sampling=replace(GENEVALPP_7B.reason.sampling, max_tokens=384)),
)


def text_only(config: TrainConfig) -> TrainConfig:
    """Pictures do not learn: they are drawn without noise, and equal plans once. Every Reason says a plan."""
    config = _with_stages(config, lambda stage: replace(stage, picture=replace(stage.picture, train=False)))
    return replace(config, reason=replace(config.reason, plan_share=1.0))


def picture_only(config: TrainConfig) -> TrainConfig:
    """Texts do not learn."""
    return _with_stages(config, lambda stage: replace(stage, text=replace(stage.text, train=False)))


def rewards_only(config: TrainConfig, kl_coef: float) -> TrainConfig:
    """No SFT mix beside the rewards; a KL to the reference in its place, or nothing."""

    def change(stage: Stage) -> Stage:
        text, picture = replace(stage.text, kl_coef=kl_coef), replace(stage.picture, kl_coef=kl_coef)
        return replace(stage, text=text, picture=picture)

    return replace(_with_stages(config, change), sft_mix=replace(config.sft_mix, lr=0.0))


def sft_only(config: TrainConfig) -> TrainConfig:
    """Nothing learns from rewards; the tree draws the pictures that the SFT mix is made of."""

    def change(stage: Stage) -> Stage:
        text, picture = replace(stage.text, train=False), replace(stage.picture, train=False)
        return replace(stage, text=text, picture=picture, inner_epochs=2)

    return replace(_with_stages(config, change), sft_mix=replace(config.sft_mix, lr=SFT_ONLY_LR))


def _with_tree(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, tree=replace(config.tree, **changes))


def _with_stages(config: TrainConfig, change: Callable[[Any], Any]) -> TrainConfig:
    return replace(config, reason=change(config.reason), refine=change(config.refine))


RECIPES: dict[str, tuple[TrainConfig, str]] = {
    "sketch": (SKETCH_RL, "Tree-RL from the SFT checkpoint."),
    "trajectory": (_with_tree(SKETCH_RL, kind="trajectory"), "Baseline: whole chains, one reward at the end."),
    "reason-only": (_with_tree(SKETCH_RL, depth=0), "Baseline: Reason alone is trained."),
    "text-only": (text_only(SKETCH_RL), "Baseline: only texts are trained."),
    "image-only": (picture_only(SKETCH_RL), "Baseline: only pictures are trained."),
    "uniform": (_with_tree(SKETCH_RL, selection="uniform"), "Baseline: parents are picked evenly."),
    "deeper": (_with_tree(SKETCH_RL, depth=2), "Baseline: two Reflect-Refine stages after Reason."),
    "kl": (rewards_only(SKETCH_RL, 0.001), "Baseline: the paper's KL in place of the SFT mix."),
    "no-kl": (rewards_only(SKETCH_RL, 0.0), "Baseline: rewards alone, neither KL nor SFT mix."),
    "sft-only": (sft_only(SKETCH_RL), "Baseline: SFT on the same rollouts instead of rewards."),
    "release-7b": (RELEASE_7B, "The authors' settings for BAGEL-7B-MoT, all weights: 294 GB on one device."),
    "lora-7b": (LORA_7B, "The same with adapters, whose absence is the KL's reference; rates are not tried yet."),
    "genevalpp-7b": (GENEVALPP_7B, "BAGEL-7B-MoT with adapters on GenEval++'s kinds of prompts; needs a vlm."),
    "geneval-7b": (GENEVAL_7B, "The same on GenEval's kinds of prompts, judged by its detector."),
    "tiif-7b": (TIIF_7B, "The same on your copy of TIIF-Bench (--prompts); needs a vlm."),
    "debug": (DEBUG, "Two steps of a tiny random model, to see that it runs."),
}
