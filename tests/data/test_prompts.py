"""The shipped facts give the published prompts back, and a user's file is read or says where it cannot be."""

import json
from pathlib import Path

import pytest

from triptych.data.prompt_files import read_prompts
from triptych.data.prompts import benchmark
from triptych.errors import PromptError
from triptych.trace import Item, Spec


@pytest.mark.parametrize(("name", "size"), [("geneval", 553), ("genevalpp", 280)])
def test_shipped_facts_are_the_published_prompts(name, size, shared: Path):
    published = [json.loads(line) for line in (shared / "benchmarks" / f"{name}.jsonl").read_text().splitlines()]
    prompts = benchmark(name)
    assert [prompt.text for prompt in prompts] == [record["prompt"] for record in published]
    assert [prompt.spec for prompt in prompts] == [Spec.from_metadata(record) for record in published]
    assert len(prompts) == size and {prompt.source for prompt in prompts} == {name}


def test_the_published_layout_is_read(shared: Path):
    read = read_prompts(shared / "benchmarks" / "genevalpp.jsonl")
    shipped = benchmark("genevalpp")
    assert [(one.text, one.spec, one.source) for one in read] == [(one.text, one.spec, one.source) for one in shipped]


def test_plain_lines_and_bare_specs_are_read(tmp_path: Path):
    path = tmp_path / "mine.txt"
    objects = '{"prompt": "a cat"}\n{"tag": "x", "include": [{"class": "cat"}]}\n'
    path.write_text(f"a dragon at dawn\n\n  two cats \n{objects}")
    sentence, stripped, bare, built = read_prompts(path)
    assert (sentence.text, sentence.spec, sentence.source) == ("a dragon at dawn", None, "mine")
    assert (stripped.text, bare.text, bare.spec) == ("two cats", "a cat", None)
    assert built.spec == Spec("x", (Item("cat"),)) and built.text.endswith("photo of a cat")


def test_only_a_newline_ends_a_line(tmp_path: Path):
    """JSON may hold U+2028 and its like as they are; a byte order mark and carriage returns are no part of a prompt."""
    path = tmp_path / "mine.jsonl"
    path.write_bytes('\ufeff{"prompt": "a cat\u2028and a dog\u0085"}\r\na bird\x1con a bus\r\n'.encode())
    assert [one.text for one in read_prompts(path)] == ["a cat and a dog", "a bird on a bus"]


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a cat"',
        '{"prompt": 3}',
        '{"prompt": " "}',
        "{}",
        '{"include": [{"class": "cat"}]}',
        '{"tag": "x", "include": [{"count": 2}]}',
        '{"tag": "x", "include": [{"class": "cat", "count": "many"}]}',
        '{"tag": "x", "include": 5}',
        '{"tag": "x", "include": []}',
        '{"tag": "x", "include": [{"class": "cat", "position": ["above", 7]}]}',
        '{"tag": "x", "include": [{"class": "cat", "count": 12}]}',
        '{"tag": "x", "include": [{"class": "cat", "count": -1}]}',
        '{"tag": "x", "include": [{"class": "cat", "count": -1}], "prompt": "a cat"}',
        '{"tag": "x", "include": [{"class": "cat", "count": Infinity}], "prompt": "a cat"}',
        '{"tag": "x", "include": [{"class": "cat", "position": ["above", 0]}], "prompt": "a cat"}',
        '{"tag": "x", "include": [{"class": "\\ud800"}], "prompt": "a cat"}',
        '{"tag": "x", "include": [{"class": 3}], "prompt": "a cat"}',
        '{"tag": null, "include": [{"class": "cat"}], "prompt": "a cat"}',
        '{"tag": "x", "include": [], "prompt": "a cat"}',
        '{"tag": "x", "include": "cat", "prompt": "a cat"}',
        '{"prompt": "a cat", "x": ' + "1" * 5000 + "}",
        '{"a":' * 20_000,
    ],
    ids=lambda line: line[-60:],
)
def test_a_line_that_cannot_be_read_is_named(line, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"a cat\n\n{line}\n")
    with pytest.raises(PromptError, match=r"mine\.jsonl, line 3: .*expected"):
        read_prompts(path)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(content, tmp_path: Path):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError, match=r"mine\.txt.*expected"):
        read_prompts(path)
