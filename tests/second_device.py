"""A second device for machines without one: `other` computes on the CPU, and refuses to mix with what lies there.

It has no float64, as Apple's GPUs have none.

Importing this registers it with torch for the whole process. A tensor that was left behind on the CPU fails here as it
fails on a GPU; that kernels of another device round differently does not show.
"""

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "other"
CROSSES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXES = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Backend(_DummyBackendModule):
    """What autocast asks a device for."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, Backend())


class Away(torch.Tensor):
    """A tensor that says it is on the other device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here):
        away = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=torch.device(NAME, 0),
        )
        away.here = here
        return away

    def __repr__(self):
        return f"Away({self.here})"

    def __getitem__(self, index):
        return super().__getitem__(tensor(index) if isinstance(index, list) else index)

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return computed(operation, args, kwargs or {})


def computed(operation, args, kwargs):
    """An operation on tensors that are all away, or all here but for single numbers and indices, as CUDA allows."""
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    away = [one for one in given if isinstance(one, Away)]
    left = [one for one in given if not isinstance(one, Away) and one.dim() > 0]
    if away and left and operation not in (*CROSSES, *INDEXES):
        raise RuntimeError(f"{operation}: a tensor {list(left[0].shape)} of the CPU among those of {NAME!r}")
    if operation in INDEXES and not isinstance(args[0], Away) and away:
        raise RuntimeError(f"{operation}: a tensor of the CPU, indexed by one of {NAME!r}")
    to_other = bool(away)
    if operation is torch.ops.aten.copy_.default:
        to_other = isinstance(args[0], Away)
    elif kwargs.get("device") is not None:
        to_other = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda one: one.here if isinstance(one, Away) else one, (args, kwargs))
    known = {id(one.here): one for one in away}

    def sent(one):
        if not isinstance(one, torch.Tensor) or not to_other:
            return one
        if one.dtype is torch.float64:
            raise RuntimeError(f"{operation}: {NAME!r} has no float64")
        return known[id(one)] if id(one) in known else Away(one)

    return tree_map(sent, operation(*args, **kwargs))


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda operation, *args, **kwargs: computed(operation, args, kwargs), "PrivateUse1")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


# A device written in Python cannot be given lists by torch itself: they are made into tensors here, and sent.
_tensor, _as_tensor = torch.tensor, torch.as_tensor


def tensor(data, *, dtype=None, device=None, requires_grad=False):
    made = _tensor(data, dtype=dtype)
    return (made if device is None else made.to(device)).requires_grad_(requires_grad)


def as_tensor(data, dtype=None, device=None):
    made = data if isinstance(data, torch.Tensor) else _as_tensor(data)
    return made.to(device=device, dtype=dtype)


torch.tensor, torch.as_tensor = tensor, as_tensor
