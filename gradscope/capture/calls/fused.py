"""Watch one forward call of ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` and replay its adjoints after backward.

The forward hook copies what the replay needs of the sampled sequences, detached; the graph it watches owns those
copies, so they are freed with it when backward never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradscope.adjoint import Adjoints, Keep, StackCall, Weights, earlier_adjoints, recomputed_output, stack_adjoints
from gradscope.adjoint.magnitude import FADES_BELOW
from gradscope.capture.calls.kept_gates import kept_gates
from gradscope.capture.calls.step_nodes import StepNodes
from gradscope.capture.calls.views import behind_views
from gradscope.capture.layers.rows import Selection

TRANSFORMED = "it runs inside a torch.func transform or a batched backward pass, which hides the values"

SECOND_ORDER = (
    "the loss reaches it through a gradient (create_graph=True), on paths outside its own recurrence; the pass that "
    "built that graph was recorded"
)

# A recomputed output that is further than this from the module's own is of another function.
_OUTPUT_TOLERANCE = 1e-3


class CannotRecordError(Exception):
    """This call cannot be recorded; the message says why. Becomes a line in coverage, never reaches the user."""


@dataclass
class FusedCall:
    """A forward call under way: what the replay needs, and the gradients as they arrive.

    Attributes
    ----------
    call : StackCall
        Sampled rows, without gradients yet.
    selection : Selection
    weight_versions : tuple of int
        To notice weights that an optimizer changed during backward.
    gradients : dict
        Graph task to the gradients of output, h_n and c_n that arrived in it.
    step_nodes : StepNodes or None
        Where adjoints arrive by themselves.
    graphed, refused : set of int
        Backward passes that built a graph of their own, and those that cannot be recorded.
    """

    call: StackCall
    selection: Selection
    parameters: tuple[Tensor, ...]
    weight_versions: tuple[int, ...]
    carried: int = 0
    step_nodes: StepNodes | None = None
    gradients: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    graphed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def take(self, task: int, name: str, gradient: Tensor) -> None:
        """Keep the sampled rows of a gradient that arrived in backward pass ``task``."""
        if name == "grad_output":
            taken = self.selection.sequence(gradient, copy=False)
        else:
            taken = self.selection.state(gradient, copy=False)
        held = self.gradients[task]
        held[name] = held[name] + taken if name in held else taken

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self.gradients.pop(task, None)
        if self.step_nodes is not None:
            self.step_nodes.forget(task)

    def adjoints(
        self, task: int, layers: set[int], scale: float, precise: bool, keep: Keep
    ) -> dict[tuple[int, int], Adjoints]:
        """Return the adjoints of backward pass ``task``, divided by the loss scale: as they arrived, or replayed.

        Where float32 is what the user's kernel ran in, it is enough for norms, and twice as fast; ``precise`` asks for
        float64 all the same.
        """
        if tuple(w._version for w in self.parameters) != self.weight_versions:
            self.forget(task)
            raise CannotRecordError("the weights changed during backward (an optimizer inside backward?)")
        gradients = self.gradients.pop(task)
        # The kernel's workspace is large, and a second pass through the same graph is rare: it is replayed then.
        original, self.call = self.call, self.call.again()
        if (arrived := self._arrived(task, layers, gradients.get("grad_hn"), scale)) is not None:
            return arrived
        if scale != 1.0:
            gradients = {name: gradient.double() / scale for name, gradient in gradients.items()}
        call = replace(original, **gradients)  # type: ignore[arg-type]
        output = call.output
        if not precise and output.dtype != torch.float64 and output.device.type == "cpu":
            found = stack_adjoints(call, torch.float32, layers, keep=keep)
            if not any(map(_left_float32, found.values())):
                return found
        return stack_adjoints(call.again(), torch.float64, layers, keep=keep)

    def _arrived(
        self, task: int, layers: set[int], grad_hn: Tensor | None, scale: float
    ) -> dict[tuple[int, int], Adjoints] | None:
        """Return the adjoints that autograd delivered, completed by a replay of the steps where float32 ran out."""
        if self.step_nodes is None:
            return None
        arrived = self.step_nodes.adjoints(task, layers, grad_hn, scale)
        if arrived is None:
            return None
        found = {}
        for (layer, direction), (adjoints, since) in arrived.items():
            # Where layers above sent down what had faded, or where no gate need be recomputed, the replay is better.
            if since and (len(self.call.weights) > 1 or self.call.mode != "GRU"):
                self.step_nodes.reach = 0
                return None
            if since:
                dtype = torch.float64 if self.call.output.dtype == torch.float64 else torch.float32
                adjoints = earlier_adjoints(self.call, direction, adjoints, since, dtype)
                if dtype == torch.float32 and _left_float32(adjoints):
                    return None
            found[layer, direction] = adjoints
        return found


def _left_float32(adjoints: Adjoints) -> bool:
    """Return whether an adjoint is not finite, or came close to the lower end of float32 on its way back.

    Either may be true, or may be the range of float32 over a single block: only float64 can tell.
    """
    sizes = [adjoints.hidden_norms.numpy()]
    if adjoints.cell is not None:
        sizes.append(adjoints.cell_norms.numpy())
    if adjoints.input_gradient is not None:
        sizes.append(adjoints.input_norms.numpy())
    for size in sizes:
        if not np.isfinite(size).all():
            return True
        if (size >= FADES_BELOW).all():
            continue
        reached = np.maximum.accumulate(size[::-1], axis=0)[::-1] > 0
        lost = reached & (size < FADES_BELOW)
        if adjoints.faded is not None:
            lost[adjoints.faded] = False  # below what float64 holds, too
        if lost.any():
            return True
    return False


def open_call(
    module: nn.RNNBase,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    samples: int | None,
    rng: Tensor | None,
    precise: bool = True,
) -> tuple[FusedCall, dict[str, Tensor]]:
    """Copy what the replay of this forward call needs; less of it where it need not be ``precise``.

    Returns the call and the output tensors that carry gradient, by the name their gradient will have.

    Raises
    ------
    CannotRecordError
        There is no graph, or a dropout mask that cannot be reproduced.
    """
    x = args[0] if args else kwargs["input"]
    hx = args[1] if len(args) > 1 else kwargs.get("hx")
    sequence, final = output
    packed = isinstance(x, PackedSequence)
    h_n, c_n = final if module.mode == "LSTM" else (final, None)
    values = {"grad_output": sequence.data if packed else sequence, "grad_hn": h_n}
    if c_n is not None:
        values["grad_cn"] = c_n
    watched = {name: value for name, value in values.items() if value.requires_grad}
    if not watched:
        raise CannotRecordError("its output requires no gradient (everything before it is frozen, or no_grad)")
    if any(map(is_transformed, watched.values())):
        raise CannotRecordError(TRANSFORMED)
    with torch.no_grad():
        selection = Selection.of(x, module.batch_first, samples)
        h0, c0 = (hx if module.mode == "LSTM" else (hx, None)) if hx is not None else (None, None)
        call = StackCall(
            mode=module.mode,
            weights=_weights(module),
            input=selection.sequence((x.data if packed else x).detach()),
            output=selection.sequence(values["grad_output"].detach()),
            h0=_initial(h0, h_n, selection),
            c0=None if c_n is None else _initial(c0, c_n, selection),
            lengths=selection.lengths,
        )
        if module.num_layers > 1 and module.dropout and module.training:
            shape = values["grad_output"].shape
            call = replace(
                call, masks=_dropout_masks(module, rng, selection, shape, call.output.dtype, call.output.device)
            )
        if overrides_forward(module):
            _check_output(module, call)
        elif not precise:
            call = replace(call, kept=kept_gates(module, call, values["grad_output"], selection))
    parameters = tuple(w for w in module._flat_weights if w is not None)
    versions = tuple(w._version for w in parameters)
    return FusedCall(call, selection, parameters, versions), watched


def overrides_forward(module: nn.Module) -> bool:
    """Whether something else than torch's own ``forward`` runs: it may do more than call the kernel."""
    own = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
    return type(module).forward not in own or "forward" in vars(module)


def _check_output(module: nn.Module, call: StackCall) -> None:
    """Make sure that the kernel makes the module's output of the module's input."""
    expected, found = recomputed_output(call).double(), call.output.double()
    tolerance = max(_OUTPUT_TOLERANCE, 20 * torch.finfo(call.output.dtype).eps)
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise CannotRecordError(
            f"{type(module).__name__} overrides forward and changes what goes in or comes out: put that into a module "
            "of its own, or register an adapter (gradscope.register_adapter)"
        )


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a torch.func transform or a batched backward pass, and has no values of its own."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _weights(module: nn.RNNBase) -> tuple[tuple[Weights, ...], ...]:
    # What the kernel runs with is _flat_weights, whatever parametrizations have done to the named parameters.
    found = dict(zip(module._flat_weights_names, module._flat_weights, strict=True))

    def site(layer: int, suffix: str) -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        values = [found.get(f"{name}_l{layer}{suffix}") for name in names]
        return Weights(*(None if value is None else value.detach() for value in values))  # type: ignore[arg-type]

    suffixes = ("", "_reverse")[: 1 + module.bidirectional]
    return tuple(tuple(site(layer, suffix) for suffix in suffixes) for layer in range(module.num_layers))


def _initial(given: Tensor | None, final: Tensor, selection: Selection) -> Tensor:
    """Return the initial state of the sampled rows; zeros when none was given."""
    if given is None:
        return torch.zeros_like(selection.state(final.detach()))
    return selection.state(given.detach())


def _dropout_masks(
    module: nn.RNNBase,
    rng: Tensor | None,
    selection: Selection,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Draw the dropout masks between layers once more, from the generator state the forward call started with.

    On the CPU the stacked call draws one mask per layer boundary, in order, over the time-major output.
    """
    if device.type != "cpu" or rng is None:
        raise CannotRecordError(
            "dropout between layers on this device is drawn inside the fused kernel and cannot be reproduced; split "
            "the stack into single layers with nn.Dropout between them to record it"
        )
    if module.batch_first and selection.gather is None and not selection.unbatched:
        shape = torch.Size((shape[1], shape[0], shape[2]))
    elif selection.unbatched:
        shape = torch.Size((shape[0], 1, shape[1]))
    time_major = replace(selection, batch_dim=1, unbatched=False)
    masks = []
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng)
        for _ in range(module.num_layers - 1):
            drawn = torch.dropout(torch.ones(shape, dtype=dtype), module.dropout, True)
            masks.append(time_major.sequence(drawn))
    return tuple(masks)


class Call(Protocol):
    """A forward call under way, which keeps gradients as they arrive."""

    gradients: dict[int, dict[str, Tensor]]
    graphed: set[int]
    refused: set[int]

    def take(self, task: int, name: str, gradient: Tensor) -> None:
        """Keep a gradient that arrived in backward pass ``task``."""
        ...

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        ...


CallT = TypeVar("CallT", bound=Call)

# Which gradient of a node it is, its name, and how it gets the shape of what the module returned.
_Place = tuple[int, str, Callable[[Tensor], Tensor]]


def watch(
    call: CallT,
    watched: dict[str, Tensor],
    finished: Callable[[CallT, int], None],
    failed: Callable[[Exception], None],
) -> None:
    """Call ``finished(call, task)`` at the end of every backward pass that reaches the outputs.

    Hooks sit on the nodes that produced the outputs, after every tensor hook: what they see is what enters the layer,
    also when the user's code edits the output in place later. They hold the call, never the node or the graph.
    """
    by_node: dict[Any, list[_Place]] = {}
    for name, behind in behind_views(watched).items():
        by_node.setdefault(behind.tensor.grad_fn, []).append((behind.tensor.output_nr, name, behind.layout))
    for node, places in by_node.items():
        node.register_prehook(_prehook(call, places, finished, failed))


def _prehook(
    call: CallT,
    places: list[_Place],
    finished: Callable[[CallT, int], None],
    failed: Callable[[Exception], None],
) -> Callable[[tuple[Tensor | None, ...]], None]:
    def end(task: int) -> None:
        """Called at the end of the pass, not at the first arrival: output, h_n and c_n come separately."""
        if task in call.refused:
            call.forget(task)
        else:
            finished(call, task)

    def prehook(gradients: tuple[Tensor | None, ...]) -> None:
        task = torch._C._current_graph_task_id()
        try:
            if task not in call.gradients:
                call.gradients[task] = {}
                torch.autograd.Variable._execution_engine.queue_callback(lambda: end(task))
                if call.graphed - {task}:
                    raise CannotRecordError(SECOND_ORDER)
                if torch.is_grad_enabled():
                    call.graphed.add(task)
            with torch.no_grad():
                for position, name, layout in places:
                    if (gradient := gradients[position]) is not None and task not in call.refused:
                        if is_transformed(gradient):
                            raise CannotRecordError(TRANSFORMED)
                        call.take(task, name, layout(gradient))
        except Exception as error:
            call.refused.add(task)
            failed(error)

    return prehook


def ancestors(nodes: list[Any], limit: int) -> Iterator[Any]:
    """Walk the autograd graph breadth first, at most ``limit`` nodes."""
    seen, queue = set(nodes), list(nodes)
    while queue and limit:
        node, limit = queue.pop(0), limit - 1
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
