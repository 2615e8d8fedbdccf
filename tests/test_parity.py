"""Every golden case of the parity kit, as the replay script runs it."""

import importlib

import pytest
import replay_parity


@pytest.mark.parametrize("case", replay_parity.CASES)
def test_case_holds(shared, case):
    runs = list(importlib.import_module(f"parity.case{case}").replay(shared / "parity"))
    assert runs
    assert not [str(run) for run in runs if not run.held]
