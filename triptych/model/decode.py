"""From logits to a token, and back to its log-probability.

The log-probability that is stored with a token is that of the distribution it was really drawn from: temperature and
filter included. Re-scoring uses the same one, so a ratio is 1 before an update.
Filters: top-p (over at most the 1000 largest logits, with the token that crosses the threshold) where top_p < 1,
otherwise top-k where top_k > 0; never both. Temperature 0 is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.errors import ConfigError
from triptych.model.config import Sampling

NUCLEUS = 1000  # most tokens that top-p may keep, as in the release
WIDE = ("cpu", "cuda")  # devices that surely know float64; Apple's does not


def token_distribution(
    logits: Float[Tensor, "*rows vocab"], temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*rows vocab"]:
    """Probability with which each token is drawn; rows sum to 1, filtered tokens have exactly 0."""
    return _log_distribution(logits, temperature, top_k, top_p).exp()


def draw_tokens(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """One token per row and its log-probability; row i draws one number from `generators[i]` and from no other.

    Generators may live on the CPU whatever the device of the logits, so that a seed means the same everywhere.
    """
    if len(generators) != len(logits):
        raise ValueError(f"{len(generators)} generators for {len(logits)} rows; give one generator per row")
    logs = _log_distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    if sampling.temperature == 0:
        tokens = logs.argmax(-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32)
    draws = [torch.rand((), generator=each, device=each.device, dtype=torch.float64) for each in generators]
    # Inverse of the distribution function; float64, since the tail of a large vocabulary is lost in float32 sums.
    home = logs.device if logs.device.type in WIDE else torch.device("cpu")
    heights = logs.to(home).double().exp().cumsum(-1)
    marks = torch.stack(draws).to(home)[:, None] * heights[:, -1:]
    tokens = torch.searchsorted(heights, marks, right=True).to(logs.device)
    return tokens[:, 0], logs.gather(-1, tokens)[:, 0]


def token_logprobs(
    logits: Float[Tensor, "batch time vocab"], tokens: Int[Tensor, "batch time"], sampling: Sampling
) -> Float[Tensor, "batch time"]:
    """Log-probabilities of tokens that were drawn with `sampling`, with gradient.

    A drawn token counts as kept by the filter: an update that pushes it below the threshold makes it unlikely, not
    impossible, and the ratio stays finite. Raises ConfigError at temperature 0, where nothing can be learned.
    """
    if sampling.temperature == 0:
        raise ConfigError("temperature=0: greedy text has no gradient to learn from; set Sampling.temperature above 0")
    drawn = tokens[..., None]
    scaled = logits.float() / sampling.temperature
    kept = _kept(scaled.detach(), sampling.top_k, sampling.top_p)
    if kept is not None:
        scaled = scaled.masked_fill(~kept.scatter(-1, drawn, True), -torch.inf)
    return scaled.log_softmax(-1).gather(-1, drawn)[..., 0]


def _log_distribution(
    logits: Float[Tensor, "*rows vocab"], temperature: float, top_k: int, top_p: float
) -> Float[Tensor, "*rows vocab"]:
    """Log of the distribution over the last axis; -inf where nothing is ever drawn."""
    logits = logits.float()
    if temperature == 0:
        return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / temperature
    kept = _kept(scaled, top_k, top_p)
    return (scaled if kept is None else scaled.masked_fill(~kept, -torch.inf)).log_softmax(-1)


def _kept(scaled: Float[Tensor, "*rows vocab"], top_k: int, top_p: float) -> Bool[Tensor, "*rows vocab"] | None:
    """Which tokens the filter keeps, or None without a filter."""
    if top_p >= 1 and top_k <= 0:
        return None
    vocabulary = scaled.shape[-1]
    nobody = torch.zeros_like(scaled, dtype=torch.bool)
    if top_p >= 1:
        return nobody.scatter(-1, scaled.topk(min(top_k, vocabulary)).indices, True)
    likely, places = scaled.softmax(-1).topk(min(NUCLEUS, vocabulary))
    keep = likely.cumsum(-1) - likely < top_p  # what comes before a token does not yet fill the nucleus
    keep[..., 0] = True
    return nobody.scatter(-1, places, keep)
