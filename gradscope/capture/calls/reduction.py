"""From the adjoints of a site to the numbers a record keeps: norms against lag, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gradscope.adjoint import Adjoints, Keep, cell_path, consistency, weight_contribution
from gradscope.adjoint.magnitude import norms
from gradscope.schema import DATASETS, QUANTITIES, STATES, SiteRecord


@dataclass(frozen=True)
class Source:
    """How a quantity follows from the adjoints of a site.

    Attributes
    ----------
    tensor : callable
        Returns it as (T, B, N) in processing order, or None where the site has none. What is stored is its norm.
    scaled : bool
        Whether it comes with the adjoints' own scale.
    needs_gates : bool
        Whether gates, their adjoints or the carry have to be kept for it.
    norms : callable or None
        Returns its norms (T, B) where the adjoints remember them.
    """

    tensor: Callable[[Adjoints], Tensor | None]
    scaled: bool = False
    needs_gates: bool = False
    norms: Callable[[Adjoints], Tensor] | None = None


def _numbered(number: int, adjoints: Adjoints) -> Tensor | None:
    return adjoints.states[number] if number < len(adjoints.states) else None


SOURCES: dict[str, Source] = {
    "hidden": Source(lambda a: a.hidden, scaled=True, norms=lambda a: a.hidden_norms),
    "cell": Source(lambda a: a.cell, scaled=True, norms=lambda a: a.cell_norms),
    "cell_carry": Source(lambda a: a.cell_carry, scaled=True, needs_gates=True),
    "input": Source(lambda a: a.input, scaled=True, norms=lambda a: a.input_norms),
    "gates": Source(lambda a: a.gates, scaled=True, needs_gates=True),
    "direct": Source(lambda a: a.direct),
    "recurrent": Source(Adjoints.recurrent),
    "cell_path": Source(cell_path),
    **{name: Source(partial(_numbered, k)) for k, name in enumerate(STATES)},
}

#: Tensor of each quantity that has one.
TENSORS = {name: source.tensor for name, source in SOURCES.items()}

# The smallest positive float64: marks a norm that is not 0 but below the normal numbers.
_BELOW_NORMAL = 5e-324

# No single step makes a norm this small exactly 0 but by running out of float64.
_NEARLY_LOST = 2.0**-960

# A sigmoid gate outside [.05, .95], or a tanh candidate beyond ±.95, counts as saturated.
_SATURATION = 0.05


def needed(quantities: Iterable[str]) -> Keep:
    """Return what a walk has to keep for these quantities."""
    wanted = set(quantities)
    gates = any(name in _ARRAYS or SOURCES[name].needs_gates for name in wanted)
    return Keep(gates=gates, input="input" in wanted)


def reduce_site(
    adjoints: Adjoints, quantities: Iterable[str], tensors: bool, gate_names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the arrays of one site, by dataset name, as ``schema.DATASETS`` lays them out."""
    arrays: dict[str, Tensor] = {}
    for name in quantities:
        if name in _ARRAYS:
            arrays.update(_ARRAYS[name](adjoints, gate_names))
        elif (values := SOURCES[name].tensor(adjoints)) is not None:
            arrays[name] = _norms_by_lag(name, values, adjoints, gate_names)
            if tensors and f"{name}_tensor" in DATASETS:
                true = adjoints.true(values) if SOURCES[name].scaled else values
                arrays[f"{name}_tensor"] = adjoints.order.to_lag(true).float()
    return arrays


def _norms_by_lag(name: str, values: Tensor, adjoints: Adjoints, gate_names: tuple[str, ...]) -> Tensor:
    """Return the norms of a quantity, (B, lag); one for each gate of ``gates``, (B, gate, lag)."""
    source, per_gate = SOURCES[name], name == "gates"
    if source.norms is not None:
        found = source.norms(adjoints)[:, :, None]
    else:
        found = norms(values.unflatten(2, (len(gate_names) or 1 if per_gate else 1, -1)))
    # So few numbers that numpy is done with them before torch has begun.
    sizes = found.numpy()
    if source.scaled and adjoints.scale is not None:
        with np.errstate(over="ignore"):  # inf, as an adjoint beyond float64 is
            sizes = sizes / adjoints.scale.numpy()
    sizes = _marked(sizes, adjoints.faded if source.scaled or name == "recurrent" else None)
    if adjoints.order.lengths is None:
        # Copied: to numpy a single step is contiguous as it is, with a negative stride, which torch refuses.
        lagged = torch.from_numpy(np.array(sizes[::-1].swapaxes(0, 1), order="C"))
    else:
        lagged = adjoints.order.to_lag(torch.from_numpy(sizes))
    return lagged.transpose(1, 2) if per_gate else lagged[:, :, 0]


def _marked(found: np.ndarray, faded: list[bool] | None) -> np.ndarray:
    """Mark what is not 0 but below what float64 holds, in norms (T, ...) in processing order.

    That is where the adjoint was known to fade, and where a norm of 0 follows one that is nearly as small: what ends at
    a gate or a unit that is shut ends at any size.
    """
    zero = found == 0
    if not zero.any():
        return found
    lost = np.zeros_like(zero)
    if faded is not None and any(faded):
        lost[np.asarray(faded)] = True
    if (found[~zero] < _NEARLY_LOST).any():
        # The norm at the next step that has one, with 1 where no step after has: nothing was lost on the way.
        time = np.arange(len(found)).reshape(-1, *[1] * (found.ndim - 1))
        after = np.minimum.accumulate(np.where(zero, len(found), time)[::-1])[::-1]
        padded = np.concatenate((found, np.ones_like(found[:1])))
        lost |= np.take_along_axis(padded, after, 0) < _NEARLY_LOST
    return np.where(zero & lost, _BELOW_NORMAL, found)


def _weight(adjoints: Adjoints, gate_names: tuple[str, ...]) -> dict[str, Tensor]:
    """Norms (T,) over the batch, in input time order."""
    if (found := weight_contribution(adjoints)) is None:
        return {}
    reverse = adjoints.order.reverse
    # Sequences of different lengths are at different steps of the reverse direction at one time.
    faded = None if reverse and adjoints.order.lengths is not None else adjoints.faded
    sizes = found.numpy()
    marked = _marked(sizes[::-1] if reverse else sizes, faded)
    return {"weight": torch.from_numpy(np.array(marked[::-1] if reverse else marked, order="C"))}


def _consistency(adjoints: Adjoints, gate_names: tuple[str, ...]) -> dict[str, Tensor]:
    if adjoints.gates is None:
        return {}
    return {"consistency": consistency(adjoints.order.to_lag(adjoints.gates).transpose(0, 1))}


def _activations(adjoints: Adjoints, gate_names: tuple[str, ...]) -> dict[str, Tensor]:
    if adjoints.trajectory is None or adjoints.trajectory.activations is None:
        return {}
    values = adjoints.trajectory.activations.double()
    steps, batch = values.shape[:2]
    mask = adjoints.order.mask(torch.bool)
    valid = torch.ones(steps, batch, dtype=torch.bool, device="cpu") if mask is None else mask[..., 0]
    taken = values[valid]  # (valid steps, G, H)
    signed = torch.tensor([name in ("g", "n", "h") for name in gate_names], device="cpu")[:, None]
    low = torch.where(signed, taken < -(1 - _SATURATION), taken < _SATURATION)
    high = taken > 1 - _SATURATION
    # The retention of a gate over many steps is the product of its values: average the logarithm.
    log_mean = torch.where(signed, torch.nan, taken.clamp_min(1e-300).log().mean(0))
    return {
        "gate_mean": taken.mean(0),
        "gate_log_mean": log_mean,
        "gate_low": low.double().mean((0, 2)),
        "gate_high": high.double().mean((0, 2)),
    }


# Quantities that are no norm of a tensor: their arrays by dataset name. All of them need gates.
_ARRAYS: dict[str, Callable[[Adjoints, tuple[str, ...]], dict[str, Tensor]]] = {
    "weight": _weight,
    "consistency": _consistency,
    "activations": _activations,
}


def site_record(
    adjoints: Adjoints,
    quantities: Iterable[str],
    gate_names: tuple[str, ...],
    rows: Tensor,
    tensors: bool = False,
    carried: int = 0,
    after: int = 0,
) -> SiteRecord:
    """Reduce the adjoints of a site to what is stored of them."""
    reduced = reduce_site(adjoints, quantities, tensors, gate_names)
    arrays = {name: array.contiguous().numpy() for name, array in reduced.items()}
    order = adjoints.order
    if order.lengths is None:
        lengths = np.full(order.batch, order.steps, dtype=np.int32)
    else:
        lengths = order.lengths.numpy().astype(np.int32)
    return SiteRecord(
        lengths=lengths,
        rows=rows.numpy().astype(np.int32),
        # Float64 arithmetic, or float32 with a scale that reaches as far.
        smallest_normal=float(torch.finfo(torch.float64).smallest_normal),
        arrays=arrays,
        nonfinite=_count_nonfinite(arrays, lengths),
        carried=carried,
        after=after,
    )


def _count_nonfinite(arrays: dict[str, np.ndarray], lengths: np.ndarray) -> int:
    found = np.zeros(len(lengths), dtype=bool)
    for name, array in arrays.items():
        if DATASETS[name] == QUANTITIES["hidden"].datasets["hidden"]:
            valid = np.arange(array.shape[1]) < lengths[:, None]
            found |= (~np.isfinite(array) & valid).any(axis=1)
    return int(found.sum())
