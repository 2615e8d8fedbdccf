"""Checks of a prompt, for the command line and for `play` alike: that it is text, and of the world of the model."""

from __future__ import annotations

from dataclasses import replace

from triptych.data.language import check_drawable, parse_prompt, prompt_text
from triptych.errors import PromptError
from triptych.text import clean_text
from triptych.trace import Prompt

MAX_WORDS = 1_000  # the longest benchmark prompt has about 100
MAX_CHARACTERS = 10_000  # for text without spaces


def check_text(text: str, what: str = "prompt") -> str:
    """The text as `clean_text` leaves it; PromptError if it is empty, too long, or not text at all."""
    try:
        stripped = clean_text(text)
    except ValueError as error:
        raise PromptError(
            f"the {what} holds bytes that are not text ({error}); expected UTF-8 without control characters"
        ) from None
    if not stripped:
        example = "how many clocks are there?" if what == "question" else "two red apples and a blue bus"
        raise PromptError(f"the {what} is empty; expected a sentence, such as {example!r}")
    words = stripped.count(" ") + 1
    if words > MAX_WORDS:
        raise PromptError(f"the {what} has {words:,} words; expected at most {MAX_WORDS:,}: shorten it")
    if len(stripped) > MAX_CHARACTERS:
        length = len(stripped)
        raise PromptError(f"the {what} has {length:,} characters; expected at most {MAX_CHARACTERS:,}: shorten it")
    return stripped


def understand(prompt: Prompt, world: str) -> Prompt:
    """The prompt in the wording that a model of `world`, "stickers" or "open", is given.

    A model of the sticker world gets the canonical wording of what was read from the text, or of the spec that came
    with it, and the spec goes along; a benchmark's own sentence stays to the letter. PromptError names what lies
    outside that world or cannot be laid out in it. Any other model gets the text as it is.
    """
    if world == "open":
        return prompt
    if prompt.spec is None:
        spec = parse_prompt(prompt.text)
        return replace(prompt, text=prompt_text(spec), spec=spec)
    check_drawable(prompt.spec)
    if prompt.text in (prompt_text(prompt.spec, "geneval"), prompt_text(prompt.spec, "genevalpp")):
        return prompt
    return replace(prompt, text=prompt_text(prompt.spec))
