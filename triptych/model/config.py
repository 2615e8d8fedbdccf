"""Sizes of the model and settings of its sampling, as typed values with a reason beside each choice.

`BAGEL_7B` is the published BAGEL-7B-MoT (arXiv 2505.14683); `SKETCH` is a small BAGEL for the world of stickers. Both
are values of one class, and every feature works for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from triptych.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, Share

# BAGEL's names: "global" takes one norm over an image's latents, the others one per token, over its channels.
Renorm = Literal["global", "channel", "text_channel"]
EtaMode = Literal["constant", "monotonic"]  # DanceGRPO's SDE, and Flow-GRPO's, whose noise grows with t (flow.eta_at)
Steps = Annotated[int, Ge(1), Le(10_000)]  # flow steps; 50 is usual, and nothing is gained beyond some hundreds
Points = Annotated[int, Ge(2), Le(10_001)]  # N points are N-1 steps
Guidance = Annotated[float, Ge(1), Le(1000)]  # 1 is off; no model draws at a tenth of 1000
Temperature = Annotated[float, Ge(0), Le(1000)]  # 0 is greedy; at 1000 all tokens are as likely
# Far above any model of this kind: a configuration from a stranger is refused before it takes memory or time.
LayerCount = Annotated[int, Ge(1), Le(512)]
Width = Annotated[int, Ge(1), Le(262_144)]
Vocabulary = Annotated[int, Ge(1), Le(4_000_000)]
Side = Annotated[int, Ge(1), Le(512)]  # of a table of positions, which may be computed: side x side x width numbers
PixelSide = Annotated[int, Ge(1), Le(8_192)]  # per side
TextLength = Annotated[int, Ge(1), Le(100_000)]  # of one text


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder (Qwen2 with two experts), by the names of llm_config.json."""

    # Sizes of Qwen2.5-7B, from whose weights BAGEL starts; the layers of both experts together are 14B.
    vocab_size: Vocabulary = 152064  # rows of the embedding, some of them spare
    hidden_size: Width = 3584
    intermediate_size: Width = 18944
    num_hidden_layers: LayerCount = 28
    num_attention_heads: Width = 28
    num_key_value_heads: Width = 4  # grouped-query attention: 7 query heads share one
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 1e6  # base of the rotary wavelengths

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The understanding encoder (SigLIP), by the names of vit_config.json."""

    # Sizes of SigLIP so400m/14.
    hidden_size: Width = 1152
    intermediate_size: Width = 4304
    num_hidden_layers: LayerCount = 27  # as the file says; select_layer decides how many are used
    num_attention_heads: Width = 16
    patch_size: Width = 14
    num_channels: Width = 3
    layer_norm_eps: PositiveFloat = 1e-6
    select_layer: int = -2  # BAGEL leaves the last layer out and keeps the norm behind it
    patches_per_side: Side = 70  # side of the position table: 70 x 14 = 980 pixels, BAGEL's longest side

    @property
    def layers_used(self) -> int:
        """-1 is every layer, -2 all but the last."""
        return self.num_hidden_layers + 1 + self.select_layer


@dataclass(frozen=True)
class AutoencoderConfig:
    """The FLUX autoencoder, by the names of its published parameters."""

    ch: Width = 128
    ch_mult: tuple[Width, ...] = (1, 2, 4, 4)
    num_res_blocks: LayerCount = 2
    z_channels: Width = 16  # the encoder has twice as many outputs: mean and log-variance
    in_channels: Width = 3
    out_ch: Width = 3
    # 1 / standard deviation and mean of latents: scaled ones have about the noise's mean and variance.
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)  # pixels per side of a latent; no level follows the last one


@dataclass(frozen=True)
class Resize:
    """How a given image is brought to a size that an encoder takes, in pixels (see `images.resized_size`)."""

    max_side: PixelSide
    min_side: PixelSide
    stride: PixelSide
    max_pixels: Annotated[int, Ge(1), Le(8_192**2)] = (
        14 * 14 * 9 * 1024
    )  # BAGEL's limit for both encoders; images of one row share it


@dataclass(frozen=True)
class Templates:
    """The text around a beat. "{prompt}" and "{question}" are filled in; an empty system prompt is no block at all."""

    plan_system: str
    reflect_system: str
    reflect: str
    answer_system: str
    answer: str


# The R3 release's exact words: a model that was trained with them depends on every space.
R3_TEMPLATES = Templates(
    plan_system=(
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, "
        "i.e. <think> planning process here </think> image here."  # BAGEL's own prompt has no full stop
    ),
    reflect_system=(
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, "
        "i.e. <think> reasoning process here </think> answer here"
    ),
    reflect=(
        "The description of the target image is: {prompt}\n"
        "How to further edit the provided image to make it consistent with the target description? "
        "Please provide concrete editing instructions in a single sentence. "
        "If no editing operation is needed, answer: no further edit needed."
    ),
    answer_system="",  # BAGEL answers questions without one, except to think first
    answer="{question}",
)

# Few tokens, since every one of them is read in every SFT sample.
SKETCH_TEMPLATES = Templates(
    plan_system="plan", reflect_system="reflect", reflect="{prompt}", answer_system="", answer="{question}"
)


@dataclass(frozen=True)
class Sampling:
    """Settings of one call of a verb. Points are schedule points: N points are N-1 steps, as in BAGEL.

    The defaults are the R3 release's: temperature and points of its evaluation, and its guidance and text limits.
    """

    temperature: Temperature = 0.3  # of texts
    plan_temperature: Temperature | None = None  # of plans, where they are to be freer than reflections
    top_k: NonNegativeInt = 0  # 0 is off
    top_p: Share = 1.0  # 1 is off
    max_plan: TextLength = 196  # tokens, the end token included
    max_reflection: TextLength = 384
    max_answer: TextLength = 64
    draw_points: Points = 50
    edit_points: Points = 50
    time_shift: PositiveFloat = 3.0  # BAGEL's at inference; above 1, more of the steps are near noise
    text_guidance: Guidance = 4.0
    image_guidance: Guidance = 1.5  # of edits alone: a first drawing has no image to drop
    guidance_interval: tuple[Share, Share] = (0.4, 1.0)  # guidance acts where low < t <= high
    draw_renorm: Renorm = "global"
    edit_renorm: Renorm = "text_channel"  # of BAGEL's editing demo, and of R3's edits
    renorm_min: Share = 0.0  # smallest factor by which a guided velocity is shortened
    sde_indices: tuple[NonNegativeInt, ...] = ()  # of the SDE steps; the others are ODE (MixGRPO)
    eta_draw: NonNegativeFloat = 0.7  # of SDE steps; this and the next are those of R3's training script
    eta_edit: NonNegativeFloat = 1.0
    eta_mode: EtaMode = "monotonic"

    @property
    def planning(self) -> Sampling:
        """These settings with the temperature of plans as the one of texts."""
        if self.plan_temperature is None:
            return self
        return replace(self, temperature=self.plan_temperature, plan_temperature=None)


# What 0.1 wrote into checkpoint folders, manifests and traces, which are still read.
OLD_NAMES = {
    "fine": "sampling",
    "interval": "guidance_interval",
    "renorm_floor": "renorm_min",
    "stochastic": "sde_indices",
}


def current_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON record of a configuration or of sampling settings, with the settings' names of 0.1 as today's."""
    return {
        OLD_NAMES.get(key, key): current_names(value) if isinstance(value, Mapping) else value
        for key, value in record.items()
        if key not in ("draft", "rollout_sampling")  # of 0.1: a recipe of RL has the sampling of its rollouts
    }


BAGEL_SAMPLING = Sampling()  # the release's evaluation settings

# Shift and temperatures were chosen on dev prompts, guidance on fresh hard ones: at a guidance of 3, white and
# small stickers come out as another class (`LOG.md` E74). Plans have the temperature at which they were learned; below
# it, many seeds of one prompt put things in the same places (`LOG.md` E79). Text limits are the shortest that hold the
# texts of SFT.
SKETCH_SAMPLING = Sampling(
    temperature=0.3,
    plan_temperature=1.0,
    max_plan=96,
    max_reflection=128,
    max_answer=128,  # as a reflection, and a word
    draw_points=17,  # 16 steps: with twice as many, white and small stickers are no better (`LOG.md` E74)
    edit_points=17,
    time_shift=6.0,  # 3 did as well on S1 (`LOG.md` E3)
    text_guidance=1.5,  # accuracy on white stickers is .873, and .790 at 3 (`LOG.md` E74)
    image_guidance=1.0,  # off: two branches of guidance in place of three
    guidance_interval=(0.0, 1.0),
    draw_renorm="channel",
    edit_renorm="text_channel",
)


@dataclass(frozen=True)
class BagelConfig:
    """Sizes, templates and sampling settings of a model; saved beside its weights."""

    name: str = "bagel-7b-mot"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_patch_size: Side = 2  # with the autoencoder's 8, a token is 16 x 16 pixels
    max_latent_size: Side = 64  # side of the latent position table, in patches: 64 x 16 = 1024 pixels
    image_size: tuple[PixelSide, PixelSide] = (512, 512)  # height, width of a new image
    # R3 trains at 512 pixels; BAGEL itself takes (1024, 512, 16) and (980, 224, 14).
    vae_resize: Resize = Resize(512, 256, 16)
    vit_resize: Resize = Resize(504, 252, 14)  # 36 x 14: the multiple of a patch next below 512
    # "stickers": prompts are parsed into specs first, and must be of that world
    world: Literal["open", "stickers"] = "open"
    templates: Templates = R3_TEMPLATES
    sampling: Sampling = BAGEL_SAMPLING

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token: patch rows x patch columns x channels."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def latent_downsample(self) -> int:
        """Pixels per side of one latent token."""
        return self.latent_patch_size * self.autoencoder.downsample

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the latent tokens of a new image."""
        height, width = self.image_size
        return height // self.latent_downsample, width // self.latent_downsample


BAGEL_7B = BagelConfig()

SKETCH = BagelConfig(
    name="sketch",
    language=LanguageConfig(
        vocab_size=256,  # words of the world of stickers
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_theta=1e4,
    ),
    vision=VisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,  # 4 are used, as select_layer leaves one out
        num_attention_heads=3,
        patch_size=16,  # a patch covers the pixels of a latent token: an image of 96 pixels is 36 of either
        patches_per_side=16,
    ),
    # Scale and shift are measured when the autoencoder has been trained (sft/vae.py), and saved with its weights.
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0),
    max_latent_size=16,  # 256 pixels: larger images have no position
    image_size=(96, 96),
    vae_resize=Resize(96, 96, 16),
    vit_resize=Resize(96, 96, 16),
    world="stickers",
    templates=SKETCH_TEMPLATES,
    sampling=SKETCH_SAMPLING,
)
