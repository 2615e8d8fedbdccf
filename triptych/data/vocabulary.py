"""The closed vocabulary of the sticker world, and the tokenizer that SKETCH reads and speaks with.

A token carries its leading space (" clock"), a class or a cell is one token even where it is two words (" hot dog",
" top left"), and a plural is the class followed by "s" or "es". Ids never move: specials first, then marks, plurals and
`WORDS` in the order written here; a new word goes to the end of `GRAMMAR`.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from triptych.data.layout import CELLS, SIZES
from triptych.data.lexicon import NUMBERS
from triptych.data.stickers import CLASSES, COLORS

PAD, UNKNOWN = "<|endoftext|>", "<unk>"
SPECIALS = (PAD, UNKNOWN, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")  # left out by a decoder
THINK = ("<think>", "</think>")  # kept by a decoder: a parser looks for them
MARKS = ",.?:;!"
PLURALS = ("s", "es")

GRAMMAR = """
a an the and of on in at to with than as by or not no none nothing
photo picture left right above below side
add remove paint move replace make swap sticker
is are does do it show there how many what which where color size cell yes
all asked found but should be extra missing more other wrong same anything else only
plan think reflect draw edit look answer further needed
"""
WORDS: tuple[str, ...] = tuple(dict.fromkeys((*NUMBERS, *COLORS, *CELLS, *SIZES, *CLASSES, *GRAMMAR.split())))


def build_tokenizer() -> Tokenizer:
    """The tokenizer of SKETCH: lower-cases, folds white space, and loses nothing else of the sticker world's texts.

    Any other word becomes `<unk>`. Saved as tokenizer.json it loads with `transformers.AutoTokenizer`.
    """
    tokens = (*SPECIALS, *THINK, *MARKS, *PLURALS, *(f" {word}" for word in WORDS))
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(rf"(?<=[{MARKS}])(?=[^\s{MARKS}])"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(rf" (?=[{MARKS}])"), ""),
        ]
    )
    longest_first = "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True))
    word = rf" (?:{longest_first})(?=(?:es|s)?(?![^\s{MARKS}]))"
    plural = rf"(?<=[a-z])(?:es|s)(?![^\s{MARKS}])"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{word}|{plural}|[{MARKS}]| [^\s{MARKS}]+"), "isolated")
    # A segment after a special token gets its leading space back, so the text after one is written without it.
    after_special = Regex(r"(?<=\|>|<think>|</think>) ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Fuse(), decoders.Replace(after_special, ""), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in THINK])
    return tokenizer
