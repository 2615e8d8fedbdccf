"""Laws of adapters: fresh ones change nothing, off means absent, merged means the same, the base stays as it was."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import BAGEL_7B, SKETCH
from triptych.model.logprobs import ImageSample, TextSample
from triptych.rewards.judge import BrightnessJudge
from triptych.rl import lora as adapters
from triptych.rl.config import BFLOAT16_LIMITS, LoraConfig, SFTMix, TrainConfig
from triptych.rl.learner import Learner
from triptych.rl.recipes import DEBUG, picture_only, tiny
from triptych.rl.train import Step, train
from triptych.sft import checkpoint

peft = pytest.importorskip("peft")
PROMPTS = StickerPrompts(0)
SMALL = LoraConfig(rank=2, alpha=4)
LORA = replace(DEBUG, lora=SMALL, reference="adapter", ema_decay=0.0)
SAMPLING = DEBUG.reason.sampling.resolve(DEBUG.reason.sample_sde_indices(0))


def adapted(lora: LoraConfig = SMALL, size: float = 0.3) -> Bagel:
    """The tiny model with adapters that are not fresh any more."""
    bagel = tiny()
    adapters.inject(bagel, lora, seed=1)
    nudge([layer.lora_B["default"].weight for layer in adapters.layers(bagel).values()], size)
    return bagel


def nudge(parameters, size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def sampled(bagel: Bagel) -> tuple[list[TextSample], list[ImageSample]]:
    """What a model says and draws, to be scored by others."""
    texts = [PROMPTS(row).text for row in range(3)]
    plans = bagel.plan(texts, SAMPLING, [0, 1, 2])
    drawn = bagel.draw(texts, plans, SAMPLING, [5, 6, 7], [0, 1, 2])
    told = [TextSample(text, None, plan) for text, plan in zip(texts, plans, strict=True)]
    painted = [
        ImageSample(text, plan, None, one.sde_steps) for text, plan, one in zip(texts, plans, drawn, strict=True)
    ]
    return told, painted


@torch.no_grad()
def scores(bagel: Bagel) -> torch.Tensor:
    """What a model thinks of the same texts and strokes, as one row of numbers."""
    told, painted = sampled(tiny())
    strokes = torch.cat([one.mean.flatten() for one in bagel.sde_logprobs(painted, SAMPLING)])
    return torch.cat([bagel.text_logprobs(told, SAMPLING).logprob.flatten(), strokes])


def run(config: TrainConfig, out=None) -> tuple[Bagel, list[Step]]:
    bagel = tiny()
    return bagel, list(train(bagel, PROMPTS, BrightnessJudge(), config, out))


def rated(config: TrainConfig, rate: float) -> TrainConfig:
    """The same with this learning rate everywhere."""
    stages = {
        name: replace(stage, text=replace(stage.text, lr=rate), picture=replace(stage.picture, lr=rate))
        for name, stage in (("reason", config.reason), ("refine", config.refine))
    }
    return replace(config, **stages)


@pytest.mark.parametrize("config", [SKETCH, BAGEL_7B], ids=lambda config: config.name)
def test_names_are_alike_for_every_size(config):
    """Each expert's seven projections in every layer, and back to the published names and shapes by merging."""
    with torch.device("meta"):
        bagel = Bagel(config)
    names = [name for name, _ in bagel.named_modules()]
    found = {
        experts: {name for name in names if re.fullmatch(adapters.targets(LoraConfig(experts=experts)), name)}
        for experts in ("und", "gen", "both")
    }
    count = 7 * config.language.num_hidden_layers
    assert [len(found[experts]) for experts in ("und", "gen", "both")] == [count, count, 2 * count]
    assert found["und"] | found["gen"] == found["both"]
    assert all("_moe_gen" in name for name in found["gen"]) and not any("_moe_gen" in name for name in found["und"])
    plain = weights.shapes(bagel)
    adapters.inject(bagel, LoraConfig(rank=4), seed=0)
    assert set(adapters.layers(bagel)) == found["both"]
    assert {name: tuple(tensor.shape) for name, tensor in adapters.merged(bagel).items()} == {
        **plain["ema.safetensors"],
        **{f"autoencoder.{name}": shape for name, shape in plain["ae.safetensors"].items()},
    }
    adapters.merge(bagel)
    assert weights.shapes(bagel) == plain and not adapters.layers(bagel)


def test_projections_can_be_chosen():
    bagel = tiny()
    adapters.inject(bagel, LoraConfig(rank=2, projections=("q_proj", "up_proj")), seed=0)
    kinds = {name.rsplit(".", 1)[-1] for name in adapters.layers(bagel)}
    assert kinds == {"q_proj", "q_proj_moe_gen", "up_proj"}


def test_fresh_adapters_change_nothing_and_old_ones_do():
    fresh = tiny()
    adapters.inject(fresh, SMALL, seed=1)
    assert torch.equal(scores(fresh), scores(tiny()))
    assert not torch.allclose(scores(adapted()), scores(tiny()), atol=1e-3)


def test_adapters_come_from_their_seed_alone():
    torch.manual_seed(5)
    one = adapted()
    torch.manual_seed(6)
    assert torch.equal(scores(one), scores(adapted()))


def test_off_means_absent_and_on_again_is_as_before():
    bagel = adapted()
    before = scores(bagel)
    held = bagel.language_model.model.layers[0].self_attn.q_proj.lora_A["default"].weight  # pyright: ignore
    held.requires_grad_(False)
    with adapters.switched_off(bagel):
        assert torch.equal(scores(bagel), scores(tiny()))
    assert torch.equal(scores(bagel), before)
    assert not held.requires_grad  # what was held still is


def test_merged_weights_are_the_model_with_its_adapters(tmp_path):
    """In memory, in a published folder, and as an adapter that peft itself puts on the first model."""
    bagel = adapted()
    before = scores(bagel)
    weights.save(bagel, tmp_path / "model", state=adapters.merged(bagel))
    assert torch.equal(scores(bagel), before)  # still with its adapters
    adapters.save_adapters(bagel, tmp_path / "adapter")
    adapters.save_adapters(bagel, tmp_path / "adapter")  # in place of the older one
    adapters.merge(bagel)
    theirs = peft.PeftModel.from_pretrained(tiny(), str(tmp_path / "adapter")).merge_and_unload()
    for other in (bagel, weights.load(tmp_path / "model"), theirs):
        assert set(other.state_dict()) == set(tiny().state_dict())
        assert torch.allclose(scores(other), before, atol=1e-5)


def test_weights_in_half_precision_wear_adapters_in_full():
    """They learn in float32, and what they learn arrives in the merged weights."""
    bagel = tiny().to(torch.bfloat16)
    bagel.autoencoder.float()
    first = {name: tensor.clone() for name, tensor in bagel.state_dict().items()}
    learner = Learner(bagel, LORA)
    assert {parameter.dtype for parameter in learner.learning.values()} == {torch.float32}
    assert bagel.language_model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    learner.merge_for_release()
    assert all(torch.equal(tensor, first[name]) for name, tensor in bagel.state_dict().items())
    half = replace(LORA, dtype="bfloat16", limits=BFLOAT16_LIMITS)
    steps = list(train(bagel, PROMPTS, BrightnessJudge(), rated(half, 0.1)))
    assert all(np.isfinite(list(step.metrics.values())).all() for step in steps)
    moved = {name for name, tensor in bagel.state_dict().items() if not torch.equal(tensor, first[name])}
    assert moved and {bagel.state_dict()[name].dtype for name in moved} == {torch.bfloat16}


@pytest.mark.parametrize("experts", ["und", "gen", "both"])
def test_training_moves_the_chosen_adapters_and_nothing_else(experts, tmp_path):
    """Checkpoints hold what learns alone; the end is a plain model, and its adapter on its own."""
    lora = replace(SMALL, experts=experts)
    stages = {
        name: replace(
            stage,
            text=replace(stage.text, train=experts != "gen"),
            picture=replace(stage.picture, train=experts != "und"),
        )
        for name, stage in (("reason", DEBUG.reason), ("refine", DEBUG.refine))
    }
    bagel, _ = run(replace(LORA, lora=lora, **stages), tmp_path)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    held = [name for name in found[0] if name.startswith("model/")]
    assert held and all(".lora_A." in name or ".lora_B." in name for name in held)
    assert {"_moe_gen" in name for name in held} == {"und": {False}, "gen": {True}, "both": {False, True}}[experts]
    first = tiny().state_dict()
    moved = {name for name, tensor in bagel.state_dict().items() if not torch.equal(tensor, first[name])}
    assert moved and all(re.fullmatch(adapters.targets(lora) + r"\.weight", name) for name in moved)
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == {
        f"base_model.model.{name.removeprefix('model/').replace('.default.', '.')}" for name in held
    }


def test_a_model_with_adapters_is_no_start():
    with pytest.raises(ConfigError, match="already"):
        Learner(adapted(), LORA)


@pytest.mark.parametrize(
    "config",
    [
        replace(DEBUG, ema_decay=0.0),
        replace(DEBUG, reference="ema", ema_decay=0.9),
        LORA,
        replace(LORA, reference="frozen"),
        replace(LORA, reference="ema", ema_decay=0.9),
    ],
    ids=["frozen", "average", "adapter", "adapters, frozen", "adapters, average"],
)
def test_the_reference_is_the_first_model_whatever_became_of_the_policy(config):
    bagel = tiny()
    learner = Learner(bagel, config)
    assert torch.equal(scores(bagel), scores(tiny()))
    nudge(learner.learning.values(), 0.05)
    moved = scores(bagel)
    assert not torch.allclose(moved, scores(tiny()), atol=1e-3)
    with learner.as_reference():
        assert torch.allclose(scores(bagel), scores(tiny()), atol=1e-6)
    assert torch.equal(scores(bagel), moved)


def test_adapters_that_are_their_own_reference_need_no_copy():
    learner = Learner(tiny(), LORA)
    assert learner.first is None and learner.average is None
    frozen = Learner(tiny(), replace(LORA, reference="frozen")).first
    assert frozen is not None and all(".lora_" in name for name in frozen)  # what is frozen is in memory once


def test_kl_is_nothing_at_first_and_the_same_from_either_reference():
    once = replace(LORA.reason, inner_epochs=1, text=replace(LORA.reason.text, lr=1e-2))
    config = replace(LORA, reason=once, refine=replace(LORA.refine, inner_epochs=1), steps=3, warmup_steps=1)
    (_, mine), (_, theirs) = run(config), run(replace(config, reference="frozen"))
    for name in ("text_kl", "sde_kl"):
        assert mine[0].metrics[name] == pytest.approx(0, abs=1e-9)
        assert mine[2].metrics[name] > 1e-9
    for one, two in zip(mine, theirs, strict=True):
        for name in ("text_kl", "sde_kl"):
            assert one.metrics[name] == pytest.approx(two.metrics[name], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(DEBUG, reference="adapter"), "--lora.rank"),
        (replace(DEBUG, lora=LoraConfig(rank=-1)), "--lora.rank -1"),
        (replace(DEBUG, lora=LoraConfig(rank=2, projections=())), "projections"),
        (replace(LORA, lora=LoraConfig(rank=2, experts="und")), "reason.picture"),
        (replace(LORA, lora=LoraConfig(rank=2, experts="gen")), "reason.text"),
        (replace(LORA, train_vision=True), "--no-train-vision"),
        (replace(DEBUG, keep=0), "--keep 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        config.check()


def test_an_sft_mix_needs_adapters_of_both_experts():
    config = replace(picture_only(DEBUG), lora=LoraConfig(rank=2, experts="gen"), sft_mix=SFTMix(lr=1e-4))
    with pytest.raises(ConfigError, match="SFT mix"):
        config.check()


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'triptych\[lora\]'"):
        Learner(tiny(), LORA)
