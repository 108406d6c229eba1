"""The true states of a model and their gradients, by torch alone: a noted tensor keeps its gradient.

A model calls ``note(h=h)`` in its loop, which does nothing but in a reference run. There the kernels that hide their
loop are written out step by step as well, with every state noted under the path of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_notes: dict[str, list[Tensor]] | None = None
_paths: dict[int, str] = {}


def noting() -> bool:
    """Whether this is the reference run."""
    return _notes is not None


def note(**states: Tensor) -> None:
    """Keep the gradients of this step's states, in the reference run."""
    if _notes is None:
        return
    for name, state in states.items():
        if state.requires_grad:
            state.retain_grad()
        _notes.setdefault(name, []).append(state)


def chunked(function: Callable[..., Any], *args: Any, reentrant: bool) -> Any:
    """Checkpoint, except in the reference run."""
    return function(*args) if noting() else checkpoint(function, *args, use_reentrant=reentrant)


def _lstm(x: Tensor, h: Tensor, c: Tensor | None, w_ih: Tensor, w_hh: Tensor, *b: Tensor) -> tuple[Tensor, Tensor]:
    assert c is not None
    i, f, g, o = (x @ w_ih.T + h @ w_hh.T + sum(b)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, c: None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, None]:
    (xr, xz, xn), (hr, hz, hn) = (x @ w_ih.T + b_ih).chunk(3, 1), (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return (1 - z) * (xn + r * hn).tanh() + z * h, None


def _rnn(x: Tensor, h: Tensor, c: None, w_ih: Tensor, w_hh: Tensor, *b: Tensor) -> tuple[Tensor, None]:
    return (x @ w_ih.T + h @ w_hh.T + sum(b)).tanh(), None


def _written_out(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a whole-sequence kernel in the signature of ``torch._VF``: one direction, no dropout, no packing."""

    def kernel(
        x: Tensor, hx: Any, weights: list[Tensor], biases: bool, layers: int, dropout: float, train: bool, *axes: bool
    ) -> tuple[Tensor, ...]:
        bidirectional, batch_first = axes
        assert biases
        assert not bidirectional
        h, c = hx if isinstance(hx, tuple | list) else (hx, None)
        rows = list((x.transpose(0, 1) if batch_first else x).unbind())
        last_h, last_c = [], []
        for layer in range(layers):
            own = weights[4 * layer : 4 * layer + 4]
            path = _paths[id(own[1])]
            h_t, c_t = h[layer], None if c is None else c[layer]
            for t, x_t in enumerate(rows):
                h_t, c_t = step(x_t, h_t, c_t, *own)
                note(**{f"{path}.h": h_t} | ({} if c_t is None else {f"{path}.c": c_t}))
                rows[t] = h_t
            last_h.append(h_t)
            last_c.append(c_t)
        output = torch.stack(rows, 1 if batch_first else 0)
        return (output, torch.stack(last_h)) if c is None else (output, torch.stack(last_h), torch.stack(last_c))

    return kernel


_KERNELS = {"lstm": _written_out(_lstm), "gru": _written_out(_gru), "rnn_tanh": _written_out(_rnn)}


@contextmanager
def _reference(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    global _notes, _paths
    kept = [(place, name, vars(place).get(name)) for place in (torch._VF, torch) for name in _KERNELS]
    _paths = {id(p): name.replace(".weight_hh_l", "/l") for name, p in model.named_parameters()}
    _notes = {}
    try:
        for place, name, _ in kept:
            setattr(place, name, _KERNELS[name])
        yield _notes
    finally:
        for place, name, kernel in kept:
            if kernel is None:
                delattr(place, name)
            else:
                setattr(place, name, kernel)
        _notes = None


def _rows(gradient: Tensor, batch: int) -> Tensor:
    """Append zeros for the sequences that have ended (rows are sorted by length)."""
    missing = batch - len(gradient)
    return torch.cat((gradient, gradient.new_zeros(missing, *gradient.shape[1:]))) if missing else gradient


def true_adjoints(model: nn.Module, loss: Callable[[], Tensor], batch_axis: int | None = 0) -> dict[str, Tensor]:
    """Return every noted state's ∂L/∂s_t, (T, B, \\*state) in double; 0 where the loss does not depend on it."""
    with _reference(model) as notes:
        loss().backward()
        model.zero_grad(set_to_none=True)
    found = {}
    for name, states in notes.items():
        gradients = [torch.zeros_like(s) if s.grad is None else s.grad for s in states]
        gradients = [g.unsqueeze(0) if batch_axis is None else g.movedim(batch_axis, 0) for g in gradients]
        batch = max(len(g) for g in gradients)
        stacked = torch.stack([_rows(g, batch) for g in gradients])
        found[name] = stacked.to(torch.complex128 if stacked.is_complex() else torch.float64)
    return found
