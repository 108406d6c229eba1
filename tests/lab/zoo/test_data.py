from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gradscope.errors import GradscopeError
from gradscope.lab.zoo.data import data_file, load_digits, load_sunspots


def test_the_digits_are_the_1797_of_the_uci_test_part():
    digits = load_digits()
    assert digits.images.shape == (1797, 8, 8)
    # Counts per class as the UCI page lists them.
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.images.min() == 0
    assert digits.images.max() == 16
    assert digits.images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_the_digits_equal_those_of_scikit_learn():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    digits = load_digits()
    np.testing.assert_array_equal(digits.images, reference.images)
    np.testing.assert_array_equal(digits.labels, reference.target)


def test_the_sunspots_are_the_classic_zurich_series():
    months, numbers = load_sunspots()
    assert len(months) == len(numbers) == 235 * 12
    np.testing.assert_array_equal(months, np.arange("1749-01", "1984-01", dtype="datetime64[M]"))
    assert numbers[0] == 58.0
    assert (str(months[numbers.argmax()]), numbers.max()) == ("1957-10", 253.8)
    # The yearly series, published separately: 1750, 1800, 1900 and 1980.
    yearly = numbers.reshape(-1, 12).mean(1)
    assert yearly[[1, 51, 151, 231]] == pytest.approx([83.4, 14.5, 9.5, 154.6], abs=0.06)


def test_a_file_that_is_not_there_says_so():
    with pytest.raises(GradscopeError, match=r"nothing\.csv"):
        data_file("nothing.csv")


@pytest.mark.slow
def test_a_wheel_carries_the_data(tmp_path):
    pytest.importorskip("build")
    root = Path(__file__).parents[3]
    # From an sdist-like copy: building in the tree would leave build/ and egg-info behind.
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(root), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import gradscope, sys; assert gradscope.__file__.startswith(sys.argv[1]), gradscope.__file__\n"
        "from gradscope.lab.zoo.data import load_digits, load_sunspots\n"
        "print(len(load_digits().labels), len(load_sunspots().numbers))"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code, str(installed)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.stdout == "1797 2820\n", result.stderr
