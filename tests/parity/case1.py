"""Case 1: read text, a picture, text; then answer greedily, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from parity.check import Run, picture, read_case
from parity.walk import tiny, view
from triptych.model.bagel import Bagel
from triptych.model.config import Sampling
from triptych.model.packing import Text, Tokens
from triptych.model.sampler import sample_text


def replay(folder: Path) -> Iterator[Run]:
    for path in sorted(folder.glob("case1_*.json")):
        yield _understanding(tiny(folder), Run("1", path.stem.removeprefix("case1_")), *read_case(folder, path.stem))


@torch.no_grad()
def _understanding(bagel: Bagel, run: Run, facts: dict, golden: dict[str, Tensor]) -> Run:
    before, after = facts["text_before"], facts["text_after"]
    images = [picture(golden[f"in.vit_image{row}_uint8"]) for row in range(len(before))]
    views = [view(bagel, image) for image in images]
    run.close("patches", torch.cat([block.patches for block in views]), golden.get("dbg.vit_tokens"))
    context, hidden = bagel.empty_cache(len(before)), []
    for rows in ([[Text(ids)] for ids in before], [[block] for block in views], [[Text(ids)] for ids in after]):
        hidden.append(bagel.extend(context, rows))
        _, lengths, positions = facts["kv_len_and_next_position_after_each_block"][len(hidden) - 1]
        run.equal("cache length", context.lengths.tolist(), lengths)
        run.equal("next position", context.position.tolist(), positions)
    for name, states, counts in (
        ("text_before", hidden[0], [len(ids) + 2 for ids in before]),
        ("vit_block", hidden[1], [len(block.patches) + 2 for block in views]),
        ("text_after", hidden[2], [len(ids) + 2 for ids in after]),
    ):
        packed = torch.cat([row[:count] for row, count in zip(states, counts, strict=True)])
        run.close(f"hidden states of {name}", packed, golden.get(f"dbg.hidden_{name}"))
    # Keys of one row stand in the order they were read in; the golden cache holds one row after the other.
    for name, cache in (("k", context.keys[0]), ("v", context.values[0])):
        rows = [cache[row, :, : context.length][:, context.valid[row, : context.length]] for row in range(len(before))]
        run.close(
            f"{name} cache of layer 0", torch.cat(rows, dim=1).transpose(0, 1), golden.get(f"dbg.{name}_cache_layer0")
        )

    written = context.copy()
    tokens = golden["out.tokens"]
    for step in range(facts["n_steps"]):
        states = bagel.extend(written, [[Tokens([token])] for token in tokens[step].tolist()])
        logits = bagel.logits(states[:, -1])
        run.close(f"logits of step {step}", logits, golden["out.logits"][step])
        if step + 1 < facts["n_steps"]:
            run.equal(f"token of step {step + 1}", logits.argmax(-1).tolist(), tokens[step + 1].tolist())
    # The shipped loop, which stops at the end token, says the same.
    said = sample_text(bagel, context, Sampling(temperature=0), facts["n_steps"] - 1, [0] * len(before))
    for row, completion in enumerate(said):
        ids = completion.tokens.tolist()
        run.equal("written ids", ids, tokens[1 : len(ids) + 1, row].tolist())
        ended = ids[-1] == bagel.special.eos
        run.equal("written to the end", ended or len(ids) == facts["n_steps"] - 1, True)
    return run
