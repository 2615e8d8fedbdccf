"""How SKETCH learns to speak, see and draw from nothing: the stages of SFT, one after another.

    vae              pictures to latents and back
    vision           the vision tower: what is where
    connector        what the tower sees, in the words of the language model
    joint            all verbs at once
    decoder          the VAE's decoder, on latents as noisy as the flow leaves them
    self_generated   the joint losses, partly on the model's own pictures
    gen              the generation experts alone: no text changes
    final_decoder    the decoder, on white and single-color pictures

Each stage is a value (`optim.SFTStage`) that `fit` resumes from its own folder. The result is the checkpoint folder
`model` with averaged weights in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from triptych.bounds import NonNegativeInt, PositiveInt, Share
from triptych.data.lexicon import build_tokenizer
from triptych.data.sft_samples import DataMix, SFTSample
from triptych.errors import ConfigError
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import BagelConfig
from triptych.rewards.sticker_judge import WorldJudge
from triptych.seeds import START, STRIDE
from triptych.sft.joint import JointConfig, PreviousTokenLoss, joint_stage
from triptych.sft.optim import SFTStage, copies, load_weights
from triptych.sft.run import LOG, RecipeConfig
from triptych.sft.self_generated import load_pictures, save_pictures, self_generated_pictures, self_generated_samples
from triptych.sft.sticker_detector import DetectorRecipe
from triptych.sft.vae import (
    MEASURED_SCENES,
    DecoderConfig,
    VAEConfig,
    decoder_stage,
    measure_latents,
    scenes_of_step,
    vae_stage,
)
from triptych.sft.vision import ConnectorConfig, VisionStageConfig, connector_stage, scale_connector, vision_stage


@dataclass(frozen=True)
class SelfGeneratedConfig(JointConfig):
    """How the joined model learns from its own pictures, which are drawn once, before the stage."""

    images: NonNegativeInt = 1200
    self_generated_share: Share = 0.4  # of edits and words are on these pictures
    guidance: Annotated[float, Ge(1)] = 3.0  # text guidance of these: more than elsewhere makes more mistakes


VAE = VAEConfig(steps=1000, lr=1e-3, warmup_steps=50, cooldown=0.5, ema_decay=0.99)
VISION = VisionStageConfig(steps=1100, lr=1e-3, warmup_steps=100, cooldown=0.6, ema_decay=0.99)
CONNECTOR = ConnectorConfig(steps=500, lr=2e-3, warmup_steps=20, cooldown=0.6, ema_decay=0.98, max_grad_norm=0.0)
# The previous-token loss runs from the beginning: what is said of a picture then finds what was asked of it.
JOINT = JointConfig(pictures=44, edits=20, words=60, previous_token_weight=0.5, mix=DataMix(hard_prompts=0.2))
# LOG.md E44: 3,500 such updates took the decoder from 29.1 to 34.5 dB.
DECODER = DecoderConfig(steps=2400, lr=6e-4, warmup_steps=30, cooldown=0.6, ema_decay=0.99)
# Mostly words about pictures, and some of what is seen or edited is the model's own work, planned or not. Without it,
# right pictures are misread and edited; with too few wrong ones among those that are seen, wrong ones pass. Some
# prompts are hard, or else hardly any of its planned pictures is wrong.
SELF_GENERATED = SelfGeneratedConfig(
    steps=1300,
    pictures=24,
    edits=14,
    words=120,
    answer_share=0.5,
    lr=1.4e-3,
    muon_lr=0.013,
    warmup_steps=10,
    cooldown=0.7,
    words_weight=3.0,  # the words that turn on what is seen are few among those that list it
    previous_token_weight=0.5,
    mix=DataMix(fit_questions=0.3, shuffled_scenes=0.4, text_only_reflections=0.4, descriptions=0.1, hard_prompts=0.3),
)
# What so many words have cost is drawn again, and no text changes. Pictures without a plan need it most, and of those
# the hard ones: with fewer, white stickers and small ones come out as another class.
# LOG.md E27: such a stage took one-shot accuracy from .450 to .543. E65: more hard prompts, as white stayed
# wrong. E73: white is too rare in the data, not too faint, hence `white_weight` and 900 updates.
GEN = JointConfig(
    steps=900,
    pictures=52,
    edits=10,
    words=0,
    plan_share=0.35,
    lr=1.5e-3,
    muon_lr=0.013,
    warmup_steps=5,
    cooldown=0.6,
    ema_decay=0.98,
    experts="gen",
    mix=DataMix(hard_prompts=0.8, white_weight=3),
)
# Mostly white pictures and those of one color: what the decoder has hardly seen.
# LOG.md E72: white stickers came out as blots until the decoder had seen many.
FINAL_DECODER = replace(DECODER, steps=1200, few_colors=0.6)


@dataclass(frozen=True)
class SFTConfig(RecipeConfig):
    """How SKETCH learns; the command line overrides any field."""

    # On two cores two threads take 3 s an update where one took 5.4 (LOG.md E4).
    threads: PositiveInt = 2  # CPU threads that each work on a part of every joint batch
    start: str = ""  # a checkpoint to go on from, by name or folder, instead of the first three stages
    vae: VAEConfig = VAE
    vision: VisionStageConfig = VISION
    connector: ConnectorConfig = CONNECTOR
    joint: JointConfig = JOINT
    decoder: DecoderConfig = DECODER
    self_generated: SelfGeneratedConfig = SELF_GENERATED
    gen: JointConfig = GEN
    final_decoder: DecoderConfig = FINAL_DECODER

    outputs: ClassVar[tuple[str, ...]] = (
        *("vae", "vision", "connector", "joint", "decoder", "self_generated", "gen", "final_decoder"),
        *("self_generated_pictures", "model", LOG),
    )
    result: ClassVar[str] = "model"

    def check(self) -> None:
        super().check()
        if not self.start and min(self.vae.steps, self.vision.steps) < 1:
            steps = f"--vae.steps {self.vae.steps}, --vision.steps {self.vision.steps}"
            raise ConfigError(f"{steps}: expected 1 or more of each, or a --start to take both from")
        if self.self_generated.steps and not self.self_generated.images:
            raise ConfigError("--self-generated.images 0: expected 1 or more, or --self-generated.steps 0")
        for name in ("joint", "self_generated", "gen"):
            getattr(self, name).check(name.replace("_", "-"))

    def stages(self, out: Path, model_config: BagelConfig) -> Iterator[SFTStage]:
        device, seed = self.torch_device, self.seed
        if self.start:
            bagel = weights.load(self.start, dtype=torch.float32).train().to(device)
        else:
            yield (vae := vae_stage(self.vae, model_config.autoencoder, seed, device))
            yield (vision := vision_stage(self.vision, model_config.vision, seed, device))
            bagel = join(model_config, vae.ema, vision.ema, seed).train().to(device)
            if self.connector.steps:
                yield (connector := connector_stage(self.connector, bagel, seed))
                load_weights(connector.tensors, connector.ema)
                scale_connector(bagel, self.connector.batch)
        frozen = ("autoencoder.", "vit_model.") if self.vision.frozen else ("autoencoder.",)
        parameters = {name: p for name, p in bagel.named_parameters() if not name.startswith(frozen)}
        ema = copies(parameters)  # of the joint stages: each goes on from the averages of the one before
        head = PreviousTokenLoss(bagel).to(device)
        yield joint_stage("joint", self.joint, bagel, head, ema, seed, self.threads)
        yield (decoder := decoder_stage("decoder", self.decoder, bagel.autoencoder, seed))
        load_weights(decoder.tensors, decoder.ema)
        if self.self_generated.steps:
            samples = self._self_generated_samples(out / "self_generated_pictures", bagel, ema)
            own, share = self.self_generated, self.self_generated.self_generated_share
            # Another seed than the joint stage's: samples that it has not seen.
            yield joint_stage("self_generated", own, bagel, head, ema, seed + 1, self.threads, samples, share)
        if self.gen.steps:
            load_weights(parameters, ema)  # what this stage leaves alone is then what is published
            yield joint_stage("gen", self.gen, bagel, head, ema, seed, self.threads)
        yield (decoder := decoder_stage("final_decoder", self.final_decoder, bagel.autoencoder, seed + 1))
        load_weights(decoder.tensors, decoder.ema)
        weights.save(averaged(bagel, ema), out / self.result, dtype=torch.bfloat16, replace=True)

    def _self_generated_samples(self, folder: Path, bagel: Bagel, ema: Mapping[str, Tensor]) -> list[SFTSample]:
        """Samples on pictures of the averaged model, which are drawn once and written to `folder`."""
        config, seed = self.self_generated, START["self_generated"] + self.seed * STRIDE["samples"]
        if (drawn := load_pictures(folder)) is None:
            policy = averaged(bagel, ema)
            # Its mistakes should be of drawing: plans are as sure as the rest of what it says.
            sampling = replace(policy.config.sampling, text_guidance=config.guidance, plan_temperature=None)
            drawn = self_generated_pictures(policy, config.images, seed, sampling, config.mix)
            save_pictures(folder, *drawn)
        return self_generated_samples(*drawn, WorldJudge(str(bagel.device)).scenes, seed, config.mix)


def join(config: BagelConfig, autoencoder: Mapping[str, Tensor], vision: Mapping[str, Tensor], seed: int) -> Bagel:
    """A new model around the autoencoder and the vision tower of their stages."""
    measured = measure_latents(config.autoencoder, autoencoder, scenes_of_step(seed + 2, 0, MEASURED_SCENES))
    torch.manual_seed(seed)
    bagel = Bagel(replace(config, autoencoder=measured), build_tokenizer())
    bagel.autoencoder.load_state_dict(autoencoder)
    tower = {name.removeprefix("tower."): tensor for name, tensor in vision.items() if name.startswith("tower.")}
    bagel.vit_model.load_state_dict(tower)  # its heads were of the vision stage alone
    init_weights(bagel)
    return bagel


def init_weights(bagel: Bagel) -> None:
    """Small normal matrices, quiet residual branches, a velocity head that starts at 0; autoencoder and tower stay.

    Outputs of attention and MLP are scaled by 1 / sqrt(2 * depth), as in GPT-2, so that depth adds no variance.
    """
    depth = bagel.config.language.num_hidden_layers
    for name, parameter in bagel.named_parameters():
        if name.startswith(("autoencoder.", "vit_model.")):
            continue
        if name.startswith("llm2vae.") or (parameter.dim() == 1 and name.endswith("bias")):
            torch.nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            # 0.02 as in GPT-2; 1 / sqrt(fan-in) keeps the variance of what a matrix is given.
            deviation = 0.02 if "embed_tokens" in name or "lm_head" in name else parameter.shape[1] ** -0.5
            residual = (2 * depth) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=deviation * residual)


def averaged(bagel: Bagel, ema: Mapping[str, Tensor]) -> Bagel:
    """A copy of a model with the averaged weights, for inference."""
    copy = Bagel(bagel.config, bagel.tokenizer)
    copy.load_state_dict(bagel.state_dict() | dict(ema))
    return copy.to(bagel.device).eval()


# The smallest batches in which everything happens.
SFT_DEBUG = SFTConfig(
    save_every=2,
    vae=replace(VAE, steps=2, batch=2),
    vision=replace(VISION, steps=2, batch=2),
    connector=replace(CONNECTOR, steps=2, batch=2),
    joint=JointConfig(steps=2, pictures=3, edits=2, words=3),
    decoder=replace(DECODER, steps=2, batch=2),
    self_generated=SelfGeneratedConfig(
        steps=2, pictures=3, edits=2, words=3, self_generated_share=0.5, previous_token_weight=0.5, images=2
    ),
    gen=JointConfig(steps=2, pictures=3, edits=2, words=0, experts="gen"),
    final_decoder=replace(DECODER, steps=2, batch=2, few_colors=0.5),
)
SFT_RECIPES: dict[str, tuple[RecipeConfig, str]] = {
    "sketch": (SFTConfig(), "The recipe of the packaged weights `sketch-lessons`."),
    "debug": (SFT_DEBUG, "Two updates of every stage, to see that it runs."),
    "sticker-detector": (DetectorRecipe(), "The detector of the sticker judge, from nothing."),
}
