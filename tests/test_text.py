"""What counts as text, and that shown text steers no terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.text import clean_text, is_text, printable

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\u0633\u06af \u0645\u06cc\u200c\u062f\u0648\u062f", None),  # Persian, with a zero width non-joiner
        ("\u0915\u094d\u200d\u0937", None),  # Hindi, with a joiner
        (FAMILY, None),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", None),  # the flag of Scotland
        ("a \U0001fadc on grass", None),  # an emoji of 2024
        ("a rail\u00adway\u200b station\ufeff", "a railway station"),
        ("\u200fabc\u202e def\u2066", "abc def"),
        ("two\t red\u2028cats\u00a0", "two red cats"),
    ],
)
def test_text_is_text(text: str, cleaned: str | None):
    assert clean_text(text) == (text if cleaned is None else cleaned)
    assert is_text(clean_text(text))


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\x00b", "a\x9bb", "half \ud83d"])
def test_control_characters_are_no_text(text: str):
    assert not is_text(text)
    with pytest.raises(ValueError, match=r"U\+"):
        clean_text(text)


@given(st.text(st.characters()))
def test_cleaned_text_is_clean_or_refused(text: str):
    try:
        cleaned = clean_text(text)
    except ValueError:
        return
    assert clean_text(cleaned) == cleaned
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in cleaned)


@given(st.text(st.characters()))
def test_shown_text_is_one_line_without_control(text: str):
    shown = printable(text)
    shown.encode()
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert not {"\u202e", "\u2066", "\u200f"} & set(shown)


def test_letters_of_every_script_are_shown_as_they_are():
    text = f"\u0633\u06af \u732b {FAMILY} \u00e9"
    assert printable(text) == text
    assert printable("a\x1b[31mb\n\u202e") == "a\\x1b[31mb\\n\\u202e"
