"""Diagnostics of one site of a run that follow from its optional quantities. Thin, like :mod:`.of_run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gradscope.diagnostics.cell_path import cell_path_share
from gradscope.diagnostics.clipping import Floats
from gradscope.diagnostics.gates import timescale_of_log
from gradscope.diagnostics.law import LawComparison, compare_laws
from gradscope.diagnostics.of_run import curve_quantity, part_of_run
from gradscope.diagnostics.ratio import one_step_ratio
from gradscope.errors import SettingError

if TYPE_CHECKING:
    from gradscope.store import Run

#: The gate that retains the state: an LSTM's forget gate; a GRU's update gate in PyTorch's h = (1 - z) n + z h.
RETAINING_GATES = ("f", "z")


def timescales_of_site(run: Run, site: str, part: str = "late") -> pd.DataFrame:
    """Retention time of every unit: ``step, unit, timescale``, from the recorded mean of ln f (or ln z).

    Raises
    ------
    SettingError
        The cell has no gate that retains its state.
    NotRecordedError
        ``activations`` was not recorded.
    """
    index = _retaining(run, site)
    at = part_of_run(run, site, part)
    tau = timescale_of_log(run.array(site, "gate_log_mean")[at][:, index])
    steps = run.records(site)["step"].to_numpy()[at]
    frame = pd.DataFrame(
        {
            "step": np.repeat(steps, tau.shape[1]),
            "unit": np.tile(np.arange(tau.shape[1]), tau.shape[0]),
            "timescale": tau.ravel(),
        }
    )
    return frame.dropna(ignore_index=True)


def saturation_of_site(run: Run, site: str) -> pd.DataFrame:
    """Saturated share of every gate through training: ``step, gate, low, high``."""
    low, high = run.array(site, "gate_low"), run.array(site, "gate_high")
    gates = run.site(site).gates or tuple(map(str, range(low.shape[1])))
    steps = run.records(site)["step"].to_numpy()
    columns = {"step": np.repeat(steps, len(gates)), "gate": np.tile(np.array(gates), len(steps))}
    return pd.DataFrame({**columns, "low": low.ravel(), "high": high.ravel()})


def one_step_ratio_of_site(run: Run, site: str, part: str = "late", **options: Any) -> Floats:
    """:func:`one_step_ratio` of each sequence, shape (records · sequences, lag); ``hidden`` and ``recurrent``."""
    at = part_of_run(run, site, part)
    hidden, recurrent = (run.array(site, name)[at] for name in ("hidden", "recurrent"))
    return one_step_ratio(_rows(hidden), _rows(recurrent), **options)


def cell_path_share_of_site(run: Run, site: str, part: str = "late") -> Floats:
    """:func:`cell_path_share` of each sequence, shape (records · sequences, lag)."""
    at = part_of_run(run, site, part)
    path, total = (run.array(site, name)[at] for name in ("cell_path", "cell"))
    return cell_path_share(_rows(path), _rows(total))


def law_of_site(run: Run, site: str, quantity: str | None = None, part: str = "late", **options: Any) -> LawComparison:
    """:func:`compare_laws` over the pooled sequences of a part of the run."""
    at = part_of_run(run, site, part)
    norms = _rows(run.array(site, quantity or curve_quantity(run, site))[at])
    smallest = float(run.records(site)["smallest_normal"].to_numpy()[at].max())
    lengths = run.lengths(site)[at].reshape(-1)
    return compare_laws(np.arange(norms.shape[1]), norms, lengths=lengths, smallest_normal=smallest, **options)


def _retaining(run: Run, site: str) -> int:
    gates = run.site(site).gates
    for name in RETAINING_GATES:
        if name in gates:
            return gates.index(name)
    raise SettingError(f"{site}: {run.site(site).cell or 'its cell'} has no gate that retains the state.")


def _rows(norms: Floats) -> Floats:
    return np.asarray(norms).reshape(-1, norms.shape[-1])
