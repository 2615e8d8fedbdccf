"""From blocks to a batch: a row is a list of blocks, and `pack_blocks` lays rows out for one forward.

The layout is BAGEL's: a text is BOS, ids, EOS at consecutive positions; an image is its tokens between two brackets,
all at one position; where an image is read by both encoders, its latents come before its view.

The same packing serves training (whole rows, no cache) and inference (what a row reads next, behind a `KVCache`), so
that both have the same tokens, positions and mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.model.templates import SpecialTokens
from triptych.model.transformer import Frame, PackLayout


@dataclass(frozen=True)
class Text:
    """Ids between BOS and EOS. With `loss`, all ids and the EOS are predicted, except those at indices `ignore`."""

    ids: Sequence[int]
    loss: bool = False
    ignore: Sequence[int] = ()


@dataclass(frozen=True)
class Tokens:
    """Ids as they are, nothing added: the tokens of an unfinished text, which the sampler appends one by one."""

    ids: Sequence[int]


@dataclass(frozen=True)
class View:
    """An image for understanding: patches in row-major order, `grid` = (rows, columns)."""

    patches: Float[Tensor, "patch pixel"]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Latent:
    """An image as latent tokens, clean where `time` is None, else noisy at that time."""

    tokens: Float[Tensor, "patch latent"]
    grid: tuple[int, int]
    time: float | None = None  # a block with a time is a noise block, also at 0: no other attends to it
    loss: bool = False  # of the velocity


Block = Text | Tokens | View | Latent


@dataclass(frozen=True)
class Pack:
    """A batch ready for the decoder. Slots are flat indices into `[batch und]`, or `[batch gen]` for latents."""

    ids: Int[Tensor, "batch und"]  # brackets included; 0 under views and padding
    views: tuple[View, ...]
    view_slots: Int[Tensor, "view_patch"]  # of all views, one after the other
    latents: Float[Tensor, "batch gen latent"]  # float32
    time: Float[Tensor, "batch gen"] | Float[Tensor, "1 1"]  # one number where all are at one time
    latent_ids: Int[Tensor, "batch gen"]  # rows of the position table
    layout: PackLayout
    position: Int[Tensor, "batch"]  # at which the next block of each row starts
    ce_slots: Int[Tensor, "ce"]  # und slots whose next token is to be predicted (cross entropy)
    ce_targets: Int[Tensor, "ce"]
    mse_slots: Int[Tensor, "mse"]  # latent slots of blocks with loss
    full: bool = False  # no row has padding
    frame: Frame | None = None  # of the layout behind some cache, where it is used again and again

    @property
    def und(self) -> int:
        """Width of the understanding part."""
        return self.ids.shape[1]

    def at(self, latents: Float[Tensor, "batch gen latent"], time: float) -> Pack:
        """The same batch with other latents, all at one time: a denoising step."""
        return replace(self, latents=latents, time=self.time.new_full((1, 1), time))


class _Row:
    """One row while it is laid out: what each field of `Pack` and `PackLayout` will hold for it, block by block."""

    def __init__(self, start: int):
        self.position, self.order, self.blocks = start, 0, 0
        self.ids: list[np.ndarray] = []
        self.und: list[np.ndarray] = []  # each [4 token]: position, order, block, noise
        self.gen: list[np.ndarray] = []
        self.view_slots: list[np.ndarray] = []
        self.ce: list[tuple[np.ndarray, np.ndarray]] = []  # slots, and the ids that follow them
        self.latents: list[Tensor] = []
        self.times: list[np.ndarray] = []
        self.latent_ids: list[np.ndarray] = []
        self.mse: list[np.ndarray] = []
        self.und_length = self.gen_length = 0  # tokens so far

    def add(self, block: Block, special: SpecialTokens, table_side: int) -> None:
        if isinstance(block, Text):
            self._add_text(np.array([special.bos, *block.ids, special.eos], np.int64), block.loss, block.ignore)
        elif isinstance(block, Tokens):
            self._add_text(np.array(block.ids, np.int64), False)
        elif isinstance(block, View):
            self._add_view(block, special)
        else:
            self._add_latent(block, special, table_side)

    # Images are bidirectional blocks with numbers of their own; text has block -1 and is causal by `order`.
    def _add_text(self, ids: np.ndarray, loss: bool, ignore: Sequence[int] = ()) -> None:
        slots = self._add_und(ids, block=-1, noise=False, advance=True)
        self.position += len(ids)
        if loss:  # slot i predicts token i + 1, so that index 0 of `ignore` is the token behind BOS
            self.ce.append((np.delete(slots[:-1], ignore), np.delete(ids[1:], ignore)))

    def _add_view(self, block: View, special: SpecialTokens) -> None:
        ids = np.zeros(block.grid[0] * block.grid[1] + 2, np.int64)
        ids[0], ids[-1] = special.start_of_image, special.end_of_image
        self.view_slots.append(self._add_und(ids, self.blocks, noise=False, advance=False)[1:-1])
        self.blocks += 1
        self.position += 1  # all tokens of an image share one; position tables tell them apart

    def _add_latent(self, block: Latent, special: SpecialTokens, table_side: int) -> None:
        noise, count = block.time is not None, block.grid[0] * block.grid[1]
        # The brackets are understanding tokens on both sides of the latents in `order`, though not in the slots.
        self._add_und(np.array([special.start_of_image]), self.blocks, noise, advance=False)
        self.gen.append(self._columns(count, self.blocks, noise, advance=False))
        self._add_und(np.array([special.end_of_image]), self.blocks, noise, advance=False)
        self.latents.append(block.tokens)
        # Clean latents have time 0, whose embedding is added like any other.
        self.times.append(np.full(count, block.time or 0.0, np.float32))
        self.latent_ids.append(grid_ids(block.grid, table_side))
        if block.loss:
            self.mse.append(np.arange(self.gen_length, self.gen_length + count))
        self.gen_length += count
        self.blocks += 1
        # Nothing follows on a noisy image: the next block, such as its clean copy in training, has the same position.
        # So several noise blocks behind one context each stand where the only one stands in sampling.
        self.position += not noise

    def _add_und(self, ids: np.ndarray, block: int, noise: bool, advance: bool) -> np.ndarray:
        self.und.append(self._columns(len(ids), block, noise, advance))
        self.ids.append(ids)
        slots = np.arange(self.und_length, self.und_length + len(ids))
        self.und_length += len(ids)
        return slots

    def _columns(self, count: int, block: int, noise: bool, advance: bool) -> np.ndarray:
        order = np.arange(self.order, self.order + count)
        self.order += count  # brackets and latents count in one order, though they lie in two parts of the batch
        position = np.arange(self.position, self.position + count) if advance else np.full(count, self.position)
        return np.stack([position, order, np.full(count, block), np.full(count, int(noise))])


def grid_ids(grid: tuple[int, int], table_side: int) -> np.ndarray:
    """Rows of a position table of that side for a grid, row-major: row * side + column."""
    # The top left corner of a fixed grid, without interpolation: a small image has the ids of a large one's corner.
    return (np.arange(grid[0])[:, None] * table_side + np.arange(grid[1])).reshape(-1)


def pack_blocks(
    rows: Sequence[Sequence[Block]],
    special: SpecialTokens,
    latent_dim: int,
    table_side: int,
    device: torch.device,
    start: Int[Tensor, "batch"] | None = None,
) -> Pack:
    """Lay rows of blocks out; `start` is the position of each row's first block (0 without a cache)."""
    starts = [0] * len(rows) if start is None else start.tolist()
    # In NumPy, and moved to the device at the end: one copy for each field, not one for each block.
    layouts = [_Row(position) for position in starts]
    for layout, blocks in zip(layouts, rows, strict=True):
        for block in blocks:
            layout.add(block, special, table_side)
    batch, und, gen = len(rows), max(row.und_length for row in layouts), max(row.gen_length for row in layouts)
    columns = np.zeros((4, batch, und + gen), np.int64)  # position, order, block, noise
    columns[2] = -1  # padding belongs to no image block
    valid = np.zeros((batch, und + gen), bool)
    ids, latent_ids = np.zeros((batch, und), np.int64), np.zeros((batch, gen), np.int64)
    time = np.zeros((batch, gen), np.float32)
    for index, row in enumerate(layouts):
        if row.und_length:
            columns[:, index, : row.und_length] = np.concatenate(row.und, axis=1)
            ids[index, : row.und_length] = np.concatenate(row.ids)
            valid[index, : row.und_length] = True
        if row.gen_length:
            # Behind the longest row's understanding tokens, so that one slice of the batch is each expert's.
            columns[:, index, und : und + row.gen_length] = np.concatenate(row.gen, axis=1)
            latent_ids[index, : row.gen_length] = np.concatenate(row.latent_ids)
            time[index, : row.gen_length] = np.concatenate(row.times)
            valid[index, und : und + row.gen_length] = True

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Pack(
        ids=put(ids),
        views=tuple(block for row in rows for block in row if isinstance(block, View)),
        view_slots=put(_flat([(index * und, row.view_slots) for index, row in enumerate(layouts)])),
        latents=_gather_latents(layouts, gen, latent_dim, device),
        time=put(time),
        latent_ids=put(latent_ids),
        layout=PackLayout(
            *(put(columns[0]), put(columns[1]), put(columns[2]), put(columns[3] > 0), put(valid)),
            _everyone(columns, valid),
        ),
        full=bool(valid.all()),
        position=torch.tensor([row.position for row in layouts], dtype=torch.long, device=device),
        ce_slots=put(_flat([(index * und, [slots for slots, _ in row.ce]) for index, row in enumerate(layouts)])),
        # Targets are ids, and not slots: no offset.
        ce_targets=put(_flat([(0, [targets for _, targets in row.ce]) for row in layouts])),
        mse_slots=put(_flat([(index * gen, row.mse) for index, row in enumerate(layouts)])),
    )


def _everyone(columns: np.ndarray, valid: np.ndarray) -> bool:
    """Whether every token of a batch may attend to every token of its row."""
    block = columns[2]
    one_block = block.size > 0 and bool((block >= 0).all() and (block == block[:, :1]).all())
    return bool(valid.all()) and (one_block or block.shape[1] == 1)


def _flat(parts: Sequence[tuple[int, Sequence[np.ndarray]]]) -> np.ndarray:
    """All arrays as one, each plus the offset of its row in the flattened batch."""
    slots = [array + offset for offset, arrays in parts for array in arrays]
    return np.concatenate(slots).astype(np.int64) if slots else np.zeros(0, np.int64)


def _gather_latents(
    layouts: Sequence[_Row], gen: int, latent_dim: int, device: torch.device
) -> Float[Tensor, "batch gen latent"]:
    """Latent tokens in float32, zero where a row has fewer."""
    if all(row.gen_length == gen for row in layouts) and gen:  # the usual case of a denoising step: one copy
        tokens = torch.cat([block for row in layouts for block in row.latents])
        return tokens.to(device=device, dtype=torch.float32).view(len(layouts), gen, latent_dim)
    latents = torch.zeros(len(layouts), gen, latent_dim, device=device)
    for index, row in enumerate(layouts):
        if row.gen_length:
            latents[index, : row.gen_length] = torch.cat(row.latents).to(device=device, dtype=torch.float32)
    return latents
