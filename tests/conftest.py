"""One thread, no screen, and the same hypothesis examples every time."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of ``tests.recordings``, recorded once."""
    from tests.recordings import RECORDINGS, record

    home = tmp_path_factory.mktemp("recordings")
    return {name: record(home / str(i), of) for i, (name, of) in enumerate(RECORDINGS.items())}
