"""What the coverage says of a graph that was searched: what of it is not recorded, why, and what can be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from gradscope.capture.calls.found import FoundSequence
from gradscope.capture.calls.graph import NODE_LIMIT, Graph, KnownCall
from gradscope.capture.calls.listening import Listener
from gradscope.capture.calls.passes import Pass
from gradscope.capture.calls.prehook import SECOND_ORDER, CannotRecordError
from gradscope.capture.calls.recurrences.naming import MODEL, anchors_of, owner_of
from gradscope.capture.calls.recurrences.recurrence import PASSING, RARE, NearMiss, Recurrence
from gradscope.capture.layers.discovery import Names, Target
from gradscope.schema import SiteInfo

TOO_LARGE = (
    f"the graph of the loss has more than {NODE_LIMIT:,} nodes and was not searched: mark the state in its loop with "
    "gradscope.state"
)
SCRIPTED = (
    "TorchScript's executor hides its loop in one opaque node, which only the first call of a scripted module does not "
    "show: set PYTORCH_JIT=0 in the environment to have every step recorded"
)
COMPILED = "torch.compile has made it one opaque node: leave the recurrent part out of it (torch.compiler.disable)"
FUSED_ELSEWHERE = (
    "torch's kernel is called with weights that belong to no recurrent layer: its timesteps are hidden in one node; "
    "hold the weights in an nn.LSTM, nn.GRU or nn.RNN to have it recorded"
)
_OPAQUE = {
    "DifferentiableGraph": SCRIPTED,
    "CompiledFunction": COMPILED,
    "MkldnnRnnLayer": FUSED_ELSEWHERE,
    "CudnnRnn": FUSED_ELSEWHERE,
}
IN_TRANSFORM = (
    "it runs inside torch.func (vmap, grad, functional_call), which hides its values: run a recorded step without it"
)

NO_INPUT_GRAPH = "what enters each step, and it alone, has no graph of its own: call requires_grad_() on the input"
SHARED_INPUT = "what enters a step enters other steps as well: no share of its gradient belongs to one of them"


def failing(listener: Listener, target: Target) -> Callable[[Exception], None]:
    """Return who is told why something of a site was not recorded."""

    def told(error: Exception) -> None:
        if isinstance(error, CannotRecordError):
            listener.missed(target, str(error))
        else:
            listener.failed(target, error)

    return told


class Saying:
    """Tells the listener why something in a graph is not recorded, at the site it belongs to."""

    def __init__(self, names: Names, targets: list[Target], listener: Listener) -> None:
        self._names, self._targets, self._listener = names, targets, listener
        self.model = Target(MODEL, nn.Module(), "found", MODEL, ())

    def info(self, name: str, found: Recurrence) -> SiteInfo:
        """Describe the site of a recurrence that was found, or marked."""
        marked = not found.anchors
        module = self._names.modules.get(name)
        kind = "state" if marked else type(module).__name__ if module is not None else "recurrence"
        curve = next(role for role in ("cell", "hidden", *found.roles) if role in found.roles)
        how = "marked by gradscope.state" if marked else "found by data flow"
        unit = "applications in depth" if found.by_depth else "steps"
        return SiteInfo(name, name, kind, kind, curve=curve, how=f"{how}, {found.steps} {unit}")

    def target(self, info: SiteInfo) -> Target:
        """Return what stands for a site that is no layer."""
        return Target(info.site, self._names.modules.get(info.site, self.model.module), "found", info.cell, (info,))

    def failing(self, target: Target) -> Callable[[Exception], None]:
        """Return who is told why something of a site was not recorded."""
        return failing(self._listener, target)

    def failed(self, error: Exception) -> None:
        """Say why a pass was not searched."""
        self.failing(self.model)(error)

    def of_model(self, reason: str) -> None:
        """Say why nothing of a graph is recorded."""
        self._listener.missed(self.model, reason)

    def opaque(self, graph: Graph) -> list[str]:
        """Say what is hidden in nodes that cannot be looked into."""
        said = []
        for part, reason in _OPAQUE.items():
            for index, name in enumerate(graph.names):
                if part in name and not graph.is_call(index):
                    self._listener.missed(self._owner_of(graph, index), reason)
                    said.append(reason)
                    break
        return said

    def _owner_of(self, graph: Graph, index: int) -> Target:
        """Return the module whose weights an opaque node consumes, or the one that was scripted."""
        for child, _ in graph.inputs[index]:
            path = self._names.parameters.get(id(graph.leaves.get(child))) if child >= 0 else None
            if path:
                owner = owner_of(path)
                known = next((target for target in self._targets if target.path == owner), None)
                return known or self.target(SiteInfo(owner, owner, "", ""))
        return self.model

    def second_order(self, graph: Graph) -> None:
        """Say that a pass through a gradient is not recorded, at every site it reaches."""
        reached = {
            node.owner.target.path
            for node in graph.nodes
            if isinstance(node, KnownCall) and hasattr(node.owner, "target")
        }
        weights = {id(leaf) for leaf in graph.leaves.values()}
        for target in self._targets:
            own = any(id(parameter) in weights for parameter in target.module.parameters())
            if own and target.path not in reached:
                self._listener.missed(target, SECOND_ORDER)
        self._listener.missed(self.model, SECOND_ORDER)

    def inside_of_layers(self, graph: Graph, misses: list[NearMiss]) -> bool:
        """Whether weights of a fused layer are used step by step: only the gradient of its call does so in a graph."""
        fused = {target.path for target in self._targets if target.kind == "fused"}
        used = (anchors_of(graph, Recurrence(miss.anchors, miss.steps, [], ()), self._names) for miss in misses)
        return any(owner_of(paths[0]) in fused for paths in used if paths)

    def missed(self, graph: Graph, misses: list[NearMiss]) -> list[str]:
        """Say which weights are used again on what they made, but could not be followed."""
        said = []
        for miss in misses:
            paths = anchors_of(graph, Recurrence(miss.anchors, miss.steps, [], ()), self._names)
            if not paths:
                continue
            name = owner_of(paths[0])
            target = self.target(SiteInfo(name, name, "", ""))
            said.append(f"{paths[0]!r} is used {miss.steps} times in a chain, but {miss.reason}")
            remedy = "mark the state in its loop with gradscope.state to have it recorded"
            self._listener.missed(target, f"{said[-1]}; {remedy}")
        return said

    def missing(self, graph: Graph, target: Target, found: Recurrence, sequence: FoundSequence) -> None:
        """Say which quantities of a recurrence are not recorded."""
        missing = self._listener.missing
        if not sequence.entry_axes and not found.by_depth:
            missing(target, "input", SHARED_INPUT if found.shared_input else NO_INPUT_GRAPH)
        for anchor in found.rare:
            for path in anchors_of(graph, replace(found, anchors=(anchor,)), self._names):
                self._listener.missed(target, f"{path!r}: {RARE}")
        passing = anchors_of(graph, replace(found, anchors=found.passing), self._names)
        if owners := sorted({owner_of(path) for path in passing}):
            self._listener.missed(target, PASSING.format(", ".join(map(repr, owners))))
        for role in sequence.incomplete:
            missing(
                target, role, "the graph of the loss does not show it at every step, so that its lags cannot be told"
            )
        if "cell_carry" in sequence.roles:
            missing(
                target,
                "cell",
                "one operation makes it and the hidden state, and hides what leaves it by way of that: what arrives is "
                "its cell_carry",
            )
        if not sequence.has_direct and "hidden" in found.roles:
            missing(target, "direct", "what is made of the state both leaves the loop and is fed back to it")

    def nothing(self, graph: Graph, begun: Pass, near: list[str]) -> str:
        """Say that nothing recurs, and what came nearest to it."""
        ours = [leaf for leaf in range(graph.first_inner) if id(graph.leaves[leaf]) in self._names.parameters]
        if not ours or self._targets or begun.outer is not None:
            return ""
        most = max(ours, key=lambda leaf: len(graph.users[leaf]))
        times = len(graph.users[most])
        nearest = "; ".join(near[:3]) or (
            f"no weight is used at least three times on what it made before (most often used: "
            f"{self._names.parameters[id(graph.leaves[most])]!r}, {times} time{'s' * (times != 1)})"
        )
        return (
            f"nothing recurs in the graph of the loss: {nearest}; pass sites=['path.of.module'] to record the gradient "
            "of a module's input"
        )
