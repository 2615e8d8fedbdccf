"""Case 4: a training forward over three samples of text, views, clean and noisy pictures, and its gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.check import EXACT, GRADIENTS, Run, picture, read_case
from parity.walk import tiny, view
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.packing import Block, Latent, Text
from triptych.model.vae import patchify

NAME = "case4_train_pretraining_forward"


def replay(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, NAME)
    bagel = tiny(folder)
    shift = json.loads((folder / "tiny_ckpt" / "bagel_args.json").read_text())["timestep_shift"]
    rows, targets = _rows(bagel, facts, golden, shift)
    batch = bagel.pack(rows)
    und, gen = bagel(batch)
    logits = bagel.logits(und.flatten(0, 1)[batch.ce_slots])
    velocity = bagel.llm2vae(gen.flatten(0, 1)[batch.mse_slots]).float()
    ce = F.cross_entropy(logits, batch.ce_targets, reduction="none")
    mse = (velocity - torch.cat(targets)).square()

    packed = Run("4", "packing")
    packed.equal("length", int(batch.layout.valid.sum()), facts["unpadded_length"])
    packed.close("labels", batch.ce_targets, golden.get("dbg.packed.packed_label_ids"), EXACT)
    _mask(packed, batch.layout, golden.get("dbg.attention_mask"), golden)
    yield packed

    forward = Run("4", "forward")
    forward.close("logits", logits, golden["out.logits"])
    forward.close("cross entropy", ce, golden["out.ce"])
    forward.close("velocity", velocity, golden["out.velocity_pred"])
    forward.close("squared error", mse, golden["out.mse"])
    forward.close("text loss", ce.mean(), facts["loss_ce"])
    forward.close("picture loss", mse.mean(1).mean(), facts["loss_mse"])
    yield forward

    (ce.mean() + mse.mean(1).mean()).backward()
    yield gradients(Run("4", "gradients"), bagel, facts["grad_l2_of_ce_plus_mse"])


def gradients(run: Run, bagel: Bagel, expected: dict[str, float | None]) -> Run:
    """Length of every parameter's gradient; null stands for none."""
    ours = {name: p.grad for name, p in bagel.named_parameters() if not name.startswith("autoencoder.")}
    run.equal("names", sorted({*expected} - {*ours}), sorted(name for name in expected if name.endswith(".pos_embed")))
    for name, length in expected.items():
        gradient = ours.get(name)
        run.close(name, 0.0 if gradient is None else gradient.norm(), length or 0.0, GRADIENTS)
    return run


def _rows(bagel: Bagel, facts: dict, golden: dict[str, Tensor], shift: float) -> tuple[list[list[Block]], list[Tensor]]:
    """The samples as blocks, and the velocities that the noisy pictures should give."""
    side, patch = bagel.config.latent_patch_size, bagel.config.vision.patch_size
    grids = iter(facts["patchified_vae_latent_shapes"])
    latents, noise = iter(golden["in.padded_latent"]), golden["in.flow_noise"]
    times = iter(flow.training_times(torch.tensor(facts["timestep_logits"]), shift).tolist())
    rows, targets, used = [], [], 0
    for sample in facts["samples"].values():
        images, texts, row = iter(sample["images"]), iter(sample["texts"]), []
        for kind, loss in sample["plan"]:
            if kind == "text":
                row.append(Text(facts["texts"][next(texts)], bool(loss)))
                continue
            image = picture(golden[f"in.image_{next(images)}_uint8"])
            if kind == "vit_image":
                row.append(view(bagel, image))
                assert row[-1].grid == (image.shape[0] // patch, image.shape[1] // patch)
                continue
            rows_, columns = next(grids)
            tokens = patchify(next(latents)[None, :, : rows_ * side, : columns * side], side)[0]
            fresh = noise[used : used + len(tokens)]
            used += len(tokens)
            if not loss:
                row.append(Latent(tokens, (rows_, columns)))
                continue
            time = next(times)
            row.append(Latent(flow.noised(tokens[None], fresh[None], time)[0], (rows_, columns), time, loss=True))
            targets.append(fresh - tokens)
        rows.append(row)
    return rows, targets


def _mask(run: Run, layout, golden_mask: Tensor | None, golden: dict[str, Tensor]) -> None:
    """Positions and mask against the packed ones: samples one after the other, tokens in the order they are told."""
    if golden_mask is None:
        return
    order = [(row, int(slot)) for row, valid in enumerate(layout.valid) for slot in _told(layout.order[row], valid)]
    positions = [int(layout.position[row, slot]) for row, slot in order]
    run.close("positions", positions, golden.get("dbg.packed.packed_position_ids"), EXACT)
    ours, told = torch.zeros_like(golden_mask), layout.mask()[:, 0]
    for query, (row, slot) in enumerate(order):
        for key, (other, place) in enumerate(order):
            ours[query, key] = int(row == other and bool(told[row, slot, place]))
    run.equal("mask", bool(torch.equal(ours, golden_mask)), True)


def _told(order: Tensor, valid: Tensor) -> list[int]:
    return sorted(torch.nonzero(valid)[:, 0].tolist(), key=lambda slot: int(order[slot]))
