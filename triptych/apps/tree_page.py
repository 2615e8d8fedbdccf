"""Rollouts of training as trees: a static page per tree, OUT/rollouts/STEP.html, and an index.html that lists them.

A tree is a Reason step with the Refine steps that grow from its images: per prompt its siblings with text, image,
verdict, rewards and advantages, and under each image that was picked as a parent, the group that grew from it. The
first tree at or after every so many steps is shown; its page is written again when its next stage is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from triptych.apps.trace_page import is_small, png_uri, template, thumbnail
from triptych.bounds import NonNegativeInt, check_bounds
from triptych.files import naming_errors, write_text
from triptych.model.templates import parse_thought
from triptych.rewards.rewards import Reward, RewardRule, is_right
from triptych.rl.advantages import group_advantages
from triptych.rl.config import StageConfig, TrainConfig
from triptych.rl.train import Step
from triptych.rl.tree import Group, Node
from triptych.trace import Turn, Verdict

IMAGE_SIDE = 128  # pixels; larger images become thumbnails of this side
CARD_IMAGES = 8  # on the card of a page: more do not fit into its row
_CARD = re.compile(r'<script type="application/json" id="card">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Pages:
    """Which rollouts become pages; training does not depend on it."""

    every: NonNegativeInt = 0
    """Steps from one page to the next; 0 writes none."""

    def check(self) -> None:
        """Raises ConfigError for settings that are out of bounds."""
        check_bounds(self, "pages")


@dataclass(frozen=True)
class TextView:
    """The text of one turn: the thought, and the instruction where there is one."""

    thought: str
    instruction: str | None
    stopped: bool


@dataclass(frozen=True, eq=False)
class SiblingView:
    """One sibling: its new images as data URIs, rewards, advantages, and the number of the group that grows from it."""

    number: int
    pictures: tuple[str, ...]
    verdict: Verdict
    right: bool
    reward: Reward
    advantage_text: float | None  # None where the group is not compared, or the part is not trained
    advantage_picture: float | None
    picked: bool
    child: int | None


@dataclass(frozen=True, eq=False)
class BranchView:
    """Siblings with the same texts, one text per turn."""

    texts: tuple[TextView, ...]
    siblings: tuple[SiblingView, ...]


@dataclass(frozen=True, eq=False)
class TreeNode:
    """A group as the page shows it, and the groups that grow from its images."""

    number: int
    step: int
    stage: str
    prompt: str
    picture: str | None  # the parent's
    verdict: Verdict | None  # on it
    right: bool
    branches: tuple[BranchView, ...]
    mean: float | None
    missing: int
    cause: str
    parent: int | None  # the number of the parent among its siblings
    children: tuple[TreeNode, ...]

    @property
    def siblings(self) -> list[SiblingView]:
        siblings = (sibling for branch in self.branches for sibling in branch.siblings)
        return sorted(siblings, key=lambda sibling: sibling.number)


@dataclass(frozen=True)
class TreeCard:
    """What the index shows of a page."""

    page: str
    step: int  # of its first stage
    last: int
    stage: str
    groups: int
    v: float | None  # mean score of the first stage
    right: float | None
    change: float | None  # mean change of V in the later stages
    pictures: tuple[str, ...] = ()


@dataclass
class TreePages:
    """The folder of pages of a run: `add` takes every step and writes the pages that are due."""

    folder: Path
    pages: Pages
    config: TrainConfig
    steps: list[Step] = field(default_factory=list)  # of the current tree

    def add(self, step: Step) -> None:
        """Take a step. Raises OutputError if its page cannot be written."""
        if not self.pages.every:
            return
        if step.stage != "refine":  # Reason begins a new tree
            self.steps = [step] if self._is_due(step.index) else []
        elif self.steps:
            self.steps.append(step)
        if self.steps:  # after each stage, so that the page of a tree that still grows can be looked at
            self._write()

    def _is_due(self, index: int) -> bool:
        """Whether no older page stands for this stretch of steps. Pages of later steps are from before a resume."""
        older = [number - 1 for number in _page_steps(self.folder) if number - 1 < index]
        return not older or index // self.pages.every > max(older) // self.pages.every

    def _write(self) -> None:
        with naming_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.steps[0].index + 1:06d}.html"
        write_text(path, tree_page(self.steps, self.config, path.name))
        write_text(self.folder / "index.html", tree_index(read_cards(self.folder)))


def tree_page(steps: Sequence[Step], config: TrainConfig, name: str = "") -> str:
    """The page of one tree: its first step and the later ones that grow from it."""
    nodes, refined = tree_nodes(steps, config), any(step.stage == "refine" for step in steps)
    return template("tree.html").render(
        nodes=nodes,
        steps=steps,
        card=asdict(tree_card(steps, nodes, name)),
        normalized=_normalized_parts(config, refined),
        picks=any(step.picked for step in steps),
        pending=bool(steps[-1].picked),
        format_reward=_format_reward(config.reward),
        balanced=refined and config.tree.balance,
        pixelated=any(is_small(node.trace.image) for node in _siblings(steps) if node.trace.image is not None),
    )


def tree_index(cards: Sequence[TreeCard]) -> str:
    """The page that lists pages."""
    return template("tree_index.html").render(cards=cards, pixelated=True)


def read_cards(folder: Path) -> list[TreeCard]:
    """The cards of the pages in a folder, in the order of their steps."""
    # Each page carries its own card, so that a resumed run lists the pages from before it.
    matches = [_CARD.search((folder / f"{step:06d}.html").read_text(encoding="utf-8")) for step in _page_steps(folder)]
    records = [json.loads(match.group(1)) for match in matches if match is not None]
    return [TreeCard(**{**record, "pictures": tuple(record["pictures"])}) for record in records]


def tree_nodes(steps: Sequence[Step], config: TrainConfig) -> list[TreeNode]:
    """Groups of the first step, each with those that grow from its images.

    A group whose parent is not on the page stands on its own.
    """
    on_page = {id(node) for node in _siblings(steps)}  # by identity: two siblings may hold equal traces
    groups = [(step, group) for step in steps for group in step.groups]
    children: dict[int, list[tuple[int, Step, Group]]] = {}
    roots: list[tuple[int, Step, Group]] = []
    for number, (step, group) in enumerate(groups):
        place = children.setdefault(id(group.parent), []) if id(group.parent) in on_page else roots
        place.append((number, step, group))
    return [_tree_node(*root, children, config, None) for root in roots]


def _tree_node(
    number: int,
    step: Step,
    group: Group,
    children: dict[int, list[tuple[int, Step, Group]]],
    config: TrainConfig,
    parent_number: int | None,
) -> TreeNode:
    parent = group.parent
    picked = {id(node) for node in step.picked}
    advantages = _advantages(group, config.refine if step.stage == "refine" else config.reason)
    branches: dict[tuple[TextView, ...], list[SiblingView]] = {}
    subtrees: list[TreeNode] = []
    for place, (node, advantage) in enumerate(zip(group.siblings, advantages, strict=True), start=1):
        turns = node.trace.turns[len(parent.trace.turns) :]
        own = [_tree_node(*child, children, config, place) for child in children.get(id(node), [])]
        subtrees += own
        assert node.verdict is not None and node.reward is not None  # a sibling without a verdict is in no group
        sibling = SiblingView(
            number=place,
            pictures=tuple(_uri(turn.drew.image) for turn in turns if turn.drew is not None),
            verdict=node.verdict,
            right=is_right(node.verdict),
            reward=node.reward,
            advantage_text=advantage[0],
            advantage_picture=advantage[1] if node.reward.has_picture else None,
            picked=id(node) in picked,
            child=own[0].number if own else None,
        )
        branches.setdefault(tuple(_text(turn) for turn in turns), []).append(sibling)
    scores = [node.verdict.score for node in group.siblings if node.verdict is not None]
    return TreeNode(
        number=number,
        step=step.index + 1,
        stage=step.stage,
        prompt=parent.trace.prompt.text,
        picture=None if parent.trace.image is None else _uri(parent.trace.image),
        verdict=parent.verdict,
        right=parent.verdict is not None and is_right(parent.verdict),
        branches=tuple(BranchView(texts, tuple(siblings)) for texts, siblings in branches.items()),
        mean=float(np.mean(scores)) if scores else None,
        missing=group.missing,
        cause=group.cause,
        parent=parent_number,
        children=tuple(subtrees),
    )


def _text(turn: Turn) -> TextView:
    thought = "" if turn.said is None else parse_thought(turn.said.text)
    return TextView(thought, turn.instruction, turn.drew is None)


def _advantages(group: Group, stage: StageConfig) -> list[tuple[float | None, float | None]]:
    """Text and picture advantages of each sibling, None where that part is not trained."""
    count = len(group.siblings)
    if count < 2:  # a group of one has no baseline
        return [(None, None)] * count
    advantages = group_advantages(group, stage)
    text = advantages.text.tolist() if stage.trains_text else [None] * count
    picture = advantages.picture.tolist() if stage.picture.train else [None] * count
    return list(zip(text, picture, strict=True))


def tree_card(steps: Sequence[Step], nodes: Sequence[TreeNode], name: str) -> TreeCard:
    """The card of a page; of each group it shows the first sibling's image, good or bad."""
    first, last = steps[0], steps[-1]
    changes = [
        node.verdict.score - group.parent.verdict.score
        for step in steps
        for group in step.groups
        for node in group.siblings
        if node.verdict is not None and group.parent.verdict is not None
    ]
    pictures = [uri for node in nodes[:CARD_IMAGES] for sibling in node.siblings[:1] for uri in sibling.pictures[-1:]]
    return TreeCard(
        page=name,
        step=first.index + 1,
        last=last.index + 1,
        stage=first.stage,
        groups=len(nodes),
        v=first.metrics.get("v"),
        right=first.metrics.get("right"),
        change=float(np.mean(changes)) if changes else None,
        pictures=tuple(pictures),
    )


def _normalized_parts(config: TrainConfig, refined: bool) -> list[str]:
    """The parts whose advantages are divided by the group's standard deviation, in words."""
    stages = {"Reason": config.reason} | ({"Refine": config.refine} if refined else {})
    parts = {f"{name}'s {kind}": getattr(stage, kind) for name, stage in stages.items() for kind in ("text", "picture")}
    return [name for name, part in parts.items() if part.normalize_advantages]


def _format_reward(rule: RewardRule) -> str:
    """What a text earns for its format, in words."""
    if rule.variant == "release":
        return (
            f"A text gets a format reward of {rule.format_weight:g} beside the reward of its picture, and 0 in all "
            "without the format (¶)."
        )
    return f"A text gets a format reward of {rule.format_weight:g}; ¶ marks one without the format."


def _page_steps(folder: Path) -> list[int]:
    """The first steps of the pages in a folder, counted from 1 as on the terminal."""
    # not index.html
    return sorted(int(path.stem) for path in folder.glob("*.html") if path.stem.isdigit())


def _siblings(steps: Sequence[Step]) -> list[Node]:
    return [node for step in steps for group in step.groups for node in group.siblings]


def _uri(image: np.ndarray) -> str:
    return png_uri(thumbnail(image, IMAGE_SIDE))
