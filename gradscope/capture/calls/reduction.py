"""From the adjoints of a site to the numbers a record keeps: norms against lag, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from gradscope.adjoint import Adjoints, cell_path, consistency, weight_contribution
from gradscope.adjoint.magnitude import norms
from gradscope.schema import DATASETS, QUANTITIES, STATES, SiteRecord

#: Tensor of each quantity, (T, B, N) in processing order, or None where the site has none.
TENSORS: dict[str, Callable[[Adjoints], Tensor | None]] = {
    "hidden": lambda a: a.hidden,
    "cell": lambda a: a.cell,
    "cell_carry": lambda a: a.cell_carry,
    "input": Adjoints.input,
    "gates": lambda a: a.gates,
    "direct": lambda a: a.direct,
    "recurrent": Adjoints.recurrent,
    "cell_path": cell_path,
    **{name: (lambda a, k=k: a.states[k] if k < len(a.states) else None) for k, name in enumerate(STATES)},  # type: ignore[misc]
}

#: Quantities that need more than the total adjoints of the states: gates, their adjoints, the carry.
NEEDS_GATES = {"gates", "input", "weight", "consistency", "activations", "cell_carry"}

# Quantities that come with the adjoints' own scale.
_SCALED = {"hidden", "cell", "cell_carry", "input", "gates"}

# The smallest positive float64: marks a norm that is not 0 but below the normal numbers.
_BELOW_NORMAL = 5e-324

# No single step makes a norm this small exactly 0 but by running out of float64.
_NEARLY_LOST = 2.0**-960

# A sigmoid gate outside [.05, .95], or a tanh candidate beyond ±.95, counts as saturated.
_SATURATION = 0.05


def reduce_site(
    adjoints: Adjoints, quantities: Iterable[str], tensors: bool, gate_names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the arrays of one site, by dataset name, as ``schema.DATASETS`` lays them out."""
    arrays: dict[str, Tensor] = {}
    for name in quantities:
        if name == "weight":
            if (found := weight_contribution(adjoints)) is not None:
                arrays[name] = _marked_in_time(found, adjoints)
        elif name == "consistency":
            arrays[name] = _consistency(adjoints)  # type: ignore[assignment]
        elif name == "activations":
            arrays.update(_activations(adjoints, gate_names))
        elif (values := TENSORS[name](adjoints)) is not None:
            scale = adjoints.scale if name in _SCALED else None
            if name in ("hidden", "cell"):
                found = (adjoints.hidden_norms if name == "hidden" else adjoints.cell_norms)[:, :, None]
            else:
                found = norms(values.unflatten(2, (len(gate_names) or 1 if name == "gates" else 1, -1)))
            faded = adjoints.faded if name in _SCALED or name == "recurrent" else None
            found = _marked(found if scale is None else found / scale, faded)
            arrays[name] = adjoints.order.to_lag(found if name == "gates" else found[:, :, 0])
            if name == "gates":
                arrays[name] = arrays[name].transpose(1, 2)
            if tensors and f"{name}_tensor" in DATASETS:
                arrays[f"{name}_tensor"] = adjoints.order.to_lag(
                    adjoints.true(values) if scale is not None else values
                ).float()
    return {name: array for name, array in arrays.items() if array is not None}


def _marked(found: Tensor, faded: list[bool] | None) -> Tensor:
    """Mark what is not 0 but below what float64 holds, in norms (T, ...) in processing order.

    That is where the adjoint was known to fade, and where a norm of 0 follows one that is nearly as small: what ends at
    a gate or a unit that is shut ends at any size.
    """
    zero = found == 0
    if not bool(zero.any()):
        return found
    lost = torch.zeros_like(zero)
    if faded is not None and any(faded):
        lost |= torch.tensor(faded, device=found.device).reshape(-1, *[1] * (found.dim() - 1))
    if bool((found[~zero] < _NEARLY_LOST).any()):
        # The norm at the next step that has one, with 1 where no step after has: nothing was lost on the way.
        time = torch.arange(len(found), device=found.device).reshape(-1, *[1] * (found.dim() - 1))
        after = torch.where(zero, len(found), time).flip(0).cummin(0).values.flip(0)
        padded = torch.cat((found, torch.ones_like(found[:1])))
        lost |= padded.gather(0, after) < _NEARLY_LOST
    return torch.where(zero & lost, _BELOW_NORMAL, found)


def _marked_in_time(found: Tensor, adjoints: Adjoints) -> Tensor:
    """The same for norms (T,) over the batch, in input time order."""
    reverse = adjoints.order.reverse
    # Sequences of different lengths are at different steps of the reverse direction at one time.
    faded = None if reverse and adjoints.order.lengths is not None else adjoints.faded
    marked = _marked(found.flip(0) if reverse else found, faded)
    return marked.flip(0) if reverse else marked


def _consistency(adjoints: Adjoints) -> Tensor | None:
    if adjoints.gates is None:
        return None
    return consistency(adjoints.order.to_lag(adjoints.gates).transpose(0, 1))


def _activations(adjoints: Adjoints, gate_names: tuple[str, ...]) -> dict[str, Tensor]:
    if adjoints.trajectory is None or adjoints.trajectory.activations is None:
        return {}
    values = adjoints.trajectory.activations.double()
    steps, batch = values.shape[:2]
    mask = adjoints.order.mask(torch.bool)
    valid = torch.ones(steps, batch, dtype=torch.bool, device=values.device) if mask is None else mask[..., 0]
    taken = values[valid]  # (valid steps, G, H)
    signed = torch.tensor([name in ("g", "n", "h") for name in gate_names], device=values.device)[:, None]
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


def to_numpy(arrays: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Bring arrays to the host in one transfer per type."""
    if all(array.device.type == "cpu" for array in arrays.values()):
        return {name: array.contiguous().numpy() for name, array in arrays.items()}
    result = {}
    for dtype in {array.dtype for array in arrays.values()}:
        group = {name: array for name, array in arrays.items() if array.dtype == dtype}
        flat = torch.cat([array.reshape(-1) for array in group.values()]).cpu().numpy()
        pieces = np.split(flat, np.cumsum([array.numel() for array in group.values()])[:-1])
        for (name, array), piece in zip(group.items(), pieces, strict=True):
            result[name] = piece.reshape(tuple(array.shape))
    return result


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
    arrays = to_numpy(reduce_site(adjoints, quantities, tensors, gate_names))
    order = adjoints.order
    if order.lengths is None:
        lengths = np.full(order.batch, order.steps, dtype=np.int32)
    else:
        lengths = order.lengths.cpu().numpy().astype(np.int32)
    return SiteRecord(
        lengths=lengths,
        rows=rows.cpu().numpy().astype(np.int32),
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
