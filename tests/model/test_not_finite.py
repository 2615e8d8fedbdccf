"""NaN and infinity are told by stage and weight, cost no other row, and never become a picture or a score."""

import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_bagel import TINY

from triptych.data.lexicon import build_tokenizer
from triptych.errors import JudgeError, NotFiniteError
from triptych.eval.benchmark import Benchmark, run_benchmark
from triptych.loop import play, reason
from triptych.model.bagel import Bagel
from triptych.rewards.judge import BrightnessJudge, verdicts_of
from triptych.rewards.rewards import RewardRule
from triptych.rl.config import StageConfig
from triptych.rl.tree import StageRollout, expand, root
from triptych.trace import Prompt, Trace

WORDS = ("a photo of three clocks", "a photo of a red cat", "a photo of two clocks")  # one of them has a cat
SAMPLING = replace(
    TINY.sampling,
    **dict.fromkeys(("max_plan", "max_reflection", "max_answer"), 5),
    **{"draw_points": 4, "edit_points": 4, "text_guidance": 2.0, "image_guidance": 1.5},
)


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8) for seed in range(count)]


@pytest.fixture(scope="module")
def whole() -> Bagel:
    torch.manual_seed(0)
    return Bagel(replace(TINY, sampling=SAMPLING), build_tokenizer()).eval()


def broken(whole: Bagel, name: str, value: float = torch.nan, row: int | None = None) -> Bagel:
    """A copy with one weight that is not finite, or with one row of it."""
    bagel = deepcopy(whole)
    weight = bagel.get_parameter(name).data
    weight[slice(None) if row is None else row] = value
    return bagel


def without_cats(whole: Bagel) -> Bagel:
    """A model that cannot read one word: of several prompts those with it alone are not finite."""
    return broken(whole, "language_model.model.embed_tokens.weight", row=whole.tokenizer.token_to_id(" cat"))


DRAWS = {
    "llm2vae.bias": "velocities",
    "vae2llm.weight": "velocities",
    "time_embedder.mlp.0.weight": "velocities",
    "language_model.model.layers.0.mlp_moe_gen.up_proj.weight": "velocities",
    "autoencoder.decoder.conv_in.bias": "pixels of the decoder",
    "autoencoder.decoder.conv_out.weight": "pixels of the decoder",
}
READS = {
    "language_model.lm_head.weight": "logits are not finite; expected finite numbers: the weights",
    "language_model.model.norm.weight": "logits are not finite; expected finite numbers: the weights",
    "vit_model.vision_model.post_layernorm.weight": "logits are not finite.*the states of the vision tower",
    "connector.fc2.bias": "logits are not finite.*the states of the vision tower",
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", DRAWS)
def test_a_drawing_of_numbers_that_are_not_finite_is_no_picture(name, value, whole):
    with pytest.raises(NotFiniteError, match=f"{DRAWS[name]} are not finite.*{re.escape(name)}") as caught:
        broken(whole, name, value).draw(WORDS, [None] * 3, SAMPLING, [0, 1, 2])
    assert caught.value.rows == (0, 1, 2) and "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("name", READS)
def test_a_text_from_numbers_that_are_not_finite_is_told(name, top_p, temperature, whole):
    sampling = replace(SAMPLING, temperature=temperature, plan_temperature=None, top_p=top_p)
    bagel = broken(whole, name)
    for verb in (bagel.reflect, lambda texts, images, *rest: bagel.answer(images, texts, *rest)):
        with pytest.raises(NotFiniteError, match=f"{READS[name]}.*{re.escape(name)}"):
            verb(WORDS, pictures(3), sampling, [0, 1, 2])


@pytest.mark.parametrize("name", ["autoencoder.encoder.conv_in.weight", "connector.fc1.weight", "llm2vae.weight"])
def test_an_edit_tells_which_encoder_fed_it(name, whole):
    source = {"a": "the latents of the image, nor", "c": "the states of the vision tower, nor", "l": "the weights"}[
        name[0]
    ]
    with pytest.raises(NotFiniteError, match=f"velocities are not finite; expected finite numbers: {source}"):
        broken(whole, name).edit(pictures(1), ["add a cat"], SAMPLING, [0])


def test_rows_of_the_verbs_are_those_of_the_caller(whole):
    """Equal rows are computed once, and edits in batches of one size: neither numbering reaches the caller."""
    bagel = without_cats(whole)
    texts = [WORDS[0], WORDS[1], WORDS[0], WORDS[1]]
    images = [pictures(1)[0], pictures(1, 48, 32)[0], pictures(1)[0], pictures(1)[0]]
    for call in (
        lambda: bagel.plan(texts, SAMPLING, [0, 0, 0, 0]),
        lambda: bagel.draw(texts, [None] * 4, SAMPLING, [0, 0, 0, 0]),
        lambda: bagel.reflect(texts, images, SAMPLING, [0, 0, 0, 0]),
        lambda: bagel.answer(images, texts, SAMPLING, [0, 0, 0, 0]),
    ):
        with pytest.raises(NotFiniteError) as caught:
            call()
        assert set(caught.value.rows) == {1, 3}
    with pytest.raises(NotFiniteError) as caught:
        bagel.edit(images, texts, SAMPLING, [0, 0, 0, 0])
    assert caught.value.rows in ((1,), (3,))  # of the batch of one size that came first


def test_a_bad_row_is_lost_alone(whole):
    bagel, prompts = without_cats(whole), [Prompt(text) for text in WORDS]
    *_, traces = play(bagel, prompts, [0, 1, 2], turns=1)
    *_, others = play(whole, [prompts[0], prompts[2]], [0, 2], turns=1)
    assert [bool(trace.lost) for trace in traces] == [False, True, False] and "logits" in traces[1].lost
    assert traces[1].turns == ()
    for trace, other in zip((traces[0], traces[2]), others, strict=True):
        assert len(trace.turns) == len(other.turns) and trace.turns[0].said.text == other.turns[0].said.text
        assert np.abs(trace.image.astype(int) - other.image.astype(int)).max() <= 1


def test_a_batch_without_a_good_row_is_an_error(whole):
    with pytest.raises(NotFiniteError):
        reason(without_cats(whole), [Trace(Prompt(WORDS[1]))], SAMPLING)
    with pytest.raises(NotFiniteError):
        list(play(broken(whole, "llm2vae.bias"), [Prompt(text) for text in WORDS], [0, 1, 2], turns=0))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_lost_row_of_an_evaluation_is_missing_and_no_zero(batch, whole, tmp_path):
    benchmark = Benchmark("three", tuple(Prompt(text) for text in WORDS), {"all": "all"})
    run = lambda bagel, out: list(  # noqa: E731
        run_benchmark(benchmark, bagel, BrightnessJudge(), turns=0, batch_size=batch, out=tmp_path / out)
    )
    rows = run(without_cats(whole), "cats")
    assert [row.verdicts == (None,) for row in rows] == [False, True, False] and "not finite" in rows[1].lost
    report = benchmark.report(rows, 0)
    assert report.missing == 1 and report.score["all"][0].value == np.mean([row.score(0) for row in (rows[0], rows[2])])
    with pytest.raises(NotFiniteError, match="decoder"):  # no row at all: a score of a broken model is none
        run(broken(whole, "autoencoder.decoder.conv_out.bias"), "broken")
    assert not (tmp_path / "broken" / "report.json").exists()


def test_no_judge_sees_a_lost_trace():
    lost, seen = (
        Trace(Prompt("x", image=pictures(1)[0]), lost="logits are not finite"),
        Trace(Prompt("y", image=pictures(1)[0])),
    )
    first, second = verdicts_of(BrightnessJudge(), [lost, seen])
    assert isinstance(first, JudgeError) and "logits" in str(first) and second.score > 0


def test_a_lost_rollout_leaves_its_group_and_is_counted(whole):
    rollout = StageRollout(StageConfig(group_size=2), SAMPLING, RewardRule())
    parents = [root(Prompt(text)) for text in WORDS[:2]]
    good, bad = expand(without_cats(whole), BrightnessJudge(), parents, rollout, 0)
    assert (len(good.siblings), good.missing) == (2, 0)
    assert (len(bad.siblings), bad.missing) == (0, 2) and "not finite" in bad.cause
