"""Names of strangers: in a terminal, in a CSV, as a file."""

import numpy as np
import pandas as pd
import pytest

from gradscope.legible import cell, cells, file_name, from_cell, legible


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("encoder.lstm/l0", "encoder.lstm/l0"),
        ("größe 中文 🙂", "größe 中文 🙂"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("a\u2066b\u200bc", "a\\u2066b\\u200bc"),
        ("a\tb\rc\nd", "a\\tb\\rc\\nd"),
        ("half \ud800", "half \\ud800"),
        ("a\x9bb\x7f", "a\\x9bb\\x7f"),
    ],
)
def test_what_cannot_be_seen_is_an_escape(name, shown):
    assert legible(name) == shown
    legible(name).encode()


@pytest.mark.parametrize("name", ["=1+1", "+SUM(A1)", "@SUM(A1)", "-cmd|' /C calc'!A0", "＝1+1"])
def test_no_cell_of_a_csv_is_a_formula(name):
    assert cell(name) == f"'{name}"
    assert from_cell(cell(name)) == name


@pytest.mark.parametrize("name", ["-1.5", "+3", "-inf", "lstm/l0", "'quoted'", ""])
def test_other_cells_stay_as_they_are(name):
    assert from_cell(cell(name)) == cell(name) == name


def test_a_table_keeps_its_numbers_and_loses_its_formulas():
    gate = pd.Categorical(["=i", "f", "=i"])
    data = pd.DataFrame({"=name": ["+a", "b", None], "norm": [-1.0, np.nan, np.inf], "gate": gate})
    safe = cells(data)
    assert safe.columns.tolist() == ["'=name", "norm", "gate"]
    assert safe["gate"].tolist() == ["'=i", "f", "'=i"]
    assert safe["'=name"].tolist()[:2] == ["'+a", "b"]
    np.testing.assert_array_equal(safe["norm"], data["norm"])
    assert data.columns.tolist() == ["=name", "norm", "gate"]


def test_a_long_name_is_a_file_of_its_own():
    names = ["ü" * 300, "ü" * 299 + "x", "a\u202eb", "a\x1bb"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(len(file.encode()) <= 200 and file.isprintable() for file in files)
    assert file_name("encoder.lstm") == "encoder.lstm"
