"""``gradscope.remedies``: what each initialisation would let through, on the user's own model and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.capture.layers.discovery import discover, matches
from gradscope.capture.probes import measured_decay
from gradscope.capture.probes.copies import on_copies, refuse_wrapped
from gradscope.capture.probes.initialisations import Initialisation, NotTried, fitting
from gradscope.capture.probes.snapshot import SiteSnapshot, Snapshot, snapshot
from gradscope.capture.probes.tried import AS_IT_IS, Remedies, Tried
from gradscope.errors import SettingError, UnknownNameError

#: A closure whose loss differs by more than this from one call to the next draws new data.
SAME_LOSS = 1e-5

NO_GRADIENT = "no gradient arrived there"
HAS_IT = "the model has it already"
NOT_RUN = "the gradient is the same with it: the closure does not run these weights, or for one step only"


def remedies(
    model: nn.Module,
    closure: Callable[[], Tensor],
    *,
    sites: Sequence[str] | str | None = None,
    length: int | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Remedies:
    """Measure what each initialisation would let through to the first step, before any training.

    One snapshot of the model as it is, and one under each initialisation that fits a site: for an LSTM forget bias 1
    (Jozefowicz et al. 2015), chrono(T) (Tallec & Ollivier 2018: b_f ~ log U[1, T − 1], b_i = −b_f) and orthogonal
    recurrent blocks (Saxe et al. 2014); for a GRU the same of its update gate, which keeps the old state in PyTorch's
    h' = (1 − z) n + z h (with one gate chrono sets no other: van der Westhuizen & Lasenby 2018); for a plain RNN an
    orthogonal recurrent weight, one of spectral radius 1, and the identity (IRNN, Le et al. 2015). Of a hand-written
    loop only a recurrent weight that maps the state to itself can be told. An initialisation is applied to all sites
    that it fits at once. What an untrained gradient lets through is no prophecy of what training makes of it.

    Parameters
    ----------
    model : nn.Module
        It is not changed: the closure runs it on copies of its tensors, which are exchanged for the user's own and
        back (a closure cannot be told to run a deep copy). Parameters, buffers, ``.grad``, training mode, hooks, other
        attributes and random states are afterwards what they were, also where the closure raises; what the closure
        itself changes outside of the model is not undone.
    closure : callable
        Runs the forward pass on one fixed batch and returns the loss. Every run starts from the same random state, so
        dropout draws the same masks.
    sites : sequence of str, optional
        Sites, module paths or patterns to change and show; all by default.
    length : int, optional
        T of the chrono initialisation; by default the steps of the site's longest sequence in this batch.
    draws : int
        How often an initialisation that draws at random is drawn.
    seed : int
        Of those draws.

    Returns
    -------
    Remedies

    Raises
    ------
    NothingToRecordError, UnknownNameError
        As :func:`gradscope.snapshot`.
    SettingError
        The model is wrapped (compiled, data-parallel, sharded); the closure gives another loss for the same model;
        an argument out of its range.

    Examples
    --------
    >>> import torch, gradscope
    >>> gru, x = torch.nn.GRU(2, 16), torch.randn(100, 4, 2)
    >>> found = gradscope.remedies(gru, lambda: gru(x)[0][-1].square().mean())
    >>> found.table["initialisation"].tolist()[0]
    'chrono(100)'
    >>> print(found.code("chrono(100)"))
    # model/l0: chrono(100) (Tallec & Ollivier 2018; van der Westhuizen & Lasenby 2018)
    with torch.no_grad():
        spread = torch.empty(16).uniform_(1.0, 99.0).log()
        model.bias_ih_l0[16:32], model.bias_hh_l0[16:32] = spread, 0.0
    """
    if draws < 1 or (length is not None and length < 1):
        raise SettingError(f"draws and length must be positive, got {draws} and {length}.")
    refuse_wrapped(model, "remedies")
    bench = _Bench(model, closure)
    before = bench.measure({})
    bench.require_same(before.loss)
    shown = _shown(before, sites)
    lengths = {name: _length(before[name]) for name in shown}
    options, left_out = _options(model, before, lengths, length)
    tried = {AS_IT_IS: [before]}
    for name, parts in options.items():
        several = draws if any(one.random for one in parts) else 1
        tried[name] = [bench.under(parts, seed + draw) for draw in range(several)]
    rows = []
    for site in shown:
        here = [_tried(tried[AS_IT_IS], site)]
        for name, parts in options.items():
            one = next((part for part in parts if part.site == site), None)
            if one is None:
                continue
            found = _tried(tried[name], site, one)
            if found is None or _unmoved(here[0], found):
                left_out.append(NotTried(site, name, NO_GRADIENT if found is None else _why_unmoved(site, parts)))
            else:
                here.append(found)
        rows += sorted(filter(None, here), key=_distance)
    own = {name: int(before[name].lengths.max()) for name in shown}
    return Remedies(tuple(rows), tuple(left_out), lengths, own)


class _Bench:
    """Takes snapshots of one model and one closure, each on copies."""

    def __init__(self, model: nn.Module, closure: Callable[[], Tensor]) -> None:
        self._model, self._closure = model, closure

    def measure(self, values: dict[nn.Parameter, Tensor]) -> Snapshot:
        with on_copies(self._model):
            for parameter, value in values.items():
                parameter.data = value.clone(memory_format=torch.preserve_format)
            return snapshot(self._model, self._closure)

    def under(self, parts: Sequence[Initialisation], seed: int) -> Snapshot:
        """Measure with several sites initialised at once."""
        generator = torch.Generator().manual_seed(seed)
        values: dict[nn.Parameter, Tensor] = {}
        for one in parts:
            values |= one.values(generator)
        return self.measure(values)

    def require_same(self, loss: float) -> None:
        """Refuse a closure that draws new data, for then it is the data that differ."""
        with on_copies(self._model), torch.enable_grad():
            again = float(self._closure().detach())
        if not np.isclose(loss, again, rtol=SAME_LOSS, atol=0, equal_nan=True):
            raise SettingError(
                f"the closure gave a loss of {loss:.6g}, then {again:.6g}, for the same model: it takes new data at "
                "every call, so initialisations cannot be compared. Draw the batch once, outside of it."
            )


def _options(
    model: nn.Module, before: Snapshot, lengths: dict[str, int], length: int | None
) -> tuple[dict[str, list[Initialisation]], list[NotTried]]:
    """Return what fits, by name, and what does not."""
    targets = {info.site: target for target in discover(model) for info in target.sites}
    fits: dict[str, list[Initialisation]] = {}
    left_out: list[NotTried] = []
    done: set[tuple[str, str]] = set()
    for name, steps in lengths.items():
        site = before[name]
        plain = name.partition("#")[0]
        found, lacking = fitting(model, targets.get(plain), _sized(site), length or steps)
        left_out += [replace(one, site=name) for one in lacking]
        for one in found:
            # A second use of a layer in the same step has the same weights: they are drawn once.
            twice = (plain, one.name) in done
            done.add((plain, one.name))
            values = (lambda _: {}) if twice else one.values
            fits.setdefault(one.name, []).append(replace(one, site=name, values=values))
    return fits, left_out


def _sized(site: SiteSnapshot) -> Any:
    """Describe the site with the size of its state, which data flow alone does not tell beforehand."""
    if site.info.hidden_size or site.adjoints.hidden is None:
        return site.info
    shape = site.hidden.shape[2:]
    return replace(site.info, hidden_size=shape[0] if len(shape) == 1 else 0)


def _tried(snapshots: Sequence[Snapshot], site: str, one: Initialisation | None = None) -> Tried:
    found = [shot for shot in snapshots if site in shot]
    quantity = measured_decay.quantities_of(found[0][site])[0]
    has_input = all("input" in measured_decay.quantities_of(shot[site]) for shot in found) and quantity != "input"
    return Tried(
        name=AS_IT_IS if one is None else one.name,
        site=site,
        quantity=quantity,
        source="" if one is None else one.source,
        code="" if one is None else one.code,
        fits=tuple(shot.decay(site, quantity) for shot in found),
        input_fits=tuple(shot.decay(site, "input") for shot in found) if has_input else (),
        losses=tuple(shot.loss for shot in found),
    )


def _unmoved(before: Tried, after: Tried) -> bool:
    """Whether nothing at all differs from the model as it is."""
    return all(
        loss == before.losses[0] and np.array_equal(fit.curve.log10, before.fits[0].curve.log10, equal_nan=True)
        for fit, loss in zip(after.fits, after.losses, strict=True)
    )


def _why_unmoved(site: str, parts: Sequence[Initialisation]) -> str:
    """Why an initialisation changes nothing at a site: its parameters are so already, or nothing depends on them."""
    layer = site.partition("#")[0]
    new = {
        parameter: value
        for one in parts
        if one.site.partition("#")[0] == layer  # a second use of a layer has the values of the first
        for parameter, value in one.values(torch.Generator().manual_seed(0)).items()
    }
    return HAS_IT if new and all(map(torch.equal, new, new.values())) else NOT_RUN


def _shown(before: Snapshot, sites: Sequence[str] | str | None) -> list[str]:
    """Return the sites to change and show: those asked for that have a curve against lag."""
    wanted = None if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
    for name in wanted or ():
        if not any(matches(site.info, (name,)) for site in before.values()):
            raise UnknownNameError("site", name, before.sites)
    here = [name for name, site in before.items() if wanted is None or matches(site.info, wanted)]
    found = [name for name in here if measured_decay.quantities_of(before[name])]
    if not found:
        why = "; ".join(f"{line.site}: {line.reason}" for line in before.coverage if line.reason)
        raise SettingError(f"no site has a gradient against lag to compare{f' ({why})' if why else ''}.")
    return found


def _length(site: SiteSnapshot) -> int:
    """Steps of the longest sequence, with those before and after in other calls."""
    return int(site.lengths.max()) + max(site.carried, 0) + max(site.after, 0)


def _distance(one: Tried) -> float:
    """How far what reaches the first step is from what enters, in decades; what is not known last."""
    if not np.isfinite(one.reach) or one.reach <= 0:
        return float("inf")
    return float(abs(np.log10(one.reach)))
