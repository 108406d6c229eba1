"""What happens while a step is recorded: forward calls of known layers, and the graph of every backward pass.

Nothing is attached to the user's modules: one *global* forward hook, the kernels' names and the engine's entry are
watched during a recorded step and left alone after it, so that models can be copied, pickled and saved meanwhile, and
nothing costs anything between recorded steps.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence

from gradscope.capture import host
from gradscope.capture.calls import cells, kernels, marks, passes
from gradscope.capture.calls.continuing import Continuing
from gradscope.capture.calls.custom import EDITS_INPUT, InputTap, LayerCall, edit_too, open_layer_call, tap_input
from gradscope.capture.calls.eager import eager, heed, quieten
from gradscope.capture.calls.fused import FusedCall, open_call, overrides_forward
from gradscope.capture.calls.graph import KnownCall
from gradscope.capture.calls.home import Home
from gradscope.capture.calls.kernels import KernelCall
from gradscope.capture.calls.lineage import Lineage, edges_of, later, tupled
from gradscope.capture.calls.listening import Listener
from gradscope.capture.calls.passes import Pass
from gradscope.capture.calls.prehook import ALL, TRANSFORMED, CannotRecordError, guarded, on_arrival
from gradscope.capture.calls.saying import failing
from gradscope.capture.calls.searching import Search
from gradscope.capture.calls.sequence import FusedSequence, Line
from gradscope.capture.calls.step_nodes import step_nodes
from gradscope.capture.calls.stepping import (
    OTHER_WEIGHTS,
    NextStep,
    made_by_node,
    next_step,
    origin_of,
    same_weights,
)
from gradscope.capture.calls.views import behind_views
from gradscope.capture.guard import entry
from gradscope.capture.layers.discovery import Names, Target
from gradscope.capture.torch_private import graph_task, in_transform, remove_global_hook, saving_is_hooked


class Watcher:
    """Watch a model between :meth:`start` and :meth:`rest`.

    Parameters
    ----------
    targets : list of Target
        Its layers that are known by their class.
    listener : Listener
    names : Names
        Of everything in the model.
    home : Home
    """

    def __init__(self, targets: list[Target], listener: Listener, names: Names, home: Home) -> None:
        self._home = home
        self._ours = {id(module) for module in names.modules.values()}
        self._targets = {id(target.module): target for target in targets}
        self._classes = {type(target.module) for target in targets}
        self._listener = listener
        self._handles: list[Any] = []
        self._resting: list[Any] = []
        self._silenced: Any = None
        self._rng: dict[int, Tensor] = {}
        self._lineage = Lineage()
        self._search = Search(names, targets, listener, self._lineage, home)
        self._called: Counter[int] = Counter()
        self._pending: dict[int, KernelCall] = {}
        # What black boxes that run now would have been given, and what they were given instead.
        self._handed: dict[int, tuple[Tensor, Tensor, int, InputTap]] = {}
        self._fused = [target for target in targets if target.kind == "fused"]
        # How far back it is worth while to watch the timesteps of a module: to where its adjoints fade in float32.
        self._reach: dict[str, int] = {}
        self._continuing = Continuing(self._lineage)
        self._tapped = {
            id(target.module) for target in targets if target.adapter is not None and target.adapter.step is None
        }
        self._draws_masks = {
            id(target.module)
            for target in targets
            if isinstance(target.module, nn.RNNBase) and target.module.dropout and target.module.num_layers > 1
        }

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return bool(self._handles)

    def start(self) -> None:
        """Install the hooks."""
        if self._handles:
            return
        self._remove()
        self._silenced = self._silenced or quieten()
        after = eager(entry(self._after_forward, _FORWARD))
        self._handles.append(register_module_forward_hook(after, with_kwargs=True))
        if self._draws_masks or self._tapped:
            self._handles.append(register_module_forward_pre_hook(eager(entry(self.before_forward, _FORWARD))))
        passes.observe(self)
        marks.listen(self._search)
        if self._fused:
            kernels.observe(self)

    def rest(self) -> None:
        """Remove the hooks until the next recorded step.

        Only when the user's code carries states from window to window does a light hook stay, to know how far back the
        state of a recorded window reaches.
        """
        self._remove()
        if self._lineage.carries and not self._resting:
            follow = entry(self._follow_carry, _FORWARD)
            self._resting.append(register_module_forward_hook(follow, with_kwargs=True))

    def leave_out(self, target: Target) -> None:
        """Watch a layer no more."""
        self._targets.pop(id(target.module), None)
        self._fused = [other for other in self._fused if other.module is not target.module]
        if target.kind == "found":
            self._search.leave_out(target)

    def close(self) -> None:
        """Remove every hook and drop every tensor."""
        self._remove()
        self._lineage.close()
        self._search.close()
        heed(self._silenced)
        self._silenced = None

    def _remove(self) -> None:
        for handles in (self._handles, self._resting):
            while handles:
                remove_global_hook(handles[-1])
                handles.pop()
        passes.ignore(self)
        marks.leave(self._search)
        kernels.ignore(self)
        self.forget()

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._rng.clear()
        self._pending.clear()
        self._handed.clear()
        self._called.clear()
        self._continuing.clear()
        host.forget()
        self._lineage.forget()
        self._search.forget()

    # -- backward passes -------------------------------------------------------------------------------------

    def pass_begins(self, begun: Pass) -> None:
        """Look for recurrences in the graph of a backward pass, and set hooks on their states."""
        if not self._home.takes(begun):
            return
        for key in list(self._pending):
            self._past_the_hooks(self._pending.pop(key))
        with uncollected():
            guarded(self._search.failed, lambda: self._search.begin(begun, self._called))

    def pass_ends(self, ended: Pass) -> None:
        """Take the hooks off again."""
        if not self._home.takes(ended):
            return
        guarded(self._search.failed, lambda: self._search.end(ended))
        if ended.outer is None:
            self._called.clear()

    # -- forward calls ---------------------------------------------------------------------------------------

    def before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Take the state of the random generator before a dropout is drawn; give a black box a watched input."""
        if id(module) in self._draws_masks and module.training:
            self._rng[id(module)] = torch.get_rng_state()
        elif id(module) in self._tapped and torch.is_grad_enabled():
            return self._tap(self._targets[id(module)], args)
        return None

    def _tap(self, target: Target, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give a black box a watched copy of its input."""
        given: list[Tensor] = []

        def finished(done: InputTap, task: int) -> None:
            self.guarded(target, lambda: self._deliver_whole(target, use, done, task))

        def hand() -> None:
            if in_transform():
                raise CannotRecordError(TRANSFORMED)
            if not args:
                raise CannotRecordError("its input is passed by keyword: pass it by position to have it recorded")
            assert target.adapter is not None
            samples = self._listener.samples
            told = self._telling(target)
            copied, tap = tap_input(target.module, target.adapter, args[0], samples, finished, told)
            self._handed[id(target.module)] = args[0], copied, copied._version, tap
            given.append(copied)

        self.guarded(target, hand)
        if not given:
            return None
        use = self._listener.opened(target)
        return (given[0], *args[1:])

    def _edited(self, target: Target) -> None:
        """Where a black box has edited its input in place, let the user's own tensor be edited as well."""
        x, copied, version, tap = self._handed.pop(id(target.module))
        if copied._version != version:
            edit_too(x, copied)
            tap.done = _not_delivered
            raise CannotRecordError(EDITS_INPUT)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        # While the hook is removed in another thread, torch may leave out the keyword arguments.
        kwargs, output = rest if len(rest) == 2 else ({}, rest[0])
        if not self._handles:
            return
        if id(module) in self._ours:
            self._home.move()
        elif not self._home.here:
            if type(module) in self._classes and getattr(module, "_is_replica", False):
                self._replica(module)
            return
        if torch.is_grad_enabled():
            if not self._called:
                self._listener.began()
            self._search.saving_is_hooked |= saving_is_hooked()
            if in_transform():
                self._search.transformed(module)
            self._called[id(module)] += 1
        else:
            self._search.quietly_called(module, output)
        target = self._targets.get(id(module))
        if target is None:
            if type(module) in self._classes and getattr(module, "_is_replica", False):
                self._replica(module)
            return
        if id(module) in self._handed:
            self.guarded(target, lambda: self._edited(target))
        if torch.is_grad_enabled():
            if target.kind != "fused" or kwargs or not self._goes_on(target, args, output):
                self._observe_guarded(target, args, kwargs, output)
        elif target.kind in ("fused", "cell"):
            self.guarded(target, lambda: self._note_left(target, args, kwargs, output))

    def _observe_guarded(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.guarded(target, lambda: self._observe(target, args, kwargs, output))

    def _observe(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        kernel = self._pending.pop(id(target.module), None)
        if in_transform():
            raise CannotRecordError(TRANSFORMED)
        if target.kind == "fused":
            if not overrides_forward(target.module):
                self._observe_fused(target, args, kwargs, output)
            elif kernel is not None:
                self._observe_kernel(target, kernel)
            else:
                raise CannotRecordError(
                    f"{type(target.module).__name__} overrides forward without calling torch's kernel: register an "
                    "adapter (gradscope.register_adapter)"
                )
        elif target.kind == "cell":
            self._observe_cell(target, args, kwargs, output)
        elif id(target.module) not in self._tapped:
            self._observe_layer(target, args, kwargs, output)

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own that belongs to no site."""
        self._listener.harmed(doing, error)

    def kernel_called(self, call: KernelCall) -> None:
        """Keep a kernel call until the forward hook of its module claims it; observe the one that nobody claimed."""
        for target in self._fused:
            if _runs_with(target.module, call):
                if (unclaimed := self._pending.pop(id(target.module), None)) is not None:
                    self._past_the_hooks(unclaimed)
                if torch.is_grad_enabled():
                    self._pending[id(target.module)] = call
                return

    def _past_the_hooks(self, call: KernelCall) -> None:
        """Observe a call of a known module that no forward hook saw, such as ``module.forward(x)``."""
        target = next((t for t in self._fused if _runs_with(t.module, call)), None)
        if target is not None and target.module.mode == call.mode:
            self.guarded(target, lambda: self._observe_kernel(target, call))

    def _observe_kernel(self, target: Target, call: KernelCall) -> None:
        if call.packed:
            raise CannotRecordError(
                "it is called past the forward hooks with a packed batch, whose order of sequences is not seen there: "
                "call the module itself, module(x)"
            )
        finals = call.finals if len(call.finals) > 1 else call.finals[0]
        states = call.states if len(call.states) > 1 else call.states[0]
        self._observe_fused(target, (call.x, states), {}, (call.output, finals))

    def _goes_on(self, target: Target, args: tuple[Any, ...], output: Any) -> bool:
        """Take one more step of a decoder where that is little work; whether it was."""
        line, listener = self._continuing.latest_of(target), self._listener
        if not isinstance(line, FusedSequence) or line.calls[-1].steps != 1 or listener.precise or listener.keep.gates:
            return False
        try:
            return self._took_step(target, line, args, output)
        except Exception as error:
            self._telling(target)(error)
            return False

    def _took_step(self, target: Target, line: FusedSequence, args: tuple[Any, ...], output: Any) -> bool:
        last, module = line.calls[-1], target.module
        assert isinstance(module, nn.RNNBase)
        if overrides_forward(module) or in_transform() or saving_is_hooked():
            return False
        found = made_by_node(origin_of(last), line.ends, module, args, output)
        if found is None:
            return False
        node, places, edges = found
        self._pending.pop(id(module), None)
        line.calls.append(last if isinstance(last, NextStep) and last.input is None else NextStep(origin_of(last)))
        known = KnownCall(f"{target.path}:{line.use}", places, edges_of(args[:1]), edges, line, len(line.calls) - 1)
        self._lineage.made(known)
        line.ends = places
        on_arrival(node, ((ALL, known.position, None),), line, keep_alive=known)
        self._continuing.leave(target, line, output[1])
        return True

    def _observe_fused(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        module, listener = target.module, self._listener
        assert isinstance(module, nn.RNNBase)
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        given = tupled(hx)
        x = args[0] if args else kwargs["input"]
        before, carried = self._continuing.handed_on(target, given, 1) or self._continuing.before(target, given)
        packed = not isinstance(x, Tensor)
        same = isinstance(before, FusedSequence) and before.target is target
        if same and before is not None and (packed or before.calls[-1].selection.gather is not None):
            before, carried = None, -1
        sequence = before if isinstance(before, FusedSequence) and before.target is target else None
        rng = self._rng.pop(id(module), None)
        like = sequence.calls[-1] if sequence is not None else None
        precise = listener.precise or overrides_forward(module)
        going_on = next_step(like, module, x, given, output)
        if going_on is None and sequence is not None and like is not None and not same_weights(module, like):
            sequence.unfollowed = OTHER_WEIGHTS
            raise CannotRecordError(OTHER_WEIGHTS)
        origin = None if like is None else origin_of(like)
        call, watched = going_on or open_call(module, args, kwargs, output, listener.samples, rng, precise, origin)
        if (
            going_on is None
            and sequence is not None
            and (call.selection.lengths is not None or like is None or _batch(call) != _batch(like))
        ):
            sequence.unfollowed = cells.REORDERED
            raise CannotRecordError(cells.REORDERED)
        if sequence is None:
            sequence = FusedSequence(target=target, carried=carried, told=self._telling(target))
            sequence.done = self._delivering(self._deliver_fused)
            sequence.use = listener.opened(target)
            self._follows(before, given, sequence)
            if not (listener.precise or listener.keep.gates):
                reach = self._reach.get(target.path, sys.maxsize)
                given_to, weights = watched.get("grad_output"), call.call.weights
                call.step_nodes = step_nodes(module, given_to, call.selection, weights, reach, listener.keep.input)
        sequence.calls.append(call)
        if isinstance(call, NextStep):
            call.copy(x, given, watched["grad_output"])
        entering = x.data if isinstance(x, PackedSequence) else x
        self._stand(target, sequence, len(sequence.calls) - 1, watched, entering, given, _FUSED_SLOTS)
        self._continuing.leave(target, sequence, tupled(output[1]))
        self._continuing.takes(target, sequence)

    def _observe_cell(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, given, after = cells.states_of(args, kwargs, output)
        if not any(state.requires_grad for state in after):
            raise CannotRecordError(cells.FROZEN)
        if target.path in self._search.parted:
            return
        handed_on = self._continuing.handed_on(target, given, 0)
        before, carried = handed_on or self._continuing.before(target, given)
        if handed_on is None and self._continuing.given_before(target, given):
            self._leave_to_data_flow(target)
            return
        sequence = before if isinstance(before, cells.CellSequence) and before.target is target else None
        if sequence is None:
            sequence = cells.open_sequence(target, after, self._listener.samples)
            nodes = [behind.tensor.grad_fn for behind in behind_views(dict(enumerate(after))).values()]  # type: ignore[arg-type]
            sequence.carry_only = len(nodes) > 1 and nodes[0] is nodes[1]
            sequence.carried, sequence.told, sequence.again = carried, self._telling(target), graph_task() != -1
            sequence.done = self._delivering(self._deliver_cell)
            sequence.use = self._listener.opened(target)
            self._follows(before, given, sequence)
            if not (self._listener.precise or self._listener.keep.gates):
                node, weight = cells.gate_node(target.mode, after[0]), target.module.weight_ih
                sequence.seen = node is not None and cells.multiplies(node, weight)
        position = sequence.steps
        sequence.add(x, given, after)
        watched = {(position, i): state for i, state in enumerate(after) if state.requires_grad}
        if sequence.seen:
            if (node := cells.gate_node(target.mode, after[0])) is None:
                sequence.unfollowed = cells.UNLIKE
            else:
                on_arrival(node, ((0, (position, cells.GATES), None),), sequence)
        self._stand(target, sequence, position, watched, x, given, None)
        self._continuing.leave(target, sequence, after)
        self._continuing.takes(target, sequence)

    def _leave_to_data_flow(self, target: Target) -> None:
        """Let the calls of a cell in this step be found like any other recurrence."""
        self._search.parted.add(target.path)
        self._listener.missed(target, cells.PARTED)
        for call in self._lineage.known.calls():
            if call.owner.target is target:
                call.owner.done = None
                self._lineage.known.forget(call)
        self._lineage.parted()

    def _follows(self, before: Line | None, given: tuple[Tensor, ...], sequence: Line) -> None:
        """Note that a sequence goes on in another layer."""
        if before is not None and before.target is not sequence.target:
            before.followers.append(sequence)

    def _stand(
        self,
        target: Target,
        sequence: Line,
        position: int,
        watched: dict[Any, Tensor],
        x: Tensor,
        given: tuple[Tensor, ...],
        slots: dict[str, int] | None,
    ) -> None:
        """Hook the outputs of a call, and note where it stands in the graph."""
        known = KnownCall(f"{target.path}:{sequence.use}", {}, edges_of([x]), edges_of(given), sequence, position)
        by_node: dict[Any, list[Any]] = {}
        for name, behind in behind_views(watched).items():
            tensor, slot = behind.tensor, int(slots[name] if slots is not None else name[1])
            by_node.setdefault(tensor.grad_fn, []).append((tensor.output_nr, _key(name, position), behind.layout))
            for made in (tensor,) if tensor is watched[name] else (tensor, watched[name]):
                if made.grad_fn is not None:
                    known.made[made.grad_fn._sequence_nr(), made.output_nr] = slot
        self._lineage.made(known)
        sequence.ends = known.made
        for node, places in by_node.items():
            on_arrival(node, places, sequence, keep_alive=known)

    def _observe_layer(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert target.adapter is not None
        call, watched = open_layer_call(target.module, target.adapter, args, kwargs, output, self._listener.samples)
        use = self._listener.opened(target)

        def finished(done: LayerCall, task: int) -> None:
            self.guarded(target, lambda: self._deliver_whole(target, use, done, task))

        call.done, call.told = finished, self._telling(target)
        by_node: dict[Any, list[Any]] = {}
        behind = behind_views(watched)
        for name, found in behind.items():
            by_node.setdefault(found.tensor.grad_fn, []).append((found.tensor.output_nr, name, found.layout))
        x = args[0] if args else next(iter(kwargs.values()))
        sequence = Line()
        outputs = (*watched.values(), *(found.tensor for found in behind.values()))
        made = {(o.grad_fn._sequence_nr(), o.output_nr): 0 for o in outputs if o.grad_fn is not None}
        known = KnownCall(target.path, made, edges_of([x]), (), sequence, 0)
        self._lineage.made(known)
        for node, places in by_node.items():
            on_arrival(node, places, call, keep_alive=known)

    # -- delivery --------------------------------------------------------------------------------------------

    def _delivering(self, deliver: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def done(sequence: Any, task: int) -> None:
            self.guarded(sequence.target, lambda: deliver(sequence, task))

        return done

    def _deliver_whole(self, target: Target, use: Any, call: LayerCall | InputTap, task: int) -> None:
        adjoints = call.adjoints(task, torch.float64, self._listener.loss_scale())
        for info in target.sites:
            self._listener.measured(target, use, info.site, adjoints, call.selection.rows, 0)

    def _deliver_fused(self, sequence: FusedSequence, task: int) -> None:
        target, listener = sequence.target, self._listener
        assert target is not None
        suffixes = {(info.layer, int(info.reverse)): info.site for info in target.sites}
        layers = {layer for layer, _ in suffixes}
        found = sequence.adjoints(task, layers, listener.loss_scale(), listener.precise, listener.keep)
        watched = sequence.calls[0].step_nodes
        if watched is not None:
            self._reach[target.path] = watched.reach
        rows = sequence.calls[0].selection.rows
        parts = {site: found[place] for place, site in suffixes.items()}
        self._search.deliver(sequence, target, sequence.use, parts, rows, task)

    def _deliver_cell(self, sequence: cells.CellSequence, task: int) -> None:
        assert sequence.target is not None
        listener = self._listener
        adjoints = sequence.adjoints(task, listener.loss_scale(), listener.precise, listener.keep)
        if listener.keep.input and adjoints.input is None:
            listener.missing(sequence.target, "input", cells.IN_PART)
        parts = {info.site: adjoints for info in sequence.target.sites}
        self._search.deliver(sequence, sequence.target, sequence.use, parts, sequence.rows, task)

    # -- states without a graph ------------------------------------------------------------------------------

    def _note_left(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note the states that a call without a graph left: burn-in, evaluation, the first run of a checkpoint."""
        if target.kind == "cell":
            _, given, finals = cells.states_of(args, kwargs, output)
            steps = 1
        else:
            hx = args[1] if len(args) > 1 else kwargs.get("hx")
            given = tupled(hx)
            if not isinstance(output, tuple) or len(output) != 2:
                return
            finals = tupled(output[1])
            sizes = getattr(output[0], "batch_sizes", None)
            steps = sizes.numel() if sizes is not None else _steps(target.module, output[0])
        before = self._lineage.steps_unread(target.path, given)
        self._lineage.left(target.path, finals, later(before, steps), again=self.running)

    def _follow_carry(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        kwargs, output = rest if len(rest) == 2 else ({}, rest[0])
        target = self._targets.get(id(module))
        if target is not None and target.kind in ("fused", "cell"):
            self.guarded(target, lambda: self._note_left(target, args, kwargs, output))

    def _replica(self, module: nn.Module) -> None:
        for target in self._targets.values():
            if type(target.module) is type(module) and not _shares_weights(target.module, module):
                self._listener.missed(
                    target, "it runs as a replica of DataParallel; use DistributedDataParallel to have it recorded"
                )

    # -- never in the way ------------------------------------------------------------------------------------

    def _telling(self, target: Target) -> Callable[[Exception], None]:
        return failing(self._listener, target)

    def guarded(self, target: Target, action: Callable[[], object]) -> None:
        """Run ``action``; whatever it raises stays out of the user's training."""
        guarded(self._telling(target), action)


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the garbage collector off while a graph is walked: it is freed as it is left, and has no cycles.

    The many short-lived objects would else set off a full collection, which takes longer than the walk.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_FORWARD = "a forward call"

# Outputs of a fused call: of all timesteps, and the states it leaves.
_FUSED_SLOTS = {"grad_output": 0, "grad_hn": 1, "grad_cn": 2}


def _not_delivered(*_: object) -> None:
    """Let what arrived go."""


def _runs_with(module: Any, call: KernelCall) -> bool:
    """Whether a kernel was called with the weights of a module."""
    weights = module._flat_weights
    return bool(weights) and weights[0] is call.weights[0]


def _shares_weights(module: Any, replica: Any) -> bool:
    """Whether a replica runs with the very weights of the model: then its kernel's call is seen."""
    own, other = getattr(module, "_flat_weights", ()), getattr(replica, "_flat_weights", ())
    return any(mine is its for mine, its in zip(own, other, strict=False))


def _key(name: Any, position: int) -> Any:
    return (position, name) if isinstance(name, str) else name


def _batch(call: FusedCall | NextStep) -> int:
    return call.shape[call.selection.batch_dim] if len(call.shape) > 2 else 1


def _steps(module: nn.Module, output: Tensor) -> int:
    return output.shape[1 if output.dim() == 3 and getattr(module, "batch_first", False) else 0]
