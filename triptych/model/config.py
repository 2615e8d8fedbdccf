"""Sizes of the model and settings of its sampling, as typed values with a reason beside each choice.

`BAGEL_7B` is the published BAGEL-7B-MoT; `SKETCH` is a small BAGEL of our own for the world of stickers. Both are
values of one class, and every feature works for both.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Renorm = Literal["global", "channel", "text_channel"]


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder (Qwen2 with two experts), by the names of llm_config.json."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The understanding encoder (SigLIP), by the names of vit_config.json."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27  # as the file says; select_layer decides how many are used
    num_attention_heads: int = 16
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    select_layer: int = -2
    patches_per_side: int = 70  # side of the position table

    @property
    def layers_used(self) -> int:
        """-1 is every layer, -2 all but the last."""
        return self.num_hidden_layers + 1 + self.select_layer


@dataclass(frozen=True)
class AutoencoderConfig:
    """The FLUX autoencoder, by the names of its published parameters."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    in_channels: int = 3
    out_ch: int = 3
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class Resize:
    """How a given picture is brought to a size that an encoder takes (pixels)."""

    max_side: int
    min_side: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class Templates:
    """The words around a beat. "{prompt}" and "{question}" are filled in; an empty system prompt is no block at all."""

    plan_system: str
    reflect_system: str
    reflect: str
    answer_system: str
    answer: str


# The release's exact words: a model that was trained with them depends on every space (parity kit, prompts.json).
R3_TEMPLATES = Templates(
    plan_system=(
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, "
        "i.e. <think> planning process here </think> image here."
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
    answer_system="",
    answer="{question}",
)

# Few tokens, since every one of them is read in every lesson.
SKETCH_TEMPLATES = Templates(
    plan_system="plan", reflect_system="reflect", reflect="{prompt}", answer_system="", answer="{question}"
)


@dataclass(frozen=True)
class Sampling:
    """Settings of one call of a verb. Points are schedule points: N points are N-1 steps (parity kit b.8)."""

    temperature: float = 0.3  # of texts; 0 is greedy
    plan_temperature: float | None = None  # of plans, where they are to be freer than what is said of a picture
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    max_plan: int = 196  # tokens, the end token included
    max_reflection: int = 384
    max_answer: int = 64
    draw_points: int = 50
    edit_points: int = 50
    time_shift: float = 3.0
    text_guidance: float = 4.0
    image_guidance: float = 1.5
    interval: tuple[float, float] = (0.4, 1.0)  # guidance acts where low < t <= high
    draw_renorm: Renorm = "global"
    edit_renorm: Renorm = "text_channel"
    renorm_floor: float = 0.0
    stochastic: tuple[int, ...] = ()  # indices of the SDE steps; the others are ODE (MixGRPO)
    eta_draw: float = 0.7
    eta_edit: float = 1.0
    eta_mode: Literal["constant", "monotonic"] = "monotonic"

    @property
    def planning(self) -> Sampling:
        """These settings with the temperature of plans as the one of texts."""
        if self.plan_temperature is None:
            return self
        return replace(self, temperature=self.plan_temperature, plan_temperature=None)


FINE = Sampling()  # the release's evaluation settings
DRAFT = Sampling(temperature=0.9, top_p=0.9, draw_points=16, edit_points=21)  # the release's training rollouts

# The shift and the temperatures were chosen on rehearsal prompts, the guidance on fresh hard ones: at 3, white and
# small stickers come out as another class (LOG.md). Plans are as free as they were taught, or else many seeds of a
# prompt put things in the same places. The rest is the shortest that the lessons' texts need.
SKETCH_FINE = Sampling(
    temperature=0.3,
    plan_temperature=1.0,
    max_plan=96,
    max_reflection=128,
    max_answer=128,  # as a reflection, and a word
    draw_points=17,
    edit_points=17,
    time_shift=6.0,
    text_guidance=1.5,
    image_guidance=1.0,
    interval=(0.0, 1.0),
    draw_renorm="channel",
    edit_renorm="text_channel",
)


@dataclass(frozen=True)
class BagelConfig:
    """Everything that fixes the model's shape and habits; saved beside its weights."""

    name: str = "bagel-7b-mot"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_patch_size: int = 2
    max_latent_size: int = 64  # side of the latent position table, in patches
    image_size: tuple[int, int] = (512, 512)  # height, width of a new picture
    vae_resize: Resize = Resize(512, 256, 16)
    vit_resize: Resize = Resize(504, 252, 14)
    world: Literal["open", "stickers"] = (
        "open"  # "stickers": prompts are read into specs first, and must be of that world
    )
    templates: Templates = R3_TEMPLATES
    fine: Sampling = FINE
    draft: Sampling = DRAFT

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token: patch rows x patch columns x channels."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def latent_downsample(self) -> int:
        """Pixels per side of one latent token."""
        return self.latent_patch_size * self.autoencoder.downsample


BAGEL_7B = BagelConfig()

SKETCH = BagelConfig(
    name="sketch",
    language=LanguageConfig(
        vocab_size=256,
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
        num_hidden_layers=5,
        num_attention_heads=3,
        patch_size=16,
        patches_per_side=16,
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0),
    max_latent_size=16,
    image_size=(96, 96),
    vae_resize=Resize(96, 96, 16),
    vit_resize=Resize(96, 96, 16),
    world="stickers",
    templates=SKETCH_TEMPLATES,
    fine=SKETCH_FINE,
    draft=SKETCH_FINE,
)
