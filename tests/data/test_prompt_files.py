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
        ("p.tsv", "\tprompt\n0\ta red dog, sitting\n1\ta cat\n"),
        ("p.txt", 'note,prompt\n1,"a red dog, sitting"\n2,a cat\n'),
        ("p.txt", "a red dog, sitting\r\na cat\r\n".encode("utf-16")),
        ("p.txt", "a red dog, sitting\r\na cat\r\n".encode("utf-32")),
        ("p.txt", "a red dog, sitting\ra cat\r"),
        ("p.txt", "\ufeffa red dog, sitting\n\ufeffa cat\n"),
        ("p.txt", "- a red dog, sitting\n- a cat\n"),
        ("p.txt", "1. a red dog, sitting\n2. a cat\n"),
        ("p.txt", "prompt\na red dog, sitting\na cat\n"),
        ("p.txt", 'Prompt,Level of Challenge\n"a red dog, sitting",1\na cat,2\n'),
        ("p.csv", 'Prompts,Category\n"a red dog, sitting",x\n,\na cat,y\n,,\n'.replace(",,", ",")),
        ("p.csv", "sep=;\r\n# mine\r\n\r\nPrompt No;Prompt\r\n3;a red dog, sitting\r\n# 4;a bird\r\n5;a cat\r\n"),
        ("p.csv", "id|prompt\n1|a red dog, sitting\n2|a cat\n"),
        ("p.jsonl", "".join(json.dumps({"Prompt": text}, indent=1) + "\n" for text in DOGS)),
        ("p.jsonl", " ".join(json.dumps({"prompt": text}) for text in DOGS)),
        ("p.json", json.dumps({"00001": DOGS[0], "00002": DOGS[1]})),
        ("p.json", json.dumps({"b": {"prompt": DOGS[0], "category": 1}, "a": {"prompt": DOGS[1]}}, indent=1)),
        ("p.json", json.dumps({"images": [{"id": 1}], "annotations": [{"caption": text} for text in DOGS]})),
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


def test_one_id_with_several_seeds_is_one_prompt(tmp_path: Path):
    expected = [("a dog", "1", 0), ("a dog", "1", 1)]
    assert entries_of(tmp_path, "p.csv", "id,prompt,seed\n1,a dog,0\n1,a dog,1.0\n") == expected


def test_the_quotes_of_a_table_with_tabs_may_stand_for_themselves(tmp_path: Path):
    content = 'id\tprompt\n1\t"Stop" says the sign\n2\ta cat\n'
    assert entries_of(tmp_path, "p.tsv", content) == [('"Stop" says the sign', "1", None), ("a cat", "2", None)]


def test_a_parquet_file_is_read_or_refused_by_name(tmp_path: Path):
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        with pytest.raises(PromptError, match=r"triptych\[parquet\]"):
            entries_of(tmp_path, "p.parquet", b"PAR1....PAR1")
        return
    table = pa.table({"Prompt": ["a dog", "a cat"], "id": [4, 5], "seed": [7.0, float("nan")]})
    parquet.write_table(table, tmp_path / "p.parquet")
    read = [(entry.prompt.text, entry.id, entry.seed) for entry in read_entries(tmp_path / "p.parquet")]
    assert read == [("a dog", "4", 7), ("a cat", "5", None)]


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
        ("p.jsonl", '{"prompt": "a cat", "id": 1}\n{"prompt": "a dog", "id": 1}', "line 2: id '1' stands for two"),
        ("p.csv", "id,prompt\n1,a cat\n1,a cat\n", "line 3: id '1' stands twice"),
        ("p.csv", 'id,prompt\n1,a cat\n2,"a dog\n3,a bird\n', "line 3: unexpected end"),
        ("p.jsonl", '{"prompt": "a cat", "seeds": [1, 2]}', "expected `seed`"),
        ("p.jsonl", '{"prompt": "a cat", "negative_prompt": "blur"}', "no negative prompt"),
        ("p.txt", "[\n 'a cat',\n]", "not JSON.*comma before the last bracket is too much"),
        ("p.txt", "['a cat', 'a dog']", "not JSON"),
        ("p.json", '{"author": "me", "license": "MIT"}', "JSON object of"),
        ("p.yaml", "prompts:\n- a cat\n", "YAML"),
        ("p.py", "prompts = ['a cat']", "Python"),
        ("p.html", "<p>a cat</p>", "HTML"),
        ("p.txt", "a cat\n".encode("utf-16-le"), "zero bytes"),
        ("p.txt", b"a cat\ncaf\xe9\nbl\xe9\n", "line 2: .*byte E9 .*line 3: .*byte E9"),
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


@pytest.mark.parametrize(
    "text",
    ['"Hello" says the cat', "[red] cat and dog", "a cat, a dog", "#sunset over a hill", "<sks> dog", "text, neon"],
)
def test_sentences_that_look_like_something_else(tmp_path: Path, text: str):
    assert entries_of(tmp_path, "p.txt", text) == [(text, "", None)]


def test_the_shared_cases(shared: Path):
    for number in ("11", "12", "13", "15", "18", "20", "22", "23"):
        (folder,) = (shared / "cases").glob(f"{number}-*")
        (file,) = folder.glob("prompts.*")
        texts = [entry.prompt.text for entry in read_entries(file)]
        assert len(texts) == (1 if number in ("11", "13") else 2), folder.name
        assert not any(mark in text for text in texts for mark in ('"', "\u00ad", "\u200b", "id,prompt")), folder.name
