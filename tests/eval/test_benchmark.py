"""Known answers of a report, laws of its intervals, and a run that survives being killed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from triptych.data.render import render_array
from triptych.data.scene import Scene, check
from triptych.errors import ConfigError, JudgeError, OutputError
from triptych.eval.benchmark import Benchmark, run
from triptych.eval.ledger import fingerprint
from triptych.eval.report import OVERALL, Report, Row, summarize, table
from triptych.eval.suites import GENEVAL, GENEVAL_PLUS, rehearsal
from triptych.model.config import SKETCH, Sampling
from triptych.rewards.finder import WEIGHTS
from triptych.rewards.world import WorldJudge, verdict
from triptych.trace import Completion, Drawing, Item, Prompt, Spec, Trace, Turn, Verdict

BLANK = Scene(())
STOP = "<think>all as asked.</think>no further edit needed"


class Painter:
    """A policy that draws what `scene` says of a spec and a seed, then edits in vain up to `edits` times."""

    name, config = "painter", SKETCH

    def __init__(self, prompts, scene, edits=0):
        self.specs = {prompt.text: prompt.spec for prompt in prompts}
        self.scene, self.edits, self.drawn, self.scenes = scene, edits, [], {}

    def plan(self, prompts, sampling, seeds, tell=None):
        return [Completion("<think>a plan</think>") for _ in prompts]

    def draw(self, prompts, plans, sampling, seeds, stroke_seeds=None, tick=None):
        self.drawn += prompts
        return [self._picture(self.scene(self.specs[text], seed)) for text, seed in zip(prompts, seeds, strict=True)]

    def reflect(self, prompts, images, sampling, seeds, tell=None):
        return [Completion("<think>not yet.</think>change nothing" if self.edits else STOP) for _ in prompts]

    def edit(self, images, instructions, sampling, seeds, stroke_seeds=None, tick=None):
        return [Drawing(image) for image in images]

    def _picture(self, scene):
        image = render_array(scene)
        self.scenes[image.tobytes()] = scene
        return Drawing(image)


class Remembering:
    """An exact judge of a painter's pictures: it knows which scene each one shows."""

    name = "remembering"

    def __init__(self, painter):
        self.painter = painter

    def __call__(self, traces):
        return [verdict(self.painter.scenes[trace.image.tobytes()], trace.prompt.spec) for trace in traces]


class Scripted:
    """A judge that reads the score off the first pixel, and cannot see pixels of 255."""

    name = "scripted"

    def __call__(self, traces):
        values = [int(trace.image[0, 0, 0]) for trace in traces]
        if 255 in values:
            raise JudgeError("expected a pixel below 255")
        return [Verdict(value / 100) for value in values]


def perfect(spec, seed):
    return Scene.sample(spec, seed)


def blank(spec, seed):
    return BLANK


def prompts(count):
    tags = ("counting", "color_attr")
    return tuple(Prompt(f"prompt {index}", Spec(tags[index % 2], (Item("cat", index + 1),))) for index in range(count))


def small(count=5):
    return Benchmark("small", prompts(count), {"color_attr": "Color", "counting": "Count"})


def pixels(value):
    return Drawing(np.full((2, 2, 3), value, np.uint8))


def scripted_play(scores, calls=None):
    """A player that shows, on prompt i, pictures with the scores of `scores[i]`; a final None is a stop."""

    def play(policy, prompts, seeds, turns, plan, sampling) -> Iterator[list[Trace]]:
        traces = [Trace(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        for turn in range(turns + 1):
            for row, trace in enumerate(traces):
                script = scores[int(trace.prompt.text.split()[-1]) % len(scores)]
                if turn < len(script):
                    drew = None if script[turn] is None else pixels(script[turn])
                    traces[row] = trace + Turn(Completion(f"turn {turn}"), drew, seconds={"draw": 0.5})
            if calls is not None and turn == 0:
                calls.append([(trace.prompt.text, trace.seed) for trace in traces])
            yield list(traces)

    return play


def row(prompt, scores, stopped=False, column="Color", seed=0, seconds=1.0):
    verdicts = tuple(None if score is None else Verdict(score) for score in scores)
    return Row(prompt, f"prompt {prompt}", column, seed, verdicts, stopped, (None,) * len(scores), seconds)


def values(turns):
    return [estimate.value for estimate in turns]


# --- the house's law: 1.0 for a perfect player, 0.0 for a blank one ---------------------------------------------------


@pytest.mark.parametrize("suite", [GENEVAL, GENEVAL_PLUS, rehearsal()], ids=lambda suite: suite.name)
@pytest.mark.parametrize(("scene", "expected"), [(perfect, 1.0), (blank, 0.0)])
def test_perfect_is_one_and_blank_is_zero(suite, scene, expected):
    painter = Painter(suite.prompts, scene)
    rows = list(run(suite, painter, Remembering(painter), turns=2, batch_size=64))
    report = suite.report(rows, turns=2)
    assert set(report.accuracy) == {*suite.titles, OVERALL}
    for turns in report.accuracy.values():
        assert values(turns) == [expected] * 3
    assert report.missing == 0 and report.edits == (len(suite.prompts), 0, 0)
    assert report.stop_precision == expected


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"the judge's weights are not here: expected {WEIGHTS}")
@pytest.mark.parametrize(("scene", "expected"), [(perfect, 1.0), (blank, 0.0)])
def test_perfect_is_one_and_blank_is_zero_for_the_judge_that_looks(scene, expected):
    suite = GENEVAL_PLUS.thinned(70)
    painter = Painter(suite.prompts, scene)
    report = suite.report(run(suite, painter, WorldJudge(), turns=0, plan=False, batch_size=70), turns=0)
    assert values(report.accuracy[OVERALL]) == [expected]


def test_suites_are_whole():
    assert len(GENEVAL.prompts) == 553 and len(GENEVAL_PLUS.prompts) == 280
    assert GENEVAL_PLUS.titles == ("Color", "Count", "Color/Count", "Color/Pos", "Pos/Count", "Pos/Size", "Multi-Count")
    assert len(GENEVAL.titles) == 6
    known = {prompt.text for prompt in (*GENEVAL.prompts, *GENEVAL_PLUS.prompts) if prompt.spec.tag != "single_object"}
    assert not known & {prompt.text for prompt in rehearsal(100).prompts}
    for prompt in rehearsal(20).prompts:
        assert all(each.held for each in check(Scene.sample(prompt.spec, 0), prompt.spec))


def test_thinned_keeps_the_columns_even():
    thin = GENEVAL_PLUS.thinned(70)
    assert len(thin.prompts) == 70 and thin.titles == GENEVAL_PLUS.titles and thin.name == "GenEval++ (70 of 280)"
    assert GENEVAL_PLUS.thinned(1000) is GENEVAL_PLUS


# --- run --------------------------------------------------------------------------------------------------------------


def test_every_picture_is_judged_and_a_stop_keeps_the_last_one():
    script = [[50, 100, None], [100, None], [0, 20, 40]]
    rows = list(run(small(3), None, Scripted(), turns=2, sampling=Sampling(), play=scripted_play(script)))
    assert [[each.score for each in row.verdicts] for row in rows] == [[0.5, 1.0], [1.0], [0.0, 0.2, 0.4]]
    assert [row.stopped for row in rows] == [True, True, False]
    assert [[row.score(turn) for turn in range(3)] for row in rows] == [[0.5, 1, 1], [1, 1, 1], [0, 0.2, 0.4]]
    assert rows[0].said == ("turn 0", "turn 1", "turn 2") and rows[0].seconds == 1.5


def test_rows_come_seed_by_seed_and_do_not_depend_on_the_batch():
    def played(batch_size):
        play = scripted_play([[50, None], [100]])
        return list(run(small(), None, Scripted(), 1, (3, 4), Sampling(), batch_size=batch_size, play=play))

    assert [(row.prompt, row.seed) for row in played(3)] == [(index, seed) for seed in (3, 4) for index in range(5)]
    assert played(1) == played(3) == played(100)


def test_a_given_picture_is_judged_first_and_a_play_without_a_beat_is_whole():
    given = Benchmark("given", (Prompt("prompt 0", image=pixels(70).image),), {})
    painter = Painter(given.prompts, blank, edits=1)
    for turns in (0, 1):
        (only,) = run(given, painter, Scripted(), turns=turns)
        assert [each.score for each in only.verdicts] == [0.7] * (turns + 1) and only.column == "all"


def test_a_judge_that_cannot_see_one_picture_loses_no_other():
    rows = list(run(small(3), None, Scripted(), 1, sampling=Sampling(), play=scripted_play([[100, 255], [0], [255]])))
    assert [[each and each.score for each in row.verdicts] for row in rows] == [[1.0, None], [0.0], [None]]
    report = small(3).report(rows, turns=1)
    assert report.missing == 2
    assert values(report.accuracy["Count"]) == [1.0, None] and values(report.accuracy["Color"]) == [0.0, 0.0]
    assert values(report.accuracy[OVERALL]) == [0.5, 0.0]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    script, calls = [[50, 100, None], [100], [0, 20, 40]], []
    settings = {"turns": 2, "seeds": (0, 1), "sampling": Sampling(), "batch_size": 2}
    settings["play"] = scripted_play(script, calls)
    straight = list(run(small(), None, Scripted(), **settings))

    first = run(small(), None, Scripted(), **settings, out=tmp_path / "run")
    assert list(islice(first, 4)) == straight[:4]
    first.close()
    assert not (tmp_path / "run/report.json").exists()
    with (tmp_path / "run/results.jsonl").open("a") as results:
        results.write('{"prompt": 4, "text": "pro')

    calls.clear()
    assert list(run(small(), None, Scripted(), **settings, out=tmp_path / "run", resume=True)) == straight
    assert sorted(key for batch in calls for key in batch) == sorted((row.text, row.seed) for row in straight[4:])
    assert Report.load(tmp_path / "run/report.json") == small().report(straight, turns=2)
    assert len((tmp_path / "run/results.jsonl").read_text().splitlines()) == len(straight)


def test_resuming_asks_again_for_missing_verdicts(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run"}
    list(run(small(2), None, Scripted(), **settings, play=scripted_play([[100], [255]])))
    calls = []
    rows = list(run(small(2), None, Scripted(), **settings, resume=True, play=scripted_play([[100], [90]], calls)))
    assert calls == [[("prompt 1", 0)]] and [row.score(0) for row in rows] == [1.0, 0.9]
    rows = list(run(small(2), None, Scripted(), **settings, resume=True, play=scripted_play([[0]], calls)))
    assert len(calls) == 1 and [row.score(0) for row in rows] == [1.0, 0.9]


def test_another_run_is_not_resumed_and_no_folder_is_overwritten(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run", "play": scripted_play([[100]])}
    list(run(small(2), None, Scripted(), **settings))
    with pytest.raises(OutputError, match="exists"):
        list(run(small(2), None, Scripted(), **settings))
    for change in ({"turns": 1}, {"seeds": (7,)}, {"plan": False}, {"sampling": Sampling(temperature=1.0)}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            list(run(small(2), None, Scripted(), **{**settings, **change}, resume=True))
    with pytest.raises(ConfigError, match="prompts_sha256"):
        list(run(small(3), None, Scripted(), **settings, resume=True))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["judge"] == "scripted" and manifest["versions"]["torch"] == torch.__version__


def test_a_spoiled_line_is_named(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run", "play": scripted_play([[100]])}
    list(run(small(2), None, Scripted(), **settings))
    results = tmp_path / "run/results.jsonl"
    results.write_text("nonsense\n" + results.read_text())
    with pytest.raises(OutputError, match=r"results.jsonl:1"):
        list(run(small(2), None, Scripted(), **settings, resume=True))


def test_settings_out_of_range_are_refused():
    for wrong in ({"batch_size": 0}, {"turns": -1}, {"seeds": ()}, {"seeds": (1, 1)}):
        with pytest.raises(ConfigError, match="expected a batch"):
            next(run(small(), None, Scripted(), **wrong, sampling=Sampling()))


def test_fingerprint_follows_every_weight():
    model = torch.nn.Linear(3, 2).bfloat16()
    before = fingerprint(model)
    assert before == fingerprint(model)
    with torch.no_grad():
        model.bias[1] += 1
    assert fingerprint(model) != before
    assert fingerprint(Painter((), blank)) == SKETCH.name


# --- report -----------------------------------------------------------------------------------------------------------


def test_a_report_by_hand():
    rows = [
        row(0, [1.0], stopped=True),  # a right stop
        row(1, [0.5, 1.0], stopped=True),  # wrong, rightly edited, right stop
        row(2, [0.5, 0.4], stopped=True),  # a wrong stop, and worse than before
        row(3, [1.0, 0.0, 0.2], column="Count"),  # a right picture was edited
    ]
    report = summarize("hand", rows, ("Color", "Count"), turns=2)
    assert values(report.accuracy["Color"]) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert values(report.accuracy["Count"]) == [1.0, 0.0, 0.0]
    assert values(report.accuracy[OVERALL]) == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert values(report.score["Color"]) == pytest.approx([2 / 3, 0.8, 0.8])
    assert report.edits == (1, 2, 1)
    assert (report.improved, report.worsened, report.fixed, report.broken) == (1, 2, 1, 1)
    assert report.stop_precision == pytest.approx(2 / 3) and report.stop_recall == pytest.approx(2 / 3)
    assert report.seconds_per_picture == pytest.approx(4 / 8)


def test_nothing_played_is_nothing_claimed():
    report = summarize("empty", [], ("Color",), turns=1)
    assert values(report.accuracy["Color"]) == [None, None] == values(report.accuracy[OVERALL])
    assert report.stop_precision is None and report.seconds_per_picture is None


@given(scores=some.lists(some.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12))
def test_an_interval_holds_its_mean_and_copies_of_a_seed_add_no_certainty(scores):
    rows = [row(index, [score]) for index, score in enumerate(scores)]
    once = summarize("law", rows, ("Color",), turns=0)
    (estimate,) = once.accuracy["Color"]
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(np.mean([score == 1 for score in scores]))
    twice = summarize("law", [*rows, *(replace(each, seed=1) for each in rows)], ("Color",), turns=0)
    assert twice.accuracy == once.accuracy and twice.score == once.score


def test_an_interval_is_as_wide_as_theory_says():
    """300 prompts, 60 % right: 1.96 sqrt(p (1 - p) / n) each way."""
    (estimate,) = summarize("wide", [row(i, [float(i % 5 < 3)]) for i in range(300)], ("Color",), 0).accuracy["Color"]
    assert [estimate.low, estimate.high] == pytest.approx([0.6 - 0.0554, 0.6 + 0.0554], abs=0.01)


def test_records_survive_writing():
    spoken = replace(row(1, []), verdicts=(Verdict(0.5, ("a",), ("b",)), None, Verdict(1.0)), said=("x", None))
    assert Row.from_record(json.loads(json.dumps(spoken.to_record()))) == spoken


def test_the_table_names_columns_and_turns():
    report = summarize("shown", [row(0, [0.5, 1.0], stopped=True), row(1, [None])], ("Color",), turns=1)
    sheet = StringIO()
    Console(file=sheet, width=160).print(table(report))
    for part in ("shown", "Color", OVERALL, "0.000", "1.000 [1.000, 1.000]", "<= 1", "fixed 1", "missing: 1"):
        assert part in sheet.getvalue()
