"""Norms read back from a run, against autograd on the same network unrolled: rows, lags, padding and directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gradscope
from tests.unrolled import Unrolled, UnrolledSite, expected, layer_by_layer, unroll

T, B, FEATURES, H = 9, 20, 3, 4
LAYERS: dict[str, Any] = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
PER_LAG = ("hidden", "cell", "cell_carry", "input", "direct", "recurrent")
# Evenly spaced: the middle row of each eighth of a batch of 20.
EIGHT = [1, 3, 6, 8, 11, 13, 16, 18]
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
cells = pytest.mark.parametrize("cell", LAYERS)


class Model(nn.Module):
    """A packed batch, given unsorted, through a layer with every ending a loss may use."""

    def __init__(self, cell: str, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__()
        self.body = LAYERS[cell](FEATURES, H, dtype=dtype, **settings)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, final = self.body(packed)
        return output.data, final[0] if isinstance(final, tuple) else final


def _record(model: Model, x: Tensor, lengths: Tensor, run: Path, **settings: Any) -> gradscope.Run:
    with gradscope.record(model, run, every=1, **{"quantities": "all", **settings}) as recorder:
        data, h_n = model(x, lengths)
        (data.pow(2).sum() + h_n.sum()).backward()
        recorder.step()
    return gradscope.open_run(run)


def _reference(model: Model, x: Tensor, lengths: Tensor, masks: list[Tensor] | None = None) -> Unrolled:
    reference = unroll(model.body, x, lengths, masks)
    reference.differentiate(reference.output.pow(2).sum() + reference.h_n.sum())
    return reference


def _by_lag(values: Tensor, lengths: Tensor, reverse: bool) -> np.ndarray:
    """Reorder (T, B, ...) to (B, lag, ...), sequence by sequence, NaN beyond the length."""
    found = np.full((values.shape[1], values.shape[0], *values.shape[2:]), np.nan)
    for b, length in enumerate(lengths.tolist()):
        for t in range(length):
            found[b, t if reverse else length - 1 - t] = values[t, b].numpy()
    return found


def _subset(site: UnrolledSite, quantity: str, rows: list[int]) -> Tensor:
    return expected(site, quantity)[:, rows]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("samples", [8, None], ids=["8 samples", "whole batch"])
@cells
def test_norms_of_a_ragged_batch_equal_autograd(
    cell: str, samples: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Model(cell, dtype, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, B, FEATURES, dtype=dtype), torch.randint(1, T, (B,))
    lengths[[3, 7]] = torch.tensor([T, 1])
    run = _record(model, x, lengths, tmp_path / "run", samples=samples, tensors=True)
    reference = _reference(model, x, lengths)
    rows = EIGHT if samples else list(range(B))
    assert run.lost == {}
    assert run.sites == tuple(f"body/{suffix}" for suffix in reference.sites)
    for suffix, site in reference.sites.items():
        name, reverse, taken = f"body/{suffix}", suffix.endswith("_reverse"), lengths[rows]
        assert run.rows(name).tolist() == [rows]
        assert run.lengths(name).tolist() == [taken.tolist()]
        for quantity in PER_LAG:
            if quantity.startswith("cell") and cell != "LSTM":
                assert quantity not in run.quantities(name)
                continue
            truth = _by_lag(_subset(site, quantity, rows), taken, reverse)
            found = run.array(name, quantity)[0]
            assert np.array_equal(np.isnan(found), np.isnan(truth[..., 0])), "NaN on padding and nowhere else"
            np.testing.assert_allclose(found, np.linalg.norm(truth, axis=2), **TOLERANCE[dtype], err_msg=quantity)
            if quantity != "recurrent":  # hidden minus direct, both of which are kept in full, in float32
                tensor = run.array(name, f"{quantity}_tensor")[0]
                np.testing.assert_allclose(tensor, truth, rtol=1e-4, atol=1e-5, err_msg=quantity)
        gates = _by_lag(_subset(site, "gates", rows), taken, reverse)
        by_gate = np.linalg.norm(gates.reshape(len(rows), T, GATES[cell], H), axis=3).swapaxes(1, 2)
        np.testing.assert_allclose(run.array(name, "gates")[0], by_gate, **TOLERANCE[dtype])


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("cell", "options"), [("RNN", {}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})])
def test_the_defaults_hold_the_gradient_of_the_input_of_every_site(
    cell: str, options: dict[str, int], dtype: torch.dtype, ragged: bool, tmp_path: Path
) -> None:
    model = Model(cell, dtype, num_layers=2, bidirectional=True, **options)
    x = torch.randn(T, B, FEATURES, dtype=dtype)
    lengths = torch.randint(1, T, (B,)) if ragged else torch.full((B,), T)
    lengths[3] = T
    run = _record(model, x, lengths, tmp_path / "run", quantities=None)
    reference = _reference(model, x, lengths)
    for suffix, site in reference.sites.items():
        name, reverse = f"body/{suffix}", suffix.endswith("_reverse")
        assert set(run.quantities(name)) == {"hidden", "input", "direct"} | ({"cell"} if cell == "LSTM" else set())
        truth = np.linalg.norm(_by_lag(_subset(site, "input", EIGHT), lengths[EIGHT], reverse), axis=2)
        np.testing.assert_allclose(run.array(name, "input")[0], truth, **TOLERANCE[dtype], err_msg=suffix)


@cells
def test_what_is_summed_over_the_batch_counts_the_sampled_sequences(cell: str, tmp_path: Path) -> None:
    model = Model(cell, torch.float64, bidirectional=True)
    x, lengths = torch.randn(T, B, FEATURES, dtype=torch.float64), torch.randint(1, T + 1, (B,))
    run = _record(model, x, lengths, tmp_path / "run", samples=8)
    whole = _record(model, x, lengths, tmp_path / "whole", samples=None)
    for rows, found in ((EIGHT, run), (list(range(B)), whole)):
        steps = int(lengths[rows].max())
        reference = _reference(model, x[:steps, rows], lengths[rows])
        for suffix, site in reference.sites.items():
            weight = found.array(f"body/{suffix}", "weight")[0]
            np.testing.assert_allclose(weight, expected(site, "weight").numpy(), rtol=1e-8, atol=1e-12)
            gates = _by_lag(expected(site, "gates"), lengths[rows], suffix.endswith("_reverse"))
            agreement = found.array(f"body/{suffix}", "consistency")[0]
            np.testing.assert_allclose(agreement, _mean_pairwise_cosine(gates), rtol=1e-8, atol=1e-10)


def _mean_pairwise_cosine(gates: np.ndarray) -> np.ndarray:
    """Pair by pair over the sequences that reach a lag; (lag,)."""
    means = []
    for lag in range(gates.shape[1]):
        present = [v for v in gates[:, lag] if np.isfinite(v).all() and v.any()]
        cosines = [v @ w / np.linalg.norm(v) / np.linalg.norm(w) for i, v in enumerate(present) for w in present[:i]]
        means.append(np.mean(cosines) if cosines else np.nan)
    return np.array(means)


def test_the_cell_path_and_the_gate_activations_of_an_lstm(tmp_path: Path) -> None:
    model = Model("LSTM", torch.float64)
    x, lengths = torch.randn(T, B, FEATURES, dtype=torch.float64), torch.randint(1, T + 1, (B,))
    lengths[0] = T
    run = _record(model, x, lengths, tmp_path / "run", samples=None)
    full = _reference(model, x, lengths).sites["l0"]
    path = unroll(model.body, x, lengths, detach_hidden=True)
    # With h cut, autograd starts from the same gradients: those of the loss at each output.
    path.differentiate(path.output.pow(2).sum() + path.h_n.sum())
    truth = np.linalg.norm(_by_lag(path.sites["l0"].gradients["cell"], lengths, False), axis=2)
    np.testing.assert_allclose(run.array("body/l0", "cell_path")[0], truth, rtol=1e-10, atol=1e-12)

    valid = torch.arange(T)[:, None] < lengths
    a = torch.stack([full.nodes["gates"][t].detach() for t in range(T)])[valid].unflatten(1, (4, H))
    values = torch.stack([torch.tanh(a[:, k]) if k == 2 else torch.sigmoid(a[:, k]) for k in range(4)], 1)
    np.testing.assert_allclose(run.array("body/l0", "gate_mean")[0], values.mean(0).numpy(), rtol=1e-10)
    retention = run.array("body/l0", "gate_log_mean")[0][1]
    np.testing.assert_allclose(retention, values[:, 1].log().mean(0).numpy(), rtol=1e-10)


@cells
def test_dropout_between_layers_is_exact_for_a_subset_of_the_rows(cell: str, tmp_path: Path) -> None:
    model = Model(cell, torch.float64, num_layers=3, bidirectional=True, dropout=0.3)
    x, lengths = torch.randn(T, B, FEATURES, dtype=torch.float64), torch.randint(1, T + 1, (B,))
    lengths[0] = T
    before = torch.get_rng_state()
    run = _record(model, x, lengths, tmp_path / "run", samples=8)
    torch.set_rng_state(before)
    masks = layer_by_layer(model.body, pack_padded_sequence(x, lengths, enforce_sorted=False))[1]
    reference = _reference(model, x, lengths, masks)
    for suffix, site in reference.sites.items():
        truth = _by_lag(_subset(site, "hidden", EIGHT), lengths[EIGHT], suffix.endswith("_reverse"))
        found = run.array(f"body/{suffix}", "hidden")[0]
        np.testing.assert_allclose(
            found, np.linalg.norm(truth, axis=2)[:, : found.shape[1]], rtol=1e-10, atol=1e-12, err_msg=suffix
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_norms_of_a_run_are_those_of_a_snapshot(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Model("LSTM", dtype, num_layers=2)
    x, lengths = torch.randn(T, B, FEATURES, dtype=dtype), torch.randint(1, T + 1, (B,))

    def loss() -> Tensor:
        data, h_n = model(x, lengths)
        return data.pow(2).sum() + h_n.sum()

    taken = gradscope.snapshot(model, loss)
    run = _record(model, x, lengths, tmp_path / "run", samples=None)
    for site in run.sites:
        table = run.norms(site, "cell")
        assert len(table) == int(lengths.sum()), "one row per valid timestep"
        t = lengths.numpy()[table.sequence] - 1 - table.lag
        found = taken[site].cell.norm(dim=2).numpy()[t, table.sequence]
        np.testing.assert_allclose(table.norm, found, **TOLERANCE[dtype])


def test_a_float32_run_of_400_steps_holds_no_false_zero(tmp_path: Path) -> None:
    model = nn.RNN(2, 32)
    x = torch.randn(400, 4, 2)
    with gradscope.record(model, tmp_path / "run", every=1, samples=None):
        model(x)[0][-1].sum().backward()
    run = gradscope.open_run(tmp_path / "run")
    reference = unroll(model, x)
    reference.differentiate(reference.output[-1].sum())
    truth = _by_lag(expected(reference.sites["l0"], "hidden"), torch.full((4,), 400), reverse=False)
    found, truth = run.array("model/l0", "hidden")[0], np.linalg.norm(truth, axis=2)
    assert truth.min() < 1e-45, "beyond what float32 can hold"
    assert (truth > 0).all()
    assert (found > 0).all()
    np.testing.assert_allclose(np.log10(found), np.log10(truth), atol=0.01)
    assert set(run.norms("model/l0", "hidden").flag) == {""}
