"""`triptych draw`: which candidate is kept, why a trace has ended, and that batches change neither."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scripted import ScriptedPolicy

from triptych.apps.commands import DrawOptions
from triptych.apps.draw import DrawJob, DrawSettings, best_view, run, stop_of, trace_views
from triptych.apps.terminal import TurnListener
from triptych.apps.trace_view import TraceView
from triptych.data.language import parse_prompt
from triptych.errors import ConfigError
from triptych.model.templates import wrap_reflection
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn, Verdict

PICTURE = np.zeros((2, 2, 3), np.uint8)
FIRST, EDIT = Turn(None, Drawing(PICTURE)), Turn(Completion("words"), Drawing(PICTURE), "add a red cat at left")
STOP = Turn(Completion(wrap_reflection("all is well", None)), None)
CUT = Turn(Completion("<think>no further edit"), None)


def trace_of(*turns: Turn, image: np.ndarray | None = None, seed: int = 0) -> Trace:
    trace = Trace(Prompt("a cat", image=image), seed=seed)
    for turn in turns:
        trace += turn
    return trace


@pytest.mark.parametrize(
    ("turns", "image", "stop"),
    [
        ((FIRST, STOP), None, "model"),
        ((FIRST, CUT), None, "unread"),
        ((FIRST,), None, "interrupted"),
        ((FIRST, EDIT), None, "interrupted"),
        ((FIRST, EDIT, EDIT), None, "limit"),
        ((EDIT,), PICTURE, "interrupted"),  # an image that was given is no turn
        ((EDIT, EDIT), PICTURE, "limit"),
        ((EDIT, EDIT, STOP), PICTURE, "model"),
    ],
)
def test_why_a_trace_of_two_turns_has_ended(turns: Sequence[Turn], image: np.ndarray | None, stop: str):
    assert stop_of(trace_of(*turns, image=image), 2) == stop


def view(seed: int, edits: int, *scores: float) -> TraceView:
    return TraceView(trace_of(FIRST, *[EDIT] * edits, seed=seed), "limit", 4, tuple(map(Verdict, scores)))


def test_the_best_last_image_wins_then_the_fewest_edits_then_the_first():
    low, late, early, twin = view(0, 0, 0.5), view(1, 2, 0, 0, 1.0), view(2, 1, 0, 1.0), view(3, 1, 0, 1.0)
    best = best_view([low, late, early, twin])
    assert best.trace is early.trace
    assert best.settings["best_of"] == {"0": 0.5, "1": 1.0, "2": 1.0, "3": 1.0}
    assert best_view([view(0, 1, 1.0, 0.0), low]).trace is low.trace  # the last image counts
    unjudged = [view(0, 2), view(1, 1), view(2, 1)]
    assert best_view(unjudged).trace is unjudged[1].trace
    assert best_view([late]) is late


class Quiet(TurnListener):
    """Hears nothing; `sizes` are those of the batches."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, size: int):
        self.sizes.append(size)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (2, [2, 1] * 2), (3, [3, 3]), (4, [3, 3]), (16, [6])])
def test_candidates_compete_in_however_many_batches_they_were_drawn(batch: int, sizes: list[int]):
    """Three for each of two results; whole sets are played together as far as a batch goes."""
    text = "a photo of a red cat and a blue bus"
    jobs = [DrawJob(text, Prompt(text, parse_prompt(text)), seed) for seed in range(6)]
    policy = ScriptedPolicy(mistakes=1)
    settings = DrawSettings(turns=0, sampling=policy.config.sampling, batch=batch, best_of=3)
    Quiet.sizes = []
    views = list(trace_views(policy, jobs, settings, WorldJudge(), Quiet, {}))
    assert [list(each.settings["best_of"]) for each in views] == [["0", "1", "2"], ["3", "4", "5"]]
    assert Quiet.sizes == sizes


class Mixed(ScriptedPolicy):
    """Its pictures depend on how many are drawn together, and at which place, more than rounding makes them."""

    def draw(self, *arguments: Any, **more: Any) -> list[Drawing]:
        drawings = super().draw(*arguments, **more)
        return [replace(one, image=one.image // (len(drawings) + row)) for row, one in enumerate(drawings)]


def trace_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trace.json").read_text())


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_trace_is_repeated_with_the_rows_of_its_batch(batch: int, tmp_path: Path):
    policy = Mixed(mistakes=1)
    first = DrawOptions(prompt="three clocks", n=3, turns=1, batch=batch, steps=5, out=tmp_path / "first")
    assert run(first, lambda *_: policy) == 0
    folders = sorted(path for path in (tmp_path / "first").iterdir() if path.is_dir())
    assert len(folders) == 3
    for number, folder in enumerate(folders):
        again = tmp_path / str(number)
        assert run(DrawOptions(again=folder, out=again), lambda *_: policy) == 0
        old, new = TraceView.load(folder), TraceView.load(again)
        assert all(np.array_equal(*pair) for pair in zip(old.trace.images, new.trace.images, strict=True))
        assert (old.verdicts, old.stop, old.settings) == (new.verdicts, new.stop, new.settings)
        assert len(old.settings.get("batch_rows", [0])) == (min(batch, 3) if number < 2 or batch > 2 else 1)


def test_only_a_trace_of_these_weights_is_repeated(tmp_path: Path):
    policy = Mixed()
    assert run(DrawOptions(prompt="three clocks", turns=0, out=tmp_path / "one"), lambda *_: policy) == 0
    record = trace_in(tmp_path / "one")
    record["settings"]["weights"] = "another"
    (tmp_path / "one" / "trace.json").write_text(json.dumps(record))
    for options, words in [
        ({"again": tmp_path / "one"}, "has weights .* the trace was drawn with another"),
        ({"again": tmp_path}, "expected the folder of a trace"),
        ({"again": tmp_path / "one", "prompt": "a cat"}, "expected no other prompt"),
    ]:
        with pytest.raises(ConfigError, match=words):
            run(DrawOptions(**options, out=tmp_path / "two"), lambda *_: policy)
    assert not (tmp_path / "two").exists()
