"""Every kind of call x every unusual pass: what autograd says of the same steps written out, or a true reason."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.capture.calls.prehook import SECOND_ORDER, TRANSFORMED

DOUBLE = torch.float64
T, B, FEATURES, H = 6, 3, 2, 4
State = tuple[Tensor, ...] | None


# -- the calls -----------------------------------------------------------------------------------------------------


def _edited(place: str, edit: str, value: Tensor) -> Tensor:
    return value.mul_(0.5) if place == edit else value


def _lstm(layer: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step, with the weights of an nn.LSTM, an nn.LSTMCell, or two nn.Linear."""
    h, c = state
    i, f, g, o = _gates(layer, x, h, "").chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(layer: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (h,) = state
    (xr, xz, xn), (hr, hz, hn) = (_gates(layer, x, h, part).chunk(3, -1) for part in ("ih", "hh"))
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return ((1 - z) * (xn + r * hn).tanh() + z * h,)


def _gates(layer: Any, x: Tensor, h: Tensor, part: str) -> Tensor:
    """Return what enters the gates from the input (``ih``), from the state (``hh``), or both."""
    weights = dict(layer.named_parameters())
    terms = [
        given @ weights[next(n for n in weights if n.startswith(f"weight_{of}"))].T
        + weights[next(n for n in weights if n.startswith(f"bias_{of}"))]
        for of, given in (("ih", x), ("hh", h))
        if part in ("", of)
    ]
    return terms[0] + terms[1] if len(terms) == 2 else terms[0]


class Model(nn.Module):
    """``chunk`` runs some timesteps; the output is time-major, with or without a batch axis."""

    gates, states, in_loop = 4, 2, True

    def __init__(self) -> None:
        super().__init__()
        self.edit = ""
        self.checkpointing: bool | None = None
        self.layer = self.build()

    def build(self) -> nn.Module:
        raise NotImplementedError

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output and the states of one timestep."""
        raise NotImplementedError

    def chunk(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = state or (x.new_zeros(*x.shape[1:-1], H),) * self.states
        outputs = []
        for x_t in x.unbind(0):
            output, given = self.step(x_t, given)
            given = tuple(_edited(p, self.edit, s) for p, s in zip(("h_n", "c_n"), given, strict=False))
            outputs.append(output)
        return (_edited("output", self.edit, torch.stack(outputs)), *given)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.checkpointing is None:
            return self.chunk(x)
        first, *state = checkpoint(self.chunk, x[: T // 2], use_reentrant=self.checkpointing)
        second, *state = checkpoint(self.chunk, x[T // 2 :], *state, use_reentrant=self.checkpointing)
        return (torch.cat((first, second)), *state)


class LSTM(Model):
    in_loop = False

    def build(self) -> nn.Module:
        return nn.LSTM(FEATURES, H)

    def chunk(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given: Any = tuple(s.unsqueeze(0) for s in state) or None
        output, final = self.layer(x, given[0] if given and self.states == 1 else given)
        final = final if isinstance(final, tuple) else (final,)
        edited = [_edited(place, self.edit, s) for place, s in zip(("h_n", "c_n"), final, strict=False)]
        return (_edited("output", self.edit, output), *(s.squeeze(0) for s in edited))


class GRU(LSTM):
    gates, states = 3, 1

    def build(self) -> nn.Module:
        return nn.GRU(FEATURES, H)


class LSTMByStep(LSTM):
    in_loop = True

    def chunk(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for t in range(len(x)):
            output, *state = super().chunk(x[t : t + 1], *state)  # type: ignore[assignment]
            outputs.append(output)
        return (torch.cat(outputs), *state)


class LSTMCell(Model):
    def build(self) -> nn.Module:
        return nn.LSTMCell(FEATURES, H)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, c = self.layer(x, state)
        return h, (h, c)


class Weights(nn.Module):
    """Of an LSTM, and no more: nothing is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.randn(4 * H, n) / 2) for n in (FEATURES, H))
        self.bias_ih, self.bias_hh = (nn.Parameter(torch.randn(4 * H) / 2) for _ in range(2))


class Written(Model):
    def build(self) -> nn.Module:
        return Weights()

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, c = _lstm(self.layer, x, state)
        return h, (h, c)


class Marked(Written):
    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, c = _lstm(self.layer, x, state)
        h = gradscope.state("memory", h)
        return h, (h, c)


class Mixing(nn.Module):
    """Mixes time and features, without a recurrence."""

    batch_first = False

    def __init__(self) -> None:
        super().__init__()
        self.time, self.features = nn.Linear(T, T), nn.Linear(FEATURES, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(torch.tanh(self.time(x.movedim(0, -1)).movedim(-1, 0)))


class Box(Model):
    states, in_loop = 0, False

    def build(self) -> nn.Module:
        return Mixing()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        run: Any = self.layer
        output = run(x) if self.checkpointing is None else checkpoint(run, x, use_reentrant=self.checkpointing)
        return (_edited("output", self.edit, output),)


# -- the same, written out, with every state a tensor of autograd's ------------------------------------------------


@dataclass
class Twin:
    """Outputs, and the states of every timestep by quantity."""

    values: tuple[Tensor, ...]
    states: dict[str, list[Tensor]] = field(default_factory=dict)

    def norms(self, loss: Tensor) -> dict[str, np.ndarray]:
        """Return the norms (sequence, lag) of the gradients."""
        found = {}
        for name, states in self.states.items():
            given = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
            stacked = torch.stack([torch.zeros_like(s) if g is None else g for s, g in zip(states, given, strict=True)])
            stacked = stacked.reshape(T, -1, stacked.shape[-1])
            found[name] = torch.linalg.vector_norm(stacked, dim=2).T.flip(1).numpy()
        return found


def twin_of(model: Model, x: Tensor) -> Twin:
    half = {place: 0.5 if place == model.edit else 1.0 for place in ("output", "h_n", "c_n")}
    if isinstance(model, Box):
        rows = [x_t.detach().requires_grad_() for x_t in x]
        return Twin((half["output"] * model.layer(torch.stack(rows)),), {"input": rows})
    step = _gru if isinstance(model, GRU) else _lstm
    state: tuple[Tensor, ...] = (x.new_zeros(*x.shape[1:-1], H),) * model.states
    outputs, states = [], []
    rows = [x_t.detach().requires_grad_() for x_t in x]
    for x_t in rows:
        state = step(model.layer, x_t, state)
        states.append(state)
        output = state[0]
        if model.in_loop:
            places = zip(("h_n", "c_n"), state, strict=False)
            state = tuple(s if half[place] == 1 else half[place] * s for place, s in places)
            output = output if isinstance(model, LSTMByStep) else state[0]
            if type(model) is Written:
                states[-1] = state  # what data flow shows is the state that goes on
        outputs.append(half["output"] * output)
    if not model.in_loop:
        state = tuple(half[place] * s for place, s in zip(("h_n", "c_n"), state, strict=False))
    by_name = {name: [s[k] for s in states] for k, name in enumerate(("hidden", "cell")[: model.states])}
    return Twin((torch.stack(outputs), *state), by_name | {"input": rows})


# -- the passes ----------------------------------------------------------------------------------------------------


def first_loss(values: tuple[Tensor, ...]) -> Tensor:
    """Of the outputs and of what is left in the end."""
    return values[0].sin().sum() + sum(((k + 2) * s.cos().sum() for k, s in enumerate(values[1:])), torch.tensor(0.0))


def second_loss(values: tuple[Tensor, ...]) -> Tensor:
    return values[0].pow(3).sum()


Gradients = list[Tensor | None]


def _gradients(model: Model) -> Gradients:
    return [p.grad for p in model.parameters()]


def _usual(model: Model, x: Tensor) -> Gradients:
    first_loss(model(x)).backward()
    return _gradients(model)


def _batched(model: Model, x: Tensor) -> Gradients:
    values = model(x)
    both = torch.stack((first_loss(values), second_loss(values)))
    return list(torch.autograd.grad(both, [*model.parameters()], torch.eye(2, dtype=DOUBLE), is_grads_batched=True))


def _second_order(model: Model, x: Tensor) -> Gradients:
    x = x.clone().requires_grad_()
    loss = first_loss(model(x))
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + gradient.pow(2).sum()).backward()
    return _gradients(model)


def _func_grad(model: Model, x: Tensor) -> Gradients:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return list(torch.func.grad(lambda given: first_loss(functional_call(model, given, (x,))))(parameters).values())


def _func_vmap(model: Model, x: Tensor) -> Gradients:
    values = torch.func.vmap(lambda x: model(x), in_dims=1)(x)
    first_loss(values).backward()
    return _gradients(model)


def _grad(model: Model, x: Tensor) -> Gradients:
    return list(torch.autograd.grad(first_loss(model(x)), [*model.parameters()][:2]))


def _backward_for_inputs(model: Model, x: Tensor) -> Gradients:
    first_loss(model(x)).backward(inputs=[*model.parameters()][:2])
    return _gradients(model)


def _twice(model: Model, x: Tensor) -> Gradients:
    values = model(x)
    first_loss(values).backward(retain_graph=True)
    second_loss(values).backward()
    return _gradients(model)


def _edit(place: str) -> Callable[[Model, Tensor], Gradients]:
    def run(model: Model, x: Tensor) -> Gradients:
        model.edit = place
        return _usual(model, x)

    return run


def _input_before(model: Model, x: Tensor) -> Gradients:
    x = x.clone().requires_grad_() * 2
    return _usual(model, x.mul_(0.5))


def _input_after(model: Model, x: Tensor) -> Gradients:
    x = x.clone()
    loss = first_loss(model(x))
    x.mul_(0.5)
    loss.backward()
    return _gradients(model)


def _unbatched(model: Model, x: Tensor) -> Gradients:
    return _usual(model, x[:, 0])


def _checkpointed(reentrant: bool) -> Callable[[Model, Tensor], Gradients]:
    def run(model: Model, x: Tensor) -> Gradients:
        model.checkpointing = reentrant
        return _usual(model, x.clone().requires_grad_())

    return run


def _with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 1] = torch.nan
    return x


def _nan_row(model: Model, x: Tensor) -> Gradients:
    return _usual(model, _with_nan(x))


PASSES: dict[str, Callable[[Model, Tensor], Gradients]] = {
    "usual": _usual,
    "is_grads_batched": _batched,
    "second order": _second_order,
    "func.grad": _func_grad,
    "func.vmap": _func_vmap,
    "grad": _grad,
    "backward(inputs=)": _backward_for_inputs,
    "retain_graph": _twice,
    "output edited": _edit("output"),
    "h_n edited": _edit("h_n"),
    "c_n edited": _edit("c_n"),
    "input edited before": _input_before,
    "input edited after": _input_after,
    "unbatched": _unbatched,
    "reentrant checkpoint": _checkpointed(True),
    "checkpoint": _checkpointed(False),
    "nan": _nan_row,
}
#: What is called, and the site where its numbers are.
CALLS: dict[str, tuple[type[Model], str]] = {
    "LSTM": (LSTM, "layer/l0"),
    "GRU": (GRU, "layer/l0"),
    "LSTM by step": (LSTMByStep, "layer/l0"),
    "LSTMCell": (LSTMCell, "layer"),
    "loop": (Written, "layer"),
    "black box": (Box, "layer"),
    "marked": (Marked, "memory"),
}
KERNELS = ("LSTM", "GRU", "LSTM by step", "LSTMCell")
WITHOUT_STATE_TO_EDIT = {("GRU", "c_n edited"), ("black box", "h_n edited"), ("black box", "c_n edited")}
CELLS = [(call, name) for call in CALLS for name in PASSES if (call, name) not in WITHOUT_STATE_TO_EDIT]

#: Where there are no numbers: the line in coverage, of the site or of the model.
REASONS: dict[tuple[str, str], str] = {
    **{(call, "is_grads_batched"): "batched backward pass" for call in CALLS},
    **{(call, "func.grad"): "inside (a )?torch.func" for call in CALLS},
    # The pass is asked for the weights of the box alone, and does not go to its input.
    **{("black box", name): "gradients of other tensors" for name in ("is_grads_batched", "grad", "backward(inputs=)")},
    ("black box", "func.vmap"): "inside a torch.func",
    ("black box", "unbatched"): "2 axes, none of which is known to be time",
    ("marked", "reentrant checkpoint"): "could not be put in a row: pass use_reentrant=False",
}
#: What torch itself refuses, recorded or not.
REFUSED = {
    **{(call, "func.vmap"): "Batching rule not implemented" for call in KERNELS},
    **{(call, "input edited after"): "modified by an inplace operation" for call in CALLS},
}
FAULTS = {
    ("black box", "input edited after"): pytest.mark.xfail(
        strict=True, reason="a black box is given a copy of its input, so that torch does not see what edits the input"
    ),
}


# -- the table -----------------------------------------------------------------------------------------------------


def _outcome(name: str, model: Model, x: Tensor) -> tuple[Gradients, str]:
    try:
        return PASSES[name](model, x), ""
    except (RuntimeError, NotImplementedError) as error:
        return [p.grad for p in model.parameters()], str(error)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit; any NaN is as good as another."""
    if one is None or other is None:
        return one is other
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _recorded(call: str, name: str, where: Path) -> tuple[gradscope.Run, list[dict[str, np.ndarray]]]:
    """Run a cell alone and recorded, which must be the same; return the run and what is true of each pass."""
    build, _ = CALLS[call]
    model, x = build().double(), torch.randn(T, B, FEATURES, dtype=DOUBLE)
    alone, recorded = copy.deepcopy(model), copy.deepcopy(model)
    expected, refused = _outcome(name, alone, x)
    with gradscope.record(
        recorded, where / "run", every=1, samples=None, sites=["layer"] if build is Box else None
    ) as recorder:
        found, refused_too = _outcome(name, recorded, x)
        recorder.step()
    assert refused_too == refused
    assert re.search(REFUSED.get((call, name), "^$"), refused), refused
    assert all(_same(a, b) for a, b in zip(expected, found, strict=True))
    run = gradscope.open_run(where / "run")
    assert run.lost == {}
    model.edit = alone.edit
    twin = twin_of(model, {"unbatched": x[:, 0], "nan": _with_nan(x)}.get(name, x))
    losses = [first_loss(twin.values), *([second_loss(twin.values)] if name == "retain_graph" else [])]
    return run, [twin.norms(loss) for loss in losses]


def _states(run: gradscope.Run, site: str) -> set[str]:
    return {q for q in run.quantities(site) if q in ("hidden", "cell") or q.startswith("state_")}


@pytest.mark.filterwarnings("ignore::gradscope.capture.GradscopeWarning")
@pytest.mark.parametrize(
    ("call", "name"),
    [pytest.param(*cell, marks=FAULTS[cell]) if cell in FAULTS else cell for cell in CELLS],
)
def test_a_pass_is_exact_or_has_a_reason_and_training_is_untouched(call: str, name: str, tmp_path: Path) -> None:
    run, truths = _recorded(call, name, tmp_path)
    lines = [(line.site, line.reason) for line in run.coverage if line.status == "missing"]
    site = CALLS[call][1]
    if (call, name) == ("marked", "func.vmap"):
        assert ("memory", TRANSFORMED) in lines
        site = "layer"  # the loop is found by data flow
    if (call, name) in REFUSED or (call, name) in REASONS:
        assert run.n_records == 0
        pattern = REASONS.get((call, name), "")
        assert any(re.search(pattern, reason) for of, reason in lines if of in (site, "layer", "model")), lines
        return
    if name == "second order":
        assert run.n_records == 0
        assert any(reason == SECOND_ORDER for _, reason in lines), lines
        run = run.apart
    else:
        assert not [line for line in lines if line[0] == "model"]
    names = {"hidden"} if site == "memory" else set(truths[0]) - {"input"}
    assert run.sites == (site,)
    assert _states(run, site) == names
    for quantity in [*names, *(["input"] if "input" in run.quantities(site) else [])]:
        found = run.array(site, quantity)
        assert len(found) == len(truths)
        for record, truth in zip(found, truths, strict=True):
            np.testing.assert_allclose(record, truth[quantity], rtol=1e-10, err_msg=quantity)
    if "input" not in run.quantities(site):
        assert any(line.site == site and line.reason.startswith("input: ") for line in run.coverage)


def test_every_exception_of_the_table_is_a_cell_of_it() -> None:
    assert {*REASONS, *REFUSED} <= set(CELLS)


@pytest.mark.parametrize("call", ["LSTM", "LSTM by step", "LSTMCell", "loop"])
def test_chunks_of_a_checkpoint_are_one_sequence_for_some_rows_in_float32(call: str, tmp_path: Path) -> None:
    build, site = CALLS[call]
    model, x = build(), torch.randn(T, B, FEATURES)
    twin = twin_of(copy.deepcopy(model).double(), x.double())
    with gradscope.record(model, tmp_path / "run", every=1, samples=2) as recorder:
        PASSES["reentrant checkpoint"](model, x)
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == (site,)
    rows = run.rows(site)[0]
    assert len(rows) == 2
    truth = twin.norms(first_loss(twin.values))
    for quantity in ("hidden", "cell"):
        np.testing.assert_allclose(run.array(site, quantity)[0], truth[quantity][rows], rtol=1e-4)
