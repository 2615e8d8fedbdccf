"""Seeds: every random number of triptych follows from a seed by `derive`, or from a place in an endless stream.

Item `i` of an endless stream has the seed `START[name] + i`. Streams start far apart, so that no item of one is an item
of another: the dev set is in no training data, and what a stage of SFT has seen is in no other stage.
"""

from __future__ import annotations

from random import Random

import numpy as np


def derive(*numbers: int, bits: int = 63) -> int:
    """One seed of `bits` bits (63, or 31) from several numbers of 0 or more; other numbers give independent seeds."""
    words = np.random.SeedSequence(numbers).generate_state(1, np.uint64 if bits == 63 else np.uint32)
    return int(words[0]) >> 1  # signed 64-bit and 32-bit generators take it


START = {
    "joint": 500_000_000,  # scenes of SFT's joint stage
    "sticker_detector": 1_000_000,  # pictures that teach the judge's detector; tests and reports start at 0
    "dev_set": 1_000_000_000,  # specs on which settings are chosen (`suites.dev_set`)
    "self_generated": 2_000_000_000,  # specs that the model draws in its own SFT stage
    "decoder": 3_000_000_000,  # scenes of SFT's decoder stage
    "bench": 3_000_000_000,  # specs that `triptych bench` draws
    "connector": 4_000_000_000,  # scenes of SFT's connector stage
    "training_prompts": 3_000_000_000_000,  # specs that RL rewards (`specs.StickerPrompts`)
    "hard_prompts": 10**15,  # specs of hard SFT samples; far up, since each sample searches 10,000 of them
}

# What a seed is used for in the world of stickers: one seed gives independent draws for each.
USES = {"scene": 1, "spec": 2, "apply": 3, "fix": 4, "random_edit": 5, "spoil": 6}


def sticker_rng(use: str, seed: int) -> Random:
    """The random numbers of one use of a seed in the world of stickers."""
    return Random(8 * seed + USES[use])
