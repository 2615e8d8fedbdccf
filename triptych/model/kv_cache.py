"""The KV cache: keys and values of every layer for what has been read, for a batch of rows of different lengths.

All rows share one run of slots; a row that had less to read leaves slots that are not `valid` and that no token
attends to. Attention does not depend on the order of slots, only on positions, which are already in the keys.
Slots past `length` are scratch: a denoising step writes its keys there, attends, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.model.config import LanguageConfig

Layers = list[Float[Tensor, "batch kv_head slot head_dim"]]  # one tensor for each layer


class KVCache:
    """A growing cache, of `length` slots so far; `position` is the next rotary position of each row."""

    def __init__(
        self,
        keys: Layers,
        values: Layers,
        valid: Bool[Tensor, "batch slot"],
        position: Int[Tensor, "batch"],
        length: int,
        full: bool = True,
    ):
        self.keys, self.values, self.valid, self.position, self.length = keys, values, valid, position, length
        self.full = full  # whether all slots of all rows are valid, known without a look at `valid`

    @staticmethod
    def empty(
        config: LanguageConfig, batch: int, device: torch.device, dtype: torch.dtype, capacity: int = 64
    ) -> KVCache:
        """A cache that holds nothing, for `batch` rows."""
        # Zeros, and not memory as it is: a masked slot has weight 0, and 0 times a stray NaN is NaN.
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        return KVCache(
            keys=[torch.zeros(shape, device=device, dtype=dtype) for _ in layers],
            values=[torch.zeros(shape, device=device, dtype=dtype) for _ in layers],
            valid=torch.zeros(batch, capacity, dtype=torch.bool, device=device),
            position=torch.zeros(batch, dtype=torch.long, device=device),
            length=0,
        )

    @property
    def batch(self) -> int:
        return self.valid.shape[0]

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """How many tokens each row has read."""
        return self.valid[:, : self.length].sum(dim=1)  # not `position`: an image has many tokens and one position

    def reserve(self, slots: int) -> None:
        """Make room for `slots` more, at least doubling when it must grow."""
        capacity, needed = self.valid.shape[1], self.length + slots
        if needed <= capacity:
            return
        extra = max(needed, 2 * capacity) - capacity  # doubled, so that a growing text is copied seldom
        self.keys = [_widen(key, extra, dim=2) for key in self.keys]
        self.values = [_widen(value, extra, dim=2) for value in self.values]
        self.valid = _widen(self.valid, extra, dim=1)

    def update(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_head time head_dim"],
        value: Float[Tensor, "batch kv_head time head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_head slot head_dim"], Float[Tensor, "batch kv_head slot head_dim"]]:
        """Put new keys and values behind the old ones; return all of them.

        They are scratch, and overwritten by the next forward, until `advance` keeps them.
        """
        # In place, for rows of all lengths alike: slots are shared, and `valid` tells the rows apart.
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, valid: Bool[Tensor, "batch time"], position: Int[Tensor, "batch"], full: bool = False) -> None:
        """Keep what `update` put there: `valid` says what counts (`full`: all), `position` where each row goes on."""
        end = self.length + valid.shape[1]
        self.valid[:, self.length : end] = valid
        self.position, self.length, self.full = position, end, self.full and full

    def copy(self, extra: int = 0) -> KVCache:
        """A copy that can be extended on its own, with room for `extra` more slots."""
        return KVCache.cat([self], extra)

    def retain(self, rows: Sequence[int]) -> list[int]:
        """Let all but the given rows go; returns the rows in their new order.

        Rows at the end move into the places of those that go: nothing else is copied.
        """
        staying, order = set(rows), list(range(len(rows)))
        holes = [place for place in order if place not in staying]
        moved = sorted(row for row in staying if row >= len(rows))
        for hole, row in zip(holes, moved, strict=True):
            order[hole] = row
        for tensor in (*self.keys, *self.values, self.valid, self.position):
            if holes:
                tensor.index_copy_(0, torch.tensor(holes, device=tensor.device), tensor[moved])
        self.keys = [key[: len(rows)] for key in self.keys]
        self.values = [value[: len(rows)] for value in self.values]
        self.valid, self.position = self.valid[: len(rows)], self.position[: len(rows)]
        return order

    def select(self, rows: Sequence[int]) -> KVCache:
        """The given rows alone, in the given order (a row may repeat)."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.valid.device)
        return KVCache(
            keys=[key.index_select(0, index) for key in self.keys],
            values=[value.index_select(0, index) for value in self.values],
            valid=self.valid.index_select(0, index),
            position=self.position.index_select(0, index),
            length=self.length,  # of all rows: slots that none of the given ones uses stay, and are not valid
            full=self.full,
        )

    @staticmethod
    def cat(caches: Sequence[KVCache], extra: int = 0) -> KVCache:
        """Rows of several caches as one batch, with room for `extra` more slots: guidance in one forward."""
        # Shorter caches get slots that are not valid. The copy is made once a drawing, not in every step.
        length = max(cache.length for cache in caches)
        layers = range(len(caches[0].keys))

        def join(tensors: list[Tensor], dim: int) -> Tensor:
            return torch.cat([_fit(tensor, length + extra, dim) for tensor in tensors])

        return KVCache(
            keys=[join([c.keys[layer][:, :, : c.length] for c in caches], 2) for layer in layers],
            values=[join([c.values[layer][:, :, : c.length] for c in caches], 2) for layer in layers],
            valid=join([c.valid[:, : c.length] for c in caches], 1),
            position=torch.cat([c.position for c in caches]),
            length=length,
            full=all(cache.full and cache.length == length for cache in caches),
        )


def _widen(tensor: Tensor, extra: int, dim: int) -> Tensor:
    shape = list(tensor.shape)  # zeros: of `valid` they mean False
    shape[dim] = extra
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _fit(tensor: Tensor, size: int, dim: int) -> Tensor:
    return tensor if tensor.shape[dim] == size else _widen(tensor, size - tensor.shape[dim], dim)
