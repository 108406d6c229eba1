"""Training and held-out loss against step, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gradscope.errors import NotRecordedError
from gradscope.plots import lines, marks, style
from gradscope.plots.norms import running_median, smoothing
from gradscope.plots.text import label
from gradscope.reading import read, select
from gradscope.reading.labelled import seeds_together
from gradscope.words import counted_span, few, number

TITLE = "Training and held-out loss"
NEEDS = "a logged loss, and that on held-out data: recorder.log(loss=loss, held_out_loss=...)"

#: Names under which the loss on held-out data may have been logged.
HELD_OUT = ("held_out_loss", "val_loss", "validation_loss", "eval_loss", "test_loss")

#: Opacity of the losses of training batches.
_PALE = 0.55

Trainings = Mapping[str, Sequence[tuple[Sequence[float], Mapping[int, float]]]]


def table(runs: Trainings | Sequence[Any]) -> pd.DataFrame:
    """One row per model, seed, kind of loss and step.

    Parameters
    ----------
    runs : sequence of Run, or mapping
        Runs, of which seeds (by their labels) are put together; or model to what each seed gave: its batch losses, to
        be smoothed by a running median, and its held-out losses, step to loss.

    Raises
    ------
    NotRecordedError
        No run logged a loss.
    """
    if not isinstance(runs, Mapping):
        return _of_runs(runs)
    frames = []
    for model, seeds in runs.items():
        for seed, (losses, held_out) in enumerate(seeds):
            value = np.asarray(losses, dtype=np.float64)
            smooth = running_median(value, smoothing(int(np.isfinite(value).sum())))
            rows = {"step": np.arange(1, value.size + 1), "value": smooth}
            frames.append(pd.DataFrame({"model": model, "kind": "training", "seed": seed, **rows}))
            rows = {"step": np.array(list(held_out)), "value": np.array(list(held_out.values()), dtype=float)}
            frames.append(pd.DataFrame({"model": model, "kind": "held out", "seed": seed, **rows}))
    return pd.concat(frames, ignore_index=True)


def _of_runs(runs: Sequence[Any]) -> pd.DataFrame:
    names, found = seeds_together(runs), {}
    for name, run in zip(select.run_names(runs), runs, strict=True):
        steps = read(run).steps()
        if "loss" in steps and steps["loss"].notna().any():
            steps = steps.sort_values("step", kind="stable")
            held_out = next((each for each in HELD_OUT if each in steps), None)
            known = steps[steps[held_out].notna()] if held_out else steps.iloc[:0]
            at = dict(zip(known["step"].astype(int) + 1, known[held_out] if held_out else (), strict=True))
            found[name] = (steps["loss"].to_numpy(dtype=float), at)
    if not found:
        paths = ", ".join(str(run.path) for run in runs)
        raise NotRecordedError(f"{paths}: no loss was logged. It comes from {NEEDS}.")
    together: dict[str, list[Any]] = {}
    for name, training in found.items():
        together.setdefault(names[name], []).append(training)
    data = table(together)
    data.attrs["left_out"] = select.left_out(runs, found, "no loss was logged")
    return data


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", guess: float | None = None) -> Axes:
    """Geometric mean over seeds; strong: held out, with a band from the lowest to the highest; thin and pale: training.

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
    data = _aside(data)
    held, batches = (data[data["kind"] == kind] for kind in ("held out", "training"))
    # Of very many models one line each is enough: the training batches of those alone that have nothing held out.
    shown = batches if len(looks) <= style.MAX_LEGEND else batches[~batches["model"].isin(held["model"])]
    _thin(ax, shown, looks, strong=not len(held))
    spread = "mean and range" if len(looks) <= style.MAX_BANDS else "mean"
    lines.draw(ax, held, looks, x="step", y="value", line="model", band=spread)
    if guess is not None:
        ax.axhline(guess, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    marks.whole_x(ax, data["step"])
    _gone(ax, data, looks)
    ax.set_xlabel("training step")
    ax.set_ylabel("loss")
    named = lines.handles(looks, {name: label(name, style.name_limit(ax)) for name in looks})
    if len(held) and len(shown):
        named.append(Line2D([], [], color=style.GREY, linewidth=0.8, alpha=_PALE, label="thin: training"))
    style.legend(ax, named)
    return ax


def _aside(data: pd.DataFrame) -> pd.DataFrame:
    """With ``diverged``, from where a training has no loss any more, and ``aside``: it is in no mean of others."""
    data = data.assign(run=data["model"] + "\0" + data["seed"].astype(str))
    batches = data[data["kind"] == "training"]
    last = batches[np.isfinite(batches["value"])].groupby("run")["step"].max()
    behind = (data["kind"] == "training") & (data["step"] > data["run"].map(last).fillna(-1))
    return lines.set_aside(data.assign(diverged=behind), "model")


def _gone(ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """A cross on the upper edge where each training diverged."""
    at = data[data["diverged"]].groupby(["model", "run"], sort=False)["step"].min()
    for (model, _), step in at.items():
        marks.at_edge(ax, [step], top=True, color=looks[str(model)]["color"], label="diverged", of=model)


def _thin(ax: Axes, batches: pd.DataFrame, looks: dict[str, dict[str, Any]], *, strong: bool) -> None:
    """Losses of the training batches behind those of held-out data; where there are none, as they would be."""
    before = len(ax.get_lines())
    thin = looks if strong else {name: {**look, "linestyle": "-", "marker": ""} for name, look in looks.items()}
    lines.draw(ax, batches, thin, x="step", y="value", line="model", band="mean")
    if not strong:
        for artist in ax.get_lines()[before:]:
            artist.set(linewidth=0.8, alpha=_PALE)


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    data = _aside(data.assign(model=data["model"].astype(str)))
    gone, of = data[data["diverged"]]["run"].nunique(), data["run"].nunique()
    held = data[(data["kind"] == "held out") & data["value"].notna() & ~data["aside"]]
    held = held.sort_values("step", kind="stable")
    # On a logarithmic axis the middle is that of the logarithms.
    ends = np.log(held.groupby(["model", "seed"], sort=False)["value"].last()).groupby("model", sort=False).mean()
    parted = lines.parted(data, "model")  # what was held out before all trainings of a line diverged is no end
    reached = {m: "diverged" if parted[str(m)][0] == parted[str(m)][1] else number(np.exp(v)) for m, v in ends.items()}
    each = few([f"{model} {value}" for model, value in reached.items()], 8)
    last = f" Held out, at the end: {each}." if each else " No held-out loss was logged."
    per = data.groupby("model")["seed"].nunique()
    seeds = int(per.max())
    batches = data[(data["kind"] == "training") & np.isfinite(data["value"])].groupby("run").size()
    median = "running median" if len(batches) and smoothing(int(batches.max())) > 1 else ""
    of_one = f"{median} over the training batches" if median else "one training each"
    over = f"geometric mean over {counted_span(int(per.min()), seeds, 'seed')}" if seeds > 1 else of_one
    bands = seeds > 1 and data["model"].nunique() <= style.MAX_BANDS
    band = ", band from the lowest to the highest seed" if bands else ""
    thin = ", ".join(filter(None, ["training batches", median]))
    strong = f" Strong lines: held out{band}; thin: {thin}." if each else ""
    crosses = f" Crosses: {gone} of {of} trainings diverged there; they are in no mean of others." if gone else ""
    said = f"Loss against training step, {over}.{strong}{last}{crosses}"
    return " ".join([said, *select.left_out_words(data)])
