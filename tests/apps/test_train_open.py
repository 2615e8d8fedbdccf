"""An open model trains from the command line: a judge over a network, a user's prompts, and a server that goes down."""

import json
from pathlib import Path

import pytest
import torch
from http_judge import Answer, Request, Server, refusing, right, says, status, wrong
from safetensors.torch import load_file
from tiny_bagel import TINY

from triptych.apps.cli import main
from triptych.data.lexicon import build_tokenizer
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.templates import CLOSE

pytest.importorskip("openai", reason="a judge over a network needs triptych[judge]")
pytest.importorskip("peft", reason="adapters need triptych[lora]")

SMALL = ["--steps", 3, "--dtype", "float32", "--lora.rank", 2, "--save-every", 1, "--evaluate.every", 0]
SMALL += ["--limits.missing", 0.9, "--pages.every", 0]
for stage in ("reason", "refine"):
    SMALL += [f"--{stage}.parents", 2, f"--{stage}.group-size", 3, f"--{stage}.sampling.points", 4]
    SMALL += [f"--{stage}.sampling.max-tokens", 5]


@pytest.fixture(scope="module")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the open world, in the published layout."""
    from dataclasses import replace

    torch.manual_seed(0)
    bagel = Bagel(replace(TINY, world="open"), build_tokenizer())
    with torch.no_grad():  # it often closes its thoughts, so that some reflections ask for an edit
        bagel.language_model.lm_head.weight[bagel.tokenizer.token_to_id(CLOSE)] *= 8
    folder = tmp_path_factory.mktemp("open") / "model"
    weights.save(bagel, folder)
    return folder


@pytest.fixture(autouse=True)
def inside_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    lines = [json.dumps({"prompt": f"a castle with {number} towers", "id": number}) for number in range(20)]
    Path("prompts.jsonl").write_text("\n".join(lines))


def by_picture(request: Request) -> Answer:
    """A verdict that depends on the question alone, so that two runs get the same."""
    return right() if hash_of(request) % 3 else wrong()


def hash_of(request: Request) -> int:
    return sum(request.body["messages"][0]["content"][0]["image_url"]["url"].encode())


def train(server: str, model: Path, *words: object, recipe: str = "genevalpp-7b") -> int:
    options = ["--model", model, "--address", server, "--judge-model", "m", "--tries", 1, "--prompts", "prompts.jsonl"]
    return main([str(word) for word in ["train", recipe, *SMALL, *options, *words]])


def steps_of(folder: str) -> list[dict]:
    rows = [json.loads(line) for line in Path(folder, "steps.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k and not k.startswith("share_")} for row in rows]


def test_it_trains_publishes_and_draws(open_model: Path, capsys: pytest.CaptureFixture):
    with Server(by_picture) as server:
        options = ["--out", "run", "--evaluate.every", 2, "--evaluate.prompts", 2, "--evaluate.turns", 1]
        assert train(server.address, open_model, *options, "--evaluate.own", 2, "--held-out", 0.3) == 0
        asked = {request.text for request in server.requests}
    run = json.loads(Path("run/run.json").read_text())
    assert run["judge_name"].startswith("m/strict-") and len(run["prompts"]) == 12
    rows = steps_of("run")
    assert [row["index"] for row in rows] == [0, 1, 2] and {row["stage"] for row in rows} == {"reason", "refine"}
    evaluations = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    assert {"planned_right_0", "planned_right_1", "ita"} <= evaluations[0].keys() and "vqa" not in evaluations[0]
    assert any("castle" in text for text in asked)
    assert main(["draw", "a castle", "--model", "run/model", "--turns", "0", "--out", "drawn", "--steps", "2"]) == 0


def test_a_judge_that_fails_now_and_then_loses_its_verdicts_alone(open_model: Path):
    def play(request: Request) -> Answer:
        return says("who knows") if hash_of(request) % 10 < 3 else by_picture(request)

    with Server(play) as server:
        assert train(server.address, open_model, "--out", "run") == 0
    assert len(steps_of("run")) == 3


def test_a_dead_judge_pauses_the_run_which_then_is_the_run_it_would_have_been(open_model: Path):
    with Server(by_picture) as server:
        assert train(server.address, open_model, "--out", "whole") == 0
    down = iter(range(3))

    def play(request: Request) -> Answer:
        # From the ninth request on nobody answers for a while, in the middle of a group.
        return status(503) if request.number > 8 and next(down, None) is not None else by_picture(request)

    with Server(play) as server:
        assert train(server.address, open_model, "--out", "paused") == 0
    assert steps_of("whole") == steps_of("paused")
    one, two = (load_file(f"{name}/model/ema.safetensors") for name in ("whole", "paused"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_patience_that_is_over_ends_with_a_checkpoint_to_go_on_from(open_model: Path, capsys: pytest.CaptureFixture):
    with Server(by_picture) as server:
        assert train(server.address, open_model, "--out", "whole", "--save-every", 50) == 0
    with Server(lambda request: by_picture(request) if request.number < 8 else status(503)) as server:
        options = ["--out", "run", "--save-every", 50, "--judge-patience", 0]
        assert train(server.address, open_model, *options) == 75
        told = capsys.readouterr().err
        assert "--resume" in told and "--judge-patience" in told and "Traceback" not in told
    assert len(steps_of("run")) >= 1 and list(Path("run/checkpoints").glob("step-*"))
    with Server(by_picture) as server:
        assert train(server.address, open_model, "--out", "run", "--save-every", 50, "--resume") == 0
    assert steps_of("whole") == steps_of("run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge", "world"], "not with world"),
        (["--judge", "detector"], "--address"),
        (["--prompts", "missing.jsonl"], "missing.jsonl"),
        (["--ask", "tiif"], "prompts.jsonl"),
        (["--tags", "colors"], "no prompt is left"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(open_model: Path, capsys, words: list[str], told: str):
    assert train(refusing(), open_model, "--out", "run", *words) == 2
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1
    assert not Path("run").exists()


def test_a_judge_of_stickers_does_not_look_at_the_open_world(open_model: Path, capsys: pytest.CaptureFixture):
    assert main(["train", "genevalpp-7b", "--model", str(open_model), "--judge", "world", "--out", "run"]) == 2
    assert "expected --judge vlm or detector" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["genevalpp-7b", "tiif-7b", "release-7b", "lora-7b"])
def test_recipes_of_open_models_need_a_judge_before_anything_is_loaded(capsys, recipe: str):
    assert main(["train", recipe]) == 2
    assert "--address" in capsys.readouterr().err


def test_another_judge_or_other_prompts_are_another_run(open_model: Path, capsys: pytest.CaptureFixture):
    with Server(by_picture) as server:
        assert train(server.address, open_model, "--out", "run", "--steps", 1) == 0
        Path("prompts.jsonl").write_text("another castle\nand one more\n" * 9)
        assert train(server.address, open_model, "--out", "run", "--resume") == 2
        assert "prompts" in capsys.readouterr().err
