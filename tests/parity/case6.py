"""Case 6: the pieces of reinforcement learning, and the chain of reason, reflect and refine that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from parity import chain
from parity.check import STEPS, VALUES, Run, read_case
from parity.walk import read, tiny, token_grid, walk
from triptych.model import flow, sampler, templates
from triptych.model.config import R3_TEMPLATES, Sampling
from triptych.model.packing import Text
from triptych.model.sampler import Branches


def replay(folder: Path) -> Iterator[Run]:
    """Every piece that the folder has files of."""
    pieces: dict[str, Callable[[Path], Iterable[Run]]] = {
        "case6_sde_sampler": _sde,
        "case6_cfg_combine": _guidance,
        "case6_text_sampling": _text,
        "case6_strings": _strings,
        "case6_mixed_ode_sde_sampling": _mixed,
        chain.NAME: chain.replay,
    }
    for name, piece in pieces.items():
        if any(folder.glob(f"{name}.*")):
            yield from piece(folder)


def _sde(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case6_sde_sampler")
    x, v, after, t = (golden[f"in.{name}"] for name in ("x_t", "velocity", "x_prev", "t"))
    dt = torch.minimum(golden["in.dt"], t)
    for mode in facts["modes"]:
        run, kind = Run("6", f"sde {mode['tag']}"), (mode["eta"], mode["eta_mode"])
        out = {key.removeprefix(f"out.{mode['tag']}."): value for key, value in golden.items()}
        mean, std = flow.sde_mean_std(x, v, t, dt, *kind)
        mean_ref, _ = flow.sde_mean_std(x, golden["in.velocity_ref"], t, dt, *kind)
        run.close("mean", mean, out["mean"], STEPS)
        run.close("std", std, out["std"], STEPS)
        run.close("kl", flow.gaussian_kl(mean, mean_ref, std, half=False), out["kl"], STEPS)
        score = flow.step_logprob(after, mean, std)
        run.close("log-probability", score, out["log_prob"])
        constant = (std.log() + 0.5 * math.log(2 * math.pi)).flatten()
        run.close("log-probability with constant", score - constant, out["log_prob_real"])
        step = mean + std * golden["in.noise"]
        run.close("step", step, out["step_sample"])
        run.close("log-probability of the step", flow.step_logprob(step, mean, std), out["step_log_prob"])
        yield run


def _guidance(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case6_cfg_combine")
    shape = (facts["samples"], facts["tokens_per_sample"], -1)
    cond, text_drop, image_drop = (golden[f"in.v_{name}"].reshape(shape) for name in ("cond", "text", "img"))
    run = Run("6", "guidance")
    for spec, expected in zip(facts["runs"], golden["out.rollout"], strict=True):
        scales = spec["cfg_text_scale"], spec["cfg_img_scale"], spec["cfg_renorm_type"], spec["cfg_renorm_min"]
        run.close(str(scales), flow.guide(cond, text_drop, image_drop, *scales).flatten(0, 1), expected)
    yield run


def _text(folder: Path) -> Iterator[Run]:
    facts, golden = read_case(folder, "case6_text_sampling")
    run = Run("6", "text sampling")
    for index, spec in enumerate(facts["runs"]):
        ours = sampler.token_distribution(golden["in.logits"], spec["temperature"], spec["topk"], spec["top_p"])
        run.close(f"distribution of {spec}", ours, golden[f"out.run{index}.sampling_distribution"])
    yield run


def _strings(folder: Path) -> Iterator[Run]:
    facts, _ = read_case(folder, "case6_strings")
    run, strings = Run("6", "strings"), facts["strings"]
    edits = [templates.parse_edit(text) for text in strings]
    plans = [float(templates.plan_is_formed(text)) for text in strings]
    reflections = [float(templates.reflection_is_formed(text)) for text in strings]
    run.equal("form of plans", plans, facts["format_reward_reason_stage"])
    run.equal("form of reflections", reflections, facts["format_reward_reflect_stage"])
    run.equal("instructions", edits, facts["edit_operation"])
    run.equal("stops", [templates.is_stop(edit) for edit in edits], facts["counts_as_stop"])
    run.equal("no text at all", float(templates.plan_is_formed(None)), facts["non_string_reward"])
    prompts, _ = read_case(folder, "prompts")
    for name, ours in (
        ("r3_gen_think_system", R3_TEMPLATES.plan_system),
        ("r3_vlm_think_system", R3_TEMPLATES.reflect_system),
        ("r3_reflection_template", R3_TEMPLATES.reflect),
    ):
        if name in prompts:
            run.equal(name, ours, prompts[name]["text"])
    yield run


@torch.no_grad()
def _mixed(folder: Path) -> Iterator[Run]:
    """Drawings with some stochastic steps; a text branch, no picture branch."""
    facts, golden = read_case(folder, "case6_mixed_ode_sde_sampling")
    bagel, params, batch = tiny(folder), facts["params"], len(facts["prompts"])
    branches = Branches(read(bagel, [[Text(ids)] for ids in facts["prompts"]]), bagel.empty_cache(batch))
    sampling = Sampling(
        time_shift=params["timestep_shift"],
        text_guidance=params["cfg_text_scale"],
        guidance_interval=tuple(params["cfg_interval"]),
        eta_mode=params["eta_mode"],
    )
    grid, points = token_grid(bagel, *facts["image_hw"]), params["num_timesteps"]
    noise = golden["in.initial_noise"].unflatten(0, (batch, -1))
    for indices in facts["sde_step_indices"]:
        tag = "idx_" + "_".join(map(str, indices))
        run, out = Run("6", f"mixed {tag}"), {name: golden.get(f"out.{tag}.{name}") for name in ("latents", "final")}
        fresh = {index: golden["in.sde_noise"][k] for k, index in enumerate(indices)}
        renorm = params["cfg_renorm_type"]
        steps = walk(bagel, branches, grid, noise, points, sampling, renorm, params["eta"], fresh)
        run.close("final latent", steps.states[-1], out["final"], VALUES)
        # Kept as the reference keeps them: before the first stochastic step, and after each.
        kept = [steps.states[indices[0]], *(steps.states[index + 1] for index in indices)]
        run.close("kept latents", torch.stack(kept, dim=1), out["latents"])
        scores = torch.stack([steps.scores[index] for index in indices], dim=1)
        run.close("log-probabilities", scores, golden[f"out.{tag}.log_probs"])
        run.close("times", steps.times[indices], golden[f"out.{tag}.timesteps"])
        run.close("step lengths", -steps.times.diff()[indices], golden[f"out.{tag}.dts"])
        yield run
