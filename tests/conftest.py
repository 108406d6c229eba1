"""One thread, no screen, and the same hypothesis examples every time; without torch, the tests that need none."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

try:
    import torch
except ModuleNotFoundError:  # reading, diagnosing, drawing and reporting need none
    torch = None
else:
    torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of ``tests.recordings``, recorded once."""
    from tests.recordings import RECORDINGS, record

    home = tmp_path_factory.mktemp("recordings")
    return {name: record(home / str(i), of) for i, (name, of) in enumerate(RECORDINGS.items())}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """The trainings of ``tests.families`` with their runs, trained once."""
    from tests.families import TRAININGS, record

    home = tmp_path_factory.mktemp("trainings")
    return [(of, record(home / f"run-{i}", of)) for i, of in enumerate(TRAININGS)]


if torch is None:

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
        report = yield
        return _skipped_for_torch(report, report.call, collector)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        return _skipped_for_torch(report, call, item)


def _skipped_for_torch(report: Any, call: Any, node: pytest.Item | pytest.Collector) -> Any:
    """The report of what failed for want of torch alone, as one that was skipped."""
    error = call.excinfo and call.excinfo.value
    while error is not None and not (isinstance(error, ModuleNotFoundError) and error.name == "torch"):
        error = error.__cause__  # of a module that cannot be collected
    if report.failed and error is not None:
        report.outcome, report.longrepr = "skipped", (str(node.path), 0, "needs torch")
    return report
