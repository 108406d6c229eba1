import numpy as np
import pandas as pd
import pytest

from gradscope.reading.curves import Norms


def found(after, lags=20, sequences=3):
    """Records whose site ends ``after`` steps before the sequence does; the curve falls by .1 decades per lag."""
    records = pd.DataFrame({"step": 10 * np.arange(len(after)), "smallest_normal": 1e-38, "after": after})
    at = np.array(after)[:, None, None] + np.arange(lags)
    values = 10.0 ** (-0.1 * at) * np.ones((len(after), sequences, lags))
    return Norms(records, values, np.full((len(after), sequences), lags))


def test_lags_of_a_site_whose_sequence_goes_on_elsewhere_begin_there():
    norms = found([7, 7])
    fit = norms.fit(norms.at("all"))
    assert (fit.reference_lag, fit.last_lag, fit.lag_range) == (7, 26, (12, 26))
    assert fit.rate == pytest.approx(-0.1)
    curve = norms.curve(norms.at("all"))
    np.testing.assert_allclose(curve.log10, -0.1 * curve.lags)
    assert fit.n_nonfinite == curve.n_nonfinite.sum() == 0


def test_records_that_end_at_different_lags_are_laid_beside_each_other():
    norms = found([2, 5, 9])
    fit = norms.fit(norms.at("all"))
    assert fit.curve.lags[[0, -1]].tolist() == [2, 28]
    np.testing.assert_allclose(np.diff(fit.curve.log10), -0.1)
    assert (fit.reference_lag, fit.last_lag) == (5, 24)  # where at least half are
    assert fit.n_nonfinite == 0


def test_without_a_word_of_what_follows_lags_begin_at_0():
    norms = found([0])
    bare = Norms(norms.records.drop(columns="after"), norms.values, norms.lengths)
    assert bare.fit(bare.at("all")).curve.lags[0] == 0
