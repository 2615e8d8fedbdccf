"""Laws of training: it resumes exactly, learns, counts what fails, and every baseline is a switch."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from triptych.apps.cli import main
from triptych.data.scene import Scene
from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError, JudgeError, TrainingError
from triptych.model import weights
from triptych.model.config import Resize
from triptych.rewards.judge import BrightnessJudge
from triptych.rewards.rewards import Reward
from triptych.rl import sft_mix
from triptych.rl.advantages import group_advantages
from triptych.rl.config import (
    BFLOAT16_LIMITS,
    Limits,
    LoraConfig,
    SFTMix,
    StageConfig,
    TrainConfig,
    TreeConfig,
)
from triptych.rl.recipes import DEBUG, RECIPES, picture_only, rewards_only, sft_only, text_only, tiny
from triptych.rl.train import Rollout, Step, _batches, _stages, train
from triptych.rl.train_state import TrainState
from triptych.rl.tree import Group, Node
from triptych.seeds import derive
from triptych.sft import checkpoint
from triptych.trace import Completion, Drawing, Prompt, SDESteps, Trace, Turn, Verdict

PROMPTS = StickerPrompts(0)


def run(config: TrainConfig, out: Path | None = None, again: bool = False, judge=None) -> list[Step]:
    return list(train(tiny(), PROMPTS, judge or BrightnessJudge(), config, out, again))


def cut(config: TrainConfig, out: Path, after: int, again: bool) -> None:
    """Train and stop dead after that many steps."""
    steps = train(tiny(), PROMPTS, BrightnessJudge(), config, out, again)
    for _ in range(after):
        next(steps)
    steps.close()


def newest(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(out / "checkpoints")
    assert found is not None
    return found[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "config",
    [
        DEBUG,
        replace(DEBUG, tree=TreeConfig(depth=2, resample=1), reference="ema", seed=3),
        replace(DEBUG, tree=TreeConfig(kind="trajectory", depth=1)),
        replace(DEBUG, lora=LoraConfig(rank=2), reference="adapter"),
    ],
    ids=["debug", "deeper, resampled, average as reference", "trajectory", "adapters"],
)
def test_a_cut_run_resumes_exactly(tmp_path, config):
    """Weights, averages, optimiser and waiting parents, wherever it was cut."""
    if config.lora.rank:
        pytest.importorskip("peft")
    config = replace(config, steps=4)
    whole = run(config, tmp_path / "whole")
    for count, after in enumerate((2, 2, 1)):
        cut(config, tmp_path / "cut", after, again=count > 0)
    again = run(config, tmp_path / "cut", again=True)
    assert same(newest(tmp_path / "whole"), newest(tmp_path / "cut"))
    timing = ("seconds", "samples_per_second", "share_")
    for one, two in zip(whole[-len(again) :], again, strict=True):
        mine, theirs = (
            {name: value for name, value in step.metrics.items() if not name.startswith(timing)} for step in (one, two)
        )
        assert (one.stage, mine) == (two.stage, theirs)


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path):
    """`triptych train debug`, killed with -9 as soon as it has logged a step, and again; then to the end."""

    def command(out: str) -> list[str]:
        arguments = ["train", "debug", "--steps", "4", "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "triptych.apps.cli", *arguments]

    assert main(command("A")[3:]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for wanted in (1, 3):
        resume = ["--resume"] if wanted > 1 else []
        process = subprocess.Popen([*command("B"), *resume], env=environment, stdout=subprocess.DEVNULL)
        log = tmp_path / "B" / "steps.jsonl"
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command("B"), "--resume"], env=environment, check=True, capture_output=True)
    for name in ("ema.safetensors", "ae.safetensors"):
        one, two = ((tmp_path / out / "model" / name).read_bytes() for out in ("A", "B"))
        assert one == two
    rows = [len((tmp_path / out / "steps.jsonl").read_text().splitlines()) for out in ("A", "B")]
    assert rows == [4, 4]


def test_recipes_can_be_compared_on_one_budget_of_samples(tmp_path):
    """A run stops once its samples are used up, and a larger budget goes on from there."""
    steps = run(replace(DEBUG, steps=9, samples=25, save_every=9), tmp_path / "run")
    assert steps[-2].metrics["samples"] < 25 <= steps[-1].metrics["samples"]
    more = replace(DEBUG, steps=9, samples=int(steps[-1].metrics["samples"]) + 1)
    assert [step.index for step in run(more, tmp_path / "run", again=True)] == [len(steps)]


def test_a_run_is_not_mixed_with_another(tmp_path):
    run(replace(DEBUG, steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        run(DEBUG, tmp_path / "run")
    with pytest.raises(ConfigError, match="max_grad_norm"):
        run(replace(DEBUG, max_grad_norm=0.5), tmp_path / "run", again=True)
    with pytest.raises(ConfigError, match="start"):
        list(train(tiny(seed=1), PROMPTS, BrightnessJudge(), DEBUG, tmp_path / "run", True))
    run(replace(DEBUG, steps=2, save_every=9, micro_batch_size=2), tmp_path / "run", again=True)


def test_micro_batches_and_checkpointing_change_nothing_but_memory(tmp_path):
    """The gradients are the same: AdamW's first moments are compared, since it divides tiny gradients by themselves."""

    def gradients(name: str, **changes) -> torch.Tensor:
        run(replace(DEBUG, steps=1, ema_decay=0.0, **changes), tmp_path / name)
        state = newest(tmp_path / name)
        return torch.cat([state[key].flatten() for key in sorted(state) if key.endswith("/exp_avg")])

    whole = gradients("whole", micro_batch_size=32)
    scale = float(whole.abs().max())
    assert scale > 0
    for name, changes in (("one", {"micro_batch_size": 1}), ("layers", {"gradient_checkpointing": True})):
        assert torch.allclose(gradients(name, **changes), whole, atol=1e-4 * scale)


def test_drawing_learns_to_please():
    """FlowGRPO on the brightness of a picture makes it brighter, and moves nothing but the gen experts."""
    stage = replace(DEBUG.reason, parents=2, group_size=6, plan_share=0.0)
    picture = replace(stage.picture, lr=3e-3, kl_coef=0.0, normalize_advantages=True, sde_window=2)
    sampling = replace(stage.sampling, text_guidance=1.0)
    config = replace(
        DEBUG, reason=replace(stage, picture=picture, sampling=sampling), tree=TreeConfig(depth=0), steps=30
    )
    bagel = tiny()
    before = {name: p.detach().clone() for name, p in bagel.named_parameters()}

    def brightness() -> np.ndarray:
        texts = [PROMPTS(900 + row).text for row in range(8)]
        drawn = bagel.draw(texts, [None] * 8, sampling.resolve(), list(range(8)))
        return np.array([one.image.mean() for one in drawn])

    untrained = brightness()
    list(train(bagel, PROMPTS, BrightnessJudge(), replace(config, ema_decay=0.0)))
    assert (brightness() - untrained).mean() > 0.1  # levels, for the same prompts and noise, none of them trained on
    moved = {name for name, p in bagel.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("_moe_gen" in name or name.startswith(("llm2vae", "vae2llm", "time_")) for name in moved)


def test_a_share_of_the_rollouts_draws_without_a_plan():
    config = replace(DEBUG, reason=replace(DEBUG.reason, plan_share=0.5), tree=TreeConfig(depth=0), steps=12)
    planned = [step.metrics["planned"] for step in run(config)]
    assert set(planned) == {0.0, 1.0}
    often = [config.reason.sample_variant(derive(config.seed, step, 4)).plan_share for step in range(400)]
    assert 150 < sum(often) < 250
    with pytest.raises(ConfigError, match=r"--reason.plan-share"):
        replace(DEBUG, reason=replace(DEBUG.reason, plan_share=1.5)).check()


class Wordy:
    """A judge of plans: the share of their tokens that are in the first half of the vocabulary."""

    name = "wordy"

    def __call__(self, traces):
        return [Verdict(float((trace.turns[-1].said.tokens < 128).mean())) for trace in traces]


def test_speaking_learns_to_please():
    text = replace(DEBUG.reason.text, lr=3e-3, kl_coef=0.0)
    stage = replace(DEBUG.reason, text=text, parents=2, group_size=8, inner_epochs=1)
    config = text_only(replace(DEBUG, reason=stage, tree=TreeConfig(depth=0), steps=30, ema_decay=0.0))
    scores = [step.metrics["v"] for step in run(config, judge=Wordy())]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.15


class Sleepy(BrightnessJudge):
    """Has no verdict on every third picture."""

    asked = 0

    def __call__(self, traces):
        if len(traces) > 1:
            raise JudgeError("one at a time")
        object.__setattr__(self, "asked", self.asked + 1)
        if self.asked % 3 == 0:
            raise JudgeError("asleep")
        return super().__call__(traces)


class Absent(BrightnessJudge):
    def __call__(self, traces):
        raise JudgeError("nobody at home")


def test_missing_verdicts_are_counted_and_too_many_stop_the_run():
    steps = run(replace(DEBUG, limits=Limits(missing=0.5)), judge=Sleepy())
    assert steps[0].metrics["missing"] == 2
    assert sum(len(group.siblings) for group in steps[0].groups) == 4
    with pytest.raises(JudgeError, match="nobody at home"):
        run(DEBUG, judge=Absent())


class Tired(BrightnessJudge):
    """Sees the first so many pictures, and none after them."""

    def __init__(self, seen: int):
        object.__setattr__(self, "left", seen)

    def __call__(self, traces):
        object.__setattr__(self, "left", self.left - len(traces))
        if self.left < 0:
            raise JudgeError("too tired")
        return super().__call__(traces)


@pytest.mark.parametrize(("judged", "taken"), [(2, 5), (30, 41)])
def test_missing_verdicts_are_counted_over_the_newest_steps(judged, taken):
    """So many steps of six verdicts, then none: a run stops once more than half of its last 20 steps are missing."""
    config = picture_only(replace(DEBUG, steps=60, tree=TreeConfig(depth=0), limits=Limits(missing=0.5)))
    config = replace(config, reason=replace(config.reason, plan_share=0.0, inner_epochs=1))
    seen = 0
    with pytest.raises(JudgeError, match="too tired"):
        for _ in train(tiny(), PROMPTS, Tired(6 * judged), config):
            seen += 1
    assert seen == taken


def test_the_newest_checkpoints_stay_and_others_go(tmp_path):
    run(replace(DEBUG, steps=4, keep=3), tmp_path)
    assert [path.name[-1] for path in checkpoint.steps(tmp_path / "checkpoints")] == ["2", "3", "4"]
    run(replace(DEBUG, steps=5, keep=1), tmp_path, again=True)  # a resumed run may keep another number
    assert [path.name[-1] for path in checkpoint.steps(tmp_path / "checkpoints")] == ["5"]


def test_a_setting_that_is_newer_than_a_run_does_not_stop_it(tmp_path):
    run(replace(DEBUG, steps=1), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["lora"], record["keep"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert len(run(DEBUG, tmp_path, again=True)) == 1
    with pytest.raises(ConfigError, match="lora"):
        run(replace(DEBUG, lora=LoraConfig(rank=2)), tmp_path, again=True)


def test_groups_under_two_rows_are_dropped():
    steps = run(replace(DEBUG, limits=Limits(missing=1.0)), judge=Absent())
    assert steps[0].metrics["dropped"] == 2 and steps[0].metrics["groups"] == 0
    assert "loss" not in steps[0].metrics


class Broken(BrightnessJudge):
    def __call__(self, traces):
        return [Verdict(float("nan")) for _ in traces]


def test_a_score_that_is_no_share_is_a_missing_verdict():
    with pytest.raises(JudgeError, match="score nan"):
        run(DEBUG, judge=Broken())


def test_steps_that_are_not_finite_are_skipped_counted_and_stop_the_run():
    text = replace(DEBUG.reason.text, kl_coef=1e300)
    config = replace(DEBUG, steps=9, limits=Limits(bad_steps=2), reason=replace(DEBUG.reason, text=text))
    bagel, seen = tiny(), []
    before = {name: p.detach().clone() for name, p in bagel.named_parameters()}
    with pytest.raises(TrainingError, match="2 steps in a row"):
        for step in train(bagel, PROMPTS, BrightnessJudge(), replace(config, tree=TreeConfig(depth=0))):
            seen.append(step.metrics["skipped"])
    assert seen == [1, 2]
    assert all(torch.equal(p, before[name]) for name, p in bagel.named_parameters())
    # A good step in between breaks the row.
    seen = [step.metrics["skipped"] for step in train(tiny(), PROMPTS, BrightnessJudge(), replace(config, steps=4))]
    assert seen == [1, 1, 2, 2]


def test_a_chain_whose_edits_are_not_finite_moves_nothing():
    text = replace(DEBUG.refine.text, kl_coef=1e300)
    config = replace(DEBUG, steps=1, refine=replace(DEBUG.refine, text=text), tree=TreeConfig(kind="trajectory"))
    bagel = tiny()
    before = {name: p.detach().clone() for name, p in bagel.named_parameters()}
    (step,) = train(bagel, PROMPTS, BrightnessJudge(), replace(config, ema_decay=0.0))
    assert step.metrics["skipped"] == 1 and not np.isfinite(step.metrics["loss"])
    assert all(torch.equal(p, before[name]) for name, p in bagel.named_parameters())


class Bored(BrightnessJudge):
    """Gives everything the same."""

    def __call__(self, traces):
        return [Verdict(0.5) for _ in traces]


@pytest.mark.parametrize(("resample", "groups"), [(0, 2), (2, 6)])
def test_groups_without_spread_are_counted_and_can_be_resampled(resample, groups):
    step = next(iter(train(tiny(), PROMPTS, Bored(), replace(DEBUG, tree=TreeConfig(resample=resample)))))
    assert step.metrics["zero_std_text"] == step.metrics["zero_std_picture"] == 1
    assert len(step.groups) == groups and step.metrics["resampled"] == groups - 2
    assert len({group.parent.trace.prompt.text for group in step.groups}) == groups


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (replace(DEBUG, tree=TreeConfig(kind="trajectory")), ["trajectory"] * 3),
        (replace(DEBUG, tree=TreeConfig(depth=0)), ["reason"] * 3),
        (replace(DEBUG, tree=TreeConfig(depth=2)), ["reason", "refine", "refine"]),
        (replace(DEBUG, tree=TreeConfig(selection="uniform")), ["reason", "refine", "reason"]),
        (text_only(DEBUG), ["reason", "refine", "reason"]),
        (picture_only(DEBUG), ["reason", "refine", "reason"]),
        (rewards_only(DEBUG, 0.0), ["reason", "refine", "reason"]),
        (replace(DEBUG, dtype="bfloat16", limits=BFLOAT16_LIMITS), ["reason", "refine", "reason"]),
    ],
    ids=["trajectory", "reason-only", "deeper", "uniform", "text-only", "image-only", "no-kl", "bfloat16"],
)
def test_every_baseline_is_one_switch(config, stages):
    steps = run(replace(config, steps=3))
    assert [step.stage for step in steps] == stages
    assert all(np.isfinite(list(step.metrics.values())).all() for step in steps)
    for step in steps:
        assert ("sde_ratio" in step.metrics) is config.reason.picture.train
        assert ("text_ratio" in step.metrics) is config.reason.text.train
        assert ("text_kl" in step.metrics) is bool(config.reason.text.kl_coef and config.reason.text.train)
    assert steps[-1].metrics["samples"] > steps[0].metrics["samples"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name):
    config, about = RECIPES[name]
    config.check()
    assert about.endswith(".")


def greedy(name: str) -> TrainConfig:
    stage = getattr(DEBUG, name)
    return replace(DEBUG, **{name: replace(stage, sampling=replace(stage.sampling, temperature=0.0))})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(DEBUG, reason=replace(DEBUG.reason, group_size=1)), "--reason.group-size 1"),
        (replace(DEBUG, refine=replace(DEBUG.refine, images_per_text=2)), "refine.images-per-text"),
        (replace(DEBUG, reason=replace(DEBUG.reason, parents=0)), "--reason.parents 0"),
        (replace(DEBUG, tree=TreeConfig(right_share=2.0)), "--tree.right-share 2.0"),
        (replace(DEBUG, reference="ema", ema_decay=0.0), "--ema-decay"),
        (replace(DEBUG, steps=0), "--steps 0"),
        (replace(DEBUG, sft_mix=SFTMix(lr=-1.0)), "--sft-mix.lr -1.0"),
        (replace(DEBUG, lr_decay_steps=-3), "--lr-decay-steps -3"),
        (greedy("reason"), "--reason.sampling.temperature"),
        (greedy("refine"), "--refine.sampling.temperature"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        config.check()


def test_greedy_text_is_fine_where_it_does_not_learn():
    picture_only(greedy("reason")).check()


def detects(pictures):
    return [Scene.sample(PROMPTS(0).spec, seed) for seed, _ in enumerate(pictures)]


SMALL = SFTMix(lr=1e-4, pictures=1, edits=2, words=2, self_generated_share=1.0, max_self_generated=4)


def taught(config: TrainConfig, out: Path, again: bool = False):
    """A run whose pictures are large enough for lessons."""
    bagel, side = tiny(), Resize(96, 96, 16)
    bagel.config = replace(bagel.config, image_size=(96, 96), vae_resize=side, vit_resize=side)
    return train(bagel, PROMPTS, BrightnessJudge(), config, out, again, detect=detects)


def test_lessons_beside_rewards_are_exact_too(tmp_path):
    """They hold a share of own pictures, and a run with them resumes as exactly as one without."""
    config = replace(sft_only(DEBUG), sft_mix=SMALL, steps=2)
    whole = list(taught(config, tmp_path / "whole"))
    assert all(step.metrics["sft_loss"] > 0 and "text_ratio" not in step.metrics for step in whole)
    steps = taught(config, tmp_path / "cut")
    next(steps)
    next(steps)  # the first one is saved when the second is asked for
    steps.close()
    list(taught(config, tmp_path / "cut", again=True))
    assert same(newest(tmp_path / "whole"), newest(tmp_path / "cut"))
    page = sft_mix.sft_rows(config.sft_mix, whole[0].groups, 0, 0, detects)
    assert [one.picture is not None for one in page.groups[1]] == [True, True]
    assert sft_mix.sft_rows(SFTMix(), whole[0].groups, 0, 0, detects) is None


def test_lessons_do_not_drown_rewards(tmp_path):
    """Their gradients are far longer: in one sum with those of rewards, AdamW would divide by what is not a reward."""
    once = replace(DEBUG, steps=1, reason=replace(DEBUG.reason, inner_epochs=1))
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    (without,) = taught(once, alone)
    (step,) = taught(replace(once, sft_mix=SMALL), beside)
    assert step.metrics["sft_grad_norm"] > step.metrics["grad_norm"] == without.metrics["grad_norm"] > 0
    with_none, with_both = newest(alone), newest(beside)
    moments = [name for name in with_none if name.startswith("adamw_reason/")]
    assert moments and all(torch.equal(with_none[name], with_both[name]) for name in moments)
    assert any(name.startswith("adamw_sft/") for name in with_both)
    assert not any(name.startswith("adamw_sft/") for name in with_none)


def test_the_vision_tower_and_the_autoencoder_stay_as_they_are(tmp_path):
    run(DEBUG, tmp_path)
    held = {name.removeprefix("model/") for name in newest(tmp_path) if name.startswith("model/")}
    assert not any(name.startswith(("vit_model", "autoencoder")) for name in held)
    assert any(name.startswith("connector") for name in held)
    assert load_file(tmp_path / "checkpoints" / "step-00000002" / "state.safetensors")


def drawn_by_three(asked: Trace, said: Completion | None) -> Group:
    """Siblings of one parent with rewards of 0, 1 and 2."""
    line = np.zeros(1, np.float32)
    state = np.zeros((1, 4, 3), np.float32)
    drawn = Drawing(np.zeros((2, 2, 3), np.uint8), SDESteps(state, state, line, line, line, np.arange(1), state))
    turn = Turn(said, drawn, "add" if asked.turns else None)
    nodes = [Node(asked + turn, Verdict(0.5), Reward(gain, gain, True, True)) for gain in (0.0, 1.0, 2.0)]
    return Group(Node(asked, Verdict(0.5)), tuple(nodes))


@pytest.mark.parametrize("name", ["sketch", "trajectory", "text-only", "image-only", "reason-only", "deeper"])
def test_what_a_recipe_samples_is_compared(name):
    """Whatever is said or drawn has gains where it learns, with a plan or without, in trees and in chains."""
    config, asked = RECIPES[name][0], Trace(Prompt("a cat"))
    first = drawn_by_three(asked, None)
    later = drawn_by_three(first.siblings[0].trace, Completion("a", np.arange(3), np.zeros(3, np.float32)))
    whole = Group(first.parent, later.siblings)
    states = [TrainState(), *[TrainState(parents=(first.siblings[0],))] * (config.tree.depth > 0)]
    for state in states:
        label, stages = _stages(config, state)
        group = {"reason": first, "refine": later, "trajectory": whole}[label]
        advantages = tuple(group_advantages(group, rollout.stage) for _, rollout, _ in stages)
        for batch in _batches(Rollout([(group, advantages)], [group], [], (), 0), stages, config):
            has_text = batch.source == "refine" and batch.stage.text.train
            assert bool(batch.batch.text_advantages.any()) is has_text, (label, batch.source)
            assert bool(batch.batch.image_advantages.any()) is batch.stage.picture.train, (label, batch.source)


def test_whole_chains_teach_each_stage_at_its_own_rates(monkeypatch):
    """Edits with the rates and the moments of Refine, first pictures with those of Reason; neither sees the other's."""
    stepped, plain = [], torch.optim.AdamW.step

    def step(self):
        stepped.append((id(self), [group["lr"] for group in self.param_groups]))
        return plain(self)

    def paced(stage: StageConfig, text: float, picture: float) -> StageConfig:
        parts = {"text": replace(stage.text, lr=text), "picture": replace(stage.picture, lr=picture)}
        return replace(stage, inner_epochs=1, **parts)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    stages = {"reason": paced(DEBUG.reason, 1e-3, 2e-3), "refine": paced(DEBUG.refine, 3e-3, 4e-3)}
    run(replace(DEBUG, tree=TreeConfig(kind="trajectory", depth=1), steps=1, warmup_steps=0, **stages))
    assert len({optimizer for optimizer, _ in stepped}) == len(stepped) == 2
    assert [found for _, found in stepped] == [pytest.approx([1e-3, 2e-3]), pytest.approx([3e-3, 4e-3])]


def test_every_recipe_of_sketch_starts_from_the_packaged_lessons():
    starts = {name: config.model for name, (config, _) in RECIPES.items() if not name.endswith(("-7b", "debug"))}
    assert {*starts.values()} == {"sketch-lessons"} and len(starts) >= 10
    (packaged, lessons) = (weights.load(name).state_dict() for name in ("sketch", "sketch-lessons"))
    assert packaged.keys() == lessons.keys()
    assert all(packaged[name].shape == lessons[name].shape for name in packaged)


@pytest.mark.parametrize("name", sorted({*RECIPES} - {"sft-only"}))
def test_no_stage_of_a_recipe_grows_what_teaches_nothing(name):
    config, _ = RECIPES[name]
    assert config.reason.trains_text or config.reason.picture.train
    assert config.tree.depth == 0 or config.refine.text.train or config.refine.picture.train


def test_rates_rise_and_then_fall_as_one_over_time(tmp_path):
    config = replace(DEBUG, warmup_steps=4, lr_decay_steps=20)
    falling = [0.25, 0.5 / 1.05, 1 / 2, 1 / 3, 1 / 4]
    assert [config.lr_scale(step) for step in (0, 1, 20, 40, 60)] == pytest.approx(falling)
    assert [replace(config, lr_decay_steps=0).lr_scale(step) for step in (0, 3, 4, 1000)] == [0.25, 1, 1, 1]
    for steps, alike in ((1, True), (2, False)):  # at step 0 nothing has fallen yet
        ends = []
        for halved in (0, 1):
            run(replace(DEBUG, steps=steps, lr_decay_steps=halved), tmp_path / f"{steps}-{halved}")
            ends.append(newest(tmp_path / f"{steps}-{halved}"))
        assert same(*ends) == alike


def test_stages_do_not_drown_one_another(tmp_path):
    """A Refine step leaves the moments of Reason as they were, unless both share theirs."""
    for moments in ("stages", "shared"):
        ends = []
        for steps in (1, 2):
            out = tmp_path / f"{moments}-{steps}"
            run(replace(DEBUG, steps=steps, moments=moments), out)
            ends.append({name: each for name, each in newest(out).items() if name.startswith("adamw_reason/")})
        assert ends[0] and same(*ends) == (moments == "stages")


def test_the_published_average_keeps_little_of_the_first_weights(tmp_path):
    """However long an average is, a short run publishes what it has learnt and not where it began."""
    run(replace(DEBUG, ema_decay=0.999, steps=4, save_every=4), tmp_path / "run")
    tensors, first = newest(tmp_path / "run"), dict(tiny().named_parameters())
    learnt = {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}

    def apart(kind: str) -> float:
        """From the average to the first weights, or to the newest ones."""
        others = first if kind == "first" else {name[6:]: tensor for name, tensor in learnt.items()}
        return sum(float((tensors[f"average/{name[6:]}"] - others[name[6:]].detach()).norm()) for name in learnt)

    assert 0 < apart("newest") < apart("first") / 2
