"""What the decoder keeps of one edit for its way back, with and without `--recompute`: `python scripts/kept_report.py`.

BAGEL_7B on the meta device, in bfloat16: bytes are counted, and nothing is computed. One edit of 512 pixels has three
branches of guidance; each reads a picture (1,024 clean latents, 1,296 patches) and a short text, and paints 1,024 more.
Parameters are not counted. Attention counts as the fused kernels do it: queries, keys and values, no matrix of weights.
The last line is the price in time: SKETCH on this machine, forward and backward of a batch, as a ratio.
"""

from __future__ import annotations

import time
from itertools import repeat
from statistics import median

import torch
from torch import Tensor

from triptych.model import transformer
from triptych.model.config import BAGEL_7B, SKETCH
from triptych.model.transformer import Decoder, PackLayout

UND, GEN, BRANCHES = 1310, 2048, 3


def main() -> None:
    with torch.device("meta"):
        large = Decoder(BAGEL_7B.language).to(torch.bfloat16)
    written_out, transformer.attend = transformer.attend, fused
    for recompute in (False, True):
        large.gradient_checkpointing = recompute
        print(f"BAGEL_7B, one edit, recompute={recompute}: {kept(large) / 2**30:.1f} GB kept")
    transformer.attend = written_out
    small = Decoder(SKETCH.language)
    pairs = [tuple(seconds(small, recompute) for recompute in (False, True)) for _ in range(7)]
    print(f"SKETCH, forward and backward: {median(anew / plain for plain, anew in pairs):.2f} times as long with it")


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Stands in for a fused attention: it keeps what one keeps."""
    groups = query.shape[1] // key.shape[1]
    return query * key.repeat_interleave(groups, dim=1) * value.repeat_interleave(groups, dim=1)


def kept(decoder: Decoder) -> int:
    """Bytes of all storages that autograd holds after a forward, parameters aside."""
    own = {parameter.untyped_storage()._cdata for parameter in decoder.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        forward(decoder, BRANCHES, UND, GEN, torch.bfloat16)
    return sum(storage.nbytes() for mark, storage in held.items() if mark not in own)


def seconds(decoder: Decoder, recompute: bool) -> float:
    decoder.gradient_checkpointing = recompute
    begun = time.perf_counter()
    und, gen = forward(decoder, 16, 60, 72, torch.float32)
    (und.sum() + gen.sum()).backward()
    return time.perf_counter() - begun


def forward(decoder: Decoder, rows: int, und: int, gen: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    device = next(decoder.parameters()).device
    number, yes = (torch.zeros(rows, und + gen, dtype=kind, device=device) for kind in (torch.long, torch.bool))
    hidden = decoder.config.hidden_size
    states = (torch.zeros(rows, n, hidden, device=device, dtype=dtype, requires_grad=True) for n in (und, gen))
    return decoder(*states, PackLayout(*repeat(number, 3), *repeat(yes, 2)))


if __name__ == "__main__":
    main()
