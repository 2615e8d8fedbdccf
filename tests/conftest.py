"""Fixtures shared by all rooms. The folder `shared` beside the repository holds golden files; without it those tests skip."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"golden files are not here: expected {SHARED}")
    return SHARED
