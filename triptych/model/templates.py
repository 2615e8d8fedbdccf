"""Text formats: the tokenizer, and for every beat what wraps its text beside the parser of it (R3 release).

A plan is `<think>plan</think>`; a reflection is `<think>reflection</think>instruction`, or STOP in place of the
instruction; an answer may begin with a thought in the same tags. What was sampled is kept as token ids and is never
tokenized again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from triptych.errors import ModelError

OPEN, CLOSE = "<think>", "</think>"
STOP = "no further edit needed"
_STOP_MARK = "no further edit"  # what is looked for, whatever the case: the release's rule
_UNPARSED = "No further edit needed"  # a reflection that never closes its thought is a stop, as in the release

# Strict, unlike the parsers below: a format reward of 1 or 0. No tag may stand inside the thought or behind it.
_PLAN = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL)  # a thought may have several lines
_REFLECTION = re.compile(r"<think>(?:(?!</?think>).)*</think>(?:(?!</?think>).)+", re.DOTALL)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the four tokens that the block builder adds."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int


def load_tokenizer(folder: Path) -> tuple[Tokenizer, SpecialTokens]:
    """The tokenizer.json of a checkpoint folder and its special tokens. Raises ModelError if either cannot be had."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{path} is missing; expected the tokenizer of the checkpoint beside its weights: copy or export it there"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise ModelError(f"{path} cannot be read: {error}; expected a whole tokenizer.json: fetch it again") from error
    return tokenizer, special_tokens(tokenizer)


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
