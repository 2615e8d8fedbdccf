"""From logits to a token, and back to its log-probability.

The log-probability that is stored with a token is that of the distribution it was really drawn from: temperature and
filter included. Re-scoring uses the same temperature and the very set of tokens that the filter kept, so a ratio is 1
before an update.
Filters: top-p (over at most the 1000 largest logits, with the token that crosses the threshold) where top_p < 1,
otherwise top-k where top_k > 0; never both. Temperature 0 is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    return log_distribution(logits, temperature, kept_tokens(logits, temperature, top_k, top_p)).exp()


def log_distribution(
    logits: Float[Tensor, "*rows vocab"], temperature: float, kept: Bool[Tensor, "*rows vocab"] | None
) -> Float[Tensor, "*rows vocab"]:
    """Log-probabilities over the tokens that a filter kept (None: all), with gradient; -inf for the others."""
    logits = logits.float()
    if temperature == 0:
        return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / temperature
    return (scaled if kept is None else scaled.masked_fill(~kept, -torch.inf)).log_softmax(-1)


def draw_tokens(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"], Bool[Tensor, "batch vocab"] | None]:
    """One token per row, its log-probability, and the tokens that the filter kept (None without a filter).

    Row i draws one number from `generators[i]` and from no other. Generators may live on the CPU whatever the device of
    the logits, so that a seed means the same everywhere.
    """
    if len(generators) != len(logits):
        raise ValueError(f"{len(generators)} generators for {len(logits)} rows; give one generator per row")
    kept = kept_tokens(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    logs = log_distribution(logits, sampling.temperature, kept)
    if sampling.temperature == 0:
        tokens = logs.argmax(-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32), None
    draws = [torch.rand((), generator=each, device=each.device, dtype=torch.float64) for each in generators]
    # Inverse of the distribution function; float64, since the tail of a large vocabulary is lost in float32 sums.
    home = logs.device if logs.device.type in WIDE else torch.device("cpu")
    heights = logs.to(home).double().exp().cumsum(-1)
    marks = torch.stack(draws).to(home)[:, None] * heights[:, -1:]
    tokens = torch.searchsorted(heights, marks, right=True).to(logs.device)
    return tokens[:, 0], logs.gather(-1, tokens)[:, 0], kept


def token_logprobs(
    logits: Float[Tensor, "batch time vocab"],
    tokens: Int[Tensor, "batch time"],
    temperature: float,
    kept: Bool[Tensor, "batch time vocab"] | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Log-probabilities, with gradient, and entropies (nats) of tokens that were drawn at `temperature` from `kept`.

    `kept` is the record of the sampler, never a filter of these logits: their set would differ after an update, or by a
    rounding, and a ratio of probabilities over two sets means nothing. Raises ConfigError at temperature 0, where
    nothing can be learned.
    """
    if temperature == 0:
        raise ConfigError("temperature=0: greedy text has no gradient to learn from; set Sampling.temperature above 0")
    logs = log_distribution(logits, temperature, kept)
    return logs.gather(-1, tokens[..., None])[..., 0], torch.special.entr(logs.detach().exp()).sum(-1)


def kept_tokens(
    logits: Float[Tensor, "*rows vocab"], temperature: float, top_k: int, top_p: float
) -> Bool[Tensor, "*rows vocab"] | None:
    """Which tokens the filter keeps, or None without a filter or at temperature 0."""
    if temperature == 0 or (top_p >= 1 and top_k <= 0):
        return None
    scaled = logits.float() / temperature
    vocabulary = scaled.shape[-1]
    nobody = torch.zeros_like(scaled, dtype=torch.bool)
    if top_p >= 1:
        return nobody.scatter(-1, scaled.topk(min(top_k, vocabulary)).indices, True)
    likely, places = scaled.softmax(-1).topk(min(NUCLEUS, vocabulary))
    keep = likely.cumsum(-1) - likely < top_p  # what comes before a token does not yet fill the nucleus
    keep[..., 0] = True
    return nobody.scatter(-1, places, keep)


def kept_ids(kept: Bool[Tensor, "batch vocab"]) -> list[np.ndarray]:
    """The kept tokens of each row as sorted ids, int32: some tens of them where a mask has 152,064 places."""
    ids = kept.nonzero()[:, 1].to(torch.int32).cpu().numpy()
    return np.split(ids, kept.sum(1).cumsum(0)[:-1].cpu().numpy())
