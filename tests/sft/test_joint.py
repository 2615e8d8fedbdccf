"""Joint samples as rows of blocks, and rows as a loss: what is learned is what the loop will see."""

import math

import pytest
import torch

from triptych.data.annotations import ALL_HELD, describe_question, plan_text
from triptych.data.lexicon import build_tokenizer
from triptych.data.sft_samples import DataMix, SFTSample, sft_sample
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.model import flow
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH
from triptych.model.packing import Latent, Text, View
from triptych.model.templates import wrap_answer, wrap_reflection
from triptych.sft.joint import (
    PREVIOUS_TOKEN_LAYER,
    JointConfig,
    JointData,
    PreviousTokenLoss,
    accumulate_joint,
    joint_loss,
    sample_rows,
    sft_batch,
    split_batch,
)


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    torch.manual_seed(0)
    return Bagel(SKETCH, build_tokenizer())


def blocks_to_learn(row) -> list[Text]:
    return [block for block in row if isinstance(block, Text) and block.loss]


def test_a_batch_is_a_function_of_seed_and_step_and_no_sample_comes_twice():
    data = JointData(pictures=4, edits=2, words=6)
    prompts = [
        [one.prompt for group in sft_batch(data, seed, step).groups for one in group]
        for seed, step in ((3, 5), (3, 5), (3, 6), (4, 5))
    ]
    assert prompts[0] == prompts[1] and prompts[0] != prompts[2] != prompts[3]
    groups = sft_batch(JointData(pictures=10, edits=3, words=8, plan_share=0.3, answer_share=0.25), 0, 0).groups
    assert [[one.kind for one in group] for group in groups] == [
        ["plan"] * 3 + ["draw"] * 7,
        ["edit"] * 3,
        ["answer"] * 2 + ["reflect"] * 6,
    ]


def test_stops_on_own_pictures_are_as_frequent_as_in_other_samples():
    stops = [SFTSample("reflect", "a", "all is well") for _ in range(9)]
    own = [*stops, SFTSample("reflect", "a", "one is missing", "add a red cat at left")]
    data = JointData(pictures=0, edits=0, words=400, answer_share=0.0)
    (group,) = [group for group in sft_batch(data, 0, 0, own, 1.0).groups if group]
    share = sum(one.reply is None for one in group) / len(group)
    assert abs(share - data.mix.correct_pictures) < 0.1  # four deviations of 400 draws


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_batch_is_split_into_parts_of_all_its_samples(threads: int):
    batch = sft_batch(JointData(pictures=3, edits=0, words=4), 0, 0)
    parts = split_batch(batch, threads)
    assert {id(one) for part, _ in parts for one in part.samples} == {
        id(one) for group in batch.groups for one in group
    }
    assert sum(weight for _, weight in parts) == pytest.approx(2)  # of two groups that are not empty
    assert len({part.seed for part, _ in parts}) == len(parts)  # no noise twice


def test_gradients_reach_what_learns_alone(bagel: Bagel):
    bagel.requires_grad_(False)
    bagel.llm2vae.requires_grad_(True)
    bagel.language_model.lm_head.requires_grad_(True)
    metrics = accumulate_joint(bagel, JointData(), sft_batch(JointData(pictures=2, edits=1, words=2), 0, 0))
    reached = {name for name, parameter in bagel.named_parameters() if parameter.grad is not None}
    assert reached == {"llm2vae.weight", "llm2vae.bias", "language_model.lm_head.weight"}
    assert {*metrics} == {"loss", "mse_draw", "mse_edit", "ce_plan", "ce_words"} and metrics["loss"] > 0
    bagel.requires_grad_(True).zero_grad(set_to_none=True)


def test_noise_and_velocity_belong_together(bagel: Bagel):
    """From a noisy block, one exact step along the target velocity lands on the picture."""
    group = sft_batch(JointData(pictures=2, edits=0, words=0), 0, 0).groups[0]
    rows, velocities = sample_rows(bagel, group, torch.Generator().manual_seed(0))
    blocks = [block for row in rows for block in row if isinstance(block, Latent)]
    landed = [flow.ode_step(block.tokens, v, block.time) for block, v in zip(blocks, velocities.split(36), strict=True)]
    assert torch.allclose(landed[0], landed[1], atol=1e-4) and not torch.allclose(landed[0], landed[2], atol=1e-2)


def test_some_rows_have_no_text_and_some_edits_no_picture(bagel: Bagel):
    """What guidance takes its branches from: a tenth of the rows without text, a twentieth of edits without picture."""
    edits = [sft_sample("edit", seed) for seed in range(80)]
    rows, _ = sample_rows(bagel, edits, torch.Generator().manual_seed(0))
    has_text = [any(isinstance(block, Text) for block in row) for row in rows]
    has_picture = [any(isinstance(block, View) for block in row) for row in rows]
    assert 2 <= has_text.count(False) <= 18 and 1 <= has_picture.count(False) <= 12
    assert all(text or picture for text, picture in zip(has_text, has_picture, strict=True))


def test_the_previous_token_is_asked_for_and_two_layers_alone_are_reached(bagel: Bagel):
    pack = bagel.pack([[Text((11, 12, 13)), View(torch.zeros(36, 768), (6, 6)), Text((14,))], [Text((15, 16))]])
    head, layers = PreviousTokenLoss(bagel), list[torch.Tensor]()
    bagel(pack, layer_outputs=layers)
    assert len(layers) == 6
    size = bagel.config.language.vocab_size
    hidden = layers[PREVIOUS_TOKEN_LAYER]
    assert head.loss(hidden, pack).item() == pytest.approx(math.log(size))  # it knows nothing at first
    perfect = torch.nn.functional.one_hot(pack.ids, size).float().roll(1, dims=1)  # the token before, by its place
    with torch.no_grad():
        head.head.weight.copy_(torch.eye(size) * 4)
    assert head.loss(perfect, pack).item() < 1e-3 < 5 < head.loss(perfect.roll(1, dims=1), pack).item()
    layer_list = bagel.language_model.model.layers
    gradients = torch.autograd.grad(head.loss(hidden, pack), list(layer_list.parameters()), allow_unused=True)
    named = zip(layer_list.named_parameters(), gradients, strict=True)
    assert {int(name.split(".")[0]) for (name, _), gradient in named if gradient is not None} == {0, 1}


def test_the_weight_of_words_counts_in_the_loss_alone(bagel: Bagel):
    part, _ = split_batch(sft_batch(JointData(pictures=0, edits=0, words=4), 0, 0), 1)[0]
    (light, metrics), (heavy, same) = (joint_loss(bagel, JointData(words_weight=w), None, part) for w in (1.0, 3.0))
    assert metrics == same and float(heavy.detach()) == pytest.approx(3 * float(light.detach()), rel=1e-5)
    assert float(light.detach()) == pytest.approx(metrics["ce_words"])


def test_a_picture_is_asked_about_several_times_and_every_answer_is_learned(bagel: Bagel):
    samples = [one for one in (sft_sample("answer", seed) for seed in range(60)) if one.follow_ups][:8]
    rows, _ = sample_rows(bagel, samples, torch.Generator().manual_seed(0))
    for one, row in zip(samples, rows, strict=True):
        questions = [one.prompt, *(question for question, _ in one.follow_ups)]
        assert len(set(questions)) == len(questions)
        replies = [bagel.tokenizer.decode(block.ids).strip() for block in blocks_to_learn(row)]
        assert replies == [wrap_answer(one.thought, one.reply), *(reply for _, reply in one.follow_ups)]


def test_a_picture_that_is_not_seen_is_given_in_words(bagel: Bagel):
    """The row has the same ids as one with the picture, and learns what follows from the list, not the list."""
    samples = [one for one in (sft_sample("reflect", seed) for seed in range(80)) if one.before is None][:8]
    rows, _ = sample_rows(bagel, samples, torch.Generator().manual_seed(0))
    assert len(samples) == 8
    for one, row in zip(samples, rows, strict=True):
        assert not any(isinstance(block, View) for block in row)
        (text,) = blocks_to_learn(row)
        whole = bagel.tokenizer.encode(wrap_reflection(one.thought, one.reply), add_special_tokens=False).ids
        assert list(text.ids) == whole
        learned = [token for index, token in enumerate(whole) if index not in set(text.ignore)]
        assert bagel.pack([row]).ce_targets.tolist() == [*learned, bagel.special.eos]
        words = bagel.tokenizer.decode(learned)
        assert "<think>" not in words and "</think>" in words
        assert not set(words.split(".")[0].split()) & (set(CLASSES) - set(COLORS))


def test_questions_are_answered_behind_what_is_seen(bagel: Bagel):
    """The first answer lists the picture; with its list given, only what follows from it is learned."""
    mix = DataMix(fit_questions=1.0, descriptions=0.3, list_first=True)
    samples = [sft_sample("answer", seed, mix) for seed in range(120)]
    for one in samples:
        if one.thought is None:
            assert one.prompt == describe_question() and one.before is not None
        elif ". " in one.thought:
            assert one.prompt.startswith("does the picture show")
            assert (one.reply == "yes") == one.thought.endswith(f"{ALL_HELD}.")
        elif one.before is not None:
            assert one.thought == plan_text(one.before)
    unseen = [one for one in samples if one.before is None]
    assert 15 < len(unseen) < 60
    rows, _ = sample_rows(bagel, unseen, torch.Generator().manual_seed(0))
    for one, row in zip(unseen, rows, strict=True):
        assert not any(isinstance(block, View) for block in row)
        first, *_ = blocks_to_learn(row)
        learned = [token for index, token in enumerate(first.ids) if index not in set(first.ignore)]
        words = bagel.tokenizer.decode(learned)
        assert "<think>" not in words and words.endswith(f"</think>{one.reply}")
        assert ". " in one.thought or words == f"</think>{one.reply}"


def test_rows_that_teach_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"--gen\.words 1"):
        JointConfig(words=1, experts="gen").check("gen")
    with pytest.raises(ConfigError, match=r"--joint\.pictures, \.edits and .words are all 0"):
        JointConfig(pictures=0, edits=0, words=0).check("joint")
    JointConfig(steps=0, pictures=0, edits=0, words=0).check("joint")  # a stage that is left out teaches nothing
