"""The settings of a run of Tree-RL: typed values, bounds beside each field, reasons beside each choice.

A stage is a beat that is trained: Reason (a plan and a picture) or Refine (a reflection and an edit). Each of its two
parts, text and picture, learns with settings of its own. `recipes.py` holds named values of all of this.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval, MinLen

from triptych.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, check_bounds
from triptych.data.sft_samples import DataMix
from triptych.errors import ConfigError
from triptych.model.config import EtaMode, Guidance, Points, Renorm, Sampling, Temperature
from triptych.model.transformer import Experts
from triptych.rewards.rewards import Grain, RewardRule
from triptych.sft.joint import JointData

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class PartConfig:
    """How one part of a stage learns."""

    train: bool = True
    lr: NonNegativeFloat = 1e-4  # AdamW's, for the experts that are this part's home: und for text, gen for pictures
    clip_range: PositiveFloat = 0.2  # epsilon of PPO's clip: a ratio is rewarded no further than this from 1
    kl_coef: NonNegativeFloat = 0.001  # beta, weight of the KL to the reference; 0 computes no reference
    normalize_advantages: bool = False  # divide by the group's std, as GRPO does; Tree-RL subtracts the mean alone
    grain: Grain = "fractional"  # V as the share of checks that hold, or strictly 0 or 1


@dataclass(frozen=True)
class TextConfig(PartConfig):
    """How plans or reflections learn (GRPO)."""

    lr: NonNegativeFloat = 3e-4  # on a prototype a tenth of it moved nothing, three times of it broke the model


@dataclass(frozen=True)
class PictureConfig(PartConfig):
    """How pictures learn (FlowGRPO)."""

    lr: NonNegativeFloat = 7e-5
    loss_weight: NonNegativeFloat = 1.0  # text's is 1; matters where both losses reach the same weights
    experts: Experts = "gen"  # weights that the picture loss may move; the text loss can reach und alone
    sde_window: NonNegativeInt = 4  # SDE steps are chosen among the first so many: later ones change too little; 0: all
    num_sde_steps: PositiveInt = 1  # SDE steps of one picture; the others are ODE (MixGRPO)
    # What an advantage is measured from: the mean of the group, or of the siblings drawn from the same text alone.
    baseline: Literal["group", "same-text"] = "group"


@dataclass(frozen=True)
class StageSampling:
    """How one beat samples during training."""

    temperature: Temperature = 1.0  # of its text
    top_k: NonNegativeInt = 0  # 0 is off
    top_p: Annotated[float, Gt(0), Interval(le=1)] = 1.0
    max_tokens: PositiveInt = 128  # of its text, the end token included
    points: Points = 13  # of the flow's schedule: N points are N - 1 steps
    time_shift: PositiveFloat = 6.0
    text_guidance: Guidance = 1.0  # 1 is off
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)  # guidance acts where low < t <= high
    renorm: Renorm = "channel"
    eta: NonNegativeFloat = 1.0  # noise of the SDE steps
    eta_mode: EtaMode = "monotonic"

    def resolve(self, sde_indices: tuple[int, ...] = ()) -> Sampling:
        """The model's settings with these SDE steps. It has separate ones for drawing and editing; a beat does one."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_plan=self.max_tokens,
            max_reflection=self.max_tokens,
            draw_points=self.points,
            edit_points=self.points,
            time_shift=self.time_shift,
            text_guidance=self.text_guidance,
            guidance_interval=self.guidance_interval,
            draw_renorm=self.renorm,
            edit_renorm=self.renorm,
            sde_indices=sde_indices,
            eta_draw=self.eta,
            eta_edit=self.eta,
            eta_mode=self.eta_mode,
        )


@dataclass(frozen=True)
class RefineSampling(StageSampling):
    """How reflections and edits sample: edits have a guidance by the picture too."""

    image_guidance: Guidance = 1.0  # 1 is off
    renorm: Renorm = "text_channel"

    def resolve(self, sde_indices: tuple[int, ...] = ()) -> Sampling:
        return replace(super().resolve(sde_indices), image_guidance=self.image_guidance)


@dataclass(frozen=True)
class StageConfig:
    """One beat: the size of its groups, how it samples, how it learns."""

    text: TextConfig = field(default_factory=TextConfig)
    picture: PictureConfig = field(default_factory=PictureConfig)
    sampling: StageSampling = field(default_factory=StageSampling)
    parents: PositiveInt = 4  # groups of one step
    unit: NonNegativeInt = 0  # parents drawn at once, judged while the next are drawn; 0: all, judged at the end
    group_size: Annotated[int, Ge(2)] = 8  # siblings of one parent: an advantage compares two or more
    images_per_text: PositiveInt = 1  # siblings that share a text and differ in the noise of their SDE steps alone
    inner_epochs: PositiveInt = 1  # updates on one rollout

    @property
    def has_text(self) -> bool:
        """Whether its rollouts hold text at all."""
        return True

    @property
    def trains_text(self) -> bool:
        return self.text.train and self.has_text

    def variants(self) -> list[StageConfig]:
        """The stage of every kind of rollout that it can draw."""
        return [self]

    def sample_sde_indices(self, seed: int) -> tuple[int, ...]:
        """The indices of the SDE steps of one training step; none where pictures do not learn."""
        if not self.picture.train:
            return ()
        window, count = self._window()
        return tuple(sorted(np.random.default_rng(seed).choice(window, count, replace=False).tolist()))

    def sde_index_sets(self) -> list[tuple[int, ...]]:
        """Sets as large as those of `sample_sde_indices` that together hold every index it can choose."""
        if not self.picture.train:
            return [()]
        window, count = self._window()
        starts = [min(start, window - count) for start in range(0, window, count)]
        return [tuple(range(start, start + count)) for start in starts]

    def _window(self) -> tuple[int, int]:
        """How many of the first steps may be SDE steps, and how many of them are."""
        steps = self.sampling.points - 1
        window = min(self.picture.sde_window or steps, steps)
        return window, min(self.picture.num_sde_steps, window)


@dataclass(frozen=True)
class ReasonConfig(StageConfig):
    """The first beat: a plan, if any, and a picture."""

    plan_share: Share = 1.0  # share of the rollouts that plan first; the others draw at once, and train no text

    @property
    def has_text(self) -> bool:
        return self.plan_share > 0

    def sample_variant(self, seed: int) -> ReasonConfig:
        """The stage of one rollout: with a plan in every trace or in none. The seed chooses, by `plan_share`."""
        return replace(self, plan_share=float(np.random.default_rng(seed).random() < self.plan_share))

    def variants(self) -> list[StageConfig]:
        shares = (0.0, 1.0) if 0 < self.plan_share < 1 else (self.plan_share,)
        return [replace(self, plan_share=share) for share in shares]


@dataclass(frozen=True)
class RefineConfig(StageConfig):
    """A later beat: a reflection and an edit."""

    sampling: RefineSampling = field(default_factory=RefineSampling)


@dataclass(frozen=True)
class TreeConfig:
    """The shape of the tree."""

    kind: Literal["tree", "trajectory"] = "tree"  # trajectory: whole chains from a prompt, one reward at the end
    depth: NonNegativeInt = 1  # Refine stages after Reason; 0 is Reason alone
    # How pictures become parents of the next stage. pools: wrong and right ones apart, as the release does; importance:
    # within a pool more often from groups whose verdicts differ; uniform: every picture alike.
    selection: Literal["importance", "pools", "uniform"] = "importance"
    right_share: Share = 0.15  # of the parents are right already, so that stopping is learnt; not for "uniform"
    balance: bool = False  # right and wrong parents weigh equally in the text loss: neither stopping nor editing wins
    resample: NonNegativeInt = 0  # times that groups without differing rewards are replaced in a step (DAPO)


@dataclass(frozen=True)
class SFTMix:
    """A supervised batch after the rewards of every update (sft_mix.py). Counts are rows of one batch."""

    lr: NonNegativeFloat = 0.0  # of an AdamW of its own; 0 is no SFT mix
    pictures: NonNegativeInt = 6  # to draw from a prompt
    edits: NonNegativeInt = 6
    words: NonNegativeInt = 12  # answers and reflections
    plan_share: Share = 0.4  # of the pictures are planned first
    answer_share: Share = 0.5  # of the words answer a question; the others reflect
    right_share: Share = 0.45  # of the reflections are on right pictures
    self_generated_share: Share = 0.5  # of edits and words are on pictures of this very rollout
    max_self_generated: NonNegativeInt = 32  # pictures of a rollout that are read by the detector for this

    @property
    def data(self) -> JointData:
        """The contents of a batch, as SFT's joint stage makes it."""
        return JointData(
            pictures=self.pictures,
            edits=self.edits,
            words=self.words,
            plan_share=self.plan_share,
            answer_share=self.answer_share,
            mix=DataMix(correct_pictures=self.right_share),
        )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the projections of the layers instead of all weights (lora.py); needs peft.

    There is no dropout: log-probabilities must repeat what the sampler did.
    """

    rank: NonNegativeInt = 0  # 0 trains all weights
    alpha: PositiveInt = 32  # an adapter counts alpha / rank times
    experts: Experts = "both"  # whose layers get one
    projections: Annotated[tuple[Projection, ...], MinLen(1)] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )


@dataclass(frozen=True)
class Limits:
    """When a run refuses to start or to go on.

    The first seven bound how far log-probabilities may be from the sampler's record before weights move. In float32
    they agree to 5e-6, and a guidance scale that is 10 % off moves a mean by 1e-3 standard deviations or more.
    """

    text_ratio: NonNegativeFloat = 1e-3  # largest |ratio - 1| of a token
    text_mean: NonNegativeFloat = 1e-4  # |mean log-ratio| of all tokens, beyond chance: a dropped filter moves it
    sde_mean: NonNegativeFloat = 1e-4  # root mean square of |mean - mean'| / std in an SDE step
    sde_step: NonNegativeFloat = 1e-4  # the same error as a share of the step, |mean - mean'| / |mean - before|
    sde_logprob: NonNegativeFloat = 1e-5  # difference of log-probability (a mean over a picture) of an SDE step
    guidance: NonNegativeFloat = 0.01  # relative error of a guidance scale, as the means betray it, beyond chance
    rounding: NonNegativeFloat = 0.1  # 1 where a state went through half precision, 0 where it did not
    missing: Share = 0.5  # largest share of missing verdicts, in the newest steps (train.py)
    bad_steps: PositiveInt = 5  # steps in a row that were skipped: not finite, or beyond the limits above


# bfloat16 through a cache and at once are not the same. Honest sampling with the weights of SKETCH, under the guidance
# and the filter of the release, showed .045, 0, .053, .054, .004, .007 and .002 of them. Guidance that is 10 % off, or
# that of the picture dropped, showed .1 or more of guidance; all guidance dropped, .12 or more of sde_step; a dropped
# filter, .011 of text_mean; rounded states, 1 of rounding.
BFLOAT16_LIMITS = Limits(
    text_ratio=0.3, text_mean=3e-3, sde_mean=0.1, sde_step=0.1, sde_logprob=0.01, guidance=0.05, rounding=0.5
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that fixes a run; the command line overrides any field."""

    model: str = "sketch"  # what training starts from: a packaged name or a folder; "tiny" is random and small
    # Of stickers world or templates, of any picture detector (GenEval's) or vlm (a model at an --address);
    # brightness is for dry runs of a model that cannot draw yet.
    judge: Literal["world", "templates", "detector", "vlm", "brightness"] = "world"
    seed: NonNegativeInt = 0
    steps: PositiveInt = 400
    samples: NonNegativeInt = 0  # stop after so many texts and pictures, to compare recipes on one budget; 0: no limit
    device: str = "auto"
    threads: NonNegativeInt = 0  # CPU threads of torch; 0: one for a model of SKETCH's size, else torch's own number
    dtype: Literal["float32", "bfloat16"] = "float32"  # of rollouts and scores alike; weights stay in float32
    save_every: PositiveInt = 20  # steps between checkpoints
    keep: PositiveInt = 2  # newest checkpoints that stay
    micro_batch_size: PositiveInt = 32  # rows of one forward with gradient: less memory, the same result
    gradient_checkpointing: bool = False  # compute layers anew in backward: far less memory, more time, the same result
    tags: tuple[str, ...] = ()  # train on prompts of these tags alone; () is all
    tree: TreeConfig = field(default_factory=TreeConfig)
    reward: RewardRule = field(default_factory=RewardRule)
    reason: ReasonConfig = field(default_factory=ReasonConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    sft_mix: SFTMix = field(default_factory=SFTMix)
    limits: Limits = field(default_factory=Limits)
    lora: LoraConfig = field(default_factory=LoraConfig)
    # What the KL is measured from: the first weights, their running average, or the model without its adapters, which
    # needs no copy at all.
    reference: Literal["frozen", "ema", "adapter"] = "frozen"
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # share that the weights' average keeps an update; 0 is off
    warmup_steps: NonNegativeInt = 10  # over which learning rates rise
    lr_decay_steps: NonNegativeInt = 0  # inverse-time decay: half after so many steps, a third after twice; 0 is none
    moments: Literal["stages", "shared"] = "stages"  # of AdamW: each stage its own, or one for both; SFT has its own
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    train_vision: bool = False  # also train the vision tower; the autoencoder is always frozen

    def check(self) -> None:
        """Raises ConfigError for settings out of bounds or that cannot work together, before anything is loaded."""
        check_bounds(self)
        for name, stage in (("reason", self.reason), ("refine", self.refine)):
            _check_stage(name, stage)
        _check_lora(self)
        if self.reference == "ema" and not self.ema_decay:
            raise ConfigError("--reference ema needs a running average; set --ema-decay, for example 0.995")

    def lr_scale(self, step: int) -> float:
        """The share of its learning rates that a step uses: a linear rise, then 1 / (1 + step / lr_decay_steps).

        It knows no last step, so that a run that goes on further than it was meant to is the run it would have been.
        """
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return warmup / (1 + step / self.lr_decay_steps) if self.lr_decay_steps else warmup


def _check_stage(name: str, stage: StageConfig) -> None:
    if stage.group_size % stage.images_per_text:
        raise ConfigError(
            f"--{name}.images-per-text {stage.images_per_text} does not divide --{name}.group-size {stage.group_size}: "
            "expected a whole number of texts in a group"
        )
    if stage.trains_text and stage.sampling.temperature == 0:
        raise ConfigError(
            f"--{name}.sampling.temperature 0: greedy siblings say the same, so that nothing is learnt; expected more "
            f"than 0, or --{name}.text.no-train"
        )


def _check_lora(config: TrainConfig) -> None:
    lora = config.lora
    if config.reference == "adapter" and not lora.rank:
        raise ConfigError("--reference adapter is the model without its adapters, and it has none; set --lora.rank")
    if config.reference == "adapter" and config.train_vision:
        raise ConfigError("--reference adapter needs all else frozen; set --no-train-vision")
    if not lora.rank or lora.experts == "both":
        return
    for name, stage in (("reason", config.reason), ("refine", config.refine)):
        parts = (("text", "und", stage.trains_text), ("picture", stage.picture.experts, stage.picture.train))
        for part, experts, trained in parts:
            if trained and experts not in (lora.experts, "both"):
                raise ConfigError(
                    f"{name}.{part} moves the {experts} experts, and only the {lora.experts} ones have adapters; "
                    f"set --lora.experts both, or --{name}.{part}.no-train"
                )
    if config.sft_mix.lr and lora.experts == "gen":
        raise ConfigError("the SFT mix teaches words too, and --lora.experts gen has none to move; set it to both")
