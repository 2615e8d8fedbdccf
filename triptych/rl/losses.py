"""The losses of Tree-RL: tensors in, tensors out.

Advantages are rewards minus the mean of their group; Tree-RL does not divide by the std, which GRPO does (optional).
Text learns by GRPO (arXiv 2402.03300): a clipped ratio per token, the end token included, and the k3 estimate of the
KL. Pictures learn by FlowGRPO (arXiv 2505.05470): a clipped ratio per SDE step, and the exact KL of two Gaussians
(`model.flow.gaussian_kl`). With r = exp(new - old), A the advantage and e the clip range, both minimize

    loss = -1/count * sum min(r A, clip(r, 1 - e, 1 + e) A)

A loss is a sum over its rows divided by `count`, the tokens or SDE steps of the whole batch, so that the losses of
micro-batches add up to the loss of the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STD_FLOOR = 1e-6  # added to the std before dividing by it, as in the release


def advantages(
    rewards: Float[Tensor, "row"], mask: Bool[Tensor, "row"] | None = None, normalize: bool = False
) -> Float[Tensor, "row"]:
    """Rewards of one group, minus their mean; with `normalize`, over their (unbiased) standard deviation.

    Rows outside `mask` are left out before the mean is taken, and get 0: the advantages of a group always add up to 0.
    A single row has nothing to be compared with, and gets 0, as do rows that differ by rounding alone.
    """
    kept = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    result = torch.zeros_like(rewards)
    if not has_variance(rewards, kept):
        return result
    centered = rewards[kept] - rewards[kept].mean()
    result[kept] = centered / (centered.std() + STD_FLOOR) if normalize else centered
    return result


def has_variance(rewards: Float[Tensor, "row"], mask: Bool[Tensor, "row"] | None = None) -> bool:
    """Whether a group has anything to teach: two kept rows whose rewards differ by more than rounding."""
    kept = rewards if mask is None else rewards[mask]
    return len(kept) > 1 and float(kept.max() - kept.min()) > STD_FLOOR


def clipped(
    ratio: Float[Tensor, "*entry"], advantage: Float[Tensor, "*#entry"], clip_range: float
) -> Float[Tensor, "*entry"]:
    """PPO's surrogate of each entry: no reward for moving a ratio further than `clip_range` from 1."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def grpo(
    new: Float[Tensor, "row time"],
    old: Float[Tensor, "row time"],
    advantage: Float[Tensor, "row"],
    mask: Bool[Tensor, "row time"],
    clip_range: float,
    count: int,
) -> Float[Tensor, ""]:
    """Minus the clipped surrogate of every token under `mask`; all tokens of a row share its advantage."""
    surrogate = clipped(torch.exp(new - old), advantage[:, None], clip_range)
    return -surrogate[mask].sum() / count


def flow_grpo(
    new: Float[Tensor, "step"],
    old: Float[Tensor, "step"],
    advantage: Float[Tensor, "step"],
    clip_range: float,
    count: int,
) -> Float[Tensor, ""]:
    """Minus the clipped surrogate of every SDE step.

    Log-probabilities are means over a picture's latent values (`flow.step_logprob`), so a ratio hardly leaves 1, and a
    clip binds only if its range is small too.
    """
    return -clipped(torch.exp(new - old), advantage, clip_range).sum() / count


def token_kl(
    new: Float[Tensor, "row time"], reference: Float[Tensor, "row time"], mask: Bool[Tensor, "row time"], count: int
) -> Float[Tensor, ""]:
    """The k3 estimate of the KL from the reference: exp(d) - d - 1 with d = reference - new, never below 0.

    It has no upper bound: clamping d would also clamp its gradient, just where the policy is furthest away.
    """
    gap = (reference - new)[mask]
    return (torch.exp(gap) - gap - 1).sum() / count
