"""Sampling: tokens from logits, and images by flow steps, as functions over a `Network`.

The log-probability that is stored with a token is that of the distribution it was really drawn from: temperature and
filter included. Re-scoring uses the same temperature and the very set of tokens that the filter kept, so a ratio is 1
before an update.
Filters: top-p (over at most the 1000 largest logits, with the token that crosses the threshold) where top_p < 1,
otherwise top-k where top_k > 0; never both, as in the R3 release. Temperature 0 is greedy.
Branches of guidance are further rows of the same forward. Every row has generators of its own, on the CPU, so that a
seed means the same whatever the device and whoever else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.errors import ConfigError, NotFiniteError
from triptych.model import flow
from triptych.model.config import Renorm, Sampling
from triptych.model.kv_cache import KVCache
from triptych.model.network import Network
from triptych.model.packing import Block, Latent, Pack, Tokens
from triptych.trace import Completion, SDESteps

OnText = Callable[[int, str], None]  # row, text so far
OnStep = Callable[[int, int], None]  # steps done, steps in all

TOP_P_LIMIT = 1000  # most tokens that top-p may keep, as in the release: no sort of 152,064 logits
FLOAT64_DEVICES = ("cpu", "cuda")  # known to have float64; Apple's does not


# --- text -----------------------------------------------------------------------------------------------------------


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
    if temperature == 0:  # the limit: all probability on the first of the largest logits
        return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / temperature
    return (scaled if kept is None else scaled.masked_fill(~kept, -torch.inf)).log_softmax(-1)


def kept_tokens(
    logits: Float[Tensor, "*rows vocab"], temperature: float, top_k: int, top_p: float
) -> Bool[Tensor, "*rows vocab"] | None:
    """Which tokens the filter keeps, or None without a filter or at temperature 0."""
    if temperature == 0 or (top_p >= 1 and top_k <= 0):
        return None
    scaled = logits.float() / temperature  # before top-p, whose set depends on it; top-k's does not
    vocabulary = scaled.shape[-1]
    none = torch.zeros_like(scaled, dtype=torch.bool)
    if top_p >= 1:
        return none.scatter(-1, scaled.topk(min(top_k, vocabulary)).indices, True)
    # Softmax over all tokens first: the largest 1000 need not sum to 1.
    probability, ids = scaled.softmax(-1).topk(min(TOP_P_LIMIT, vocabulary))
    keep = probability.cumsum(-1) - probability < top_p  # the more likely tokens do not reach top_p yet
    keep[..., 0] = True  # also where top_p is 0
    return none.scatter(-1, ids, keep)


def kept_ids(kept: Bool[Tensor, "batch vocab"]) -> list[np.ndarray]:
    """The kept tokens of each row as sorted ids, int32: some tens of them where a mask has 152,064 places."""
    ids = kept.nonzero()[:, 1].to(torch.int32).cpu().numpy()
    return np.split(ids, kept.sum(1).cumsum(0)[:-1].cpu().numpy())


def draw_tokens(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"], Bool[Tensor, "batch vocab"] | None]:
    """One token per row, its log-probability, and the tokens that the filter kept (None without a filter).

    Row i draws one number from `generators[i]` and from no other. Generators may live on the CPU whatever the device of
    the logits.
    """
    if len(generators) != len(logits):
        raise ValueError(f"{len(generators)} generators for {len(logits)} rows; give one generator per row")
    kept = kept_tokens(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    logprobs = log_distribution(logits, sampling.temperature, kept)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)  # no generator moves: greedy text does not depend on a seed
        return tokens, torch.zeros_like(tokens, dtype=torch.float32), None
    # A number for each row: `multinomial` draws for a whole batch, so that a token would depend on the rows beside it.
    uniform = [torch.rand((), generator=each, device=each.device, dtype=torch.float64) for each in generators]
    # Inverse of the distribution function; float64, since the tail of a large vocabulary is lost in float32 sums.
    device = logprobs.device if logprobs.device.type in FLOAT64_DEVICES else torch.device("cpu")
    cumulative = logprobs.to(device).double().exp().cumsum(-1)
    # Times the last sum, which is 1 but for rounding; `right`, so that a token of probability 0 is never drawn.
    thresholds = torch.stack(uniform).to(device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True).to(logprobs.device)
    # Sums that are NaN find a place behind the last token: a read out of bounds, which on a GPU ends the process.
    tokens = tokens.clamp(max=logprobs.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0], kept


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
    logprobs = log_distribution(logits, temperature, kept)
    # entr(p) is -p log p, and 0 at p = 0, where -inf of a filtered token times 0 would be NaN.
    return logprobs.gather(-1, tokens[..., None])[..., 0], torch.special.entr(logprobs.detach().exp()).sum(-1)


@torch.no_grad()
def sample_text(
    network: Network,
    cache: KVCache,
    sampling: Sampling,
    max_tokens: int,
    seeds: Sequence[int],
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue each row of `cache` as text, at most `max_tokens` tokens, the end token included.

    `cache` is not changed. A row that has ended leaves the batch. Raises NotFiniteError for the rows whose logits were
    NaN or infinite, after the others have ended.
    """
    cache = cache.copy(max_tokens)
    active = list(range(cache.batch))  # numbers of the rows that have not ended
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens: list[list[int]] = [[] for _ in active]
    logprobs: list[list[float]] = [[] for _ in active]
    kept: list[list[np.ndarray]] = [[] for _ in active]
    lost: list[int] = []
    special = network.special
    hidden = network.extend(cache, [[Tokens([special.bos])] for _ in active])  # a sampled text is a block, too
    while active:
        logits = network.logits(hidden[:, -1])
        drawn, scores, mask = draw_tokens(logits, sampling, [generators[row] for row in active])
        # Seen by the score, which is read below anyhow: a flag of its own would be a wait for the GPU in every step.
        scores = scores.masked_fill(~logits.isfinite().all(-1), torch.nan)
        if mask is not None:
            for row, ids in zip(active, kept_ids(mask), strict=True):
                kept[row].append(ids)
        unfinished = []
        for slot, (row, token, score) in enumerate(zip(active, drawn.tolist(), scores.tolist(), strict=True)):
            tokens[row].append(token)  # the end token too: stopping is trained, which the R3 release does not
            logprobs[row].append(score)
            if math.isnan(score):
                lost.append(row)
                continue
            if on_text is not None:
                # The whole text so far: a token may be a part of a character, so that texts of tokens do not add up.
                on_text(row, network.decode_text(tokens[row]))
            if token != special.eos and len(tokens[row]) < max_tokens:
                unfinished.append(slot)
        if not unfinished:
            break
        if len(unfinished) < len(active):  # BAGEL decodes a batch until row 0 ends
            order = cache.retain(unfinished)
            drawn, active = drawn[order], [active[slot] for slot in order]
        hidden = network.extend_by_tokens(cache, drawn)
    if lost:
        raise NotFiniteError("logits", sorted(lost))
    return [
        Completion(network.decode_text(ids), np.array(ids, np.int64), np.array(scores, np.float32), tuple(sets) or None)
        for ids, scores, sets in zip(tokens, logprobs, kept, strict=True)
    ]


# --- images ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branches:
    """The caches of a guided drawing: with everything, without the text, without the image (None is off)."""

    cond: KVCache
    text_drop: KVCache | None = None
    image_drop: KVCache | None = None

    def active(self) -> list[KVCache]:
        return [branch for branch in (self.cond, self.text_drop, self.image_drop) if branch is not None]

    def select(self, rows: Sequence[int]) -> Branches:
        """The given rows of every branch; a row may repeat."""
        drops = (None if drop is None else drop.select(rows) for drop in (self.text_drop, self.image_drop))
        return Branches(self.cond.select(rows), *drops)


def draw_branches(
    network: Network, prompts: Sequence[str], plans: Sequence[Completion | None], sampling: Sampling
) -> Branches:
    """Prompts and plans, read for drawing; without the text means without both, as in R3."""
    blocks = [network.draw_blocks(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]
    cond = network.prefill([shared for shared, _ in blocks])
    text_drop = cond.copy() if sampling.text_guidance > 1 else None  # before `cond` reads on: the system prompt alone
    network.extend(cond, [text for _, text in blocks])
    return Branches(cond, text_drop)


def edit_branches(
    network: Network, images: Sequence[Sequence[Block]], instructions: Sequence[Sequence[Block]], sampling: Sampling
) -> Branches:
    """Images and instructions (`Network.edit_blocks`), read for editing; each drop branch reads one of the two.

    The image is guided only where the text is, as in BAGEL.
    """
    cond = network.prefill(images)
    text_drop = cond.copy() if sampling.text_guidance > 1 else None  # the images are encoded once for both branches
    image_drop = None if text_drop is None or sampling.image_guidance <= 1 else network.prefill(instructions)
    network.extend(cond, instructions)
    return Branches(cond, text_drop, image_drop)


@dataclass(frozen=True)
class DenoisingState:
    """What all flow steps of a batch share: its branches, and packed noise blocks behind them."""

    branches: Branches
    pack: Pack  # a noise block for each row of `branches.cond`
    stacked: KVCache | None  # all branches as one batch, None where only one is active
    stacked_pack: Pack

    @staticmethod
    def of(network: Network, branches: Branches, grid: tuple[int, int]) -> DenoisingState:
        active, tokens = branches.active(), grid[0] * grid[1]
        # Layout and mask are the same in every step: packed once, with latents and time put in by `Pack.at`.
        block = Latent(torch.zeros(tokens, network.config.latent_dim), grid, time=1.0)
        rows: list[list[Block]] = [[block]] * branches.cond.batch
        pack = network.framed(network.pack(rows, branches.cond.position), branches.cond)
        if len(active) == 1:
            return DenoisingState(branches, pack, None, pack)
        # One forward for all branches: a step of BAGEL-7B takes 93 ms, not 186; 257, not 266, for 4 (`LOG.md` E56).
        stacked = KVCache.cat(active, extra=tokens + 2)  # 2: the brackets of the noise block
        packed = network.pack(rows * len(active), stacked.position)
        return DenoisingState(branches, pack, stacked, network.framed(packed, stacked))

    def velocity(
        self,
        network: Network,
        x: Float[Tensor, "batch patch latent"],
        time: float,
        renorm: Renorm,
        sampling: Sampling,
    ) -> Float[Tensor, "batch patch latent"]:
        """The velocity, in float32, at `x`, guided where guidance acts at `time`."""
        if self.stacked is None or not flow.guided(time, sampling.guidance_interval):
            return network.pack_velocity(self.pack.at(x, time), self.branches.cond)
        repeated = x.repeat(len(self.branches.active()), 1, 1)
        velocities = network.pack_velocity(self.stacked_pack.at(repeated, time), self.stacked)
        return combine(velocities, self.branches, renorm, sampling)


def combine(
    velocities: Float[Tensor, "row patch latent"], branches: Branches, renorm: Renorm, sampling: Sampling
) -> Float[Tensor, "batch patch latent"]:
    """Guidance over the rows of one forward, stacked branch after branch as in `Branches.active`."""
    parts = list(velocities.chunk(len(branches.active())))
    cond = parts.pop(0)
    text_drop = parts.pop(0) if branches.text_drop is not None else None
    image_drop = parts.pop(0) if branches.image_drop is not None else None
    return flow.guide(
        cond, text_drop, image_drop, sampling.text_guidance, sampling.image_guidance, renorm, sampling.renorm_min
    )


def initial_noise(network: Network, seeds: Sequence[int], grid: tuple[int, int]) -> Float[Tensor, "batch patch latent"]:
    """Standard normal numbers in float32, a function of each row's seed alone."""
    shape = (grid[0] * grid[1], network.config.latent_dim)
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(network.device)


@torch.no_grad()
def sample_flow(
    network: Network,
    branches: Branches,
    grid: tuple[int, int],
    noise: Float[Tensor, "batch patch latent"],
    points: int,
    renorm: Renorm,
    eta: float,
    sampling: Sampling,
    sde_seeds: Sequence[int] | None = None,
    on_step: OnStep | None = None,
    copies: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "copy patch latent"], list[SDESteps | None]]:
    """From `noise` to latent tokens, along the schedule of `points`.

    Steps in `sampling.sde_indices` are SDE steps, whose states, means and log-probabilities are kept; the others are
    ODE steps. With `copies` the result has a row for each of them, made from the row of that number: they are one until
    the first SDE step, and each has its own of `sde_seeds`. Raises NotFiniteError for rows that did not stay finite.
    """
    times = flow.times(points, sampling.time_shift)
    copies = list(range(len(noise)) if copies is None else copies)
    expanded = copies == list(range(len(noise)))
    state = DenoisingState.of(network, branches, grid)
    generators = [torch.Generator().manual_seed(seed) for seed in sde_seeds or ()]
    record: list[_SDEStep] = []
    # States stay in float32: the R3 release stores rounded ones, which score otherwise than the ones it drew.
    x = noise.float()
    for index in range(points - 1):
        # dt by float32 subtraction, as the release: the difference of the two as Python floats rounds otherwise.
        time, dt = float(times[index]), float(times[index] - times[index + 1])
        v = state.velocity(network, x, time, renorm, sampling)
        if index in sampling.sde_indices:
            if not expanded:  # from here on copies of a row differ
                x, v, expanded = x[copies], v[copies], True
                state = DenoisingState.of(network, branches.select(copies), grid)
            mean, std = flow.sde_mean_std(x, v, time, dt, eta, sampling.eta_mode)
            step_noise = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators]).to(x.device)
            after = mean + std * step_noise
            # Both ends of each step, since SDE steps may have ODE steps between them.
            record.append(_SDEStep(index, x, after, mean, time, dt, flow.step_logprob(after, mean, std)))
            x = after
        else:
            x = flow.ode_step(x, v, dt)
        if on_step is not None:
            on_step(index + 1, points - 1)
    x = x if expanded else x[copies]
    # Once, behind the last step: a velocity that is NaN or infinite leaves no later state finite.
    if lost := [row for row, finite in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not finite]:
        raise NotFiniteError("velocities", lost)
    return x, _sde_steps(record, len(copies))


@dataclass(frozen=True)
class _SDEStep:
    """One SDE step of a batch, by the names of `SDESteps`."""

    index: int
    before: Float[Tensor, "batch patch latent"]
    after: Float[Tensor, "batch patch latent"]
    mean: Float[Tensor, "batch patch latent"]
    time: float
    dt: float
    logprob: Float[Tensor, "batch"]


def _sde_steps(record: Sequence[_SDEStep], batch: int) -> list[SDESteps | None]:
    """The SDE steps of each row, in NumPy."""
    if not record:
        return [None] * batch
    index = np.array([step.index for step in record])
    time, dt = (np.array([getattr(step, name) for step in record], np.float32) for name in ("time", "dt"))
    before, after, mean, logprob = (
        torch.stack([getattr(step, name) for step in record]).cpu().numpy()
        for name in ("before", "after", "mean", "logprob")
    )
    return [
        SDESteps(before[:, row], after[:, row], time, dt, logprob[:, row], index, mean[:, row]) for row in range(batch)
    ]
