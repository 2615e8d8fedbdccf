"""Laws of the flow, and the parity kit's numbers."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from triptych.errors import ConfigError
from triptych.model import flow

MODES = ["constant", "monotonic"]
RENORMS = ["global", "channel", "text_channel"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(points=some.integers(2, 60), shift=some.floats(0.2, 10))
def test_times_fall_from_one_to_zero(points, shift):
    t = flow.times(points, shift)
    assert len(t) == points and t[0] == 1 and t[-1] == 0
    assert (t.diff() < 0).all()


def test_shift_three_as_in_the_paper_kit():
    assert torch.allclose(flow.times(3, 3.0), torch.tensor([1.0, 0.75, 0.0]))


def test_one_point_is_no_schedule():
    with pytest.raises(ConfigError, match="points=1"):
        flow.times(1, 3.0)


def test_training_times_are_shifted_sigmoids():
    n = normal(1000)
    assert torch.equal(flow.training_times(n), torch.sigmoid(n))
    assert (flow.training_times(n, 3.0) > torch.sigmoid(n)).all()
    assert torch.equal(flow.training_times(torch.zeros(1)), torch.tensor([0.5]))


def test_noised_ends_are_picture_and_noise():
    picture, noise = normal(2, 5, 4), normal(2, 5, 4, seed=1)
    ends = flow.noised(picture, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(ends[0], picture[0]) and torch.equal(ends[1], noise[1])


@given(points=some.integers(2, 30), shift=some.floats(0.5, 5))
def test_a_straight_field_lands_on_the_picture_in_any_number_of_steps(points, shift):
    picture, noise = normal(2, 5, 4), normal(2, 5, 4, seed=1)
    x = noise
    for now, then in itertools.pairwise(flow.times(points, shift)):
        x = flow.ode_step(x, noise - picture, now - then)
    assert torch.allclose(x, picture, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("t", "dt"), [(1.0, 0.1), (0.5, 0.1), (0.1, 0.1), (0.0, 0.0)])
def test_sde_without_noise_is_ode(mode, t, dt):
    x, v = normal(2, 5, 4), normal(2, 5, 4, seed=1)
    mean, std = flow.sde_mean_std(x, v, t, dt, 0.0, mode)
    assert torch.equal(mean, flow.ode_step(x, v, dt)) and (std == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_sde_equals_its_formula_and_stays_finite_at_both_ends(mode):
    """The formula of the paper in float64, times down to where float32 could not divide by t squared."""
    x, v = normal(6, 5, 4), normal(6, 5, 4, seed=1)
    t = torch.tensor([1.0, 0.96, 0.95, 0.5, 1e-3, 1e-12])
    dt = t / 3
    mean, std = flow.sde_mean_std(x, v, t, dt, 0.7, mode)

    column, step = t.double().reshape(-1, 1, 1), dt.double().reshape(-1, 1, 1)
    eta = 0.7 if mode == "constant" else 0.7 * (column / (1 - column.clamp(max=0.95))).sqrt()
    clean = x.double() - column * v
    score = -((x - (1 - column) * clean) / column**2)
    score[-1] = -(x[-1].double() + v[-1]) / t[-1]  # here even float64 rounds the difference away
    expected = x - (v - eta**2 / 2 * score) * step
    assert torch.allclose(mean.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(std.double(), eta * step.sqrt(), rtol=1e-5)
    assert torch.isfinite(flow.sde_mean_std(x, v, 0.0, 0.0, 0.7, mode)[0]).all()


def test_a_sample_does_not_see_its_neighbours():
    x, v, u, m = (normal(3, 5, 4, seed=seed) for seed in range(4))
    t, dt = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.2, 0.1, 0.3])
    mean, std = flow.sde_mean_std(x, v, t, dt, 0.7, "monotonic")
    alone, spread = flow.sde_mean_std(x[1:2], v[1:2], 0.6, 0.1, 0.7, "monotonic")
    assert torch.equal(mean[1:2], alone) and torch.equal(std[1:2], spread)
    for renorm in RENORMS:
        together = flow.guide(v, u, m, 4.0, 1.5, renorm)
        assert torch.allclose(together[1:2], flow.guide(v[1:2], u[1:2], m[1:2], 4.0, 1.5, renorm), atol=1e-6)


def test_step_logprob_is_the_gaussian_up_to_a_constant():
    after, mean = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    std = torch.tensor([0.1, 0.5, 2.0]).reshape(-1, 1, 1)
    exact = Normal(mean, std).log_prob(after).mean((1, 2))
    constant = -torch.log(std.flatten()) - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    assert torch.allclose(flow.step_logprob(after, mean, std) + constant, exact, rtol=1e-5)


def test_kl_is_exact_and_the_release_counts_it_twice():
    mean, reference, std = normal(3, 5, 4), normal(3, 5, 4, seed=1), torch.full((3, 1, 1), 0.3)
    exact = kl_divergence(Normal(mean, std), Normal(reference, std)).mean((1, 2))
    assert torch.allclose(flow.gaussian_kl(mean, reference, std), exact, rtol=1e-5)
    assert torch.allclose(flow.gaussian_kl(mean, reference, std, half=False), 2 * exact, rtol=1e-5)


def test_interval_is_open_below_and_closed_above():
    assert [flow.guided(t, (0.4, 0.8)) for t in (0.3, 0.4, 0.41, 0.8, 0.81)] == [False, False, True, True, False]


@pytest.mark.parametrize("interval", [(0.4, 1.0), (0.0, 0.4), (0.4, 0.8), (0.1, 0.2)])
@pytest.mark.parametrize(("points", "shift"), [(9, 2.0), (16, 3.0), (50, 3.0), (11, 1.0)])
def test_the_bounds_of_guidance_are_compared_in_float32(points, shift, interval):
    """As BAGEL compares them, tensor with number. The seventh of nine times at shift 2 is .4, a bound."""
    times, (low, high) = flow.times(points, shift), interval
    assert [flow.guided(float(t), interval) for t in times] == [bool(t > low and t <= high) for t in times]
    assert flow.times(9, 2.0)[6] == 0.4 and not flow.guided(float(flow.times(9, 2.0)[6]), (0.4, 1.0))
    assert flow.guided(float(flow.times(9, 2.0)[6]), (0.0, 0.4))


@pytest.mark.parametrize("renorm", RENORMS)
def test_guidance_of_one_and_absent_branches(renorm):
    v, u, m = (normal(2, 5, 4, seed=seed) for seed in range(3))
    assert torch.equal(flow.guide(v, u, m, 1.0, 1.0, renorm), v)
    assert torch.equal(flow.guide(v, None, None, 4.0, 1.5, renorm), v)
    assert torch.equal(flow.guide(v, u, None, 4.0, 1.5, renorm), flow.guide(v, u, m, 4.0, 1.0, renorm))
    assert torch.allclose(flow.guide(v, v, v, 4.0, 1.5, renorm), v, atol=1e-6)


@pytest.mark.parametrize(("renorm", "axes"), [("global", (1, 2)), ("channel", (2,))])
def test_renormed_guidance_is_never_longer_than_cond(renorm, axes):
    v, u, m = (normal(2, 5, 4, seed=seed) for seed in range(3))
    lengths = flow.guide(v, u, m, 4.0, 1.5, renorm).norm(dim=axes)
    assert (lengths <= v.norm(dim=axes) * (1 + 1e-5)).all()


def test_parity_sde_sampler(shared):
    case = json.loads((shared / "parity/case6_sde_sampler.json").read_text())
    golden = load_file(shared / "parity/case6_sde_sampler.safetensors")
    x, v, t, dt = golden["in.x_t"], golden["in.velocity"], golden["in.t"], golden["dbg.dt_used"]
    assert torch.equal(dt, torch.minimum(golden["in.dt"], t))
    for mode in case["modes"]:
        out = {key.split(".")[-1]: value for key, value in golden.items() if key.startswith(f"out.{mode['tag']}.")}
        mean, std = flow.sde_mean_std(x, v, t, dt, mode["eta"], mode["eta_mode"])
        mean_ref, _ = flow.sde_mean_std(x, golden["in.velocity_ref"], t, dt, mode["eta"], mode["eta_mode"])
        scored = flow.step_logprob(golden["in.x_prev"], mean, std)
        near = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(mean, out["mean"], **near)
        torch.testing.assert_close(std, out["std"], **near)
        torch.testing.assert_close(scored, out["log_prob"], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(flow.gaussian_kl(mean, mean_ref, std, half=False), out["kl"], **near)
        after = mean + std * golden["in.noise"]
        torch.testing.assert_close(after, out["step_sample"], **near)
        torch.testing.assert_close(flow.step_logprob(after, mean, std), out["step_log_prob"], atol=5e-5, rtol=1e-4)


def test_parity_guidance(shared):
    case = json.loads((shared / "parity/case6_cfg_combine.json").read_text())
    golden = load_file(shared / "parity/case6_cfg_combine.safetensors")
    shape = (case["samples"], case["tokens_per_sample"], -1)
    v, u, m = (golden[f"in.v_{name}"].reshape(shape) for name in ("cond", "text", "img"))
    for run, expected in zip(case["runs"], golden["out.rollout"], strict=True):
        scales = (run["cfg_text_scale"], run["cfg_img_scale"])
        out = flow.guide(v, u, m, *scales, run["cfg_renorm_type"], run["cfg_renorm_min"])
        torch.testing.assert_close(out, expected.reshape(shape), atol=5e-5, rtol=1e-4)


def test_parity_mixed_sampling(shared):
    """Times, step sizes, the noise's share of a stochastic step, and the log-probabilities of steps really taken."""
    case = json.loads((shared / "parity/case6_mixed_ode_sde_sampling.json").read_text())
    golden = load_file(shared / "parity/case6_mixed_ode_sde_sampling.safetensors")
    params, noise = case["params"], golden["in.sde_noise"]
    schedule = flow.times(params["num_timesteps"], params["timestep_shift"])
    for indices in case["sde_step_indices"]:
        run = "out.idx_" + "_".join(map(str, indices))
        t, dt = schedule[indices], schedule[indices] - schedule[[index + 1 for index in indices]]
        torch.testing.assert_close(t, golden[f"{run}.timesteps"])
        torch.testing.assert_close(dt, golden[f"{run}.dts"], atol=1e-6, rtol=1e-5)
        for k in range(len(indices)):
            shape = golden[f"{run}.final"].shape
            std = flow.eta_at(t[k], params["eta"], params["eta_mode"]) * dt[k].sqrt()[None, None, None]
            mean = torch.zeros(shape)
            score = flow.step_logprob(mean + std * noise[k].reshape(shape), mean, std)
            torch.testing.assert_close(score, golden[f"{run}.log_probs"][:, k].mean(-1), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("stage", "beat"), [("reason", "gen"), ("reflect_refine", "edit")])
def test_parity_a_stochastic_step_of_the_release(shared, stage, beat):
    """Branch velocities of the training forward, guided, are those of the rollout; the step they make is its step."""
    case = json.loads((shared / "parity/case6_r3_rollout_and_training.json").read_text())
    golden = load_file(shared / "parity/case6_r3_rollout_and_training.safetensors")
    params, near = case["params"], {"atol": 5e-5, "rtol": 1e-4}
    out = {key.removeprefix(f"out.{stage}."): value for key, value in golden.items() if key.startswith(f"out.{stage}.")}
    schedule = flow.times(params[f"num_timesteps_{beat}"], params["timestep_shift"])
    (index,) = params[f"sde_idx_{beat}"]
    t, dt = schedule[index], schedule[index] - schedule[index + 1]
    torch.testing.assert_close(torch.stack([t, dt]), torch.cat([out["sample0.timesteps"], out["sample0.dts"]]), **near)

    velocity = out["velocity_at_sde_step"].reshape(2, 16, 64)
    cond, *drops = out["train.velocity_preds"].reshape(2, -1, 16, 64).unbind(1)  # sample, branch, patch, latent
    if flow.guided(float(t), tuple(params["cfg_interval"])):
        text_drop, image_drop = [*drops, None][:2]
        scales, renorm = (params["cfg_text_scale"], params["cfg_img_scale"]), params[f"cfg_renorm_type_{beat}"]
        cond = flow.guide(cond, text_drop, image_drop, *scales, renorm, params["cfg_renorm_min"])
    torch.testing.assert_close(cond, velocity, **near)

    before, after = torch.stack([out["sample0.latents"], out["sample1.latents"]], dim=1)
    mean, std = flow.sde_mean_std(before, velocity, t, dt, params[f"eta_{beat}"], params["eta_mode"])
    torch.testing.assert_close(mean + std * golden[f"in.sde_noise_{beat}"].reshape(2, 16, 64), after, **near)
    expected = torch.stack([out["sample0.log_probs"], out["sample1.log_probs"]]).mean((1, 2))
    torch.testing.assert_close(flow.step_logprob(after, mean, std), expected, **near)


def test_guidance_and_its_shortening_by_hand():
    """Two tokens of two channels, scale 1.5: the first is 1.5 times as long after guidance, the second half as long."""
    cond, drop = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    long, short = [4.5, 6.0], [0.0, 0.5]
    whole = (26 / (56.25 + 0.25)) ** 0.5  # of all four numbers together
    for renorm, least, expected in [
        ("channel", 0.0, [[3.0, 4.0], short]),  # what is shorter than cond is never lengthened
        ("text_channel", 0.0, [[3.0, 4.0], short]),
        ("channel", 0.8, [[3.6, 4.8], short]),  # not shortened to less than 0.8 of its length
        ("channel", 1.0, [long, short]),
        ("global", 0.0, [[whole * each for each in token] for token in (long, short)]),
    ]:
        found = flow.guide(cond, drop, None, 1.5, 1.0, renorm, least)
        assert torch.allclose(found, torch.tensor([expected]), atol=1e-5), (renorm, least)
    # Image guidance of "text_channel" comes after the shortening, at any scale above 1.
    found = flow.guide(cond, drop, torch.zeros_like(cond), 1.5, 1.5, "text_channel", 0.0)
    assert torch.allclose(found, 1.5 * torch.tensor([[[3.0, 4.0], short]]), atol=1e-5)
