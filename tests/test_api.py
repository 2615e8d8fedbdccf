"""The Python interface has the command line's checks, at once and in words."""

import html
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedPolicy

import triptych
from triptych import Prompt, Trace, play
from triptych.errors import ConfigError, PictureError, PromptError
from triptych.model.config import BAGEL_7B
from triptych.trace import Completion, Drawing, Turn

GOOD = "two red apples"


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ([Prompt("a castle at sunset")], PromptError, "castle"),
        ("a castle at sunset", PromptError, "castle"),
        ([GOOD, "a castle"], PromptError, "castle"),
        ("", PromptError, "empty"),
        ("two red\x1b apples", PromptError, "not text"),
        (None, PromptError, "None"),
        (b"two red apples", PromptError, "a text, a Prompt"),
        ({GOOD: 1}, PromptError, "dict"),
        (Path("prompts.txt"), PromptError, "Path"),
        ([GOOD, None], PromptError, "prompt 1 is None"),
        ([Prompt(b"two")], PromptError, "prompt 0"),
        ([Prompt(GOOD, image=np.zeros((8, 8, 3)))], PictureError, "float64 [8, 8, 3]"),
        ([Prompt(GOOD, image=np.zeros((8, 8, 4), np.uint8))], PictureError, "uint8 [8, 8, 4]"),
        ([Prompt(GOOD, image="a.png")], PictureError, "a.png"),
    ],
)
def test_prompts_are_refused_before_the_first_beat(prompts, error, words):
    with pytest.raises(error) as raised:  # by the call itself: nothing asks for a first trace
        play(ScriptedPolicy(), prompts, seeds=[0] * (len(prompts) if isinstance(prompts, list) else 1))
    assert words in str(raised.value)


@pytest.mark.parametrize("seeds", [None, "0", ["0"], [-1], [2**63], [True], [1.0], [0, 1], [], {0: 1}, b"0"])
def test_seeds_of_a_wrong_kind_range_or_number_are_refused(seeds):
    with pytest.raises(ConfigError, match="seed"):
        play(ScriptedPolicy(), GOOD, seeds)


@pytest.mark.parametrize("options", [{"turns": -1}, {"turns": 1.5}, {"turns": True}, {"sampling": {"temperature": 1}}])
def test_options_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        play(ScriptedPolicy(), GOOD, [0], **options)
    with pytest.raises(ConfigError, match=r'load\("sketch"\)'):
        play("sketch", GOOD, [0])


def test_texts_and_numpy_seeds_play_as_prompts_and_whole_numbers_do():
    given = list(play(ScriptedPolicy(), [Prompt(GOOD), Prompt("a dog")], [3, 2**63 - 1]))[-1]
    for prompts, seeds in [
        ([GOOD, "a dog"], np.array([3, 2**63 - 1])),
        ((GOOD, Prompt("a dog")), iter([3, 2**63 - 1])),
    ]:
        for trace, expected in zip(list(play(ScriptedPolicy(), prompts, seeds))[-1], given, strict=True):
            assert (trace.seed, trace.prompt.text) == (expected.seed, expected.prompt.text)
            assert type(trace.seed) is int and np.array_equal(trace.image, expected.image)


def test_an_open_model_is_given_any_text():
    policy = ScriptedPolicy(config=BAGEL_7B)
    play(policy, "a castle at sunset", 0)
    with pytest.raises(PromptError):
        play(policy, " ", 0)


def test_draw_gives_one_trace_for_one_prompt_and_a_list_for_several():
    alone = triptych.draw(GOOD, model=ScriptedPolicy(), seed=5)
    assert isinstance(alone, Trace) and alone.finished and alone.seed == 5
    several = triptych.draw([GOOD, "a dog", "a cat"], model=ScriptedPolicy(), seed=5, batch=2)
    assert [trace.seed for trace in several] == [5, 5, 5] and np.array_equal(several[0].image, alone.image)
    assert triptych.draw([GOOD], model=ScriptedPolicy())[0].finished and triptych.draw([], model=ScriptedPolicy()) == []
    assert len(triptych.draw(GOOD, model=ScriptedPolicy(), turns=0).turns) == 1


@pytest.mark.parametrize(
    "options",
    [
        *({"steps": steps} for steps in (0, 1.5)),
        *({"guidance": guidance} for guidance in (float("nan"), "4")),
        *({name: -1} for name in ("temperature", "batch", "seed", "turns")),
        {"model": None},
    ],
)
def test_draw_names_the_option_that_is_wrong(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        triptych.draw(GOOD, **{"model": ScriptedPolicy(), **options})


def test_a_trace_is_shown_without_its_pixels_and_its_texts_are_no_markup():
    text = "<script>alert('&')</script> " + "x" * 5_000
    image = np.zeros((8, 2_000, 3), np.uint8)
    trace = Trace(Prompt(text, image=image)) + Turn(Completion("<b>bold</b>"), Drawing(image)) + Turn(None, None)
    assert len(repr(trace)) < 120 and "2 pictures, finished" in repr(trace)
    page = trace._repr_html_()
    assert "<script>" not in page and "<b>bold" not in page and html.escape("<b>bold</b>") in page
    assert page.count("<img") == 2 and page.count("data:image/png;base64,") == 2
    lost = Trace(Prompt("a"), lost="<i>not finite")
    assert "lost" in repr(lost) and "<i>" not in lost._repr_html_()
    lost.show()  # no picture, no window
