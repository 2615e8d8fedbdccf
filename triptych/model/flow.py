"""Rectified flow. Time 1 is noise, 0 is the image (BAGEL's convention; many papers use the reverse).

x_t = (1 - t) image + t noise, and the velocity v = noise - image points to noise, so a step subtracts it.
Drawing takes ODE steps; Flow-GRPO (arXiv 2505.05470) makes them SDE steps and scores each state that was drawn; MixGRPO
(arXiv 2507.21802) does so with some of them.
Every function is pure and works in float32. A time or step size is one number, or a tensor `[batch]`; the first axis of
an image is the batch, and no sample depends on another.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from triptych.errors import ConfigError
from triptych.model.config import EtaMode, Renorm

Sample = Float[Tensor, "batch *axes"]  # "batch patch latent" in the model
Std = Float[Tensor, "#batch *#axes"]  # one number per sample, as the model has it, or one for all
Time = float | Float[Tensor, ""] | Float[Tensor, "batch"]


def shifted(t: Float[Tensor, "*time"], shift: float) -> Float[Tensor, "*time"]:
    """Move times towards noise, where more is decided; shift 1 changes nothing."""
    # The shift of Stable Diffusion 3 (arXiv 2403.03206) for more pixels: they take more noise to hide an image.
    return shift * t / (shift * t + (1 - t))


def times(points: int, shift: float, device: torch.device | str = "cpu") -> Float[Tensor, "{points}"]:
    """The schedule: `points` times from 1 down to 0, hence `points - 1` steps.

    Raises ConfigError below 2 points.
    """
    if points < 2:
        raise ConfigError(f"points={points}: N points are N-1 steps, so 2 or more; set Sampling.draw_points")
    # Shifted after the even spacing: 0 and 1 stay where they are, so that a drawing ends without noise.
    return shifted(torch.linspace(1, 0, points, dtype=torch.float32, device=device), shift)


def training_times(normal: Float[Tensor, "batch"], shift: float = 1.0) -> Float[Tensor, "batch"]:
    """Times to train at, from standard normal draws: logit-normal, then shifted."""
    # Logit-normal as in Stable Diffusion 3: most draws in the middle, where the velocity is hardest to predict.
    return shifted(torch.sigmoid(normal.float()), shift)


def noised(x0: Sample, noise: Sample, t: Time) -> Sample:
    """The straight line from the image (t = 0) to the noise (t = 1)."""
    share = _column(t, x0)  # of the noise
    return (1 - share) * x0 + share * noise


def ode_step(x: Sample, v: Sample, dt: Time) -> Sample:
    """From time t to t - dt along the velocity."""
    return x - v * _column(dt, x)


def eta_at(t: float | Float[Tensor, "*time"], eta: float, mode: EtaMode) -> Float[Tensor, "*time"]:
    """How strong the noise of an SDE step is at time t: `eta`, or eta sqrt(t / (1 - t)) with 1 - t kept above 0.05.

    "constant" is the form of DanceGRPO (arXiv 2505.07818), "monotonic" the one of Flow-GRPO.
    """
    at = torch.as_tensor(t, dtype=torch.float32)
    if mode == "constant":
        return torch.full_like(at, eta)
    # At t = 1 the root alone would be infinite. As in the R3 release the denominator alone is held.
    return eta * torch.sqrt(at / (1 - at.clamp(max=0.95)))


def sde_mean_std(x: Sample, v: Sample, t: Time, dt: Time, eta: float, mode: EtaMode) -> tuple[Sample, Std]:
    """Mean `[batch *sample]` and standard deviation `[batch, 1, ...]` of an SDE step from t to t - dt, dt <= t.

    An Euler-Maruyama step of the SDE that has the marginals of the ODE whatever eta is (Flow-GRPO):
    mean = x - (v - eta(t)^2 / 2 score) dt with score = -(x - (1 - t) x0) / t^2 and x0 = x - t v. Since
    x - (1 - t) x0 = t (x + (1 - t) v), the score is -(the noise that v points to) / t: no division by t^2, and dt / t
    stays in [0, 1] down to t = 0.
    """
    now, length = _column(t, x), _column(dt, x)
    eta_now = eta_at(now, eta, mode)
    noise = x + (1 - now) * v  # that `x` and `v` predict: at t = 1 it is `x`
    # tiny: at t = 0 there is no step left, and dt / t is 0 / 0
    pull = 0.5 * eta_now**2 * (length / now.clamp(min=torch.finfo(torch.float32).tiny))
    # The pull takes out of `x` the noise that the random part puts back, whose variance is eta(t)^2 dt.
    return ode_step(x, v, dt) - pull * noise, eta_now * torch.sqrt(length)


def step_logprob(after: Sample, mean: Sample, std: Std) -> Float[Tensor, "batch"]:
    """Log-probability of the SDE step that led to `after`, one number per sample.

    As in the R3 release, -1/2 z^2 is averaged over channels and tokens (not summed) and constants are left out, so that
    a ratio of two is exp of a mean difference. `std` must be above 0.
    """
    # So a ratio stays very near 1, and the clip range of .2 rarely binds.
    z = (after - mean) / std
    return -0.5 * z.square().flatten(1).mean(1)


def gaussian_kl(mean: Sample, mean_ref: Sample, std: Std, half: bool = True) -> Float[Tensor, "batch"]:
    """KL between two SDE steps of the same standard deviation, averaged over tokens and channels of a sample.

    `half=False` leaves out the factor 1/2, as the release does.
    """
    # With one `std` on both sides the KL of two Gaussians is the squared distance of their means alone.
    squared = ((mean - mean_ref) / std).square().flatten(1).mean(1)
    return 0.5 * squared if half else squared


def guided(t: float, interval: tuple[float, float]) -> bool:
    """Whether guidance acts at time t: low < t <= high, in float32 (BAGEL, modeling/bagel/bagel.py:912)."""
    # Times are float32. As a Python float the time .4 of a schedule is 0.4000000059, above 0.4; the reference compares
    # a float32 tensor with a number, which torch rounds to float32 first, so that such a step is not guided.
    low, now, high = np.array((interval[0], t, interval[1]), np.float32)
    return bool(low < now <= high)


def guide(
    cond: Float[Tensor, "batch patch latent"],
    text_drop: Float[Tensor, "batch patch latent"] | None,
    image_drop: Float[Tensor, "batch patch latent"] | None,
    text_scale: float,
    image_scale: float,
    renorm: Renorm,
    renorm_min: float = 0.0,
) -> Float[Tensor, "batch patch latent"]:
    """Classifier-free guidance away from the velocity without text and the one without the image.

    A branch that is None, or a scale of 1 or less, is off; without text guidance there is none at all, as in BAGEL.
    The result is shortened to the length of `cond`, by a factor not below `renorm_min`: over a whole sample ("global"),
    per token ("channel"), or per token before image guidance ("text_channel").
    """
    if text_drop is None or text_scale <= 1:
        return cond  # image guidance is off with it
    guided_by_text = text_drop + text_scale * (cond - text_drop)
    if renorm == "text_channel":  # nothing is shortened after image guidance
        return _image_guided(_no_longer_than(cond, guided_by_text, (-1,), renorm_min), image_drop, image_scale)
    # Per sample, as in R3: BAGEL takes one norm over the batch, so that an image depends on its neighbors.
    axes = (-2, -1) if renorm == "global" else (-1,)
    return _no_longer_than(cond, _image_guided(guided_by_text, image_drop, image_scale), axes, renorm_min)


def _image_guided(v: Tensor, image_drop: Tensor | None, scale: float) -> Tensor:
    if image_drop is None or scale <= 1:
        return v
    return image_drop + scale * (v - image_drop)


def _no_longer_than(cond: Tensor, v: Tensor, axes: tuple[int, ...], renorm_min: float) -> Tensor:
    """`v`, shortened to the length of `cond` over `axes`."""
    norm, cond_norm = (torch.linalg.vector_norm(each.float(), dim=axes, keepdim=True) for each in (v, cond))
    return v * (cond_norm / (norm + 1e-8)).clamp(renorm_min, 1.0)  # 1e-8 as in the release


def _column(value: float | Tensor, x: Tensor) -> Tensor:
    """One number, or `[batch]`, shaped so that it meets `x [batch *sample]`."""
    return torch.as_tensor(value, dtype=torch.float32, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
