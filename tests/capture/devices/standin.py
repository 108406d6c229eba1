"""A device that runs the user's model, and refuses gradscope everything but copies to the host.

Its tensors hold a tensor of the CPU out of reach. An operation is judged by who asked for it, which is the innermost
frame that is not torch's: what the user's code asks for is carried out, forward, backward and in the optimizer, and
what gradscope's code asks for has to be a view, which touches no memory, or a copy to the host. So numbers that equal
the CPU's have been made of copies alone. A device that computed for nobody could not run a model; one that computed
for everybody would prove nothing.

Like a device with streams it delivers late: room on the host that was copied into without blocking holds NaN until its
stream is waited for. Like cuDNN its recurrent kernels are one node each, which shows no timestep. Like MPS, where asked
to, it has no float64 and no streams.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import gradscope

aten = torch.ops.aten
OURS = str(Path(gradscope.__file__).parent)
TORCHS = str(Path(torch.__file__).parent)

# Functions of gradscope's through which the user's own code, or its backward pass, is run.
PASSED_ON = {
    ("passes.py", "seen"),
    ("kernels.py", "kernel"),
    ("updates.py", "evaluated"),
    ("scaling.py", "wrapped"),
    ("clipping.py", "seen"),
    ("clipping.py", "get_total_norm"),
    ("snapshot.py", "_run_backward"),
    ("catching.py", "gradients"),
    ("spectrum.py", "run_forward"),
}

# The gradients of the parameters are reduced where they are: a copy of them would be as large as the model.
REDUCED = {"_foreach_norm", "stack", "_local_scalar_dense", "count_nonzero", "abs", "clone"}

FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "linspace", "eye", "rand", "randn")


class RefusedError(RuntimeError):
    """Something was asked of the device that only the user may ask."""


class OnDevice(Tensor):
    """A tensor of the device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        machine = _machine()
        if raw.dtype == torch.float64 and not machine.has_float64:
            raise RefusedError("the device has no float64")
        made = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype
        )
        made.raw = raw
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return _machine().device

    def untyped_storage(self) -> Any:
        """Return what tells storages apart, and no more."""
        return _Identity(self.raw)

    def data_ptr(self) -> int:
        raise RefusedError("memory of the device was asked for")

    numpy = stride = tolist = data_ptr  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _machine().carry_out(func, args, kwargs or {})


class _Identity:
    def __init__(self, raw: Tensor) -> None:
        self._cdata = raw.untyped_storage()._cdata


class _Stream:
    """Of the stand-in for ``torch.xpu``."""

    def synchronize(self) -> None:
        _machine().deliver()


class Machine:
    """The device while it is there.

    Attributes
    ----------
    refused : list of str
        What gradscope asked for and was refused; errors alone might be swallowed on their way.
    copied : list of int
        Storages of what gradscope copied to the host.
    waits : list of str
        Where gradscope waited for the device.
    """

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)
        self.has_streams = self.has_float64 = kind != "mps"
        self.refused: list[str] = []
        self.waits: list[str] = []
        self.copied: list[int] = []
        self.late: list[tuple[Tensor, Tensor]] = []
        self._pinned: set[int] = set()

    # -- the user's side ---------------------------------------------------------------------------------------

    def tensor(self, x: Any) -> Any:
        """Move tensors to the device."""
        if isinstance(x, nn.utils.rnn.PackedSequence):
            parts = [self.tensor(p) for p in (x.data, x.sorted_indices, x.unsorted_indices)]
            return nn.utils.rnn.PackedSequence(parts[0], x.batch_sizes, *parts[1:])
        return tree_map_only(Tensor, lambda value: value if isinstance(value, OnDevice) else self._moved(value), x)

    @staticmethod
    def _moved(x: Tensor) -> Tensor:
        return OnDevice(x.detach().clone()).requires_grad_(x.requires_grad)

    def model(self, model: nn.Module) -> nn.Module:
        """Move the parameters and buffers of a model, which stays the same object."""
        moved: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    new = nn.Parameter(OnDevice(parameter.detach().clone()), parameter.requires_grad)
                    module._parameters[name] = moved.setdefault(id(parameter), new)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else self._moved(buffer)
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        return model

    # -- what is asked of it -----------------------------------------------------------------------------------

    def made(self, factory: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Make a tensor with what makes one on the CPU: ``torch.zeros`` and its kin."""
        pinned = kwargs.pop("pin_memory", False)
        # As after torch.set_default_device: many a model says nothing of a device.
        wanted = kwargs.get("device") or (self.device if _says_a_device() else "cpu")
        if torch.device(wanted).type != self.device.type:
            room = factory(*args, **kwargs)
            if pinned:
                self._pinned.add(room.untyped_storage()._cdata)
            return room
        self._judge(factory, allowed=False)
        return OnDevice(factory(*args, **{**kwargs, "device": "cpu"}))

    def moved(self, to: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Move a tensor to the device or from it: ``Tensor.to`` and ``Tensor.cpu``."""
        targets = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.device | str)]
        dtypes = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)] or [x.dtype]
        there = torch.device(targets[0]).type if targets else "cpu" if to.__name__ == "cpu" else None
        if there == self.device.type and not isinstance(x, OnDevice):
            return OnDevice(x.detach().to(dtypes[0]).clone())
        if there == "cpu" and isinstance(x, OnDevice):
            return x.raw.new_empty(x.shape, dtype=dtypes[0]).copy_(x)
        if there == self.device.type:
            return x if dtypes[0] == x.dtype else to(x, dtypes[0])
        return to(x, *args, **kwargs)

    def carry_out(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on the tensors of the CPU that stand behind those of the device."""
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return self._to_host(*args, **kwargs)
        self._judge(func, allowed=_is_view(func))
        flat = tree_flatten((args, kwargs))[0]
        wrapped = {id(value.raw): value for value in flat if isinstance(value, OnDevice)}
        if torch.Tag.inplace_view in func.tags:  # changes the shape of the tensor itself
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        args, kwargs = tree_map_only(OnDevice, lambda value: value.raw, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        if func is aten._pack_padded_sequence.default:
            return OnDevice(result[0]), result[1]  # the sizes stay on the host
        if func is aten._conj.default:  # what a bit says of the tensor within is not seen on it
            result = result.resolve_conj()
        return tree_map_only(Tensor, lambda made: wrapped[id(made)] if id(made) in wrapped else OnDevice(made), result)

    def _to_host(self, room: Tensor, x: OnDevice, non_blocking: bool = False) -> Tensor:
        if (asker := _asker()) is not None:
            self.copied.append(x.untyped_storage()._cdata)
            if not non_blocking:
                self.waits.append(asker)
        if not non_blocking:
            return room.copy_(x.raw)
        if not self.has_streams or room.untyped_storage()._cdata not in self._pinned:
            raise RefusedError("a copy that does not block needs streams, and pinned memory")
        self.late.append((room, x.raw.to(room.dtype).clone()))
        return room.fill_(torch.nan) if room.is_floating_point() else room.zero_()

    def deliver(self) -> None:
        """Let the copies arrive that have been begun."""
        self.waits.append(_asker() or "user")
        for room, value in self.late:
            room.copy_(value)
        self.late.clear()

    def _judge(self, func: Any, allowed: bool) -> None:
        asker = _asker()
        if asker is None or allowed:
            return
        name = getattr(func, "overloadpacket", func).__name__
        if name in ("clone", "copy_") and asker.startswith("/capture/calls/custom.py"):
            return  # the input of a black box, which is given a copy of it
        if name == "clone" and asker.startswith("/capture/host.py kept "):
            return  # a scalar, where nothing can be begun without waiting
        if "/training/" in asker and name in REDUCED:
            if name == "_local_scalar_dense":
                self.waits.append(asker)
            return
        self.refused.append(f"{func} by {asker}")
        raise RefusedError(self.refused[-1])


def _is_view(func: Any) -> bool:
    return bool(func.is_view) or func in (aten.detach.default, aten.alias.default)


def _asker() -> str | None:
    """Return where gradscope asks for what is being carried out; None where the user does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        place, name = frame.f_code.co_filename, frame.f_code.co_name
        if place.startswith(OURS):
            if (Path(place).name, name) in PASSED_ON:
                return None
            return f"{place.removeprefix(OURS)} {name} {frame.f_lineno}"
        if not place.startswith(TORCHS) and place != __file__ and not place.startswith(sys.base_prefix):
            return None
        frame = frame.f_back
    return None


def _says_a_device() -> bool:
    """Whether what makes a tensor is to say where, which torch's own code is not."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame is not None and not frame.f_code.co_filename.startswith(TORCHS)


class CudnnRnn(torch.autograd.Function):
    """A kernel as one node, named as torch names it."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *tensors: Any) -> Any:
        with torch.enable_grad():
            leaves = [value.raw.detach().requires_grad_(value.requires_grad) for value in tensors]
            results = run(leaves)
        ctx.leaves, ctx.results = leaves, results
        ctx.set_materialize_grads(False)
        return tuple(OnDevice(result.detach()) for result in results)

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        # Where nothing arrived, the engine may put zeros of its own.
        ends = [(end, getattr(g, "raw", g)) for end, g in zip(ctx.results, arrived, strict=True) if g is not None]
        asked = tuple(leaf for leaf in ctx.leaves if leaf.requires_grad)
        engine = torch.autograd.Variable._execution_engine  # not torch.autograd.grad, which is the user's to call
        of, given = tuple(end for end, _ in ends), tuple(g for _, g in ends)
        found = iter(engine.run_backward(of, given, True, False, asked, allow_unreachable=True, accumulate_grad=False))
        gradients = [next(found) if leaf.requires_grad else None for leaf in ctx.leaves]
        return None, *(None if g is None else OnDevice(g) for g in gradients)


class ThnnFusedLstmCell(CudnnRnn):
    pass


class ThnnFusedGruCell(CudnnRnn):
    pass


def _of_sequence(func: Any, *args: Any) -> Any:
    """Run ``lstm``, ``gru`` and their kin as one node."""
    flat, spec = tree_flatten(args)
    places = [i for i, value in enumerate(flat) if isinstance(value, OnDevice)]
    if not places:
        return func(*args)

    def run(leaves: list[Tensor]) -> Any:
        values = list(flat)
        for place, leaf in zip(places, leaves, strict=True):
            values[place] = leaf
        return func(*tree_unflatten(values, spec))

    return CudnnRnn.apply(run, *(flat[place] for place in places))


def _of_lstm_cell(func: Any, x: Any, states: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    """Project in the open, and do the rest as one node, which makes h and c."""
    if not isinstance(x, OnDevice):
        return func(x, states, w_ih, w_hh, b_ih, b_hh)

    def run(leaves: list[Tensor]) -> Any:
        i, f, g, o = leaves[0].chunk(4, -1)
        c = f.sigmoid() * leaves[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    h, c = states
    return ThnnFusedLstmCell.apply(run, linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh), c)


def _of_gru_cell(func: Any, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    if not isinstance(x, OnDevice):
        return func(x, h, w_ih, w_hh, b_ih, b_hh)

    def run(leaves: list[Tensor]) -> Any:
        (xr, xz, xn), (hr, hz, hn) = (value.chunk(3, -1) for value in leaves[:2])
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * hn).tanh()
        return (n + z * (leaves[2] - n),)

    return ThnnFusedGruCell.apply(run, linear(x, w_ih, b_ih), linear(h, w_hh, b_hh), h)[0]


KERNELS = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _of_sequence),
    "lstm_cell": _of_lstm_cell,
    "gru_cell": _of_gru_cell,
}


def _moving(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: _machine().moved(to, x, *args, **kwargs)


_here = threading.local()


def _machine() -> Machine:
    machine: Machine = _here.machine
    return machine


@contextmanager
def device(kind: str = "xpu") -> Iterator[Machine]:
    """Plug the device in: ``xpu`` with streams, ``mps`` with neither streams nor float64."""
    machine = Machine(kind)
    _here.machine = machine
    with pytest.MonkeyPatch.context() as patch:
        stream = _Stream()
        patch.setattr(torch.xpu, "current_stream", lambda of: stream)
        for name in FACTORIES:
            patch.setattr(torch, name, functools.partial(machine.made, getattr(torch, name)))
        for name in ("to", "cpu"):
            patch.setattr(Tensor, name, _moving(getattr(Tensor, name)))
        for name, run in KERNELS.items():
            patch.setattr(torch._VF, name, functools.partial(run, getattr(torch._VF, name)))
        yield machine
    assert machine.refused == []
