"""What a token's probability is, and that drawing and re-scoring agree on it."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file
from tiny_bagel import TINY

from triptych.errors import ConfigError
from triptych.model.config import Sampling
from triptych.model.kv_cache import KVCache
from triptych.model.linear import product
from triptych.model.sampler import draw_tokens, kept_ids, token_distribution, token_logprobs

SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_k=3, top_p=0.5),
]


def random_logits(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@given(
    temperature=some.sampled_from([0.0]) | some.floats(0.01, 3.0),
    top_k=some.integers(-1, 50),
    top_p=some.floats(0.0, 1.0),
    seed=some.integers(0, 99),
)
def test_a_distribution_sums_to_one(temperature, top_k, top_p, seed):
    probabilities = token_distribution(random_logits(3, 40, seed=seed), temperature, top_k, top_p)
    assert (probabilities >= 0).all()
    assert torch.allclose(probabilities.sum(-1), torch.ones(3), atol=1e-5)


def test_no_filter_is_softmax_and_top_k_keeps_k():
    logits = random_logits(3, 40)
    assert torch.allclose(token_distribution(logits, 0.5), (logits / 0.5).softmax(-1), atol=1e-7)
    assert ((token_distribution(logits, 1.0, top_k=7) > 0).sum(-1) == 7).all()


def test_top_p_keeps_the_token_that_crosses_and_wins_over_top_k():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kept = token_distribution(logits, 1.0, top_k=1, top_p=0.6)
    assert torch.allclose(kept, torch.tensor([[0.625, 0.375, 0.0]]))


def test_top_p_keeps_at_most_a_thousand():
    assert (token_distribution(torch.zeros(1, 3000), 1.0, top_p=0.99) > 0).sum() == 1000


def test_temperature_zero_is_greedy():
    logits = random_logits(3, 40)
    tokens, logprobs, _ = draw_tokens(logits, Sampling(temperature=0), generators(0, 1, 2))
    assert torch.equal(tokens, logits.argmax(-1)) and torch.equal(logprobs, torch.zeros(3))
    assert torch.equal(token_distribution(logits, 0.0).argmax(-1), tokens)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_logprob_is_the_log_of_the_distribution_at_the_token(sampling):
    logits = random_logits(50, 40)
    tokens, logprobs, kept = draw_tokens(logits, sampling, generators(*range(50)))
    probabilities = token_distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    assert logprobs.dtype == torch.float32
    assert torch.allclose(logprobs, probabilities.gather(-1, tokens[:, None])[:, 0].log(), atol=1e-6)
    again, entropy = token_logprobs(
        logits[:, None], tokens[:, None], sampling.temperature, None if kept is None else kept[:, None]
    )
    assert torch.equal(again[:, 0], logprobs)
    assert torch.allclose(entropy[:, 0], torch.special.entr(probabilities).sum(-1), atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_row_does_not_see_its_neighbours(sampling):
    logits = random_logits(3, 40)
    tokens, logprobs, _ = draw_tokens(logits, sampling, generators(7, 8, 9))
    alone, score, _ = draw_tokens(logits[1:2], sampling, generators(8))
    assert torch.equal(tokens[1:2], alone) and torch.equal(logprobs[1:2], score)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_follow_the_distribution(sampling):
    logits = random_logits(1, 12)
    tokens, _, _ = draw_tokens(logits.expand(20_000, 12), sampling, generators(5) * 20_000)
    expected = token_distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p)[0]
    shares = tokens.bincount(minlength=12) / 20_000
    assert torch.allclose(shares, expected, atol=0.015)
    assert (shares[expected == 0] == 0).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_record_of_a_filter_is_what_could_be_drawn(sampling):
    logits = random_logits(20, 40)
    kept = draw_tokens(logits, sampling, generators(*range(20)))[2]
    if sampling.top_p >= 1 and sampling.top_k <= 0:
        assert kept is None
        return
    possible = token_distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p) > 0
    assert kept is not None and torch.equal(kept, possible)
    assert [ids.tolist() for ids in kept_ids(kept)] == [row.nonzero()[:, 0].tolist() for row in possible]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rescoring_has_the_gradient_of_the_kept_tokens(sampling):
    drawn = random_logits(10, 12)
    tokens, _, kept = draw_tokens(drawn, sampling, generators(*range(10)))
    logits = (drawn + random_logits(10, 12, seed=1)).requires_grad_()  # after an update: another filter would result
    scores, _ = token_logprobs(
        logits[:, None], tokens[:, None], sampling.temperature, None if kept is None else kept[:, None]
    )
    scores.sum().backward()
    allowed = torch.ones_like(drawn, dtype=torch.bool) if kept is None else kept
    probabilities = (logits.detach() / sampling.temperature).masked_fill(~allowed, -torch.inf).softmax(-1)
    one_hot = torch.nn.functional.one_hot(tokens, 12)
    assert torch.allclose(logits.grad, (one_hot - probabilities) / sampling.temperature, atol=1e-5)


def test_a_drawn_token_that_has_become_unlikely_stays_finite():
    logits = torch.tensor([[[5.0, 0.0, -5.0]]], requires_grad=True)
    kept = torch.tensor([[[False, True, True]]])
    score, _ = token_logprobs(logits, torch.tensor([[2]]), 0.9, kept)
    score.sum().backward()
    assert torch.isfinite(score).all() and torch.isfinite(logits.grad).all() and score < -5


def test_greedy_text_cannot_be_learned_from():
    with pytest.raises(ConfigError, match="temperature"):
        token_logprobs(random_logits(1, 1, 4), torch.zeros(1, 1, dtype=torch.long), temperature=0)


def test_parity_text_sampling(shared):
    case = json.loads((shared / "parity/case6_text_sampling.json").read_text())
    golden = load_file(shared / "parity/case6_text_sampling.safetensors")
    for index, run in enumerate(case["runs"]):
        out = token_distribution(golden["in.logits"], run["temperature"], run["topk"], run["top_p"])
        torch.testing.assert_close(out, golden[f"out.run{index}.sampling_distribution"], atol=5e-5, rtol=1e-4)


def test_rows_that_leave_a_cache_are_replaced_from_its_end():
    cache = KVCache.empty(TINY.language, 5, torch.device("cpu"), torch.float32)
    cache.position = torch.arange(5)
    cache.keys[0][:] = torch.arange(5.0)[:, None, None, None]
    kept = cache.retain([1, 4])
    assert kept == [4, 1] and cache.position.tolist() == kept and cache.batch == 2
    assert cache.keys[0][:, 0, 0, 0].tolist() == [4.0, 1.0]


@pytest.mark.parametrize("change", ["in place", "other numbers", "through a copy"])
def test_joined_weights_follow_their_layers(change):
    layers = [torch.nn.Linear(3, size) for size in (2, 4)]
    x = torch.randn(5, 3)
    for _ in range(2):
        with torch.no_grad():
            expected = torch.cat([layer(x) for layer in layers], dim=1)
            assert torch.allclose(product(x, layers), expected, atol=1e-6)
            if change == "in place":
                layers[1].weight.add_(1)
            elif change == "other numbers":
                layers[1].bias.data = torch.randn(4)
            else:
                layers = copy.deepcopy(layers)
                layers[0].weight.mul_(2)
    product(x, layers).sum().backward()
    assert all(layer.weight.grad is not None and layer.bias.grad is not None for layer in layers)


def test_top_p_stops_where_it_is_reached():
    """Of two tokens of one half each, the first reaches a half; a crumb more needs both."""
    kept = [token_distribution(torch.zeros(1, 2), 1.0, top_p=top_p)[0].tolist() for top_p in (0.5, 0.5001)]
    assert sorted(kept[0]) == [0, 1] and kept[1] == [0.5, 0.5]
