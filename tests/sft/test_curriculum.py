"""Laws of the curriculum: a run that was cut resumes exactly, and each stage moves what it is for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from triptych.model import weights
from triptych.model.config import SKETCH
from triptych.model.transformer import is_generation
from triptych.seeds import START
from triptych.sft import checkpoint
from triptych.sft.curriculum import SFT_DEBUG, SFT_RECIPES, SFTConfig
from triptych.sft.run import RecipeConfig, run_sft
from triptych.sft.self_generated import load_pictures, self_generated_pictures

ONE = replace(SFT_DEBUG, save_every=1)
STAGES = ("vae", "vision", "connector", "joint", "decoder", "self_generated", "gen", "final_decoder")


def cut(config: SFTConfig, out: Path, updates: int, resume: bool) -> None:
    """Train and stop dead after so many updates."""
    steps = run_sft(config, out, resume)
    for _ in range(updates):
        next(steps)
    steps.close()


def tensors(folder: Path, name: str = "ema.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / name)


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def averages(stage: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest(stage)
    assert saved is not None
    return {name.removeprefix("average/"): t for name, t in saved[0].items() if name.startswith("average/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the debug recipe from beginning to end."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    assert [step.stage for step in run_sft(ONE, out)] == [stage for stage in STAGES for _ in range(2)]
    return out


def test_a_cut_run_resumes_exactly(whole: Path, tmp_path: Path):
    for count, updates in enumerate((1, 3, 3, 2, 1, 3)):
        cut(ONE, tmp_path / "cut", updates, resume=count > 0)
    list(run_sft(ONE, tmp_path / "cut", resume=True))
    for name in ("ema.safetensors", "ae.safetensors"):
        assert not moved(tensors(whole, name), tensors(tmp_path / "cut", name))
    assert weights.load(whole / "model").config.world == "stickers"


def test_a_finished_run_makes_its_result_again(whole: Path):
    before = (whole / "model" / "ema.safetensors").read_bytes()
    assert list(run_sft(ONE, whole, resume=True)) == []
    assert (whole / "model" / "ema.safetensors").read_bytes() == before
    assert {path.name for path in whole.iterdir()} == {*SFTConfig.outputs, "sft.json"} - {"steps.jsonl"}


def test_a_run_goes_on_from_a_checkpoint(whole: Path, tmp_path: Path):
    further = replace(
        ONE,
        start=str(whole / "model"),
        self_generated=replace(ONE.self_generated, steps=0),
        gen=replace(ONE.gen, steps=0),
    )
    steps = list(run_sft(further, tmp_path))
    assert [step.stage for step in steps] == [s for s in ("joint", "decoder", "final_decoder") for _ in range(2)]
    assert moved(tensors(whole), tensors(tmp_path))
    decoder = moved(tensors(whole, "ae.safetensors"), tensors(tmp_path, "ae.safetensors"))
    assert decoder and all(name.startswith("decoder.") for name in decoder)


def test_the_gen_stage_moves_generation_experts_alone(whole: Path):
    before = {name: tensor.bfloat16() for name, tensor in averages(whole / "self_generated").items()}
    after = {name: tensor for name, tensor in tensors(whole).items() if name in before}
    names = moved({name: before[name] for name in after}, after)
    assert all(is_generation(name) for name in names)
    assert {"llm2vae.weight", "vae2llm.weight", "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"} <= names


def test_the_gen_stage_starts_from_the_averaged_weights(tmp_path: Path):
    """With a learning rate of 0 its weights are those it started from."""
    config = replace(
        ONE,
        start="sketch",
        decoder=replace(ONE.decoder, steps=0),
        self_generated=replace(ONE.self_generated, steps=0),
        gen=replace(ONE.gen, steps=1, lr=0.0, muon_lr=0.0),
    )
    cut(config, tmp_path, 3, resume=False)  # two updates of the joint stage, one of gen
    joint, gen = (checkpoint.latest(tmp_path / name) for name in ("joint", "gen"))
    assert joint is not None and gen is not None
    started = {name.removeprefix("model/"): t for name, t in gen[0].items() if name.startswith("model/")}
    assert started and all(torch.equal(tensor, joint[0][f"average/{name}"]) for name, tensor in started.items())
    assert any(not torch.equal(tensor, joint[0][f"model/{name}"]) for name, tensor in started.items())


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_own_pictures_are_of_the_averaged_model_with_a_guidance_of_their_own(guidance: float, tmp_path: Path):
    own = replace(ONE.self_generated, steps=1, images=1, guidance=guidance)
    nothing = {"joint": replace(ONE.joint, steps=0), "decoder": replace(ONE.decoder, steps=0)}
    cut(replace(ONE, start="sketch", self_generated=own, **nothing), tmp_path, 1, resume=False)
    policy = weights.load("sketch", dtype=torch.float32)
    sampling = replace(policy.config.sampling, text_guidance=guidance, plan_temperature=None)
    expected = self_generated_pictures(policy, 1, START["self_generated"], sampling, own.mix)
    drawn = load_pictures(tmp_path / "self_generated_pictures")
    assert drawn is not None and drawn[0] == expected[0] and np.array_equal(drawn[1], expected[1])


def test_the_published_model_samples_as_sketch_does(whole: Path):
    assert weights.load(whole / "model").config.sampling == SKETCH.sampling


def test_the_vision_tower_stays_as_it_learned_to_see(whole: Path, tmp_path: Path):
    published = tensors(whole)
    learned = {name: t for name, t in averages(whole / "vision").items() if name.startswith("tower.")}
    assert learned
    for name, tensor in learned.items():
        assert torch.equal(published[f"vit_model.{name.removeprefix('tower.')}"], tensor.bfloat16())
    cut(replace(ONE, vision=replace(ONE.vision, frozen=False)), tmp_path, 7, resume=False)  # the first joint update
    assert any(name.startswith("vit_model.") for name in averages(tmp_path / "joint"))


@pytest.mark.parametrize("config", [config for config, _ in SFT_RECIPES.values()], ids=list(SFT_RECIPES))
def test_every_recipe_can_be_trained(config: RecipeConfig):
    config.check()


def test_stages_without_steps_are_left_out():
    """No steps of a stage that no other one needs are a choice, whatever its rows would be."""
    nothing = replace(SFT_DEBUG.self_generated, steps=0, pictures=0, edits=0, words=0, images=0)
    vision = replace(SFT_DEBUG.vision, steps=0)
    replace(SFT_DEBUG, start="sketch", self_generated=nothing, vision=vision).check()
