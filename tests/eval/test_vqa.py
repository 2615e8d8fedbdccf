"""Laws of ITA and VQA: right answers score 1.0, wrong ones and silence 0.0, guesses what chance gets."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from scripted import ScriptedPolicy

from triptych.data.annotations import question_answer
from triptych.data.language import parse_prompt
from triptych.data.lexicon import NO, NUMBERS, YES, plural
from triptych.data.scene import Scene, check
from triptych.errors import ConfigError, OutputError, PictureError
from triptych.eval import benchmark
from triptych.eval import vqa as understanding
from triptych.eval.benchmark import synthetic_set
from triptych.eval.quiz import (
    JudgedPicture,
    Question,
    Quiz,
    accuracy_by_column,
    quiz_report,
    read_decision,
    read_option,
    run_quiz,
)
from triptych.eval.results import OVERALL, Report, Row
from triptych.eval.run_folder import RunFolder, pixels_sha256
from triptych.eval.suites import GENEVAL_PLUS
from triptych.eval.vqa import (
    CLEARLY,
    SURE,
    PictureFacts,
    PictureSet,
    VisibleObject,
    alignment,
    composition,
    composition_questions,
    detected_objects,
    scene_objects,
)
from triptych.model.templates import wrap_reflection
from triptych.rewards.geneval_detector import DetectedObject
from triptych.rewards.geneval_rules import Detection
from triptych.rewards.sticker_judge import WorldJudge, judge_with, scene_verdict
from triptych.trace import Completion, Verdict

SUITE = GENEVAL_PLUS.thinned(56)  # 8 a column


class ExactJudge:
    """An exact judge of a scripted policy's pictures: it has the scene of each."""

    name = "exact"

    def __init__(self, painter: ScriptedPolicy):
        self.painter = painter

    def scenes(self, images) -> list[Scene]:
        return [self.painter.drawn[image.tobytes()] for image in images]

    def objects(self, images) -> list[list[VisibleObject]]:
        return [scene_objects(scene) for scene in self.scenes(images)]

    def __call__(self, traces):
        return judge_with(self.scenes, traces)


class Player(ScriptedPolicy):
    """Answers each question of a quiz as it is told to, and counts how often it is asked."""

    def __init__(self, quiz: Quiz, reply):
        super().__init__()
        self.known = {(one.picture.sha256, one.text): one for one in quiz.questions}
        self.reply, self.asked = reply, 0

    def answer(self, images, questions, sampling, seeds, on_text=None):
        self.asked += len(images)
        keys = [(pixels_sha256(image), text) for image, text in zip(images, questions, strict=True)]
        return [Completion(self.reply(self.known[key])) for key in keys]

    def reflect(self, prompts, images, sampling, seeds, on_text=None):
        return self.answer(images, prompts, sampling, seeds)


def draw(folder: Path, mistakes: int = 2, turns: int = 2, suite=SUITE) -> ExactJudge:
    """A run folder of pictures with two mistakes, one mistake, and none."""
    judge = ExactJudge(ScriptedPolicy(mistakes=mistakes))
    list(benchmark.run_benchmark(suite, judge.painter, judge, turns=turns, out=folder, batch_size=64))
    return judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drawn") / "run"


@pytest.fixture(scope="module")
def judge(folder) -> ExactJudge:
    return draw(folder)


@pytest.fixture(scope="module")
def picture_set(folder, judge) -> PictureSet:
    return PictureSet.read(folder)


@pytest.fixture(scope="module")
def ita(picture_set) -> Quiz:
    return alignment(picture_set, "stickers")


@pytest.fixture(scope="module")
def vqa(picture_set, judge) -> Quiz:
    return composition(picture_set, judge.objects, judge.name, "stickers")


@pytest.fixture(params=["ita", "vqa", "ita open", "vqa open", "ita reflection"])
def quiz(request, picture_set, judge, ita, vqa) -> Quiz:
    return {
        "ita": ita,
        "vqa": vqa,
        "ita open": alignment(picture_set, "open"),
        "vqa open": composition(picture_set, judge.objects, judge.name, "open"),
        "ita reflection": alignment(picture_set, "stickers", by="reflection"),
    }[request.param]


def other(question: Question) -> str:
    return next(option for option in question.options if option != question.answer)


def said(quiz: Quiz, answer: str) -> str:
    """An answer as the quiz's verb words it."""
    if quiz.by == "question":
        return answer
    return wrap_reflection("seen", None if answer == YES else "remove the cat at top")


def shares(quiz: Quiz, reply) -> dict[str, float | None]:
    rows = list(run_quiz(quiz, Player(quiz, reply), batch_size=64))
    return {column: each.accuracy.value for column, each in accuracy_by_column(quiz, rows).items()}


# --- who plays --------------------------------------------------------------------------------------------------------


def test_who_knows_is_right_and_who_lies_or_is_silent_is_wrong(quiz):
    assert set(shares(quiz, lambda one: said(quiz, one.answer)).values()) == {1.0}
    assert set(shares(quiz, lambda one: said(quiz, other(one))).values()) == {0.0}
    rows = list(run_quiz(quiz, Player(quiz, lambda one: "")))
    found = accuracy_by_column(quiz, rows)
    assert {each.accuracy.value for each in found.values()} == {0.0}
    assert found[OVERALL].unreadable == found[OVERALL].questions == len(quiz.questions)


def test_a_coin_gets_what_chance_says(quiz):
    coin = Random(0)
    rows = list(run_quiz(quiz, Player(quiz, lambda one: said(quiz, coin.choice(one.options))), batch_size=64))
    for column, each in accuracy_by_column(quiz, rows).items():
        assert each.chance is not None and each.accuracy.value is not None
        if column != OVERALL:
            spread = (each.chance * (1 - each.chance) / each.questions) ** 0.5
            assert abs(each.accuracy.value - each.chance) < 4 * spread, column


def test_the_same_answer_to_all_gets_what_constant_says(ita, vqa):
    assert shares(ita, lambda one: YES) == dict.fromkeys((*ita.columns, OVERALL), 0.5)
    for quiz in (ita, vqa):
        for column, each in accuracy_by_column(quiz, []).items():
            places = Counter(one.options.index(one.answer) for one in quiz.of(column))
            assert column == OVERALL or each.majority == max(places.values()) / len(quiz.of(column))


def test_the_shipped_player_reflects_and_is_right(ita, picture_set, judge):
    """The scripted policy sees exactly: its stops are right without being told the truth."""
    quiz = alignment(picture_set, "stickers", by="reflection")
    rows = list(run_quiz(quiz, judge.painter, batch_size=64))
    assert {each.accuracy.value for each in accuracy_by_column(quiz, rows).values()} == {1.0}
    assert [one.answer for one in quiz.questions] == [one.answer for one in ita.questions]


# --- the truth, found another way -------------------------------------------------------------------------------------


def test_ita_tells_what_the_checks_tell(ita, judge):
    for one in ita.questions:
        scene = judge.painter.drawn[one.picture.load().tobytes()]
        fits = all(fact.held for fact in check(scene, parse_prompt(one.picture.text)))
        assert one.answer == (YES if fits else NO) and one.picture.text[1:] in one.text


def exact_answer(scene: Scene, text: str) -> str:
    """The answer to a question in the words of lessons, read off the scene."""
    amounts = Counter(sticker.name for sticker in scene.stickers)
    only = {sticker.name: sticker for sticker in scene.stickers if amounts[sticker.name] == 1}
    if found := re.fullmatch("is there an? (.+)\\?", text):
        return YES if amounts[found[1]] else NO
    if found := re.fullmatch("how many (.+) are there\\?", text):
        return NUMBERS[sum(amount for name, amount in amounts.items() if plural(name) == found[1])]
    if found := re.fullmatch("what color is the (.+)\\?", text):
        return only[found[1]].color
    if found := re.fullmatch("is the (.+) left or right\\?", text):
        return "left" if only[found[1]].x < 48 else "right"
    found = re.fullmatch("which is larger, the (.+) or the (.+)\\?", text)
    assert found, text
    return max((only[found[1]], only[found[2]]), key=lambda sticker: sticker.side).name


def test_vqa_tells_what_the_scene_holds(vqa, judge):
    assert {one.column for one in vqa.questions} == set(vqa.columns)
    for one in vqa.questions:
        assert one.answer == exact_answer(judge.painter.drawn[one.picture.load().tobytes()], one.text)


def test_lessons_teach_the_wording_of_vqa(vqa, judge):
    """Of a question of each kind: some lesson about the same picture asks the same, and gives the same answer."""
    kinds = {"Presence": "presence", "Count": "count", "Color": "color", "Side": "place", "Larger": "relation"}
    for column in vqa.columns:
        one = next(one for one in vqa.of(column) if one.answer not in (NO, "zero"))  # absent things are any of 80
        scene = judge.painter.drawn[one.picture.load().tobytes()]
        assert (one.text, one.answer) in (question_answer(scene, seed, kinds[column]) for seed in range(10_000))


# --- the quiz --------------------------------------------------------------------------------------------------------


def test_pairs_are_balanced_and_near_misses_are_among_them(ita):
    for column in ita.columns:
        answers = Counter(one.answer for one in ita.of(column))
        assert answers[YES] == answers[NO] > 0
    misses = [len(one.picture.verdict.failed) for one in ita.questions if one.answer == NO]
    assert min(misses) == 1 < max(misses)
    keys = [(one.picture.sha256, one.picture.text) for one in ita.questions]
    assert len(keys) == len(set(keys))


def test_answers_of_vqa_are_balanced(vqa):
    for column in ("Presence", "Side", "Larger"):
        assert len(set(Counter(one.options.index(one.answer) for one in vqa.of(column)).values())) == 1
    keys = [(one.picture.sha256, one.text) for one in vqa.questions]
    assert len(keys) == len(set(keys))


def test_a_quiz_holds_what_the_papers_cells_suggest():
    assert understanding.LIMIT == 480


def test_a_limit_holds_and_keeps_the_balance(picture_set, judge):
    for quiz in (
        alignment(picture_set, "stickers", limit=4),
        composition(picture_set, judge.objects, "exact", "stickers", limit=4),
    ):
        for column in quiz.columns:
            assert len(quiz.of(column)) == 4
            if len(quiz.of(column)[0].options) == 2:
                assert sorted(Counter(one.options.index(one.answer) for one in quiz.of(column)).values()) == [2, 2]
            else:
                assert len({one.answer for one in quiz.of(column)}) == 4


def test_one_seed_is_one_quiz_in_whatever_order_the_set_was_drawn(folder, picture_set, judge, ita, vqa, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "copy/results.jsonl").write_text("".join(reversed(lines)))
    again = PictureSet.read(tmp_path / "copy")
    assert alignment(again, "stickers").sha256() == ita.sha256()
    assert composition(again, judge.objects, "exact", "stickers").sha256() == vqa.sha256()
    few = [alignment(again, "stickers", limit=4, seed=seed).sha256() for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def judged_picture(score, sha256="a", failed=(), column="Color", text="a photo of a cat", prompt=0):
    verdict = None if score is None else Verdict(score, (), tuple(failed))
    return JudgedPicture(Path(f"{prompt:05d}-0-0.png"), sha256, prompt, text, column, verdict)


def test_a_column_without_right_pictures_is_missing_and_no_other_suffers():
    pictures = [judged_picture(0.5, f"wrong{n}") for n in range(4)]
    pictures += [judged_picture(1.0 if n % 2 else 0.0, f"mixed{n}", column="Count") for n in range(4)]
    quiz = alignment(PictureSet({"columns": ["Color", "Count"], "judge": "exact"}, tuple(pictures)), "stickers")
    found = accuracy_by_column(quiz, [])
    assert quiz.columns == ("Color", "Count") and {one.column for one in quiz.questions} == {"Count"}
    assert found["Color"].chance is None and found["Count"].chance == found[OVERALL].chance == 0.5
    rows = [Row(n, "", "Count", 0, (Verdict(1.0),), False, ("yes",), 0.0) for n in range(4)]
    assert accuracy_by_column(quiz, rows)["Color"].accuracy.value is None
    assert accuracy_by_column(quiz, rows)[OVERALL].accuracy.value == 1.0
    assert quiz_report(quiz, rows).accuracy["Color"][0].value is None


def test_pixels_count_once_and_not_where_the_judge_contradicts_itself():
    pictures = [
        judged_picture(1.0, "same"),
        judged_picture(1.0, "same"),
        judged_picture(1.0, "torn"),
        judged_picture(0.5, "torn"),
        judged_picture(None, "unseen"),
    ]
    pictures += [judged_picture(0.0, f"wrong{n}") for n in range(5)]
    quiz = alignment(PictureSet({"columns": ["Color"]}, tuple(pictures)), "stickers")
    assert Counter(one.answer for one in quiz.questions) == {YES: 1, NO: 1}
    assert not {"torn", "unseen"} & {one.picture.sha256 for one in quiz.questions}


@pytest.mark.parametrize(("near", "far", "expected"), [(6, 6, 2), (1, 6, 1), (6, 1, 3), (6, 0, 4)])
def test_half_of_the_misses_are_near_where_there_are_so_many(near, far, expected):
    pictures = [judged_picture(1.0, f"right{n}") for n in range(4)] + [
        judged_picture(0.5, f"near{n}", ["x"]) for n in range(near)
    ]
    pictures += [judged_picture(0.5, f"far{n}", ["x", "y"]) for n in range(far)]
    quiz = alignment(PictureSet({"columns": ["Color"]}, tuple(pictures)), "stickers")
    chosen = [one.picture.sha256 for one in quiz.questions if one.answer == NO]
    assert len(chosen) == 4 and sum(name.startswith("near") for name in chosen) == expected


# --- things -----------------------------------------------------------------------------------------------------------

LEFT, RIGHT, ACROSS = (0.0, 0.0, 0.4, 0.4), (0.6, 0.0, 0.8, 0.2), (0.4, 0.5, 0.6, 0.7)


def answers_of(*objects: VisibleObject, prompt_classes=(), set_classes=("cat", "dog", "bus")) -> dict[str, str]:
    found = composition_questions(
        judged_picture(1.0), PictureFacts(objects, prompt_classes, set_classes), "stickers", "seed"
    )
    return {one.text: one.answer for one in found}


def test_what_is_asked_of_two_things():
    cat, dog = VisibleObject("cat", "red", LEFT), VisibleObject("dog", "blue", RIGHT)
    found = answers_of(cat, dog)
    assert found["is the cat left or right?"] == "left" and found["is the dog left or right?"] == "right"
    assert found["what color is the cat?"] == "red" and found["is there a bus?"] == NO
    assert found["which is larger, the dog or the cat?"] == "cat" == found["which is larger, the cat or the dog?"]


def test_what_can_be_doubted_is_not_asked():
    across = answers_of(VisibleObject("cat", "red", ACROSS), VisibleObject("dog", None, (0.6, 0.6, 0.85, 0.85)))
    assert not any("cat left" in text or "larger" in text or "color is the dog" in text for text in across)
    two = answers_of(VisibleObject("cat", "red", LEFT), VisibleObject("cat", "red", RIGHT))
    assert two["how many cats are there?"] == "two" and not any("the cat" in text for text in two)
    doubted = answers_of(
        VisibleObject("cat", "red", LEFT), VisibleObject("cat", None, RIGHT, sure=False), set_classes=("cat",)
    )
    assert doubted == {}
    crowd = answers_of(*[VisibleObject("cat", "red", LEFT)] * 10, set_classes=("cat",))
    assert crowd == {"is there a cat?": YES}


def test_sizes_must_differ_clearly():
    small = VisibleObject("cat", None, (0.0, 0.0, 0.1, 0.1))
    for ratio, askable in ((CLEARLY * 1.01, True), (CLEARLY * 0.99, False)):
        large = VisibleObject("dog", None, (0.5, 0.0, 0.5 + 0.1 * ratio, 0.1))
        assert any("larger" in text for text in answers_of(small, large)) == askable


def test_what_was_asked_for_and_is_absent_is_asked_about_first():
    found = answers_of(VisibleObject("cat", "red", LEFT), prompt_classes=("cat", "zebra"))
    assert found["is there a zebra?"] == NO and found["how many zebras are there?"] == "zero"


class FixedDetector:
    """A detector that finds the same in every picture, and calls everything red."""

    def __init__(self, objects):
        self.objects = objects

    def find_objects(self, pictures):
        return [self.objects for _ in pictures]

    def colors(self, picture, objects, name):
        return ["red"] * len(objects)


def detection(box, score):
    return DetectedObject(Detection(box, score), np.zeros((1, 1), bool))


def test_a_detectors_boxes_become_shares_of_the_picture():
    classes = {
        "cat": [detection((0.0, 0.0, 100.0, 50.0), SURE)],
        "dog": [detection((100.0, 0.0, 200.0, 50.0), 0.95), detection((0.0, 0.0, 10.0, 10.0), 0.4)],
    }
    (things,) = detected_objects(FixedDetector(classes), [np.zeros((100, 200, 3), np.uint8)])  # pyright: ignore
    assert things[0] == VisibleObject("cat", "red", (0.0, 0.0, 0.5, 0.5))
    assert [(thing.name, thing.color, thing.sure) for thing in things[1:]] == [
        ("dog", None, True),
        ("dog", None, False),
    ]
    assert all("dog" not in text for text in answers_of(*things, set_classes=("cat", "dog")))


# --- reading replies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "options", "expected"),
    [
        ("yes", (YES, NO), YES),
        ("No.", (YES, NO), NO),
        ("Yes, there is no doubt", (YES, NO), YES),
        ("<think>yes?</think> no", (YES, NO), NO),
        ("perhaps", (YES, NO), None),
        ("", (YES, NO), None),
        ("There are 3 cats.", NUMBERS, "three"),
        ("three", NUMBERS, "three"),
        ("12", NUMBERS, None),
        ("two or three", NUMBERS, "two"),
        ("I count two, or three", NUMBERS, None),
        ("It's the left half", ("left", "right"), "left"),
        ("in the left or the right", ("left", "right"), None),
        ("The tv remote is larger than the tv", ("tv", "tv remote"), "tv remote"),
        ("tv", ("tv", "tv remote"), "tv"),
        ("I think the dog", ("cat", "dog"), "dog"),
        ("catalog", ("cat", "dog"), None),
    ],
)
def test_a_reply_means_one_option_or_none(reply, options, expected):
    assert read_option(reply, options) == expected


def test_a_reflection_decides_by_stopping():
    assert read_decision(wrap_reflection("all as asked.", None)) == YES
    assert read_decision(wrap_reflection("no cat.", "add a red cat at top")) == NO
    assert read_decision("no further edit needed") is None


# --- synthetic sets ---------------------------------------------------------------------------------------------------


def test_a_synthetic_set_follows_from_its_seeds_and_every_column_can_be_asked(tmp_path):
    rows = list(synthetic_set(SUITE, range(2), tmp_path / "one"))
    assert [row.pictures for row in synthetic_set(SUITE, range(2), tmp_path / "two")] == [row.pictures for row in rows]
    one, two = (PictureSet.read(tmp_path / name) for name in ("one", "two"))
    quiz = alignment(one, "stickers")
    assert quiz.sha256() == alignment(two, "stickers").sha256()
    assert all(quiz.of(column) for column in SUITE.titles)
    for shown in one.pictures:
        assert pixels_sha256(shown.load()) == shown.sha256
    share = sum(row.score(0) == 1 for row in rows) / len(rows)
    assert abs(share - 0.5) < 4 * (0.25 / len(rows)) ** 0.5


def test_a_synthetic_truth_is_what_the_judge_sees(tmp_path):
    rows = list(synthetic_set(SUITE.thinned(14), (0, 1), tmp_path / "set"))
    seen = WorldJudge().scenes([shown.load() for shown in PictureSet.read(tmp_path / "set").pictures])
    specs = [parse_prompt(row.text) for row in sorted(rows, key=lambda row: (row.prompt, row.seed))]
    found = [scene_verdict(scene, spec).score for scene, spec in zip(seen, specs, strict=True)]
    assert found == [row.score(0) for row in sorted(rows, key=lambda row: (row.prompt, row.seed))]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_killed_quiz_goes_on_where_it_was(ita, tmp_path):
    player = Player(ita, lambda one: YES)
    straight = list(run_quiz(ita, player, batch_size=4))
    first = run_quiz(ita, player, batch_size=4, out=tmp_path / "ita")
    list(islice(first, 6))
    del first
    assert not (tmp_path / "ita/report.json").exists()
    player.asked = 0
    rows = list(run_quiz(ita, player, batch_size=4, out=tmp_path / "ita", resume=True))
    assert player.asked == len(ita.questions) - 6
    assert [replace(row, seconds=0) for row in rows] == [replace(row, seconds=0) for row in straight]
    report = Report.load(tmp_path / "ita/report.json")
    assert report == RunFolder.read(tmp_path / "ita").report()  # made anew from the rows alone
    assert report.accuracy[OVERALL][0] == accuracy_by_column(ita, rows)[OVERALL].accuracy
    written = [json.loads(line) for line in (tmp_path / "ita/questions.jsonl").read_text().splitlines()]
    assert [each["answer"] for each in written] == [one.answer for one in ita.questions]
    assert RunFolder.read(tmp_path / "ita").manifest["judge"] == "exact"
    with pytest.raises(ConfigError, match="prompts_sha256"):
        list(run_quiz(alignment(PictureSet.read(folder_of(ita)), "open"), player, out=tmp_path / "ita", resume=True))


def folder_of(quiz: Quiz) -> Path:
    return quiz.questions[0].picture.path.parents[1]


def test_what_is_no_picture_set_is_named(tmp_path, judge, ita):
    with pytest.raises(OutputError, match=r"manifest\.json cannot be read"):
        PictureSet.read(tmp_path)
    list(
        benchmark.run_benchmark(
            SUITE.thinned(2), judge.painter, judge, turns=0, out=tmp_path / "bare", keep_pictures=False
        )
    )
    with pytest.raises(OutputError, match="kept its pictures"):
        PictureSet.read(tmp_path / "bare")
    half = benchmark.run_benchmark(SUITE.thinned(2), judge.painter, judge, turns=0, out=tmp_path / "half", batch_size=1)
    next(half)
    del half
    with pytest.raises(OutputError, match="not finished, 1 prompts are left"):
        PictureSet.read(tmp_path / "half")
    list(run_quiz(ita, Player(ita, lambda one: YES), out=tmp_path / "quiz"))
    with pytest.raises(OutputError, match="answers about another run's pictures"):
        PictureSet.read(tmp_path / "quiz")


def test_a_picture_that_was_changed_is_not_asked_about(tmp_path):
    judge = draw(tmp_path / "run", suite=SUITE.thinned(7))
    quiz = alignment(PictureSet.read(tmp_path / "run"), "stickers")
    Image.new("RGB", (96, 96)).save(quiz.questions[0].picture.path)
    with pytest.raises(PictureError, match="not the picture that was judged"):
        list(run_quiz(quiz, judge.painter))
