"""Laws of paired comparisons, known answers, what forbids a comparison, and the layout of the exports."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from triptych.eval.compare import compare, differences
from triptych.eval.lm_eval_export import results, samples, task_of
from triptych.eval.results import OVERALL, Row, summarize
from triptych.trace import Verdict

COLUMNS = ("Color", "Count")
MANIFEST = {
    "benchmark": "GenEval++",
    "columns": list(COLUMNS),
    "prompts": 4,
    "prompts_sha256": "aa",
    "model": "sketch-1",
    "judge": "world-1",
    "turns": 1,
    "seeds": [0],
    "sampling": {"steps": 20},
    "versions": {"torch": "2.8"},
}

scores = some.lists(some.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=14)


def row(prompt, *scores, seed=0, column=None):
    verdicts = tuple(None if score is None else Verdict(score, failed=("a",) * (score < 1)) for score in scores)
    column = COLUMNS[prompt % 2] if column is None else column
    return Row(prompt, f"prompt {prompt}", column, seed, verdicts, False, ("said",), 1.0, ("f00d",))


def rows_of(scores):
    return [row(prompt, score) for prompt, score in enumerate(scores)]


# --- pairs ------------------------------------------------------------------------------------------------------------


@given(scores)
def test_a_run_is_as_good_as_itself(scores):
    rows = rows_of(scores)
    found = compare(rows, rows, COLUMNS, turn=0)
    for estimate in found.differences.values():
        assert (estimate.value, estimate.low, estimate.high) in ((0, 0, 0), (None, None, None))
    assert len(found.ties) == sum(score is not None for score in scores)
    assert not found.wins and not found.losses and found.sign_p is None


@given(some.lists(some.tuples(*[some.sampled_from([None, 0.0, 1.0])] * 2), min_size=1, max_size=14))
def test_swapped_runs_negate(both):
    first, second = rows_of([one for one, _ in both]), rows_of([other for _, other in both])
    there, back = compare(first, second, COLUMNS, 0), compare(second, first, COLUMNS, 0)
    for column, one in there.differences.items():
        other = back.differences[column]
        if one.value is None:
            assert other.value is None
            continue
        assert [one.value, one.low, one.high] == pytest.approx([-other.value, -other.high, -other.low])
    names = [[pair.prompt for pair in pairs] for pairs in (there.wins, there.losses, there.ties)]
    assert names == [[pair.prompt for pair in pairs] for pairs in (back.losses, back.wins, back.ties)]
    assert there.sign_p == back.sign_p


def test_a_difference_by_hand():
    first = rows_of([0.0, 1.0, 0.5, 1.0])  # Color: prompts 0 and 2; Count: 1 and 3
    second = rows_of([1.0, 1.0, 1.0, 0.2])
    found = compare(first, second, COLUMNS, turn=0)
    assert [found.differences[name].value for name in (*COLUMNS, OVERALL)] == [1.0, -0.5, 0.25]
    assert [pair.prompt for pair in found.wins] == [0, 2]
    assert [pair.prompt for pair in found.losses] == [3] and [pair.prompt for pair in found.ties] == [1]
    assert found.sign_p == 1.0  # 2 (3 + 1) / 8
    record = json.loads(json.dumps(found.to_record()))
    assert record["wins"][0] == {
        "prompt": 0,
        "cluster": 0,
        "text": "prompt 0",
        "column": "Color",
        "first": 0.0,
        "second": 1.0,
    }


def test_questions_about_one_picture_win_or_lose_together():
    """Six questions about two pictures are two pairs, not six: five wins among them prove nothing."""
    group = [0, 0, 0, 0, 1, 1]
    first, second = (
        [replace(each, group=unit) for each, unit in zip(rows_of(scores), group, strict=True)]
        for scores in ([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    )
    found = compare(first, second, COLUMNS, turn=0)
    assert (len(found.wins), len(found.losses)) == (5, 1)
    assert found.sign_p == 0.5  # two pictures won, none lost: 2 / 4
    assert compare(first[:4], [*first[:3], second[3]], COLUMNS, turn=0).sign_p == 1.0


def test_the_sign_test_by_hand():
    """Nine wins and one loss: 2 (10 + 1) / 1024."""
    found = compare(rows_of([0.0] * 9 + [1.0]), rows_of([1.0] * 9 + [0.0]), COLUMNS, turn=0)
    assert found.sign_p == pytest.approx(22 / 1024)


def test_the_paired_interval_is_narrower_where_prompts_are_shared():
    """Nine prompts of ten agree: the pairs know the difference better than two separate intervals do."""
    first = [row(index, float(index % 2), column="Color") for index in range(100)]
    second = [row(index, float(index % 2 or index % 20 == 0), column="Color") for index in range(100)]
    estimate = compare(first, second, ("Color",), 0).differences["Color"]
    apart = summarize("x", first, ("Color",), 0).accuracy["Color"][0]
    assert estimate.value == pytest.approx(0.05)
    assert estimate.high - estimate.low < (apart.high - apart.low) / 2


def test_a_missing_verdict_leaves_its_pair_out_and_is_counted():
    first, second = rows_of([0.0, 1.0, 1.0, 0.0]), rows_of([1.0, 1.0, None, 1.0])
    found = compare(first, second, COLUMNS, turn=0)
    assert found.differences["Color"].value == 1.0 and found.differences["Color"].missing == 1
    assert found.differences[OVERALL].missing == 1
    assert [pair.prompt for pair in found.unpaired] == [2]
    gone = compare(first, second[:3], COLUMNS, turn=0)  # prompt 3 was not played yet
    assert [pair.prompt for pair in gone.unpaired] == [2, 3] and gone.differences["Count"].value == 0.0


def test_seeds_of_a_prompt_are_one_pair():
    first = [row(0, 0.0), row(0, 1.0, seed=1)]
    second = [row(0, 1.0), row(0, 1.0, seed=1)]
    (pair,) = compare(first, second, ("Color",), 0).pairs
    assert (pair.first, pair.second, pair.outcome) == (0.5, 1.0, "win")


def test_questions_about_one_prompt_are_drawn_together():
    """A hundred copies of two questions know no more than the two."""
    two = [row(index, float(index % 2), column="Color") for index in range(2)]
    many = [replace(two[index % 2], prompt=index, group=index % 2) for index in range(200)]
    other = [replace(each, verdicts=(Verdict(0.0),)) for each in many]
    assert summarize("x", many, ("Color",), 0).accuracy == summarize("x", two, ("Color",), 0).accuracy
    estimate = compare(other, many, ("Color",), 0).differences["Color"]
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


# --- may they be compared? --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["benchmark", "columns", "prompts", "prompts_sha256", "judge", "turns", "of_my_own"])
def test_another_task_or_judge_forbids(key):
    (found,) = differences(MANIFEST, {**MANIFEST, key: "another"})
    assert found.forbids and found.key == key and "another" in str(found)


@pytest.mark.parametrize("key", ["model", "seeds", "device", "dtype", "plan", "code_sha256"])
def test_another_model_or_machine_only_tells(key):
    (found,) = differences(MANIFEST, {**MANIFEST, key: "another"})
    assert not found.forbids


def test_differences_are_dotted_whole_and_forbidding_ones_come_first():
    assert differences(MANIFEST, MANIFEST) == []
    other = {**MANIFEST, "sampling": {"steps": 50, "shift": 3.0}, "versions": {"torch": "2.9"}, "judge": "templates"}
    found = differences(MANIFEST, other)
    assert [each.key for each in found] == ["judge", "sampling.steps", "sampling.shift", "versions.torch"]
    assert [each.forbids for each in found] == [True, False, False, False]
    assert "not recorded here, 3.0 there" in str(found[2])


# --- exports ----------------------------------------------------------------------------------------------------------


def exported():
    rows = [row(0, 0.0, 1.0), row(1, 1.0, 0.0), row(2, 0.5, None), row(3, 1.0)]
    return rows, results(MANIFEST, rows, COLUMNS)


def test_the_results_file_has_the_numbers_of_the_report():
    rows, record = exported()
    json.dumps(record, allow_nan=False)
    report = summarize("GenEval++", rows, COLUMNS, turns=1)
    for column in (*COLUMNS, OVERALL):
        found = record["results"][task_of("GenEval++", column)]
        assert found["acc,none"] == report.accuracy[column][1].value
        assert found["acc_turn0,none"] == report.accuracy[column][0].value
        assert found["missing,none"] == report.accuracy[column][1].missing
    assert record["n-samples"]["genevalpp_color"] == {"original": 2, "effective": 1}
    assert record["group_subtasks"] == {"genevalpp": ["genevalpp_color", "genevalpp_count"]}


def test_every_name_of_the_results_file_is_explained():
    """What readers of that layout look up: version, shots and direction of each task, the error of each metric."""
    _, record = exported()
    for task, metrics in record["results"].items():
        assert {task} <= set(record["versions"]) & set(record["n-shot"]) & set(record["higher_is_better"])
        for name in metrics:
            metric, _, filtered = name.partition(",")
            assert name == "alias" or filtered == "none"
            if metric.startswith("acc") and not metric.endswith("_stderr"):
                assert metrics[f"{metric}_stderr,none"] >= 0 and record["higher_is_better"][task][metric]


def test_the_standard_error_is_that_of_a_share():
    rows = [row(index, float(index % 4 == 0), column="Color") for index in range(400)]
    record = results({**MANIFEST, "turns": 0}, rows, ("Color",))
    assert record["results"]["genevalpp_color"]["acc_stderr,none"] == pytest.approx((0.25 * 0.75 / 400) ** 0.5, rel=0.1)


def test_nothing_known_is_no_accuracy():
    record = results({**MANIFEST, "turns": 0}, [row(0, None)], ("Color",))
    assert record["results"]["genevalpp_color"] == {"alias": "Color", "missing,none": 1}


def test_samples_tell_a_missing_verdict_from_a_wrong_picture():
    rows = [row(0, 1.0), row(1, 0.5), replace(row(2, None), said=())]
    found = list(samples({**MANIFEST, "turns": 0}, rows))
    assert [(each["acc"], each["score"]) for each in found] == [(1.0, 1.0), (0.0, 0.5), (None, None)]
    assert [each["failed"] for each in found] == [[], ["a"], None]
    assert found[0]["doc_hash"] != found[1]["doc_hash"] and found[0]["task_name"] == "genevalpp_color"
