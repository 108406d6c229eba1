"""What the story of some trainings is told from: gradients before and through them, and their losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnostics import DecayCurve
from gradscope.reading import curves, select
from gradscope.reading.labelled import Labelled, family, labelled, models
from gradscope.reading.sweeps import diverged_from, line_of

#: Names under which what was reached on held-out data may have been logged, besides ``held_out_<metric>``.
METRICS = ("accuracy", "val_accuracy", "test_accuracy", "val_acc", "acc")
#: Why a run that holds the quantity is not shown.
TWIN = "the cell, initialisation and seed of a run that is shown"
COLUMNS = (
    "panel", "line", "run", "cell", "init", "seed", "threshold", "by", "family", "site", "quantity", "x", "value",
    "diverged", "accuracy", "metric", "chance",
)  # fmt: skip


def table(
    runs: Sequence[Any], *, site: str | None = None, quantity: str | None = None, metric: str | None = None
) -> pd.DataFrame:
    """What the three panels show, one row per run and position.

    Parameters
    ----------
    runs : sequence of Run
        Told apart by ``record(labels={"cell", "init", "seed", ...})``, and by the threshold they were clipped at. The
        labels ``chance_loss`` and ``chance_accuracy`` say what guessing comes to.
    site : str, optional
        By default the first of each run that holds the quantity.
    quantity : str, optional
        ``input`` when not given.
    metric : str, optional
        Logged name of what was reached on held-out data; ``held_out_accuracy`` or the like when not given.

    Returns
    -------
    DataFrame
        ``panel`` (initial, through, loss), ``line`` (of which the runs are the seeds), run, cell, init, seed,
        threshold; ``by``: what the lines differ in, of the runs of which ``family``; site, quantity; ``x``: timestep of
        the input, from 1, or training step; ``value``: norm over that at the last input (0: vanished; inf: not finite;
        NaN: none usable), or loss; ``diverged``; ``accuracy`` (NaN unknown) under the name ``metric``; ``chance``.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError
    """
    quantity = quantity or "input"
    select.per_lag(quantity)
    sites: dict[str, str] = {}
    for name, _, at, _ in select.sites_with(runs, quantity, site):
        sites.setdefault(name, at)
    known = labelled(runs)
    there = [one for one in known if one.name in sites]
    frames = [*_initial(there, sites, quantity), *_courses(known, sites, quantity, metric)]
    data = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    data = data.reindex(columns=list(COLUMNS))
    shown = set(data["run"])
    twins = select.left_out(runs, shown | (set(select.run_names(runs)) - set(sites)), TWIN)
    data.attrs["left_out"] = select.left_out(runs, shown | set(twins), f"{quantity!r} was not recorded") | twins
    return data


def _head(one: Labelled, line: str, sites: dict[str, str], quantity: str) -> dict[str, Any]:
    head = {"line": line, "run": one.name, "cell": one.cell, "init": one.init, "seed": one.seed}
    return {**head, "threshold": one.threshold, "site": sites.get(one.name, ""), "quantity": quantity}


def _initial(runs: Sequence[Labelled], sites: dict[str, str], quantity: str) -> Iterator[pd.DataFrame]:
    """Every timestep of the input before the first update."""
    for line, of_line in models(runs).items():
        for one in of_line:
            found = curves.norms(one.run, sites[one.name], quantity)
            if found.steps[0] != 0:
                continue  # a training that goes on from a checkpoint starts from no initialisation
            curve = found.curve(found.at(0))
            if curve.lags.size:
                at = (curve.lags.max() - curve.lags).astype(np.int64) + 1
                rows = pd.DataFrame({"x": at, "value": _relative(curve)})
                yield rows.assign(panel="initial", **_head(one, line, sites, quantity)).sort_values("x")


def _courses(
    known: Sequence[Labelled], sites: dict[str, str], quantity: str, metric: str | None
) -> Iterator[pd.DataFrame]:
    """The first input through training, and the loss, of the runs that can be compared by threshold."""
    trained = [one for one in known if one.run.steps()["step"].nunique() > 1] if known else []
    shown = family(trained)
    by = "threshold" if len({one.threshold for one in shown}) > 1 else "model"
    lines = {one.name: name for name, of_line in _lines(shown, by).items() for one in of_line}
    named = dict.fromkeys(one.model.removesuffix(", default") if one.labels else one.cell for one in shown)
    whose = ", ".join(named) if by != "model" else ""
    for one in (one for one in shown if one.name in lines):  # a twin is left out, and named as such
        head = _head(one, lines[one.name], sites, quantity) | {"by": by, "family": whose or "all models"}
        if one.name in sites:
            found = curves.norms(one.run, sites[one.name], quantity)
            if len(found.steps) > 1:
                value = [first_input(found.curve(found.at(step))) for step in found.steps]
                yield pd.DataFrame({"x": found.steps, "value": value}).assign(panel="through", **head)
        yield from _loss(one, head, metric)


def _lines(shown: Sequence[Labelled], by: str) -> dict[str, list[Labelled]]:
    if by == "model":
        return models(shown)
    groups: dict[str, list[Labelled]] = {}
    for one in sorted(shown, key=lambda one: one.threshold):
        groups.setdefault(line_of(one.threshold), []).append(one)
    return groups


def _loss(one: Labelled, head: dict[str, Any], metric: str | None) -> Iterator[pd.DataFrame]:
    steps = one.run.steps().sort_values("step", kind="stable")
    if "loss" not in steps or not steps["loss"].notna().any():
        return
    at, value = steps["step"].to_numpy(dtype=np.int64), steps["loss"].to_numpy(dtype=float)
    name = metric or next(
        (c for c in steps if c in METRICS or (c.startswith("held_out_") and c != "held_out_loss")), ""
    )
    gone = at >= diverged_from(one.run, at, value)
    # What was measured before a training diverged is not what it reached.
    final = steps[gone] if gone.any() else steps
    reached = final[name].dropna().to_numpy(dtype=float) if name in steps else np.empty(0)
    yield pd.DataFrame({"x": at, "value": value, "diverged": gone}).assign(
        panel="loss", **head, metric=name, chance=_number(one.labels.get("chance_loss")),
        accuracy=float(reached[-1]) if reached.size else np.nan,
    )  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _relative(curve: DecayCurve) -> np.ndarray:
    """Over the value at the last input; 0 where nothing but zeros arrives, inf where it is not finite."""
    usable = curve.log10[np.isfinite(curve.log10)]
    with np.errstate(over="ignore", under="ignore"):
        value = 10.0 ** (curve.log10 - (usable[0] if usable.size else np.nan))
    lost = np.isnan(value) & (curve.n_zero + curve.n_below_normal > 0)
    return np.where(lost, 0.0, np.where(np.isnan(value) & (curve.n_nonfinite > 0), np.inf, value))


def first_input(curve: DecayCurve) -> float:
    """What arrives at the input that was read first."""
    return float(_relative(curve)[-1]) if curve.lags.size else float("nan")
