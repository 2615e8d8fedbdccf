"""Bagel: one model that plans, draws, reflects, edits and answers (arXiv 2505.14683; the loop is arXiv 2602.15772).

Every verb takes lists and returns lists; row i depends on row i alone and on its own seed. A row is told to the model
as blocks (sequence.py), read into a `KVCache`, and then either continued as text or painted by flow steps. Branches of
guidance are further rows of the same forward. Rows that are told the same and start from the same noise share all steps
up to the first stochastic one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from triptych.model import logprobs
from triptych.model import templates as words
from triptych.model.config import Sampling
from triptych.model.images import normalise, resize
from triptych.model.logprobs import ImageSample, SDELogprobs, TextLogprobs, TextSample
from triptych.model.network import Branches, Network, OnStep, OnText
from triptych.model.packing import Block, Latent, Text, View
from triptych.model.vae import patchify
from triptych.trace import Completion, Drawing


class Bagel(Network):
    """The unified model and its five verbs."""

    def text_block(self, text: str, loss: bool = False) -> Text:
        return Text(words.encode(self.tokenizer, text), loss)

    def system_blocks(self, text: str) -> list[Block]:
        """An empty system prompt is no block at all."""
        return [self.text_block(text)] if text else []

    def view_block(self, image: np.ndarray) -> View:
        """A picture `[height width 3] uint8` for understanding: resized by the VAE's rule, then by the ViT's (b.9)."""
        resized = resize(resize(image, self.config.vae_resize), self.config.vit_resize)
        side = self.config.vision.patch_size
        patches = patchify(normalise(resized)[None], side)[0]
        return View(patches.to(self.device), (resized.shape[0] // side, resized.shape[1] // side))

    @torch.no_grad()
    def latent_block(self, image: np.ndarray) -> Latent:
        """A picture `[height width 3] uint8` as clean latent tokens."""
        resized = resize(image, self.config.vae_resize)
        side = self.config.latent_downsample
        tokens = self.encode_pictures(normalise(resized)[None])[0]
        return Latent(tokens, (resized.shape[0] // side, resized.shape[1] // side))

    # --- what each beat reads (parity kit b.9, b.10): verbs and scores share it ---------------------------------------

    def plan_blocks(self, prompt: str) -> list[Block]:
        return [*self.system_blocks(self.config.templates.plan_system), self.text_block(prompt)]

    def draw_blocks(self, prompt: str, plan: Completion | None) -> tuple[list[Block], list[Block]]:
        """What every branch of guidance reads, and what only the conditioned one reads: the prompt, and the plan."""
        if plan is None:
            return [], [self.text_block(prompt)]
        return self.system_blocks(self.config.templates.plan_system), [self.text_block(prompt), self._said(plan)]

    def reflect_blocks(self, prompt: str, image: np.ndarray) -> list[Block]:
        templates = self.config.templates
        return [
            *self.system_blocks(templates.reflect_system),
            self.view_block(image),
            self.text_block(templates.reflect.format(prompt=prompt)),
        ]

    def edit_blocks(self, image: np.ndarray, instruction: str) -> tuple[Latent, list[Block], list[Block]]:
        """The picture as latent tokens; it and its view; the instruction."""
        latent = self.latent_block(image)
        return latent, [latent, self.view_block(image)], [self.text_block(instruction)]

    # --- the verbs ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], tell: OnText | None = None
    ) -> list[Completion]:
        """Reason: say what the picture will hold, at the temperature of plans. Rows that are alike are said once."""
        sampling = sampling.planning
        first, copies = distinct(list(zip(prompts, seeds, strict=True)))
        context = self.blank(len(first))
        self.read(context, [self.plan_blocks(prompts[row]) for row in first])
        said = self.write(context, sampling, sampling.max_plan, [seeds[row] for row in first], _told(tell, first))
        return [said[copy] for copy in copies]

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        plans: Sequence[Completion | None],
        sampling: Sampling,
        seeds: Sequence[int],
        stroke_seeds: Sequence[int] | None = None,
        tick: OnStep | None = None,
    ) -> list[Drawing]:
        """Draw each prompt; with a plan the model first reads what it said, token for token."""
        keys = [None if plan is None else tuple(plan.tokens.tolist()) for plan in plans]
        first, copies = distinct(list(zip(prompts, keys, seeds, strict=True)))
        parts = [self.draw_blocks(prompts[row], plans[row]) for row in first]
        cond = self.blank(len(first))
        self.read(cond, [head for head, _ in parts])
        drop = cond.fork() if sampling.text_guidance > 1 else None
        self.read(cond, [tail for _, tail in parts])
        height, width = self.config.image_size
        grid = (height // self.config.latent_downsample, width // self.config.latent_downsample)
        tokens, strokes = self.paint(
            Branches(cond, drop),
            grid,
            self._noise([seeds[row] for row in first], grid),
            sampling.draw_points,
            sampling.draw_renorm,
            sampling.eta_draw,
            sampling,
            stroke_seeds,
            tick,
            copies,
        )
        images = self.decode_pictures(tokens, grid)
        return [Drawing(image, stroke) for image, stroke in zip(images, strokes, strict=True)]

    @torch.no_grad()
    def reflect(
        self,
        prompts: Sequence[str],
        images: Sequence[np.ndarray],
        sampling: Sampling,
        seeds: Sequence[int],
        tell: OnText | None = None,
    ) -> list[Completion]:
        """Reflect: look at each picture beside its prompt; say what to change, or that nothing is to be changed."""
        first, copies = distinct(list(zip(prompts, map(id, images), seeds, strict=True)))
        context = self.blank(len(first))
        self.read(context, [self.reflect_blocks(prompts[row], images[row]) for row in first])
        said = self.write(context, sampling, sampling.max_reflection, [seeds[row] for row in first], _told(tell, first))
        return [said[copy] for copy in copies]

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        stroke_seeds: Sequence[int] | None = None,
        tick: OnStep | None = None,
    ) -> list[Drawing]:
        """Refine: carry each instruction out on its picture. The prompt, the plan and the reflection are not seen."""
        first, places = distinct(list(zip(map(id, images), instructions, seeds, strict=True)))
        told = [self.edit_blocks(images[row], instructions[row]) for row in first]
        drawings: dict[int, Drawing] = {}
        for grid in dict.fromkeys(latent.grid for latent, _, _ in told):
            alike = [place for place, (latent, _, _) in enumerate(told) if latent.grid == grid]
            rows = [row for row, place in enumerate(places) if place in alike]
            tokens, strokes = self.paint(
                self._edit_branches([told[place][1] for place in alike], [told[place][2] for place in alike], sampling),
                grid,
                self._noise([seeds[first[place]] for place in alike], grid),
                sampling.edit_points,
                sampling.edit_renorm,
                sampling.eta_edit,
                sampling,
                None if stroke_seeds is None else [stroke_seeds[row] for row in rows],
                tick,
                [alike.index(places[row]) for row in rows],
            )
            painted = self.decode_pictures(tokens, grid)
            drawings |= {row: Drawing(image, stroke) for row, image, stroke in zip(rows, painted, strokes, strict=True)}
        return [drawings[row] for row in range(len(images))]

    def _edit_branches(self, pictures: list[list[Block]], texts: list[list[Block]], sampling: Sampling) -> Branches:
        """Cond reads picture and instruction; each drop branch reads one of the two (parity kit b.9)."""
        cond = self.blank(len(pictures))
        self.read(cond, pictures)
        text_drop = image_drop = None
        if sampling.text_guidance > 1:
            text_drop = cond.fork()
            if sampling.image_guidance > 1:
                image_drop = self.blank(len(texts))
                self.read(image_drop, texts)
        self.read(cond, texts)
        return Branches(cond, text_drop, image_drop)

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[np.ndarray],
        questions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        tell: OnText | None = None,
    ) -> list[Completion]:
        """Answer a question about each picture."""
        templates = self.config.templates
        rows = [
            [
                *self.system_blocks(templates.answer_system),
                self.view_block(image),
                self.text_block(templates.answer.format(question=question)),
            ]
            for image, question in zip(images, questions, strict=True)
        ]
        context = self.blank(len(rows))
        self.read(context, rows)
        return self.write(context, sampling, sampling.max_answer, seeds, tell)

    def _said(self, plan: Completion) -> Text:
        return Text([token for token in plan.tokens.tolist() if token != self.special.eos])

    def _noise(self, seeds: Sequence[int], grid: tuple[int, int]) -> Tensor:
        """First noise `[batch patch latent]` float32, a function of each row's seed alone."""
        shape = (grid[0] * grid[1], self.config.latent_dim)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    # --- scores, with gradient (scoring.py) ---------------------------------------------------------------------------

    def score_text(self, told: Sequence[TextSample], sampling: Sampling) -> TextLogprobs:
        """What `plan` or `reflect` with this `sampling` thinks of texts that were drawn with it."""
        return logprobs.text_logprobs(self, told, sampling)

    def score_strokes(self, painted: Sequence[ImageSample], sampling: Sampling) -> list[SDELogprobs]:
        """What `draw` or `edit` with this `sampling` thinks of stochastic steps that were taken with it."""
        return logprobs.sde_logprobs(self, painted, sampling)


def distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The rows whose key is new, and for every row the place of its key among them."""
    places: dict[Hashable, int] = {}
    first: list[int] = []
    for row, key in enumerate(keys):
        if key not in places:
            places[key] = len(first)
            first.append(row)
    return first, [places[key] for key in keys]


def _told(tell: OnText | None, rows: Sequence[int]) -> OnText | None:
    """Tells of the given rows by their own numbers."""
    return None if tell is None else lambda row, text: tell(rows[row], text)
