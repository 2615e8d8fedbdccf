"""A user's prompts from any file: what is read of each kind, and that nothing else is ever drawn."""

import json
from pathlib import Path

import pytest

from triptych.data.prompt_files import read_entries
from triptych.errors import PromptError
from triptych.trace import Item

DOGS = ["a red dog, sitting", "a cat"]


def entries_of(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, str, int | None]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(entry.prompt.text, entry.id, entry.seed) for entry in read_entries(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a red dog, sitting\n# the second one\n\na cat\n#\n"),
        ("p.json", json.dumps(DOGS)),
        ("p.json", json.dumps(DOGS, indent=2)),
        ("p.json", json.dumps([{"prompt": text} for text in DOGS], indent=1)),
        ("p.json", json.dumps({"prompts": DOGS}, indent=1)),
        ("p.txt", json.dumps(DOGS)),
        ("p.jsonl", "\n".join(map(json.dumps, DOGS))),
        ("p.jsonl", "".join(f"{json.dumps({'prompt': text})},\n" for text in DOGS)),
        ("p.csv", 'prompt\n"a red dog, sitting"\na cat\n'),
        ("p.csv", '\ufeffId,Prompt\n,"a red dog, sitting"\n,a cat\n'),
        ("p.csv", 'Prompt;Note\n"a red dog, sitting";x\na cat;"two\nlines"\n'),
        ("p.tsv", "note\tcaption\nx\ta red dog, sitting\ny\ta cat\n"),
        ("p.txt", 'note,prompt\n1,"a red dog, sitting"\n2,a cat\n'),
        ("p.txt", "a red dog, sitting\r\na cat\r\n".encode("utf-16")),
    ],
)
def test_every_container_holds_the_same_prompts(tmp_path: Path, name: str, content: str | bytes):
    assert [text for text, _, _ in entries_of(tmp_path, name, content)] == DOGS


def test_ids_and_seeds_are_read_from_every_table(tmp_path: Path):
    expected = [("a dog", "x/1", 7), ("a cat", "2", None)]
    assert entries_of(tmp_path, "p.csv", "id,prompt,seed\nx/1,a dog,7\n2,a cat,\n") == expected
    lines = [{"id": "x/1", "prompt": "a dog", "seed": 7}, {"index": 2, "prompt": "a cat"}]
    assert entries_of(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines))) == expected
    assert entries_of(tmp_path, "p.json", json.dumps(lines)) == expected


def test_a_parquet_file_is_read_or_refused_by_name(tmp_path: Path):
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        with pytest.raises(PromptError, match="pip install pyarrow"):
            entries_of(tmp_path, "p.parquet", b"PAR1....PAR1")
        return
    parquet.write_table(pa.table({"Prompt": ["a dog", "a cat"], "id": [4, 5]}), tmp_path / "p.parquet")
    assert [(e.prompt.text, e.id) for e in read_entries(tmp_path / "p.parquet")] == [("a dog", "4"), ("a cat", "5")]


def test_geneval_lines_keep_their_specs(tmp_path: Path):
    line = json.dumps({"tag": "colors", "include": [{"class": "dog", "color": "red"}]})
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    (entry,) = read_entries(path)
    assert entry.prompt.spec is not None and entry.prompt.spec.include == (Item("dog", color="red"),)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "id,words\n1,a cat\n", "column names with one of prompt"),
        ("p.csv", "id,prompt\n1,a cat, big\n", "line 2: more fields"),
        ("p.json", '["a cat"', "not JSON"),
        ("p.json", '{"a": 1,\n "b": 2}', "JSON object of"),
        ("p.json", "[1, 2]", "prompt 1: a prompt is 1"),
        ("p.xlsx", b"PK\x03\x04....", "spreadsheet"),
        ("p.txt", b"\x1f\x8b....", "gzip"),
        ("p.txt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("p.jsonl", '{"prompt": "a cat", "seed": -1}', "seed is -1"),
        ("p.jsonl", '{"prompt": "a cat", "seed": 1.5}', "seed is 1.5"),
        ("p.jsonl", '{"prompt": "a cat", "id": [1]}', "id is"),
        ("p.jsonl", '{"prompt": "a cat", "id": 1}\n{"prompt": "a dog", "id": 1}', "line 2: id '1' stands twice"),
        ("p.txt", "a cat\nb\x07ell\n", "line 2: .*control character"),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(tmp_path: Path, name: str, content: str | bytes, told: str):
    with pytest.raises(PromptError, match=told):
        entries_of(tmp_path, name, content)


def test_all_bad_lines_are_told_at_once(tmp_path: Path):
    lines = ["a cat" if number % 3 else '{"prompt": 3}' for number in range(30)]
    with pytest.raises(PromptError) as raised:
        entries_of(tmp_path, "p.txt", "\n".join(lines))
    message = str(raised.value)
    assert "line 1: prompt is 3" in message and "; and 16, 19, 22, 25, 28 (10 of 30 prompts)" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ['"Hello" says the cat', "[red] cat and dog", "a cat, a dog", "#sunset over a hill"])
def test_sentences_that_look_like_something_else(tmp_path: Path, text: str):
    assert entries_of(tmp_path, "p.txt", text) == [(text, "", None)]


def test_the_shared_cases(shared: Path):
    for number in ("11", "12", "13", "15", "18", "20", "22", "23"):
        (folder,) = (shared / "cases").glob(f"{number}-*")
        (file,) = folder.glob("prompts.*")
        texts = [entry.prompt.text for entry in read_entries(file)]
        assert len(texts) == (1 if number in ("11", "13") else 2), folder.name
        assert not any(mark in text for text in texts for mark in ('"', "\u00ad", "\u200b", "id,prompt")), folder.name
