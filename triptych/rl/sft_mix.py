"""The SFT mix: a supervised batch after the rewards of every update, part of it on pictures of this very rollout.

It holds the weights that all beats share while rewards pull at one of them, and teaches what rewards alone hardly can:
a detector reads what a self-generated picture shows, so the right reflection on it and the result of its edit are known
(`sft.self_generated`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych.rl.config import SFTMix
from triptych.rl.tree import Group
from triptych.sft.joint import SFTBatch, sft_batch
from triptych.sft.self_generated import DetectScenes, self_generated_samples


def sft_rows(
    mix: SFTMix, groups: Sequence[Group], seed: int, step: int, detect: DetectScenes | None
) -> SFTBatch | None:
    """The SFT batch of a step, a function of its rollout and of (seed, step); None without a mix.

    Without a detector no sample is on a self-generated picture.
    """
    if not mix.lr:
        return None
    drawn = [
        (trace.prompt.spec, trace.image)
        for trace in (node.trace for group in groups for node in group.siblings)
        if trace.prompt.spec is not None and trace.image is not None and not trace.finished
    ]
    most = mix.max_self_generated
    drawn = drawn[:: max(1, len(drawn) // max(most, 1))][:most]  # evenly from all groups
    samples = []
    if detect is not None and drawn:
        specs, pictures = [spec for spec, _ in drawn], np.stack([image for _, image in drawn])
        samples = self_generated_samples(specs, pictures, detect, seed + step, mix.data.mix)
    return sft_batch(mix.data, seed, step, samples, mix.self_generated_share)
