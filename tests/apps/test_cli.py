"""The command line, played by the scripted policy: what it prints, what it leaves, how it refuses."""

import contextlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from annotated_types import Interval
from PIL import Image
from scripted import ScriptedPolicy, open_scripted

from triptych.apps import commands, sft, train
from triptych.apps.cli import COMMANDS, RECIPE_COMMANDS, main
from triptych.apps.commands import EvalOptions
from triptych.apps.draw import DrawJob, DrawSettings, trace_views
from triptych.apps.output import OutputFolder
from triptych.apps.parsing import options_of
from triptych.apps.terminal import TurnListener
from triptych.apps.trace_view import TraceView
from triptych.data.language import parse_prompt
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.errors import OutputError
from triptych.eval.run_folder import MOST_SEEDS, MOST_TURNS
from triptych.model.weights import resolve_checkpoint
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Item, Prompt, Spec, Trace

PROMPT = "A photo of three clocks on the left and one cats on the right"
SPEC = Spec("multi_object_count_attr", (Item("clock", 3), Item("cat", 2)))
SCRIPT = Path(__file__).parents[1] / "scripted.py"


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def triptych(*words: object) -> int:
    return main([str(word) for word in words], open_scripted)


def parsed(text: str) -> Prompt:
    return Prompt(text, parse_prompt(text))


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line that a refused command prints; nothing else may be printed, and nothing left behind."""
    before = sorted(Path().rglob("*"))
    assert triptych(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("triptych: ") and printed.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return printed.err


@pytest.fixture
def picture() -> Path:
    Image.fromarray(render_array(Scene.sample(SPEC, seed=1))).save("picture.png")
    return Path("picture.png")


# --- draw ---


def test_draw_leaves_a_whole_folder(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT, "--seed", 3) == 0
    folder = Path("traces/a-photo-of-three-clocks-on-the-left-and-one-cats-3")
    view = TraceView.load(folder)
    turns = [f"turn-{index}.png" for index, turn in enumerate(view.trace.turns) if turn.drew]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["trace.json", "trace.html", "final.png", *turns])
    assert view.stop == "model" and view.verdict is not None and view.verdict.score == 1.0
    assert view.verdicts[0].score < 1.0 and len(view.verdicts) == len(turns)
    assert view.trace.prompt.text == PROMPT and view.trace.seed == 3
    assert list(Path("traces").iterdir()) == [folder]


def test_draw_tells_everything_it_does(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT) == 0
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    (trace,) = [Trace.load(path) for path in Path("traces").iterdir()]
    for turn in trace.turns:
        assert turn.said is not None
        for part in re.split(r"</?think>", turn.said.text):
            assert part in told
    for words in (PROMPT, "3 clocks (left), 1 cat (right)", "Reason", "Turn 1", "4/4", "stopped", "trace.html"):
        assert words in told


def test_the_same_command_draws_the_same_trace():
    assert triptych("draw", PROMPT, "--out", "one") == 0
    assert triptych("draw", PROMPT, "--out", "two") == 0
    one, two = Trace.load(Path("one")), Trace.load(Path("two"))
    assert [turn.said and turn.said.text for turn in one.turns] == [turn.said and turn.said.text for turn in two.turns]
    assert np.array_equal(one.images, two.images)


def test_the_command_in_a_trace_draws_it_again():
    asked = ("--steps", 3, "--guidance", 2.5, "--temperature", 0.5, "--no-plan", "--seed", 4)
    assert triptych("draw", PROMPT, *asked, "--out", "one") == 0
    one = TraceView.load(Path("one")).settings
    assert one["sampling"]["text_guidance"] == 2.5 and one["sampling"]["draw_points"] == 4
    assert one["sampling"]["temperature"] == 0.5 and one["sampling"]["plan_temperature"] is None
    program, *words = shlex.split(one["again"])
    assert program == "triptych" and triptych(*words, "--out", "two") == 0
    two = TraceView.load(Path("two")).settings
    assert two["sampling"] == one["sampling"] and two["again"] == one["again"] and two["plan"] is False


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture):
    assert triptych("draw", "two cats") == 0
    assert triptych("draw", "two cats") == 0
    assert sorted(path.name for path in Path("traces").iterdir()) == ["two-cats-0", "two-cats-0-2"]
    capsys.readouterr()
    assert "exists" in refused(capsys, "draw", "two cats", "--out", "traces/two-cats-0")


def test_json_is_all_that_stdout_holds(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT, "--turns", 1, "--no-plan", "--json") == 0
    printed = capsys.readouterr()
    (record,) = json.loads(printed.out)["traces"]
    assert record["stop"] == "limit" and record["edits"] == 1 and record["verdict"]["failed"]
    assert Path(record["final"]).is_file()
    assert "plan" not in record["seconds"][0] and "turn limit reached (1)" in printed.err


def test_many_traces_share_one_output_folder(capsys: pytest.CaptureFixture):
    Path("prompts.txt").write_text("two red cats\n\na bus and a clock\n")
    assert triptych("draw", "--prompts", "prompts.txt", "-n", 2, "--batch", 3, "--out", "out", "--json") == 0
    traces = json.loads(capsys.readouterr().out)["traces"]
    assert [(trace["asked"], trace["seed"]) for trace in traces] == [
        ("two red cats", 0), ("two red cats", 1), ("a bus and a clock", 0), ("a bus and a clock", 1),
    ]  # fmt: skip
    page = Path("out/index.html").read_text()
    for trace in traces:
        assert f'href="{Path(trace["folder"]).name}/trace.html"' in page
        assert (Path(trace["folder"]) / "trace.html").is_file()


def test_a_trace_does_not_depend_on_its_batch(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT, "-n", 3, "--out", "many") == 0
    assert triptych("draw", PROMPT, "--seed", 2, "--out", "alone") == 0
    (third,) = Path("many").glob("00002-*")
    assert np.array_equal(Trace.load(third).images, Trace.load(Path("alone")).images)


def test_best_of_keeps_the_judges_favourite(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT, "--turns", 1, "--best-of", 6, "--out", "best") == 0
    view = TraceView.load(Path("best"))
    scores = view.settings["best_of"]
    assert len(scores) == 6 and scores[str(view.trace.seed)] == max(scores.values())


def test_candidates_are_drawn_in_batches_and_judged_together(capsys: pytest.CaptureFixture):
    assert triptych("draw", PROMPT, "--turns", 1, "--best-of", 5, "--batch", 2, "--out", "twos") == 0
    assert triptych("draw", PROMPT, "--turns", 1, "--best-of", 5, "--out", "whole") == 0
    twos, whole = TraceView.load(Path("twos")), TraceView.load(Path("whole"))
    assert twos.settings["best_of"] == whole.settings["best_of"] and twos.trace.seed == whole.trace.seed
    told: list[int] = []
    jobs = [DrawJob(PROMPT, parsed(PROMPT), seed) for seed in range(5)]

    def listener(count: int) -> TurnListener:
        told.append(count)
        return TurnListener()

    policy = ScriptedPolicy()
    manner = DrawSettings(1, policy.config.sampling, batch=2, best_of=5)
    assert len(list(trace_views(policy, jobs, manner, WorldJudge(), listener, {}))) == 1 and told == [2, 2, 1]


def test_ctrl_c_while_the_judge_looks_keeps_what_is_drawn():
    def judge(traces):
        raise KeyboardInterrupt

    policy, jobs = ScriptedPolicy(), [DrawJob(PROMPT, parsed(PROMPT), seed) for seed in range(2)]
    kept = []
    with pytest.raises(KeyboardInterrupt):
        for view in trace_views(
            policy, jobs, DrawSettings(1, policy.config.sampling), judge, lambda count: TurnListener(), {}
        ):
            kept.append(view)
    assert [view.trace.seed for view in kept] == [0, 1] and all(not view.verdicts for view in kept)


@pytest.mark.parametrize("many", [False, True])
def test_two_runs_do_not_share_an_output_folder(many: bool):
    assert triptych("draw", PROMPT, "--turns", 0, "--out", "made") == 0
    view = TraceView.load(Path("made"))
    for named in (Path("out"), None):
        first, second = (OutputFolder.open(named, "two cats", 0, many) for _ in range(2))
        assert first.folder == second.folder  # neither was there yet
        first.write(view)
        if named:
            with pytest.raises(OutputError, match="exists"):
                second.write(view)
        else:
            second.write(view)
            first.write(view) if many else None
            assert second.folder.name == "two-cats-0-2" and len(list(Path("traces").iterdir())) == 2


def test_ids_and_seeds_of_a_table_name_and_seed_the_traces(capsys: pytest.CaptureFixture):
    Path("prompts.csv").write_text("id,prompt,seed\nx/1,two red cats,7\nbus,a bus,\n")
    assert triptych("draw", "--prompts", "prompts.csv", "--seed", 3, "--out", "out", "--json") == 0
    records = json.loads(capsys.readouterr().out)["traces"]
    assert [Path(record["folder"]).name for record in records] == ["00000-x_1-7", "00001-bus-3"]
    assert [record["seed"] for record in records] == [7, 3]


def test_all_prompts_outside_the_world_are_told_at_once(capsys: pytest.CaptureFixture):
    Path("prompts.txt").write_text("two red cats\na dragon\na unicorn\n")
    told = refused(capsys, "draw", "--prompts", "prompts.txt")
    assert "line 2" in told and "dragon" in told and "line 3" in told and "unicorn" in told


def test_jsonl_prompts_bring_their_own_spec(capsys: pytest.CaptureFixture):
    record = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}
    Path("prompts.jsonl").write_text(json.dumps(record) + "\n")
    assert triptych("draw", "--prompts", "prompts.jsonl", "--out", "one") == 0
    assert Trace.load(Path("one")).prompt.spec == Spec("counting", (Item("cat", 2),))


# --- edit, ask, judge, eval ---


def test_edit_starts_from_the_given_picture(picture: Path):
    assert triptych("edit", picture, "three clocks and one cat", "--out", "edited") == 0
    view = TraceView.load(Path("edited"))
    assert view.edits == 1 and view.verdicts[0].score < 1 == view.verdicts[-1].score
    assert np.array_equal(view.trace.images[0], np.asarray(Image.open(picture)))
    assert Path("edited/input.png").is_file()


def test_edit_of_a_right_picture_stops_at_once(picture: Path):
    assert triptych("edit", picture, "three clocks and two cats", "--out", "edited") == 0
    assert TraceView.load(Path("edited")).edits == 0


def test_ask_prints_the_answer(picture: Path, capsys: pytest.CaptureFixture):
    assert triptych("ask", picture, "how many clocks are there?", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["question"] == "how many clocks are there?" and answer["answer"].count("clock") == 3
    assert answer["thought"] == answer["answer"]
    assert triptych("ask", picture, "how many clocks are there?") == 0
    assert capsys.readouterr().out == f"({answer['thought']})\n{answer['answer']}\n"


def test_judge_checks_every_fact(picture: Path, capsys: pytest.CaptureFixture):
    assert triptych("judge", picture, "three clocks and two cats", "--json") == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1.0
    assert triptych("judge", picture, "three clocks and one cat") == 0
    assert "✗ one cat: found two" in capsys.readouterr().out


def test_eval_resumes_where_it_was(capsys: pytest.CaptureFixture):
    command = ("eval", "dev", "--limit", 4, "--turns", 3, "--out", "run", "--json")
    assert triptych(*command) == 0
    whole = json.loads(capsys.readouterr().out)
    lines = Path("run/results.jsonl").read_text().splitlines(keepends=True)
    Path("run/results.jsonl").write_text("".join(lines[:2]))
    assert triptych(*command, "--resume") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["manifest"] == whole["manifest"]
    assert resumed["report"]["accuracy"] == whole["report"]["accuracy"] and len(lines) == 4
    assert "exists" in refused(capsys, *command)


# --- refusals ---


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["draw"], "empty"),
        (["draw", " \n "], "empty"),
        (["draw", "cat " * 10_000], "10,000 words"),
        (["draw", "c" * 20_000], "20,000 characters"),
        (["draw", "a c\udcffat"], "not text"),
        (["draw", "a cat\0"], "not text"),
        (["draw", "two qubits and a cat"], "qubits"),
        (["draw", "two cats", "--turns", "-1"], "--turns -1"),
        (["draw", "two cats", "-n", "0"], "--n 0"),
        (["draw", "two cats", "--batch", "0"], "--batch 0"),
        (["draw", "two cats", "--steps", "0"], "--steps 0"),
        (["draw", "two cats", "--guidance", "0.5"], "--guidance 0.5: expected 1 to"),
        (["draw", "two cats", "--guidance", "nan"], "--guidance nan: expected 1 to"),
        (["draw", "two cats", "--temperature", "-1"], "--temperature -1"),
        (["draw", "two cats", "--temperature", "inf"], "--temperature inf"),
        (["draw", "two cats", "--seed", "-4"], "--seed -4"),
        (["draw", "two cats", "--best-of", "0"], "--best-of 0"),
        (["draw", "two cats", "--device", "abacus"], "abacus"),
        (["draw", "two cats", "--device", "meta"], "meta"),
        (["draw", "two cats", "--device", "cuda:99"], "cuda:99"),
        (["draw", "two cats", "--prompts", "some.txt"], "both"),
        (["draw", "--prompts", "missing.txt"], "missing.txt"),
        (["edit", "missing.png", "two cats"], "missing.png does not exist"),
        (["ask", "missing.png", "what?"], "missing.png does not exist"),
        (["judge", "missing.png", "two cats"], "missing.png does not exist"),
        (["eval", "geneval", "--resume"], "--out"),
        (["eval", "geneval", "--limit", "0"], "--limit 0"),
        (["eval", "geneval", "--seeds", "0"], "--seeds 0"),
        (["eval", "geneval", "--seeds", "10001"], "--seeds 10001: expected 1 to 10,000"),
        (["eval", "geneval", "--turns", "1001"], "--turns 1001: expected 0 to 1,000"),
        (["info", "--model", "no-such-model"], "no-such-model"),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture):
    assert reason in refused(capsys, *words)


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture):
    assert main(["draw", "two cats", "--model", "./nowhere"]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and error.count("\n") == 1 and not Path("traces").exists()


def test_a_damaged_checkpoint_is_one_line(capsys: pytest.CaptureFixture):
    shutil.copytree(resolve_checkpoint("sketch"), "damaged", ignore=shutil.ignore_patterns("*.safetensors"))
    path = Path("damaged/llm_config.json")
    whole = json.loads(path.read_text())
    for width in (-256, 257):
        path.write_text(json.dumps(whole | {"hidden_size": width}))
        for words in (["info"], ["draw", "two cats"]):
            assert main([*words, "--model", "damaged"]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and f"hidden_size is {width}" in error and "damaged" in error
    assert not Path("traces").exists()


def test_pictures_that_cannot_be_read(capsys: pytest.CaptureFixture):
    Path("text.png").write_text("not a picture")
    Image.new("1", (20_000, 20_000)).save("huge.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("whole.png")
    Path("torn.png").write_bytes(Path("whole.png").read_bytes()[:60])
    assert "text.png" in refused(capsys, "edit", "text.png", "two cats")
    assert "pixels" in refused(capsys, "edit", "huge.png", "two cats")
    assert "torn.png" in refused(capsys, "judge", "torn.png", "two cats")
    assert "--turns 0" in refused(capsys, "edit", "whole.png", "two cats", "--turns", 0)


def test_bad_lines_of_a_file_are_named(capsys: pytest.CaptureFixture):
    Path("bad.jsonl").write_text('{"prompt": "a photo of two cats"}\n{"prompt": \n')
    assert "bad.jsonl, line 2" in refused(capsys, "draw", "--prompts", "bad.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a dragon", "unknown words: dragon"),
        ("cat " * 2_000, "2,000 words"),
        ("a c\x07at", "not text"),
        ('{"prompt": "\\ud800 cat"}', "not text"),
        ('{"prompt": "a cat", "tag": "colors", "include": [{"class": "dragon"}]}', "unknown words: dragon"),
        ('{"prompt": "a cat", "tag": "colors", "include": [{"class": "cat", "color": "plaid"}]}', "plaid"),
        ('{"prompt": "a cat", "tag": "x", "include": [{"class": "cat", "count": 9}, {"class": "dog"}]}', "10 stickers"),
        ('{"prompt": "a cat", "tag": "x", "include": [{"class": "cat", "position": ["above", 3]}]}', "earlier item"),
    ],
)
def test_a_line_that_cannot_be_drawn_is_named_with_the_reason(line: str, reason: str, capsys: pytest.CaptureFixture):
    Path("mine.txt").write_text(f"two cats\n\n{line}\n")
    told = refused(capsys, "draw", "--prompts", "mine.txt")
    assert told.startswith("triptych: mine.txt, line 3: ") and reason in told


@pytest.mark.parametrize("place", ["/proc/triptych/out", "file/out"])
def test_places_that_cannot_be_written(place: str, capsys: pytest.CaptureFixture):
    Path("file").touch()
    assert "cannot write" in refused(capsys, "draw", "two cats", "--out", place)


def test_read_only_folder():
    """Root may write anywhere: in a process of its own it gives that right up first, and is bound as others are."""
    Path("locked").mkdir(mode=0o500)
    bound = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"] if os.geteuid() == 0 else []
    if bound and (shutil.which("setpriv") is None or subprocess.run([*bound, "true"], capture_output=True).returncode):
        pytest.skip("root may write anywhere, and setpriv cannot change that here")
    draw = [sys.executable, SCRIPT, "draw", "two cats", "--out", "locked/out"]
    done = subprocess.run([*bound, *draw], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "cannot write locked/out" in done.stderr and not list(Path("locked").iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("draw cats --promts x", "--promts: no option of triptych draw, did you mean --prompts?"),
        ("draw cats --trns=3", "--trns: no option of triptych draw, did you mean --turns?"),
        ("draw cats -N 3", "-N: no option of triptych draw, did you mean -n?"),
        ("draw cats -seed 3", "did you mean --seed?"),
        ("draw cats --SEED 3", "did you mean --seed?"),
        (
            "draw cats --best-off 2 --no-plann",
            "--best-off: no option of triptych draw, did you mean --best-of?; --no-plann",
        ),
        ("draw cats --judge vlm", "--judge: no option of triptych draw ("),  # of eval it is one
        ("draw cats dogs", "unexpected 'dogs': a text of several words stands in quotes"),
        ("draw cats --seed three", "--seed three: expected a whole number"),
        ("draw cats --dtype float3", "float32, bfloat16; did you mean float32?"),
        ("draw cats --seed", "Missing value for argument '--seed'"),
        ("--seed 3 draw cats", "--seed: options stand behind the command; expected triptych draw --seed 3 cats"),
        ("--json", "expected triptych COMMAND, one of draw,"),
        ("drow cats", "drow: no such command; did you mean draw?"),
        ("paint cats", "paint: no such command; expected one of draw, edit,"),
        ("eval imagenet", "benchmark imagenet: expected one of genevalpp, geneval,"),
        ("eval genevall", "did you mean geneval?"),
        ("eval dev --judge wrld", "--judge wrld: expected one of auto, world,"),
        ("edit", "IMAGE"),
        ("train", "expected triptych train and one of sketch,"),
        ("train skech", "skech: no such recipe; did you mean sketch?"),
        ("train --steps 3 debug", "expected triptych train debug --steps 3"),
        ("train debug --refine.text.lrr 1", "did you mean --refine.text.lr?"),
        ("train debug --grain strict", "did you mean --reason.text.grain or --reason.picture.grain or"),
        ("train debug --no-train_visoin", "did you mean --no-train-vision?"),
        ("sft debug --stepz 1", "did you mean --vae.steps or"),
        ("sft debug --joint.experts genn", "did you mean gen?"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest_of_its_command(words: str, told: str, capsys):
    assert told in refused(capsys, *words.split())


def options_shown(*words: str) -> set[str]:
    """Every option that a help text names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return set(re.findall(r"(?<![\w-])-{1,2}[a-z][\w.-]*", out.getvalue()))


def test_the_options_that_are_near_are_those_that_tyro_reads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    for name, (options, _) in COMMANDS.items():
        known = {each for option, _ in options_of(getattr(commands, options)) for each in option.spellings}
        assert name in RECIPE_COMMANDS or (known and known <= options_shown(name))
    for words, options in ((["train", "debug"], train.parse(["debug"])), (["sft", "debug"], sft.parse(["debug"]))):
        known = {each for option, _ in options_of(type(options), options) for each in option.spellings}
        assert "--config" in known and "--recipe" not in known and known <= options_shown(*words)


def test_a_judge_is_needed_to_choose(capsys: pytest.CaptureFixture):
    def open_anything(*arguments: object) -> ScriptedPolicy:
        policy = ScriptedPolicy()
        object.__setattr__(policy.config, "world", "open")
        return policy

    assert main(["draw", "two cats", "--best-of", "2"], open_anything) == 2  # pyright: ignore[reportArgumentType]
    assert "needs a judge" in capsys.readouterr().err


def test_help_of_every_command(capsys: pytest.CaptureFixture):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            triptych(name, "--help")
        assert stop.value.code == 0
    assert triptych("--version") == 0


def test_the_list_of_commands_and_all_their_options_need_no_torch():
    """`--help` of all but the recipes' own options: nothing heavy is imported, however it is reached."""
    code = """
import contextlib, io, sys
from triptych.apps import cli
for words in [["--help"], *([name, "--help"] for name in cli.COMMANDS if name not in cli.RECIPE_COMMANDS)]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        cli.main(words)
    assert "usage: triptych" in text.getvalue(), words
heavy = {"torch", "transformers", "matplotlib", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bounds_of_a_run_are_those_of_its_folder():
    """The options cannot import the constants of `run_folder`, which needs torch."""
    hints = get_type_hints(EvalOptions, include_extras=True)
    assert hints["turns"].__metadata__ == (Interval(ge=0, le=MOST_TURNS),)
    assert hints["seeds"].__metadata__ == (Interval(ge=1, le=MOST_SEEDS),)


# --- names of 0.1 ---


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["exam", "rehearsal", "--limit", "1"], "`exam` is `probe` now, `rehearsal` is `dev` now: triptych probe dev"),
        (["eval", "--turns", "1", "rehearsal"], "`rehearsal` is `dev` now: triptych eval --turns 1 dev"),
        (["lessons", "sketch", "--hands", "2"], "`lessons` is `sft` now, `--hands` is `--threads` now: triptych sft"),
        (["sft", "sketch", "--own.steps=3"], ": triptych sft sketch --self-generated.steps=3"),
        (["sft", "sketch", "--own.own", ".3"], "triptych sft sketch --self-generated.self-generated-share .3"),
        (["train", "debug", "--replay.lessons.lr", "1"], "`--replay.lessons.lr` is no longer an option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_older_name_is_answered_with_the_new_one(words: list[str], line: str, capsys: pytest.CaptureFixture):
    assert line in refused(capsys, *words)


def test_a_renamed_option_of_training_leads_to_one_that_exists(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["train", "debug", "--help"])
    known = set(re.findall(r"--[a-z][\w.-]*", out.getvalue()))
    for old, new in train.RENAMED_OPTIONS.items():
        assert not new.startswith("--") or new in known, f"{old} is answered with {new}, which is no option"
        assert old not in known, f"{old} is an option of today"


def test_an_older_name_that_is_somebodys_file_stays(capsys: pytest.CaptureFixture):
    assert triptych("eval", "dev", "--limit", 2, "--turns", 0, "--out", "rehearsal") == 0
    assert Path("rehearsal/report.json").is_file()


# --- what the system does to a process ---


def start(*words: str, limit: int | None = None) -> subprocess.Popen:
    """The scripted command line as a process of its own; `limit` bytes are the longest file it may write."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would their children
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def test_a_terminal_that_knows_ascii_alone_costs_no_picture():
    command = [sys.executable, str(SCRIPT), "draw", "two cats", "--out", "ascii"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert Path("ascii/trace.html").is_file()


def test_a_reader_that_leaves_costs_no_picture():
    process = start("draw", "two cats", "--out", "unread")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert "Traceback" not in process.stderr.read() and process.wait(120) == 0
    assert Path("unread/trace.html").is_file()


def test_a_full_disk_leaves_nothing():
    process = start("draw", "two cats", "--out", "full/out", limit=2_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.count("\n") == 1 and "cannot write full/out" in error and "Traceback" not in error
    assert not list(Path().rglob("*.png")) and not list(Path("full").iterdir())


def test_ctrl_c_keeps_finished_traces():
    process = start("draw", "two cats", "-n", "3", "--batch", "1", "--model", "scripted-slow", "--out", "out", "--json")
    deadline = time.monotonic() + 120
    while not list(Path("out").glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    kept = json.loads(out)["traces"]
    assert kept[0]["stop"] == "model" and len(kept) < 3
    for record in kept:
        assert TraceView.load(Path(record["folder"])).trace.image is not None
    assert Path("out/index.html").is_file()
    assert not list(Path("out").glob(".*"))
