"""Watch one forward call of ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` and replay its adjoints after backward.

The forward hook copies what the replay needs of the sampled sequences, detached; the graph it watches owns those
copies, so they are freed with it when backward never runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradscope.adjoint import Adjoints, Keep, StackCall, Weights, earlier_adjoints, stack_adjoints
from gradscope.adjoint.magnitude import FADES_BELOW
from gradscope.capture import host
from gradscope.capture.calls.kept_gates import kept_gates
from gradscope.capture.calls.lineage import tupled
from gradscope.capture.calls.prehook import TRANSFORMED, CannotRecordError
from gradscope.capture.calls.step_nodes import StepNodes
from gradscope.capture.layers.rows import Selection
from gradscope.capture.torch_private import is_transformed


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
    step_nodes : StepNodes or None
        Where adjoints arrive by themselves.
    """

    call: StackCall
    selection: Selection
    parameters: tuple[Tensor, ...]
    weight_versions: tuple[int, ...]
    step_nodes: StepNodes | None = None
    shape: tuple[int, ...] = ()

    def rows_of(self, name: str, gradient: Tensor) -> Tensor:
        """Take the sampled rows out of the gradient of the output, h_n or c_n."""
        if name == "grad_output":
            return self.selection.sequence(gradient, copy=False)
        return self.selection.state(gradient, copy=False)

    @property
    def steps(self) -> int:
        gather = self.selection.gather
        return self.call.output.shape[0] if gather is None else len(gather)

    @property
    def changed(self) -> bool:
        """Whether the weights have changed since the call."""
        return tuple(w._version for w in self.parameters) != self.weight_versions

    def adjoints(
        self,
        task: int,
        gradients: dict[str, Tensor],
        layers: set[int],
        scale: float,
        precise: bool,
        keep: Keep,
    ) -> dict[tuple[int, int], Adjoints]:
        """Return the adjoints of backward pass ``task``, divided by the loss scale: as they arrived, or replayed.

        ``gradients`` are those of output, h_n and c_n, rows selected.

        Where float32 is what the user's kernel ran in, it is enough for norms, and twice as fast; ``precise`` asks for
        float64 all the same.
        """
        # The kernel's workspace is large, and a second pass through the same graph is rare: it is replayed then.
        original, self.call = settled(self.call, self.selection), self.call.again()
        if (arrived := self._arrived(task, layers, gradients.get("grad_hn"), scale)) is not None:
            return arrived
        if scale != 1.0:
            gradients = {name: gradient.double() / scale for name, gradient in gradients.items()}
        gradients = {name: self.selection.settled(gradient) for name, gradient in gradients.items()}
        call = replace(original, **gradients)  # type: ignore[arg-type]
        output = call.output
        if not precise and output.dtype != torch.float64:
            found = stack_adjoints(call, torch.float32, layers, keep=keep)
            if not any(map(left_float32, found.values())):
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
            # Where layers above sent down what had faded, the replay is better.
            if since and len(self.call.weights) > 1:
                self.step_nodes.reach = 0
                return None
            if since:
                dtype = torch.float64 if self.call.output.dtype == torch.float64 else torch.float32
                adjoints = earlier_adjoints(self.call, direction, adjoints, since, dtype)
                if dtype == torch.float32 and left_float32(adjoints):
                    return None
            found[layer, direction] = adjoints
        return found


def left_float32(adjoints: Adjoints) -> bool:
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
    like: FusedCall | None = None,
) -> tuple[FusedCall, dict[str, Tensor]]:
    """Copy what the replay of this forward call needs; less of it where it need not be ``precise``.

    ``like`` is the call of the same module that it continues: rows and weights are the same.

    Returns the call and the output tensors that carry gradient, by the name their gradient will have.

    Raises
    ------
    CannotRecordError
        There is no graph, or a dropout mask that cannot be reproduced.
    """
    x = args[0] if args else kwargs["input"]
    hx = args[1] if len(args) > 1 else kwargs.get("hx")
    packed = isinstance(x, PackedSequence)
    values = returned_by(output)
    watched = {name: value for name, value in values.items() if value.requires_grad}
    if not watched:
        raise CannotRecordError("its output requires no gradient (everything before it is frozen, or no_grad)")
    if any(map(is_transformed, watched.values())):
        raise CannotRecordError(TRANSFORMED)
    with torch.no_grad():
        shape = tuple((x.data if packed else x).shape)
        continued = like is not None and not packed and shape == like.shape and not like.changed
        selection = like.selection if like is not None and continued else Selection.of(x, module.batch_first, samples)
        h0, c0 = (hx if module.mode == "LSTM" else (hx, None)) if hx is not None else (None, None)
        call = StackCall(
            mode=module.mode,
            weights=like.call.weights if like is not None and continued else _weights(module),
            input=selection.sequence((x.data if packed else x).detach()),
            output=selection.sequence(values["grad_output"].detach()),
            h0=_initial(h0, values["grad_hn"], selection),
            c0=_initial(c0, values["grad_cn"], selection) if "grad_cn" in values else None,
            lengths=selection.lengths,
        )
        if module.num_layers > 1 and module.dropout and module.training:
            shape = values["grad_output"].shape
            call = replace(
                call, masks=_dropout_masks(module, rng, selection, shape, call.output.dtype, values["grad_output"])
            )
        if not precise and like is None:
            call = replace(call, kept=kept_gates(module, call, values["grad_output"], selection))
    if like is not None and continued:
        parameters, versions = like.parameters, like.weight_versions
    else:
        parameters = tuple(w for w in module._flat_weights if w is not None)
        versions = tuple(w._version for w in parameters)
    return FusedCall(call, selection, parameters, versions, shape=shape), watched


def settled(call: StackCall, selection: Selection) -> StackCall:
    """Return a call whose tensors have been waited for; a packed batch of another device is gathered now."""
    return replace(call, input=selection.settled(call.input), output=selection.settled(call.output))


def returned_by(output: Any) -> dict[str, Tensor]:
    """Return the tensors that a call of ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` returned, by their gradients' names."""
    sequence, final = output
    outputs = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return dict(zip(("grad_output", "grad_hn", "grad_cn"), (outputs, *tupled(final)), strict=False))


def overrides_forward(module: nn.Module) -> bool:
    """Whether something else than torch's own ``forward`` runs: it may do more than call the kernel."""
    own = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
    return type(module).forward not in own or "forward" in vars(module)


def _weights(module: nn.RNNBase) -> tuple[tuple[Weights, ...], ...]:
    # What the kernel runs with is _flat_weights, whatever parametrizations have done to the named parameters.
    found = dict(zip(module._flat_weights_names, module._flat_weights, strict=True))

    def site(layer: int, suffix: str) -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        values = [found.get(f"{name}_l{layer}{suffix}") for name in names]
        return Weights(*(None if value is None else host.weight(value) for value in values))  # type: ignore[arg-type]

    suffixes = ("", "_reverse")[: 1 + module.bidirectional]
    return tuple(tuple(site(layer, suffix) for suffix in suffixes) for layer in range(module.num_layers))


def _initial(given: Tensor | None, final: Tensor, selection: Selection) -> Tensor:
    """Return the initial state of the sampled rows; zeros when none was given."""
    if given is None:
        return torch.zeros(final.shape[0], selection.size, final.shape[-1], dtype=final.dtype, device="cpu")
    return selection.state(given.detach())


def _dropout_masks(
    module: nn.RNNBase,
    rng: Tensor | None,
    selection: Selection,
    shape: torch.Size,
    dtype: torch.dtype,
    output: Tensor,
) -> tuple[Tensor, ...]:
    """Draw the dropout masks between layers once more, from the generator state the forward call started with.

    On the CPU the stacked call draws one mask per layer boundary, in order, over the time-major output.
    """
    if not host.is_host(output) or rng is None:
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
            drawn = torch.dropout(torch.ones(shape, dtype=dtype, device="cpu"), module.dropout, True)
            masks.append(time_major.sequence(drawn))
    return tuple(masks)
