"""A quantity added as docs/adding.md says: the joint adjoint of (h_t, c_t, h_t held fixed), by two entries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope import schema
from gradscope.adjoint import Adjoints
from gradscope.capture.calls import reduction
from gradscope.capture.calls.reduction import Source
from gradscope.reading import select
from gradscope.reading.answers import pooled_fit
from tests.unrolled import unroll


def _joint(adjoints: Adjoints) -> Tensor | None:
    if adjoints.hidden is None or adjoints.cell_carry is None:
        return adjoints.hidden
    return torch.cat((adjoints.hidden, adjoints.cell_carry), 2)


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = schema._norm("joint", r"\partial L/\partial s_t", "adjoint of the joint state", ("unit_joint",))
    monkeypatch.setitem(schema.QUANTITIES, "joint", entry)
    for name, dims in (*entry.datasets.items(), ("joint_tensor", entry.tensor)):
        assert dims is not None
        monkeypatch.setitem(schema.DATASETS, name, dims)  # which the module makes of QUANTITIES
    monkeypatch.setattr(select, "PER_LAG", (*select.PER_LAG, "joint"))  # made of QUANTITIES as well
    monkeypatch.setitem(reduction.SOURCES, "joint", Source(_joint, scaled=True, needs_gates=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_it_is_recorded_stored_read_and_fitted(kind: type[nn.RNNBase], dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = kind(3, 5).to(dtype), torch.randn(40, 4, 3, dtype=dtype)
    with gradscope.record(module, tmp_path / "run", every=1, quantities=["joint"], tensors=True) as recorder:
        module(x)[0][-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert run.quantities("model/l0") == ("joint",)
    reference = unroll(module, x)
    reference.differentiate(reference.output[-1].sum())
    found = reference.sites["l0"].gradients
    parts = [found[name].numpy() for name in ("hidden", "cell_carry") if name in found]
    expected = np.concatenate(parts, axis=2)[::-1].swapaxes(0, 1)
    exact = {"rtol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4}
    np.testing.assert_allclose(run.array("model/l0", "joint")[0], np.linalg.norm(expected, axis=2), **exact)
    np.testing.assert_allclose(run.array("model/l0", "joint_tensor")[0], expected, rtol=1e-3, atol=1e-7)
    assert pooled_fit(run, "model/l0", "joint").rate < 0
    assert set(run.norms("model/l0", "joint")["flag"]) == {""}
