"""Pictures of another system become a run: matched with a benchmark, gaps told, judged like those of any run."""

import json
from pathlib import Path

import pytest
from PIL import Image

from triptych.apps.cli import main
from triptych.data.render import render_array
from triptych.data.scene import Scene
from triptych.eval.benchmark import recorded_trace, rejudge
from triptych.eval.run_folder import RunFolder
from triptych.eval.suites import dev_set
from triptych.eval.vqa import PictureSet
from triptych.rewards.sticker_judge import WorldJudge

DEV = dev_set()
TOTAL = len(DEV.prompts)


def geneval_layout(root: Path, count: int = TOTAL) -> Path:
    """Pictures of the dev set's first prompts, all right, in GenEval's layout."""
    for index, prompt in enumerate(DEV.prompts[:count]):
        assert prompt.spec is not None
        samples = root / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        metadata = {**prompt.spec.to_metadata(), "prompt": prompt.text}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
        Image.fromarray(render_array(Scene.sample(prompt.spec, index))).save(samples / "0000.png")
    return root


def test_imported_pictures_are_judged_and_asked_about_as_those_of_a_run(tmp_path, capsys):
    folder, run = geneval_layout(tmp_path / "theirs"), tmp_path / "run"
    assert main(["import", str(folder), "--as", str(run), "--name", "theirs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["benchmark"], told["pictures"], told["faults"]) == (DEV.name, TOTAL, [])
    assert RunFolder.read(run).report().missing == TOTAL  # nobody has judged them: none is right, none is wrong
    assert RunFolder.read(run).manifest["model"] == "theirs"
    assert len(PictureSet.read(run).pictures) == TOTAL
    assert main(["eval", "dev", "--drawn", str(run), "--judge", "world", "--out", str(tmp_path / "judged")]) == 0
    report = RunFolder.read(tmp_path / "judged").report()
    assert report.missing == 0 and all(turns[0].value == 1.0 for turns in report.accuracy.values())
    assert main(["report", str(tmp_path / "judged"), "--json"]) == 0
    assert main(["import", str(folder), "--as", str(run)]) == 2  # never overwritten


def test_gaps_and_unreadable_pictures_are_told_and_are_missing_not_wrong(tmp_path, capsys):
    folder, run = geneval_layout(tmp_path / "theirs", 3), tmp_path / "run"
    good = (folder / "00001/samples/0000.png").read_bytes()
    (folder / "00001/samples/0000.png").write_bytes(b"no picture")
    assert main(["import", str(folder), "--as", str(run), "--benchmark", "dev", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["pictures"] == 2 and "00001/samples/0000.png" in said.err
    assert DEV.prompts[3].text[:20] in said.err
    assert RunFolder.read(run).report().missing == TOTAL
    rows = list(rejudge(DEV, RunFolder.read(run), WorldJudge()))
    assert [row.score(0) for row in rows[:4]] == [1.0, None, 1.0, None]
    assert recorded_trace(DEV, RunFolder.read(run), rows[1]).image is None
    # Mended and resumed: what was read stays, what was not is read now.
    (folder / "00001/samples/0000.png").write_bytes(good)
    main(["import", str(folder), "--as", str(run), "--benchmark", "dev", "--resume", "--json"])
    assert json.loads(capsys.readouterr().out)["pictures"] == 3
    assert [row.score(0) for row in rejudge(DEV, RunFolder.read(run), WorldJudge())][:4] == [1.0, 1.0, 1.0, None]


@pytest.mark.parametrize("key", ["image", "picture"])
def test_a_list_is_matched_by_its_sentences(tmp_path, capsys, key):
    folder = geneval_layout(tmp_path / "theirs", 2)
    lines = [{key: f"{index:05d}/samples/0000.png", "prompt": DEV.prompts[index].text} for index in (1, 0)]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["import", str(folder / "list.jsonl"), "--as", str(tmp_path / "run"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    assert [row.score(0) for row in rejudge(DEV, RunFolder.read(tmp_path / "run"), WorldJudge())][:3] == [
        1.0,
        1.0,
        None,
    ]
    (folder / "list.jsonl").write_text(json.dumps({"image": "00000/samples/0000.png", "prompt": "a castle"}) + "\n")
    assert main(["import", str(folder / "list.jsonl"), "--as", str(tmp_path / "other")]) == 2
    assert "--benchmark" in capsys.readouterr().err and not (tmp_path / "other").exists()
