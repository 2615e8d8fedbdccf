"""What the words of a reflection know of the prompt: is the colour that was asked of a class found, and by which layer?

    python scripts/recall_report.py sketch path/to/other/model

Lessons on pictures that are told in words and not seen, from seeds that no training reaches; teacher forced. "Found" is
the share of colours, said after a sticker's number, that are those its item asks for, by how many colours the prompt
names: a guess among them has 1, .5, .33. "Known" is how often a linear probe, fitted on three quarters of the stickers
and tried on the rest, reads off a hidden state what it should know: at a class in the prompt the colour before it, at a
sticker's number, the class before it and the colour asked.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data.lexicon import NUMBERS
from triptych.data.sft_samples import DataMix, sft_sample
from triptych.data.specs import random_spec
from triptych.data.stickers import CLASSES, COLORS
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.sft.joint import sample_rows

FIRST, BATCH, BATCHES = 1_900_000_000, 150, 8
UNSEEN = DataMix(right=0.0, scrambled=1.0, unseen=1.0)
Known = dict[str, tuple[list[Tensor], list[int]]]  # what is known: hidden states `[layer hidden]`, and what it is


def main(names: Sequence[str]) -> None:
    for name in names:
        bagel = weights.load(name)
        found: dict[int, list[bool]] = defaultdict(list)
        known: Known = defaultdict(lambda: ([], []))
        for start in range(FIRST, FIRST + BATCH * BATCHES, BATCH):
            read(bagel, range(start, start + BATCH), found, known)
        print(name)
        for colors, right in sorted(found.items()):
            print(f"  found, of {colors} colours in the prompt: {sum(right) / len(right):.3f} of {len(right)}")
        for what, (states, values) in known.items():
            layers = torch.stack(states).unbind(1)
            print(f"  known, {what}, layer by layer:", *(f"{probe(layer, values):.2f}" for layer in layers))


@torch.no_grad()
def read(bagel: Bagel, seeds: Sequence[int], found: dict[int, list[bool]], known: Known) -> None:
    """Add a batch of reflections to both tallies."""
    rows, _ = sample_rows(bagel, [sft_sample("reflect", seed, UNSEEN) for seed in seeds], torch.Generator())
    batch, heard = bagel.pack(rows), list[Tensor]()
    und, _ = bagel(batch, heard=heard)
    said = bagel.logits(und).argmax(-1)
    words = {index: token.strip() for token, index in bagel.tokenizer.get_vocab().items()}
    for row, seed in enumerate(seeds):
        spec = random_spec(seed)
        text = [words[index] for index in batch.ids[row].tolist()]
        asked = {item.color for item in spec.include if item.color}
        for place in range(1, len(text) - 2):
            before, here, after = text[place - 1 : place + 2]
            if here in CLASSES and before in COLORS and after not in (*NUMBERS, "extra"):
                note(known["the colour before a class"], heard, row, place, COLOR[before])
            elif before in CLASSES and here in NUMBERS and after in COLORS:
                found[len(asked)].append(words[int(said[row, place])] == after)
                note(known["the class before a number"], heard, row, place, CLASS[before])
                note(known["the colour asked of it"], heard, row, place, COLOR[after])


COLOR, CLASS = ({name: index for index, name in enumerate(names)} for names in (COLORS, CLASSES))


def note(tally: tuple[list[Tensor], list[int]], heard: Sequence[Tensor], row: int, place: int, value: int) -> None:
    """Keep what every layer makes of one token, and what it should know."""
    tally[0].append(torch.stack([layer[row, place].float() for layer in heard]))
    tally[1].append(value)


def probe(states: Tensor, values: Sequence[int]) -> float:
    """Share of the last quarter that a ridge regression on the first three reads rightly; `states [sample hidden]`."""
    inputs = F.pad(states * torch.rsqrt(states.square().mean(-1, keepdim=True)), (0, 1), value=1.0)
    wanted, cut = torch.tensor(values), len(values) * 3 // 4
    taught, truth = inputs[:cut], F.one_hot(wanted).float()[:cut]
    weight = torch.linalg.solve(taught.T @ taught + 5 * torch.eye(inputs.shape[1]), taught.T @ truth)
    return float(((inputs[cut:] @ weight).argmax(-1) == wanted[cut:]).float().mean())


if __name__ == "__main__":
    main(sys.argv[1:] or ["sketch"])
