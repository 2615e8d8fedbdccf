"""Fixtures shared by all rooms. Golden files lie in `shared` beside the repository; without it those tests skip."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"golden files are not here: expected {SHARED}")
    return SHARED
