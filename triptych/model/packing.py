"""From blocks to a batch: a row is a list of blocks, and `pack` lays rows out for one forward (parity kit b.1, b.2).

The same packing serves training (whole rows, no cache) and inference (what a row reads next, behind a `KVCache`), so
that both see the same tokens, positions and mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from triptych.model.templates import SpecialTokens
from triptych.model.transformer import PackLayout


@dataclass(frozen=True)
class Text:
    """Ids between BOS and EOS. With `loss`, every id and the EOS are to be predicted, except ids at places `given`."""

    ids: Sequence[int]
    loss: bool = False
    given: Sequence[int] = ()


@dataclass(frozen=True)
class Tokens:
    """Ids as they are, nothing added: how an unfinished answer goes on."""

    ids: Sequence[int]


@dataclass(frozen=True)
class View:
    """A picture for understanding: `patches [patch dim]` in row-major order, `grid` = (rows, columns)."""

    patches: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Latent:
    """A picture as latent tokens `[patch latent]`, clean where `time` is None, else noisy at that time."""

    tokens: Tensor
    grid: tuple[int, int]
    time: float | None = None
    loss: bool = False


Block = Text | Tokens | View | Latent


@dataclass(frozen=True)
class Pack:
    """A batch ready for the decoder. Slots are flat indices into `[batch und]`, or `[batch gen]` for latents."""

    ids: Tensor  # [batch und], brackets included; 0 under views and padding
    views: tuple[View, ...]
    view_slots: Tensor  # [all view patches]
    latents: Tensor  # [batch gen latent] float32
    time: Tensor  # [batch gen] float32
    latent_ids: Tensor  # [batch gen] rows of the position table
    layout: PackLayout
    position: Tensor  # [batch] where each row goes on
    ce_slots: Tensor  # und slots whose next token is to be predicted
    ce_targets: Tensor
    mse_slots: Tensor  # latent slots of blocks with loss

    @property
    def und(self) -> int:
        """Width of the understanding part."""
        return self.ids.shape[1]

    def at(self, latents: Tensor, time: float) -> Pack:
        """The same batch with other latents `[batch gen latent]`, all at one time: a denoising step."""
        return replace(self, latents=latents, time=torch.full_like(self.time, time))


class _Row:
    """One row's columns while it is laid out."""

    def __init__(self, start: int):
        self.position, self.order, self.blocks = start, 0, 0
        self.ids: list[np.ndarray] = []
        self.und: list[np.ndarray] = []  # each [4 token]: position, order, block, noise
        self.gen: list[np.ndarray] = []
        self.view_slots: list[np.ndarray] = []
        self.ce: list[tuple[np.ndarray, np.ndarray]] = []
        self.latents: list[Tensor] = []
        self.times: list[np.ndarray] = []
        self.latent_ids: list[np.ndarray] = []
        self.mse: list[np.ndarray] = []
        self.width = self.depth = 0  # und and gen tokens so far

    def _columns(self, count: int, block: int, noise: bool, advance: bool) -> np.ndarray:
        order = np.arange(self.order, self.order + count)
        self.order += count
        position = np.arange(self.position, self.position + count) if advance else np.full(count, self.position)
        return np.stack([position, order, np.full(count, block), np.full(count, int(noise))])

    def _add_und(self, ids: np.ndarray, block: int, noise: bool, advance: bool) -> np.ndarray:
        self.und.append(self._columns(len(ids), block, noise, advance))
        self.ids.append(ids)
        slots = np.arange(self.width, self.width + len(ids))
        self.width += len(ids)
        return slots

    def text(self, ids: np.ndarray, loss: bool, given: Sequence[int] = ()) -> None:
        slots = self._add_und(ids, -1, False, True)
        self.position += len(ids)
        if loss:
            self.ce.append((np.delete(slots[:-1], given), np.delete(ids[1:], given)))

    def view(self, block: View, special: SpecialTokens) -> None:
        count = block.grid[0] * block.grid[1]
        ids = np.zeros(count + 2, np.int64)
        ids[0], ids[-1] = special.start_of_image, special.end_of_image
        self.view_slots.append(self._add_und(ids, self.blocks, False, False)[1:-1])
        self.blocks, self.position = self.blocks + 1, self.position + 1

    def latent(self, block: Latent, special: SpecialTokens, table_side: int) -> None:
        noise = block.time is not None
        rows, columns = block.grid
        self._add_und(np.array([special.start_of_image]), self.blocks, noise, False)
        self.gen.append(self._columns(rows * columns, self.blocks, noise, False))
        self._add_und(np.array([special.end_of_image]), self.blocks, noise, False)
        self.latents.append(block.tokens)
        self.times.append(np.full(rows * columns, block.time or 0.0, np.float32))
        self.latent_ids.append(grid_ids(block.grid, table_side))
        if block.loss:
            self.mse.append(np.arange(self.depth, self.depth + rows * columns))
        self.depth += rows * columns
        self.blocks += 1
        self.position += not noise  # a noisy picture stands where the next block will


def grid_ids(grid: tuple[int, int], table_side: int) -> np.ndarray:
    """Rows of a position table of that side for a grid, row-major: row * side + column."""
    return (np.arange(grid[0])[:, None] * table_side + np.arange(grid[1])).reshape(-1)


def pack_blocks(
    rows: Sequence[Sequence[Block]],
    special: SpecialTokens,
    latent_dim: int,
    table_side: int,
    device: torch.device,
    start: Tensor | None = None,
) -> Pack:
    """Lay rows of blocks out; `start [batch]` is where each row's positions go on (0 without a context)."""
    starts = [0] * len(rows) if start is None else start.tolist()
    laid = [_lay(row, first, special, table_side) for row, first in zip(rows, starts, strict=True)]
    und, gen = max(row.width for row in laid), max(row.depth for row in laid)
    columns = np.zeros((4, len(laid), und + gen), np.int64)
    columns[2] = -1
    valid = np.zeros((len(laid), und + gen), bool)
    ids, latent_ids = np.zeros((len(laid), und), np.int64), np.zeros((len(laid), gen), np.int64)
    time = np.zeros((len(laid), gen), np.float32)
    for index, row in enumerate(laid):
        if row.width:
            columns[:, index, : row.width] = np.concatenate(row.und, axis=1)
            ids[index, : row.width] = np.concatenate(row.ids)
            valid[index, : row.width] = True
        if row.depth:
            columns[:, index, und : und + row.depth] = np.concatenate(row.gen, axis=1)
            latent_ids[index, : row.depth] = np.concatenate(row.latent_ids)
            time[index, : row.depth] = np.concatenate(row.times)
            valid[index, und : und + row.depth] = True

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Pack(
        ids=put(ids),
        views=tuple(block for row in rows for block in row if isinstance(block, View)),
        view_slots=put(_flat([(index * und, row.view_slots) for index, row in enumerate(laid)])),
        latents=_gather_latents(laid, gen, latent_dim, device),
        time=put(time),
        latent_ids=put(latent_ids),
        layout=PackLayout(put(columns[0]), put(columns[1]), put(columns[2]), put(columns[3] > 0), put(valid)),
        position=torch.tensor([row.position for row in laid], dtype=torch.long, device=device),
        ce_slots=put(_flat([(index * und, [slots for slots, _ in row.ce]) for index, row in enumerate(laid)])),
        ce_targets=put(_flat([(0, [targets for _, targets in row.ce]) for row in laid])),
        mse_slots=put(_flat([(index * gen, row.mse) for index, row in enumerate(laid)])),
    )


def _lay(blocks: Sequence[Block], start: int, special: SpecialTokens, table_side: int) -> _Row:
    row = _Row(start)
    for block in blocks:
        if isinstance(block, Text):
            row.text(np.array([special.bos, *block.ids, special.eos], np.int64), block.loss, block.given)
        elif isinstance(block, Tokens):
            row.text(np.array(block.ids, np.int64), False)
        elif isinstance(block, View):
            row.view(block, special)
        else:
            row.latent(block, special, table_side)
    return row


def _flat(parts: Sequence[tuple[int, Sequence[np.ndarray]]]) -> np.ndarray:
    slots = [array + offset for offset, arrays in parts for array in arrays]
    return np.concatenate(slots).astype(np.int64) if slots else np.zeros(0, np.int64)


def _gather_latents(laid: Sequence[_Row], gen: int, latent_dim: int, device: torch.device) -> Tensor:
    """Latent tokens `[batch gen latent]` in float32, zero where a row has fewer."""
    if all(row.depth == gen for row in laid) and gen:
        tokens = torch.cat([block for row in laid for block in row.latents])
        return tokens.to(device=device, dtype=torch.float32).view(len(laid), gen, latent_dim)
    latents = torch.zeros(len(laid), gen, latent_dim, device=device)
    for index, row in enumerate(laid):
        if row.depth:
            latents[index, : row.depth] = torch.cat(row.latents).to(device=device, dtype=torch.float32)
    return latents
