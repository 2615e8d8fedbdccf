"""Rollouts as trees: a static page per tree, OUT/rollouts/STEP.html, and an index.html that lists them.

A tree is a Reason step with the Refine steps that grow from its pictures: per prompt its siblings, with what was said,
the picture, the verdict, rewards and advantages, and under each picture that was picked what became of it. The first
tree at or after every so many steps is shown; its page is written again when its next stage is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.apps import trace_page
from triptych.apps.output import naming_errors, write_page
from triptych.errors import ConfigError
from triptych.model.templates import parse_thought
from triptych.rewards.rewards import RewardRule, is_right
from triptych.rl.advantages import group_advantages
from triptych.rl.config import StageConfig, TrainConfig
from triptych.rl.train import Step
from triptych.rl.tree import Group, Node
from triptych.trace import Turn, Verdict

SIDE = 128  # pixels; larger pictures become thumbnails of this side
SHOWN = 8  # pictures on the card of a page
_CARD = re.compile(r'<script type="application/json" id="card">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Pages:
    """Which rollouts become pages. They fix nothing of a run."""

    every: int = 0  # steps; 0 is never

    def check(self) -> None:
        """Raises ConfigError for settings that cannot work."""
        if self.every < 0:
            raise ConfigError(f"every={self.every}: expected a number of steps, or 0 for no page; set --pages.every")


@dataclass(frozen=True)
class TextView:
    """One text of a branch: the thought, and the instruction where there is one."""

    thought: str
    instruction: str | None
    stopped: bool


@dataclass(frozen=True, eq=False)
class TurnView:
    """One sibling: its new pictures as data URIs, what it earned, its advantages, and the number of its own group."""

    number: int
    pictures: tuple[str, ...]
    verdict: Verdict
    right: bool
    reward_text: float
    reward_picture: float | None  # None where it drew nothing
    formed: bool
    gain_text: float | None  # None where the group is not compared, or the part does not learn
    gain_picture: float | None
    picked: bool
    child: int | None


@dataclass(frozen=True, eq=False)
class StageView:
    """Siblings that said the same."""

    sayings: tuple[TextView, ...]
    leaves: tuple[TurnView, ...]


@dataclass(frozen=True, eq=False)
class TreeNode:
    """A group as the page shows it, and the groups that grow from its pictures."""

    number: int
    step: int
    stage: str
    prompt: str
    picture: str | None  # the parent's
    verdict: Verdict | None  # on it
    right: bool
    branches: tuple[StageView, ...]
    mean: float | None
    missing: int
    cause: str
    above: int | None  # the number of the parent among its siblings
    below: tuple[TreeNode, ...]

    @property
    def leaves(self) -> list[TurnView]:
        return sorted((leaf for branch in self.branches for leaf in branch.leaves), key=lambda leaf: leaf.number)


@dataclass(frozen=True)
class TreeCard:
    """What the index tells of a page."""

    page: str
    step: int  # of its first stage
    last: int
    stage: str
    groups: int
    v: float | None  # mean of the first stage
    right: float | None
    after: float | None  # V of the last stage
    gain: float | None  # mean change of V in the later stages
    pictures: tuple[str, ...] = ()


@dataclass
class TreePages:
    """The folder of pages of a run: `add` hears every step and writes those that are due."""

    folder: Path
    pages: Pages
    config: TrainConfig
    steps: list[Step] = field(default_factory=list)  # of the tree that is being shown

    def add(self, step: Step) -> None:
        """Take a step. Raises OutputError if its page cannot be written."""
        if not self.pages.every:
            return
        if step.stage != "refine":
            self.steps = [step] if self._is_due(step.index) else []
        elif self.steps:
            self.steps.append(step)
        if self.steps:
            self._write()

    def _is_due(self, index: int) -> bool:
        """Whether no older page stands for this stretch of steps. Pages of later steps are from before a resume."""
        older = [number - 1 for number in _numbers(self.folder) if number - 1 < index]
        return not older or index // self.pages.every > max(older) // self.pages.every

    def _write(self) -> None:
        with naming_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.steps[0].index + 1:06d}.html"
        write_page(path, page(self.steps, self.config, path.name))
        write_page(self.folder / "index.html", index(cards(self.folder)))


def page(steps: Sequence[Step], config: TrainConfig, name: str = "") -> str:
    """The page of one tree: its first step and the later ones that grow from it."""
    boughs, refined = grown(steps, config), any(step.stage == "refine" for step in steps)
    return trace_page.template("rollouts.html").render(
        boughs=boughs,
        steps=steps,
        card=_card(steps, boughs, name),
        divided=_divided(config, refined),
        picks=any(step.picked for step in steps),
        waits=bool(steps[-1].picked),
        form=_form(config.reward),
        balanced=refined and config.tree.balance,
        pixelated=_small(steps),
    )


def index(found: Sequence[TreeCard]) -> str:
    """The page that lists pages."""
    return trace_page.template("rollouts_index.html").render(cards=found, pixelated=True)


def cards(folder: Path) -> list[TreeCard]:
    """The cards of the pages in a folder, in the order of their steps."""
    told = [_CARD.search((folder / f"{number:06d}.html").read_text(encoding="utf-8")) for number in _numbers(folder)]
    records = [json.loads(found.group(1)) for found in told if found is not None]
    return [TreeCard(**{**record, "pictures": tuple(record["pictures"])}) for record in records]


def grown(steps: Sequence[Step], config: TrainConfig) -> list[TreeNode]:
    """Groups of the first step, each with those that grow from its pictures; a group whose parent is not among them
    stands on its own."""
    known = {id(node) for step in steps for group in step.groups for node in group.siblings}
    entries = [(number, step, group) for number, (step, group) in enumerate(_pairs(steps))]
    below: dict[int, list[tuple[int, Step, Group]]] = {}
    tops = []
    for entry in entries:
        parent = id(entry[2].parent)
        if parent in known:
            below.setdefault(parent, []).append(entry)
        else:
            tops.append(entry)
    return [_bough(entry, below, config, None) for entry in tops]


def _pairs(steps: Sequence[Step]) -> list[tuple[Step, Group]]:
    return [(step, group) for step in steps for group in step.groups]


def _bough(
    entry: tuple[int, Step, Group], below: dict[int, list[tuple[int, Step, Group]]], config: TrainConfig, above
) -> TreeNode:
    number, step, group = entry
    parent, nodes = group.parent, group.siblings
    picked = {id(node) for node in step.picked}
    told = _gains(group, config.refine if step.stage == "refine" else config.reason)
    branches: dict[tuple[TextView, ...], list[TurnView]] = {}
    children: list[TreeNode] = []
    for place, (node, (for_text, for_picture)) in enumerate(zip(nodes, told, strict=True), start=1):
        turns = node.trace.turns[len(parent.trace.turns) :]
        own = [_bough(one, below, config, place) for one in below.get(id(node), [])]
        children += own
        leaf = _leaf(place, node, turns, for_text, for_picture, id(node) in picked, own[0].number if own else None)
        branches.setdefault(tuple(_saying(turn) for turn in turns), []).append(leaf)
    scores = [node.verdict.score for node in nodes if node.verdict is not None]
    return TreeNode(
        number=number,
        step=step.index + 1,
        stage=step.stage,
        prompt=parent.trace.prompt.text,
        picture=None if parent.trace.image is None else _uri(parent.trace.image),
        verdict=parent.verdict,
        right=parent.verdict is not None and is_right(parent.verdict),
        branches=tuple(StageView(sayings, tuple(leaves)) for sayings, leaves in branches.items()),
        mean=float(np.mean(scores)) if scores else None,
        missing=group.missing,
        cause=group.cause,
        above=above,
        below=tuple(children),
    )


def _leaf(place: int, node: Node, turns: Sequence[Turn], for_text, for_picture, picked: bool, child) -> TurnView:
    assert node.verdict is not None and node.reward is not None
    return TurnView(
        number=place,
        pictures=tuple(_uri(turn.drew.image) for turn in turns if turn.drew is not None),
        verdict=node.verdict,
        right=is_right(node.verdict),
        reward_text=node.reward.text,
        reward_picture=node.reward.picture if node.reward.drawn else None,
        formed=node.reward.formed,
        gain_text=for_text,
        gain_picture=for_picture if node.reward.drawn else None,
        picked=picked,
        child=child,
    )


def _saying(turn: Turn) -> TextView:
    said = "" if turn.said is None else parse_thought(turn.said.text)
    return TextView(said, turn.instruction, turn.drew is None)


def _gains(group: Group, stage: StageConfig) -> list[tuple[float | None, float | None]]:
    """Text and picture advantages of each sibling, None where that is not learnt from."""
    if len(group.siblings) < 2:
        return [(None, None)] * len(group.siblings)
    found = group_advantages(group, stage)
    text = found.text.tolist() if stage.trains_text else [None] * len(group.siblings)
    picture = found.picture.tolist() if stage.picture.train else [None] * len(group.siblings)
    return list(zip(text, picture, strict=True))


def _card(steps: Sequence[Step], boughs: Sequence[TreeNode], name: str) -> dict[str, Any]:
    """The card of a page, as JSON values; of each group it shows the first sibling's picture, good or bad."""
    first, last = steps[0], steps[-1]
    changes = [
        node.verdict.score - group.parent.verdict.score
        for step in steps
        for group in step.groups
        for node in group.siblings
        if node.verdict is not None and group.parent.verdict is not None
    ]
    pictures = [uri for bough in boughs[:SHOWN] for leaf in bough.leaves[:1] for uri in leaf.pictures[-1:]]
    return asdict(
        TreeCard(
            page=name,
            step=first.index + 1,
            last=last.index + 1,
            stage=first.stage,
            groups=len(boughs),
            v=first.metrics.get("v"),
            right=first.metrics.get("right"),
            after=last.metrics.get("v") if len(steps) > 1 else None,
            gain=float(np.mean(changes)) if changes else None,
            pictures=tuple(pictures),
        )
    )


def _divided(config: TrainConfig, refined: bool) -> list[str]:
    """The parts whose advantages are divided by their spread, in words."""
    stages = {"Reason": config.reason} | ({"Refine": config.refine} if refined else {})
    parts = {f"{name}'s {kind}": getattr(stage, kind) for name, stage in stages.items() for kind in ("text", "picture")}
    return [name for name, part in parts.items() if part.normalize_advantages]


def _form(rule: RewardRule) -> str:
    """What a text earns for its form, in words."""
    if rule.variant == "release":
        return f"A text earns {rule.format_weight:g} beside what its picture gains, and nothing without its form (¶)."
    return f"A text earns {rule.format_weight:g} more for its form; ¶ marks one without."


def _numbers(folder: Path) -> list[int]:
    """The first steps of the pages in a folder, as they are numbered in the terminal."""
    return sorted(int(path.stem) for path in Path(folder).glob("*.html") if path.stem.isdigit())


def _small(steps: Sequence[Step]) -> bool:
    images = [node.trace.image for step in steps for group in step.groups for node in group.siblings]
    return any(image is not None and max(image.shape[:2]) < trace_page.SMALL for image in images)


def _uri(image: np.ndarray) -> str:
    if max(image.shape[:2]) > SIDE:
        small = Image.fromarray(image)
        small.thumbnail((SIDE, SIDE))
        image = np.asarray(small)
    return trace_page.data_uri(image)
