"""Lessons beside the rewards: supervised pages in every update, a share of them on pictures that were just drawn.

They hold the weights that all beats share while rewards pull at one of them, and teach what rewards alone hardly can: a
finder tells what an own picture shows, so what should have been said of it and what its edit should have led to are
known (`own.own_lessons`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych.rl.config import SFTMix
from triptych.rl.tree import Group
from triptych.sft.joint import SFTBatch, sft_batch
from triptych.sft.self_generated import Find, self_generated_samples


def sft_rows(replay: SFTMix, groups: Sequence[Group], seed: int, step: int, find: Find | None) -> SFTBatch | None:
    """The lessons of a step, a function of its rollout and of (seed, step); None where nothing is replayed.

    Without a finder none of them is on the model's own pictures.
    """
    if not replay.rate:
        return None
    traces = [node.trace for group in groups for node in group.siblings]
    drawn = [
        (trace.prompt.spec, trace.image)
        for trace in traces
        if trace.prompt.spec is not None and trace.image is not None and not trace.finished
    ]
    drawn = drawn[:: max(1, len(drawn) // max(replay.own, 1))][: replay.own]
    own = []
    if find is not None and drawn:
        specs, pictures = [spec for spec, _ in drawn], np.stack([image for _, image in drawn])
        own = self_generated_samples(specs, pictures, find, seed + step, replay.lessons.mix)
    return sft_batch(replay.lessons, seed, step, own)
