"""Which input steps the loss at a step looks at, by their tokens where these are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import heatmap, lines, marks, style
from gradscope.plots.text import label, symbol
from gradscope.words import number

TITLE = "What the loss at a step looks at"
NEEDS = "the model itself: gradscope.source_target(model, closure), kept with its .save(path)"
FROM_RUNS = False
PROBES = "SourceTarget"

QUANTITIES = ("input", "hidden", "cell")
#: More targets than this are a map; more tokens than this are not written out.
MAX_TARGETS, MAX_TOKENS = 3, 60


def table(
    measured: Any,
    *,
    targets: Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    quantity: str = "input",
) -> pd.DataFrame:
    """One row per target and source step.

    Parameters
    ----------
    measured : SourceTarget
        From :func:`gradscope.source_target`.
    targets : sequence of int, optional
        Which losses; negative ones count from the last. The last when not given.
    tokens : sequence of str, optional
        What stands at each source step.
    quantity : {"input", "hidden", "cell"}
        Of which state the gradient is taken.

    Returns
    -------
    DataFrame
        site, quantity, target, source, token; ``norm``: ‖∂L_t/∂x_s‖, mean over the sequences; ``share`` of all that
        the target's loss looks at (sum over the sources is 1).

    Raises
    ------
    UnknownNameError, NotRecordedError, SettingError
    """
    if quantity not in QUANTITIES:
        raise UnknownNameError("quantity", quantity, QUANTITIES)
    values = getattr(measured, quantity, None)
    if values is None:
        raise NotRecordedError(f"{measured.info.site}: {quantity!r} was not measured there.")
    matrix = np.asarray(values, dtype=np.float64)
    n, steps = matrix.shape
    if tokens is not None and len(tokens) != steps:
        raise SettingError(f"one token for each of the {steps} source steps, got {len(tokens)}.")
    chosen = [n - 1] if targets is None else [int(t) for t in targets]
    for t in chosen:
        if not -n <= t < n:
            raise SettingError(f"target {t} does not exist: there are {n}, from 0.")
    frames = []
    for t in dict.fromkeys(t % n for t in chosen):
        norm = matrix[t]
        total = np.nansum(norm)
        head = {"site": measured.info.site, "quantity": quantity, "target": t}
        rows = {"source": np.arange(steps), "token": list(tokens) if tokens is not None else [""] * steps}
        share = norm / total if total > 0 else np.zeros(steps)
        frames.append(pd.DataFrame({**head, **rows, "norm": norm, "share": share}))
    return pd.concat(frames, ignore_index=True)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """Bars over the source steps for one target, lines for a few, a map for many; tokens below where they fit."""
    ax = style.axes(ax, style=style_name, aspect=0.42)
    targets = list(dict.fromkeys(data["target"]))
    if len(targets) > 1:
        data = data[_looked_at(data)]
    marks.whole_x(ax, data["source"])
    if len(targets) > MAX_TARGETS:
        grid = data.pivot(index="target", columns="source", values="share").loc[targets].to_numpy()
        grid = np.where(grid > 0, grid, np.nan)  # white as nothing: a loss looks at no later step
        mesh = heatmap.draw(ax, grid, left=0, top=0)
        ax.set_ylim(len(targets) - 0.5, -0.5)
        room = int(style.size_of(ax)[1] * 72 * 0.7 / (1.3 * style.small()))
        rows = range(0, len(targets), -(-len(targets) // room))
        ax.set_yticks(rows, [str(targets[row]) for row in rows])
        ax.set_ylabel("target step")
        heatmap.bar([ax], mesh, "share")
    else:
        _curves(ax, data, targets)
    ax.set_xlim(data["source"].min() - 0.6, data["source"].max() + 0.6)
    _tokens(ax, data.drop_duplicates("source"))
    return ax


def _looked_at(data: pd.DataFrame) -> pd.Series:
    """Rows up to the last source that their target looks at: most losses see no later step."""
    last = data["source"].where(data["share"] > 0).groupby(data["target"]).transform("max")
    return data["source"] <= last.fillna(data["source"].max())


def _curves(ax: Axes, data: pd.DataFrame, targets: list[int]) -> None:
    if len(targets) == 1:
        ax.bar(data["source"], data["share"], color=style.PALETTE[0], width=0.8, linewidth=0)
    else:
        named = data.assign(name=[f"loss at {t}" for t in data["target"]])
        looks = style.looks(list(dict.fromkeys(named["name"])))
        lines.draw(ax, named, looks, x="source", y="share", line="name", log=False)
        style.legend(ax, lines.handles(looks))
    ax.set_ylim(bottom=0)
    if not (data["share"] > 0).any():
        style.note(ax, "no gradient arrives at any step")
    ax.set_ylabel("share")


def _tokens(ax: Axes, rows: pd.DataFrame) -> None:
    tokens = [str(token) for token in rows["token"]]
    if not any(tokens) or len(tokens) > MAX_TOKENS:
        ax.set_xlabel("source step")
        return
    room = style.width_of(ax) * 72 * 0.8 / len(tokens)
    upright = max(map(len, tokens)) * 0.55 * style.small() > room
    ax.set_xticks(rows["source"], [label(token, 14) for token in tokens], rotation=90 if upright else 0)
    ax.set_xlabel("")


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, with the steps that matter most."""
    what = symbol(str(data["quantity"].iloc[0])).strip("$").replace(r"\partial ", "∂").replace("_t", "_s")
    said = []
    for target, rows in data.groupby("target", sort=False):
        top = rows[rows["share"] > 0].sort_values("share", ascending=False, kind="stable").head(3)
        names = [f"{row.source} ({row.token})" if row.token else str(row.source) for row in top.itertuples()]
        named = ", ".join(f"{name} {number(100 * share)} %" for name, share in zip(names, top["share"], strict=True))
        said.append(f"the loss at {target}: {named or 'nothing arrives'}")
    more = f"; and {len(said) - 4} more" if len(said) > 4 else ""
    return (
        f"Norm of {what} at {data['site'].iloc[0]} at each source step, as a share of its sum over the steps, mean "
        f"over the sequences. Most: {'; '.join(said[:4])}{more}."
    )
