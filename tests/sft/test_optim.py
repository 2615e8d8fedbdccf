"""Laws of the fit loop: a run that was killed at any update ends in the same bytes, and its numbers are known ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.errors import ModelError, TrainingError
from triptych.sft import checkpoint
from triptych.sft.optim import (
    FitConfig,
    SFTStage,
    copies,
    ema_decay,
    fit,
    lr_factor,
    muon_and_adamw,
    update_ema,
)

CONFIG = FitConfig(steps=6, lr=0.05, warmup_steps=2, cooldown=0.5, ema_decay=0.9, weight_decay=0.01)


def toy(config: FitConfig = CONFIG) -> SFTStage:
    """Two matrices for Muon, one of each expert, a bias for AdamW, and a running mean, which has no gradient."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        name: nn.Parameter(torch.randn(4, 4, generator=generator))
        for name in ("model.layers.0.proj", "model.layers.0.proj_moe_gen")
    }
    tensors |= {"bias": nn.Parameter(torch.zeros(4)), "mean": torch.zeros(4)}
    first, second, bias, mean = tensors.values()

    def samples(step: int) -> list[tuple[Tensor, float]]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return [(x, 1.0)]

    def loss(x: Tensor) -> tuple[Tensor, dict[str, float]]:
        mean.lerp_(x.mean(0), 0.1)
        return (x @ first @ second + bias - x + mean).square().mean(), {}

    learned = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    optimizers = muon_and_adamw(learned, config, muon_lr=0.02)
    return SFTStage("toy", config, tensors, copies(tensors), optimizers, samples, loss)


def result(stage: SFTStage) -> list[Tensor]:
    return [*stage.tensors.values(), *stage.ema.values()]


@pytest.mark.parametrize("save_every", [1, 2, 4])
@pytest.mark.parametrize("killed", range(1, CONFIG.steps))
def test_a_stage_that_was_killed_ends_in_the_same_bytes(killed: int, save_every: int, tmp_path: Path):
    whole, dead, resumed = toy(), toy(), toy()
    steps = list(fit(whole, tmp_path / "whole", save_every))
    killed_run = fit(dead, tmp_path / "killed", save_every)
    for _ in range(killed):
        next(killed_run)
    killed_run.close()
    rest = list(fit(resumed, tmp_path / "killed", save_every))
    assert rest == steps[killed // save_every * save_every :]
    assert all(torch.equal(one, other) for one, other in zip(result(whole), result(resumed), strict=True))
    assert list(fit(toy(), tmp_path / "killed", save_every)) == []  # it is over


@pytest.mark.parametrize("kind", ["model/", "average/", "muon_und/", "muon_gen/", "adamw/"])
def test_the_state_of_a_stage_is_whole(kind: str, tmp_path: Path):
    """Each kind of tensor is there and counts: without weights or averages a resume is refused, without moments a run
    ends elsewhere."""
    whole = toy()
    list(fit(whole, tmp_path / "whole", 100))
    run = fit(toy(), tmp_path / "cut", 3)
    for _ in range(3):
        next(run)
    path = tmp_path / "cut" / "step-00000003" / "state.safetensors"
    tensors = load_file(path)
    assert any(name.startswith(kind) for name in tensors)
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(kind)}, path)
    resumed = toy()
    if kind in ("model/", "average/"):
        with pytest.raises(ModelError, match=f"{kind}.*resume with the same config"):
            list(fit(resumed, tmp_path / "cut", 3))
        return
    list(fit(resumed, tmp_path / "cut", 3))
    assert not all(torch.equal(one, other) for one, other in zip(result(whole), result(resumed), strict=True))


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path):
    list(fit(toy(), tmp_path, 6))
    other = toy()
    tensors = dict(other.tensors) | {"bias": nn.Parameter(torch.zeros(5))}
    with pytest.raises(
        ModelError, match=r"model/bias: the checkpoint has shape \(4,\) of float32, expected shape \(5,\)"
    ):
        list(fit(replace(other, tensors=tensors), tmp_path, 6))


def test_worker_processes_change_nothing(tmp_path: Path):
    alone, helped = toy(), toy()
    assert list(fit(alone, tmp_path / "alone", 2)) == list(fit(helped, tmp_path / "helped", 2, num_workers=2))
    assert all(torch.equal(one, other) for one, other in zip(result(alone), result(helped), strict=True))


def test_the_learning_rate_is_a_trapezoid_and_resumes_where_it_was(tmp_path: Path):
    config = replace(CONFIG, steps=10, warmup_steps=4, cooldown=0.3)
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    assert [lr_factor(config, step) for step in range(10)] == pytest.approx(factors)
    used = []
    for killed in (3, 10):
        stage = toy(config)
        for step in fit(stage, tmp_path, 1):
            used.append(stage.optimizers["adamw"].param_groups[0]["lr"])  # of the update after this one
            if step.index + 1 == killed:
                break
    assert used == pytest.approx([config.lr * factor for factor in [*factors[1:], 0.0]])


def test_the_average_follows_its_formula_and_forgets_the_first_weights():
    assert [ema_decay(step, 0.95) for step in (0, 8, 989)] == pytest.approx([0.1, 0.5, 0.95])
    weights = {"w": torch.tensor([1000.0]), "count": torch.tensor(3)}
    ema, expected = copies(weights), 1000.0
    for step in range(30):
        weights["w"].fill_(float(step % 7))
        update_ema(ema, weights, step, 0.95)
        decay = min(0.95, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step % 7)
    assert float(ema["w"]) == pytest.approx(expected, rel=1e-5) and expected < 7  # .95 alone would leave 200 of 1000
    assert int(ema["count"]) == 3
    update_ema(ema, weights, 0, 0.0)
    assert torch.equal(ema["w"], weights["w"])  # no decay: no average


def line(
    weight: Tensor, optimizer: torch.optim.Optimizer, config: FitConfig, scale: float, threads: int = 1
) -> SFTStage:
    """A weight `[4]` that learns to be scale times as large along each row, in as many parts as threads."""

    def samples(step: int) -> list[tuple[Tensor, float]]:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        return [(x[part::threads], 1 / threads) for part in range(threads)]

    def loss(x: Tensor) -> tuple[Tensor, dict[str, float]]:
        return (x @ weight - scale * x.sum(1)).square().mean(), {"rows": float(len(x))}

    tensors = {"w": weight}
    return SFTStage("line", config, tensors, copies(tensors), {"sgd": optimizer}, samples, loss, threads)


def sgd_step(scale: float, max_grad_norm: float, out: Path, threads: int = 1) -> tuple[Tensor, float]:
    """How far one update of SGD with a learning rate of 1 moves a weight from 0, and the gradient norm it logs."""
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([{"params": [weight], "initial_lr": 1.0}], lr=1.0)
    config = replace(CONFIG, steps=1, warmup_steps=0, cooldown=0.0, max_grad_norm=max_grad_norm)
    (step,) = fit(line(weight, optimizer, config, scale, threads), out, 1)
    assert step.metrics["rows"] == pytest.approx(12 / threads)
    return weight.detach(), step.metrics["grad_norm"]


def test_long_gradients_are_clipped_and_0_is_no_limit(tmp_path: Path):
    free, norm = sgd_step(5.0, 0.0, tmp_path / "free")
    clipped, same = sgd_step(5.0, 0.25, tmp_path / "clipped")
    assert norm == same and float(free.norm()) == pytest.approx(norm) and norm > 1
    assert torch.allclose(clipped, free * 0.25 / norm, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_the_parts_of_a_batch_add_up_to_it(threads: int, tmp_path: Path):
    whole, parts = (sgd_step(2.0, 0.0, tmp_path / str(count), count)[0] for count in (1, threads))
    again = sgd_step(2.0, 0.0, tmp_path / "again", threads)[0]
    assert torch.allclose(whole, parts, atol=1e-5) and torch.equal(parts, again)


def test_gradients_that_are_not_finite_stop_the_run_and_leave_its_checkpoint(tmp_path: Path):
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([{"params": [weight], "initial_lr": 1e30}], lr=1e30)
    run = fit(line(weight, optimizer, replace(CONFIG, warmup_steps=0), 1.0), tmp_path, 1)
    next(run)
    with pytest.raises(TrainingError, match=r"line, update 1: the gradient norm is (inf|nan).*--line.lr"):
        next(run)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000001"]
