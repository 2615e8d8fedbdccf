"""Image to latent and back: the FLUX autoencoder, and how a latent is cut into tokens.

Pixels run from -1 to 1. A latent is `scale * (sample - shift)`, 8 times smaller than the image on each side for both
model sizes. One batch holds images of one size: padding would reach the group norms and the middle attention, and so
change the latents (BAGEL pads its training batches so). Names of the layers are those of ae.safetensors as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triptych.errors import PictureError
from triptych.model.config import AutoencoderConfig


def patchify(latent: Float[Tensor, "batch channel height width"], side: int) -> Float[Tensor, "batch patch latent"]:
    """Cut a latent into tokens, row by row; within a token: row, column, channel, the channel fastest, as in BAGEL."""
    batch, channel, height, width = latent.shape
    # Axes: batch, channel, token row, row in token, token column, column in token.
    grid = latent.reshape(batch, channel, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // side) * (width // side), side * side * channel)


def unpatchify(
    tokens: Float[Tensor, "batch patch latent"], side: int, height: int, width: int
) -> Float[Tensor, "batch channel height width"]:
    """Undo `patchify`; `height` and `width` are those of the latent, not of the token grid."""
    batch, _, latent = tokens.shape
    channel = latent // (side * side)
    grid = tokens.reshape(batch, height // side, width // side, side, side, channel)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channel, height, width)


class ResidualBlock(nn.Module):
    """Two convolutions beside the input; `nin_shortcut` only where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class MiddleAttention(nn.Module):
    """One head over all positions; only at the lowest resolution, where there are few."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        # 1 x 1 convolutions are linear layers on channels; the published weights have their shape.
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channel h w"]) -> Float[Tensor, "batch channel h w"]:
        # One head: `[batch 1 position channel]`.
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class MiddleBlock(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = MiddleAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Float[Tensor, "batch channel h w"]) -> Float[Tensor, "batch channel h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve each side. Zeros pad the bottom and the right alone, as in the published model."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)  # no padding of its own, which would be symmetric

    def forward(self, x: Float[Tensor, "batch channel h w"]) -> Float[Tensor, "batch channel h//2 w//2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # left, right, top, bottom


class Upsample(nn.Module):
    """Double each side: nearest neighbor, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channel h w"]) -> Float[Tensor, "batch channel 2*h 2*w"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResolutionLevel(nn.Module):
    """The residual blocks of one resolution, and the step to the next one."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, step: type[Downsample] | type[Upsample] | None
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        if step is Downsample:
            self.downsample = Downsample(out_channels)
        if step is Upsample:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class VAEEncoder(nn.Module):
    """Pixels to the mean and log-variance of a latent, one after the other on the channels."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            ResolutionLevel(before, width, config.num_res_blocks, Downsample if i < last else None)
            for i, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False))  # the last has no next
        )
        self.mid = MiddleBlock(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch moments h w"]:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VAEDecoder(nn.Module):
    """A latent (unscaled) to pixels; one residual block more per level than the encoder.

    `up[0]` is the finest level, as in the published names, so that the forward runs from the last to the first.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = MiddleBlock(widths[-1])
        # `before` is the width of the next coarser level, from which a level gets its input.
        self.up = nn.ModuleList(
            ResolutionLevel(before, width, config.num_res_blocks + 1, Upsample if i > 0 else None)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0])  # `widths[0]` is the finest level's
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Float[Tensor, "batch z h w"]) -> Float[Tensor, "batch 3 height width"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(cast(Sequence[nn.Module], self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Image to latent and back; works under bf16 autocast and in channels_last.

    On a CPU bf16 autocast halves a training step, and channels_last doubles it again: the backward of its group norm is
    not vectorized (`LOG.md` E4). On CUDA channels_last is the faster layout.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)

    def moments(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch z h w"], Float[Tensor, "batch z h w"]]:
        """Mean and log-variance of the posterior, unscaled. Sides must be multiples of the downsampling (8)."""
        height, width = pixels.shape[-2:]
        stride = self.config.downsample
        if not height or not width or height % stride or width % stride:
            raise PictureError(f"picture of {height}x{width} pixels: expected multiples of {stride}; resize it first")
        mean, logvar = self.encoder(pixels).chunk(2, dim=1)
        return mean, logvar

    def encode(
        self, pixels: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch z h w"] | None = None
    ) -> Float[Tensor, "batch z h w"]:
        """Scaled latent: of the posterior mean, or of the sample that `noise` (standard normal) picks."""
        # The mean at inference, as in R3; BAGEL samples there too, so that one image has many latents.
        mean, logvar = self.moments(pixels)
        sample = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        # Shifted before it is scaled; `decode` undoes them in the other order.
        return self.config.scale_factor * (sample - self.config.shift_factor)

    def decode(self, latent: Float[Tensor, "batch z h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels of a scaled latent; not clamped: `images.to_pixels` does it, and a loss needs the gradient."""
        return self.decoder(latent / self.config.scale_factor + self.config.shift_factor)


def _norm(channels: int) -> nn.GroupNorm:
    # FLUX: 32 groups, so that `ch` is a multiple of 32, SKETCH's too; not torch's default eps of 1e-5.
    return nn.GroupNorm(32, channels, eps=1e-6)
