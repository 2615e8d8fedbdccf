"""Text formats: the tokenizer, and for every beat what wraps its text beside the parser of it (R3 release).

A plan is `<think>plan</think>`; a reflection is `<think>reflection</think>instruction`, or STOP in place of the
instruction; an answer may begin with a thought in the same tags. What was sampled is kept as token ids and is never
tokenized again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from triptych.errors import ModelError

OPEN, CLOSE = "<think>", "</think>"
STOP = "no further edit needed"
_STOP_MARK = "no further edit"  # what is looked for, whatever the case: the release's rule
_UNPARSED = "No further edit needed"  # a reflection that never closes its thought is a stop, as in the release

# Strict, unlike the parsers below: a format reward of 1 or 0. No tag may stand inside the thought or behind it.
_PLAN = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL)  # a thought may have several lines
_REFLECTION = re.compile(r"<think>(?:(?!</?think>).)*</think>(?:(?!</?think>).)+", re.DOTALL)

# Qwen2's pattern of what BPE may not merge across: contractions, words, single digits, signs, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the four tokens that the block builder adds."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int


def load_tokenizer(
    folder: Path, base: Path | None = None, special: SpecialTokens | None = None
) -> tuple[Tokenizer | None, SpecialTokens | None]:
    """The tokenizer of a checkpoint folder, or of its `base`, and its special tokens.

    It is tokenizer.json, or else built from vocab.json and merges.txt. None where neither is there and `special` tokens
    were given in its place, for a model that reads ids. Raises ModelError if it cannot be had.
    """
    for place in filter(None, (folder, base)):
        path = place / "tokenizer.json"
        if path.is_file():
            try:
                tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
            except Exception as error:  # the library raises no narrower type
                raise ModelError(
                    f"{path} cannot be read: {error}; expected a whole tokenizer.json: fetch it again"
                ) from error
            return tokenizer, special_tokens(tokenizer)
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            tokenizer = _from_vocabulary(place)
            return tokenizer, special_tokens(tokenizer)
    if special is None:
        raise ModelError(
            f"{folder} has no tokenizer; expected tokenizer.json, or vocab.json and merges.txt, beside its weights: "
            "copy or export it there"
        )
    return None, special


def _from_vocabulary(folder: Path) -> Tokenizer:
    """Qwen2's byte-level BPE, as transformers builds it from vocab.json, merges.txt and the added tokens."""
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8-sig"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8-sig").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
        tokenizer = Tokenizer(BPE(vocabulary, merges))  # pyright: ignore[reportArgumentType]
        added = _added_tokens(folder)
        absent = set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
    except Exception as error:  # whatever json and the library raise
        raise ModelError(
            f"vocab.json and merges.txt in {folder} cannot be read: {error}; expected those of Qwen2: fetch them again"
        ) from error
    if absent:  # words, for example: every other one would be dropped without a sign
        raise ModelError(
            f"{folder / 'vocab.json'} lacks {len(absent)} of 256 bytes; expected a byte-level BPE, as Qwen2's: put the "
            "tokenizer.json of the checkpoint beside it"
        )
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in sorted(added.items()):
        tokenizer.add_special_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            found = tokenizer.token_to_id(token.content)
            raise ModelError(
                f"{folder}: {token.content} would be token {found}; expected {number}, as its added tokens say: put "
                "the tokenizer.json of the checkpoint beside it"
            )
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary, by id, as transformers writes them down."""
    for name in ("tokenizer_config.json", "added_tokens.json"):
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text(encoding="utf-8-sig"))
            if name == "added_tokens.json":
                return {
                    int(number): AddedToken(text, normalized=False, special=True) for text, number in record.items()
                }
            if "added_tokens_decoder" in record:
                entries = record["added_tokens_decoder"].items()
                return {
                    int(number): AddedToken(each["content"], normalized=False, special=True) for number, each in entries
                }
    return {}


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Resolve BAGEL's four special tokens by name; their numbers differ between tokenizers."""
    names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    ids = [tokenizer.token_to_id(name) for name in names]
    missing = [name for name, number in zip(names, ids, strict=True) if number is None]
    if missing:
        raise ModelError(
            f"the tokenizer lacks {', '.join(missing)}; expected a BAGEL tokenizer with {', '.join(names)}"
        )
    return SpecialTokens(*(number for number in ids if number is not None))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of plain text, no special token added."""
    # BOS and EOS are put around a block by packing.py, whatever the post-processor of a tokenizer.json adds.
    return tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of ids, think tags kept."""
    return tokenizer.decode(ids, skip_special_tokens=False).strip()


def wrap_plan(plan: str) -> str:
    """The text of a plan, as SFT teaches it."""
    return f"{OPEN}{plan}{CLOSE}"


def wrap_reflection(reflection: str, instruction: str | None) -> str:
    """The text of a reflection, as SFT teaches it; no instruction means stop."""
    return f"{OPEN}{reflection}{CLOSE}{instruction or STOP}"


def wrap_answer(thought: str | None, reply: str) -> str:
    """The text of an answer, behind a thought where there is one."""
    return reply if thought is None else f"{wrap_plan(thought)}{reply}"


def plan_is_formed(text: object) -> bool:
    """Format reward of Reason: exactly one pair of tags, opening the text and closing it."""
    return isinstance(text, str) and _PLAN.fullmatch(text.strip()) is not None


def reflection_is_formed(text: object) -> bool:
    """Format reward of Reflect: exactly one pair of tags opening the text, and something after it."""
    return isinstance(text, str) and _REFLECTION.fullmatch(text.strip()) is not None


def parse_edit(text: str) -> str:
    """The instruction of a reflection: what follows the last closing tag, stripped; without a tag, a stop."""
    # Lenient where the format reward is strict: an edit is drawn behind a malformed thought, too.
    return text.rsplit(CLOSE, 1)[1].strip() if CLOSE in text else _UNPARSED


def is_stop(instruction: str) -> bool:
    """Whether an instruction says that the image is right as it is. An empty one does not."""
    return _STOP_MARK in instruction.lower()


def parse_answer(text: str) -> str:
    """What follows the last closing tag, stripped; without a tag, the whole text."""
    return text.rsplit(CLOSE, 1)[-1].strip()


def parse_thought(text: str) -> str:
    """What stands inside the think tags, for showing to a person; the whole text where there are none."""
    return text.split(OPEN, 1)[-1].split(CLOSE, 1)[0].strip()
