import numpy as np
import pytest

import gradscope
from gradscope import schema, store
from gradscope.diagnostics import of_site
from gradscope.errors import NotRecordedError, SettingError

LAGS = np.arange(30)
META = schema.RunMeta("2026-01-01T00:00:00+00:00", "0", "2.13", {}, {})
RATES = np.array([[0.80], [0.82]])
FORGET = np.array([0.5, 0.9, 0.99])


def record(step):
    gates = np.tile(np.log(0.7), (4, 3))
    gates[1] = np.log(FORGET)
    arrays = {
        "hidden": RATES**LAGS,
        "recurrent": 0.5 * RATES**LAGS,
        "cell": RATES**LAGS,
        "cell_path": (RATES / 2) ** LAGS,
        "gate_mean": np.exp(gates),
        "gate_log_mean": gates,
        "gate_low": np.array([0.1, 0.2, 0.3, 0.4]),
        "gate_high": np.array([0.4, 0.3, 0.2, 0.1]),
    }
    info = schema.SiteRecord(np.full(2, 30, np.int32), np.arange(2, dtype=np.int32), 1e-38, arrays)
    return schema.Record(step, 0, 0.0, {"lstm/l0": info})


@pytest.fixture
def run(tmp_path):
    writer = store.RunWriter(tmp_path / "run", META)
    gates = ("i", "f", "g", "o")
    plain = schema.SiteRecord(np.full(2, 30, np.int32), np.arange(2, dtype=np.int32), 1e-38, {"hidden": RATES**LAGS})
    writer.set_sites(
        {
            "lstm/l0": schema.SiteInfo("lstm/l0", "lstm", "LSTM", "lstm", curve="cell", gates=gates),
            "rnn/l0": schema.SiteInfo("rnn/l0", "rnn", "RNN", "rnn_tanh"),
        }
    )
    for step in (0, 10):
        sites = {**record(step).sites, "rnn/l0": plain}
        writer.add_record(schema.Record(step, 0, 0.0, sites))
    writer.close()
    return gradscope.open_run(tmp_path / "run")


def test_timescales_are_those_of_the_forget_gate(run):
    frame = of_site.timescales_of_site(run, "lstm/l0")
    assert frame["step"].tolist() == [10, 10, 10]
    np.testing.assert_allclose(frame["timescale"], -1 / np.log(FORGET))


def test_a_cell_without_a_retaining_gate_has_no_timescale(run):
    with pytest.raises(SettingError, match="rnn_tanh has no gate"):
        of_site.timescales_of_site(run, "rnn/l0")


def test_saturation_is_told_per_gate_and_step(run):
    frame = of_site.saturation_of_site(run, "lstm/l0")
    forget = frame[frame["gate"] == "f"]
    assert forget["step"].tolist() == [0, 10]
    np.testing.assert_allclose(forget[["low", "high"]], [[0.2, 0.3]] * 2)


def test_the_one_step_ratio_uses_the_part_that_came_through_the_recurrence(run):
    omega = of_site.one_step_ratio_of_site(run, "lstm/l0")
    assert omega.shape == (2, 30)
    np.testing.assert_allclose(omega[:, 1:], np.repeat((0.5 * RATES - 1) ** 2, 29, axis=1))


def test_the_cell_path_share_halves_with_every_lag(run):
    np.testing.assert_allclose(of_site.cell_path_share_of_site(run, "lstm/l0"), np.tile(0.5**LAGS, (2, 1)))


def test_the_law_of_a_site_is_that_of_its_curve(run):
    law = of_site.law_of_site(run, "lstm/l0", part="all")
    assert law.verdict == "exponential"
    assert law.rate == pytest.approx(np.log10(RATES).mean())


def test_what_was_not_recorded_is_named(run):
    with pytest.raises(NotRecordedError, match="recurrent"):
        of_site.one_step_ratio_of_site(run, "rnn/l0")
