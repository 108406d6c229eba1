"""Each model is trained once, alone and recorded, for every test that asks what came of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.capture.recurrences.agreement import Training
from tests.capture.recurrences.cases import Case


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, torch.dtype], Training]:
    done: dict[tuple[str, torch.dtype], Training] = {}

    def of(case: Case, dtype: torch.dtype) -> Training:
        if (case.name, dtype) not in done:
            done[case.name, dtype] = Training.of(case, dtype, tmp_path_factory.mktemp(case.name) / "run")
        return done[case.name, dtype]

    return of
