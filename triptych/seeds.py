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

# Between the items of neighboring seeds, so that two runs or two questions share none.
STRIDE = {
    "samples": 1_000_003,  # of a stage of SFT: a prime above the number of samples that one stage sees
    "noise": 7919,  # of a stage of SFT: a prime above the number of its updates
    "probes": 10_007,  # a prime above the number of prompts that the probes ask
    "questions": 2**48,  # about one picture, far beyond the seeds of any run
}

SFT_MIX_SEED = 1_000  # added to the seed of an RL run: its SFT mix repeats no sample of the SFT that came before

# What a seed is used for in the world of stickers: one seed gives independent draws for each.
USES = {"scene": 1, "spec": 2, "apply": 3, "fix": 4, "random_edit": 5, "spoil": 6}


def named_rng(*words: str | int) -> Random:
    """Random numbers of their own for one choice, such as ("hard", seed): no other draw of that seed moves with it.

    Python hashes text with SHA-512, so that names and numbers that differ in anything give independent streams.
    """
    return Random(" ".join(map(str, words)))


def sticker_rng(use: str, seed: int) -> Random:
    """The random numbers of one use of a seed in the world of stickers."""
    return Random(8 * seed + USES[use])
