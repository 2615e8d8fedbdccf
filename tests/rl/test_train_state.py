"""A checkpoint holds all that a run goes on from, and each step draws its randomness from its own number."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError
from triptych.rewards.judge import BrightnessJudge
from triptych.rl.config import Limits, TreeConfig
from triptych.rl.learner import Learner
from triptych.rl.recipes import DEBUG, TINY, tiny
from triptych.rl.train import Step, train
from triptych.rl.train_state import TrainState, claim, restore, save_state
from triptych.rl.tree import Node
from triptych.trace import Completion, Drawing, Trace, Turn, Verdict

PROMPTS = StickerPrompts(0)


def waiting(number: int) -> Node:
    """A picture that was edited once."""
    chance = np.random.default_rng(number)
    images = [chance.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2)]
    said = Completion("<think>so</think>go", np.arange(3), np.array([-0.1, -2.5, -1e-7], np.float32))
    turns = Turn(None, Drawing(images[0])), Turn(said, Drawing(images[1]), "go", {"edit": 0.5})
    verdict = Verdict(1 / 3, ("one cat",), ("a red cat", "two dogs"))
    return Node(Trace(PROMPTS(number), turns, seed=2**60 + number), verdict)


def learnt(config) -> Learner:
    """A learner whose weights, averages and three optimizers have all moved, each in its own way."""
    learner = Learner(tiny(), config)
    for number, (name, optimizer) in enumerate(sorted(learner.optimizers.items())):
        for place, parameter in enumerate(learner.learning.values()):
            noise = torch.Generator().manual_seed(100 * number + place)
            parameter.grad = torch.randn(parameter.shape, generator=noise)
            if name == "refine" and place % 2:
                parameter.grad = None  # moments that do not exist yet
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (number + 1)
        optimizer.step()
        optimizer.zero_grad()
    for average in (learner.average or {}).values():
        average.mul_(0.9)
    return learner


def same_optimizers(one: Learner, two: Learner) -> bool:
    for name, optimizer in one.optimizers.items():
        ours, theirs = (o.state_dict()["state"] for o in (optimizer, two.optimizers[name]))
        if not ours or ours.keys() != theirs.keys():
            return False
        pairs = [(ours[i][key], theirs[i][key]) for i in ours for key in ours[i]]
        if not all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs):
            return False
    return one.optimizers.keys() == two.optimizers.keys()


@pytest.mark.parametrize("config", [DEBUG, replace(DEBUG, moments="shared", reference="ema")], ids=["stages", "shared"])
def test_a_checkpoint_gives_everything_back(tmp_path, config):
    state = TrainState(7, 12, 1, (waiting(1), waiting(2), waiting(3)), 99, 4, 2, ((0, 6), (2, 6)))
    assert all(getattr(state, one.name) != one.default for one in fields(state))
    learner = learnt(config)
    save_state(tmp_path, state, learner)
    again = Learner(tiny(), config)
    back = restore(tmp_path, again)
    assert replace(back, parents=()) == replace(state, parents=())
    assert all(torch.equal(weight, again.learning[name]) for name, weight in learner.learning.items())
    assert all(torch.equal(weight, again.average[name]) for name, weight in learner.average.items())
    assert any(not torch.equal(weight, again.average[name]) for name, weight in again.learning.items())
    assert same_optimizers(learner, again)
    assert not same_optimizers(learner, Learner(tiny(), config))
    for one, two in zip(state.parents, back.parents, strict=True):
        assert two.verdict == one.verdict and told(two) == told(one)
        assert two.trace.to_record() == one.trace.to_record()
        assert len(two.trace.images) == 2
        assert all(np.array_equal(a, b) for a, b in zip(one.trace.images, two.trace.images, strict=True))
        for a, b in zip(one.trace.turns, two.trace.turns, strict=True):
            assert (a.said is None) is (b.said is None)
            assert a.said is None or np.array_equal(a.said.logprobs, b.said.logprobs)


def test_the_frozen_reference_of_a_resumed_run_is_that_of_its_start(tmp_path):
    """What the KL is measured from is what the run began with, not what it has come to."""
    save_state(tmp_path, TrainState(3), learnt(DEBUG))
    again, first = Learner(tiny(), DEBUG), dict(tiny().named_parameters())
    restore(tmp_path, again)
    assert again.first is not None
    assert all(torch.equal(weight, first[name]) for name, weight in again.first.items())
    assert any(not torch.equal(weight, first[name]) for name, weight in again.learning.items())


def test_what_a_kill_left_among_the_checkpoints_is_swept_at_resume(tmp_path):
    save_state(tmp_path, TrainState(3), learnt(DEBUG))
    (tmp_path / "checkpoints" / ".step-00000001.77.removed.part").mkdir()
    assert restore(tmp_path, Learner(tiny(), DEBUG)).step == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def told(node: Node) -> tuple[object, ...]:
    prompt = node.trace.prompt
    return prompt.text, prompt.spec, prompt.source, node.trace.seed


def test_limits_may_change_in_a_resumed_run_and_what_is_learnt_may_not(tmp_path):
    """A run that a limit has stopped must be able to go on."""
    bagel = tiny()
    claim(tmp_path, DEBUG, bagel, resume=False)
    claim(tmp_path, replace(DEBUG, limits=Limits(text_ratio=0.1, bad_steps=9)), bagel, resume=True)
    with pytest.raises(ConfigError, match="max_grad_norm"):
        claim(tmp_path, replace(DEBUG, max_grad_norm=0.5), bagel, resume=True)


class Noting(type(tiny())):
    """Notes the seeds that it is given, in the order of its calls."""

    def __init__(self):
        honest = tiny()
        super().__init__(TINY, honest.tokenizer)
        self.load_state_dict(honest.state_dict())
        self.texts, self.noises, self.steps = [], [], []
        self.eval()

    def plan(self, prompts, sampling, seeds, *rest):
        self.texts.append(list(seeds))
        return super().plan(prompts, sampling, seeds, *rest)

    def reflect(self, prompts, images, sampling, seeds, *rest):
        self.texts.append(list(seeds))
        return super().reflect(prompts, images, sampling, seeds, *rest)

    def draw(self, prompts, plans, sampling, seeds, sde_seeds=None, *rest):
        self.noises.append(list(seeds))
        self.steps.append(list(sde_seeds or ()))
        return super().draw(prompts, plans, sampling, seeds, sde_seeds, *rest)


def steps_of(config, policy=None) -> list[Step]:
    return list(train(policy or tiny(), PROMPTS, BrightnessJudge(), config))


class Even(BrightnessJudge):
    def __call__(self, traces):
        return [Verdict(0.5) for _ in traces]


def test_no_two_rollouts_of_a_run_share_a_seed():
    """Neither those of two steps nor those of one that is resampled: each text, noise and SDE step is new."""
    policy = Noting()
    config = replace(DEBUG, steps=3, tree=TreeConfig(depth=0, resample=1))
    list(train(policy, PROMPTS, Even(), config))
    for calls, each in ((policy.texts, 6), (policy.noises, 2), (policy.steps, 6)):
        rollouts = calls[-6:]  # three steps of two attempts, after those of the check
        seeds = [seed for call in rollouts for seed in dict.fromkeys(call)]
        assert len(seeds) == len(set(seeds)) == 6 * each


def test_sde_steps_change_from_step_to_step_and_stay_in_their_window():
    """One index for a whole run would leave all other steps untrained, and one outside of the window changes little."""
    reason = replace(DEBUG.reason, picture=replace(DEBUG.reason.picture, sde_window=2), plan_share=0.0, inner_epochs=1)
    config = replace(DEBUG, steps=10, reason=reason, tree=TreeConfig(depth=0))
    drawn = [
        {index for group in step.groups for node in group.siblings for index in sde_indices(node)}
        for step in steps_of(config)
    ]
    assert all(len(one) == 1 for one in drawn)
    assert set.union(*drawn) == {0, 1}


def sde_indices(node: Node) -> list[int]:
    drew = node.trace.turns[-1].drew
    return [] if drew is None or drew.sde_steps is None else drew.sde_steps.index.tolist()


def test_parents_are_chosen_anew_in_every_step():
    """The place of the picked pictures in their groups differs from one Reason step to the next."""
    short = {name: replace(getattr(DEBUG, name), inner_epochs=1) for name in ("reason", "refine")}
    config = replace(DEBUG, steps=8, tree=TreeConfig(selection="uniform"), **short)
    places = [
        tuple(place for place, sibling in enumerate(every(step)) if any(sibling is one for one in step.picked))
        for step in steps_of(config)
        if step.stage == "reason"
    ]
    assert len(places) == 4 and len(set(places)) > 1


def every(step: Step) -> list[Node]:
    return [node for group in step.groups for node in group.siblings]
