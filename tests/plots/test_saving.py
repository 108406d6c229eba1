from __future__ import annotations

import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gradscope.errors import SettingError, UnknownNameError
from gradscope.plots import saving, style
from gradscope.plots.saving import FORMATS, render, save, tex


def drawn(title: str = "a_b $5"):
    figure, ax = style.figure("icml")
    ax.plot([0, 1, 2], [1, 2, 4], label="x")
    ax.set_xlabel(title.replace("$", r"\$"))
    ax.set_ylabel(r"$\partial L/\partial h_t$")
    return figure


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_figure_gives_the_same_bytes(suffix):
    with style.use("icml"):
        first = render(drawn(), suffix, title="t", provenance={"run": "a"})
        figure = drawn()
        second = render(figure, suffix, title="t", provenance={"run": "a"})
        again = render(figure, suffix, title="t", provenance={"run": "a"})
    assert first == second == again


def test_a_save_leaves_axes_where_they_stood():
    with style.use("icml"):
        figure, alone = drawn(), render(drawn(), "svg")
        stood = placed(figure)
        for suffix in FORMATS:
            render(figure, suffix)
            assert placed(figure) == stood
        assert render(figure, "svg") == alone


def placed(figure):
    return [(ax.get_position(True).bounds, ax.get_position().bounds, ax.get_in_layout()) for ax in figure.axes]


@pytest.mark.parametrize("suffix", FORMATS)
def test_provenance_is_in_the_file(suffix, tmp_path):
    with style.use("icml"):
        save(drawn(), tmp_path / f"f.{suffix}", title="The title", provenance={"run": "sunspots-7"})
    raw = (tmp_path / f"f.{suffix}").read_bytes()
    if suffix == "png":
        told = Image.open(tmp_path / "f.png").text
        assert json.loads(told["Description"]) == {"run": "sunspots-7"}
        assert told["Title"] == "The title"
    else:
        assert b"sunspots-7" in raw
        assert b"The title" in raw


def test_pdf_text_is_truetype_and_carries_no_date():
    with style.use("icml"):
        raw = render(drawn(), "pdf")
    streams = b"".join(_inflated(raw))
    assert b"/Type3" not in raw + streams
    assert b"/TrueType" in raw + streams or b"/CIDFontType2" in raw + streams
    assert b"CreationDate" not in raw


def _inflated(raw: bytes) -> list[bytes]:
    found = []
    for part in re.findall(rb"stream\r?\n(.*?)endstream", raw, re.DOTALL):
        try:
            found.append(zlib.decompress(part))
        except zlib.error:
            continue
    return found


def test_pgf_needs_no_tex_and_escapes_names():
    with style.use("icml"):
        text = render(drawn("50% of a_b & #1"), "pgf").decode()
    assert r"50\% of a\_b \& \#1" in text
    assert text.count(r"\begin{pgfpicture}") == text.count(r"\end{pgfpicture}") == 1
    assert text.count(r"\begin{pgfscope}") == text.count(r"\end{pgfscope}")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (r"$\partial L$ of a_b", r"$\partial L$ of a\_b"),
        (r"\$5 \$6", r"\$5 \$6"),
        ("a\\b~^", r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}"),
        ("lone $", r"lone \$"),
    ],
)
def test_labels_become_tex(label, expected):
    assert tex(label) == expected


def test_the_data_lie_beside_the_figure(tmp_path):
    data = pd.DataFrame({"lag": [0, 1], "norm": [0.1 + 0.2, float("inf")]})
    with style.use("icml"):
        written = save(drawn(), tmp_path / "f.svg", data=data)
    assert [path.name for path in written] == ["f.svg", "f.csv"]
    rows = [line.split(",") for line in (tmp_path / "f.csv").read_text().splitlines()]
    assert rows[0] == ["lag", "norm"]
    assert [(int(lag), float(norm)) for lag, norm in rows[1:]] == list(data.itertuples(index=False, name=None))


@pytest.mark.parametrize("name", ["figure", "figure.bmp", "missing/figure.pdf"])
def test_a_bad_path_is_refused_and_nothing_is_written(name, tmp_path):
    with style.use("icml"), pytest.raises((SettingError, UnknownNameError)):
        save(drawn(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.svg"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with style.use("icml"), pytest.raises(OSError, match="disk full"):
        save(drawn(), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_table_in_pieces_is_the_table(tmp_path, monkeypatch):
    data = pd.DataFrame({"run": ["=1", "b\n", "ü", "c", "c"], "x": [0.1, np.nan, np.inf, -1e-300, 2.0], "n": range(5)})
    monkeypatch.setattr(saving, "_CSV_ROWS", 2)
    for rows in (5, 4, 0):
        saving.write_csv(data[:rows], tmp_path / "x.csv")
        assert (tmp_path / "x.csv").read_bytes() == saving.csv_bytes(data[:rows])
