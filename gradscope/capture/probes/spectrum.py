"""``gradscope.spectrum``: Jacobian singular values and Lyapunov exponents of one site, on the user's own data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.adjoint import CELLS, Linearization, Order, Weights, stack_adjoints
from gradscope.adjoint.products.jacobian import log_singular_values
from gradscope.adjoint.products.lyapunov import lyapunov_exponents
from gradscope.capture.host import brought
from gradscope.capture.layers.discovery import Target
from gradscope.capture.layers.rows import sampled_rows
from gradscope.capture.probes.catching import Caught, catching, choose_site
from gradscope.errors import SettingError
from gradscope.schema import SiteInfo
from gradscope.store.probes import save_probe
from gradscope.words import spectrum_sentence

Floats = NDArray[np.float64]

#: At most so many lags are evaluated when none are named.
MAX_LAGS = 128
#: Share of the shortest sequence that is left out while the tangents align, when no warm-up is named.
WARMUP_SHARE = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """How one site stretches and shrinks small changes of its joint state s = h, or (h, c) for an LSTM.

    Attributes
    ----------
    info : SiteInfo
    lags : ndarray of int, shape (L,)
    log_singular_values : ndarray, shape (L, B, S)
        Natural logarithm of the singular values of ∂s_T/∂s_{T−lag}, largest first; −inf for 0, NaN beyond a sequence.
    exponents : ndarray, shape (k,)
        Lyapunov exponents in natural log per step, largest first: mean over the sequences.
    exponents_spread : ndarray, shape (k,)
        Their standard deviation over the sequences; NaN with one sequence, or where an exponent is −inf.
    exponents_per_sequence : ndarray, shape (B, k)
    lengths : ndarray of int, shape (B,)
    warmup : int
        First steps left out of the exponents.

    Examples
    --------
    >>> import torch, gradscope
    >>> measured = gradscope.spectrum(torch.nn.LSTM(2, 4), torch.randn(30, 4, 2))
    >>> measured.state  # the joint state: its values are of both
    ('hidden', 'cell')
    >>> measured.save("spectrum.npz", step=0)  # for ``gradscope plot spectrum spectrum.npz``
    """

    info: SiteInfo
    lags: NDArray[np.int64]
    log_singular_values: Floats
    exponents: Floats
    exponents_spread: Floats
    exponents_per_sequence: Floats
    lengths: NDArray[np.int64]
    warmup: int

    def save(self, path: str | os.PathLike[str], **labels: str | float) -> None:
        """Write it to a ``.npz`` that ``gradscope plot spectrum``, ``lyapunov`` and ``dynamics`` draw without a model.

        ``labels`` tell it from others: ``name="LSTM"``, ``step=100`` of the training.
        """
        save_probe(self, path, labels)

    @property
    def singular_values(self) -> Floats:
        """The singular values themselves (L, B, S); those below 5e-324 read 0, their logarithm does not."""
        with np.errstate(under="ignore"):
            return np.exp(self.log_singular_values)

    @property
    def state(self) -> tuple[str, ...]:
        """What the joint state is made of."""
        return ("hidden", "cell") if self.info.curve == "cell" else ("hidden",)

    def __str__(self) -> str:
        at = int(np.argmax(self.lags))
        known = self.log_singular_values[at] / np.log(10)
        known = known[~np.isnan(known[:, 0])]  # sequences that are that long
        largest, median = known[:, 0].mean(), np.median(known, axis=1).mean()
        exponents, sequences = self.exponents.tolist(), len(self.lengths)
        end = (int(self.lags[at]), float(largest), float(median))
        return spectrum_sentence(self.info.site, self.state, exponents, sequences, self.warmup, end)

    def __repr__(self) -> str:
        return f"<Spectrum of {self.info.site}: {len(self.lags)} lags, {len(self.exponents)} exponents>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>"


def spectrum(
    model: nn.Module,
    x: Any,
    *,
    site: str | None = None,
    lags: Iterable[int] | None = None,
    exponents: int | None = None,
    warmup: int | None = None,
    samples: int | None = 8,
    qr_every: int = 1,
    seed: int = 0,
) -> Spectrum:
    """Measure the Jacobian singular values against lag and the Lyapunov exponents at one site.

    One forward pass of the model gives the trajectory; everything else is closed-form products in float64 of one-step
    Jacobians of the joint state, with one QR factorisation per step, so values of e^−3000 keep their digits. The model
    is not changed and needs no graph; it runs in the mode it is in: ``model.eval()`` beforehand leaves dropout out.

    Parameters
    ----------
    model : nn.Module
        With ``nn.RNN``, ``nn.LSTM`` (``proj_size`` too) or ``nn.GRU`` layers, or torch's cells called in a loop.
    x : Tensor, PackedSequence, tuple or callable
        ``model(x)``, ``model(*x)`` for a tuple, or ``x()`` where it is callable: runs the site's module once.
    site : str, optional
        Such as ``encoder.lstm/l1_reverse``; may be left out where there is one only.
    lags : iterable of int, optional
        Lags at which to take singular values; by default all, or 128 evenly spaced ones of a longer sequence.
    exponents : int, optional
        How many Lyapunov exponents, largest first: all S by default, 0 for none.
    warmup : int, optional
        First steps left out of the exponents while the tangents align; a fifth of the shortest sequence by default.
    samples : int or None
        Sequences to take, evenly spaced over the batch; None for all.
    qr_every : int
        Steps between two QR factorisations of the tangents, at most 10: larger is faster, and less exact for all but
        the largest exponents.
    seed : int
        Of the random tangents to start from.

    Returns
    -------
    Spectrum

    Raises
    ------
    NothingToRecordError
        The model has no recurrent layer.
    UnknownNameError
        A site that does not exist.
    SettingError
        Several sites and none chosen; the site's module did not run, or more than once; a lag or warm-up that the
        sequences are too short for; a cell whose state is changed between its calls.

    Notes
    -----
    Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019 for the singular values; Vogt et al. 2020 and Engelken,
    Wolf & Abbott 2023 for the exponents. A cell's derivative at the kink of a ReLU is taken as 0, as PyTorch does.

    Examples
    --------
    >>> import torch, gradscope
    >>> rnn = torch.nn.RNN(2, 6)
    >>> _ = torch.nn.init.orthogonal_(rnn.weight_hh_l0)
    >>> measured = gradscope.spectrum(rnn, 0.01 * torch.randn(30, 4, 2))
    >>> measured.exponents.shape
    (6,)
    """
    if samples is not None and samples < 1:
        raise SettingError(f"samples must be a positive number or None, got {samples}.")
    target, info = choose_site(model, site)
    if target.mode not in CELLS:
        raise SettingError(
            f"{info.site!r}: no closed form of the Jacobian of {info.module_class} is known; torch's own layers and "
            "cells have one."
        )
    with torch.no_grad(), catching(target, samples) as caught:
        run_forward(model, x)
    with torch.no_grad():
        maps, order = _linearized(target, info, caught, samples)
        lengths = torch.full((order.batch,), order.steps, device="cpu") if order.lengths is None else order.lengths
        chosen = _lags(lags, int(lengths.max()))
        shortest = int(lengths.min())
        skipped = int(WARMUP_SHARE * shortest) if warmup is None else warmup
        logs = log_singular_values(maps, order, chosen, seed)
        grown = maps.like.new_zeros(order.batch, 0)
        if exponents != 0:
            grown = lyapunov_exponents(maps, order, exponents, warmup=skipped, qr_every=qr_every, seed=seed)
    each = grown.numpy()
    return Spectrum(
        info=info,
        lags=np.asarray(chosen),
        log_singular_values=logs.numpy(),
        exponents=each.mean(0),
        exponents_spread=_spread(each),
        exponents_per_sequence=each,
        lengths=lengths.numpy(),
        warmup=skipped,
    )


def run_forward(model: nn.Module, x: Any) -> Any:
    """Run the model on what the user gave: an input, a tuple of arguments or a closure."""
    if isinstance(x, Tensor | nn.utils.rnn.PackedSequence):
        return model(x)
    if callable(x):
        return x()
    return model(*x) if isinstance(x, tuple | list) else model(x)


def _linearized(target: Target, info: SiteInfo, caught: Caught, samples: int | None) -> tuple[Linearization, Order]:
    if target.kind == "fused":
        place = info.layer, int(info.reverse)
        adjoints = stack_adjoints(caught.one(info, "a spectrum").call, layers=[info.layer])[place]
        assert adjoints.trajectory is not None
        assert adjoints.weights is not None
        return CELLS[target.mode].linearise(adjoints.trajectory, adjoints.weights), adjoints.order
    return _linearized_cell(target, info, caught, samples)


def _linearized_cell(
    target: Target, info: SiteInfo, caught: Caught, samples: int | None
) -> tuple[Linearization, Order]:
    steps = caught.steps
    if not steps:
        raise SettingError(f"{info.module!r} was not called while it was watched; a spectrum needs its steps.")
    for t in range(1, len(steps)):
        if not all(map(torch.equal, steps[t].before, steps[t - 1].after)):
            raise SettingError(
                f"{info.module!r}: the state given to call {t} is not the one that call {t - 1} returned (changed in "
                "between, or another sequence), so the cell's own Jacobian is not that of the recurrence."
            )
    batch = steps[0].after[0].shape[0]
    rows = sampled_rows(batch, samples) or list(range(batch))

    def stacked(values: Iterable[Tensor]) -> Tensor:
        return torch.stack([value[rows] for value in values]).double()

    weights = _cell_weights(target.module)
    before = [stacked(step.before[i] for step in steps) for i in range(len(steps[0].before))]
    trajectory = CELLS[target.mode].at(
        stacked(step.x for step in steps),
        stacked(step.after[0] for step in steps),
        before[0],
        before[1] if len(before) > 1 else None,
        weights,
    )
    return CELLS[target.mode].linearise(trajectory, weights), Order(len(steps), len(rows), None, False)


def _cell_weights(module: nn.Module) -> Weights:
    values = [getattr(module, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return Weights(*(None if value is None else brought(value).double() for value in values))  # type: ignore[arg-type]


def _lags(wanted: Iterable[int] | None, steps: int) -> list[int]:
    if wanted is None:
        return np.unique(np.linspace(0, steps - 1, min(steps, MAX_LAGS)).round().astype(int)).tolist()
    chosen = sorted({int(lag) for lag in wanted})
    if not chosen or chosen[0] < 0 or chosen[-1] >= steps:
        raise SettingError(f"lags must lie between 0 and {steps - 1}, the longest sequence's steps less one.")
    return chosen


def _spread(each: Floats) -> Floats:
    """Standard deviation over the sequences, NaN where there is none."""
    spread = np.full(each.shape[1], np.nan)
    finite = np.isfinite(each).all(0)
    if len(each) > 1:
        spread[finite] = each[:, finite].std(0, ddof=1)
    return spread
