"""Image to understanding tokens: the SigLIP tower, its connector, and the fixed position tables.

An image enters as a row of patches with their position ids `row * side + column` in the corner of a fixed grid: no
interpolation, any aspect (NaViT, arXiv 2307.06304). Each image attends to itself only, fully; images of different
sizes share a batch by padding and a mask. Names of the layers are those of the published checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from triptych.model.config import VisionConfig


def sincos_table(side: int, dim: int) -> Float[Tensor, "{side}*{side} {dim}"]:
    """Positions of a side x side grid: the first half of the channels is of the column, the second half of the row.

    Each half is [sin | cos] at frequencies 1/10000^(i/(dim/4)); computed in float64, returned in float32, as in BAGEL.
    """
    if dim % 4:
        raise ValueError(f"dim={dim}: sine and cosine of row and column need a multiple of 4")
    frequency = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    # Column first, as in the release; with both swapped, velocities are off by .3 to 2.
    column = line.expand(side, side, -1)
    row = line[:, None].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).reshape(side * side, dim).float()


class PositionTable(nn.Module):
    """The table of `sincos_table` under its published name. Frozen; a file may leave it out, it is recomputed."""

    pos_embed: Tensor

    def __init__(self, side: int, dim: int):
        super().__init__()
        table = torch.empty(side * side, dim)  # on the meta device it stays empty, until a file or a table fills it
        # A buffer: stored, moved, and never trained.
        self.register_buffer("pos_embed", table if table.is_meta else sincos_table(side, dim))

    def forward(self, position_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        return self.pos_embed[position_ids]


class PatchEmbeddings(nn.Module):
    """Patch and position to the tower's width; both learned."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        # A linear layer where SigLIP has a convolution: patches come cut, from images of any aspect.
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def forward(
        self, patches: Float[Tensor, "batch patch pixel"], position_ids: Int[Tensor, "batch patch"]
    ) -> Float[Tensor, "batch patch hidden"]:
        # The tower's own, learned position; the caller adds a fixed one behind the connector.
        return self.patch_embedding(patches) + self.position_embedding(position_ids)


class VisionAttention(nn.Module):
    """Multi-head attention within each image; all projections have biases, as in SigLIP."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch patch hidden"], mask: Bool[Tensor, "batch patch"] | None
    ) -> Float[Tensor, "batch patch hidden"]:
        # `[batch head patch dim]`, without rotary positions: the learned table alone tells places apart.
        heads = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (states.transpose(1, 2) for states in heads)
        keys = None if mask is None else mask[:, None, None]  # padding is hidden as a key; its queries mean nothing
        return self.out_proj(_attend(q, k, v, keys).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two linear layers around a tanh-GELU (gelu_pytorch_tanh of vit_config.json)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape hidden"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """Attention, then MLP, each on normed states and added back."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(config)

    def forward(
        self, x: Float[Tensor, "batch patch hidden"], mask: Bool[Tensor, "batch patch"] | None
    ) -> Float[Tensor, "batch patch hidden"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    """The layers up to the selected one."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        # A file holds the used layers alone: with more, loading would miss their names.
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers_used))


class VisionTransformer(nn.Module):
    """Embeddings, layers, final norm; no head and no rotary positions."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionTower(nn.Module):
    """Patches of images to hidden states, before the connector."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)

    def forward(
        self,
        patches: Float[Tensor, "batch patch pixel"],
        position_ids: Int[Tensor, "batch patch"],
        mask: Bool[Tensor, "batch patch"] | None = None,
    ) -> Float[Tensor, "batch patch hidden"]:
        """States of every patch; `mask` is true at real patches, and states at the others mean nothing.

        `patches` are 3 * 14 * 14 numbers in the order row, column, color (`vae.patchify`).
        """
        x = self.vision_model.embeddings(patches, position_ids)
        for layer in self.vision_model.encoder.layers:
            x = layer(x, mask)
        # Applied although the last layer is left out (select_layer -2), as in BAGEL.
        return self.vision_model.post_layernorm(x)


class Connector(nn.Module):
    """Hidden states to the language model's width; the caller adds the position table."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, out_dim)
        self.fc2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Float[Tensor, "*shape in_dim"]) -> Float[Tensor, "*shape out_dim"]:
        # Exact GELU in place of the tanh form moves logits by 1.5e-4, three times the tolerance of the golden tests.
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _attend(
    q: Float[Tensor, "batch head patch dim"],
    k: Float[Tensor, "batch head patch dim"],
    v: Float[Tensor, "batch head patch dim"],
    keys: Bool[Tensor, "batch 1 1 patch"] | None,
) -> Float[Tensor, "batch head patch dim"]:
    # On a CPU three plain operations beat the fused kernel (a training step by 1.4) until the scores fill the memory.
    if q.is_cuda or q.shape[-2] > 1024:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if keys is not None:
        score = score.masked_fill(~keys, torch.finfo(score.dtype).min)
    return score.softmax(-1).to(v.dtype) @ v
