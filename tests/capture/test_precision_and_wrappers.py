"""Mixed precision, loss scaling, torch.compile, DataParallel and DistributedDataParallel."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from tests.loops import LoopLayer, adjoints, against_lag


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(3, 6, batch_first=True)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.rnn(x)[0][:, -1])


def _reader(kind: type[nn.RNNBase] = nn.LSTM) -> Reader:
    torch.manual_seed(0)
    return Reader(kind)


def _x(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(seed))


def _expected(model: Reader) -> np.ndarray:
    """Norms against lag of ∂L/∂h_t for L = mean(output²), in float32 by autograd."""
    twin = Reader(type(model.rnn))
    twin.rnn, twin.readout = LoopLayer(model.rnn), model.readout
    loss = twin(_x()).pow(2).mean()
    return against_lag(adjoints(loss, twin.rnn.states[0])).numpy()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [  # torch has no float16 LSTM on the CPU
        (nn.RNN, torch.bfloat16),
        (nn.RNN, torch.float16),
        (nn.LSTM, torch.bfloat16),
        (nn.GRU, torch.bfloat16),
        (nn.GRU, torch.float16),
    ],
)
def test_autocast(kind: type[nn.RNNBase], dtype: torch.dtype, tmp_path: Path) -> None:
    model = _reader(kind)
    expected = _expected(model)
    try:
        with torch.autocast("cpu", dtype=dtype):
            model(_x())
    except RuntimeError as error:  # an LSTM in bfloat16 takes instructions that not every processor has
        pytest.skip(f"torch itself cannot: {error}")
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        with torch.autocast("cpu", dtype=dtype):
            loss = model(_x()).float().pow(2).mean()
        loss.backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    # The forward pass itself is rounded to 8 or 11 bits; the curve must be that of the float32 model within it.
    np.testing.assert_allclose(run.array("rnn/l0", "hidden")[0], expected, rtol=0.1)
    assert run.lost == {}


def test_the_loss_scale_is_divided_out_and_stored(tmp_path: Path) -> None:
    model = _reader()
    expected = _expected(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, samples=None) as recorder:
        scaler.scale(model(_x()).pow(2).mean()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    run = gradscope.open_run(recorder.run_dir)
    np.testing.assert_allclose(run.array("rnn/l0", "hidden")[0], expected, rtol=1e-5)
    assert run.records("rnn/l0")["loss_scale"].tolist() == [65536.0]
    assert run.clips()["norm_after"].tolist() == pytest.approx([1e-3], rel=1e-2)


def test_a_skipped_step_is_marked_and_counted_as_a_step(tmp_path: Path) -> None:
    model = _reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1) as recorder:
        for factor in (1.0, float("inf"), 1.0):
            scaler.scale(model(_x()).pow(2).mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    run = gradscope.open_run(recorder.run_dir)
    records = run.records("rnn/l0")
    assert records["step"].tolist() == [0, 1, 2]
    assert records["skipped"].tolist() == [False, True, False]
    assert records["nonfinite"].tolist() == [0, 4, 0]


@pytest.mark.parametrize("when", ["before", "after", "in place"])
def test_a_compiled_model_is_recorded_exactly(when: str, tmp_path: Path) -> None:
    model = _reader()
    expected = _expected(model)
    compiled = torch.compile(model, backend="eager") if when == "before" else model
    with gradscope.record(compiled, tmp_path / "run", every=1, samples=None) as recorder:
        for _ in range(2):
            compiled(_x()).pow(2).mean().backward()
            recorder.step()
            if when == "after":
                compiled = torch.compile(model, backend="eager")
            elif when == "in place":
                model.compile(backend="eager")
    run = gradscope.open_run(recorder.run_dir)
    assert run.sites == ("rnn/l0",)
    assert run.n_records == 2
    for record in run.array("rnn/l0", "hidden"):
        np.testing.assert_allclose(record, expected, rtol=1e-4)


def test_data_parallel_is_recorded_under_the_models_own_names(tmp_path: Path) -> None:
    model = _reader()
    expected = _expected(model)
    with gradscope.record(nn.DataParallel(model), tmp_path / "run", every=1, samples=None) as recorder:
        nn.DataParallel(model)(_x()).pow(2).mean().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    np.testing.assert_allclose(run.array("rnn/l0", "hidden")[0], expected, rtol=1e-4)


def test_a_replica_of_data_parallel_is_named_in_coverage(tmp_path: Path) -> None:
    """On several devices DataParallel runs copies of the layer, which belong to no module of the model."""
    model = _reader()
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        replica = model.rnn._replicate_for_data_parallel()
        replica._flat_weights = [weight.detach().clone().requires_grad_() for weight in model.rnn._flat_weights]
        replica(_x())[0].sum().backward()
        recorder.step()
    (line,) = gradscope.open_run(recorder.run_dir).coverage
    assert line.status == "missing"
    assert "replica of DataParallel; use DistributedDataParallel" in line.reason


DDP = """
    import torch, gradscope
    from torch import nn
    import torch.distributed as dist
    from tests.capture.test_precision_and_wrappers import _reader, _x

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(_reader())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.record(model, "run", optimizer=optimizer, every=2, samples=None) as recorder:
        for step in range(3):
            loss = model(_x(10 * rank + step)).pow(2).mean()
            loss.backward()
            recorder.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss)
    dist.destroy_process_group()
"""


def test_two_ddp_processes_write_beside_each_other(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run = gradscope.open_run(tmp_path / "run")
    records = run.records("rnn/l0")
    assert sorted(zip(records["rank"], records["step"], strict=True)) == [(0, 0), (0, 2), (1, 0), (1, 2)]
    # Each rank's adjoints are those of its own batch.
    model, first = _reader(), records.index[(records["rank"] == 1) & (records["step"] == 0)][0]
    twin = Reader()
    twin.rnn, twin.readout = LoopLayer(model.rnn), model.readout
    loss = twin(_x(10)).pow(2).mean()
    expected = against_lag(adjoints(loss, twin.rnn.states[0])).numpy()
    np.testing.assert_allclose(run.array("rnn/l0", "hidden")[first], expected, rtol=1e-4)
