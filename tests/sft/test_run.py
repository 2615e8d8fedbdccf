"""A folder belongs to one run of SFT; what cannot work leaves no folder behind."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch
from annotated_types import Ge
from torch import nn

from triptych import files
from triptych.errors import ConfigError, OutputError
from triptych.model.config import BagelConfig
from triptych.sft.optim import FitConfig, SFTStage, adamw, copies
from triptych.sft.run import OLD_SETTINGS, SETTINGS, RecipeConfig, run_sft


@dataclass(frozen=True)
class ToyRecipe(RecipeConfig):
    """Two stages of three updates; the result is what the two weights sum to."""

    target: Annotated[float, Ge(0)] = 1.0
    fit: FitConfig = field(default_factory=lambda: FitConfig(3, 0.1, 0, 0.5, 0.5))
    outputs: ClassVar[tuple[str, ...]] = ("first", "second", "sum.json", "steps.jsonl")
    result: ClassVar[str] = "sum.json"

    def stages(self, out: Path, model_config: BagelConfig) -> Iterator[SFTStage]:
        if self.target == 13:
            raise ConfigError("target 13: expected another number")
        yield (first := self.stage("first"))
        yield (second := self.stage("second"))
        files.write_json(out / self.result, float(first.ema["w"] + second.ema["w"]))

    def stage(self, name: str) -> SFTStage:
        tensors = {"w": nn.Parameter(torch.zeros(()))}

        def loss(goal: float) -> tuple[torch.Tensor, dict[str, float]]:
            return (tensors["w"] - goal).square(), {}

        optimizers = adamw(tensors.values(), self.fit, (0.9, 0.99))
        return SFTStage(name, self.fit, tensors, copies(tensors), optimizers, lambda step: [(self.target, 1.0)], loss)


CONFIG = ToyRecipe(save_every=1)


def cut(config: RecipeConfig, out: Path, updates: int, resume: bool = False) -> None:
    run = run_sft(config, out, resume)
    for _ in range(updates):
        next(run)
    run.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_settings_of_a_run_are_in_its_folder_and_a_resume_needs_the_same(tmp_path: Path):
    out = tmp_path / "run"
    cut(CONFIG, out, 1)
    assert json.loads((out / SETTINGS).read_text()) == asdict(CONFIG)
    with pytest.raises(ConfigError, match=r"holds a run of SFT already; go on with it by --resume"):
        list(run_sft(CONFIG, out))
    with pytest.raises(ConfigError, match=r"written with other fit, seed; expected the same settings"):
        list(run_sft(replace(CONFIG, seed=1, fit=replace(CONFIG.fit, lr=0.2)), out, resume=True))
    steps = list(run_sft(replace(CONFIG, device="cpu", save_every=7, num_workers=0), out, resume=True))
    assert [(step.stage, step.index) for step in steps] == [("first", 1), ("first", 2)] + [
        ("second", index) for index in range(3)
    ]
    assert names(out) == ["first", "second", SETTINGS, "sum.json"]


def test_a_run_with_an_option_that_is_gone_goes_on(tmp_path: Path):
    cut(CONFIG, tmp_path, 1)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["fit"]["gone"] = 0.0
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    assert len(list(run_sft(CONFIG, tmp_path, resume=True))) == 5
    settings["fit"]["lr"] = 0.2
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="written with other fit"):
        list(run_sft(CONFIG, tmp_path, resume=True))


def test_a_run_that_was_cut_anywhere_has_the_same_result(tmp_path: Path):
    list(run_sft(CONFIG, tmp_path / "whole"))
    for updates in range(1, 6):
        cut(CONFIG, tmp_path / str(updates), updates)
        list(run_sft(CONFIG, tmp_path / str(updates), resume=True))
        assert (tmp_path / str(updates) / "sum.json").read_text() == (tmp_path / "whole" / "sum.json").read_text()


@pytest.mark.parametrize(
    "config", [replace(CONFIG, target=13.0), replace(CONFIG, target=-1.0), replace(CONFIG, seed=-1)]
)
def test_what_is_refused_takes_no_folder(config: RecipeConfig, tmp_path: Path):
    with pytest.raises(ConfigError):
        list(run_sft(config, tmp_path / "run"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", CONFIG.outputs)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_stays_as_it_is(name: str, resume: bool, tmp_path: Path):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name} and no {SETTINGS}"):
        list(run_sft(CONFIG, tmp_path, resume))
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_the_first_version_is_refused_in_a_sentence(resume: bool, tmp_path: Path):
    (tmp_path / OLD_SETTINGS).write_text("{}")
    with pytest.raises(ConfigError, match=r"a run of triptych 0\.1.*choose another --out.*--start"):
        list(run_sft(CONFIG, tmp_path, resume))
    assert names(tmp_path) == [OLD_SETTINGS]


def test_what_a_kill_left_is_swept_when_the_run_goes_on(tmp_path: Path):
    out = tmp_path / "run"
    cut(CONFIG, out, 2)
    for left in (out / ".model.99.part", out / "first" / ".step-00000009.99.part"):
        left.mkdir()
    list(run_sft(CONFIG, out, resume=True))
    assert names(out) == ["first", "second", SETTINGS, "sum.json"]
    assert names(out / "first") == ["step-00000002", "step-00000003"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file.*--out"):
        list(run_sft(CONFIG, tmp_path / "file" / "run"))
