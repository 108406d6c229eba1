import numpy as np
import pytest

from gradscope.diagnostics import cell_path_share
from gradscope.errors import SettingError


def test_the_share_of_a_linear_cell_follows_from_its_two_paths():
    # One unit: the cell path keeps f per step, the path through h adds a; the total keeps f + a.
    f, a, lags = 0.6, 0.2, np.arange(20)
    share = cell_path_share(f**lags, (f + a) ** lags)
    np.testing.assert_allclose(share, (f / (f + a)) ** lags)


def test_paths_that_cancel_give_more_than_one():
    assert cell_path_share([0.6], [0.5])[0] > 1


def test_nothing_has_no_share():
    assert np.isnan(cell_path_share([0.0], [0.0])[0])


def test_shapes_must_agree():
    with pytest.raises(SettingError, match="one shape"):
        cell_path_share(np.ones(4), np.ones(5))


def test_a_total_below_the_normal_numbers_has_no_share():
    assert np.isnan(cell_path_share([5e-324], [5e-324])[0])
