"""Laws of the loop: it grows traces, drops finished rows, is Markov, and a seed gives one trace."""

import time

import numpy as np
import pytest
from scripted import ScriptedPolicy

from triptych import loop
from triptych.data.language import parse_prompt
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import ConfigError
from triptych.loop import STREAMS, Listener, beat_seed, play
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Prompt, Trace, Verdict

TEXTS = (
    "a photo of three clocks",
    "a photo of a red cat and a blue bus",
    "A photo of two cows, one donut, and two kites",
)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, parse_prompt(text)) for text in texts]


class Ear(Listener):
    def __init__(self):
        self.beats: list[tuple[str, list[int]]] = []

    def on_beat(self, name, rows):
        self.beats.append((name, rows))


def test_traces_grow_and_end_in_a_stop():
    ear = Ear()
    grown = list(play(ScriptedPolicy(mistakes=1), prompts(*TEXTS), [0, 1, 2], turns=4, listener=ear))
    assert [len(traces[0].turns) for traces in grown] == [1, 2, 3]
    assert all(trace.finished for trace in grown[-1])
    assert all(verdict.score == 1 for verdict in WorldJudge()(grown[-1]))
    assert [name for name, _ in ear.beats] == ["plan", "draw", "reflect", "edit", "reflect"]


def test_a_finished_row_takes_no_part_in_later_beats():
    right, flawed = prompts(TEXTS[0], TEXTS[1])
    image = render_array(Scene.sample(right.spec, 0))
    given = [Prompt(right.text, right.spec, image), flawed]
    ear = Ear()
    *_, last = play(ScriptedPolicy(mistakes=1), given, [0, 1], turns=3, listener=ear)
    assert ear.beats[:2] == [("plan", [1]), ("draw", [1])]
    assert [rows for name, rows in ear.beats if name == "reflect"] == [[0, 1], [1]]
    assert len(last[0].turns) == 1 and last[0].finished and np.array_equal(last[0].image, image)


def test_turns_are_a_limit():
    *_, last = play(ScriptedPolicy(blind=True), prompts(TEXTS[0]), [0], turns=2)
    assert len(last[0].turns) == 3 and not last[0].finished
    assert len(list(play(ScriptedPolicy(), prompts(TEXTS[0]), [0], turns=0))) == 1
    with pytest.raises(ConfigError, match="turns=-1"):
        list(play(ScriptedPolicy(), prompts(TEXTS[0]), [0], turns=-1))


def test_the_same_seed_gives_the_same_trace_and_another_seed_another():
    def images(seed: int) -> list[np.ndarray]:
        *_, last = play(ScriptedPolicy(), prompts(TEXTS[2]), [seed], turns=2)
        return last[0].images

    assert all(np.array_equal(one, two) for one, two in zip(images(3), images(3), strict=True))
    assert not np.array_equal(images(3)[0], images(4)[0])
    assert len({beat_seed(0, turn, stream) for turn in range(5) for stream in STREAMS}) == 25


def test_seeds_are_those_that_recorded_runs_were_drawn_with():
    assert [beat_seed(7, 1, stream) for stream in ("plan", "draw", "reflect", "edit", "sde")] == [
        3317731564112288844,
        2048857388707803343,
        3418810207754707518,
        7964965305340474863,
        8234764397040270190,
    ]


def test_the_chain_is_markov():
    """A later beat of a long trace says and draws what it would from its newest picture alone."""
    policy = ScriptedPolicy(mistakes=2)
    (prompt,) = prompts(TEXTS[1])
    first, second, *_ = play(policy, [prompt], [5], turns=4)
    alone = Prompt(prompt.text, prompt.spec, first[0].image)
    *_, again = play(policy, [alone], [5], turns=1)
    assert again[0].turns[0].said.text == second[0].turns[1].said.text


def test_a_trace_survives_its_folder(tmp_path):
    *_, last = play(ScriptedPolicy(mistakes=1), prompts(TEXTS[2]), [0], turns=2)
    back = Trace.load(last[0].save(tmp_path / "one"))
    assert back.to_record() == last[0].to_record()
    assert all(np.array_equal(one, two) for one, two in zip(back.images, last[0].images, strict=True))


@pytest.mark.parametrize(
    "change", [{"score": 1.5}, {"score": float("nan")}, {"score": None}, {"passed": [1]}, {"failed": 3}], ids=str
)
def test_a_verdict_is_read_back_and_nothing_else_is_one(change):
    verdict = Verdict(0.5, ("two clocks",), ("a red cat",))
    assert Verdict.from_record(verdict.to_record()) == verdict
    with pytest.raises((ValueError, TypeError)):
        Verdict.from_record(verdict.to_record() | change)


class Reader(Listener):
    def __init__(self):
        self.texts: dict[int, list[str]] = {}

    def on_text(self, row, text):
        self.texts.setdefault(row, []).append(text)


def test_texts_are_heard_under_the_number_of_their_trace():
    """Also where others have stopped: the text of each trace grows to what its turns say."""
    right, flawed = prompts(TEXTS[0], TEXTS[1])
    given = [Prompt(right.text, right.spec, render_array(Scene.sample(right.spec, 0))), flawed]
    reader = Reader()
    *_, last = play(ScriptedPolicy(mistakes=1), given, [0, 1], turns=3, listener=reader)
    for row, trace in enumerate(last):
        said = [turn.said.text for turn in trace.turns if turn.said is not None]
        assert said == [text for text in reader.texts[row] if text in said] and len(said) == (1, 3)[row]


def test_a_stop_has_no_picture_and_no_instruction():
    *_, last = play(ScriptedPolicy(mistakes=1), prompts(TEXTS[1]), [0], turns=4)
    *_, edit, stop = last[0].turns
    assert edit.drew is not None and edit.instruction and stop.said is not None
    assert (stop.drew, stop.instruction) == (None, None) and set(stop.seconds) == {"reflect"}
    assert set(edit.seconds) == {"reflect", "edit"}


def test_rows_share_the_seconds_of_their_batch():
    seconds, now = loop._lap(time.perf_counter() - 800, 4)
    assert 200 <= seconds < 800 and now > 0
    assert loop._lap(time.perf_counter() - 800, 1)[0] >= 800 and loop._lap(now, 0)[0] >= 0
