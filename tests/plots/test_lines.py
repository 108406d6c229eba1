from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradscope.plots import lines, marks, style


@pytest.mark.parametrize("runs", [3, lines.MAX_SEEDS + 2])
def test_a_few_runs_are_thin_lines_and_many_a_band_that_one_astray_does_not_widen(runs):
    at = np.arange(10)
    level = [1.0 + 0.01 * i for i in range(runs - 1)] + [1e6]
    data = pd.concat([pd.DataFrame({"x": at, "y": y, "line": "a", "run": f"r{i}"}) for i, y in enumerate(level)])
    _, ax = style.figure()
    marks.log_y(ax, [[0.1, 1e7]])
    lines.draw(ax, data, {"a": style.look(0)}, x="x", y="y", line="line", band="runs")
    (around,) = ax.collections
    assert around.get_label() == marks.band_of("a")
    heights = [path.vertices[:, 1] for path in around.get_paths()]
    assert ax.get_lines()[0].get_ydata() == pytest.approx(np.median(level))
    if runs <= lines.MAX_SEEDS:
        assert sorted(float(height[0]) for height in heights) == pytest.approx(sorted(level))
        assert lines.around_words(runs) == "thin lines: each run"
    else:
        assert max(height.max() for height in heights) < 10
        assert lines.around_words(runs) == "band: the middle half of the runs"
