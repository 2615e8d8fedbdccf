"""Laws of the lessons: a run that was cut resumes exactly, and what is taught is what the loop will see."""

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from triptych.data.annotations import ALL_HELD, describe_question, parse_instruction, plan_text, remarks
from triptych.data.edits import apply
from triptych.data.layout import Layout
from triptych.data.lexicon import build_tokenizer
from triptych.data.render import render
from triptych.data.scene import Scene, Sticker
from triptych.data.sft_samples import DataMix, sft_sample, shuffled_scene
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.model import flow, weights
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH
from triptych.model.packing import Latent, Text, View, grid_ids
from triptych.model.templates import wrap_answer, wrap_reflection
from triptych.model.transformer import is_generation
from triptych.model.vae import patchify
from triptych.sft import checkpoint
from triptych.sft import curriculum as rl_lessons
from triptych.sft.curriculum import SFT_DEBUG, run_sft
from triptych.sft.joint import LAYER, JointConfig, PreviousTokenLoss, group_loss, sft_batch, told
from triptych.sft.self_generated import self_generated_pictures
from triptych.sft.vae import few_colors, scenes_for_edges, to_unit
from triptych.sft.vision import ConnectorStage, covering, strewn, targets, train_connector, words_loss

ONE = replace(SFT_DEBUG, every=1)


def cut(config, out, after: int, resume: bool) -> None:
    """Teach and stop dead after that many updates."""
    steps = run_sft(config, out, resume)
    for _ in range(after):
        next(steps)
    steps.close()


def test_a_cut_run_resumes_exactly(tmp_path):
    whole = list(run_sft(ONE, tmp_path / "whole"))
    stages = ("autoencoder", "eyes", "connector", "joined", "decoder", "own", "draw", "polish")
    assert [step.stage for step in whole] == [stage for stage in stages for _ in range(2)]
    for count, after in enumerate((1, 3, 3, 2, 1, 3)):
        cut(ONE, tmp_path / "cut", after, resume=count > 0)
    list(run_sft(ONE, tmp_path / "cut", resume=True))
    for name in ("ema.safetensors", "ae.safetensors"):
        one, two = (load_file(tmp_path / run_name / "model" / name) for run_name in ("whole", "cut"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert weights.load(tmp_path / "whole" / "model").config.world == "stickers"


def test_lessons_go_on_from_a_checkpoint(tmp_path):
    list(run_sft(ONE, tmp_path / "first"))
    further = replace(
        ONE, start=str(tmp_path / "first" / "model"), own=replace(ONE.own, steps=0), draw=replace(ONE.draw, steps=0)
    )
    assert [step.stage for step in run_sft(further, tmp_path / "second")] == [
        stage for stage in ("joined", "decoder", "polish") for _ in range(2)
    ]
    one, two = (load_file(tmp_path / name / "model" / "ema.safetensors") for name in ("first", "second"))
    assert any(not torch.equal(one[key], two[key]) for key in one)
    one, two = (load_file(tmp_path / name / "model" / "ae.safetensors") for name in ("first", "second"))
    assert all(torch.equal(one[key], two[key]) for key in one if key.startswith("encoder."))
    assert any(not torch.equal(one[key], two[key]) for key in one if key.startswith("decoder."))


def test_the_drawing_stage_teaches_to_draw_and_leaves_every_word_as_it_is(tmp_path):
    short = replace(ONE, draw=replace(ONE.draw, steps=0))
    list(run_sft(short, tmp_path / "without"))
    list(run_sft(ONE, tmp_path / "with"))
    one, two = (load_file(tmp_path / name / "model" / "ema.safetensors") for name in ("without", "with"))
    moved = {name for name in one if not torch.equal(one[name], two[name])}
    assert moved and all(is_generation(name) for name in moved)
    assert {"llm2vae.weight", "vae2llm.weight", "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"} <= moved


def test_own_pictures_are_drawn_with_a_guidance_of_their_own(tmp_path, monkeypatch):
    heard = []

    def listen(policy, count, seed, sampling, mix):
        heard.append((policy.config.sampling, sampling))
        return self_generated_pictures(policy, count, seed, sampling, mix)

    monkeypatch.setattr(rl_lessons, "self_generated_pictures", listen)
    list(run_sft(replace(ONE, own_guidance=2.5), tmp_path / "lessons"))
    ((usual, used),) = heard
    assert used == replace(usual, text_guidance=2.5, plan_temperature=None)
    assert weights.load(tmp_path / "lessons" / "model").config.sampling == SKETCH.sampling


def test_scenes_of_few_colors_are_white_or_half_white_or_of_one_color():
    scenes = [few_colors(seed) for seed in range(300)]
    shades = [{sticker.color for sticker in scene.stickers} for scene in scenes]
    alone = [next(iter(colors)) for colors in shades if len(colors) == 1]
    mixed = [colors for colors in shades if len(colors) > 1]
    assert len(alone) > 180 and {*alone} == {*COLORS}
    assert sum("white" in colors for colors in mixed) > 0.7 * len(mixed)  # of two stickers a quarter has none by chance
    white = sum(color == "white" for color in alone) / len(scenes)
    assert 0.3 < white < 0.5  # a third of all, a tenth of the third that is of any colour, and small scenes by chance
    assert {len(scene.stickers) for scene in scenes} == set(range(1, 10))


def test_a_share_of_the_scenes_is_of_few_colors():
    usual, mixed = scenes_for_edges(0, 300), scenes_for_edges(0, 300, few=0.6)
    changed = [seed for seed in range(300) if mixed[seed] != usual[seed]]
    assert 150 < len(changed) < 210 and all(mixed[seed] == few_colors(seed) for seed in changed)


def test_recall_asks_for_the_word_before_and_reaches_two_layers_only():
    torch.manual_seed(0)
    bagel = Bagel(SKETCH, build_tokenizer())
    batch = bagel.pack([[Text((11, 12, 13)), View(torch.zeros(36, 768), (6, 6)), Text((14,))], [Text((15, 16))]])
    recall, heard = PreviousTokenLoss(bagel), list[torch.Tensor]()
    bagel(batch, heard=heard)
    assert len(heard) == 6
    size = bagel.config.language.vocab_size
    assert recall.loss(heard[LAYER], batch).item() == pytest.approx(math.log(size))  # it knows nothing at first
    knowing = torch.nn.functional.one_hot(batch.ids, size).float().roll(1, dims=1)  # the word before, by its place
    with torch.no_grad():
        recall.head.weight.copy_(torch.eye(size) * 4)
    assert recall.loss(knowing, batch).item() < 1e-3 < 5 < recall.loss(knowing.roll(1, dims=1), batch).item()
    moved = torch.autograd.grad(
        recall.loss(heard[LAYER], batch), list(bagel.language_model.model.layers.parameters()), allow_unused=True
    )
    reached = {
        int(name.split(".")[0])
        for (name, _), gradient in zip(bagel.language_model.model.layers.named_parameters(), moved, strict=True)
        if gradient is not None
    }
    assert reached == {0, 1}


def test_a_run_is_not_mixed_with_another(tmp_path):
    cut(ONE, tmp_path / "run", 1, resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        list(run_sft(ONE, tmp_path / "run"))
    with pytest.raises(ConfigError, match="seed"):
        list(run_sft(replace(ONE, seed=1), tmp_path / "run", resume=True))


def test_a_half_written_checkpoint_is_never_the_newest(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})
    (tmp_path / "step-00000002.partial").mkdir()
    (tmp_path / "step-00000003").mkdir()
    tensors, record = checkpoint.latest(tmp_path)
    assert record["step"] == 1 and torch.equal(tensors["x"], torch.ones(2))


@pytest.mark.parametrize("seed", range(40))
def test_lessons_tell_the_truth(seed):
    plan, edit, reflection = (sft_sample(kind, seed) for kind in ("plan", "edit", "reflect"))
    assert plan.thought is not None and plan.after is not None
    change = parse_instruction(edit.prompt)
    after = apply(edit.before, change, seed)
    assert [(s.name, s.color, s.cell, s.size) for s in after.stickers] == [
        (s.name, s.color, s.cell, s.size) for s in edit.after.stickers
    ]
    if reflection.reply is None:
        assert reflection.thought.endswith("all as asked.")


def test_sheets_are_a_function_of_seed_and_step():
    config = JointConfig(pictures=4, edits=2, words=6)
    same, again, other = sft_batch(config, 3, 5), sft_batch(config, 3, 5), sft_batch(config, 3, 6)
    told_apart = [[one.prompt for group in page.groups for one in group] for page in (same, again, other)]
    assert told_apart[0] == told_apart[1] != told_apart[2]


def test_noise_and_velocity_belong_together():
    """From a noisy block, one exact step along the taught velocity lands on the picture."""
    torch.manual_seed(0)
    bagel = Bagel(SKETCH, build_tokenizer())
    config = JointConfig(pictures=2, edits=0, words=0, noises=2, drop_text=0.0)
    group = sft_batch(config, 0, 0).groups[0]
    rows, velocity = told(bagel, config, group, torch.Generator().manual_seed(0))
    blocks = [block for row in rows for block in row if isinstance(block, Latent)]
    landed = [flow.ode_step(block.tokens, v, block.time) for block, v in zip(blocks, velocity.split(36), strict=True)]
    assert torch.allclose(landed[0], landed[1], atol=1e-4) and not torch.allclose(landed[0], landed[2], atol=1e-2)


def test_eyes_are_told_where_each_sticker_stands():
    scene = sft_sample("draw", 3).after
    found = targets([scene, strewn(scene, 1), Scene(())], 16)
    assert (found[0, 0] > 0).sum() == len(scene.stickers)
    assert (found[0, 2] == 0).all() and (found[1, 2] == -1).all()


def test_reflections_on_right_and_wrong_pictures_are_both_common():
    lessons = [sft_sample("reflect", seed) for seed in range(200)]
    stops = sum(one.reply is None for one in lessons)
    assert 60 < stops < 130
    assert 35 < sum(one.before is None for one in lessons) < 75
    flawed = [
        sft_sample("reflect", seed, DataMix(correct_pictures=0.0, shuffled_scenes=share, text_only_reflections=1.0))
        for seed in range(20)
        for share in (0, 1)
    ]
    assert all(one.before is None for one in flawed)


def test_a_sticker_names_the_patches_that_it_covers():
    scene = Scene((Sticker("cat", "red", 16, 16, "normal"), Sticker("bus", "blue", 80, 48, "smaller")))
    names, colors = covering([scene, Scene(())], 16)
    cat, bus = CLASSES.index("cat") + 1, CLASSES.index("bus") + 1
    assert {patch: int(names[0, patch]) for patch in range(36) if names[0, patch]} == {
        **dict.fromkeys((0, 1, 6, 7), cat),
        **dict.fromkeys((16, 17, 22, 23), bus),
    }
    assert set(colors[0].tolist()) == {-1, list(COLORS).index("red"), list(COLORS).index("blue")}
    assert not names[1].any() and (colors[1] == -1).all()


def test_a_patch_that_points_at_its_words_has_said_them():
    torch.manual_seed(0)
    bagel, scenes = Bagel(SKETCH, build_tokenizer()), [random_scene(seed) for seed in range(8)]
    # one word is both a class and a colour
    told = [scene for scene in scenes if all("orange" not in (one.name, one.color) for one in scene.stickers)]
    wanted = covering(told, 16)

    def word(name: str):
        return bagel.language_model.model.embed_tokens.weight[bagel.tokenizer.token_to_id(f" {name}")]

    names, hues = ("nothing", *CLASSES), list(COLORS)

    def shown(name: int, hue: int):
        return word(names[name]) + (word(hues[hue]) if hue >= 0 else 0)

    said = torch.stack([torch.stack([shown(*pair) for pair in row.T.tolist()]) for row in wanted.unbind(1)])
    good, right = words_loss(said, bagel, wanted)
    bad, wrong = words_loss(said.roll(1, 0), bagel, wanted)  # the words of another scene
    assert right["said"] == 1.0 and wrong["said"] < 0.5 and float(good.detach()) < 1 < float(bad.detach())


def test_the_connector_learns_alone_and_ends_at_its_loudness(tmp_path):
    torch.manual_seed(0)
    bagel, lessons = weights.load("sketch", dtype=torch.float32), ConnectorStage(steps=30, batch=16)
    bagel.connector.fc1.reset_parameters()
    bagel.connector.fc2.reset_parameters()
    before = {name: tensor.clone() for name, tensor in bagel.state_dict().items()}
    losses = [loss for _, loss, _ in train_connector(bagel, lessons, 0, tmp_path, 10)]
    assert losses[-1] < 0.7 * losses[0]
    after = bagel.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all(name.startswith("connector.") for name in moved)
    scenes = [random_scene(seed) for seed in range(16)]
    tokens = patchify(to_unit(render(scenes)), 16)
    ids = torch.from_numpy(grid_ids((6, 6), bagel.config.vision.patches_per_side)).expand(16, -1)
    said = bagel.connector(bagel.vit_model(tokens, ids)).detach()
    assert float(said.square().mean().sqrt()) == pytest.approx(lessons.loudness, rel=0.15)


def test_the_eyes_stay_as_they_learnt_to_see(tmp_path):
    for frozen, name in ((True, "frozen"), (False, "free")):
        list(run_sft(replace(ONE, eyes=replace(ONE.eyes, frozen=frozen)), tmp_path / name))
        learnt = checkpoint.latest(tmp_path / name / "eyes")[0]
        kept = load_file(tmp_path / name / "model" / "ema.safetensors")
        same = [
            torch.equal(kept[f"vit_model.{key[14:]}"], tensor.bfloat16())
            for key, tensor in learnt.items()
            if key.startswith("average/tower.")
        ]
        assert same and all(same) == frozen


def test_a_picture_is_asked_about_several_times_and_every_answer_is_taught():
    bagel = Bagel(SKETCH, build_tokenizer())
    several = [one for one in (sft_sample("answer", seed) for seed in range(60)) if one.follow_ups][:8]
    rows, _ = told(bagel, JointConfig(), several, torch.Generator().manual_seed(0))
    for one, row in zip(several, rows, strict=True):
        asked = [one.prompt, *(question for question, _ in one.follow_ups)]
        assert len(set(asked)) == len(asked)
        spoken = [bagel.tokenizer.decode(block.ids).strip() for block in row if isinstance(block, Text) and block.loss]
        assert spoken == [wrap_answer(one.thought, one.reply), *(reply for _, reply in one.follow_ups)]


def test_pictures_at_once_are_laid_out_as_usual_and_others_freely():
    rows, columns = Layout(canonical=1.0, usual=1.0), Layout(canonical=1.0, usual=0.0)
    mix = DataMix(layout=columns, one_shot_layout=rows)
    for seed in range(20):
        spec = random_spec(seed)
        assert sft_sample("draw", seed, mix).after == Scene.sample(spec, seed, rows)
        assert sft_sample("plan", seed, mix).after == Scene.sample(spec, seed, columns)
    right = DataMix(correct_pictures=1.0, layout=columns)
    assert sft_sample("reflect", 3, right).before == Scene.sample(random_spec(3), 3, columns)


def test_a_picture_that_is_not_seen_is_given_in_words():
    """The row says the same ids as one with the picture, and learns what follows from the list, not the list."""
    bagel = Bagel(SKETCH, build_tokenizer())
    several = [one for one in (sft_sample("reflect", seed) for seed in range(80)) if one.before is None][:8]
    rows, _ = told(bagel, JointConfig(), several, torch.Generator().manual_seed(0))
    assert len(several) == 8
    for one, row in zip(several, rows, strict=True):
        assert not any(isinstance(block, View) for block in row)
        (said,) = [block for block in row if isinstance(block, Text) and block.loss]
        whole = bagel.tokenizer.encode(wrap_reflection(one.thought, one.reply), add_special_tokens=False).ids
        assert list(said.ids) == whole
        batch = bagel.pack([row])
        learnt = [whole[place] for place in range(len(whole)) if place not in set(said.ignore)]
        assert batch.ce_targets.tolist() == [*learnt, bagel.special.eos]
        words = bagel.tokenizer.decode(learnt)
        assert "<think>" not in words and "</think>" in words
        assert not set(words.split(".")[0].split()) & (set(CLASSES) - set(COLORS))


def test_questions_are_answered_behind_what_is_seen():
    """The first answer lists the picture; with its list given, only what follows from it is learnt."""
    bagel = Bagel(SKETCH, build_tokenizer())
    mix = DataMix(fit_questions=1.0, descriptions=0.3, list_first=True)
    several = [sft_sample("answer", seed, mix) for seed in range(120)]
    for one in several:
        if one.thought is None:
            assert one.prompt == describe_question() and one.before is not None
        elif ". " in one.thought:
            assert one.prompt.startswith("does the picture show")
            assert (one.reply == "yes") == one.thought.endswith(f"{ALL_HELD}.")
        elif one.before is not None:
            assert one.thought == plan_text(one.before)
    unseen = [one for one in several if one.before is None]
    assert 15 < len(unseen) < 60
    rows, _ = told(bagel, JointConfig(), unseen, torch.Generator().manual_seed(0))
    for one, row in zip(unseen, rows, strict=True):
        assert not any(isinstance(block, View) for block in row)
        first, *_ = [block for block in row if isinstance(block, Text) and block.loss]
        learnt = [token for place, token in enumerate(first.ids) if place not in set(first.ignore)]
        words = bagel.tokenizer.decode(learnt)
        assert "<think>" not in words and words.endswith(f"</think>{one.reply}")
        assert ". " in one.thought or words == f"</think>{one.reply}"


def test_only_whether_a_picture_fits_is_thought_about_unless_lists_are_asked_for():
    several = [sft_sample("answer", seed, DataMix(fit_questions=0.5)) for seed in range(80)]
    fitting = [one.prompt.startswith("does the picture show") for one in several]
    assert [one.thought is not None for one in several] == fitting and 5 < sum(fitting) < 40
    assert all(one.before is not None for one in several)


def test_scrambled_pictures_hold_the_words_of_the_prompt_and_are_mostly_wrong():
    wrong = total = 0
    for seed in range(100):
        spec = random_spec(seed)
        scene = shuffled_scene(spec, Random(seed), Layout())
        named = {item.name for item in spec.include}
        assert 1 <= len(scene.stickers) <= 9 and len({one.name for one in scene.stickers} - named) <= 1
        said = remarks(scene, spec)
        wrong += sum(" no" in one or "extra" in one for one in said)
        total += len(said)
    assert 0.4 < wrong / total < 0.8


def test_focus_weighs_words_by_doubt():
    """Without focus the words' loss is plain cross entropy; with it, a word the model is sure of counts for less."""
    torch.manual_seed(0)
    bagel = Bagel(SKETCH, build_tokenizer())
    several = [sft_sample("reflect", seed) for seed in range(4)]
    losses = {}
    for focus in (0.0, 2.0):
        config = JointConfig(focus=focus, words_weight=2.0)
        rows, targets = told(bagel, config, several, torch.Generator().manual_seed(0))
        loss, metrics = group_loss(bagel, config, rows, targets, "reflect")
        losses[focus] = float(loss.detach())
        mean = metrics["ce_words"]
    assert losses[0.0] == pytest.approx(2 * mean, rel=1e-5)
    assert losses[2.0] > losses[0.0]


def random_scene(seed: int) -> Scene:
    return Scene.sample(random_spec(seed), seed)
