"""The tokenizer loses nothing of the world's texts, and its ids never move."""

import json
from collections.abc import Iterator

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triptych.data.annotations import (
    QUESTION_KINDS,
    fits_question,
    instruction_text,
    plan_text,
    question_answer,
    reflection_text,
)
from triptych.data.edits import fix, random_edit, spoil
from triptych.data.language import prompt_text
from triptych.data.layout import CELLS
from triptych.data.lexicon import SPECIALS, THINK, UNKNOWN, VOCABULARY, build_tokenizer, plural
from triptych.data.prompts import benchmark
from triptych.data.scene import Scene, check
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES

TOKENIZER = build_tokenizer()
CHAT = "<|im_start|><think>top left red clock. two clocks: found one.</think>add a red clock at top<|im_end|>"


def texts(seed: int) -> Iterator[str]:
    """Everything that is said about one scene."""
    spec = random_spec(seed)
    scene = Scene.sample(spec, seed)
    spoiled = spoil(scene, spec, seed, 1 + seed % 3)
    mend = fix(spoiled, spec, seed)
    assert mend is not None
    yield prompt_text(spec)
    yield fits_question(prompt_text(spec))
    for picture, edit in ((scene, None), (spoiled, mend), (Scene(()), random_edit(Scene(()), seed))):
        yield plan_text(picture)
        yield reflection_text(picture, spec, edit)
        yield from (fact.text for fact in check(picture, spec))
        for kind in QUESTION_KINDS:
            yield from question_answer(picture, seed, kind)
    yield instruction_text(mend)
    yield instruction_text(random_edit(scene, seed))


def assert_lossless(text: str) -> None:
    encoding = TOKENIZER.encode(text)
    assert UNKNOWN not in encoding.tokens, (text, encoding.tokens)
    assert TOKENIZER.decode(encoding.ids) == text.lower()


def test_every_text_about_a_scene_comes_back():
    for seed in range(100):
        for text in texts(seed):
            assert_lossless(text)


@pytest.mark.parametrize("name", ["geneval", "genevalpp"])
def test_every_benchmark_prompt_comes_back(name):
    for prompt in benchmark(name):
        assert_lossless(prompt.text)


def test_templates_of_the_small_model_come_back():
    for text in ("plan", "reflect", "no further edit needed", "a photo of two red clocks. no further edit needed"):
        assert_lossless(text)


def test_ids_never_move():
    assert TOKENIZER.get_vocab_size() == len(SPECIALS) + len(THINK) + 8 + len(VOCABULARY) <= 256
    known = {"<|endoftext|>": 0, "<unk>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "<|vision_start|>": 4}
    known |= {"<|vision_end|>": 5, "<think>": 6, "</think>": 7, ",": 8, "!": 13, "s": 14, "es": 15, " zero": 16}
    known |= {" red": 26, " top left": 36, " smaller": 45, " airplane": 48, " zebra": 126, " a": 127, " needed": 197}
    assert {token: TOKENIZER.token_to_id(token) for token in known} == known


def test_a_thing_and_a_cell_are_one_token_and_a_plural_is_two():
    for word in (*CLASSES, *CELLS):
        assert TOKENIZER.encode(word).tokens == [f" {word}"]
    for name in CLASSES:
        assert TOKENIZER.encode(plural(name)).tokens == [f" {name}", plural(name)[len(name) :]]


def test_other_words_are_unknown_and_white_space_is_folded():
    assert TOKENIZER.encode("a grey dog").tokens == [" a", UNKNOWN, " dog"]
    assert TOKENIZER.encode("carrots caring doges dogses").tokens == [" carrot", "s", UNKNOWN, " dog", "es", UNKNOWN]
    assert TOKENIZER.decode(TOKENIZER.encode("  A dog ,a\n\n cat ?").ids) == "a dog, a cat?"
    assert TOKENIZER.encode("").ids == []


def test_thoughts_survive_decoding_and_specials_do_not():
    ids = TOKENIZER.encode(CHAT).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == CHAT
    assert TOKENIZER.decode(ids) == CHAT.removeprefix("<|im_start|>").removesuffix("<|im_end|>")


def test_transformers_reads_the_saved_file(tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for loaded in (
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), clean_up_tokenization_spaces=False),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert len(loaded) == TOKENIZER.get_vocab_size()
        for text in (CHAT, *texts(5)):
            ids = loaded(text)["input_ids"]
            assert ids == TOKENIZER.encode(text).ids
            assert loaded.decode(ids) == text.lower()
