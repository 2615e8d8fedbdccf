"""A policy of the sticker world without weights, for tests: it draws with mistakes, sees exactly, and mends one a turn.

It has Bagel's verbs. `python tests/scripted.py draw ...` is the command line with this policy in place of a checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from triptych.data.annotations import instruction_text, parse_instruction, parse_plan, plan_text, reflection_text
from triptych.data.edits import apply, fix, spoil
from triptych.data.language import parse_prompt
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.model.config import SKETCH, BagelConfig
from triptych.model.templates import parse_thought, wrap_answer, wrap_plan, wrap_reflection
from triptych.rewards.sticker_judge import WorldJudge
from triptych.trace import Completion, Drawing

STEPS = 4  # ticks per picture


@dataclass
class ScriptedPolicy:
    """`mistakes` in each first picture, `pace` seconds per flow step; `blind` reflections never stop."""

    mistakes: int = 2
    pace: float = 0.0
    blind: bool = False
    config: BagelConfig = field(default_factory=lambda: replace(SKETCH, name="scripted"))
    drawn: dict[bytes, Scene] = field(default_factory=dict)

    def plan(
        self, prompts: Sequence[str], sampling: Any, seeds: Sequence[int], on_text: Any = None
    ) -> list[Completion]:
        scenes = [Scene.sample(parse_prompt(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self._say([wrap_plan(plan_text(scene)) for scene in scenes], on_text)

    def draw(
        self,
        prompts: Sequence[str],
        plans: Sequence[Completion | None],
        sampling: Any,
        seeds: Sequence[int],
        sde_seeds: Any = None,
        on_step: Any = None,
    ) -> list[Drawing]:
        drawings = []
        for prompt, plan, seed in zip(prompts, plans, seeds, strict=True):
            spec = parse_prompt(prompt)
            scene = Scene.sample(spec, seed) if plan is None else parse_plan(parse_thought(plan.text))
            assert scene is not None
            drawings.append(self._paint(spoil(scene, spec, seed, self.mistakes) if self.mistakes else scene))
        self._tick(on_step)
        return drawings

    def reflect(
        self,
        prompts: Sequence[str],
        images: Sequence[np.ndarray],
        sampling: Any,
        seeds: Sequence[int],
        on_text: Any = None,
    ) -> list[Completion]:
        texts = []
        for prompt, image, seed in zip(prompts, images, seeds, strict=True):
            spec, scene = parse_prompt(prompt), self._see(image)
            edit = fix(scene, spec, seed)
            order = instruction_text(edit) if edit else "move nothing at all" if self.blind else None
            texts.append(wrap_reflection(reflection_text(scene, spec, edit), order))
        return self._say(texts, on_text)

    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        sampling: Any,
        seeds: Sequence[int],
        sde_seeds: Any = None,
        on_step: Any = None,
    ) -> list[Drawing]:
        drawings = []
        for image, instruction, seed in zip(images, instructions, seeds, strict=True):
            drawings.append(self._paint(_edited(self._see(image), instruction, seed)))
        self._tick(on_step)
        return drawings

    def answer(
        self,
        images: Sequence[np.ndarray],
        questions: Sequence[str],
        sampling: Any,
        seeds: Sequence[int],
        on_text: Any = None,
    ) -> list[Completion]:
        """It thinks of what it sees, and says that, whatever the question."""
        seen = [plan_text(self._see(image)) for image in images]
        return self._say([wrap_answer(text, text) for text in seen], on_text)

    def _paint(self, scene: Scene) -> Drawing:
        image = render_array(scene)
        self.drawn[image.tobytes()] = scene
        return Drawing(image)

    def _see(self, image: np.ndarray) -> Scene:
        known = self.drawn.get(image.tobytes())
        return known if known is not None else WorldJudge().scenes([image])[0]

    def _tick(self, on_step: Any) -> None:
        for step in range(STEPS):
            time.sleep(self.pace)
            if on_step is not None:
                on_step(step + 1, STEPS)

    def _say(self, texts: Sequence[str], on_text: Any) -> list[Completion]:
        for row, text in enumerate(texts):
            for end in range(8, len(text) + 8, 8):
                if on_text is not None:
                    on_text(row, text[:end])
        return [Completion(text) for text in texts]


def _edited(scene: Scene, instruction: str, seed: int) -> Scene:
    """An order that makes no sense in this picture changes nothing."""
    edit = parse_instruction(instruction)
    try:
        return scene if edit is None else apply(scene, edit, seed)
    except ValueError:
        return scene


def open_scripted(*arguments: Any) -> ScriptedPolicy:
    """Stands in for `weights.load`; the name "scripted-slow" takes half a second per flow step."""
    return ScriptedPolicy(pace=0.5 if arguments and str(arguments[0]) == "scripted-slow" else 0.0)


if __name__ == "__main__":
    from triptych.apps.cli import main

    sys.exit(main(open_model=open_scripted))  # pyright: ignore[reportArgumentType]
