"""Several linear layers on one input as one matrix product: queries, keys and values.

The layers keep their own parameters under their published names, which are what is saved, trained and adapted. Without
gradients their weights are laid one after the other once, and that copy is kept until they change.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_Joined = tuple[Tensor, Tensor | None]  # weights and biases of all layers
# By the first layer: what the weights were when they were joined, these weights, and the copy. Beside the modules, and
# not in them, so that a copy of a model copies none of it.
_KEPT: WeakKeyDictionary[nn.Module, tuple[tuple, list[Tensor], _Joined]] = WeakKeyDictionary()


def product(x: Float[Tensor, "*rows in_size"], layers: Sequence[nn.Module]) -> Float[Tensor, "*rows out_sizes"]:
    """The outputs of all layers on `x`, one after the other on the last axis.

    All layers have a bias, or none has. Layers with adapters (lora.py) are called one by one.
    """
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if len(plain) < len(layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    if torch.is_grad_enabled():
        forget(plain)  # they may be about to change
        return F.linear(x, *_join(plain))
    return F.linear(x, *_kept(plain))


def forget(layers: Sequence[nn.Module]) -> None:
    """Join the weights of these layers anew at the next use, after a change that leaves no trace (through `.data`)."""
    for layer in layers:
        _KEPT.pop(layer, None)


def _kept(layers: Sequence[nn.Linear]) -> _Joined:
    weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
    # A change in place counts `_version` up, and other numbers under the same name have another address. The old ones
    # are held, so that no new ones can come to lie at theirs.
    key = tuple((weight.data_ptr(), weight._version) for weight in weights)
    entry = _KEPT.get(layers[0])
    if entry is None or entry[0] != key:
        entry = _KEPT[layers[0]] = key, [weight.detach() for weight in weights], _join(layers)
    return entry[2]


def _join(layers: Sequence[nn.Linear]) -> _Joined:
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None
