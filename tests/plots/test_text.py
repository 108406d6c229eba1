from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from gradscope.plots import style
from gradscope.plots.text import apart, label, shorten, symbol, visible
from gradscope.schema import QUANTITIES


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("bell\x07", r"bell\x07"),
        ("\u202eevil", r"\u202eevil"),
        ("\udc80", r"\udc80"),
        ("µ–λ", "µ–λ"),
    ],
)
def test_what_cannot_be_drawn_is_written_out(name, shown):
    assert visible(name) == shown


@given(st.lists(st.text("ab: _", min_size=1, max_size=12), unique=True, max_size=12), st.integers(16, 40))
def test_names_that_differ_in_their_middle_stay_different(middles, limit):
    names = [f"{'encoder layers ' * 3}{middle}{' of the decoder' * 3}" for middle in middles]
    shown = apart(names, limit)
    assert len(set(shown)) == len(names)
    assert all(len(text) <= limit for text in shown)


def test_a_long_name_keeps_both_ends():
    name = "encoder.blocks.0.recurrent.mixer.lstm/l3_reverse"
    short = shorten(name, 20)
    assert len(short) == 20
    assert name.startswith(short.split("…")[0])
    assert name.endswith(short.split("…")[1])


def drawn(text: str) -> str:
    """Draw ``text`` as a legend entry and return what the legend holds."""
    with style.use("screen"):
        figure = Figure()
        ax = figure.subplots()
        ax.plot([0, 1], label=text)
        style.legend(ax, [*ax.get_lines()])
        figure.draw_without_rendering()
        return ax.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    "name", ["$x$", "a$b", "$$", "_hidden", "a_b^c", r"\frac{1", r"\$", "{", "%&#~", "$\\undefined$"]
)
def test_a_name_is_drawn_literally_and_kept_in_the_legend(name):
    assert drawn(label(name)).replace(r"\$", "$").lstrip("\u200a") == name


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=20).filter(str.strip))
def test_any_name_can_be_drawn(name):
    assert drawn(label(name))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_symbol_is_valid_mathtext(quantity):
    assert drawn(symbol(quantity))
