"""The bench: parts add up, shares are shares, FLOPs have known values, and the timed steps train nothing."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scripted import ScriptedPolicy
from torch.utils.flop_counter import FlopCounterMode

from triptych.apps import bench
from triptych.apps.cli import main
from triptych.data.language import check_drawable, parse_prompt
from triptych.data.lexicon import build_tokenizer
from triptych.loop import play
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH
from triptych.rewards.judge import BrightnessJudge
from triptych.rl.config import LoraConfig
from triptych.rl.recipes import DEBUG, LORA_7B, SKETCH_RL, tiny
from triptych.trace import Prompt


@pytest.mark.parametrize("rank", [0, 2])
def test_a_training_step_by_part(rank):
    if rank:
        pytest.importorskip("peft")
    model, first = tiny(), tiny().state_dict()
    reference = "adapter" if rank else "frozen"
    config = replace(DEBUG, ema_decay=0.0, lora=LoraConfig(rank=rank), reference=reference)
    found = bench.measure_training(model, BrightnessJudge(), bench.shorten(config, 2, 1, 2), side=256)
    assert json.loads(json.dumps(found)) == found
    assert found["stages"] == ["reason", "refine"]
    for sums in (found["seconds_per_step"], found["flops_per_step"]):
        assert set(sums) == {*bench.STEP_PARTS, "total"} and all(value >= 0 for value in sums.values())
        assert sum(sums[part] for part in bench.STEP_PARTS) == pytest.approx(sums["total"])
    assert set(found["share_of_matmul"]) == {*bench.STEP_PARTS, "total"}
    assert all(0 <= share <= 1 for share in found["share_of_matmul"].values())
    assert set(found["peak_bytes"]) == set(bench.STEP_PARTS)
    flops = found["flops_per_step"]
    assert flops["rollout"] > flops["score"] > 0 and flops["update"] > 0 and flops["judge"] == 0
    assert 6 <= found["samples"] <= 8  # two plans, pictures and reflections, and edits of those that did not stop
    assert found["samples_per_second"] == pytest.approx(found["samples"] / (2 * found["seconds_per_step"]["total"]))
    assert len(bench.training_rows(found)) == 2 + len(bench.STEP_PARTS)
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


def test_scenes_are_counted_by_the_second():
    found = bench.time_rendering(batch=4, repeats=1)
    assert found["batch"] == 4 and found["sampled_per_second"] > 0 and found["rendered_per_second"] > 0


@pytest.mark.parametrize("wrong", [("--draws", "0"), ("--batch", "0"), ("--train-steps", "-1")])
def test_what_cannot_be_measured_is_refused_before_the_model_is_loaded(wrong, capsys):
    assert main(["bench", *wrong], lambda *_: pytest.fail("loaded")) == 2
    assert wrong[0] in capsys.readouterr().err


def test_counting_twice_gives_the_same():
    config = bench.shorten(replace(DEBUG, ema_decay=0.0), 2, 1, 2)
    model, counts = tiny(), []
    for _ in range(2):
        with FlopCounterMode(display=False, custom_mapping=bench.ATTENTION) as counter:
            timers, _ = bench.timed_steps(
                model, BrightnessJudge(), config, lambda: bench.Timer(read=counter.get_total_flops)
            )
        counts.append(bench.mean_by_part(timers))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("heads", [4, 2])
def test_attention_is_counted_however_it_is_computed(heads):
    query, key = torch.randn(2, 4, 5, 16), torch.randn(2, heads, 7, 16)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    with FlopCounterMode(display=False, custom_mapping=bench.ATTENTION) as counter, torch.no_grad():
        F.scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=heads < 4)
    assert counter.get_total_flops() == 2 * (2 * 4 * 5 * 7 * 16) * 2


def test_a_peak_is_of_what_was_in_use_since_the_last_time():
    peak = bench.peak_memory(torch.device("cpu"))
    if peak is None:
        pytest.skip("this machine does not tell a process its peak")
    before = peak()
    torch.ones(30_000_000)  # 120 MB, at once given back
    assert peak() - before > 100e6
    assert peak() - before < 60e6


@pytest.mark.parametrize("config", [SKETCH_RL, LORA_7B])
def test_what_is_measured_is_sound(config):
    shortened = bench.shorten(config, 2, 1, 2)
    shortened.check()
    stages = (shortened.reason, shortened.refine)
    assert all(part.lr == 0 for stage in stages for part in (stage.text, stage.picture))


def test_a_policy_that_never_stops_uses_every_turn():
    prompt = Prompt("a photo of two cats")
    *_, (own,) = play(ScriptedPolicy(mistakes=0), [prompt], [0], turns=3)
    *_, (forced,) = play(bench.NeverStop(ScriptedPolicy(mistakes=0)), [prompt], [0], turns=3)  # pyright: ignore
    assert own.finished and len(own.images) == 1
    assert not forced.finished and len(forced.images) == 4


def test_packed_guidance_is_guidance_branch_by_branch():
    model = Bagel(SKETCH, build_tokenizer()).eval()
    torch.nn.init.normal_(model.llm2vae.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    step = bench.time_guidance(model, batch=3, repeats=1)
    assert step["largest_difference"] < 1e-4


def test_the_prompt_of_the_timed_process_can_be_drawn():
    check_drawable(parse_prompt(bench.EXAMPLE))
