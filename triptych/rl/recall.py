"""A lesson beside the others: every token knows the word before it, early enough for later layers to use it.

To find what was asked of a class ("which colour?"), a word in a list must meet the same word in the prompt, and by then
that one must have taken in its neighbours. Where nothing asks for it early on, layers learn it late or never, and what
depends on it stays a guess (LOG.md). The head that asks belongs to the lessons; no checkpoint holds it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from triptych.model.bagel import Bagel
from triptych.model.sequence import Pack

LAYER = 1  # the second: a first one that copies what stands before, and all others to work with it


class Recall(nn.Module):
    """Tells the token before a text token from what the second layer makes of it; begins by telling nothing."""

    def __init__(self, bagel: Bagel):
        super().__init__()
        language = bagel.config.language
        self.norm = nn.RMSNorm(language.hidden_size, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(language.hidden_size, language.vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(self, heard: Tensor, batch: Pack) -> Tensor:
        """Mean cross entropy over text tokens behind a text token; `heard [batch und hidden]` is of layer `LAYER`."""
        layout = batch.layout
        text = ((layout.block < 0) & layout.valid)[:, : batch.und]
        pairs = text[:, 1:] & text[:, :-1]
        return F.cross_entropy(self.head(self.norm(heard[:, 1:][pairs].float())).float(), batch.ids[:, :-1][pairs])
