"""Total gradient norms of a run, call by call and step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gradscope.reading.clip_calls import norms_before, of_steps, parts
from gradscope.reading.counted import Reading, read
from gradscope.store import Run


def raw_norms(run: Run | Reading, part: str | None = None) -> pd.DataFrame:
    """Total gradient norms before clipping: ``step, norm, source``.

    From the clipping calls where there are any (one norm a step), else from the logged ``grad_norm``, else from the
    per-parameter norms of the recorded steps. ``source`` says which. Norms of different parts of the parameters are
    never mixed: where they were clipped apart, those of ``part``, or by default those of the whole.
    """
    reading = read(run)
    return reading.once(f"raw norms {part}", lambda: _raw_norms(reading, part))


def _raw_norms(reading: Reading, part: str | None) -> pd.DataFrame:
    clips = reading.clips()
    clipped = parts(clips)
    if part is None:
        part = "" if len(clipped) > 1 else clipped[0]
    measured = norms_before(clips, part)
    if len(measured):
        return _norm_frame(measured["step"], measured["norm"], "clips")
    if part:
        return _norm_frame([], [], "none")
    steps = reading.steps()
    if "grad_norm" in steps and steps["grad_norm"].notna().any():
        logged = steps[steps["grad_norm"].notna()]
        return _norm_frame(logged["step"], logged["grad_norm"], "steps")
    parameters = reading.parameters()
    named = parameter_columns(parameters)
    if not len(parameters) or not named:
        return _norm_frame([], [], "none")
    values = parameters[named].to_numpy(dtype=float)
    # A step of which nothing is a number has no norm, least of all 0.
    total = np.where(np.isnan(values).all(axis=1), np.nan, np.sqrt(np.nansum(values**2, axis=1)))
    return _norm_frame(parameters["step"], total, "parameters")


def norms_by_step(run: Run | Reading) -> pd.DataFrame:
    """One row per step: ``step, norm, norm_state, clipped, threshold, kind, loss``.

    Norms from the clipping calls; else the logged ``grad_norm``; else from the norms of the parameters.
    """
    reading = read(run)
    steps, clips = reading.steps(), of_steps(reading.clips())
    clips = _by_step(clips[clips["kind"] != "timestep"])
    parameters = _by_step(reading.parameters())
    at = sorted({*map(int, steps.get("step", [])), *map(int, clips.index), *map(int, parameters.index)})
    indexed = _by_step(steps) if len(steps) else pd.DataFrame(index=pd.Index([], name="step"))
    nothing = pd.Series(np.nan, index=at, dtype=float)
    columns = parameter_columns(parameters)
    norm = nothing.copy()
    if columns:
        squares = parameters[columns].astype(float) ** 2
        norm = np.sqrt(squares.sum(axis=1, skipna=True, min_count=1)).reindex(at)
        norm[parameters[columns].isna().all(axis=1).reindex(at, fill_value=True)] = np.nan
    norm = indexed.get("grad_norm", nothing).reindex(at).astype(float).combine_first(norm)
    measured = clips["norm_before"].reindex(at).astype(float)
    called = pd.Series(np.isin(at, clips.index), index=at)
    norm = measured.where(called, norm)
    state = np.where(np.isinf(norm) | (called & measured.isna()), "non-finite", "")
    return pd.DataFrame(
        {
            "step": at,
            "norm": norm.to_numpy(),
            "norm_state": state,
            "clipped": clips["norm_after"].reindex(at).to_numpy(dtype=float),
            "threshold": clips["threshold"].reindex(at).to_numpy(dtype=float),
            "kind": clips["kind"].astype(object).reindex(at, fill_value="").to_numpy(),
            "loss": indexed.get("loss", nothing).reindex(at).to_numpy(dtype=float),
        }
    )


def _by_step(table: pd.DataFrame) -> pd.DataFrame:
    """The first known value of every column at each step."""
    if table["step"].is_unique:  # many times quicker
        return table.set_index("step").sort_index()
    return table.groupby("step").first()


def _norm_frame(steps: Any, norms: Any, source: str) -> pd.DataFrame:
    frame = pd.DataFrame({"step": np.asarray(steps, dtype=np.int64), "norm": np.asarray(norms, dtype=np.float64)})
    return frame.assign(source=source)


def parameter_columns(table: Any) -> list[str]:
    """Return the columns of a run's table of parameters that are parameters."""
    return [name for name in table.columns if name not in ("step", "micro", "attempt", "rank")]
