from __future__ import annotations

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from gradscope.errors import UnknownNameError
from gradscope.plots import style


def lightness(colour: object) -> float:
    """Relative luminance (ITU-R BT.709), what grey print keeps of a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_style_leaves_the_users_settings_alone():
    before = dict(matplotlib.rcParams)
    with style.use("icml"):
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        style.figure("icml")
    assert dict(matplotlib.rcParams) == before


def test_a_users_settings_do_not_reach_a_figure():
    with matplotlib.rc_context({"font.size": 31, "lines.linewidth": 9}), style.use("neurips"):
        assert matplotlib.rcParams["font.size"] == 9
        assert matplotlib.rcParams["lines.linewidth"] < 2


@pytest.mark.parametrize(
    ("name", "width"), [("neurips", 5.5), ("icml", 3.25), ("ieee", 3.487), ("ieee2", 7.14), ("jmlr", 6)]
)
def test_figures_are_as_wide_as_the_papers_text(name, width):
    with style.use(name):
        figure, _ = style.figure(name)
    assert figure.get_size_inches()[0] == pytest.approx(width, abs=1e-3)


def test_an_unknown_style_names_the_nearest():
    with pytest.raises(UnknownNameError, match="neurips"), style.use("neurisp"):
        pass


def test_no_two_of_the_first_35_lines_look_alike():
    looks = [tuple(map(str, style.look(i).values())) for i in range(35)]
    assert len(set(looks)) == 35


def test_neighbouring_lines_differ_without_colour():
    grey = [(style.look(i)["linestyle"], style.look(i)["marker"]) for i in range(20)]
    assert all(a != b for a, b in pairwise(grey))


def test_early_to_late_darkens_all_the_way_and_starts_visible_on_white():
    shades = [lightness(style.EARLY_TO_LATE(x)) for x in np.linspace(0, 1, 20)]
    assert all(a > b for a, b in pairwise(shades))
    assert shades[0] < 0.6


def test_every_colour_of_the_palette_stands_out_from_white():
    assert all((1 + 0.05) / (lightness(colour) + 0.05) > 2 for colour in style.PALETTE)


def test_a_legend_of_many_lines_says_how_many_it_leaves_out():
    with style.use("screen"):
        _, ax = style.figure("screen")
        for i in range(40):
            ax.plot([0, 1], [i, i], label=f"run {i}")
        style.legend(ax)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[-1] == f"{40 - len(names) + 1} between: see CSV"
    # Their colours go from the first to the last: what is named says where a line between them belongs.
    assert (names[0], names[-2]) == ("run 0", "run 39")


def test_a_legend_takes_no_room_from_the_axes():
    heights = []
    for n in (1, 12):
        with style.use("icml"):
            figure, ax = style.figure("icml")
            for i in range(n):
                ax.plot([0, 1], [i, i], label=f"run {i}")
            style.legend(ax)
            figure.draw_without_rendering()
            heights.append(ax.get_window_extent().height / figure.dpi)
    assert heights[1] == pytest.approx(heights[0], rel=0.15)
