"""Hooks: which forward calls are watched, while a step is being recorded.

One global forward hook is installed while a step is recorded and removed after it. Nothing is ever attached to the
user's modules, so they can be copied, pickled and saved meanwhile, and between recorded steps there is no cost.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradscope.adjoint import Adjoints, Keep
from gradscope.capture.calls.cells import Chains
from gradscope.capture.calls.custom import InputTap, LayerCall, open_layer_call, tap_input
from gradscope.capture.calls.fused import CannotRecordError, FusedCall, open_call, watch
from gradscope.capture.calls.step_nodes import step_nodes
from gradscope.capture.layers.discovery import Target

_COMPILE_WARNING = r"Using `torch.compile\(module\)` when there are global hooks"


class Listener(Protocol):
    """Who is told what was seen: the recorder, or a snapshot."""

    samples: int | None
    #: Whether adjoints are wanted in float64 throughout.
    precise: bool
    #: What is wanted beside the total adjoints of the states.
    keep: Keep

    def opened(self, target: Target) -> int:
        """Count a forward call with a graph; return which use of the module in this step it is, from 1."""
        ...

    def measured(self, target: Target, use: int, site: str, adjoints: Adjoints, rows: Tensor, carried: int) -> None:
        """Take the adjoints of one site, at the end of a backward pass."""
        ...

    def missed(self, target: Target, reason: str) -> None:
        """Note why a call was not recorded."""
        ...

    def failed(self, target: Target, error: Exception) -> None:
        """Note an error of gradscope's own."""
        ...

    def loss_scale(self) -> float:
        """Return the factor the loss was multiplied with."""
        ...


class Watcher:
    """Watch the forward calls of ``targets`` between :meth:`start` and :meth:`rest`."""

    def __init__(self, targets: list[Target], listener: Listener) -> None:
        self._targets = {id(target.module): target for target in targets}
        self._classes = {type(target.module) for target in targets}
        self._listener = listener
        self._handles: list[Any] = []
        self._resting: list[Any] = []
        self._carries = False
        self._silenced: Any = None
        self._observe_call = self._observe_guarded
        self._rng: dict[int, Tensor] = {}
        self._chains = Chains(listener)
        # How far back it is worth while to watch the timesteps of a module: to where its adjoints fade in float32.
        self._reach: dict[str, int] = {}
        self._carry: dict[str, tuple[Tensor, int]] = {}
        self._tapped = {
            id(target.module) for target in targets if target.adapter is not None and target.adapter.step is None
        }
        #: Told the tensors each watched call depends on, when set.
        self.on_call: Callable[[Iterable[Tensor]], object] | None = None
        self._draws_masks = {
            id(target.module)
            for target in targets
            if isinstance(target.module, nn.RNNBase) and target.module.dropout and target.module.num_layers > 1
        }

    @property
    def running(self) -> bool:
        return bool(self._handles)

    def start(self) -> None:
        """Install the hooks."""
        if self._handles:
            return
        self._remove()
        self._quieten_compile()
        self._observe_call = _eager(self._observe_guarded)
        self._handles.append(register_module_forward_hook(_eager(self._after_forward), with_kwargs=True))
        if self._draws_masks or self._tapped:
            self._handles.append(register_module_forward_pre_hook(_eager(self.before_forward)))

    def _quieten_compile(self) -> None:
        """Keep torch.compile from warning of our global hook: on the compiled wrapper it does nothing."""
        if self._silenced is None:
            warnings.filterwarnings("ignore", _COMPILE_WARNING, UserWarning)
            self._silenced = warnings.filters[0]

    def rest(self) -> None:
        """Remove the hooks until the next recorded step.

        Only when the user's code carries states from window to window does a light hook stay, to know how far back the
        state of a recorded window reaches.
        """
        self._remove()
        if self._carries and not self._resting:
            self._resting.append(register_module_forward_hook(self._follow_carry, with_kwargs=True))

    def close(self) -> None:
        """Remove every hook and drop every tensor."""
        self._remove()
        self._carry.clear()
        if self._silenced in warnings.filters:
            warnings.filters.remove(self._silenced)  # type: ignore[attr-defined]
        self._silenced = None

    def _remove(self) -> None:
        for handle in (*self._handles, *self._resting):
            handle.remove()
            # torch's handle forgets this one, and a leftover entry slows down every module call.
            getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)
        self._handles.clear()
        self._resting.clear()
        self.forget()

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._rng.clear()
        self._chains.clear()

    def before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if id(module) in self._draws_masks and module.training:
            self._rng[id(module)] = torch.get_rng_state()
        elif id(module) in self._tapped and torch.is_grad_enabled():
            return self._tap(self._targets[id(module)], args)
        return None

    def _tap(self, target: Target, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give a black box a watched copy of its input."""
        given: list[Any] = []

        def finished(done: InputTap, task: int) -> None:
            self.guarded(target, lambda: self._deliver_whole(target, use, done, task))

        def tap() -> None:
            if not args:
                raise CannotRecordError("its input is passed by keyword: pass it by position to have it recorded")
            assert target.adapter is not None
            given.append(tap_input(target.module, target.adapter, args[0], self._listener.samples, finished))
            if self.on_call is not None:
                self.on_call([args[0] if args[0].requires_grad else _leaf_of(given[0])])

        self.guarded(target, tap)
        if not given:
            return None
        use = self._listener.opened(target)
        return (given[0], *args[1:])

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        target = self._targets.get(id(module))
        if target is None:
            if type(module) in self._classes and getattr(module, "_is_replica", False):
                self._replica(module)
            return
        if not torch.is_grad_enabled():
            return
        self._observe_call(target, args, kwargs, output)

    def _observe_guarded(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.guarded(target, lambda: self._observe(target, args, kwargs, output))

    def _observe(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.on_call is not None:
            self.on_call(_depends_on(target.module, (args, kwargs)))
        if target.kind == "fused":
            self._observe_fused(target, args, kwargs, output)
        elif target.kind == "cell":
            self._chains.observe(target, args, kwargs, output)
        elif id(target.module) not in self._tapped:
            self._observe_layer(target, args, kwargs, output)

    def _observe_fused(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        module = target.module
        assert isinstance(module, nn.RNNBase)
        carried = self._carried(target, args, kwargs, output)
        rng, listener = self._rng.pop(id(module), None), self._listener
        call, watched = open_call(module, args, kwargs, output, listener.samples, rng, listener.precise)
        call.carried = carried
        if not (listener.precise or listener.keep.gates):
            reach = self._reach.get(target.path, sys.maxsize)
            output, weights = watched.get("grad_output"), call.call.weights
            call.step_nodes = step_nodes(module, output, call.selection, weights, reach, listener.keep.input)
        use = self._listener.opened(target)

        def finished(done: FusedCall, task: int) -> None:
            self.guarded(target, lambda: self._deliver(target, use, done, task))

        watch(call, watched, finished, lambda error: self._refuse(target, error))

    def _observe_layer(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert target.adapter is not None
        call, watched = open_layer_call(target.module, target.adapter, args, kwargs, output, self._listener.samples)
        use = self._listener.opened(target)

        def finished(done: LayerCall, task: int) -> None:
            self.guarded(target, lambda: self._deliver_whole(target, use, done, task))

        watch(call, watched, finished, lambda error: self._refuse(target, error))

    def _deliver_whole(self, target: Target, use: int, call: LayerCall | InputTap, task: int) -> None:
        adjoints = call.adjoints(task, torch.float64, self._listener.loss_scale())
        for info in target.sites:
            self._listener.measured(target, use, info.site, adjoints, call.selection.rows, call.carried)

    def _deliver(self, target: Target, use: int, call: FusedCall, task: int) -> None:
        suffixes = {(info.layer, int(info.reverse)): info.site for info in target.sites}
        layers = {layer for layer, _ in suffixes}
        listener = self._listener
        found = call.adjoints(task, layers, listener.loss_scale(), listener.precise, listener.keep)
        if call.step_nodes is not None:
            self._reach[target.path] = call.step_nodes.reach
        for place, site in suffixes.items():
            self._listener.measured(target, use, site, found[place], call.selection.rows, call.carried)

    def _carried(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
        """Return how many earlier timesteps the initial state carries in: 0 for none, −1 when that is unknown.

        Truncated back-propagation hands over a detached final state, which shares its storage with the one it came
        from; a state that was copied, or handed over while no step was recorded, has an unknown past.
        """
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        final = output[1][0] if isinstance(output[1], tuple) else output[1]
        state = hx[0] if isinstance(hx, tuple) else hx
        carried = 0
        if state is not None and not state.requires_grad:
            self._carries = True
            held = self._carry.get(target.path)
            if held is not None and held[0].untyped_storage().data_ptr() == state.untyped_storage().data_ptr():
                carried = held[1]
            elif bool(state.any()):
                carried = -1
        steps = output[0].batch_sizes.numel() if hasattr(output[0], "batch_sizes") else _steps(target.module, output[0])
        self._carry[target.path] = (final.detach(), carried + steps if carried >= 0 else -1)
        return carried

    def _follow_carry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        target = self._targets.get(id(module))
        if target is not None and target.kind == "fused":
            self.guarded(target, lambda: self._carried(target, args, kwargs, output))

    def _replica(self, module: nn.Module) -> None:
        for target in self._targets.values():
            if type(target.module) is type(module):
                self._listener.missed(
                    target, "it runs as a replica of DataParallel; use DistributedDataParallel to have it recorded"
                )

    def guarded(self, target: Target, action: Callable[[], object]) -> None:
        """Run ``action``; whatever it raises stays out of the user's training."""
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                action()
        except Exception as error:
            self._refuse(target, error)

    def _refuse(self, target: Target, error: Exception) -> None:
        if isinstance(error, CannotRecordError):
            self._listener.missed(target, str(error))
        else:
            self._listener.failed(target, error)


def _steps(module: nn.Module, output: Tensor) -> int:
    return output.shape[1 if output.dim() == 3 and getattr(module, "batch_first", False) else 0]


def _leaf_of(copied: Tensor) -> Tensor:
    assert copied.grad_fn is not None
    return copied.grad_fn.next_functions[0][0].variable  # type: ignore[union-attr]


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile, once it is in use, from tracing our own code."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _depends_on(module: nn.Module, given: Any) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from (w for w in getattr(module, "_flat_weights", ()) if w is not None)
    pending = [given]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, tuple | list):
            pending.extend(value)
