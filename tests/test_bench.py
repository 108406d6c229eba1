"""The benchmark measures what its table says, on a size that takes no time."""

import pytest
import torch

from scripts.benchmark import holding, memory, models, peers, reading, worth, written


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(models.CONFIGS, "tiny", (3, 5, 4, 2))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_every_variant_is_a_ratio_to_the_plain_step(kind):
    found = peers.measure(kind, "tiny", repetitions=3, device="cpu")
    assert {"plain", "samples8", "full", "between", "unrolled", "input"} <= set(found)
    assert all(value > 0 for values in found.values() for value in values)
    row = peers.peers_row(kind, "tiny", found)
    assert row.count("|") == len(peers.COLUMNS) + 5


def test_the_unrolled_loop_is_the_same_network():
    bench = peers.Bench("LSTM", "tiny", device="cpu")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        cell = bench.loop.recurrent.cell
        getattr(cell, name).data.copy_(getattr(bench.model.recurrent, f"{name}_l0").data)
    bench.loop.readout.load_state_dict(bench.model.readout.state_dict())
    assert (bench.loop(bench.x) - bench.model(bench.x)).abs().max() < 1e-6
    bench.folder.cleanup()


@pytest.mark.parametrize("way", ["loop", "stepped", "cell", "rnn", "gru", "lstm", "lengths", "deep", "whole"])
def test_every_way_to_write_a_recurrence_has_its_ratio_and_the_share_of_the_search(way):
    found = written.measure_written(way, repetitions=2, torchlens=False, config="tiny")
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert max(found["search"]) < 1
    row = written.written_row(way, found, "tiny")
    assert row.count("|") == len(written.WRITTEN_COLUMNS) + 1


def test_a_training_at_the_interval_of_its_own_choice_has_the_ratio_of_all_its_steps():
    found = written.measure_auto("rnn", blocks=3, length=10, config="tiny")
    assert len(found["cpu"]) == len(found["wall"]) == 3
    assert min(found["whole"]) > 0
    assert found["every"] >= 1
    assert written.auto_row("rnn", found, "tiny").count("|") == len(written.AUTO_COLUMNS) + 1


@pytest.mark.parametrize("how", ["fixed", "lengths", "stepped"])
def test_memory_is_measured_however_the_layer_is_called(how):
    assert abs(memory.memory(3, warm_up=3, how=how)["growth_mb"]) < 64


@pytest.mark.parametrize("way", ["loop", "stepped", "cell"])
def test_every_way_to_write_an_lstm_is_the_same_network(way):
    torch.manual_seed(0)
    layer, x = torch.nn.LSTM(2, 4), torch.randn(5, 3, 2)
    own = models.WRITTEN[way].make(2, 4)
    for name, parameter in own.named_parameters():
        gate = "weight" if name.endswith("weight") else "bias"
        of = f"{gate}_{'ih' if 'i2h' in name else 'hh'}" if way == "loop" else name.split(".")[1].removesuffix("_l0")
        parameter.data.copy_(getattr(layer, f"{of}_l0").data)
    assert (own(x)[0] - layer(x)[0]).abs().max() < 1e-6


def test_the_search_is_put_back_as_it_was():
    before = written.Search.begin, written.Search.end
    with written.Searching():
        assert written.Search.begin is not before[0]
    assert (written.Search.begin, written.Search.end) == before


def test_how_long_the_store_holds_a_step_is_measured_with_all_records_kept():
    found = holding.measure_holding(0.2, tensors=False)
    assert len(found["calls"]) == len(found["steps"]) > 1
    assert all(0 <= wait <= wall for wall, wait in found["calls"] + found["steps"])
    assert found["dropped"] == 0
    assert holding.holding_row(found).count("|") == len(holding.COLUMNS) + 1


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, cut in worth.SHORT_CUTS.items() for way in cut.ways])
def test_the_longer_way_behind_a_short_cut_records_the_same(name, way):
    found = worth.measure_worth(name, way, repetitions=1, config="tiny")
    assert len(found["with"]) == len(found["without"]) == 1
    assert worth.worth_row(name, way, found, "tiny").count("|") == len(worth.COLUMNS) + 1


def test_what_reads_a_run_is_measured_in_a_process_of_its_own():
    rows = [row for row in reading.ROWS if row.name in ("pack", "inspect")]
    for row, costs, result in reading.measure_reading(rows, scale=0.001):
        assert 0 < costs.cpu < 60
        assert 10 < costs.mib < 1000
        assert reading.reading_row(row, costs, result).count("|") == len(reading.COLUMNS) + 1
