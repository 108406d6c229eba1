"""The benchmark measures what its table says, on a size that takes no time."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark_script(monkeypatch):
    path = Path(__file__).parents[1] / "scripts" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_script", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.CONFIGS, "tiny", (3, 5, 4, 2))
    return module


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_every_variant_is_a_ratio_to_the_plain_step(benchmark_script, kind):
    found = benchmark_script.measure(kind, "tiny", repetitions=3, device="cpu")
    assert {"plain", "samples8", "full", "between", "unrolled", "input"} <= set(found)
    assert all(value > 0 for values in found.values() for value in values)
    row = benchmark_script._row(kind, "tiny", found)
    assert row.count("|") == len(benchmark_script.COLUMNS) + 5


def test_the_unrolled_loop_is_the_same_network(benchmark_script):
    bench = benchmark_script.Bench("LSTM", "tiny", device="cpu")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        cell = bench.loop.recurrent.cell
        getattr(cell, name).data.copy_(getattr(bench.model.recurrent, f"{name}_l0").data)
    bench.loop.readout.load_state_dict(bench.model.readout.state_dict())
    assert (bench.loop(bench.x) - bench.model(bench.x)).abs().max() < 1e-6
    bench.folder.cleanup()


@pytest.mark.parametrize("way", ["loop", "stepped", "cell", "rnn", "gru", "lstm", "lengths", "deep", "whole"])
def test_every_way_to_write_a_recurrence_has_its_ratio_and_the_share_of_the_search(benchmark_script, way):
    found = benchmark_script.measure_written(way, repetitions=2, torchlens=False, config="tiny")
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert max(found["search"]) < 1
    row = benchmark_script._written_row(way, found, "tiny")
    assert row.count("|") == len(benchmark_script.WRITTEN_COLUMNS) + 1


def test_a_training_at_the_interval_of_its_own_choice_has_the_ratio_of_all_its_steps(benchmark_script):
    found = benchmark_script.measure_auto("rnn", blocks=3, length=10, config="tiny")
    assert len(found["cpu"]) == len(found["wall"]) == 3
    assert min(found["whole"]) > 0
    assert found["every"] >= 1
    assert benchmark_script._auto_row("rnn", found, "tiny").count("|") == len(benchmark_script.AUTO_COLUMNS) + 1


@pytest.mark.parametrize("how", ["fixed", "lengths", "stepped"])
def test_memory_is_measured_however_the_layer_is_called(benchmark_script, how):
    assert abs(benchmark_script.memory(3, warm_up=3, how=how)["growth_mb"]) < 64


@pytest.mark.parametrize("way", ["loop", "stepped", "cell"])
def test_every_way_to_write_an_lstm_is_the_same_network(benchmark_script, way):
    torch.manual_seed(0)
    layer, x = torch.nn.LSTM(2, 4), torch.randn(5, 3, 2)
    own = benchmark_script.WRITTEN[way].make(2, 4)
    for name, parameter in own.named_parameters():
        gate = "weight" if name.endswith("weight") else "bias"
        of = f"{gate}_{'ih' if 'i2h' in name else 'hh'}" if way == "loop" else name.split(".")[1].removesuffix("_l0")
        parameter.data.copy_(getattr(layer, f"{of}_l0").data)
    assert (own(x)[0] - layer(x)[0]).abs().max() < 1e-6


def test_the_search_is_put_back_as_it_was(benchmark_script):
    before = benchmark_script.Search.begin, benchmark_script.Search.end
    with benchmark_script.Searching():
        assert benchmark_script.Search.begin is not before[0]
    assert (benchmark_script.Search.begin, benchmark_script.Search.end) == before
