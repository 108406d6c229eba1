"""Training and held-out loss against step, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import lines, marks, style
from gradscope.plots.norms import running_median, smoothing
from gradscope.plots.text import label

TITLE = "Training and held-out loss"
NEEDS = "trainings of the lab"
FROM_RUNS = False


def table(trainings: Mapping[str, Sequence[tuple[Sequence[float], Mapping[int, float]]]]) -> pd.DataFrame:
    """One row per model, seed, kind of loss and step.

    Parameters
    ----------
    trainings : mapping
        Model to what each seed gave: its batch losses, to be smoothed by a running median, and its held-out losses,
        step to loss.
    """
    frames = []
    for model, seeds in trainings.items():
        for seed, (losses, held_out) in enumerate(seeds):
            value = np.asarray(losses, dtype=np.float64)
            smooth = running_median(value, smoothing(int(np.isfinite(value).sum())))
            rows = {"step": np.arange(1, value.size + 1), "value": smooth}
            frames.append(pd.DataFrame({"model": model, "kind": "training", "seed": seed, **rows}))
            rows = {"step": np.array(list(held_out)), "value": np.array(list(held_out.values()), dtype=float)}
            frames.append(pd.DataFrame({"model": model, "kind": "held out", "seed": seed, **rows}))
    return pd.concat(frames, ignore_index=True)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", guess: float | None = None) -> Axes:
    """Mean over seeds; solid: held out, with a band from the lowest to the highest seed; dotted: training.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax : Axes, optional
    guess : float, optional
        Loss of who remembers nothing, as a line.
    """
    ax = style.axes(ax, style=style_name)
    looks = style.looks(list(dict.fromkeys(data["model"].astype(str))))
    data = data.assign(model=data["model"].astype(str))
    marks.log_y(ax, [data["value"], np.array([] if guess is None else [guess])], decades=0.3)
    held, batches = (data[data["kind"] == kind] for kind in ("held out", "training"))
    dotted = {name: {**look, "linestyle": (0, (1, 1.6)), "marker": ""} for name, look in looks.items()}
    lines.draw(ax, batches, dotted, x="step", y="value", line="model", band="mean")
    lines.draw(ax, held, looks, x="step", y="value", line="model", band="mean and range")
    if guess is not None:
        ax.axhline(guess, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    marks.whole_x(ax, data["step"])
    ax.set_xlabel("training step")
    ax.set_ylabel("loss")
    style.legend(ax, lines.handles(looks, {name: label(name, style.name_limit(ax)) for name in looks}))
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    return (
        f"Loss against training step, mean over {data['seed'].nunique()} seeds. Solid: held out, band from the lowest "
        "to the highest seed; dotted: training batches, running median."
    )
