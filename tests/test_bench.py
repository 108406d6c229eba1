"""The benchmark measures what its table says, on a size that takes no time."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def benchmark_script(monkeypatch):
    path = Path(__file__).parents[1] / "scripts" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.CONFIGS, "tiny", (3, 5, 4, 2))
    return module


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_every_variant_is_a_ratio_to_the_plain_step(benchmark_script, kind):
    found = benchmark_script.measure(kind, "tiny", deep=False, seconds=0.2, device="cpu")
    assert {"plain", "samples8", "full", "between", "unrolled", "input"} <= set(found)
    assert all(value > 0 for values in found.values() for value in values)
    row = benchmark_script._row(kind, "tiny", False, found)
    assert row.count("|") == len(benchmark_script.COLUMNS) + 5


def test_the_unrolled_loop_is_the_same_network(benchmark_script):
    bench = benchmark_script.Bench("LSTM", "tiny", deep=False, device="cpu")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        cell = bench.loop.recurrent.cell
        getattr(cell, name).data.copy_(getattr(bench.model.recurrent, f"{name}_l0").data)
    bench.loop.readout.load_state_dict(bench.model.readout.state_dict())
    assert (bench.loop(bench.x) - bench.model(bench.x)).abs().max() < 1e-6
    bench.folder.cleanup()
