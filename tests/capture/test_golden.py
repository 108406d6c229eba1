"""Every adjoint of the reference files, through ``gradscope.snapshot`` on the user's own ``torch.nn`` module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradscope
from gradscope.errors import NotRecordedError
from tests.golden_files import TOLERANCE, Golden, golden_files

QUANTITIES = {
    "hidden": "dh",
    "cell": "dc",
    "cell_carry": "dc_carry",
    "gates": "dgates",
    "input": "dinput",
    "weight": "wnorm_hh",
}


def _check(golden: Golden, snapshot: gradscope.Snapshot, rows: torch.Tensor) -> None:
    assert list(snapshot.sites) == [f"model/{suffix}" for suffix in golden.suffixes]
    for suffix in golden.suffixes:
        site = snapshot[f"model/{suffix}"]
        for quantity, reference in QUANTITIES.items():
            if f"{reference}_{suffix}" not in golden.data:
                with pytest.raises(NotRecordedError):
                    getattr(site, quantity)
                continue
            expected = torch.from_numpy(golden.data[f"{reference}_{suffix}"])
            if expected.dim() == 3:
                expected = expected[:, rows]
            torch.testing.assert_close(
                getattr(site, quantity), expected, **TOLERANCE[golden.dtype], msg=lambda m, q=quantity: f"{q}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_snapshot_equals_reference(path: Path, batch_first: bool, dtype: torch.dtype) -> None:
    golden = Golden.load(path, dtype)
    module = golden.module(batch_first)
    snapshot = gradscope.snapshot(module, lambda: golden.loss(module))
    assert snapshot.loss == pytest.approx(float(golden.data["loss"]), rel=1e-4)
    _check(golden, snapshot, torch.arange(3))


@pytest.mark.parametrize("path", [p for p in golden_files() if "packed" in p.stem], ids=lambda path: path.stem)
def test_unsorted_packed_batch_keeps_the_users_row_order(path: Path) -> None:
    golden = Golden.load(path)
    module = golden.module()
    snapshot = gradscope.snapshot(module, lambda: golden.loss(module, unsorted=True))
    _check(golden, snapshot, torch.tensor([1, 2, 0]))
    assert snapshot["model/l0"].lengths.tolist() == golden.data["lengths"][[1, 2, 0]].tolist()
