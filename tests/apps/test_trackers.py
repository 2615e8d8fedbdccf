"""Laws of trackers: every number of steps.jsonl arrives once, by its step, and a resumed run goes on where it was."""

import json
import sys
from types import SimpleNamespace

import pytest

from triptych.apps.cli import main
from triptych.apps.trackers import tracking
from triptych.rl.recipes import DEBUG
from triptych.rl.train import Step
from triptych.rl.train_log import step_numbers


def step(index: int, value: float = 0.5) -> Step:
    return Step(index, 9, ("reason", "refine")[index % 2], {"v": value + index, "loss": -0.25}, ())


class Service(SimpleNamespace):
    """Stands in for wandb and trackio: an `init` that gives a run with `log` and `finish`."""

    def __init__(self):
        super().__init__(begun=[], sent=[], finished=0)

    def init(self, project, config, resume, **identity):
        assert resume == "allow" and config["seed"] == 0
        self.begun.append((project, identity))
        return self

    def log(self, metrics, step):
        self.sent.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize(("kind", "key"), [("wandb", "id"), ("trackio", "name")])
def test_every_step_is_sent_once_to_the_same_run(kind, key, tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, kind, service)
    for indices in ((0, 1, 2), (1, 2, 3)):  # cut after step 2, resumed from a checkpoint before step 1
        with tracking(kind, tmp_path, DEBUG) as add:
            for index in indices:
                add(step(index))
    (first, again) = service.begun
    assert first == again and first[0] == "triptych" and first[1][key].startswith(tmp_path.name)
    assert service.sent == [(index, step_numbers(step(index))) for index in range(4)]
    assert service.finished == 2
    with tracking(kind, tmp_path / "other", DEBUG):
        assert service.begun[-1][1][key] != first[1][key]


def test_a_run_is_finished_when_training_fails(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    with pytest.raises(KeyboardInterrupt), tracking("wandb", tmp_path, DEBUG):
        raise KeyboardInterrupt
    assert service.finished == 1


def test_tensorboard_shows_each_step_once_as_it_was_last_done(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for indices, value in (((0, 1, 2, 3), 0.5), ((2, 3, 4), 0.75)):
        with tracking("tensorboard", tmp_path, DEBUG) as add:
            for index in indices:
                add(step(index, value))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {(name, event.step): event.value for name in board.Tags()["scalars"] for event in board.Scalars(name)}
    assert shown == {
        (name, index): value
        for index in range(5)
        for name, value in step_numbers(step(index, 0.5 if index < 2 else 0.75)).items()
    }


def test_the_command_sends_every_number_of_its_log(tmp_path, monkeypatch):
    service, out = Service(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", service)
    assert main(["train", "debug", "--out", str(out), "--tracker", "wandb"]) == 0
    assert main(["train", "debug", "--out", str(out), "--tracker", "wandb", "--resume", "--steps", "3"]) == 0
    rows = [json.loads(text) for text in (out / "steps.jsonl").read_text().splitlines()]
    assert service.sent == [
        (
            row["index"],
            {f"{row['stage']}/{name}": value for name, value in row.items() if name not in ("index", "stage")},
        )
        for row in rows
    ]
    assert len(rows) == 3 and len({str(identity) for _, identity in service.begun}) == 1


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_one_line(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if kind == "tensorboard" else kind, None)
    assert main(["train", "debug", "--out", str(tmp_path / "run"), "--tracker", kind]) == 2
    error = capfd.readouterr().err
    assert f"pip install 'triptych[{kind}]'" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
