"""Fixtures shared by all rooms. Golden files lie in `shared` beside the repository; without it those tests skip."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from shapes import CHECKED

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads, and for the commands that tests start: tiny models
install_import_hook(CHECKED, "shapes.checked")  # before triptych is imported: shapes are checked in every test
settings.register_profile("triptych", deadline=None)  # no test measures time
settings.load_profile("triptych")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"golden files are not here: expected {SHARED}")
    return SHARED
