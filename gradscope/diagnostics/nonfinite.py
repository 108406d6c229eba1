"""The first gradient of a run that is not finite, and where it entered."""

from __future__ import annotations

from typing import Any

import numpy as np


def first_nonfinite(run: Any) -> str:
    """One sentence, or nothing where every recorded gradient is finite.

    A gradient runs from lag 0 back: at a site it entered at the smallest lag at which it is not finite. A run that
    records one step in ten sees it there at the next recorded step; a clipping call sees its norm at every step.

    Parameters
    ----------
    run : Run
    """
    found = [*_at_sites(run), *_in_parameters(run), *_in_clips(run)]
    if not found:
        return ""
    step = min(at for at, _ in found)
    where = [words for at, words in found if at == step]
    return f"The first recorded gradient that is not finite is at step {step}: {where[0]}."


def _at_sites(run: Any) -> list[tuple[int, str]]:
    found = []
    for site in run.sites:
        records = run.records(site).reset_index(drop=True)
        bad = records[records["nonfinite"] > 0]
        for quantity in ("cell", "hidden", "input"):
            if not len(bad) or quantity not in run.quantities(site):
                continue
            first = int(bad["step"].idxmin())
            norms, lengths = run.array(site, quantity)[first], run.lengths(site)[first]
            inside = np.arange(norms.shape[1]) < lengths[:, None]
            sequences, lags = np.nonzero(inside & ~np.isfinite(norms))
            if lags.size:
                lag = int(lags.min())
                entered = "it comes from above, at the last step" if lag == 0 else f"it arises at lag {lag}"
                said = f"{site} ({quantity}), {len(set(sequences))} sequences, {entered}"
                found.append((int(bad["step"].min()), said))
                break
    return found


def parameter_columns(table: Any) -> list[str]:
    """Return the columns of a run's table of parameters that are parameters."""
    return [name for name in table.columns if name not in ("step", "micro", "attempt", "rank")]


def _in_parameters(run: Any) -> list[tuple[int, str]]:
    table = run.parameters()
    names = parameter_columns(table)
    if not names:
        return []
    bad = np.isinf(table[names].to_numpy(dtype=float))
    rows = np.flatnonzero(bad.any(axis=1))
    if not rows.size:
        return []
    first = rows[int(np.argmin(table["step"].to_numpy()[rows]))]
    listed = [name for name, is_bad in zip(names, bad[first], strict=True) if is_bad]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return [(int(table["step"].iloc[first]), f"in the gradient of {', '.join(listed[:3])}{more}")]


def _in_clips(run: Any) -> list[tuple[int, str]]:
    clips = run.clips()
    if not len(clips) or "overflow" not in clips:
        return []
    bad = clips[~np.isfinite(clips["norm_before"]) & (clips["overflow"] == 0) & (clips["kind"] == "norm")]
    if not len(bad):
        return []
    part = f" of {bad['part'].iloc[0]}" if bad["part"].iloc[0] else ""
    return [(int(bad["step"].min()), f"the norm{part} that a clipping call measured")]
