"""Case 6, the whole chain for a batch of two: reason, draw; look, reflect, refine; then the training forward of each.

Texts are given as drawn tokens, and the noise of the one stochastic step is given too; the rest is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parity.case4 import gradients
from parity.check import LEVELS, Run, picture, read_case
from parity.walk import Walk, read, say, tiny, token_grid, walk, with_rules
from triptych.model import flow
from triptych.model import templates as words
from triptych.model.bagel import Bagel
from triptych.model.config import Renorm, Sampling, Templates
from triptych.model.packing import Block, Latent, Text, Tokens
from triptych.model.sampler import Branches, combine, draw_branches, edit_branches
from triptych.trace import Completion

NAME = "case6_r3_rollout_and_training"


@dataclass(frozen=True)
class Stage:
    """One beat of the chain, for every sample: what is read before the text, and before the picture in each branch."""

    name: str
    points: int
    eta: float
    renorm: Renorm
    sde_indices: list[int]
    fresh: list[Tensor]
    before_text: list[list[Block]]
    cond: list[list[Block]]
    text_drop: list[list[Block]]
    image_drop: list[list[Block]] | None
    said: list[list[int]]  # drawn ids, the end token last
    kept: list[np.ndarray | None]  # the given picture, where the text says that it is right as it is


def replay(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, NAME)
    params = facts["params"]
    bagel = with_rules(tiny(folder, facts["tokenizer_words"]), params["vae_transform"], params["vit_transform"])
    for stage in (_reason(bagel, facts, golden), _reflect_refine(bagel, facts, golden)):
        run, steps = _rollout(bagel, stage, facts, golden)
        yield run
        yield _train(bagel, stage, steps, facts, golden)
    yield _verbs(bagel, facts, golden)


def _ended(bagel: Bagel, drawn: list[list[int]]) -> list[list[int]]:
    """A text that did not end is cut: its last token becomes the end token."""
    return [[*ids[:-1], bagel.special.eos] for ids in drawn]


def _noises(golden: dict[str, Tensor], key: str, count: int) -> list[Tensor]:
    return [golden[name] for name in (key, f"{key}_b", f"{key}_c")[:count]]


def _reason(bagel: Bagel, facts: dict, golden: dict[str, Tensor]) -> Stage:
    params, said = facts["params"], _ended(bagel, facts["reason.drawn_tokens"])
    system: list[Block] = [Text(facts["gen_think_system_ids"])]
    asked = [[*system, Text(ids)] for ids in facts["prompts"]]
    return Stage(
        name="reason",
        points=params["num_timesteps_gen"],
        eta=params["eta_gen"],
        renorm=params["cfg_renorm_type_gen"],
        sde_indices=params["sde_idx_gen"],
        fresh=_noises(golden, "in.sde_noise_gen", len(params["sde_idx_gen"])),
        before_text=asked,
        cond=[[*blocks, Text(ids[:-1])] for blocks, ids in zip(asked, said, strict=True)],
        text_drop=[system for _ in said],
        image_drop=None,
        said=said,
        kept=[None for _ in said],
    )


@torch.no_grad()
def _reflect_refine(bagel: Bagel, facts: dict, golden: dict[str, Tensor]) -> Stage:
    params, said = facts["params"], _ended(bagel, facts["reflect_refine.drawn_tokens"])
    images = [picture(golden[f"in.edit_input_image{row}_uint8"]) for row in range(len(said))]
    system = Text(facts["vlm_think_system_ids"])
    pairs: list[list[Block]] = [[bagel.latent_block(image), bagel.view_block(image)] for image in images]
    operations = facts["reflect_refine.edit_operations"]
    edits = [bagel.text_block(operation) for operation in operations]
    return Stage(
        name="reflect_refine",
        points=params["num_timesteps_edit"],
        eta=params["eta_edit"],
        renorm=params["cfg_renorm_type_edit"],
        sde_indices=params["sde_idx_edit"],
        fresh=_noises(golden, "in.sde_noise_edit", len(params["sde_idx_edit"])),
        before_text=[
            [system, pair[1], Text(ids)] for pair, ids in zip(pairs, facts["reflection_prompts"], strict=True)
        ],
        cond=[[*pair, edit] for pair, edit in zip(pairs, edits, strict=True)],
        text_drop=pairs,
        image_drop=[[edit] for edit in edits],
        said=said,
        kept=[image if words.is_stop(text) else None for image, text in zip(images, operations, strict=True)],
    )


def sampling_of(facts: dict) -> Sampling:
    params = facts["params"]
    return Sampling(
        time_shift=params["timestep_shift"],
        text_guidance=params["cfg_text_scale"],
        image_guidance=params["cfg_img_scale"],
        guidance_interval=tuple(params["cfg_interval"]),
        renorm_min=params["cfg_renorm_min"],
        eta_mode=params["eta_mode"],
    )


@torch.no_grad()
def _rollout(bagel: Bagel, stage: Stage, facts: dict, golden: dict[str, Tensor]) -> tuple[Run, Walk]:
    run = Run("6", f"{stage.name}, rollout")
    drawn = facts[f"{stage.name}.drawn_tokens"]
    texts = [say(ids[:-1], facts["tokenizer_words"]) for ids in stage.said]
    formed = words.plan_is_formed if stage.name == "reason" else words.reflection_is_formed
    run.equal("form", [[float(formed(text))] for text in texts], facts[f"{stage.name}.format_rewards"])
    if stage.name != "reason":
        run.equal("instructions", [words.parse_edit(text) for text in texts], facts[f"{stage.name}.edit_operations"])
    for row, ids in enumerate(drawn):
        context = read(bagel, [stage.before_text[row]])
        hidden = bagel.extend(context, [[Tokens([bagel.special.bos, *ids[:-1]])]])
        chances = bagel.logits(hidden[0]).softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        expected = golden[f"out.{stage.name}.sample{row}.generated_probs"]
        run.close(f"probabilities of text {row}", chances[: len(expected)], expected)

    drop = None if stage.image_drop is None else read(bagel, stage.image_drop)
    branches = Branches(read(bagel, stage.cond), read(bagel, stage.text_drop), drop)
    grid = token_grid(bagel, *facts["image_hw"])
    noise = golden["in.initial_noise"].expand(len(stage.said), -1, -1)
    fresh = dict(zip(stage.sde_indices, stage.fresh, strict=True))
    steps = walk(bagel, branches, grid, noise, stage.points, sampling_of(facts), stage.renorm, stage.eta, fresh)
    first = stage.sde_indices[0]
    run.close("velocity 0", steps.velocities[0].flatten(0, 1), golden[f"out.{stage.name}.velocity_step0"])
    stochastic = steps.velocities[first].flatten(0, 1)
    run.close("velocity of the stochastic step", stochastic, golden[f"out.{stage.name}.velocity_at_sde_step"])
    run.close("final latent", steps.states[-1].flatten(0, 1), golden[f"out.{stage.name}.final_latent"])
    drawn_images = bagel.decode_images(steps.states[-1], grid)
    images = [new if old is None else old for new, old in zip(drawn_images, stage.kept, strict=True)]
    kept = torch.stack([steps.states[first], *(steps.states[index + 1] for index in stage.sde_indices)], dim=1)
    scores = torch.stack([steps.scores[index] for index in stage.sde_indices], dim=1)
    for row in range(len(stage.said)):
        out = f"out.{stage.name}.sample{row}"
        run.close("kept latents", kept[row], golden[f"{out}.latents"])
        run.close("log-probabilities", scores[row], golden[f"{out}.log_probs"])
        run.close("times", steps.times[stage.sde_indices], golden[f"{out}.timesteps"])
        run.close("step lengths", -steps.times.diff()[stage.sde_indices], golden[f"{out}.dts"])
        run.close("picture", images[row].astype(np.int64), golden[f"{out}.image_uint8"], LEVELS)
    return run, steps


@torch.no_grad()
def _verbs(bagel: Bagel, facts: dict, golden: dict[str, Tensor]) -> Run:
    """The blocks and branches of the verbs are those of the chain: velocities and token probabilities show it."""
    run, sampling, known = Run("6", "verbs"), sampling_of(facts), facts["tokenizer_words"]
    templates = Templates(
        say(facts["gen_think_system_ids"], known), say(facts["vlm_think_system_ids"], known), "{prompt}", "", ""
    )
    bagel.config = replace(bagel.config, image_size=tuple(facts["image_hw"]), templates=templates)
    prompts = [say(ids, known) for ids in facts["prompts"]]
    images = [picture(golden[f"in.edit_input_image{row}_uint8"]) for row in range(len(prompts))]
    noise = golden["in.initial_noise"].expand(len(prompts), -1, -1)
    grid = bagel.config.token_grid
    ended = _ended(bagel, facts["reason.drawn_tokens"])
    plans = [Completion(say(ids, known), np.array(ids), np.zeros(len(ids), np.float32)) for ids in ended]
    reflect_prompts = [say(ids, known) for ids in facts["reflection_prompts"]]
    edits = [bagel.edit_blocks(*row)[1:] for row in zip(images, facts["reflect_refine.edit_operations"], strict=True)]
    plan_cache = bagel.prefill([bagel.plan_blocks(prompt) for prompt in prompts])
    reflect_cache = bagel.prefill([bagel.reflect_blocks(*row) for row in zip(reflect_prompts, images, strict=True)])
    draw = draw_branches(bagel, prompts, plans, sampling)
    edit = edit_branches(bagel, [image for image, _ in edits], [text for _, text in edits], sampling)
    for name, kind, cache, branches in (
        ("reason", "gen", plan_cache, draw),
        ("reflect_refine", "edit", reflect_cache, edit),
    ):
        v = torch.cat([bagel.velocity(branch, noise, 1.0, grid) for branch in branches.active()])
        v = combine(v, branches, facts["params"][f"cfg_renorm_type_{kind}"], sampling)
        run.close(f"velocity of {name}", v.flatten(0, 1), golden[f"out.{name}.velocity_step0"])
        drawn = facts[f"{name}.drawn_tokens"]
        hidden = bagel.extend(cache, [[Tokens([bagel.special.bos, *ids[:-1]])] for ids in drawn])
        for row, ids in enumerate(drawn):
            chances = bagel.logits(hidden[row, : len(ids)]).softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            expected = golden[f"out.{name}.sample{row}.generated_probs"]
            run.close(f"probabilities of {name} {row}", chances[: len(expected)], expected)
    return run


def _train(bagel: Bagel, stage: Stage, steps: Walk, facts: dict, golden: dict[str, Tensor]) -> Run:
    """The training forward, with the guidance of the rollout: the golden `train.consistent` values."""
    run, params, out = Run("6", f"{stage.name}, training"), facts["params"], f"out.{stage.name}.train"
    grid, (index,) = token_grid(bagel, *facts["image_hw"]), stage.sde_indices
    time, dt = float(steps.times[index]), float(steps.times[index] - steps.times[index + 1])
    states = torch.stack([golden[f"out.{stage.name}.sample{row}.latents"] for row in range(len(stage.said))])
    before, after = states[:, 0], states[:, 1]
    rows: list[list[Block]] = []
    for row, ids in enumerate(stage.said):
        noisy, said = Latent(before[row], grid, time, loss=True), Text(ids[:-1], loss=True)
        if stage.image_drop is None:  # the plan is read where it was said, and the picture follows it
            rows.append([*stage.before_text[row], said, noisy])
        else:
            rows += [[*stage.before_text[row], said], [*stage.cond[row], noisy]]
        if flow.guided(time, sampling_of(facts).guidance_interval):
            rows.append([*stage.text_drop[row], noisy])
            rows += [] if stage.image_drop is None else [[*stage.image_drop[row], noisy]]
    batch = bagel.pack(rows)
    und, gen = bagel(batch)

    spoken = batch.ce_targets != bagel.special.eos  # the reference does not train the end token
    logits, labels = bagel.logits(und.flatten(0, 1)[batch.ce_slots[spoken]]), batch.ce_targets[spoken]
    run.close("logits", logits, golden[f"{out}.logits"])
    run.equal("labels", labels.tolist(), golden[f"{out}.label_ids"].tolist())
    said_at = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    spoken_by = [golden[f"out.{stage.name}.sample{row}.generated_probs"] for row in range(len(stage.said))]
    counts = [len(ids) - 1 for ids in stage.said]
    chances = torch.cat([values[:count] for values, count in zip(spoken_by, counts, strict=True)])
    ratio = (said_at - chances.log()).exp()
    run.close("text log-probabilities", said_at, golden[f"{out}.text_logp"])
    run.close("text ratios", ratio, golden[f"{out}.text_ratio"])
    gains = torch.tensor([gain for (gain,) in facts[f"{stage.name}.text_advantages"]])
    spread = gains.repeat_interleave(torch.tensor(counts))
    text_loss = _clipped(ratio, spread, params["clip"])
    run.close("text loss", text_loss, facts[f"{stage.name}.train.text_policy_loss"])

    velocity = bagel.llm2vae(gen.flatten(0, 1)[batch.mse_slots]).float()
    run.close("velocities", velocity, golden[f"{out}.velocity_preds"])
    count = len(rows) // len(stage.said) - (stage.image_drop is not None)
    parts = velocity.view(len(stage.said), count, -1, velocity.shape[-1]).unbind(1)
    drops = (*parts[1:], None, None)[:2]
    v = flow.guide(
        parts[0], *drops, params["cfg_text_scale"], params["cfg_img_scale"], stage.renorm, params["cfg_renorm_min"]
    )
    run.close("guided velocities", v.flatten(0, 1), golden[f"{out}.consistent.velocity"])
    mean, std = flow.sde_mean_std(before, v, time, dt, stage.eta, params["eta_mode"])
    score = flow.step_logprob(after, mean, std)
    old = torch.stack([golden[f"out.{stage.name}.sample{row}.log_probs"].mean() for row in range(len(stage.said))])
    run.close("picture log-probabilities", score, golden[f"{out}.consistent.image_logp"])
    run.close("picture ratios", (score - old).exp(), golden[f"{out}.consistent.image_ratio"])
    gains = torch.tensor([gain for (gain,) in facts[f"{stage.name}.image_advantages"]])
    image_loss = _clipped((score - old).exp(), gains, params["clip"])
    run.close("picture loss", image_loss, facts[f"{stage.name}.train.consistent.image_policy_loss"])

    bagel.zero_grad()
    (text_loss + params["mse_weight"] * image_loss).backward()
    return gradients(run, bagel, facts[f"{stage.name}.train.consistent.grad_l2"])


def _clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped policy loss, averaged as the reference does (kit b.12)."""
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -gain.sum() / (len(ratio) + 1e-4)
