"""The same numbers on a GPU; run where there is one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradscope

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "deep"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_norms_equal_those_of_the_cpu(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = KINDS[kind](5, 16, **options).double(), torch.randn(200, 12, 5, dtype=torch.float64)
    expected = gradscope.snapshot(model, lambda: model(x)[0][-1].pow(2).sum())
    model, x = copy.deepcopy(model).cuda(), x.cuda()
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        for _ in range(2):
            model(x)[0][-1].pow(2).sum().backward()
            recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    for site in expected:
        norms = expected[site].hidden.norm(dim=2).T.numpy()
        norms = norms if site.endswith("reverse") else norms[:, ::-1]
        for found in run.array(site, "hidden"):
            np.testing.assert_allclose(found, norms, rtol=1e-8)


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
    np.testing.assert_allclose(found, expected.cpu().numpy(), rtol=0.1)


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
