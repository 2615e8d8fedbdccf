"""The pages: self-contained, escaped, and showing every turn with what was said of it."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.apps.output import write_trace
from triptych.apps.trace_page import PAGE_IMAGE_SIDE, thumbnail, trace_card, trace_index, trace_page, turn_panels
from triptych.apps.trace_view import TraceView
from triptych.trace import Completion, Drawing, Prompt, Trace, Turn, Verdict

NASTY = """<script>alert("1")</script> & {{ 7 * 7 }} <img src=x onerror='x'> "quoted" """


def picture(shade: int, side: int = 96) -> np.ndarray:
    return np.full((side, side, 3), shade, np.uint8)


def trace(given: bool = False, side: int = 96) -> Trace:
    """Reason, one edit, a stop."""
    first = Turn(Completion("<think>a grey plan</think>"), Drawing(picture(10, side)), None, {"plan": 0.1, "draw": 0.2})
    edit = Turn(
        Completion("<think>too dark</think>make it lighter"),
        Drawing(picture(200, side)),
        "make it lighter",
        {"reflect": 0.3, "edit": 0.4},
    )
    stop = Turn(Completion("<think>all as asked.</think>no further edit needed"), None, None, {"reflect": 0.5})
    prompt = Prompt("a grey picture", image=picture(90, side) if given else None)
    return Trace(prompt, (edit, stop) if given else (first, edit, stop))


def view(**changes) -> TraceView:
    verdicts = (Verdict(0.5, ("grey",), ("light: found dark",)), Verdict(1.0, ("grey", "light"), ()))
    return TraceView(
        **{"trace": trace(), "stop": "model", "turns": 4, "verdicts": verdicts, "settings": {"a": {"b": 7}}} | changes
    )


class Addresses(HTMLParser):
    """Every address on a page, every id, and the tags that were opened."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.ids, self.tags = [], set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.ids |= {value for name, value in attrs if name == "id"}


@pytest.mark.parametrize("given", [False, True])
def test_a_page_needs_nothing_but_itself(given: bool):
    page = trace_page(view(trace=trace(given)))
    addresses = Addresses(page)
    assert all(address.startswith(("data:", "#")) for address in addresses.found)
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    linked = {address[1:] for address in addresses.found if address.startswith("#")}
    copied = {f"picture-{number}" for number in re.findall(r'data-copy="(\d+)"', page)}
    assert linked | copied <= addresses.ids


def test_every_picture_is_on_the_page_once():
    shown = trace()
    page = trace_page(view(trace=shown))
    pictures = [base64.b64decode(code) for code in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    pixels = [np.asarray(Image.open(io.BytesIO(code))) for code in pictures]
    assert len(pixels) == len(shown.images)
    assert all(np.array_equal(one, other) for one, other in zip(pixels, shown.images, strict=True))


def test_all_that_was_said_is_on_the_page():
    page = trace_page(view())
    for words in ("a grey plan", "too dark", "make it lighter", "all as asked.", "light: found dark", "a.b", "1.5 s"):
        assert words in page
    assert "<think>" not in page and "&lt;think" not in page
    assert page.count('type="range"') == 1


@pytest.mark.parametrize("given", [False, True])
def test_words_stand_beside_the_picture_that_they_are_about(given: bool):
    page = trace_page(view(trace=trace(given)))
    (refine,) = re.findall(r'<article id="[^"]+" class="refine".*?</article>', page, flags=re.DOTALL)
    looked, made = refine.split('id="picture-1"')
    assert 'data-copy="0"' in looked and "too dark" in looked  # the reflection is about the picture before the edit
    assert "too dark" not in made and re.search(r'class="instruction">make it lighter', made)
    (stop,) = re.findall(r'<article id="[^"]+" class="stop".*?</article>', page, flags=re.DOTALL)
    assert 'data-copy="1"' in stop and "all as asked." in stop


def test_words_are_text_and_never_markup():
    said = Turn(Completion(f"<think>{NASTY}</think>{NASTY}"), Drawing(picture(9)), NASTY, {"reflect": 1.0, "edit": 1.0})
    nasty = Trace(Prompt(NASTY, image=picture(5)), (said,))
    verdicts = (Verdict(0.0, (), (NASTY,)), Verdict(1.0, (NASTY,)))
    shown = view(trace=nasty, verdicts=verdicts, settings={NASTY: NASTY, "asked": NASTY})
    plain = view(trace=trace(given=True), settings={"a": "b", "asked": "c"})
    page = trace_page(shown)
    assert Addresses(page).tags.count("script") == Addresses(trace_page(plain)).tags.count("script") == 1
    assert "onerror='x'" not in page and "49" not in re.sub(r"<style>.*?</style>|base64,\S+", "", page, flags=re.DOTALL)
    index = trace_index(NASTY, [trace_card(NASTY, shown)])
    assert "script" not in Addresses(index).tags and "onerror='x'" not in index


def test_panels_know_what_they_show():
    kinds = [(panel.kind, panel.before, panel.picture) for panel in turn_panels(trace())]
    assert kinds == [("reason", None, 0), ("refine", 0, 1), ("stop", 1, None)]
    kinds = [(panel.kind, panel.before, panel.picture) for panel in turn_panels(trace(given=True))]
    assert kinds == [("refine", 0, 1), ("stop", 1, None)]


def test_small_pictures_keep_their_pixels_and_large_ones_are_thumbnails():
    assert 'class="pixelated"' in trace_page(view())
    assert 'class="pixelated"' not in trace_page(view(trace=trace(side=512)))
    assert thumbnail(picture(3, 96)).shape == (96, 96, 3)
    assert thumbnail(picture(3, 1024)).shape == (256, 256, 3)


def test_the_index_counts_what_is_right():
    wrong = view(stop="limit", verdicts=(Verdict(0.5, ("grey",), ("light: found dark",)),) * 2)
    index = trace_index("greys", [trace_card("one", view()), trace_card("two", wrong)])
    assert "1 of 2 right by the judge" in index and "light: found dark" in index and 'href="two/trace.html"' in index
    unjudged = trace_index("greys", [trace_card("one", view(verdicts=()))])
    assert "judge" not in unjudged.split("</style>")[1]


def test_a_trace_view_survives_its_folder(tmp_path: Path):
    shown = view()
    found = TraceView.load(write_trace(shown, tmp_path / "one"))
    assert found.extra() == shown.extra()
    assert np.array_equal(found.trace.images, shown.trace.images)
    assert trace_page(found) == (tmp_path / "one" / "trace.html").read_text()


def test_a_page_shows_a_photo_small_enough_to_open():
    page = trace_page(view(trace=trace(side=3000)))
    sizes = [Image.open(io.BytesIO(base64.b64decode(code))).size for code in re.findall(r"base64,([^\"]+)", page)]
    assert sizes and set(sizes) == {(PAGE_IMAGE_SIDE, PAGE_IMAGE_SIDE)}


@pytest.mark.parametrize(
    ("stop", "words"),
    [("model", "stopped though wrong"), ("limit", "ran out of turns"), ("interrupted", "interrupted")],
)
def test_a_trace_that_ended_wrong_says_so_and_one_that_is_right_does_not(stop, words):
    wrong = (Verdict(0.5, ("grey",), ("light: found dark",)),) * 2
    ended = '<p class="ended">'
    page = trace_page(view(stop=stop, verdicts=wrong))
    assert words in page[page.index(ended) :].split("</p>")[0] and "end off" in page
    for other in (view(stop=stop), view(stop=stop, verdicts=())):
        assert ended not in trace_page(other) and "end off" not in trace_page(other)
