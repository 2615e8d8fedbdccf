"""Every golden case of the parity kit, as the replay script runs it."""

import importlib

import pytest
import replay_parity


@pytest.mark.parametrize("case", replay_parity.CASES)
def test_case_holds(shared, case):
    runs = list(importlib.import_module(f"parity.case{case}").replay(shared / "parity"))
    assert runs
    assert not [str(run) for run in runs if not run.held]


def test_a_folder_with_some_cases_is_replayed_whole(shared, tmp_path, capsys):
    """Other sets of golden files have neither the manifest of case 8 nor every piece of case 6."""
    for name in ("case5_vae", "case6_text_sampling", "case6_strings"):
        for path in (shared / "parity").glob(f"{name}.*"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tiny_ckpt").symlink_to(shared / "parity" / "tiny_ckpt")
    assert replay_parity.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 runs hold"
    assert replay_parity.main([str(tmp_path), "--cases", "5,8"]) == 1  # what is asked for must be there
    assert "case 8   breaks off" in capsys.readouterr().out
