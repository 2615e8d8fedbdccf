"""Bagel: one model that plans, draws, reflects, edits and answers (arXiv 2505.14683; the loop is arXiv 2602.15772).

Every verb takes lists and returns lists; row i depends on row i alone and on its own seed. A row is told to the model
as blocks (sequence.py), read into a `Context`, and then either continued as text or painted by flow steps. Branches of
guidance are further rows of the same forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from triptych.model import words
from triptych.model.body import Body, Branches, Tell, Tick
from triptych.model.config import Sampling
from triptych.model.pictures import normalise, resize
from triptych.model.sequence import Block, Latent, Text, View
from triptych.model.vae import patchify
from triptych.trace import Completion, Drawing


class Bagel(Body):
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

    @torch.no_grad()
    def plan(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], tell: Tell | None = None
    ) -> list[Completion]:
        """Reason: say what the picture will hold."""
        context = self.blank(len(prompts))
        self.read(
            context,
            [[*self.system_blocks(self.config.templates.plan_system), self.text_block(prompt)] for prompt in prompts],
        )
        return self.write(context, sampling, sampling.max_plan, seeds, tell)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        plans: Sequence[Completion | None],
        sampling: Sampling,
        seeds: Sequence[int],
        stroke_seeds: Sequence[int] | None = None,
        tick: Tick | None = None,
    ) -> list[Drawing]:
        """Draw each prompt; with a plan the model first reads what it said, token for token."""
        system = self.system_blocks(self.config.templates.plan_system)
        heads: list[list[Block]] = [[] if plan is None else list(system) for plan in plans]
        tails = [
            [self.text_block(prompt)] if plan is None else [self.text_block(prompt), self._said(plan)]
            for prompt, plan in zip(prompts, plans, strict=True)
        ]
        cond = self.blank(len(prompts))
        self.read(cond, heads)
        drop = cond.fork() if sampling.text_guidance > 1 else None
        self.read(cond, tails)
        height, width = self.config.image_size
        grid = (height // self.config.latent_downsample, width // self.config.latent_downsample)
        tokens, strokes = self.paint(
            Branches(cond, drop),
            grid,
            self._noise(seeds, grid),
            sampling.draw_points,
            sampling.draw_renorm,
            sampling.eta_draw,
            sampling,
            stroke_seeds,
            tick,
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
        tell: Tell | None = None,
    ) -> list[Completion]:
        """Reflect: look at each picture beside its prompt; say what to change, or that nothing is to be changed."""
        templates = self.config.templates
        rows = [
            [
                *self.system_blocks(templates.reflect_system),
                self.view_block(image),
                self.text_block(templates.reflect.format(prompt=prompt)),
            ]
            for prompt, image in zip(prompts, images, strict=True)
        ]
        context = self.blank(len(rows))
        self.read(context, rows)
        return self.write(context, sampling, sampling.max_reflection, seeds, tell)

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        stroke_seeds: Sequence[int] | None = None,
        tick: Tick | None = None,
    ) -> list[Drawing]:
        """Refine: carry each instruction out on its picture. The prompt, the plan and the reflection are not seen."""
        latents = [self.latent_block(image) for image in images]
        drawings: dict[int, Drawing] = {}
        for grid in dict.fromkeys(latent.grid for latent in latents):
            rows = [row for row, latent in enumerate(latents) if latent.grid == grid]
            pictures: list[list[Block]] = [[latents[row], self.view_block(images[row])] for row in rows]
            texts: list[list[Block]] = [[self.text_block(instructions[row])] for row in rows]
            branches = self._edit_branches(pictures, texts, sampling)
            chosen = None if stroke_seeds is None else [stroke_seeds[row] for row in rows]
            tokens, strokes = self.paint(
                branches,
                grid,
                self._noise([seeds[row] for row in rows], grid),
                sampling.edit_points,
                sampling.edit_renorm,
                sampling.eta_edit,
                sampling,
                chosen,
                tick,
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
        tell: Tell | None = None,
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
