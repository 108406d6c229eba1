"""The same numbers on a GPU; run where there is one. Elsewhere ``tests/capture/devices`` has a stand-in for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.layers import adapters
from gradscope.schema import DATASETS
from tests.capture.devices.models import MODELS, NAMED, Leaky, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

every_kind = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_REGISTRY", dict(adapters._REGISTRY))
    gradscope.register_adapter(Leaky)


@every_kind
def test_a_snapshot_is_the_cpus(name: str) -> None:
    model, x = build(name, torch.float64)
    expected = gradscope.snapshot(model, lambda: model(x), sites=NAMED.get(name))
    model, x = model.cuda(), x.cuda()
    with torch.device("cuda"):
        found = gradscope.snapshot(model, lambda: model(x), sites=NAMED.get(name))
    assert set(found) == set(expected)
    assert found.coverage == expected.coverage
    for site in expected:
        assert (found[site].carried, found[site].after) == (expected[site].carried, expected[site].after)
        for here, there in zip(found[site].states, expected[site].states, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(found[site].adjoints.input, expected[site].adjoints.input, rtol=1e-8, atol=1e-14)


def _run(name: str, run_dir: Path, device: str) -> Any:
    model, x = build(name, torch.float32)
    model, x = model.to(device), x.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options: Any = {"every": 2, "samples": 3, "quantities": "all", "sites": NAMED.get(name)}
    with torch.device(device), gradscope.record(model, run_dir, optimizer=optimizer, **options) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    return gradscope.open_run(run_dir)


@every_kind
def test_a_run_is_the_cpus(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected, found = (_run(name, tmp_path / device, device) for device in ("cpu", "cuda"))
    assert found.lost == {}
    assert found.coverage == expected.coverage
    assert found.sites == expected.sites
    for site in expected.sites:
        for quantity in set(expected.quantities(site)) & DATASETS.keys():
            here, there = found.array(site, quantity), expected.array(site, quantity)
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-5, err_msg=f"{site} {quantity}")


PROBES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "spectrum": lambda model, x: vars(gradscope.spectrum(model, x, site="model/l1")),
    "source_target": lambda model, x: vars(
        gradscope.source_target(model, lambda: model(x)[0].pow(2).sum((1, 2)), site="model/l1")
    ),
    "clip_whatif": lambda model, x: (
        gradscope.clip_whatif(
            model, lambda: model(x)[0].pow(2).sum(), thresholds=[0.1, float("inf")], site="model/l1"
        ).norms
    ),
    "remedies": lambda model, x: dict(gradscope.remedies(model, lambda: model(x)[0].pow(2).sum()).table),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_what_a_probe_measures_is_the_cpus(kind: type[nn.RNNBase], probe: str) -> None:
    model, x = kind(5, 8, num_layers=2).double(), torch.randn(20, 4, 5, dtype=torch.float64)
    expected = PROBES[probe](model, x)
    model, x = model.cuda(), x.cuda()
    with torch.device("cuda"):
        found = PROBES[probe](model, x)
    numbers = {name: np.asarray(value) for name, value in expected.items()}
    numbers = {name: value for name, value in numbers.items() if value.dtype.kind == "f"}
    assert numbers
    for name, value in numbers.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-12, err_msg=name)


def test_mixed_precision_and_its_loss_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(5, 16).cuda(), torch.randn(40, 4, 5, device="cuda")
    expected = gradscope.snapshot(model, lambda: model(x)[0][-1].sum())["model/l0"].cell.norm(dim=2).flip(0).T
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, samples=None):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)[0][-1].float().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "cell")[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0.1)


def test_weights_end_bit_identical_with_and_without_recording(tmp_path: Path) -> None:
    def train(record: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, x = nn.GRU(5, 16).cuda(), torch.randn(40, 4, 5, device="cuda")
        optimizer = torch.optim.Adam(model.parameters())
        recorder = gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=2) if record else None
        for _ in range(20):
            optimizer.zero_grad()
            model(x)[0][-1].pow(2).sum().backward()
            optimizer.step()
        if recorder is not None:
            recorder.close()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for plain, recorded in zip(train(record=False), train(record=True), strict=True):
        assert torch.equal(plain, recorded)


def test_dropout_between_the_layers_is_named_in_coverage(tmp_path: Path) -> None:
    model, x = nn.LSTM(5, 16, num_layers=2, dropout=0.5).cuda(), torch.randn(40, 4, 5, device="cuda")
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model(x)[0][-1].sum().backward()
        recorder.step()
    reasons = {line.reason for line in gradscope.open_run(tmp_path / "run").coverage}
    assert len(reasons) == 1
    assert "cannot be reproduced" in reasons.pop()
