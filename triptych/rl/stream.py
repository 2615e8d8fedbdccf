"""The prompts of training: an endless stream of sticker specs, a function of a seed and a place alone.

No benchmark's spec is in it (`scene.random_spec`), nor any of a held-out set that is given to be avoided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from triptych.data.language import prompt_text, wording_of
from triptych.data.scene import random_spec, spec_key
from triptych.errors import ConfigError
from triptych.trace import Prompt, Spec

Prompts = Callable[[int], Prompt]  # place in the stream to prompt

FIRST = 3_000_000_000_000  # seeds of specs from here on: far from those of lessons and of rehearsals
PATIENCE = 10_000  # specs that are passed over before a tag is called unknown


@dataclass(frozen=True)
class StickerPrompts:
    """Prompts of the world of stickers: `StickerPrompts(seed)(place)`. With `tags`, of these kinds only."""

    seed: int
    tags: tuple[str, ...] = ()
    avoided: frozenset = field(default=frozenset(), repr=False)

    @staticmethod
    def without(seed: int, held_out: Iterable[Spec], tags: tuple[str, ...] = ()) -> StickerPrompts:
        """A stream in which none of these specs comes, in whatever order of its items."""
        return StickerPrompts(seed, tags, frozenset(spec_key(spec.include) for spec in held_out))

    def __call__(self, place: int) -> Prompt:
        """The prompt at that place. Raises ConfigError if no spec has one of the tags."""
        first = FIRST + (self.seed * 1_000_000 + place) * PATIENCE
        for attempt in range(PATIENCE):
            spec = random_spec(first + attempt)
            if (not self.tags or spec.tag in self.tags) and spec_key(spec.include) not in self.avoided:
                return Prompt(prompt_text(spec, wording_of(spec)), spec, source="training")
        raise ConfigError(f"tags={', '.join(self.tags)}: no such kind of prompt; expected tags of GenEval or GenEval++")
