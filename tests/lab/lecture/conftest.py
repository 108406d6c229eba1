"""One quick lecture, for all tests of it."""

from __future__ import annotations

import pytest

from gradscope.lab.lecture.trainings import run_lecture
from gradscope.store import open_run


@pytest.fixture(scope="package")
def held(tmp_path_factory):
    results, kept = run_lecture(tmp_path_factory.mktemp("lecture") / "out", quick=True, progress=False)
    runs = [open_run(path) for path in kept]
    yield results, runs
    for run in runs:
        run.close()
