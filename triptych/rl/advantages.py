"""Groups to rows of the loss: each text and each image's SDE steps, with the advantage of its sibling.

Rewards are compared within a group (`losses.advantages`); a row without a picture is left out of the pictures' mean.
Rows from which nothing can be learnt, no advantage and no KL, are counted but not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.model.logprobs import ImageSample, TextSample
from triptych.rewards.rewards import is_right
from triptych.rl.config import PictureConfig, StageConfig
from triptych.rl.losses import advantages, has_variance
from triptych.rl.tree import Group, Node
from triptych.trace import Trace


@dataclass(frozen=True, eq=False)
class LossRows:
    """Rows whose log-probabilities are needed.

    `tokens` and `sde_steps` count those of all rows, also of the ones left out here for having nothing to learn: losses
    are divided by them, so that leaving a row out changes no gradient.
    """

    text_samples: tuple[TextSample, ...]
    text_advantages: Float[Tensor, "text"]
    image_samples: tuple[ImageSample, ...]
    image_advantages: Float[Tensor, "image"]
    tokens: int
    sde_steps: int

    @property
    def empty(self) -> bool:
        return not self.text_samples and not self.image_samples


@dataclass(frozen=True)
class GroupAdvantages:
    """The advantages of one group, and whether its rewards differ at all."""

    text: Float[Tensor, "sibling"]
    picture: Float[Tensor, "sibling"]
    text_varies: bool
    picture_varies: bool

    @property
    def dead(self) -> bool:
        """Whether there is nothing to learn from the group."""
        return not bool(self.text.any()) and not bool(self.picture.any())


def text_sample(trace: Trace, turn: int) -> TextSample | None:
    """What a turn said, with what it had read; None for a picture without a plan."""
    said = trace.turns[turn].said
    return None if said is None else TextSample(trace.prompt.text, _image_before(trace, turn), said)


def image_sample(trace: Trace, turn: int) -> ImageSample | None:
    """The SDE steps of a turn, with the text and image that they were drawn from; None where a turn has no SDE step."""
    newest = trace.turns[turn]
    if newest.drew is None or newest.drew.sde_steps is None:
        return None
    image = _image_before(trace, turn)
    if image is None:
        return ImageSample(trace.prompt.text, newest.said, None, newest.drew.sde_steps)
    return ImageSample(newest.instruction or "", None, image, newest.drew.sde_steps)


def group_advantages(group: Group, stage: StageConfig) -> GroupAdvantages:
    """Text and picture advantages of a group, 0 where that part does not learn."""
    rewards = [node.reward for node in group.siblings if node.reward is not None]
    text = torch.tensor([reward.text for reward in rewards], dtype=torch.float32)
    picture = torch.tensor([reward.picture for reward in rewards], dtype=torch.float32)
    drawn = torch.tensor([reward.has_picture for reward in rewards], dtype=torch.bool)
    nothing = torch.zeros_like(text)
    return GroupAdvantages(
        advantages(text, normalize=stage.text.normalize_advantages) if stage.trains_text else nothing,
        _picture_advantages(group, picture, drawn, stage.picture) if stage.picture.train else nothing,
        has_variance(text),
        has_variance(picture, drawn),
    )


def loss_rows(
    groups: Sequence[Group],
    by_group: Sequence[GroupAdvantages],
    stage: StageConfig,
    turns: slice | None = None,
    balance: bool = False,
) -> LossRows:
    """The rows of a stage from `groups`, whose advantages are `by_group`, in the same order.

    They are of the newest turn of each sibling, or of the given `turns` of whole chains.
    """
    shares = balanced(groups, by_group) if balance else [1.0] * len(groups)
    texts: list[tuple[TextSample, float]] = []
    pictures: list[tuple[ImageSample, float]] = []
    for group, advantage, share in zip(groups, by_group, shares, strict=True):
        for node, for_text, for_picture in zip(
            group.siblings, advantage.text.tolist(), advantage.picture.tolist(), strict=True
        ):
            for turn in _turns(node, turns):
                said, drew = text_sample(node.trace, turn), image_sample(node.trace, turn)
                if said is not None and stage.trains_text:
                    texts.append((said, for_text * share))
                if drew is not None and stage.picture.train:
                    pictures.append((drew, for_picture))
    tokens = sum(len(said.completion.tokens) for said, _ in texts)
    sde_steps = sum(len(drew.sde_steps.time) for drew, _ in pictures)
    texts = [row for row in texts if row[1] or stage.text.kl_coef]
    pictures = [row for row in pictures if row[1] or stage.picture.kl_coef]
    return LossRows(
        tuple(said for said, _ in texts),
        torch.tensor([advantage for _, advantage in texts]),
        tuple(drew for drew, _ in pictures),
        torch.tensor([advantage for _, advantage in pictures]),
        tokens,
        sde_steps,
    )


def balanced(groups: Sequence[Group], by_group: Sequence[GroupAdvantages]) -> list[float]:
    """Factors under which right parents and wrong ones pull equally hard on the text; 1 where there is but one kind.

    A text pulls by its advantage in each of its tokens, and those that ask for an edit are longer than those that stop.
    """
    right = [group.parent.verdict is not None and is_right(group.parent.verdict) for group in groups]
    pulls = [
        sum(
            abs(advantage) * _num_tokens(node)
            for advantage, node in zip(advantages_of_group.text.tolist(), group.siblings, strict=True)
        )
        for advantages_of_group, group in zip(by_group, groups, strict=True)
    ]
    sums = [sum(pull for pull, kind in zip(pulls, right, strict=True) if kind is side) for side in (False, True)]
    if not all(sums):
        return [1.0] * len(groups)
    return [sum(sums) / 2 / sums[kind] for kind in right]


def _picture_advantages(group: Group, rewards: Tensor, drawn: Tensor, part: PictureConfig) -> Tensor:
    """Advantages of pictures; with the baseline "same-text", among those drawn from the same text."""
    if part.baseline == "group":
        return advantages(rewards, drawn, part.normalize_advantages)
    sources = [_drawn_from(node) for node in group.siblings]
    total = torch.zeros_like(rewards)
    for key in set(sources):
        alike = torch.tensor([other == key for other in sources]) & drawn
        total += advantages(rewards, alike, part.normalize_advantages)
    return total


def _drawn_from(node: Node) -> tuple[object, ...]:
    """What the newest picture of a node was drawn from, beside its parent."""
    turn = node.trace.turns[-1]
    if turn.instruction is not None or turn.said is None:
        return (turn.instruction,)
    return tuple(turn.said.tokens.tolist()) or (turn.said.text,)


def _num_tokens(node: Node) -> int:
    """Tokens of the newest text of a node."""
    said = node.trace.turns[-1].said
    return 0 if said is None else len(said.tokens)


def _turns(node: Node, turns: slice | None) -> range:
    every = range(len(node.trace.turns))
    return every[-1:] if turns is None else every[turns]


def _image_before(trace: Trace, turn: int):
    return replace(trace, turns=trace.turns[:turn]).image
