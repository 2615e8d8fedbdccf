"""How a run of Tree-RL is set: typed values with a reason beside each choice. `recipes.py` holds the named ones.

A stage is a beat that is trained: Reason (a plan and a picture) or Refine (a reflection and an edit). Each of its two
parts, text and picture, learns with settings of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from triptych.errors import ConfigError
from triptych.model.config import SKETCH_FINE, Sampling
from triptych.model.transformer import Experts
from triptych.rewards.rewards import Grain, RewardRule
from triptych.sft.joint import JointConfig

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class PartConfig:
    """How one part of a stage learns."""

    on: bool = True
    rate: float = 1e-4  # AdamW's; of the weights that are this part's home: und for text, gen for pictures
    weight: float = 1.0  # of its loss; matters where both parts reach the same weights
    clip: float = 0.2  # furthest that a ratio from 1 is rewarded
    kl: float = 0.001  # weight of the divergence from the reference; 0 is off
    divide: bool = False  # advantages over their spread; Tree-RL takes the mean away and no more
    grain: Grain = "fractional"  # V as a share of checks, or only 0 and 1


@dataclass(frozen=True)
class TextConfig(PartConfig):
    """How what is said learns."""

    rate: float = 3e-4  # a tenth of it moved nothing on a prototype, three times of it broke it
    experts: Experts = "und"  # which weights its loss may move
    balance: bool = False  # Refine: right and wrong parents pull equally, so that neither stopping nor editing wins


@dataclass(frozen=True)
class PictureConfig(PartConfig):
    """How what is drawn learns."""

    rate: float = 7e-5
    experts: Experts = "gen"
    window: int = 4  # stochastic steps are chosen among the first so many: later ones change too little; 0 is all
    strokes: int = 1  # stochastic steps in one picture
    baseline: Literal["group", "told"] = "group"  # "told": compare only pictures of one parent that were told the same


@dataclass(frozen=True)
class StageConfig:
    """One beat: how wide it grows, how it samples, how it learns."""

    text: TextConfig = field(default_factory=TextConfig)
    picture: PictureConfig = field(default_factory=PictureConfig)
    sampling: Sampling = field(default_factory=Sampling)
    parents: int = 4  # groups in one step
    width: int = 8  # siblings in a group
    per_text: int = 1  # siblings that share a text, and differ in their strokes alone
    updates: int = 1  # on one rollout
    plans: float = 1.0  # Reason: share of the rollouts that say a plan first; the others draw at once

    @property
    def speaks(self) -> bool:
        """Whether its text learns."""
        return self.text.on and self.plans > 0

    def decided(self, seed: int) -> StageConfig:
        """The stage of one rollout, which says plans or says none: the seed chooses, by the share of each."""
        return replace(self, plans=float(np.random.default_rng(seed).random() < self.plans))

    def sampled(self, points: int, seed: int) -> Sampling:
        """The sampling of one step: stochastic steps chosen by the seed, and none where pictures do not learn."""
        if not self.picture.on:
            return replace(self.sampling, stochastic=())
        window, count = self._window(points)
        chosen = np.random.default_rng(seed).choice(window, count, replace=False)
        return replace(self.sampling, stochastic=tuple(sorted(int(index) for index in chosen)))

    def index_sets(self, points: int) -> list[tuple[int, ...]]:
        """Sets of stochastic steps, as large as those of `sampled`, that together hold each one it can choose."""
        if not self.picture.on:
            return [()]
        window, count = self._window(points)
        starts = [min(start, window - count) for start in range(0, window, count)]
        return [tuple(range(start, start + count)) for start in starts]

    def _window(self, points: int) -> tuple[int, int]:
        """The number of steps that may be stochastic, the first ones, and how many of them are."""
        window = min(self.picture.window or points - 1, points - 1)
        return window, min(self.picture.strokes, window)


@dataclass(frozen=True)
class TreeConfig:
    """The shape of what is grown."""

    kind: Literal["tree", "trajectory"] = "tree"  # trajectory: whole chains from a prompt, one reward at the end
    depth: int = 1  # Refine stages after Reason; 0 is Reason only
    parents: Literal["importance", "pools", "uniform"] = "importance"
    # importance: pools, and in them more from groups whose rewards differ; pools: right and wrong ones, as the release
    right: float = 0.15  # share of parents that are already right, so that stopping is learnt; not for "uniform"
    resample: int = 0  # times that groups without spread are replaced in a step


@dataclass(frozen=True)
class SFTMix:
    """Lessons beside the rewards (replay.py); rows are per update."""

    rate: float = 0.0  # their own learning rate, with moments of their own; 0 is off
    own: int = 32  # most pictures of a rollout that become lessons
    lessons: JointConfig = field(default_factory=lambda: JointConfig(pictures=6, edits=6, words=12, own=0.5))


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the projections of the layers instead of all weights (adapters.py); needs peft.

    There is no dropout: a score must repeat what the sampler did.
    """

    rank: int = 0  # 0 trains all weights
    alpha: int = 32  # the adapters count alpha / rank times
    experts: Experts = "both"  # which layers get one
    projections: tuple[Projection, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Limits:
    """When a run refuses to start or to go on.

    The first seven bound how far log-probabilities may be from the sampler's record before weights move. In float32
    they agree to 5e-6, and a guidance scale that is 10 % off moves a mean by 1e-3 standard deviations or more.
    """

    text_ratio: float = 1e-3  # largest |ratio - 1| of a token
    text_mean: float = 1e-4  # |mean log-ratio| of all tokens, beyond chance; a filter that was dropped moves it
    sde_mean: float = 1e-4  # root mean square of |mean - mean'| / std in an SDE step
    sde_step: float = 1e-4  # the same error as a share of the step, |mean - mean'| / |mean - before|
    sde_logprob: float = 1e-5  # difference of log-probability (a mean over a picture) of an SDE step
    guidance: float = 0.01  # relative error of a guidance scale, as the means betray it, beyond chance
    rounding: float = 0.1  # 1 where a state went through half precision, 0 where it did not
    missing: float = 0.5  # largest share of missing verdicts
    window: int = 20  # in so many steps
    bad_steps: int = 5  # steps in a row that were skipped: not finite, or beyond the limits above


# bfloat16 through a cache and at once are not the same. Honest sampling with the weights of SKETCH, under the guidance
# and the filter of the release, showed .045, 0, .053, .028, .004, .007 and .002 of them. Guidance that is 10 % off, or
# that of the picture dropped, showed .1 or more of guidance; all guidance dropped, .12 or more of sde_step; a dropped
# filter, .011 of text_mean; rounded states, 1 of rounding.
BFLOAT16_LIMITS = Limits(
    text_ratio=0.3, text_mean=3e-3, sde_mean=0.1, sde_step=0.06, sde_logprob=0.01, guidance=0.05, rounding=0.5
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that fixes a run; the command line overrides any field."""

    model: str = "sketch"  # what training starts from: a packaged name or a folder; "tiny" is random and small
    judge: Literal["world", "brightness"] = "world"  # brightness: for dry runs of a model that cannot draw yet
    seed: int = 0
    steps: int = 400
    samples: int = 0  # stop after so many texts and pictures, to compare recipes on one budget; 0 counts steps alone
    device: str = "auto"
    compute: Literal["float32", "bfloat16"] = "float32"  # of rollouts and scores alike; weights stay in float32
    every: int = 20  # steps between checkpoints
    keep: int = 2  # newest checkpoints that stay
    micro: int = 32  # rows of one forward with gradient: less memory, the same result
    recompute: bool = False  # compute layers anew on the way back: far less memory, more time, the same result
    tags: tuple[str, ...] = ()  # train on prompts of these tags alone
    tree: TreeConfig = field(default_factory=TreeConfig)
    reward: RewardRule = field(default_factory=RewardRule)
    reason: StageConfig = field(default_factory=lambda: StageConfig(sampling=SKETCH_FINE))
    refine: StageConfig = field(default_factory=lambda: StageConfig(sampling=SKETCH_FINE))
    replay: SFTMix = field(default_factory=SFTMix)
    limits: Limits = field(default_factory=Limits)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reference: Literal["frozen", "average", "adapter"] = "frozen"  # what the KL is measured from
    # frozen: the first weights; average: the running average; adapter: the model without its adapters, no copy at all
    average: float = 0.0  # share that a running average of the weights keeps each update; 0 is off
    warmup: int = 10  # steps over which rates rise
    halved: int = 0  # steps after which rates are a half, twice as many a third, and so on; 0 keeps them
    moments: Literal["stages", "shared"] = "stages"  # of AdamW: each stage its own, or one for all but the lessons
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.0
    norm: float = 1.0  # longest gradient
    vision: bool = False  # also train the vision tower; the autoencoder is always frozen

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work together, before anything is loaded."""
        for name, stage in (("reason", self.reason), ("refine", self.refine)):
            _check_stage(name, stage)
        if self.tree.depth < 0 or not 0 <= self.tree.right <= 1 or self.tree.resample < 0:
            raise ConfigError(
                f"tree: depth={self.tree.depth}, right={self.tree.right}, resample={self.tree.resample}; "
                "expected a depth and a number of resamples of 0 or more, and a share in 0..1"
            )
        counts = {name: getattr(self, name) for name in ("steps", "every", "keep", "micro")}
        if min(counts.values()) < 1 or self.samples < 0:
            told = ", ".join(f"{name}={count}" for name, count in (counts | {"samples": self.samples}).items())
            raise ConfigError(f"{told}: expected 1 or more of each, and 0 or more samples")
        _check_lora(self)
        if self.reference == "average" and not self.average:
            raise ConfigError("reference=average needs a running average; set --average, for example 0.995")
        if not 0 <= self.average < 1:
            raise ConfigError(f"average={self.average}: expected a share of 0 or more, below 1")
        if min(self.replay.rate, self.warmup, self.halved) < 0:
            raise ConfigError(
                f"replay.rate={self.replay.rate}, warmup={self.warmup}, halved={self.halved}: expected 0 or more"
            )

    def share(self, step: int) -> float:
        """The share of its rates that a step learns with: it rises, then falls as 1 / (1 + step / halved).

        It knows no last step, so that a run that goes on further than it was meant to is the run it would have been.
        """
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        return risen / (1 + step / self.halved) if self.halved else risen


def _check_lora(config: TrainConfig) -> None:
    lora = config.lora
    if lora.rank < 0 or lora.alpha <= 0 or not lora.projections:
        raise ConfigError(
            f"lora: rank={lora.rank}, alpha={lora.alpha}, projections={lora.projections}; expected a rank of 0 (train "
            "all weights) or more, an alpha above 0 and one projection or more"
        )
    if config.reference == "adapter" and not lora.rank:
        raise ConfigError("reference=adapter is the model without its adapters, and it has none; set --lora.rank")
    if config.reference == "adapter" and config.vision:
        raise ConfigError("reference=adapter needs all else frozen, and vision trains the tower; set --no-vision")
    if not lora.rank or lora.experts == "both":
        return
    for name, stage in (("reason", config.reason), ("refine", config.refine)):
        for kind, part, on in (("text", stage.text, stage.speaks), ("picture", stage.picture, stage.picture.on)):
            if on and part.experts not in (lora.experts, "both"):
                raise ConfigError(
                    f"{name}.{kind} moves the {part.experts} experts, and only the {lora.experts} ones have adapters; "
                    f"set --lora.experts both, or --{name}.{kind}.no-on"
                )
    if config.replay.rate and lora.experts == "gen":
        raise ConfigError("replayed lessons teach words too, and lora.experts=gen has none to move; set it to both")


def _check_stage(name: str, stage: StageConfig) -> None:
    if stage.width < 2:
        raise ConfigError(f"width={stage.width}: a group needs 2 or more siblings to compare; set --{name}.width")
    if stage.parents < 1 or stage.updates < 1:
        raise ConfigError(
            f"parents={stage.parents}, updates={stage.updates}: expected 1 or more; set --{name}.parents, .updates"
        )
    if stage.per_text < 1 or stage.width % stage.per_text:
        raise ConfigError(
            f"per_text={stage.per_text} does not divide width={stage.width}; expected so many whole sets of siblings: "
            f"set --{name}.per-text"
        )
    if not 0 <= stage.plans <= 1:
        raise ConfigError(f"plans={stage.plans}: expected a share in 0..1; set --{name}.plans")
    spoken = stage.sampling.planning if name == "reason" else stage.sampling
    if stage.speaks and spoken.temperature == 0:
        option = "temperature" if spoken is stage.sampling else "plan-temperature"
        raise ConfigError(f"{option}=0: greedy text has nothing to learn from; set --{name}.sampling.{option} above 0")
    if stage.text.experts == "gen":
        raise ConfigError(f"text is spoken by the und experts; set --{name}.text.experts to und or both")
    if stage.picture.strokes < 1 or stage.picture.window < 0:
        raise ConfigError(
            f"strokes={stage.picture.strokes}, window={stage.picture.window}: expected 1 or more strokes among the "
            f"first steps (0: all); set --{name}.picture.strokes"
        )
