"""The network: blocks in, hidden states out; a cache extended, a velocity predicted, images encoded and decoded.

What a beat reads is built here as blocks (packing.py), once for the verbs, which sample behind them, and for logprobs,
which score in one pass what was sampled. Sampling itself is in sampler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer
from torch import Tensor, nn

from triptych.errors import ModelError, NotFiniteError
from triptych.model import templates
from triptych.model.config import BagelConfig
from triptych.model.images import normalize, resize, to_pixels
from triptych.model.kv_cache import KVCache
from triptych.model.packing import Block, Latent, Pack, Text, View, grid_ids, pack_blocks
from triptych.model.transformer import LanguageModel
from triptych.model.vae import Autoencoder, patchify, unpatchify
from triptych.model.vision import Connector, PositionTable, VisionTower
from triptych.trace import Completion


class TimeEmbedder(nn.Module):
    """Time in [0, 1], unscaled: 128 frequencies, cosines first, then a two-layer MLP, as in BAGEL."""

    # Unscaled: DiT, whose embedding it is, takes times up to 1000. Added to the tokens, in place of DiT's AdaLN.

    def __init__(self, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, time: Float[Tensor, "batch token"]) -> Float[Tensor, "batch token hidden"]:
        """Equal times are embedded once."""
        if time.numel() == 1:  # a denoising step: a search for equal times would have a GPU wait
            return self.mlp(timestep_embedding(time[0]).to(next(self.mlp.parameters()).dtype))[None]
        times, index = torch.unique(time, return_inverse=True)  # a pack has thousands of tokens and a handful of times
        # Sinusoids in float32, and then cast: bfloat16 would round the times themselves.
        return self.mlp(timestep_embedding(times).to(next(self.mlp.parameters()).dtype))[index]


def timestep_embedding(time: Float[Tensor, "time"]) -> Float[Tensor, "time 256"]:
    """Cosines, then sines, of t * 10000^(-i/128)."""
    frequency = torch.exp(-np.log(10000.0) * torch.arange(128, device=time.device, dtype=torch.float32) / 128)
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


Encoded = dict[tuple[str, int], Any]  # blocks of images by kind and identity, of one call


def once(encoded: Encoded | None, kind: str, image: np.ndarray, encode: Callable[[np.ndarray], Any]) -> Any:
    """`encode(image)`, computed once for rows that hold the very same array, as siblings of a tree do."""
    if encoded is None:
        return encode(image)
    if (kind, id(image)) not in encoded:
        encoded[kind, id(image)] = encode(image)
    return encoded[kind, id(image)]


class Network(nn.Module):
    """The weights and their forward passes. Outside `autoencoder` names are those of the published ema.safetensors."""

    def __init__(
        self, config: BagelConfig, tokenizer: Tokenizer | None = None, special: templates.SpecialTokens | None = None
    ):
        super().__init__()
        self.config, self._tokenizer, self._special = config, tokenizer, special
        hidden = config.language.hidden_size
        # vit_* for understanding; latent_*, time_embedder, vae2llm and llm2vae for generation.
        self.language_model = LanguageModel(config.language)
        self.vit_model = VisionTower(config.vision)
        self.connector = Connector(config.vision.hidden_size, hidden)
        self.vit_pos_embed = PositionTable(config.vision.patches_per_side, hidden)
        self.latent_pos_embed = PositionTable(config.max_latent_size, hidden)
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
            raise ModelError(
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

    # --- forward passes -----------------------------------------------------------------------------------------------

    def pack(self, rows: Sequence[Sequence[Block]], start: Int[Tensor, "batch"] | None = None) -> Pack:
        """Lay blocks out for this model, from positions `start` on; see `packing.pack_blocks`."""
        return pack_blocks(rows, self.special, self.config.latent_dim, self.config.max_latent_size, self.device, start)

    def forward(
        self, pack: Pack, cache: KVCache | None = None, layer_outputs: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch und hidden"], Float[Tensor, "batch gen hidden"]]:
        """Hidden states after the final norms: of understanding tokens and of latents.

        Each layer's output for the understanding tokens, `[batch und hidden]`, is appended to `layer_outputs`.
        """
        und = self.language_model.model.embed_tokens(pack.ids)  # image brackets too, also those around latents
        if pack.views:
            vision = self.vision_tokens(pack.views).to(und.dtype)
            # In place of the embeddings of the zeros that stand for patches in `ids`.
            und = und.flatten(0, 1).index_copy(0, pack.view_slots, vision).view(und.shape)
        gen = self.latent_tokens(pack.latents, pack.time, pack.latent_ids)
        frame = pack.frame or self.language_model.model.frame(pack.layout, cache)
        return self.language_model.model(und, gen, frame, cache, layer_outputs)

    def framed(self, pack: Pack, cache: KVCache) -> Pack:
        """A pack that is used again and again behind a cache that stays as it is: its mask and positions, once."""
        return replace(pack, frame=self.language_model.model.frame(pack.layout, cache))

    def vision_tokens(self, views: Sequence[View]) -> Float[Tensor, "patch hidden"]:
        """Understanding tokens of the patches of all views, one view after the other; sizes may differ."""
        # Siblings look at one image: each view is encoded once.
        distinct = {id(view): view for view in views}
        if len(distinct) < len(views):
            counts = [view.patches.shape[0] for view in distinct.values()]
            tokens = dict(zip(distinct, self.vision_tokens(list(distinct.values())).split(counts), strict=True))
            return torch.cat([tokens[id(view)] for view in views])
        # Views of all rows are one padded batch of the tower: each attends to itself alone.
        counts = [view.patches.shape[0] for view in views]
        longest, side = max(counts), self.config.vision.patches_per_side
        patches = torch.zeros(len(views), longest, views[0].patches.shape[1], device=self.device)
        ids = torch.zeros(len(views), longest, dtype=torch.long)
        for index, view in enumerate(views):
            patches[index, : counts[index]] = view.patches
            ids[index, : counts[index]] = torch.from_numpy(grid_ids(view.grid, side))
        mask = torch.arange(longest)[None] < torch.tensor(counts)[:, None]
        ids, mask = ids.to(self.device), mask.to(self.device)
        unpadded = min(counts) == longest  # then no mask, which lets the tower take its faster kernel
        features = self.vit_model(patches.to(self.dtype), ids, None if unpadded else mask)
        # A second position, behind the tower's own: rotary positions are equal within an image.
        tokens = self.connector(features) + self.vit_pos_embed(ids)
        return tokens.flatten(0, 1) if unpadded else tokens[mask]

    def latent_tokens(
        self,
        latents: Float[Tensor, "batch gen latent"],
        time: Float[Tensor, "batch gen"] | Float[Tensor, "1 1"],
        ids: Int[Tensor, "batch gen"],
    ) -> Float[Tensor, "batch gen hidden"]:
        """Latents as decoder inputs; clean ones carry time 0 and its embedding too."""
        if latents.shape[1] == 0:  # text alone: nothing to embed, and no matrix product of nothing
            return latents.new_zeros(*latents.shape[:2], self.config.language.hidden_size, dtype=self.dtype)
        return self.vae2llm(latents.to(self.dtype)) + self.time_embedder(time) + self.latent_pos_embed(ids)

    def empty_cache(self, batch: int) -> KVCache:
        """A cache that holds nothing; its keys and values are kept in the dtype in which they are computed."""
        # Under autocast projections give bfloat16, whatever the weights are.
        autocast = torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if autocast else self.dtype
        return KVCache.empty(self.config.language, batch, self.device, dtype)

    def extend(self, cache: KVCache, rows: Sequence[Sequence[Block]]) -> Float[Tensor, "batch und hidden"]:
        """Append blocks to each row of `cache` in one forward; returns the hidden states of understanding tokens."""
        pack = self.pack(rows, cache.position)
        if pack.layout.valid.shape[1] == 0:  # the empty context of a drop branch
            return torch.zeros(len(rows), 0, self.config.language.hidden_size, device=self.device, dtype=self.dtype)
        hidden, _ = self(pack, cache)
        cache.advance(
            pack.layout.valid, pack.position, pack.full
        )  # only here: a denoising step leaves the cache as it was
        return hidden

    def extend_by_tokens(self, cache: KVCache, ids: Int[Tensor, "batch"]) -> Float[Tensor, "batch 1 hidden"]:
        """`extend` by one token a row, from ids on the device: no block is packed, and nothing waits for a GPU."""
        und = self.language_model.model.embed_tokens(ids[:, None])
        hidden, _ = self.language_model.model(und, und[:, :0], self.language_model.model.token_frame(cache), cache)
        cache.advance(torch.ones_like(ids, dtype=torch.bool)[:, None], cache.position + 1, full=True)
        return hidden

    def prefill(self, rows: Sequence[Sequence[Block]]) -> KVCache:
        """A cache that has read the blocks of each row."""
        cache = self.empty_cache(len(rows))
        self.extend(cache, rows)
        return cache

    def logits(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocab"]:
        """Next-token logits in float32."""
        # The sampler and the losses take log-softmax over up to 152,064 of them.
        return self.language_model.lm_head(hidden).float()

    def velocity(
        self, cache: KVCache, latents: Float[Tensor, "batch patch latent"], time: float, grid: tuple[int, int]
    ) -> Float[Tensor, "batch patch latent"]:
        """The velocity, in float32, at `latents`, all at one `time`; leaves `cache` as it was."""
        rows = [[Latent(tokens, grid, time)] for tokens in latents]  # a block with a time is a noise block
        return self.pack_velocity(self.pack(rows, cache.position), cache)

    def pack_velocity(self, pack: Pack, cache: KVCache) -> Float[Tensor, "batch patch latent"]:
        """The velocity of a packed noise block behind a cache, which stays as it was."""
        _, hidden = self(pack, cache)
        return self.llm2vae(hidden).float()

    def encode_images(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch latent"]:
        """Images in [-1, 1] to latent tokens (posterior mean)."""
        # The autoencoder keeps its own dtype (float32 from `weights.load`), and so takes its inputs in it.
        weight = self.autoencoder.encoder.conv_in.weight
        latent = self.autoencoder.encode(pixels.to(device=weight.device, dtype=weight.dtype))
        return patchify(latent.float(), self.config.latent_patch_size)

    def decode_images(
        self, tokens: Float[Tensor, "batch patch latent"], grid: tuple[int, int]
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """Latent tokens, row by row of `grid`, to images. Raises NotFiniteError, since NaN would be black pixels."""
        side = self.config.latent_patch_size
        latent = unpatchify(tokens, side, grid[0] * side, grid[1] * side)
        with torch.autocast(self.device.type, enabled=False):  # its own precision: bfloat16 costs visible detail
            pixels = self.autoencoder.decode(latent.to(self.autoencoder.decoder.conv_in.weight.dtype))
        if lost := [row for row, finite in enumerate(pixels.isfinite().flatten(1).all(1).tolist()) if not finite]:
            raise NotFiniteError("pixels of the decoder", lost)
        return to_pixels(pixels)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of sampled ids without the end token, think tags kept."""
        return templates.decode(self.tokenizer, [token for token in ids if token != self.special.eos])

    # --- what each beat reads (R3 release) ----------------------------------------------------------------------------

    def text_block(self, text: str, loss: bool = False) -> Text:
        return Text(templates.encode(self.tokenizer, text), loss)

    def system_blocks(self, text: str) -> list[Block]:
        """An empty system prompt is no block at all."""
        return [self.text_block(text)] if text else []

    def view_block(self, image: UInt8[np.ndarray, "height width 3"]) -> View:
        """An image for understanding: resized by the VAE's rule, then by the ViT's."""
        # Both towers see the same pixels: the release resizes for the VAE first, and that once more for the ViT.
        resized = resize(resize(image, self.config.vae_resize), self.config.vit_resize)
        side = self.config.vision.patch_size
        patches = patchify(normalize(resized)[None], side)[0]  # row, column, color within a patch, as latents
        return View(patches.to(self.device), (resized.shape[0] // side, resized.shape[1] // side))

    @torch.no_grad()  # latents are data: no loss trains the autoencoder through them
    def latent_block(self, image: UInt8[np.ndarray, "height width 3"]) -> Latent:
        """An image as clean latent tokens."""
        resized = resize(image, self.config.vae_resize)
        side = self.config.latent_downsample
        # One image at a time: in a batch padded to one size, group norm and attention would see the padding.
        tokens = self.encode_images(normalize(resized)[None])[0]
        return Latent(tokens, (resized.shape[0] // side, resized.shape[1] // side))

    def plan_blocks(self, prompt: str) -> list[Block]:
        # No chat template and no roles, as in BAGEL: each text is BOS, ids, EOS. A plan is the next text block.
        return [*self.system_blocks(self.config.templates.plan_system), self.text_block(prompt)]

    def draw_blocks(self, prompt: str, plan: Completion | None) -> tuple[list[Block], list[Block]]:
        """What every branch of guidance reads, and what the conditioned one alone reads: the prompt, and the plan.

        The plan is read token for token as it was sampled; its text is never tokenized again.
        """
        if plan is None:
            return [], [self.text_block(prompt)]  # without a plan no system prompt asks for one
        # `Text` adds BOS and EOS again; a plan that the limit cut gets an EOS too, as in the R3 release.
        ids = [token for token in plan.tokens.tolist() if token != self.special.eos]
        return self.system_blocks(self.config.templates.plan_system), [self.text_block(prompt), Text(ids)]

    def reflect_blocks(self, prompt: str, image: np.ndarray, encoded: Encoded | None = None) -> list[Block]:
        # The view without latents, as in BAGEL's question answering.
        wording = self.config.templates
        text = self.text_block(wording.reflect.format(prompt=prompt))
        view = once(encoded, "view", image, self.view_block)
        return [*self.system_blocks(wording.reflect_system), view, text]

    def edit_blocks(
        self, image: np.ndarray, instruction: str, encoded: Encoded | None = None
    ) -> tuple[Latent, list[Block], list[Block]]:
        """The image as latent tokens; these and its view; the instruction."""
        latent = once(encoded, "latent", image, self.latent_block)  # before the view, as BAGEL was trained
        # No system prompt, prompt or reflection: an edit is a function of the image and its instruction (R3).
        return latent, [latent, once(encoded, "view", image, self.view_block)], [self.text_block(instruction)]

    def answer_blocks(self, image: np.ndarray, question: str) -> list[Block]:
        wording = self.config.templates
        text = self.text_block(wording.answer.format(question=question))
        return [*self.system_blocks(wording.answer_system), self.view_block(image), text]
