"""Defects of the authors' release that training could repeat (parity kit, c.A), each forbidden by a law.

Those of the model are in tests/model/test_defects.py. Others are forbidden where their subject is tested, by a test
whose docstring names the defect, as in "Forbids c.A7"; the last test here sees that none is without one.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from triptych.data.specs import StickerPrompts
from triptych.model.logprobs import ImageSample, TextSample
from triptych.rewards.judge import BrightnessJudge
from triptych.rewards.rewards import RewardRule, is_right, score_of, stage_reward
from triptych.rl.advantages import LossRows
from triptych.rl.config import PictureConfig, TextConfig, TreeConfig
from triptych.rl.learner import Learner, StageBatch
from triptych.rl.losses import token_kl
from triptych.rl.metrics import Timer
from triptych.rl.recipes import DEBUG, tiny
from triptych.rl.train import train
from triptych.rl.tree import Group, Node, pick, root
from triptych.trace import Completion, Drawing, Prompt, Turn, Verdict

TESTS = Path(__file__).parents[1]
KNOWN = 14  # defects of the learning signal, c.A1 to c.A14
ASKED = ["a photo of three clocks", "a red cat"]


def test_a4_every_prompt_is_taken_once_and_none_is_repeated_at_the_start():
    """Two prompts a step, those of the stream in its order, from its first on."""
    stream = StickerPrompts(0)
    steps = train(tiny(), stream, BrightnessJudge(), replace(DEBUG, steps=3, tree=TreeConfig(depth=0)))
    asked = [group.parent.trace.prompt.text for step in steps for group in step.groups]
    assert asked == [stream(place).text for place in range(6)] and len(set(asked)) == 6


def test_a8_right_is_told_with_room_for_rounding():
    """Six sixths are right: for the strict grain, for stopping, for edits and for the pool of right parents."""
    picture = Drawing(torch.zeros(2, 2, 3, dtype=torch.uint8).numpy())
    nearly = Verdict(sum([1 / 6] * 6))
    assert nearly.score != 1 and is_right(nearly) and score_of(nearly, "strict") == 1
    assert not is_right(Verdict(0.99))
    said = Completion("<think>as asked</think>no further edit needed")
    rule = RewardRule(format_weight=0.0)
    assert stage_reward(Turn(said, None), nearly, nearly, rule).text == 1
    assert stage_reward(Turn(Completion("<think>so</think>add a cat"), picture), Verdict(0.5), nearly, rule).text == 0
    nodes = []
    for number, score in enumerate((nearly.score, 0.5, 0.5, 0.5)):
        parent = root(Prompt("a cat")).trace
        nodes.append(Node(parent + Turn(None, Drawing(picture.image + number)), Verdict(score)))
    group = Group(root(Prompt("a cat")), tuple(nodes))
    assert all(pick([group], 1, TreeConfig(right_share=1.0), seed) == [nodes[0]] for seed in range(5))
    assert all(nodes[0] not in pick([group], 3, TreeConfig(right_share=0.0), seed) for seed in range(5))


@pytest.mark.parametrize("gap", [3.0, 5.0, 8.0])
def test_a13_a_large_kl_of_words_is_kept(gap):
    """The estimate is exp(d) - d - 1 at any size, and so is its gradient: the further away, the stronger the pull."""
    new = torch.tensor([[-9.0]], requires_grad=True)
    found = token_kl(new, new.detach() + gap, torch.ones(1, 1, dtype=torch.bool), 1)
    (pull,) = torch.autograd.grad(found, new)
    exact = torch.tensor(gap).exp()
    torch.testing.assert_close(found.detach(), exact - gap - 1)
    torch.testing.assert_close(pull, (1 - exact).reshape(1, 1))


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a13_an_update_pays_for_its_kl_whatever_its_size(kind):
    """Without rewards the loss is the weight of the KL times the KL, above 10 too."""
    parts = {"text": TextConfig(kl_coef=0.5), "picture": PictureConfig(kl_coef=0.5)}
    stage = replace(DEBUG.reason, inner_epochs=1, **parts)
    learner = Learner(tiny(), replace(DEBUG, reason=stage, reference="frozen", ema_decay=0.0))
    assert learner.first is not None
    for name, far in (("language_model.lm_head.weight", 20.0), ("llm2vae.weight", 400.0)):
        learner.first[name] = learner.first[name] * far  # a reference that has nothing in common with the policy
    sampling, bagel = stage.sampling.resolve(stage.sample_sde_indices(0)), learner.bagel
    with learner.precision():
        said = bagel.plan(ASKED, sampling, [1, 2])
        drawn = bagel.draw(ASKED, [None, None], sampling, [3, 4], [5, 6])
    told = tuple(TextSample(text, None, one) for text, one in zip(ASKED, said, strict=True))
    painted = tuple(
        ImageSample(text, None, None, one.sde_steps) for text, one in zip(ASKED, drawn, strict=True) if one.sde_steps
    )
    told, painted = (told, ()) if kind == "text" else ((), painted)
    sizes = sum(len(one.completion.tokens) for one in told), sum(len(one.sde_steps.time) for one in painted)
    batch = LossRows(told, torch.zeros(len(told)), painted, torch.zeros(len(painted)), *sizes)
    metrics, finite = learner.update([StageBatch("reason", stage, sampling, batch)], 0, Timer())
    divergence = metrics["text_kl" if kind == "text" else "sde_kl"]
    assert finite and divergence > 10 and metrics["grad_norm"] > 0
    part = stage.text if kind == "text" else stage.picture
    assert metrics["loss"] == pytest.approx(part.kl_coef * divergence, rel=1e-4)


def forbidden() -> dict[int, list[str]]:
    """The defects c.A that tests forbid, and by which: `test_aN_...`, or a docstring that says "Forbids c.AN"."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                numbers = re.findall(r"^test_a(\d+)_", node.name)
                for told in re.findall(r"Forbids (c\.A\d+(?:(?:,| and) c\.A\d+)*)", ast.get_docstring(node) or ""):
                    numbers += re.findall(r"A(\d+)", told)
                for number in numbers:
                    found.setdefault(int(number), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def test_every_known_defect_is_forbidden():
    assert sorted(forbidden()) == [*range(1, KNOWN + 1)]
