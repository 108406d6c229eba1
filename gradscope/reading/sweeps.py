"""Runs that differ in their clipping threshold: which is which, and which diverged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.errors import NotRecordedError, SettingError
from gradscope.reading import select
from gradscope.reading.clip_calls import of_steps
from gradscope.reading.counted import Reading, read
from gradscope.store import Run
from gradscope.words import given


def threshold_of(run: Any) -> float:
    """The threshold a run was clipped at by its norm (the most frequent); inf without norm clipping."""
    clips = of_steps(read(run).clips())
    values = clips["threshold"][clips["kind"] == "norm"] if len(clips) else pd.Series(dtype=float)
    most = values.mode()  # of those that are numbers
    return float(most.iloc[0]) if len(most) else float("inf")


def name_of(threshold: float) -> str:
    """A threshold for a legend or axis: ``none`` without clipping."""
    return "none" if np.isinf(threshold) else given(threshold)


def at_threshold(threshold: float) -> str:
    """A threshold as the end of a sentence."""
    return "without clipping" if np.isinf(threshold) else f"at threshold {given(threshold)}"


def line_of(threshold: float) -> str:
    """A threshold as the name of a line: ``c = 0.5``, or ``no clip``."""
    return "no clip" if np.isinf(threshold) else f"c = {name_of(threshold)}"


def chance_of(run: Run | Reading, metric: str) -> float:
    """What guessing comes to: the label ``chance_loss`` or ``chance_accuracy`` for a metric so ending; else NaN."""
    labels = run.settings.get("labels")
    for name, value in labels.items() if isinstance(labels, dict) else ():
        kind = str(name).removeprefix("chance_")
        if kind != name and metric.endswith(kind) and isinstance(value, int | float):
            return float(value)
    return float("nan")


def traces(runs: Sequence[Any], metric: str, thresholds: Sequence[float | None] | None = None) -> pd.DataFrame:
    """One row per run and step: ``run, threshold, chance, step, value, diverged``.

    ``diverged`` is true from the step on from which the metric, the loss or the gradient norm was never finite again.

    Raises
    ------
    NotRecordedError
        No run logged the metric.
    SettingError
        A number of thresholds other than that of runs.
    """
    if thresholds is not None and len(thresholds) != len(runs):
        raise SettingError(f"one threshold per run: got {len(thresholds)} for {len(runs)} runs.")
    frames = []
    for i, (name, run) in enumerate(zip(select.run_names(runs), runs, strict=True)):
        threshold = threshold_of(run) if thresholds is None else thresholds[i]
        steps = read(run).steps()
        if metric in steps and len(steps):
            steps = steps.sort_values("step", kind="stable")
            value = steps[metric].to_numpy(dtype=float)
            at = steps["step"].to_numpy(dtype=np.int64)
            head = {"run": name, "threshold": float("inf") if threshold is None else float(threshold)}
            head |= {"chance": chance_of(run, metric)}
            # A training whose loss diverged has reached nothing, whatever was logged of it then.
            loss = steps["loss"].to_numpy(dtype=float) if "loss" in steps else value
            gone = at >= min(diverged_from(run, at, value), diverged_from(run, at, loss))
            frames.append(pd.DataFrame({**head, "step": at, "value": value, "diverged": gone}))
    if not frames:
        there = sorted({c for run in runs for c in read(run).steps().columns} - {"step", "attempt", "rank", "time"})
        raise NotRecordedError(
            f"no run logged {metric!r} (logged: {', '.join(there) or 'nothing'}). "
            f"Log it with recorder.log({metric}=...)."
        )
    data = pd.concat(frames, ignore_index=True)
    return data[data["value"].notna() | data["diverged"]].reset_index(drop=True)


def diverged_from(run: Any, steps: np.ndarray, value: np.ndarray) -> float:
    """First step from which nothing was finite any more; inf for a run that did not diverge.

    A NaN metric alone may just not have been logged; it counts once the gradient norm or a recorded gradient is not
    finite, or where the metric had been logged at every step before.
    """
    found = [_never_again(steps, value, np.isinf(value) | (np.isnan(value) & _dense(value)))]
    recorded = _recorded(run)
    if np.isnan(value[-1:]).any() and len(recorded):
        found.append(
            _never_again(recorded.index.to_numpy(), np.where(recorded > 0, np.nan, 1.0), recorded.to_numpy() > 0)
        )
    clips = of_steps(read(run).clips())
    if len(clips):
        norm = clips["norm_before"].to_numpy(dtype=float)
        found.append(_never_again(clips["step"].to_numpy(), norm, ~np.isfinite(norm)))
    return min(found)


def _recorded(run: Any) -> pd.Series:
    """Sequences whose recorded gradient is not finite, at each recorded step."""
    reading = read(run)
    found = [reading.records(site)[["step", "nonfinite"]] for site in reading.sites if reading.counted(site)]
    return pd.concat(found).groupby("step")["nonfinite"].max() if found else pd.Series(dtype=float)


def final_value(run: Run | Reading, metric: str) -> tuple[float | None, int | None]:
    """What a logged metric ended at, and the step from which the run diverged (None where it did not).

    The mean of the last twentieth of what was logged (at least one value): a single step is noise. None where it was
    not logged, NaN where the run diverged.
    """
    steps = read(run).steps()
    steps = steps.sort_values("step", kind="stable") if len(steps) else steps
    known = metric in steps and len(steps) > 0
    value = steps[metric].to_numpy(dtype=float) if known else np.empty(0)
    at = steps["step"].to_numpy(dtype=np.int64) if known else np.empty(0, dtype=np.int64)
    gone = diverged_from(run, at, value)
    if np.isfinite(gone):
        return float("nan"), int(gone)
    logged = value[~np.isnan(value)]
    if not logged.size:
        return None, None
    last = logged[-max(1, logged.size // 20) :]
    return float(np.mean(last[np.isfinite(last)])), None


def _dense(value: np.ndarray) -> np.ndarray:
    """Whether every value before the last finite one is there: then a NaN behind it is no gap in the log."""
    finite = np.flatnonzero(np.isfinite(value))
    dense = finite.size > 1 and not np.isnan(value[: finite[-1] + 1]).any()
    return np.full(value.shape, dense)


def _never_again(steps: np.ndarray, value: np.ndarray, bad: np.ndarray) -> float:
    finite = np.flatnonzero(np.isfinite(value))
    after = finite[-1] + 1 if finite.size else 0
    lost = np.flatnonzero(bad[after:])
    return float(steps[after + lost[0]]) if lost.size else float("inf")
