"""Text of people, files, checkpoints and servers: what counts as text, and how it is shown without doing harm.

Every script and emoji is text. Marks that nobody sees and that web pages and editors leave behind (soft hyphens, zero
width spaces, byte order marks, marks of direction) are dropped, since two prompts that look alike should be alike;
joiners are kept, for Persian, Hindi and many emoji are spelled with them. Control characters and half surrogates, which
stand for bytes that are no UTF-8, are no text.
"""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # zero width non-joiner and joiner
_FLAGS = range(0xE0020, 0xE0080)  # tags: the flag of Scotland is a black flag and five of these
_VISIBLE_FORMATS = range(0x600, 0x606)  # Arabic number signs are format characters, and letters to a reader


def clean_text(text: str) -> str:
    """The text with one space for any white space, without invisible marks. Raises ValueError for what is no text."""
    words = "".join(letter for letter in text if not _is_invisible(letter)).split()
    cleaned = " ".join(words)
    for letter in cleaned:
        if "\udc80" <= letter <= "\udcff":  # how Python keeps a byte that it could not decode
            raise ValueError(f"byte {ord(letter) - 0xDC00:02X} is no UTF-8")
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise ValueError(f"U+{ord(letter):04X} is a control character or half a character")
    return cleaned


def is_text(value: object) -> bool:
    """Whether a value is text without control characters: empty text is none."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value)


def printable(text: object) -> str:
    """The text as a terminal, a log or an error message may show it, on one line.

    Whatever steers a terminal (escape sequences, line breaks, marks that turn the direction of a line) is written out,
    such as ``\\x1b``; letters of every script stay.
    """
    return "".join(letter if _is_harmless(letter) else _written_out(letter) for letter in str(text))


def _is_invisible(letter: str) -> bool:
    if letter in JOINERS or ord(letter) in _FLAGS or ord(letter) in _VISIBLE_FORMATS:
        return False
    return unicodedata.category(letter) == "Cf" and letter != "\u06dd"  # the end of a verse is seen


def _is_harmless(letter: str) -> bool:
    # "Cn": an emoji newer than Python's tables. Joiners change no direction.
    category = unicodedata.category(letter)
    return letter in JOINERS or (category[0] != "C" and category not in ("Zl", "Zp")) or category in ("Cn", "Co")


def _written_out(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
