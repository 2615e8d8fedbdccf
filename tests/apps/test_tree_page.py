"""Pages of rollouts: every sibling with its words and numbers, trees that hang together, a page at each stretch."""

import re
from dataclasses import replace

import pytest
from scripted import ScriptedPolicy

from triptych.apps.tree_page import Pages, TreePages, read_cards, tree_nodes, tree_page
from triptych.data.specs import StickerPrompts
from triptych.errors import ConfigError
from triptych.rewards.judge import BrightnessJudge
from triptych.rewards.sticker_judge import WorldJudge
from triptych.rl.advantages import group_advantages
from triptych.rl.config import TreeConfig
from triptych.rl.recipes import DEBUG, tiny
from triptych.rl.train import Step, train
from triptych.rl.tree import Group, Node, StageRollout, expand, root
from triptych.trace import Prompt

PROMPTS = StickerPrompts(0)


def tree() -> list[Step]:
    """Two prompts of three siblings with a mistake each, and what becomes of the first of each."""
    policy, judge = ScriptedPolicy(mistakes=1), WorldJudge()
    first = StageRollout(DEBUG.reason, DEBUG.reason.sampling.resolve(), DEBUG.reward)
    later = StageRollout(DEBUG.refine, DEBUG.refine.sampling.resolve(), DEBUG.reward)
    groups = tuple(expand(policy, judge, [root(PROMPTS(0)), root(PROMPTS(1))], first, 0))
    picked = tuple(group.siblings[0] for group in groups)
    again = tuple(expand(policy, judge, picked, later, 1))
    return [Step(0, 2, "reason", {"v": 0.5}, groups, picked), Step(1, 2, "refine", {"v": 1.0}, again)]


STEPS = tree()


def test_what_grows_from_a_picture_hangs_under_it():
    nodes = tree_nodes(STEPS, DEBUG)
    assert [node_view.prompt for node_view in nodes] == [PROMPTS(0).text, PROMPTS(1).text]
    for node_view, group in zip(nodes, STEPS[0].groups, strict=True):
        assert [leaf.picked for leaf in node_view.siblings] == [True, False, False]
        (child,) = node_view.children
        assert (child.parent, child.number) == (1, node_view.siblings[0].child) and child.verdict == group.siblings[
            0
        ].verdict
        told = group_advantages(group, DEBUG.reason)
        assert [leaf.advantage_text for leaf in node_view.siblings] == told.text.tolist()
        assert [leaf.advantage_picture for leaf in node_view.siblings] == told.picture.tolist()
        assert [leaf.reward.text for leaf in node_view.siblings] == [node.reward.text for node in group.siblings]


def test_siblings_that_said_the_same_are_one_branch():
    for node_view in tree_nodes(STEPS, DEBUG):
        said = {node.trace.turns[-1].said.text for node in STEPS[0].groups[node_view.number].siblings}
        assert len(node_view.branches) == len(said)
        assert sum(len(branch.siblings) for branch in node_view.branches) == DEBUG.reason.group_size


def test_a_page_holds_all_and_asks_for_nothing():
    text = tree_page(STEPS, DEBUG)
    for step in STEPS:
        for group in step.groups:
            assert group.parent.trace.prompt.text in text
            for node in group.siblings:
                assert all(failed in text for failed in node.verdict.failed)
                assert (node.trace.turns[-1].instruction or "") in text
    assert "http" not in text.replace("http-equiv", "") and 'src="data:image/png' in text
    assert len(re.findall('class="sibling[ "]', text)) == sum(len(g.siblings) for step in STEPS for g in step.groups)


def test_words_of_a_prompt_are_no_markup():
    parent = Node(replace(STEPS[0].groups[0].parent.trace, prompt=Prompt("<script>alert(1)</script></script>")))
    step = replace(STEPS[0], groups=(Group(parent, (), 3, "</script><b>asleep"),))
    text = tree_page([step], DEBUG)
    assert "<script>alert" not in text and "<b>asleep" not in text and "3 verdicts missing" in text


@pytest.mark.parametrize(
    "config",
    [DEBUG, replace(DEBUG, tree=TreeConfig(depth=2)), replace(DEBUG, tree=TreeConfig(kind="trajectory"))],
    ids=["debug", "deeper", "trajectory"],
)
def test_every_kind_of_run_has_pages(tmp_path, config):
    config = replace(config, steps=4)
    album = TreePages(tmp_path, Pages(2), config)
    for step in train(tiny(), PROMPTS, BrightnessJudge(), config):
        album.add(step)
        if step.stage == "refine" and album.steps:
            assert all(
                node_view.children or not any(leaf.picked for leaf in node_view.siblings)
                for node_view in tree_nodes(album.steps, config)
            )
    found = read_cards(tmp_path)
    assert [card.step for card in found] == ([1, 4] if config.tree.depth == 2 else [1, 3])
    assert all(card.pictures and card.page in (tmp_path / "index.html").read_text() for card in found)


def test_pages_are_the_same_after_a_resume(tmp_path):
    """A stretch of steps that is done again writes its pages again, under the same names."""

    def steps(first: int) -> None:
        album = TreePages(tmp_path, Pages(4), DEBUG)
        for index in range(first, 12, 2):
            for offset, step in enumerate(STEPS):
                album.add(replace(step, index=index + offset))

    steps(0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["000001.html", "000005.html", "000009.html", "index.html"]
    steps(6)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_page_unless_asked(tmp_path):
    album = TreePages(tmp_path / "rollouts", Pages(0), DEBUG)
    album.add(STEPS[0])
    assert not album.folder.exists()
    with pytest.raises(ConfigError, match="pages"):
        Pages(-1).check()
