"""Specs without end: the sampler of sticker specs, their keys, and the stream of training prompts made from them.

Every spec is a function of a seed alone. No spec of a benchmark comes out of `random_spec`, nor any of a held-out set
that is given to `StickerPrompts.without`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from triptych.data.language import prompt_text, wording_of
from triptych.data.layout import RELATIONS
from triptych.data.prompts import benchmark
from triptych.data.stickers import CLASSES, COLORS
from triptych.errors import ConfigError
from triptych.seeds import START, sticker_rng
from triptych.trace import Item, Prompt, Spec

Prompts = Callable[[int], Prompt]  # index in the stream to prompt

SEEDS_PER_PROMPT = 10_000  # specs that are passed over before a tag is called unknown
SEEDS_PER_STREAM = 1_000_000 * SEEDS_PER_PROMPT  # a million prompts before one stream reaches the next

_COLOR_NAMES = tuple(COLORS)
# Weights of the tags: mostly GenEval++'s compositions, the rest GenEval's.
_TAG_WEIGHTS = {
    "color_attr": 3.0,
    "spatial_count_attr": 2.5,
    "color_spatial_attr": 1.5,
    "color_count_attr": 3.0,
    "multi_object_count_attr": 3.0,
    "size_spatial_attr": 1.5,
    "counting": 2.5,
    "single_object": 0.5,
    "two_object": 1.0,
    "colors": 0.5,
    "position": 1.5,
}
# Weights of the counts of two counted items, about as often as in GenEval++ or a little wider; of three; and of one.
_PAIR_COUNTS = {(1, 1): 4, (1, 2): 4, (1, 3): 6, (2, 2): 6, (2, 3): 8, (3, 3): 5, (1, 4): 1, (2, 4): 1}
_TRIPLE_COUNTS = {(1, 1, 1): 1, (1, 1, 2): 2, (1, 1, 3): 2, (1, 2, 2): 3, (1, 2, 3): 3}
_TRIPLE_COUNTS |= {(1, 3, 3): 2, (2, 2, 2): 2, (2, 2, 3): 4, (2, 3, 3): 2, (3, 3, 3): 1}
_SINGLE_COUNTS = {1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 4, 8: 2, 9: 2}


def random_spec(seed: int) -> Spec:
    """Item `seed` of an endless set of specs over all tags of GenEval and GenEval++, 1 to 9 stickers in all.

    No spec of either benchmark comes out, in whatever order of its items, except of the tag single_object: there are
    only 80 of those.
    """
    rng = sticker_rng("spec", seed)  # own stream: a spec and a scene of one seed draw apart
    while True:
        tag = _weighted(rng, _TAG_WEIGHTS)
        include = _random_items(tag, rng)
        if tag == "single_object" or spec_key(include) not in _held_out():
            break
    # GenEval's counting prompts exclude one object more; its rules count at least, not exactly.
    exclude = (Item(include[0].name, include[0].count + 1),) if tag == "counting" else ()
    return Spec(tag, include, exclude)


def spec_key(include: Sequence[Item]) -> frozenset:
    """What a spec demands, whatever the order of its items and the side from which a relation is stated."""
    facts: list[tuple] = []
    for item in include:
        facts.append((item.name, item.count, item.color, item.region, item.size))
        if item.position is not None:
            relation, other = item.position
            pair = (item.name, include[other].name)
            first, second = pair if relation in ("right of", "below") else pair[::-1]
            facts.append(("across" if relation in ("left of", "right of") else "down", first, second))
    # With its number of times: a set alone would lose the second of two equal items.
    return frozenset((fact, facts.count(fact)) for fact in facts)


@dataclass(frozen=True)
class StickerPrompts:
    """Prompts of the world of stickers: `StickerPrompts(seed)(index)`. With `tags`, of these kinds only."""

    seed: int
    tags: tuple[str, ...] = ()
    held_out: frozenset = field(default=frozenset(), repr=False)  # keys of specs that do not come

    @staticmethod
    def without(seed: int, held_out: Iterable[Spec], tags: tuple[str, ...] = ()) -> StickerPrompts:
        """A stream in which none of these specs comes, in whatever order of its items."""
        return StickerPrompts(seed, tags, frozenset(spec_key(spec.include) for spec in held_out))

    def __call__(self, index: int) -> Prompt:
        """The prompt at that index. Raises ConfigError if no spec has one of the tags."""
        first = START["training_prompts"] + self.seed * SEEDS_PER_STREAM + index * SEEDS_PER_PROMPT
        for spec in map(random_spec, range(first, first + SEEDS_PER_PROMPT)):
            if (not self.tags or spec.tag in self.tags) and spec_key(spec.include) not in self.held_out:
                return Prompt(prompt_text(spec, wording_of(spec)), spec, source="training")
        raise ConfigError(f"tags={', '.join(self.tags)}: no such kind of prompt; expected tags of GenEval or GenEval++")


@lru_cache(maxsize=1)
def _held_out() -> frozenset[frozenset]:
    prompts = [*benchmark("geneval"), *benchmark("genevalpp")]
    return frozenset(spec_key(prompt.spec.include) for prompt in prompts if prompt.spec is not None)


def _random_items(tag: str, rng: Random) -> tuple[Item, ...]:
    """Items of a tag, of different classes."""
    counts: tuple[int, ...] = (1, 1)
    if tag in ("single_object", "colors"):
        counts = (1,)
    elif tag == "counting":
        counts = (_weighted(rng, _SINGLE_COUNTS),)
    elif tag == "color_attr":
        counts = (1,) * _weighted(rng, {2: 2, 3: 5, 4: 3})
    elif tag == "multi_object_count_attr":
        counts = _weighted(rng, _PAIR_COUNTS if rng.random() < 0.45 else _TRIPLE_COUNTS)
    elif tag in ("spatial_count_attr", "color_count_attr"):
        counts = _weighted(rng, _PAIR_COUNTS)
        while tag == "spatial_count_attr" and max(counts) > 3:
            counts = _weighted(rng, _PAIR_COUNTS)  # one side of the canvas has three cells
    counts = tuple(rng.sample(counts, len(counts)))
    names = rng.sample(CLASSES, len(counts))
    regions, sizes, position = [None] * len(counts), [None] * len(counts), None
    if "spatial" in tag:
        regions = rng.choice((["left", "right"], ["above", "below"]))
    if tag == "size_spatial_attr":
        sizes = ["larger", "smaller"] if rng.random() < 0.7 else ["smaller", "larger"]  # benchmarks: larger comes first
    if tag == "position":
        position = (rng.choice(RELATIONS), 0)
    has_color = "color" in tag
    return tuple(
        Item(
            name=name,
            count=counts[index],
            color=rng.choice(_COLOR_NAMES) if has_color else None,
            region=regions[index],
            size=sizes[index],
            position=position if index else None,
        )
        for index, name in enumerate(names)
    )


def _weighted(rng: Random, weights: Mapping[Any, float]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
