"""The body of the model: blocks in, hidden states out; a context read, a text written, a picture painted.

`Bagel` (bagel.py) gives it its verbs. Branches of guidance are further rows of the same forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from triptych.model import flow, sampler, templates
from triptych.model.config import BagelConfig, Renorm, Sampling
from triptych.model.images import to_pixels
from triptych.model.kv_cache import KVCache
from triptych.model.packing import Block, Latent, Pack, Tokens, View, grid_ids, pack_blocks
from triptych.model.transformer import LanguageModel
from triptych.model.vae import Autoencoder, patchify, unpatchify
from triptych.model.vision import Connector, PlaceTable, VisionTower
from triptych.trace import Completion, SDESteps

OnText = Callable[[int, str], None]  # row, text so far
OnStep = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Branches:
    """The contexts of a guided drawing: with everything, without the text, without the picture (None is off)."""

    cond: KVCache
    text_drop: KVCache | None = None
    image_drop: KVCache | None = None

    def active(self) -> list[KVCache]:
        return [branch for branch in (self.cond, self.text_drop, self.image_drop) if branch is not None]

    def keep(self, rows: Sequence[int]) -> Branches:
        """The given rows of every branch; a row may repeat."""
        kept = (None if part is None else part.keep(rows) for part in (self.text_drop, self.image_drop))
        return Branches(self.cond.keep(rows), *kept)


@dataclass(frozen=True)
class DenoisingState:
    """The contexts of a painting, their stack where there is guidance, and the packed noise blocks behind each."""

    branches: Branches
    guided: KVCache | None
    block: Pack
    blocks: Pack


class TimeEmbedder(nn.Module):
    """Time in [0, 1], unscaled: 128 frequencies, cosines first, then a two-layer MLP (parity kit b.5)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, time: Tensor) -> Tensor:
        """`time [batch token]` to `[batch token hidden]`; equal times are embedded once."""
        distinct, index = torch.unique(time, return_inverse=True)
        return self.mlp(time_wave(distinct).to(next(self.mlp.parameters()).dtype))[index]


def time_wave(time: Tensor) -> Tensor:
    """`[n]` to `[n 256]`: cosines, then sines, of t * 10000^(-i/128)."""
    frequency = torch.exp(-np.log(10000.0) * torch.arange(128, device=time.device, dtype=torch.float32) / 128)
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Network(nn.Module):
    """The weights and what they can do. Outside `autoencoder` names are those of the published ema.safetensors."""

    def __init__(
        self, config: BagelConfig, tokenizer: Tokenizer | None = None, special: templates.SpecialTokens | None = None
    ):
        super().__init__()
        self.config, self._tokenizer, self._special = config, tokenizer, special
        hidden = config.language.hidden_size
        self.language_model = LanguageModel(config.language)
        self.vit_model = VisionTower(config.vision)
        self.connector = Connector(config.vision.hidden_size, hidden)
        self.vit_pos_embed = PlaceTable(config.vision.patches_per_side, hidden)
        self.latent_pos_embed = PlaceTable(config.max_latent_size, hidden)
        self.time_embedder = TimeEmbedder(hidden)
        self.vae2llm = nn.Linear(config.latent_dim, hidden)
        self.llm2vae = nn.Linear(hidden, config.latent_dim)
        self.autoencoder = Autoencoder(config.autoencoder)

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise templates.ModelError(
                "this checkpoint has no tokenizer; expected tokenizer.json beside its weights: put it there"
            )
        return self._tokenizer

    @property
    def special(self) -> templates.SpecialTokens:
        if self._special is None:
            self._special = templates.special_tokens(self.tokenizer)
        return self._special

    @property
    def device(self) -> torch.device:
        return self.vae2llm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae2llm.weight.dtype

    # --- the forward that everything shares -------------------------------------------------------------------------

    def pack(self, rows: Sequence[Sequence[Block]], start: Tensor | None = None) -> Pack:
        """Lay blocks out for this model; see `sequence.pack`."""
        return pack_blocks(rows, self.special, self.config.latent_dim, self.config.max_latent_size, self.device, start)

    def forward(
        self, batch: Pack, cache: KVCache | None = None, heard: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states `[batch und hidden]` and `[batch gen hidden]` after the final norms.

        `heard` gets what each layer makes of the understanding tokens `[batch und hidden]`, one after another.
        """
        und = self.language_model.model.embed_tokens(batch.ids)
        if batch.views:
            seen = self.see(batch.views).to(und.dtype)
            und = und.flatten(0, 1).index_copy(0, batch.view_slots, seen).view(und.shape)
        gen = self.embed_latents(batch.latents, batch.time, batch.latent_ids)
        return self.language_model.model(und, gen, batch.layout, cache, heard)

    def see(self, views: Sequence[View]) -> Tensor:
        """Understanding tokens `[all patches, hidden]` of pictures, one after the other; sizes may differ."""
        counts = [view.patches.shape[0] for view in views]
        most, side = max(counts), self.config.vision.patches_per_side
        patches = torch.zeros(len(views), most, views[0].patches.shape[1], device=self.device)
        ids = torch.zeros(len(views), most, dtype=torch.long)
        for index, view in enumerate(views):
            patches[index, : counts[index]] = view.patches
            ids[index, : counts[index]] = torch.from_numpy(grid_ids(view.grid, side))
        mask = torch.arange(most)[None] < torch.tensor(counts)[:, None]
        ids, mask = ids.to(self.device), mask.to(self.device)
        even = min(counts) == most
        features = self.vit_model(patches.to(self.dtype), ids, None if even else mask)
        tokens = self.connector(features) + self.vit_pos_embed(ids)
        return tokens.flatten(0, 1) if even else tokens[mask]

    def embed_latents(self, latents: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        """Latent tokens `[batch gen latent]` as decoder inputs; clean ones carry time 0 and its embedding too."""
        if latents.shape[1] == 0:
            return latents.new_zeros(*latents.shape[:2], self.config.language.hidden_size, dtype=self.dtype)
        return self.vae2llm(latents.to(self.dtype)) + self.time_embedder(time) + self.latent_pos_embed(ids)

    # --- reading and writing ----------------------------------------------------------------------------------------

    def blank(self, batch: int) -> KVCache:
        """A context that has read nothing; its keys and values are held as they are computed."""
        cast = torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if cast else self.dtype
        return KVCache.empty(self.config.language, batch, self.device, dtype)

    def read(self, context: KVCache, rows: Sequence[Sequence[Block]]) -> Tensor:
        """Append blocks to each row of `context` in one forward; returns hidden states `[batch und hidden]`."""
        batch = self.pack(rows, context.position)
        if batch.layout.valid.shape[1] == 0:
            return torch.zeros(len(rows), 0, self.config.language.hidden_size, device=self.device, dtype=self.dtype)
        hidden, _ = self(batch, context)
        context.advance(batch.layout.valid, batch.position)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32."""
        return self.language_model.lm_head(hidden).float()

    @torch.no_grad()
    def write(
        self, context: KVCache, sampling: Sampling, limit: int, seeds: Sequence[int], tell: OnText | None = None
    ) -> list[Completion]:
        """Continue each row as text, at most `limit` tokens, the end token included. `context` is not changed.

        A row that has ended leaves the batch.
        """
        start, alive = context.fork(), list(range(context.batch))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        tokens: list[list[int]] = [[] for _ in alive]
        logprobs: list[list[float]] = [[] for _ in alive]
        kept: list[list[np.ndarray]] = [[] for _ in alive]
        hidden = self.read(start, [[Tokens([self.special.bos])] for _ in alive])
        while alive:
            drawn, scores, left = sampler.draw_tokens(
                self.logits(hidden[:, -1]), sampling, [generators[row] for row in alive]
            )
            if left is not None:
                for row, ids in zip(alive, sampler.kept_ids(left), strict=True):
                    kept[row].append(ids)
            going = []
            for slot, (row, token, score) in enumerate(zip(alive, drawn.tolist(), scores.tolist(), strict=True)):
                tokens[row].append(token)
                logprobs[row].append(score)
                if tell is not None:
                    tell(row, self._text(tokens[row]))
                if token != self.special.eos and len(tokens[row]) < limit:
                    going.append(slot)
            if not going:
                break
            if len(going) < len(alive):
                start, drawn, alive = start.keep(going), drawn[going], [alive[slot] for slot in going]
            hidden = self.read(start, [[Tokens([token])] for token in drawn.tolist()])
        return [
            Completion(
                self._text(ids),
                np.asarray(ids, np.int64),
                np.asarray(scores, np.float32),
                tuple(left) if left else None,
            )
            for ids, scores, left in zip(tokens, logprobs, kept, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return templates.decode(self.tokenizer, [token for token in ids if token != self.special.eos])

    # --- painting ---------------------------------------------------------------------------------------------------

    def velocity(self, context: KVCache, latents: Tensor, time: float, grid: tuple[int, int]) -> Tensor:
        """The velocity `[batch patch latent]` float32 at `latents`, all at one `time`; leaves `context` as it was."""
        rows = [[Latent(tokens, grid, time)] for tokens in latents]
        return self.step(self.pack(rows, context.position), context)

    def step(self, batch: Pack, context: KVCache) -> Tensor:
        """Velocity of a packed noise block behind a context."""
        _, hidden = self(batch, context)
        return self.llm2vae(hidden).float()

    @torch.no_grad()
    def paint(
        self,
        branches: Branches,
        grid: tuple[int, int],
        noise: Tensor,
        points: int,
        renorm: Renorm,
        eta: float,
        sampling: Sampling,
        stroke_seeds: Sequence[int] | None = None,
        tick: OnStep | None = None,
        copies: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[SDESteps | None]]:
        """From `noise [batch patch latent]` to latent tokens, along the schedule of `points` (parity kit b.8, b.11).

        Steps in `sampling.sde_indices` are SDE steps, whose states, means and log-probabilities are kept; the others are
        ODE.
        With `copies` the result has a row for each of them, made from the row of that number: they are one until the
        first SDE step, and each has its own stroke seed.
        """
        times = flow.times(points, sampling.time_shift)
        copies = range(len(noise)) if copies is None else copies
        apart = list(copies) == list(range(len(noise)))
        easel = self._easel(branches, grid)
        generators = [torch.Generator().manual_seed(seed) for seed in stroke_seeds or ()]
        record: list[_SDEStep] = []
        x = noise.float()
        for index in range(points - 1):
            time, dt = float(times[index]), float(times[index] - times[index + 1])
            if easel.guided is None or not flow.guided(time, sampling.guidance_interval):
                v = self.step(easel.block.at(x, time), easel.branches.cond)
            else:
                many = x.repeat(len(easel.branches.active()), 1, 1)
                v = combine(self.step(easel.blocks.at(many, time), easel.guided), easel.branches, renorm, sampling)
            if index in sampling.sde_indices:
                if not apart:
                    x, v, apart = x[list(copies)], v[list(copies)], True
                    easel = self._easel(easel.branches.keep(copies), grid)
                mean, std = flow.sde_mean_std(x, v, time, dt, eta, sampling.eta_mode)
                fresh = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(
                    x.device
                )
                after = mean + std * fresh
                record.append(_SDEStep(index, x, after, mean, time, dt, flow.step_logprob(after, mean, std)))
                x = after
            else:
                x = flow.ode_step(x, v, dt)
            if tick is not None:
                tick(index + 1, points - 1)
        return x if apart else x[list(copies)], _sde_steps(record, len(copies))

    def _easel(self, branches: Branches, grid: tuple[int, int]) -> DenoisingState:
        """What the steps of a painting share: packed noise blocks, alone and for all branches at once."""
        active, blank = branches.active(), torch.zeros(grid[0] * grid[1], self.config.latent_dim)
        rows: list[list[Block]] = [[Latent(blank, grid, 1.0)]] * branches.cond.batch
        block = self.pack(rows, branches.cond.position)
        if len(active) == 1:
            return DenoisingState(branches, None, block, block)
        guided = KVCache.stack(active, extra=grid[0] * grid[1] + 2)
        return DenoisingState(branches, guided, block, self.pack(rows * len(active), guided.position))

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Pictures `[batch 3 height width]` in [-1, 1] to latent tokens `[batch patch latent]` (posterior mean)."""
        weight = self.autoencoder.encoder.conv_in.weight
        latent = self.autoencoder.encode(pixels.to(device=weight.device, dtype=weight.dtype))
        return patchify(latent.float(), self.config.latent_patch_size)

    def decode_pictures(self, tokens: Tensor, grid: tuple[int, int]) -> np.ndarray:
        """Latent tokens to pictures `[batch height width 3] uint8`."""
        side = self.config.latent_patch_size
        latent = unpatchify(tokens, side, grid[0] * side, grid[1] * side)
        with torch.autocast(self.device.type, enabled=False):  # its own precision: bfloat16 costs visible detail
            return to_pixels(self.autoencoder.decode(latent.to(self.autoencoder.decoder.conv_in.weight.dtype)))


def combine(velocities: Tensor, branches: Branches, renorm: Renorm, sampling: Sampling) -> Tensor:
    """Guidance over the rows of one forward, stacked branch after branch as in `Branches.active`."""
    parts = list(velocities.chunk(len(branches.active())))
    cond = parts.pop(0)
    text_drop = parts.pop(0) if branches.text_drop is not None else None
    image_drop = parts.pop(0) if branches.image_drop is not None else None
    return flow.guide(
        cond, text_drop, image_drop, sampling.text_guidance, sampling.image_guidance, renorm, sampling.renorm_min
    )


@dataclass(frozen=True)
class _SDEStep:
    """One SDE step of a batch: number, states and mean `[batch patch latent]`, time, step size, `logprob [batch]`."""

    index: int
    before: Tensor
    after: Tensor
    mean: Tensor
    time: float
    dt: float
    logprob: Tensor


def _sde_steps(record: Sequence[_SDEStep], batch: int) -> list[SDESteps | None]:
    """The SDE steps of each row."""
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
