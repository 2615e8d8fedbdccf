"""Bagel: one model that plans, draws, reflects, edits and answers (arXiv 2505.14683; the loop is R3, arXiv 2602.15772).

Every verb takes lists and returns lists; row i depends on row i alone and on its own seed. The blocks of a row
(`Network.*_blocks`) are read into a `KVCache`, and then continued as text or as an image. Rows of equal inputs and seed
are computed once; where images differ in their SDE steps alone, up to the first of these.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from triptych.errors import NotFiniteError
from triptych.model import logprobs
from triptych.model.config import Sampling
from triptych.model.logprobs import ImageSample, SDELogprobs, TextLogprobs, TextSample
from triptych.model.network import Encoded, Network
from triptych.model.sampler import (
    OnStep,
    OnText,
    draw_branches,
    edit_branches,
    initial_noise,
    sample_flow,
    sample_text,
)
from triptych.trace import Completion, Drawing


class Bagel(Network):
    """The network with its five verbs, and the log-probabilities of what they sampled."""

    @torch.no_grad()
    def plan(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], on_text: OnText | None = None
    ) -> list[Completion]:
        """Reason: say what the image will hold, at the temperature of plans."""
        # Equal prompts with equal seeds are one row: several images of one text in RL (`images_per_text`).
        sampling = sampling.planning
        rows, places = distinct(list(zip(prompts, seeds, strict=True)))
        texts, at = distinct([prompts[row] for row in rows])  # siblings read their prompt once
        cache = self.prefill([self.plan_blocks(prompts[rows[text]]) for text in texts]).select(at)
        on_row = _renumbered(on_text, rows)
        with self._naming_rows(_outputs(places)):
            plans = sample_text(self, cache, sampling, sampling.max_plan, [seeds[row] for row in rows], on_row)
        return [plans[place] for place in places]

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        plans: Sequence[Completion | None],
        sampling: Sampling,
        seeds: Sequence[int],
        sde_seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Drawing]:
        """Draw each prompt; a plan is read token for token as it was sampled. `seeds` are of the initial noise."""
        # Siblings of a tree share prompt, plan and noise, and differ in their SDE steps alone: most work is shared.
        # Tokens, and not text: two token sequences of one text are two contexts.
        keys = [None if plan is None else tuple(plan.tokens.tolist()) for plan in plans]
        rows, places = distinct(list(zip(prompts, keys, seeds, strict=True)))
        grid = self.config.token_grid  # of a new image; an edit keeps the size of its input
        with self._naming_rows([[row] for row in range(len(places))]):
            tokens, sde_steps = sample_flow(
                self,
                draw_branches(self, [prompts[row] for row in rows], [plans[row] for row in rows], sampling),
                grid,
                initial_noise(self, [seeds[row] for row in rows], grid),
                sampling.draw_points,
                sampling.draw_renorm,
                sampling.eta_draw,
                sampling,
                sde_seeds,
                on_step,
                places,  # distinct rows are computed, and each output row is a copy of one until its SDE step
            )
            return [Drawing(*pair) for pair in zip(self.decode_images(tokens, grid), sde_steps, strict=True)]

    @torch.no_grad()
    def reflect(
        self,
        prompts: Sequence[str],
        images: Sequence[np.ndarray],
        sampling: Sampling,
        seeds: Sequence[int],
        on_text: OnText | None = None,
    ) -> list[Completion]:
        """Reflect: look at each image beside its prompt; say what to change, or that nothing is to be changed."""
        # By identity: siblings of a tree hold the very same array.
        rows, places = distinct(list(zip(prompts, map(id, images), seeds, strict=True)))
        # The newest image and the prompt alone: the chain is Markov (R3).
        pairs, at = distinct([(prompts[row], id(images[row])) for row in rows])  # siblings look at their image once
        blocks = [self.reflect_blocks(prompts[rows[pair]], images[rows[pair]]) for pair in pairs]
        cache = self.prefill(blocks).select(at)
        on_row, own_seeds = _renumbered(on_text, rows), [seeds[row] for row in rows]
        with self._naming_rows(_outputs(places), images):
            reflections = sample_text(self, cache, sampling, sampling.max_reflection, own_seeds, on_row)
        return [reflections[place] for place in places]

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        sde_seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Drawing]:
        """Refine: carry each instruction out on its image. The prompt, the plan and the reflection are not seen."""
        rows, places = distinct(list(zip(map(id, images), instructions, seeds, strict=True)))
        # Each image is encoded once, and read by all branches that have it.
        encoded: Encoded = {}
        blocks = [self.edit_blocks(images[row], instructions[row], encoded) for row in rows]
        drawings: dict[int, Drawing] = {}
        for grid in dict.fromkeys(latent.grid for latent, _, _ in blocks):  # one batch for each size of image
            # Three numberings: output row -> place among the distinct rows -> index in this batch of one size.
            batch = [place for place, (latent, _, _) in enumerate(blocks) if latent.grid == grid]
            outputs = [row for row, place in enumerate(places) if place in batch]
            own = [blocks[each][1] for each in batch], [blocks[each][2] for each in batch]
            with self._naming_rows([[row] for row in outputs], images):
                tokens, sde_steps = sample_flow(
                    self,
                    edit_branches(self, *own, sampling),
                    grid,
                    initial_noise(self, [seeds[rows[place]] for place in batch], grid),
                    sampling.edit_points,
                    sampling.edit_renorm,
                    sampling.eta_edit,
                    sampling,
                    None if sde_seeds is None else [sde_seeds[row] for row in outputs],
                    on_step,
                    [batch.index(places[row]) for row in outputs],
                )
                for row, image, steps in zip(outputs, self.decode_images(tokens, grid), sde_steps, strict=True):
                    drawings[row] = Drawing(image, steps)
        return [drawings[row] for row in range(len(images))]

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[np.ndarray],
        questions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        on_text: OnText | None = None,
    ) -> list[Completion]:
        """Answer a question about each image."""
        cache = self.prefill([self.answer_blocks(*row) for row in zip(images, questions, strict=True)])
        with self._naming_rows([[row] for row in range(len(images))], images):
            return sample_text(self, cache, sampling, sampling.max_answer, seeds, on_text)

    def text_logprobs(self, samples: Sequence[TextSample], sampling: Sampling) -> TextLogprobs:
        """Of texts that `plan` or `reflect` sampled with this `sampling`, with gradient."""
        return logprobs.text_logprobs(self, samples, sampling)

    def sde_logprobs(self, samples: Sequence[ImageSample], sampling: Sampling) -> list[SDELogprobs]:
        """Of SDE steps that `draw` or `edit` took with this `sampling`, with gradient."""
        return logprobs.sde_logprobs(self, samples, sampling)

    @contextmanager
    def _naming_rows(self, outputs: Sequence[Sequence[int]], images: Sequence[np.ndarray] = ()) -> Iterator[None]:
        """NotFiniteError by the rows of a verb's result, row i of the batch being `outputs[i]`, with its source.

        What the check behind a verb sees is its last stage. An encoder that fed it is looked at here, and weights,
        since a look at each in every call would be a wait for the GPU.
        """
        try:
            yield
        except NotFiniteError as error:
            rows = [output for row in error.rows for output in outputs[row]]
            sources = [self._broken_encoder(images[rows[0]])] if images else []
            if bad := [name for name, weight in self.state_dict().items() if not weight.isfinite().all()]:
                sources.append(f"the weights {', '.join(bad[:3])}{f' and {len(bad) - 3} others' if bad[3:] else ''}")
            cause = ", nor ".join(filter(None, sources))
            raise NotFiniteError(error.stage, rows, f"{cause} are not" if cause else error.cause) from error

    def _broken_encoder(self, image: np.ndarray) -> str:
        """The encoder that gives numbers which are not finite for an image; empty where none does."""
        if not self.latent_block(image).tokens.isfinite().all():
            return "the latents of the image"
        return "" if self.vision_tokens([self.view_block(image)]).isfinite().all() else "the states of the vision tower"


def _outputs(places: Sequence[int]) -> list[list[int]]:
    """The rows of a result that each distinct row stands for."""
    return [[row for row, place in enumerate(places) if place == own] for own in range(max(places, default=-1) + 1)]


def distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The rows whose key is new, and for every row the place of its key among them."""
    places: dict[Hashable, int] = {}
    rows: list[int] = []
    for row, key in enumerate(keys):
        if key not in places:
            places[key] = len(rows)
            rows.append(row)
    return rows, [places[key] for key in keys]


def _renumbered(on_text: OnText | None, rows: Sequence[int]) -> OnText | None:
    """Calls `on_text` with the numbers of the given rows in place of 0, 1, 2, ..."""
    return None if on_text is None else lambda row, text: on_text(rows[row], text)
