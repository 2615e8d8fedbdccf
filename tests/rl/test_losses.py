"""Laws of the losses, and the parity kit's advantages."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.rl.losses import STD_FLOOR, advantages, clipped, flow_grpo, grpo, has_variance, token_kl

rewards_of = st.lists(st.integers(-8, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=12)


def test_every_advantage_case_of_the_kit(shared):
    facts = json.loads((shared / "parity" / "case6_advantages_and_rewards.json").read_text())
    two, expected = torch.tensor(facts["rewards_two_rounds"]), facts["advantages"]
    one = torch.tensor(facts["rewards_one_round"])[:, 0]
    first = advantages(two[:, 0])
    ours = {
        "training_call_one_round": [advantages(one)],
        "training_call_all_equal": [advantages(torch.tensor(facts["rewards_all_equal"])[:, 0])],
        "divide_std_one_round": [advantages(one, normalize=True)],
        "default_two_rounds": [first, advantages(two[:, 1] - two[:, 0])],
        "mean_then_std_two_rounds": [first, advantages(two[:, 1], normalize=True)],
        "no_later_ops_two_rounds": [first, two[:, 1]],
        "scalers_two_rounds": [0.5 * first, advantages(two[:, 1])],
    }
    assert ours.keys() == expected.keys()
    for name, columns in ours.items():
        assert torch.allclose(torch.stack(columns, dim=1), torch.tensor(expected[name]), atol=1e-6), name


@given(rewards_of, st.randoms(use_true_random=False), st.booleans())
def test_a_groups_advantages_add_up_to_nothing(rewards, chance, normalize):
    """Also where some rows have no picture: they are left out before the mean, and stay at 0.

    Forbids c.A14 of the parity kit: rows that are set to 0 after the mean was taken.
    """
    mask = torch.tensor([chance.random() < 0.6 for _ in rewards])
    found = advantages(torch.tensor(rewards), mask, normalize)
    assert float(found.sum()) == pytest.approx(0, abs=1e-4)
    assert (found[~mask] == 0).all()
    assert bool((found != 0).any()) == has_variance(torch.tensor(rewards), mask)


@given(st.floats(-3, 3), st.integers(2, 40), st.booleans())
def test_rewards_that_are_all_the_same_teach_exactly_nothing(reward, count, normalize):
    assert not advantages(torch.full((count,), reward), normalize=normalize).any()


@given(rewards_of, st.floats(0.1, 10), st.floats(-5, 5))
def test_divided_advantages_know_no_unit(rewards, scale, shift):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    if has_variance(rewards):
        one, two = advantages(rewards, normalize=True), advantages(rewards * scale + shift, normalize=True)
        assert torch.allclose(one, two, atol=1e-3)


@given(st.floats(0.1, 3), st.floats(-2, 2), st.floats(0.01, 0.5))
def test_clipping_never_promises_more(ratio, advantage, clip):
    """The clipped gain is a lower bound of the plain one, and equal to it near a ratio of 1."""
    ratio, advantage = torch.tensor(ratio, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64)
    gain = clipped(ratio, advantage, clip)
    assert gain <= ratio * advantage
    if abs(float(ratio) - 1) <= clip:
        assert gain == ratio * advantage


def texts(rows: int = 3, time: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    new = -torch.rand(rows, time, generator=generator)
    mask = torch.arange(time)[None] < torch.tensor([5, 3, 1])[:, None]
    return new, new + 0.1, torch.tensor([1.0, -0.5, -0.5]), mask


def test_parts_of_a_batch_add_up_to_its_loss():
    new, old, gain, mask = texts()
    count = int(mask.sum())
    whole = grpo(new, old, gain, mask, 0.2, count)
    parts = [grpo(new[i : i + 1], old[i : i + 1], gain[i : i + 1], mask[i : i + 1], 0.2, count) for i in range(3)]
    assert torch.allclose(whole, torch.stack(parts).sum())
    strokes = flow_grpo(new[:, 0], old[:, 0], gain, 0.2, 3)
    assert torch.allclose(strokes, sum(flow_grpo(new[[i], 0], old[[i], 0], gain[[i]], 0.2, 3) for i in range(3)))


def test_on_policy_the_gradient_is_that_of_the_weighted_log_probability():
    new, _, gain, mask = texts()
    new.requires_grad_(True)
    (gradient,) = torch.autograd.grad(grpo(new, new.detach(), gain, mask, 0.2, 9), new)
    assert torch.allclose(gradient, -gain[:, None] * mask / 9)


def test_every_token_under_the_mask_counts_the_last_one_too():
    """Forbids c.A5 of the parity kit, where the end token counts for nothing."""
    new, old, gain, mask = texts()
    for row, last in enumerate((4, 2, 0)):
        other = new.clone()
        other[row, last] += 0.05
        assert not torch.equal(grpo(other, old, gain, mask, 0.2, 9), grpo(new, old, gain, mask, 0.2, 9))
    beyond = new.clone()
    beyond[1, 3:] = 7.0
    assert torch.equal(grpo(beyond, old, gain, mask, 0.2, 9), grpo(new, old, gain, mask, 0.2, 9))


@given(st.lists(st.floats(-3, 0), min_size=1, max_size=6), st.lists(st.floats(-3, 0), min_size=6, max_size=6))
def test_kl_is_never_negative_and_nothing_between_equals(new, reference):
    one, two = torch.tensor([new]), torch.tensor([reference[: len(new)]])
    mask = torch.ones_like(one, dtype=torch.bool)
    assert token_kl(one, two, mask, one.numel()) >= -1e-6
    assert token_kl(one, one, mask, one.numel()) == 0


def test_k3_is_the_kl_on_average():
    """Averaged over the new policy's own tokens, the estimate is the true divergence."""
    generator = torch.Generator().manual_seed(1)
    new, reference = (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    gap = reference - new
    estimate = (new.exp() * (gap.exp() - gap - 1)).sum()
    assert torch.allclose(estimate, (new.exp() * (new - reference)).sum())
    tokens = torch.arange(7)
    each = torch.stack(
        [token_kl(new[None, [t]], reference[None, [t]], torch.ones(1, 1, dtype=torch.bool), 1) for t in tokens]
    )
    assert torch.allclose((new.exp() * each).sum(), estimate)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert advantages(rewards).tolist() == [0.75, -0.25, -0.25, -0.25]
    assert advantages(rewards, normalize=True).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-4)


def test_two_kept_rewards_that_differ_by_more_than_rounding_teach():
    floor = torch.tensor([0.0, STD_FLOOR], dtype=torch.float64)
    assert not has_variance(floor) and has_variance(2 * floor) and has_variance(-2 * floor)
    assert not has_variance(torch.tensor([1.0])) and not has_variance(torch.tensor([1.0, 1.0]))
    assert not has_variance(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([True, False, True]))


def test_losses_by_hand():
    """Minus what is gained, over a count that may be larger than the rows; each entry is clipped alone."""
    new, old = torch.tensor([0.0, math.log(2)]), torch.zeros(2)
    gain = torch.tensor([3.0, 1.0])
    assert float(flow_grpo(new, old, gain, 0.25, 5)) == pytest.approx(-(3 + 1.25) / 5)
    assert float(flow_grpo(new, old, -gain, 0.25, 5)) == pytest.approx((3 + 2) / 5)  # no clip where it gets worse
    mask = torch.tensor([[True, False], [True, True]])
    texts = grpo(new.expand(2, 2), old.expand(2, 2), gain, mask, 0.25, 5)
    assert float(texts) == pytest.approx(-(3 + 1 + 1.25) / 5)
    assert float(token_kl(old.expand(2, 2), new.expand(2, 2), mask, 5)) == pytest.approx((2 - math.log(2) - 1) / 5)
