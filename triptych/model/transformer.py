"""Mixture-of-Transformers: two experts, one attention (BAGEL, arXiv 2505.14683).

Text, views and all image brackets go through the understanding expert; latent tokens, clean or noisy, through the
generation expert, whose weights are named `*_moe_gen`. A batch is laid out with the understanding tokens of every row
first and its latent tokens behind them, so that routing is one split; `PackLayout`, not the order of slots, says who
may attend to whom. For a prompt of two tokens and a noisy image (brackets [ ], latents n) the mask reads

            p p [ ] n n        queries downwards, keys across
        p   1 0 0 0 0 0        text is causal
        p   1 1 0 0 0 0
        [   1 1 1 1 1 1        an image block sees itself in both directions, and everything before it
        ]   1 1 1 1 1 1
        n   1 1 1 1 1 1        nothing outside a noise block may attend to it
        n   1 1 1 1 1 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.model.config import LanguageConfig
from triptych.model.kv_cache import KVCache

Experts = Literal["und", "gen", "both"]
Rotary = tuple[Float[Tensor, "batch time 1 half"], Float[Tensor, "batch time 1 half"]]  # cosines and sines
Hidden = tuple[Float[Tensor, "batch und hidden"], Float[Tensor, "batch gen hidden"]]
# In the names of the parameters that latent tokens alone pass through: no text depends on them until an image is made.
GENERATION_PARAMETERS = ("_moe_gen", "vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")


def is_generation(name: str) -> bool:
    """Whether the parameter of that name belongs to the generation expert."""
    return any(part in name for part in GENERATION_PARAMETERS)


def belongs_to(name: str, experts: Experts) -> bool:
    """Whether the parameter of that name is among those of these experts."""
    return experts == "both" or is_generation(name) == (experts == "gen")


@dataclass(frozen=True)
class PackLayout:
    """Where each token of a batch stands, understanding tokens before latent ones.

    `position` is the rotary position; `order` the place in the row's sequence; `block` numbers the image blocks of a
    row and is -1 for text; `noise` marks blocks that others may not see; `valid` is False for padding.
    """

    position: Int[Tensor, "batch token"]
    order: Int[Tensor, "batch token"]
    block: Int[Tensor, "batch token"]
    noise: Bool[Tensor, "batch token"]
    valid: Bool[Tensor, "batch token"]

    def mask(self, cached: Bool[Tensor, "batch slot"] | None = None) -> Bool[Tensor, "batch 1 query key"]:
        """Who may attend to whom; `cached` keys, True where they are valid, come first and are past."""
        # A key is allowed that comes first or is of the same image block, unless it is in another noise block.
        # Rows of a batch are apart; the release packs samples into one sequence, and compares samples as well.
        before = self.order[:, None, :] <= self.order[:, :, None]
        # Text is -1 everywhere: without >= 0 it would be one bidirectional block.
        same = (self.block[:, None, :] == self.block[:, :, None]) & (self.block[:, None, :] >= 0)
        allowed = (before | same) & (same | ~self.noise[:, None, :]) & self.valid[:, None, :]
        # Padding attends to itself: the softmax of a row without any key is NaN.
        allowed = allowed | torch.eye(allowed.shape[1], dtype=torch.bool, device=allowed.device)
        if cached is not None:
            # No block of the cache is a noise block, since these are never kept, and all of it comes first.
            past = cached[:, None, :].expand(-1, allowed.shape[1], -1)
            allowed = torch.cat([past, allowed], dim=2)
        return allowed[:, None]


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight is applied after casting back."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        wide = x.float()  # whatever the compute dtype, as in Qwen2
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class JointAttention(nn.Module):
    """Both experts' projections, queries and keys normed per head (BAGEL adds this to Qwen2), around one attention."""

    o_proj: nn.Linear
    o_proj_moe_gen: nn.Linear

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.head_dim = config.head_dim
        hidden, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        for expert in ("", "_moe_gen"):  # the published names: q_proj of understanding, q_proj_moe_gen of generation
            setattr(self, f"q_proj{expert}", nn.Linear(hidden, hidden))
            setattr(self, f"k_proj{expert}", nn.Linear(hidden, kv))
            setattr(self, f"v_proj{expert}", nn.Linear(hidden, kv))
            setattr(self, f"o_proj{expert}", nn.Linear(hidden, hidden, bias=False))  # Qwen2: q, k, v alone have a bias
            setattr(self, f"q_norm{expert}", RMSNorm(self.head_dim, config.rms_norm_eps))
            setattr(self, f"k_norm{expert}", RMSNorm(self.head_dim, config.rms_norm_eps))

    def project(
        self, x: Float[Tensor, "batch time hidden"], rotary: Rotary, expert: str
    ) -> tuple[
        Float[Tensor, "batch head time head_dim"],
        Float[Tensor, "batch kv_head time head_dim"],
        Float[Tensor, "batch kv_head time head_dim"],
    ]:
        """Queries, keys, values of one expert's tokens."""
        shape = (*x.shape[:2], -1, self.head_dim)
        value = getattr(self, f"v_proj{expert}")(x).view(shape).transpose(1, 2)
        # Normed and rotated in float32 for both experts; BAGEL does so for the generation expert. The norm comes first:
        # its weights are per channel, and rotation mixes channels.
        query = getattr(self, f"q_norm{expert}")(getattr(self, f"q_proj{expert}")(x).view(shape).float())
        key = getattr(self, f"k_norm{expert}")(getattr(self, f"k_proj{expert}")(x).view(shape).float())
        return (
            rotate(query, rotary).transpose(1, 2).to(value.dtype),  # attention and cache are in the compute dtype
            rotate(key, rotary).transpose(1, 2).to(value.dtype),
            value,
        )

    def forward(
        self,
        und: Float[Tensor, "batch und hidden"],
        gen: Float[Tensor, "batch gen hidden"],
        rotary: Rotary,
        mask: Bool[Tensor, "batch 1 query key"],
        cache: KVCache | None,
        layer: int,
    ) -> Hidden:
        split = und.shape[1]  # understanding tokens come first, so that routing by expert is a slice
        query, key, value = self.project(und, (rotary[0][:, :split], rotary[1][:, :split]), "")
        if gen.shape[1]:
            latents = self.project(gen, (rotary[0][:, split:], rotary[1][:, split:]), "_moe_gen")
            query, key, value = (torch.cat(pair, dim=2) for pair in zip((query, key, value), latents, strict=True))
        if cache is not None:
            key, value = cache.update(layer, key, value)
        mixed = attend(query, key, value, mask).transpose(1, 2).flatten(2)
        out = self.o_proj(mixed[:, :split])
        return out, self.o_proj_moe_gen(mixed[:, split:]) if gen.shape[1] else gen


class DecoderLayer(nn.Module):
    """One decoder layer with two sets of norms and MLPs."""

    mlp: SwiGLU
    mlp_moe_gen: SwiGLU
    input_layernorm: RMSNorm
    input_layernorm_moe_gen: RMSNorm
    post_attention_layernorm: RMSNorm
    post_attention_layernorm_moe_gen: RMSNorm

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.self_attn = JointAttention(config)
        for expert in ("", "_moe_gen"):
            setattr(self, f"mlp{expert}", SwiGLU(config.hidden_size, config.intermediate_size))
            setattr(self, f"input_layernorm{expert}", RMSNorm(config.hidden_size, config.rms_norm_eps))
            setattr(self, f"post_attention_layernorm{expert}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(
        self,
        und: Float[Tensor, "batch und hidden"],
        gen: Float[Tensor, "batch gen hidden"],
        rotary: Rotary,
        mask: Bool[Tensor, "batch 1 query key"],
        cache: KVCache | None,
        layer: int,
    ) -> Hidden:
        normed = self.input_layernorm(und), self.input_layernorm_moe_gen(gen) if gen.shape[1] else gen
        from_und, from_gen = self.self_attn(*normed, rotary, mask, cache, layer)
        und = und + from_und
        und = und + self.mlp(self.post_attention_layernorm(und))
        if gen.shape[1]:
            gen = gen + from_gen
            gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return und, gen


class MoTDecoder(nn.Module):
    """Embeddings, layers and the two final norms; parameter names are the published checkpoint's.

    With `gradient_checkpointing`, a layer keeps its inputs alone for the backward pass, which computes the rest anew:
    the gradients are the same, and what a step holds falls from tens of tensors a layer to two.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config, self.gradient_checkpointing = config, False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        und: Float[Tensor, "batch und hidden"],
        gen: Float[Tensor, "batch gen hidden"],
        layout: PackLayout,
        cache: KVCache | None = None,
        layer_outputs: list[Tensor] | None = None,
    ) -> Hidden:
        """Hidden states of `und` and `gen` after the final norms.

        Each layer's output for `und` is appended to `layer_outputs`. With a cache, the new tokens also attend to what
        it holds, and their keys are written to its scratch slots; the caller decides with `KVCache.advance` whether
        they stay.
        """
        rotary = rotary_table(layout.position, self.config.head_dim, self.config.rope_theta)
        past = None
        if cache is not None:
            cache.reserve(layout.position.shape[1])
            past = cache.valid[:, : cache.length]
        mask = layout.mask(past)
        # Checkpointing would run a layer's cache writes a second time on the way back; sampling has no gradient anyway.
        checkpointed = self.gradient_checkpointing and cache is None and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            inputs = und, gen, rotary, mask, cache, index
            und, gen = checkpoint(layer, *inputs, use_reentrant=False) if checkpointed else layer(*inputs)
            if layer_outputs is not None:
                layer_outputs.append(und)  # before the final norm
        return self.norm(und), self.norm_moe_gen(gen) if gen.shape[1] else gen


class LanguageModel(nn.Module):
    """The decoder and its head, under the names `model` and `lm_head` of the published checkpoint."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.model = MoTDecoder(config)
        # Not tied to the embedding. It reads understanding states alone: latents have a head of their own, `llm2vae`.
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Bool[Tensor, "batch 1 query key"],
) -> Float[Tensor, "batch head query head_dim"]:
    """Softmax attention with grouped keys.

    With gradients on a CPU the products are written out: the fused kernel's masked backward is far slower there.
    On a GPU the fused kernel that takes a mask takes no groups (see `enable_gqa` in torch): keys are repeated.
    """
    groups, on_cpu = query.shape[1] // key.shape[1], query.device.type == "cpu"
    if on_cpu and not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=groups > 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if not on_cpu:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5  # 1 / sqrt(head_dim)
    # -inf is safe, since every query has a key: padding attends to itself.
    weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value


def rotary_table(position: Int[Tensor, "batch time"], head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of `head_dim / 2` frequencies, in float32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim)
    angle = position[:, :, None, None].float() * frequency  # in bfloat16 positions above 256 would be rounded
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "batch time head dim"], rotary: Rotary) -> Float[Tensor, "batch time head dim"]:
    """Half-split rotation of queries or keys."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)  # channel i turns with channel i + head_dim / 2 (Qwen2), not with its neighbor
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
