"""Log-probabilities, with gradient, of what the sampler drew.

They repeat exactly what the sampler used: the blocks of that beat (`Network.*_blocks`), temperature and filters,
guidance with all its branches and the renorm of that beat, and the stored float32 states. So before an update the ratio
to the recorded probability is 1. The sampler reads through a cache; here each row is read whole, in one pass.
Both halves differ from the R3 release, which scores texts at temperature 1 without the filter that drew them, and first
images without text guidance, so that its ratios are not 1 before an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triptych.model import flow
from triptych.model.config import Sampling
from triptych.model.network import Encoded, Network
from triptych.model.packing import Block, Latent, Tokens
from triptych.model.sampler import token_logprobs
from triptych.trace import Completion, SDESteps

NUDGE = 0.01  # relative change of a guidance scale, for the slope of a mean: guidance is near linear in it
Velocities = dict[tuple[int, int, int], Float[Tensor, "patch latent"]]  # by image, branch of guidance and SDE step


@dataclass(frozen=True, eq=False)
class TextSample:
    """A text as it was sampled: the plan of a prompt, or, with an `image`, a reflection on it."""

    prompt: str
    image: np.ndarray | None
    completion: Completion  # with `kept`, where a filter drew it


@dataclass(frozen=True, eq=False)
class ImageSample:
    """The SDE steps of an image: of a drawing after a `text` and perhaps a plan, or, with an `image`, of its edit."""

    text: str  # the prompt of a drawing, the instruction of an edit
    plan: Completion | None
    image: np.ndarray | None
    sde_steps: SDESteps


@dataclass(frozen=True, eq=False)
class TextLogprobs:
    """Log-probability and entropy (nats) of every token, 0 where `mask` is False; `mask` covers the end token."""

    logprob: Float[Tensor, "row time"]
    entropy: Float[Tensor, "row time"]
    mask: Bool[Tensor, "row time"]


@dataclass(frozen=True, eq=False)
class SDELogprobs:
    """One image's SDE steps: log-probability, and the Gaussian that each was drawn from."""

    logprob: Float[Tensor, "step"]
    mean: Float[Tensor, "step patch latent"]
    std: Float[Tensor, "step 1 1"]
    # By how much `mean` moves per relative change of a guidance scale; 0 where that guidance is off. Without gradient.
    text_slope: Float[Tensor, "step patch latent"]
    image_slope: Float[Tensor, "step patch latent"]


def text_logprobs(network: Network, samples: Sequence[TextSample], sampling: Sampling) -> TextLogprobs:
    """Log-probabilities of texts that were drawn with `sampling`, in one forward.

    Raises ValueError for plans beside reflections where `sampling` has two temperatures: score them apart.
    """
    plans = [sample.image is None for sample in samples]
    if any(plans):
        if not all(plans) and sampling.planning.temperature != sampling.temperature:
            raise ValueError(
                f"plans at temperature {sampling.planning.temperature} beside reflections at {sampling.temperature}; "
                "expected texts of one temperature: score them apart"
            )
        sampling = sampling.planning
    # Behind BOS, whose hidden state predicts the first token; each hidden state predicts the token behind its own.
    # The last token is predicted and not read, so that a row ends with the hidden state that predicts it.
    encoded: Encoded = {}
    rows = [
        [*_context(network, sample, encoded), Tokens([network.special.bos, *sample.completion.tokens[:-1].tolist()])]
        for sample in samples
    ]
    pack = network.pack(rows)
    hidden, _ = network(pack)
    lengths = torch.tensor([len(sample.completion.tokens) for sample in samples], device=hidden.device)
    time = torch.arange(int(lengths.max()), device=hidden.device)
    mask = time < lengths[:, None]
    # A row ends with BOS and all tokens but the last, as many as it has tokens: its last `lengths` slots predict them.
    ends = pack.layout.valid[:, : pack.und].sum(1)
    # Clamped, so that places behind the end of a short row index a slot that exists; the mask zeroes them.
    slots = (ends - lengths)[:, None] + time.clamp(max=lengths[:, None] - 1)
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.completion.tokens)] = torch.from_numpy(sample.completion.tokens)
    # Gathered before the head: logits of a context that has no loss would take vocabulary-wide rows of memory.
    logits = network.logits(hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1])))
    kept = _kept(samples, logits.shape[-1], sampling)
    kept = None if kept is None else kept.to(hidden.device)
    logprob, entropy = token_logprobs(logits, tokens.to(hidden.device), sampling.temperature, kept)
    return TextLogprobs(logprob.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0), mask)


def sde_logprobs(network: Network, samples: Sequence[ImageSample], sampling: Sampling) -> list[SDELogprobs]:
    """Log-probabilities of the SDE steps of images that were drawn with `sampling`, all branches in one forward."""
    rows: list[list[Block]] = []
    keys: list[tuple[int, int, int]] = []  # of every noise block, in the order of the rows
    encoded: Encoded = {}
    for number, sample in enumerate(samples):
        shared, text, image_drop, grid = _contexts(network, sample, sampling, encoded)
        # A step is scored at the float32 state from which it was taken; its `after` is read in `_step_logprobs`.
        before, times = torch.from_numpy(sample.sde_steps.before).to(network.device), sample.sde_steps.time.tolist()
        steps = range(len(times))
        # Outside the guidance interval the sampler ran no drop branch.
        guided = [step for step in steps if flow.guided(times[step], sampling.guidance_interval)]

        def noise(branch: int, taken: Sequence[int]) -> list[Block]:
            """Noise blocks of these steps; all share what is read before them, since no other token attends to one."""
            keys.extend((number, branch, step) for step in taken)  # noqa: B023  (called in this very round)
            return [Latent(before[step], grid, times[step], loss=True) for step in taken]  # noqa: B023

        # Without the text is where a row stands before it reads the text: one row has both branches.
        without_text = noise(1, guided) if sampling.text_guidance > 1 else []
        rows.append([*shared, *without_text, *text, *noise(0, steps)])
        if image_drop is not None and guided:
            rows.append([*image_drop, *noise(2, guided)])
    pack = network.pack(rows)
    _, hidden = network(pack)
    # `loss=True` marks the noise blocks: without it the clean latents of an edit would be read as velocities, too.
    flat = network.llm2vae(hidden.flatten(0, 1)[pack.mse_slots]).float()
    parts = flat.split([samples[number].sde_steps.before.shape[1] for number, _, _ in keys])
    velocities = dict(zip(keys, parts, strict=True))
    return [_step_logprobs(number, sample, velocities, sampling) for number, sample in enumerate(samples)]


def _context(network: Network, sample: TextSample, encoded: Encoded) -> list[Block]:
    if sample.image is None:
        return network.plan_blocks(sample.prompt)
    return network.reflect_blocks(sample.prompt, sample.image, encoded)


def _kept(samples: Sequence[TextSample], vocabulary: int, sampling: Sampling) -> Bool[Tensor, "row time vocab"] | None:
    """The tokens that the sampler's filter kept, all of them behind the end of a row; None without a filter."""
    if sampling.temperature == 0 or (sampling.top_p >= 1 and sampling.top_k <= 0):
        return None
    completions = [sample.completion for sample in samples]
    kept = torch.zeros(len(samples), max(len(each.tokens) for each in completions), vocabulary, dtype=torch.bool)
    for row, completion in enumerate(completions):
        if completion.kept is None:
            raise ValueError(
                f"{completion.text!r} has no record of the tokens that top_p={sampling.top_p:g} or "
                f"top_k={sampling.top_k} kept; expected a text that was drawn with this filter (Completion.kept)"
            )
        for step, ids in enumerate(completion.kept):
            kept[row, step, torch.from_numpy(ids).long()] = True
        kept[row, len(completion.tokens) :] = True  # a row without any token has a softmax of NaN, also in gradients
    return kept


def _contexts(
    network: Network, sample: ImageSample, sampling: Sampling, encoded: Encoded
) -> tuple[list[Block], list[Block], list[Block] | None, tuple[int, int]]:
    """What the branch without the text reads, what the conditioned one reads behind it, what the one without the image
    reads (None is off), and the rows and columns of the image's tokens."""
    if sample.image is None:
        # The text branch counts for first drawings too; the R3 release leaves it out in training.
        shared, text = network.draw_blocks(sample.text, sample.plan)
        return shared, text, None, network.config.token_grid
    latent, image, text = network.edit_blocks(sample.image, sample.text, encoded)
    guided = sampling.text_guidance > 1 and sampling.image_guidance > 1
    return image, text, text if guided else None, latent.grid


def _step_logprobs(number: int, sample: ImageSample, velocities: Velocities, sampling: Sampling) -> SDELogprobs:
    """Guide each step's velocities as the sampler did, and score the state that was drawn from its Gaussian."""
    edited = sample.image is not None
    # By the beat, not by the number of branches: the R3 release trains edits under another renorm than it draws with.
    renorm = sampling.edit_renorm if edited else sampling.draw_renorm
    eta = sampling.eta_edit if edited else sampling.eta_draw
    device, steps = velocities[number, 0, 0].device, sample.sde_steps
    before, after, time, dt = (
        torch.from_numpy(part).to(device) for part in (steps.before, steps.after, steps.time, steps.dt)
    )

    def mean_std(text: float = 1.0, image: float = 1.0) -> tuple[Tensor, Tensor]:
        """The Gaussian of each step, with guidance scales so many times as strong."""
        scales = text * sampling.text_guidance, image * sampling.image_guidance
        guided: list[Tensor] = []
        for step in range(len(steps.time)):
            cond, *drops = (velocities.get((number, branch, step)) for branch in range(3))
            assert cond is not None
            text_drop, image_drop = (None if drop is None else drop[None] for drop in drops)
            # One step at a time: "global" takes its norm over one image, and steps differ in which branches they have.
            guided.append(flow.guide(cond[None], text_drop, image_drop, *scales, renorm, sampling.renorm_min))
        return flow.sde_mean_std(before, torch.cat(guided), time, dt, eta, sampling.eta_mode)

    mean, std = mean_std()
    # By a finite difference: it holds for every renorm, and costs no forward, since velocities do not depend on scales.
    with torch.no_grad():
        slopes = [(mean_std(**{name: 1 + NUDGE})[0] - mean) / NUDGE for name in ("text", "image")]
    return SDELogprobs(flow.step_logprob(after, mean, std), mean, std, *slopes)
