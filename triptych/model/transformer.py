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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.model.config import LanguageConfig
from triptych.model.kv_cache import KVCache
from triptych.model.linear import product

Experts = Literal["und", "gen", "both"]
Rotary = tuple[Float[Tensor, "batch time 1 head_dim"], Float[Tensor, "batch time 1 head_dim"]]  # cosines and sines
# True where a query may attend to a key, or what is added to its score (0 or -inf); None: every query to every key.
Mask = Bool[Tensor, "batch 1 query key"] | Float[Tensor, "batch 1 query key"] | None
Parts = tuple[Tensor, ...]  # each expert's tokens, `[batch time hidden]`: of understanding, and of generation if any
EXPERTS = ("", "_moe_gen")  # their suffixes in the names of parameters
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
    # Whether every token may attend to every token of its row: one image block and no padding, or one token. Told here,
    # where it costs no look at numbers that may be on a GPU.
    everyone: bool = False

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
        return unweighted_norm(x, self.eps) * self.weight


def unweighted_norm(x: Float[Tensor, "*rows hidden"], eps: float) -> Float[Tensor, "*rows hidden"]:
    """Each row over its root mean square, in float32. The weight comes behind the cast back, as in Qwen2."""
    if x.is_cuda:
        return F.rms_norm(x, x.shape[-1:], eps=eps)  # one kernel, which computes in float32 whatever comes in
    # On a CPU torch makes six operations of it, which take twice as long in a batch: a vector's length is one pass.
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    square = torch.rsub(length.square(), eps, alpha=-1 / x.shape[-1])  # eps + length^2 / size in one operation
    return (wide * torch.rsqrt(square)).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class Frame:
    """What all layers of a forward share: rotary tables, and who may attend to whom (None: everyone to everyone)."""

    rotary: Rotary
    mask: Mask


class JointAttention(nn.Module):
    """Both experts' projections, queries and keys normed per head (BAGEL adds this to Qwen2), around one attention."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.eps = config.rms_norm_eps
        hidden, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        for expert in EXPERTS:  # the published names: q_proj of understanding, q_proj_moe_gen of generation
            setattr(self, f"q_proj{expert}", nn.Linear(hidden, hidden))
            setattr(self, f"k_proj{expert}", nn.Linear(hidden, kv))
            setattr(self, f"v_proj{expert}", nn.Linear(hidden, kv))
            setattr(self, f"o_proj{expert}", nn.Linear(hidden, hidden, bias=False))  # Qwen2: q, k, v alone have a bias
            setattr(self, f"q_norm{expert}", RMSNorm(self.head_dim, config.rms_norm_eps))
            setattr(self, f"k_norm{expert}", RMSNorm(self.head_dim, config.rms_norm_eps))

    def forward(
        self, parts: Parts, frame: Frame, cache: KVCache | None, layer: int
    ) -> list[Float[Tensor, "batch _ hidden"]]:
        """What each expert's tokens, `parts` after their input norms, get from all."""
        # Both experts' queries, keys and values in one tensor, so that norm, rotation and attention are taken once.
        joint = joined([product(x, self._layers("qkv", expert)) for x, expert in experts_of(parts)])
        batch, time, _ = joint.shape
        states = joint.view(batch, time, -1, self.head_dim)
        turned, value = states.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        # Normed and rotated in float32 for both experts; BAGEL does so for the generation expert. The norm comes first:
        # its weights are per channel, and rotation mixes channels.
        weights = [self._norm_weights(expert).expand(x.shape[1], -1, -1) for x, expert in experts_of(parts)]
        turned = rotate(unweighted_norm(turned.float(), self.eps) * joined(weights, dim=0), frame.rotary)
        query, key = turned.to(value.dtype).transpose(1, 2).split([self.heads, self.kv_heads], dim=1)
        value = value.transpose(1, 2)  # attention and cache are in the compute dtype
        if cache is not None:
            key, value = cache.update(layer, key, value)
        mixed = attend(query, key, value, frame.mask).transpose(1, 2).flatten(2)
        mixes = mixed.split([x.shape[1] for x in parts], dim=1)
        return [getattr(self, f"o_proj{expert}")(x) for x, expert in experts_of(mixes)]

    def _layers(self, names: str, expert: str) -> list[nn.Module]:
        return [getattr(self, f"{name}_proj{expert}") for name in names]

    def _norm_weights(self, expert: str) -> Float[Tensor, "1 head head_dim"]:
        """The weights of all query heads, then of all key heads."""
        norms = (getattr(self, f"q_norm{expert}"), self.heads), (getattr(self, f"k_norm{expert}"), self.kv_heads)
        return torch.cat([norm.weight.expand(heads, -1) for norm, heads in norms])[None].float()


class DecoderLayer(nn.Module):
    """One decoder layer with two sets of norms and MLPs."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.self_attn, self.eps = JointAttention(config), config.rms_norm_eps
        for expert in EXPERTS:
            setattr(self, f"mlp{expert}", SwiGLU(config.hidden_size, config.intermediate_size))
            setattr(self, f"input_layernorm{expert}", RMSNorm(config.hidden_size, config.rms_norm_eps))
            setattr(self, f"post_attention_layernorm{expert}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, parts: Parts, frame: Frame, cache: KVCache | None, layer: int) -> Parts:
        mixed = self.self_attn(self._normed("input_layernorm", parts), frame, cache, layer)
        parts = tuple(x + more for x, more in zip(parts, mixed, strict=True))
        normed = self._normed("post_attention_layernorm", parts)
        more = [getattr(self, f"mlp{expert}")(x) for x, expert in experts_of(normed)]
        return tuple(x + each for x, each in zip(parts, more, strict=True))

    def _normed(self, name: str, parts: Parts) -> Parts:
        """Both experts' tokens normed together, and each under the weights of its own."""
        whole = unweighted_norm(joined(parts), self.eps).split([x.shape[1] for x in parts], dim=1)
        return tuple(x * getattr(self, f"{name}{expert}").weight for x, expert in experts_of(whole))


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

    def frame(self, layout: PackLayout, cache: KVCache | None) -> Frame:
        """Rotary tables and mask of a forward; denoising steps behind one cache have the same."""
        rotary = rotary_table(layout.position, self.config.head_dim, self.config.rope_theta)
        if layout.everyone and (cache is None or cache.full):
            return Frame(rotary, None)
        if cache is None:
            return Frame(rotary, layout.mask())
        return Frame(rotary, _added(layout.mask(cache.valid[:, : cache.length]), cache))

    def token_frame(self, cache: KVCache) -> Frame:
        """That of one more token behind each row, which attends to all of its row."""
        rotary = rotary_table(cache.position[:, None], self.config.head_dim, self.config.rope_theta)
        if cache.full:
            return Frame(rotary, None)
        mask = F.pad(cache.valid[:, : cache.length], (0, 1), value=True)
        return Frame(rotary, _added(mask[:, None, None], cache))

    def forward(
        self,
        und: Float[Tensor, "batch und hidden"],
        gen: Float[Tensor, "batch gen hidden"],
        frame: Frame,
        cache: KVCache | None = None,
        layer_outputs: list[Tensor] | None = None,
    ) -> Hidden:
        """Hidden states of `und` and `gen` after the final norms.

        Each layer's output for `und` is appended to `layer_outputs`. With a cache, the new tokens also attend to what
        it holds, and their keys are written to its scratch slots; the caller decides with `KVCache.advance` whether
        they stay.
        """
        parts: Parts = (und, gen) if gen.shape[1] else (und,)
        if cache is not None:
            cache.reserve(und.shape[1] + gen.shape[1])
        # Checkpointing would run a layer's cache writes a second time on the way back; sampling has no gradient anyway.
        checkpointed = self.gradient_checkpointing and cache is None and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            inputs = parts, frame, cache, index
            parts = checkpoint(layer, *inputs, use_reentrant=False) if checkpointed else layer(*inputs)
            if layer_outputs is not None:
                layer_outputs.append(parts[0])  # before the final norm
        return self.norm(parts[0]), self.norm_moe_gen(parts[-1]) if gen.shape[1] else gen


class LanguageModel(nn.Module):
    """The decoder and its head, under the names `model` and `lm_head` of the published checkpoint."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.model = MoTDecoder(config)
        # Not tied to the embedding. It reads understanding states alone: latents have a head of their own, `llm2vae`.
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def experts_of(parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, str]]:
    """Each part with its expert's suffix of names: understanding tokens first, then latents, if there are any."""
    return zip(parts, EXPERTS, strict=False)


def joined(tensors: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Both experts' tokens in one tensor, along `dim`."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _added(mask: Bool[Tensor, "batch 1 query key"], cache: KVCache) -> Float[Tensor, "batch 1 query key"]:
    """A mask as what is added to scores: kernels make that of bools in every layer."""
    added = torch.zeros(mask.shape, dtype=cache.keys[0].dtype, device=mask.device)
    return added.masked_fill_(~mask, float("-inf"))


def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask,
) -> Float[Tensor, "batch head query head_dim"]:
    """Softmax attention with grouped keys.

    With gradients on a CPU the products are written out: the fused kernel's masked backward is far slower there.
    On a GPU the fused kernel that takes a mask takes no groups (see `enable_gqa` in torch): keys are repeated.
    """
    groups, on_cpu = query.shape[1] // key.shape[1], query.device.type == "cpu"
    if (on_cpu and not query.requires_grad) or (mask is None and not on_cpu):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=groups > 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if not on_cpu:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).float()  # 1 / sqrt(head_dim)
    if mask is not None:
        # -inf is safe, since every query has a key: padding attends to itself.
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(value.dtype) @ value


def rotary_table(position: Int[Tensor, "batch time"], head_dim: int, theta: float) -> Rotary:
    """Cosines and signed sines of every channel, in float32; channels i and i + head_dim / 2 turn together (Qwen2)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim)
    angle = position[:, :, None, None].float() * frequency  # in bfloat16 positions above 256 would be rounded
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Float[Tensor, "batch time head dim"], rotary: Rotary) -> Float[Tensor, "batch time head dim"]:
    """Half-split rotation of queries or keys."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)  # the other half's channel beside each
