"""What a model is told of a prompt: a benchmark's sentence to the letter, any other in the sticker world's words."""

from dataclasses import replace
from pathlib import Path

import pytest

from triptych.apps.arguments import prompts_of
from triptych.data.language import prompt_text
from triptych.data.prompt_checks import understand
from triptych.data.prompts import benchmark
from triptych.data.specs import random_spec
from triptych.errors import PromptError
from triptych.model.config import BAGEL_7B, SKETCH
from triptych.trace import Item, Prompt, Spec


@pytest.mark.parametrize("name", ["geneval", "genevalpp"])
def test_a_benchmarks_own_prompts_stay_as_they_are(name):
    for prompt in benchmark(name):
        assert understand(prompt, SKETCH.world) is prompt


def test_a_free_wording_beside_a_spec_becomes_the_specs_own_sentence():
    for seed in range(50):
        spec = random_spec(seed)
        told = understand(Prompt("draw me something nice", spec, source="mine"), SKETCH.world)
        assert (told.text, told.spec, told.source) == (prompt_text(spec), spec, "mine")


def test_an_open_model_is_told_what_was_written():
    dragon = Prompt("a dragon at dawn", Spec("single_object", (Item("dragon"),)))
    for prompt in (dragon, replace(dragon, spec=None)):
        assert understand(prompt, BAGEL_7B.world) is prompt
        with pytest.raises(PromptError, match="dragon"):
            understand(prompt, SKETCH.world)


def test_every_prompt_of_a_file_has_its_place(tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text("two   cats\n\n a dog\n")
    assert [(entry.where, entry.prompt.text) for entry in prompts_of("", path)] == [
        (f"{path}, line 1", "two cats"),
        (f"{path}, line 3", "a dog"),
    ]
    (entry,) = prompts_of("two cats", None)
    assert (entry.where, entry.prompt.text) == ("", "two cats")
