"""Recorded files: the published ones to the letter, every form in which they come, and damage that is always named."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from triptych.errors import JudgeError
from triptych.eval import recorded, tiif
from triptych.eval.recorded import RecordedVerdict
from triptych.eval.statistics import estimate, mean_of_columns
from triptych.rewards.geneval_rules import GENEVAL_COLORS

BOX = {"box": [10.0, 10.0, 60.0, 60.0], "score": 0.9, "color": "red"}
GENEVAL = {
    "metadata": {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"},
    "detections": {"cat": [BOX]},
}
TIIF = {
    "attribute": "style", "length": "short", "questions": ["Is it round?", "Is it red?"], "gt_answers": ["yes", "No"],
    "model_output": "yes, it is.\nno, blue.",
}  # fmt: skip
GENEVALPP = {"tag": "counting", "prompt": "A photo of six cats", "correct": 1}
LINES = {"geneval": GENEVAL, "tiif": TIIF, "genevalpp": GENEVALPP}
READERS = {"geneval": recorded.read_geneval, "tiif": recorded.read_tiif, "genevalpp": recorded.read_genevalpp}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def one(benchmark: str, path: Path, record: object) -> RecordedVerdict:
    (row,) = READERS[benchmark](write(path, record))
    return row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.jsonl"


# --- the published files ----------------------------------------------------------------------------------------------


def test_all_400_verdicts(shared: Path):
    rows = list(recorded.read_geneval(shared / "benchmarks" / "geneval_verdicts.jsonl"))
    assert len(rows) == 400 and [row.line for row in rows] == list(range(1, 401))
    assert not any(row.disputed for row in rows) and all(row.claimed is not None for row in rows)


@pytest.mark.parametrize("name", ["GPT-4o/Janus-Pro", "QwenVL/sd35"])
def test_tiif_counts_are_the_published_ones(shared: Path, name: str):
    folder = shared / "benchmarks" / "tiif_replies"
    expected = json.loads((folder / "expected_counts.json").read_text())[name]
    rows = list(recorded.read_tiif(folder / f"{name.replace('/', '__')}.jsonl.gz"))
    assert {key: [cell.right, cell.asked] for key, cell in tiif.column_counts(rows).items()} == expected
    assert not any(row.missing for row in rows)
    assert set(tiif.column_counts(rows)) == set(tiif.tiif_columns())


def official_result(record: dict) -> dict:
    """A line of GenEval's own results file: boxes without colours, and its reasons in its words."""
    lines = []
    for item in record["metadata"]["include"]:
        found = record["detections"].get(item["class"], [])[: item["count"]]
        colors = Counter(each["color"] for each in found)
        if "color" in item and len(found) == item["count"] and colors[item["color"]] < item["count"]:
            told = ", ".join(f"{colors[color]} {color}" for color in GENEVAL_COLORS if color in colors)
            wanted, got = (
                f"{item['color']} {item['class']}>={item['count']}",
                f"{colors[item['color']]} {item['color']}",
            )
            lines.append(f"expected {wanted}, found {got}; and {told}")
    details = {name: [[*each["box"], each["score"]] for each in own] for name, own in record["detections"].items()}
    return {
        "filename": "00000/samples/0000.png",
        "tag": record["metadata"]["tag"],
        "prompt": record["metadata"]["prompt"],
        "correct": record["correct"],
        "reason": "\n".join(lines),
        "metadata": json.dumps(record["metadata"]),
        "details": json.dumps(details),
    }


def test_genevals_own_results_are_derived_again(shared: Path, path: Path):
    source = shared / "benchmarks" / "geneval_verdicts.jsonl"
    write(path, *(official_result(json.loads(line)) for line in source.open()))
    for row, theirs in zip(recorded.read_geneval(path), recorded.read_geneval(source), strict=True):
        assert (row.correct, row.column, row.prompt) == (theirs.correct, theirs.column, theirs.prompt)
        assert row.reasons == theirs.reasons and not row.disputed


# --- the forms in which they come -------------------------------------------------------------------------------------


def test_a_file_that_disagrees_with_the_rules_is_disputed(path: Path):
    row = one("geneval", path, {**GENEVAL, "correct": False})
    assert row.correct is True and row.disputed
    old = {"metadata": GENEVAL["metadata"], "correct": False, "reason": "expected cat>=1, found 0"}
    row = one("geneval", path, old)  # early results have no boxes: their word stands
    assert row.correct is False and row.reasons == ("expected cat>=1, found 0",) and not row.disputed


def test_gzip_blank_lines_and_byte_order_marks(path: Path):
    text = "\ufeff" + json.dumps(TIIF) + "\r\n\r\n   \n" + json.dumps(TIIF)
    path.write_bytes(gzip.compress(text.encode()))
    assert [(row.line, row.right, row.asked) for row in recorded.read_tiif(path)] == [(1, 2, 2), (4, 2, 2)]


def test_tiifs_own_names_of_the_lengths(path: Path):
    record = {key: value for key, value in TIIF.items() if key != "length"}
    assert one("tiif", path, {**record, "desc": "long_description"}).column == "style/long"


@pytest.mark.parametrize(
    "said", ["yes", "1. yes", "yes\nno\nyes", "", None, "I am sorry, I cannot see the picture.", "no\nyes\nno\nno"]
)
def test_a_reply_that_does_not_answer_is_missing(path: Path, said: str | None):
    row = one("tiif", path, {**TIIF, "model_output": said})
    assert row.missing and (row.right, row.asked, row.correct) == (0, 0, None)
    assert row.where == f"{path}, line 1"


@pytest.mark.parametrize(
    ("said", "correct"),
    [
        *((1, True), (0, False), (True, True), (False, False), (1.0, True), (-1, None), (None, None), ("", None)),
        *(('{"correct": 0, "reason": "one cat"}', False), ("Yes", True), ("unclear", None)),
    ],
)
def test_strict_verdicts_in_numbers_and_words(path: Path, said: object, correct: bool | None):
    row = one("genevalpp", path, {**GENEVALPP, "correct": said})
    assert row.correct is correct and bool(row.missing) == (correct is None)


def test_replies_in_words_and_why_a_judge_failed(path: Path):
    record = {"metadata": {"tag": "counting", "prompt": "six cats"}, "model_output": "Correct: 1"}
    row = one("genevalpp", path, record)
    assert row.correct is True and row.column == "counting" and row.prompt == "six cats"
    failed = one("genevalpp", path, {**GENEVALPP, "correct": None, "reply": "", "error": "timed out"})
    assert failed.missing == "the judge failed: 'timed out'"


# --- damage -----------------------------------------------------------------------------------------------------------

NUMBER = [
    float("nan"),
    float("inf"),
    -float("inf"),
    10**30,
    -7,
    "3",
    True,
    None,
    [],
    {},
    [[]],
    "\ud800\x1b[31m",
    "\U0001d54f" * 9,
]


def mutants(record: dict) -> list[dict]:
    """The record with each part, at any depth, taken out or replaced by something else."""
    found = []
    for key, value in record.items():
        found.append({other: kept for other, kept in record.items() if other != key})
        found += [{**record, key: other} for other in NUMBER]
        if isinstance(value, dict):
            found += [{**record, key: other} for other in mutants(value)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found += [{**record, key: [other]} for other in mutants(value[0])]
        elif isinstance(value, list):
            found += [{**record, key: [other, *value[1:]]} for other in NUMBER] + [{**record, key: value[1:]}]
    return found


HOSTILE = [(benchmark, record) for benchmark, line in LINES.items() for record in mutants(line)]


def test_hostile_records_are_many():
    assert len(HOSTILE) > 300


@pytest.mark.parametrize("benchmark", LINES)
def test_hostile_records_are_read_or_named(benchmark: str, path: Path):
    for record in (record for name, record in HOSTILE if name == benchmark):
        write(path, LINES[benchmark], record)
        try:
            rows = list(READERS[benchmark](path))
        except JudgeError as error:
            assert str(error).startswith(f"{path}, line 2: ") and str(error).isprintable() and len(str(error)) < 500
        else:
            assert len(rows) == 2 and all(row.missing or 0 <= row.right <= row.asked for row in rows)


@pytest.mark.parametrize("benchmark", LINES)
@pytest.mark.parametrize(
    "line",
    [
        *(
            b"{",
            b"[]",
            b"3",
            b"null",
            b'"text"',
            b"NaN",
            b"\xff\xfe",
            b"\x00" * 9,
            b"{}" * 2,
            b"not json",
            b"9" * 9_999,
        ),
        *(b"[" * 100_000, b'{"a":' * 9_999, b"x" * 10_000_000, b'{"a": "' + b"y" * 10_000_000),
    ],
    ids=lambda line: repr(line[:10]),
)
def test_lines_that_are_no_records(benchmark: str, line: bytes, path: Path):
    path.write_bytes(json.dumps(LINES[benchmark]).encode() + b"\n" + line)
    with pytest.raises(JudgeError) as caught:
        list(READERS[benchmark](path))
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_whole_line_of_ten_megabytes_is_read(path: Path):
    assert one("tiif", path, {**TIIF, "note": "y" * 10_000_000}).right == 2


def test_a_line_longer_than_any_picture_needs(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recorded, "MAX_LINE", 1000)
    with pytest.raises(JudgeError, match="line 2: longer than"):
        list(recorded.read_tiif(write(path, TIIF, {**TIIF, "note": "y" * 2000})))


@pytest.mark.parametrize("kept", [1, 10, 30, 60, 99])
def test_a_gzip_stream_that_is_cut_off(path: Path, kept: int):
    packed = gzip.compress("".join(json.dumps({**TIIF, "index": index}) + "\n" for index in range(200)).encode())
    path.write_bytes(packed[: max(3, len(packed) * kept // 100)])
    with pytest.raises(JudgeError, match=r"line \d+: the gzip stream is cut off or damaged"):
        list(recorded.read_tiif(path))


def test_all_damaged_lines_are_told_at_once(path: Path):
    lines = [json.dumps(GENEVALPP), "{", json.dumps({"tag": "x"}), json.dumps(GENEVALPP), '{"tag": 3}', "", "not json"]
    path.write_text("\n".join(lines))
    with pytest.raises(JudgeError) as caught:
        list(recorded.read_genevalpp(path))
    message = str(caught.value)
    assert [f"line {number}: " in message for number in (1, 2, 3, 4, 5, 7)] == [
        False, True, True, False, True, True,
    ]  # fmt: skip
    assert message.endswith("(4 of 6 lines)") and "\n" not in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[\n" + json.dumps(GENEVALPP).encode() + b"\n]", "JSON array.*jq -c"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (json.dumps(GENEVALPP).encode("utf-16"), "UTF-16"),
    ],
)
def test_what_is_no_json_lines_is_named(path: Path, content: bytes, told: str):
    path.write_bytes(content)
    with pytest.raises(JudgeError, match=told):
        list(recorded.read_genevalpp(path))


def test_files_that_are_none(tmp_path: Path):
    for content in ("", "\n \n"):
        (tmp_path / "empty").write_text(content)
        with pytest.raises(JudgeError, match="holds no lines"):
            list(recorded.read_tiif(tmp_path / "empty"))
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(JudgeError, match="cannot read"):
            list(recorded.read_tiif(path))
    with pytest.raises(JudgeError, match="jq -c"):
        list(recorded.read_genevalpp(write(tmp_path / "array", [GENEVALPP])))


json_values = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(some.sampled_from(sorted(LINES)), json_values, some.data())
def test_any_field_may_hold_anything(tmp_path_factory, benchmark, value, data):
    record = {**LINES[benchmark], data.draw(some.sampled_from(sorted(LINES[benchmark]))): value}
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", record)
    try:
        (row,) = READERS[benchmark](path)
    except JudgeError as error:
        assert ", line 1: " in str(error) and str(error).isprintable()
    else:
        assert row.missing or row.asked >= 1


# --- counts -----------------------------------------------------------------------------------------------------------


def rows_of(*counts: tuple[str, int, int]) -> list[RecordedVerdict]:
    return [
        RecordedVerdict("f", line, column, right, asked, missing=None if asked else "?")
        for line, (column, right, asked) in enumerate(counts, 1)
    ]


some_counts = some.lists(
    some.tuples(some.sampled_from("abc"), some.integers(0, 3), some.integers(0, 3)).map(
        lambda each: (each[0], min(each[1:]), each[2])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(some_counts)
def test_counts_add_up_and_intervals_hold_the_mean(counts):
    rows = rows_of(*counts)
    cells, columns = tiif.column_counts(rows), tiif.column_means(rows)
    assert sum(cell.asked for cell in cells.values()) == sum(asked for _, _, asked in counts)
    assert sum(cell.missing for cell in cells.values()) == sum(asked == 0 for _, _, asked in counts)
    for name, cell in cells.items():
        share = estimate(columns[name])
        assert share.value == (None if not cell.asked else pytest.approx(cell.right / cell.asked))
        if share.value is not None:
            assert share.low <= share.value + 1e-9 and share.value - 1e-9 <= share.high


def test_missing_rows_change_no_mean():
    known = rows_of(("a", 1, 2), ("a", 2, 2), ("b", 0, 1))
    more = [*known, *rows_of(("a", 0, 0), ("c", 0, 0))]
    assert estimate(tiif.column_means(known)["a"]).value == estimate(tiif.column_means(more)["a"]).value
    mean, with_missing = (mean_of_columns(list(tiif.column_means(rows).values())) for rows in (known, more))
    assert mean[0] == with_missing[0] == pytest.approx((3 / 4 + 0) / 2)


def test_tiif_groups_are_means_of_means():
    rows = rows_of(("numeracy/short", 1, 4), ("negation/short", 1, 1), ("style/short", 0, 1), ("odd/short", 1, 1))
    groups = tiif.group_means(tiif.column_means(rows))
    assert groups["Reasoning"]["short"][0] == groups["Basic Following"]["short"][0] == pytest.approx(5 / 8)
    assert groups["Style"]["short"][0] == 0 and estimate(groups["Text"]["short"]).value is None
    assert groups[tiif.OVERALL]["short"][0] == pytest.approx(5 / 16)
    assert estimate(groups[tiif.OVERALL]["long"]).value is None


def test_tiif_has_39_attributes_in_nine_groups():
    assert len(tiif.TIIF_GROUPS) == 9 and len(set(tiif.tiif_columns())) == len(tiif.tiif_columns()) == 78
