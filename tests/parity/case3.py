"""Case 3: edit a picture, think first, answer about a picture; contexts as the official inferencer builds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parity.check import LEVELS, PICTURES, Run, picture, read_case
from parity.walk import clean, read, tiny, token_grid, walk, with_rules
from triptych.model.bagel import Bagel
from triptych.model.config import Renorm, Sampling
from triptych.model.images import normalize, resize
from triptych.model.packing import Block, Text
from triptych.model.sampler import Branches, sample_flow, sample_text

T2I_SIZE = (32, 48)  # height and width of `inferencer_t2i`, which only the kit's README tells


def replay(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case3_image_editing")
    params = facts["params"]
    bagel = with_rules(tiny(folder), params["vae_transform"], params["vit_transform"])
    yield _prepared(bagel, facts, golden)
    for key in golden:
        tag = key.removeprefix("out.").removesuffix(".latent")
        if key == f"out.{tag}.latent" and tag.startswith("edit_"):
            yield _edit(bagel, tag, facts, golden)
    yield _thoughtful(bagel, "inferencer_edit", facts, golden)
    yield _thoughtful(bagel, "inferencer_edit_think", facts, golden)
    yield _answer(bagel, "inferencer_vqa", None, facts, golden)
    yield _answer(bagel, "inferencer_vqa_think", facts["vlm_think_system"], facts, golden)
    yield _plain(bagel, facts, golden)


@torch.no_grad()
def _prepared(bagel: Bagel, facts: dict, golden: dict[str, Tensor]) -> Run:
    run, image = Run("3", "picture and contexts"), picture(golden["in.image_uint8"])
    resized = resize(image, bagel.config.vae_resize)
    run.equal("size for the autoencoder", list(resized.shape[:2]), facts["vae_image_hw"])
    seen = resize(resized, bagel.config.vit_resize)
    run.equal("size for the tower", list(seen.shape[:2]), facts["vit_image_hw"])
    if "dbg.resized_uint8" in golden:
        run.equal("resized pixels", bool(np.array_equal(resized, picture(golden["dbg.resized_uint8"]))), True)
    run.close("picture for the autoencoder", normalize(resized), golden.get("dbg.vae_image"))
    run.close("picture for the tower", normalize(seen), golden.get("dbg.vit_image"))
    latent = bagel.autoencoder.encode(normalize(resized)[None])
    run.close("latent", latent, golden.get("dbg.vae_latent_mean"), PICTURES)
    context = bagel.empty_cache(1)
    blocks: list[Block] = [bagel.latent_block(image), bagel.view_block(image), Text(facts["prompt"])]
    hidden = [bagel.extend(context, [[block]]) for block in blocks[:2]]
    stages = [(context.lengths.tolist(), context.position.tolist())]
    hidden.append(bagel.extend(context, [[blocks[2]]]))
    stages.append((context.lengths.tolist(), context.position.tolist()))
    run.equal(
        "lengths and positions", stages, [(length, place) for _, length, place in facts["kv_len_and_next_position"]]
    )
    run.close("hidden states of the view", hidden[1][0], golden.get("dbg.hidden_vit_block"))
    run.close("hidden states of the text", hidden[2][0], golden.get("dbg.hidden_text"))
    return run


def _sampling(params: dict, interval: tuple[float, float], image_scale: float) -> Sampling:
    return Sampling(
        time_shift=params["timestep_shift"],
        text_guidance=params["cfg_text_scale"],
        image_guidance=image_scale,
        guidance_interval=interval,
    )


@torch.no_grad()
def _edit(bagel: Bagel, tag: str, facts: dict, golden: dict[str, Tensor]) -> Run:
    run, params, image = Run("3", tag), facts["params"], picture(golden["in.image_uint8"])
    text_only = tag.endswith("_textonly")
    renorm: Renorm = tag.removeprefix("edit_").removesuffix("_textonly")  # pyright: ignore[reportAssignmentType]
    pair: list[Block] = [*clean(bagel, [image]), bagel.view_block(image)]
    text = Text(facts["prompt"])
    drop = None if text_only else read(bagel, [[text]])
    branches = Branches(read(bagel, [[*pair, text]]), read(bagel, [pair]), drop)
    sampling = _sampling(params, tuple(params["cfg_interval"]), 1.0 if text_only else params["cfg_img_scale"])
    grid, noise = token_grid(bagel, *facts["vae_image_hw"]), golden["in.noise"][None]
    steps = walk(bagel, branches, grid, noise, params["num_timesteps"], sampling, renorm)
    for index in range(3):
        if f"out.{tag}.v{index}" in golden:
            run.close(f"velocity {index}", steps.velocities[index][0], golden[f"out.{tag}.v{index}"])
    for name, raw in zip(("cond", "text", "img"), steps.raw, strict=False):
        run.close(f"{name} velocity", raw[0], golden.get(f"dbg.{tag}.first_guided_step_{name}"))
    run.close("latent, step by step", steps.states[-1][0], golden[f"out.{tag}.latent"])
    latents, _ = sample_flow(bagel, branches, grid, noise, params["num_timesteps"], renorm, 0.0, sampling)
    run.close("latent, as drawn", latents[0], golden[f"out.{tag}.latent"])
    return run


@torch.no_grad()
def _thoughtful(bagel: Bagel, tag: str, facts: dict, golden: dict[str, Tensor]) -> Run:
    """An edit, after a thought where the tag says so; only the conditional branch reads the thought."""
    run, params, image = Run("3", tag), facts["params"], picture(golden["in.image_uint8"])
    pair: list[Block] = [*clean(bagel, [image]), bagel.view_block(image)]
    text, system, thought = Text(facts["prompt"]), [], []
    if tag.endswith("_think"):
        system = [Text(facts["think_system"])]
        context = read(bagel, [[*system, *pair, text]])
        ids = _said(bagel, context, params["max_think_token_n"])
        run.equal("thought", ids, facts[f"{tag}_thought_ids"])
        thought = [Text(ids)]
    branches = Branches(
        read(bagel, [[*system, *pair, text, *thought]]), read(bagel, [[*system, *pair]]), read(bagel, [[*system, text]])
    )
    sampling = _sampling(params, tuple(params["cfg_interval"]), params["cfg_img_scale"])
    grid = token_grid(bagel, *facts["vae_image_hw"])
    latents, _ = sample_flow(
        bagel, branches, grid, golden["in.noise"][None], params["num_timesteps"], "text_channel", 0.0, sampling
    )
    run.close("latent", latents[0], golden[f"out.{tag}.latent"])
    run.close("picture", bagel.decode_images(latents, grid)[0].astype(np.int64), golden[f"out.{tag}.uint8"], LEVELS)
    return run


def _said(bagel: Bagel, context, limit: int) -> list[int]:
    """Greedy ids; the kit's limit counts the begin token, and the end token is not given back."""
    (completion,) = sample_text(bagel, context, Sampling(temperature=0), limit - 1, [0])
    return [token for token in completion.tokens.tolist() if token != bagel.special.eos]


@torch.no_grad()
def _answer(bagel: Bagel, tag: str, system: list[int] | None, facts: dict, golden: dict[str, Tensor]) -> Run:
    run, image = Run("3", tag), picture(golden["in.image_uint8"])
    blocks: list[Block] = [*([] if system is None else [Text(system)]), bagel.view_block(image), Text(facts["prompt"])]
    run.equal("answer", _said(bagel, read(bagel, [blocks]), facts["params"]["max_think_token_n"]), facts[f"{tag}_ids"])
    return run


@torch.no_grad()
def _plain(bagel: Bagel, facts: dict, golden: dict[str, Tensor]) -> Run:
    """Text to image with the inferencer's default guidance: a third branch equal to the first, from 0.4 on."""
    run, params = Run("3", "inferencer_t2i"), facts["params"]
    text = [[Text(facts["prompt"])]]
    branches = Branches(read(bagel, text), bagel.empty_cache(1), read(bagel, text))
    sampling = _sampling(params, (0.4, 1.0), 1.5)
    grid, noise = token_grid(bagel, *facts.get("t2i_image_hw", T2I_SIZE)), golden["in.noise_t2i"][None]
    latents, _ = sample_flow(bagel, branches, grid, noise, params["num_timesteps"], "global", 0.0, sampling)
    run.close("latent", latents[0], golden["out.inferencer_t2i.latent"])
    return run
