"""What is minimised: tensors in, tensors out.

Advantages are rewards minus the mean of their group (Tree-RL; division by the spread is optional). Words learn by GRPO:
a clipped ratio per token, the end token included, and the k3 estimate of the KL. Strokes learn by FlowGRPO: a clipped
ratio per stochastic step, and the exact KL of two Gaussians (`model.flow.gaussian_kl`).

A loss is a sum over its rows divided by `count`, the rows or tokens of the whole batch, so that parts of a batch add up
to the loss of the whole.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SPREAD_FLOOR = 1e-6  # added to the spread before dividing by it, as in the release


def advantages(
    rewards: Float[Tensor, "row"], mask: Bool[Tensor, "row"] | None = None, divide: bool = False
) -> Float[Tensor, "row"]:
    """Rewards of one group, minus their mean; with `divide`, over their (unbiased) standard deviation.

    Rows outside `mask` are left out before the mean is taken, and get 0: the advantages of a group always add up to 0.
    A single row has nobody to be compared with, and gets 0, as do rows that differ by rounding alone.
    """
    kept = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    result = torch.zeros_like(rewards)
    if not has_spread(rewards, kept):
        return result
    centred = rewards[kept] - rewards[kept].mean()
    result[kept] = centred / (centred.std() + SPREAD_FLOOR) if divide else centred
    return result


def has_spread(rewards: Float[Tensor, "row"], mask: Bool[Tensor, "row"] | None = None) -> bool:
    """Whether a group has anything to teach: two kept rows whose rewards differ by more than rounding."""
    kept = rewards if mask is None else rewards[mask]
    return len(kept) > 1 and float(kept.max() - kept.min()) > SPREAD_FLOOR


def clipped(
    ratio: Float[Tensor, "*entry"], advantage: Float[Tensor, "*#entry"], clip: float
) -> Float[Tensor, "*entry"]:
    """The clipped gain of each entry: no reward for moving a ratio further than `clip` from 1."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def grpo(
    new: Float[Tensor, "row time"],
    old: Float[Tensor, "row time"],
    advantage: Float[Tensor, "row"],
    mask: Bool[Tensor, "row time"],
    clip: float,
    count: int,
) -> Float[Tensor, ""]:
    """Minus the clipped gain of every token under `mask`; all tokens of a row share its advantage."""
    gain = clipped(torch.exp(new - old), advantage[:, None], clip)
    return -gain[mask].sum() / count


def flow_grpo(
    new: Float[Tensor, "stroke"],
    old: Float[Tensor, "stroke"],
    advantage: Float[Tensor, "stroke"],
    clip: float,
    count: int,
) -> Float[Tensor, ""]:
    """Minus the clipped gain of every stroke.

    Log-probabilities are means over a picture's numbers (`flow.stroke_logprob`), so a ratio hardly leaves 1 and a clip
    binds only if it is small too.
    """
    return -clipped(torch.exp(new - old), advantage, clip).sum() / count


def token_kl(
    new: Float[Tensor, "row time"], reference: Float[Tensor, "row time"], mask: Bool[Tensor, "row time"], count: int
) -> Float[Tensor, ""]:
    """The k3 estimate of the KL from the reference: exp(d) - d - 1 with d = reference - new, never below 0."""
    gap = (reference - new)[mask]
    return (torch.exp(gap) - gap - 1).sum() / count
