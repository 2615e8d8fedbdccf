"""Known answers of a report, laws of its intervals, and a run that survives being killed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from triptych.data.render import render_array
from triptych.data.scene import Scene, check
from triptych.errors import ConfigError, JudgeError, OutputError
from triptych.eval.benchmark import Benchmark, run_benchmark, trace_seed
from triptych.eval.results import OVERALL, Report, Row, report_table, summarize
from triptych.eval.run_folder import (
    MOST_SEEDS,
    MOST_TURNS,
    RunFolder,
    code_sha256,
    pixels_sha256,
    play_jobs,
)
from triptych.eval.suites import GENEVAL, GENEVAL_PLUS, dev_set
from triptych.model.config import OLD_NAMES, SKETCH, Sampling
from triptych.model.images import read_image
from triptych.rewards.sticker_judge import WEIGHTS, WorldJudge, scene_verdict
from triptych.trace import Completion, Drawing, Item, Prompt, Spec, Trace, Turn, Verdict

BLANK = Scene(())
STOP = "<think>all as asked.</think>no further edit needed"


class Painter:
    """A policy that draws what `scene` says of a spec and a seed, then edits in vain up to `edits` times."""

    name, config = "painter", SKETCH

    def __init__(self, prompts, scene, edits=0):
        self.specs = {prompt.text: prompt.spec for prompt in prompts}
        self.scene, self.edits, self.drawn, self.scenes = scene, edits, [], {}

    def plan(self, prompts, sampling, seeds, on_text=None):
        return [Completion("<think>a plan</think>") for _ in prompts]

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, on_step=None):
        self.drawn += prompts
        return [self._picture(self.scene(self.specs[text], seed)) for text, seed in zip(prompts, seeds, strict=True)]

    def reflect(self, prompts, images, sampling, seeds, on_text=None):
        return [Completion("<think>not yet.</think>change nothing" if self.edits else STOP) for _ in prompts]

    def edit(self, images, instructions, sampling, seeds, sde_seeds=None, on_step=None):
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
        return [scene_verdict(self.painter.scenes[trace.image.tobytes()], trace.prompt.spec) for trace in traces]


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


@pytest.mark.parametrize("suite", [GENEVAL, GENEVAL_PLUS, dev_set()], ids=lambda suite: suite.name)
@pytest.mark.parametrize(("scene", "expected"), [(perfect, 1.0), (blank, 0.0)])
def test_perfect_is_one_and_blank_is_zero(suite, scene, expected):
    painter = Painter(suite.prompts, scene)
    rows = list(run_benchmark(suite, painter, Remembering(painter), turns=2, batch_size=64))
    report = suite.report(rows, turns=2)
    assert set(report.accuracy) == {*suite.titles, OVERALL}
    for turns in report.accuracy.values():
        assert values(turns) == [expected] * 3
    assert report.missing == 0 and report.edits == (len(suite.prompts), 0, 0)
    assert report.stop_precision == expected


@pytest.mark.parametrize("suite", [GENEVAL, GENEVAL_PLUS], ids=lambda suite: suite.name)
def test_a_coin_between_right_and_blank_gets_half(suite):
    def coin(spec, seed):
        return (perfect, blank)[Random(f"{spec} {seed}").randrange(2)](spec, seed)

    painter = Painter(suite.prompts, coin)
    report = suite.report(run_benchmark(suite, painter, Remembering(painter), turns=0, batch_size=64), turns=0)
    counts = Counter(suite.column(prompt) for prompt in suite.prompts)
    for column, count in counts.items():
        assert abs(report.accuracy[column][0].value - 0.5) < 4 * (0.25 / count) ** 0.5, column


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"the judge's weights are not here: expected {WEIGHTS}")
@pytest.mark.parametrize(("scene", "expected"), [(perfect, 1.0), (blank, 0.0)])
def test_perfect_is_one_and_blank_is_zero_for_the_judge_that_looks(scene, expected):
    suite = GENEVAL_PLUS.thinned(70)
    painter = Painter(suite.prompts, scene)
    report = suite.report(run_benchmark(suite, painter, WorldJudge(), turns=0, plan=False, batch_size=70), turns=0)
    assert values(report.accuracy[OVERALL]) == [expected]


def test_suites_are_whole():
    assert len(GENEVAL.prompts) == 553 and len(GENEVAL_PLUS.prompts) == 280
    assert GENEVAL_PLUS.titles == ("Color", "Count", "Color/Count", "Color/Pos", "Pos/Count", "Pos/Size", "Multi-Count")
    assert len(GENEVAL.titles) == 6
    known = {prompt.text for prompt in (*GENEVAL.prompts, *GENEVAL_PLUS.prompts) if prompt.spec.tag != "single_object"}
    assert not known & {prompt.text for prompt in dev_set(100).prompts}
    for prompt in dev_set(20).prompts:
        assert all(each.held for each in check(Scene.sample(prompt.spec, 0), prompt.spec))


def test_thinned_keeps_the_columns_even():
    thin = GENEVAL_PLUS.thinned(70)
    assert len(thin.prompts) == 70 and thin.titles == GENEVAL_PLUS.titles and thin.name == "GenEval++ (70 of 280)"
    assert GENEVAL_PLUS.thinned(1000) is GENEVAL_PLUS


# --- run --------------------------------------------------------------------------------------------------------------


def test_every_picture_is_judged_and_a_stop_keeps_the_last_one():
    script = [[50, 100, None], [100, None], [0, 20, 40]]
    rows = list(run_benchmark(small(3), None, Scripted(), turns=2, sampling=Sampling(), play=scripted_play(script)))
    assert [[each.score for each in row.verdicts] for row in rows] == [[0.5, 1.0], [1.0], [0.0, 0.2, 0.4]]
    assert [row.stopped for row in rows] == [True, True, False]
    assert [[row.score(turn) for turn in range(3)] for row in rows] == [[0.5, 1, 1], [1, 1, 1], [0, 0.2, 0.4]]
    assert rows[0].said == ("turn 0", "turn 1", "turn 2") and rows[0].seconds == 1.5


def test_rows_come_seed_by_seed_and_do_not_depend_on_the_batch():
    def played(batch_size):
        play = scripted_play([[50, None], [100]])
        return list(run_benchmark(small(), None, Scripted(), 1, (3, 4), Sampling(), batch_size=batch_size, play=play))

    assert [(row.prompt, row.seed) for row in played(3)] == [(index, seed) for seed in (3, 4) for index in range(5)]
    assert played(1) == played(3) == played(100)


def test_no_two_traces_of_a_run_begin_from_one_noise():
    calls = []
    list(run_benchmark(small(), None, Scripted(), 0, (0, 1), Sampling(), play=scripted_play([[50]], calls)))
    seeds = [seed for batch in calls for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 10


def test_a_given_picture_is_judged_first_and_a_play_without_a_beat_is_whole():
    given = Benchmark("given", (Prompt("a photo of a dog", image=pixels(70).image),), {})
    painter = Painter(given.prompts, blank, edits=1)
    for turns in (0, 1):
        (only,) = run_benchmark(given, painter, Scripted(), turns=turns)
        assert [each.score for each in only.verdicts] == [0.7] * (turns + 1) and only.column == "all"


def test_a_judge_that_cannot_see_one_picture_loses_no_other():
    rows = list(
        run_benchmark(small(3), None, Scripted(), 1, sampling=Sampling(), play=scripted_play([[100, 255], [0], [255]]))
    )
    assert [[each and each.score for each in row.verdicts] for row in rows] == [[1.0, None], [0.0], [None]]
    report = small(3).report(rows, turns=1)
    assert report.missing == 2
    assert values(report.accuracy["Count"]) == [1.0, None] and values(report.accuracy["Color"]) == [0.0, 0.0]
    assert values(report.accuracy[OVERALL]) == [0.5, 0.0]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    script, calls = [[50, 100, None], [100], [0, 20, 40]], []
    settings = {"turns": 2, "seeds": (0, 1), "sampling": Sampling(), "batch_size": 2}
    settings["play"] = scripted_play(script, calls)
    straight = list(run_benchmark(small(), None, Scripted(), **settings))

    first = run_benchmark(small(), None, Scripted(), **settings, out=tmp_path / "run")
    assert list(islice(first, 4)) == straight[:4]
    first.close()
    assert not (tmp_path / "run/report.json").exists()
    with (tmp_path / "run/results.jsonl").open("a") as results:
        results.write('{"prompt": 4, "text": "pro')

    calls.clear()
    assert list(run_benchmark(small(), None, Scripted(), **settings, out=tmp_path / "run", resume=True)) == straight
    assert sorted(key for batch in calls for key in batch) == sorted(
        (row.text, trace_seed(row.prompt, row.seed)) for row in straight[4:]
    )
    assert Report.load(tmp_path / "run/report.json") == small().report(straight, turns=2)
    assert len((tmp_path / "run/results.jsonl").read_text().splitlines()) == len(straight)


def test_resuming_asks_again_for_missing_verdicts(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run"}
    list(run_benchmark(small(2), None, Scripted(), **settings, play=scripted_play([[100], [255]])))
    calls = []
    rows = list(
        run_benchmark(small(2), None, Scripted(), **settings, resume=True, play=scripted_play([[100], [90]], calls))
    )
    assert calls == [[("prompt 1", trace_seed(1, 0))]] and [row.score(0) for row in rows] == [1.0, 0.9]
    rows = list(run_benchmark(small(2), None, Scripted(), **settings, resume=True, play=scripted_play([[0]], calls)))
    assert len(calls) == 1 and [row.score(0) for row in rows] == [1.0, 0.9]


def test_another_run_is_not_resumed_and_no_folder_is_overwritten(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run", "play": scripted_play([[100]])}
    list(run_benchmark(small(2), None, Scripted(), **settings))
    with pytest.raises(OutputError, match="exists"):
        list(run_benchmark(small(2), None, Scripted(), **settings))
    for change in ({"turns": 1}, {"seeds": (7,)}, {"plan": False}, {"sampling": Sampling(temperature=1.0)}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            list(run_benchmark(small(2), None, Scripted(), **{**settings, **change}, resume=True))
    with pytest.raises(ConfigError, match="prompts_sha256"):
        list(run_benchmark(small(3), None, Scripted(), **settings, resume=True))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["judge"] == "scripted" and manifest["versions"]["torch"] == torch.__version__


def test_a_run_of_0_1_is_resumed_under_todays_names(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run", "play": scripted_play([[100]])}
    rows = list(run_benchmark(small(2), None, Scripted(), **settings))
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    for old, new in OLD_NAMES.items():
        if new in manifest["sampling"]:
            manifest["sampling"][old] = manifest["sampling"].pop(new)
    assert "interval" in manifest["sampling"]
    path.write_text(json.dumps(manifest))
    assert list(run_benchmark(small(2), None, Scripted(), **settings, resume=True)) == rows


def test_a_spoiled_line_is_named(tmp_path):
    settings = {"turns": 0, "sampling": Sampling(), "out": tmp_path / "run", "play": scripted_play([[100]])}
    list(run_benchmark(small(2), None, Scripted(), **settings))
    results = tmp_path / "run/results.jsonl"
    results.write_text("nonsense\n" + results.read_text())
    with pytest.raises(OutputError, match=r"results.jsonl:1"):
        list(run_benchmark(small(2), None, Scripted(), **settings, resume=True))


# --- the folder -------------------------------------------------------------------------------------------------------


def kept_run(folder, script=((50, 100, None), (100,), (0, 20, 40)), **settings):
    settings = {"turns": 2, "sampling": Sampling(), "play": scripted_play(list(map(list, script))), **settings}
    return run_benchmark(small(), None, Scripted(), out=folder, **settings)


def test_a_run_keeps_every_pixel_it_judged(tmp_path):
    for row in kept_run(tmp_path / "run"):
        run_folder = RunFolder.read(tmp_path / "run")  # a reader beside the running process
        assert row in run_folder.rows()
        for turn, judged in enumerate(row.verdicts):
            picture = read_image(run_folder.kept_picture(row, turn))
            assert picture[0, 0, 0] == round(judged.score * 100) and pixels_sha256(picture) == row.pictures[turn]
    assert (tmp_path / "run/pictures/00002-0-2.png").exists()
    assert run_folder.kept_picture(row, 9) == run_folder.kept_picture(row, row.edits)  # the picture that stands
    bare = list(kept_run(tmp_path / "bare", keep_pictures=False))
    assert not (tmp_path / "bare/pictures").exists() and bare[0].pictures
    with pytest.raises(OutputError, match=r"00000-0-0\.png is missing; expected"):
        RunFolder.read(tmp_path / "bare").kept_picture(bare[0], 0)


def test_pixels_sha256_knows_shape_and_pixels():
    picture = np.zeros((2, 3, 3), np.uint8)
    assert (
        pixels_sha256(picture) == pixels_sha256(np.asfortranarray(picture)) != pixels_sha256(picture.reshape(3, 2, 3))
    )
    assert len(code_sha256()) == 16 and code_sha256() == code_sha256()


def test_shards_together_are_the_run(tmp_path):
    straight = list(kept_run(tmp_path / "straight", seeds=(0, 1)))
    shards = [kept_run(tmp_path / "run", seeds=(0, 1), shard=(index, 3)) for index in (1, 2, 3)]
    found = []
    for _ in range(3):  # in turns, as processes would
        found += [row for shard in shards for row in islice(shard, 1)]
        assert not (tmp_path / "run/report.json").exists()
    found += [row for shard in shards for row in shard]
    key = lambda row: (row.seed, row.prompt)  # noqa: E731
    assert sorted(found, key=key) == straight == RunFolder.read(tmp_path / "run").rows()
    written = [(tmp_path / name / "report.json").read_text() for name in ("run", "straight")]
    assert written[0] == written[1]
    assert sorted(path.name for path in (tmp_path / "run").glob("results*")) == [
        f"results-{index}-of-3.jsonl" for index in (1, 2, 3)
    ]


def test_a_killed_run_may_go_on_in_other_shards(tmp_path):
    first = kept_run(tmp_path / "run", seeds=(0, 1))
    done = list(islice(first, 3))
    first.close()
    again = [kept_run(tmp_path / "run", seeds=(0, 1), shard=(index, 2), resume=True) for index in (1, 2)]
    rows = [row for shard in again for row in shard]
    assert len(rows) == 10 and all(row in rows for row in done)
    lines = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "run").glob("results*"))]
    assert sorted(lines) == [3, 3, 4]
    assert Report.load(tmp_path / "run/report.json") == RunFolder.read(tmp_path / "run").report()


def test_two_writers_never_share_a_file(tmp_path):
    first = kept_run(tmp_path / "run", shard=(1, 2))
    next(first)
    with pytest.raises(OutputError, match="being written by another process"):
        next(kept_run(tmp_path / "run", shard=(1, 2), resume=True))
    with pytest.raises(OutputError, match=r"results-1-of-2.jsonl exists"):
        next(kept_run(tmp_path / "run", shard=(1, 2)))
    with pytest.raises(ConfigError, match="turns was 2, is 1"):
        next(kept_run(tmp_path / "run", shard=(2, 2), turns=1))
    first.close()
    assert len(list(kept_run(tmp_path / "run", shard=(1, 2), resume=True))) == 3
    with pytest.raises(ConfigError, match="shard 3/2: expected"):
        next(kept_run(tmp_path / "other", shard=(3, 2)))
    with pytest.raises(ConfigError, match="without a folder"):
        next(kept_run(None, shard=(1, 2)))
    assert not (tmp_path / "other").exists()


def test_a_kill_anywhere_in_a_line_loses_that_line_only(tmp_path):
    """Also within a letter of two bytes: the other rows are read, and one is played again."""
    whole = list(kept_run(tmp_path / "run"))
    results = tmp_path / "run/results.jsonl"
    *others, last = results.read_bytes().replace(b"turn ", "t\u00fcrn ".encode()).splitlines(keepends=True)
    for cut in range(len(last)):
        results.write_bytes(b"".join(others) + last[:cut])
        assert len(RunFolder.read(tmp_path / "run").rows()) == len(whole) - 1
    results.write_bytes(b"".join(others) + last[: last.index(b"\xc3") + 1])
    calls = []
    list(kept_run(tmp_path / "run", resume=True, play=scripted_play([[50, 100, None], [100], [0, 20, 40]], calls)))
    assert calls == [[("prompt 4", trace_seed(4, 0))]] and len(results.read_bytes().splitlines()) == len(whole)


def test_of_rows_of_one_job_the_last_whole_one_counts(tmp_path):
    list(kept_run(tmp_path / "run"))
    run_folder = RunFolder.read(tmp_path / "run")
    for scores in ([0.3], [0.6], [None]):
        run_folder.append(row(0, scores))
    assert (
        run_folder.rows()[0] == row(0, [0.6])
        and len(run_folder.rows()) == 5
        and run_folder.open_jobs(run_folder.rows()) == []
    )


def test_rows_of_older_runs_are_read(tmp_path):
    record = row(0, [1.0]).to_record()
    del record["pictures"]
    assert Row.from_record(json.loads(json.dumps(record))) == row(0, [1.0])


def test_a_folder_of_version_0_1_is_read_under_the_names_of_today(tmp_path):
    rows = list(kept_run(tmp_path / "run"))
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    older = {**manifest, "benchmark": "rehearsal (5 of 70)", "sampling": {"interval": [0.4, 1.0], "stochastic": []}}
    path.write_text(json.dumps({**older, "drawn": {"benchmark": "rehearsal"}}))
    found = RunFolder.read(tmp_path / "run")
    assert found.manifest["benchmark"] == "dev-set (5 of 70)" and found.manifest["drawn"]["benchmark"] == "dev-set"
    assert found.manifest["sampling"] == {"guidance_interval": [0.4, 1.0], "sde_indices": []}
    assert found.rows() == rows


def test_recorded_gives_each_job_to_work_once_and_in_batches():
    batches = []

    def work(jobs):
        batches.append(list(jobs))
        return [(row(prompt, [1.0], seed=seed), ()) for prompt, seed in jobs]

    jobs = [(prompt, seed) for seed in (0, 1) for prompt in range(3)]
    assert [(each.prompt, each.seed) for each in play_jobs(jobs, work, batch_size=4)] == jobs
    assert batches == [jobs[:4], jobs[4:]]
    with pytest.raises(ConfigError, match="batch_size=0"):
        next(play_jobs(jobs, work, batch_size=0))


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OutputError, match="expected the manifest of a run"):
            RunFolder.read(folder)


def test_settings_out_of_range_are_refused():
    for wrong in ({"batch_size": 0}, {"turns": -1}, {"seeds": ()}, {"seeds": (1, 1)}):
        with pytest.raises(ConfigError, match="expected a batch"):
            next(run_benchmark(small(), None, Scripted(), **wrong, sampling=Sampling()))


def test_what_could_not_be_read_back_is_not_begun(tmp_path):
    """A run of the most turns or seeds is read as it was opened; one more is refused before there is a folder."""
    largest = {"turns": MOST_TURNS}, {"seeds": range(MOST_SEEDS)}
    for number, settings in enumerate(largest):
        out = tmp_path / f"largest-{number}"
        next(
            run_benchmark(
                small(1), None, Scripted(), **settings, sampling=Sampling(), out=out, play=scripted_play([[100]])
            )
        )
        found = RunFolder.read(out).manifest
        assert all(found[name] == (value if name == "turns" else [*value]) for name, value in settings.items())
    for settings in ({"turns": MOST_TURNS + 1}, {"seeds": range(MOST_SEEDS + 1)}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            next(run_benchmark(small(1), None, Scripted(), **settings, sampling=Sampling(), out=tmp_path / "too-large"))
        assert not (tmp_path / "too-large").exists()


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


def test_columns_that_share_their_units_add_no_certainty():
    """Four questions about each picture, all right or all wrong: no surer of the mean than of one of them."""
    columns = ("Presence", "Count", "Color", "Side")
    rows = [
        replace(row(4 * i + k, [float(i % 5 < 3)], column=column), group=i)
        for i in range(300)
        for k, column in enumerate(columns)
    ]
    (estimate,) = summarize("shared", rows, columns, 0).accuracy[OVERALL]
    assert [estimate.low, estimate.high] == pytest.approx([0.6 - 0.0554, 0.6 + 0.0554], abs=0.01)


def test_records_survive_writing():
    spoken = replace(row(1, []), verdicts=(Verdict(0.5, ("a",), ("b",)), None, Verdict(1.0)), said=("x", None))
    assert Row.from_record(json.loads(json.dumps(spoken.to_record()))) == spoken


def test_the_table_names_columns_and_turns():
    report = summarize("shown", [row(0, [0.5, 1.0], stopped=True), row(1, [None])], ("Color",), turns=1)
    sheet = StringIO()
    Console(file=sheet, width=80).print(report_table(report))
    for part in ("shown", "Color", OVERALL, "0.000", "1.000", "[1.000, 1.000]", "<= 1", "fixed 1", "missing: 1"):
        assert part in sheet.getvalue()
    assert sheet.getvalue().count("(1 missing)") == 4  # beside each mean that leaves one out


def shown(report: Report, width: int) -> list[str]:
    """The lines of a report's table on a terminal of that width."""
    sheet = StringIO()
    Console(file=sheet, width=width).print(report_table(report))
    return sheet.getvalue().splitlines()


@pytest.mark.parametrize("suite", [GENEVAL, GENEVAL_PLUS], ids=lambda suite: suite.name)
def test_overall_has_its_interval_after_every_edit(suite):
    """The table shows what report.json holds: low and high ends under the mean of each number of turns."""
    rows = [row(index, [float((index >> turn) % 3 == 0) for turn in range(5)]) for index in range(60)]
    rows = [replace(each, column=suite.titles[each.prompt % len(suite.titles)]) for each in rows]
    report = summarize(suite.name, rows, suite.titles, turns=4)
    lines = shown(report, width=100)
    assert not any("…" in line for line in lines)
    for name, title in (("value", OVERALL), ("low", "95 % from"), ("high", "95 % to")):
        (line,) = [line for line in lines if title in line]
        told = [f"{getattr(each, name):.3f}" for each in report.accuracy[OVERALL]]
        assert line.replace("│", " ").split(title)[1].split()[:5] == told and len(set(told)) > 2


def test_one_number_has_its_interval_beside_it():
    lines = shown(summarize("once", [row(0, [1.0]), row(1, [0.0])], ("Color",), turns=0), width=80)
    assert not any("from" in line for line in lines) and sum("[0.000, 1.000]" in line for line in lines) == 2


def test_the_paper_s_table_fits_a_terminal():
    rows = [row(index, [0.5] * 4 + [None], column=title) for index, title in enumerate(GENEVAL_PLUS.titles)]
    sheet = StringIO()
    Console(file=sheet, width=80).print(report_table(summarize("GenEval++", rows, GENEVAL_PLUS.titles, turns=4)))
    assert (
        "…" not in sheet.getvalue() and "Color/Count" in sheet.getvalue() and "[0.000, 0.000]" not in sheet.getvalue()
    )


def test_a_picture_that_cannot_be_kept_is_told_once(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    row = Row(0, "a cat", "all", 0, (Verdict(1.0),), True, (None,), 0.0)
    run_folder.picture_path(row, 0).mkdir(parents=True)  # a folder stands where the picture belongs
    with pytest.raises(OutputError) as error:
        run_folder.append(row, [np.zeros((4, 4, 3), np.uint8)])
    assert str(error.value).count("cannot write") == 1 and "00000-0-0.png" in str(error.value)
    assert not run_folder.results.exists()


def test_traces_begin_from_the_seeds_of_published_runs():
    """Of numpy's SeedSequence over (seed, index), in this order, cut to 31 bits."""
    assert [trace_seed(index, seed) for index, seed in ((0, 0), (1, 0), (0, 1), (5, 3))] == [
        *(1484405855, 1982462498, 917752063, 1873002354)
    ]
    assert trace_seed(5, 3) == int(np.random.SeedSequence((3, 5)).generate_state(1)[0]) >> 1
