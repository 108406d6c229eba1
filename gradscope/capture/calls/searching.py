"""Look for recurrences at the start of every backward pass, and hand over what arrived at its end."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints
from gradscope.capture.calls.cells import REORDERED, CellSequence
from gradscope.capture.calls.found import FoundSequence, hook, open_found
from gradscope.capture.calls.graph import CALL, NODE_LIMIT, Graph, KnownCall, walk
from gradscope.capture.calls.lineage import Lineage
from gradscope.capture.calls.passes import Pass
from gradscope.capture.calls.prehook import SECOND_ORDER, CannotRecordError
from gradscope.capture.calls.recurrences.axes import changes_rows
from gradscope.capture.calls.recurrences.find import find, of_marks
from gradscope.capture.calls.recurrences.initial import initial_state, state_before, value_of
from gradscope.capture.calls.recurrences.naming import MODEL, anchors_of, name_all
from gradscope.capture.calls.recurrences.recurrence import RARE, NearMiss, Place, Recurrence
from gradscope.capture.calls.sequence import FusedSequence, Line, joined
from gradscope.capture.layers.adapters import tensors_in
from gradscope.capture.layers.discovery import Names, Target, matches
from gradscope.schema import SiteInfo

if TYPE_CHECKING:
    from gradscope.capture.calls.watcher import Listener

# Shapes of graphs whose recurrences are remembered.
_REMEMBERED = 16

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
NOT_CHAINED = "the chunks of its checkpoint could not be put in a row: pass use_reentrant=False to checkpoint"


@dataclass(eq=False)
class _Mark:
    name: str
    number: int
    place: int
    shape: tuple[int, ...]


@dataclass(eq=False)
class _Piece:
    """What one sequence left in one pass."""

    line: Line
    target: Target
    use: int
    parts: dict[str, Adjoints]
    rows: Tensor


@dataclass(eq=False)
class _Hooked:
    """What was set up for one pass."""

    sequences: list[FoundSequence] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)
    nothing: str = ""


class Search:
    """Finds recurrences in the graphs of the step being recorded."""

    def __init__(self, names: Names, targets: list[Target], listener: Listener, lineage: Lineage) -> None:
        self._names, self._listener, self._lineage = names, listener, lineage
        # A black box is no recurrence: what recurs in it may bear its name.
        known = [t for t in targets if t.adapter is None or t.adapter.step is not None]
        self._known_paths = {info.site for target in known for info in target.sites}
        #: Layers whose calls of this step are left to data flow: their states part and go two ways.
        self.parted: set[str] = set()
        self._transformed = False
        self._targets = targets
        self._ours = {id(module) for module in names.modules.values()}
        self._marks: list[_Mark] = []
        self._under_way: list[tuple[Pass, _Hooked]] = []
        self._remembered: OrderedDict[Any, tuple[list[Recurrence], list[NearMiss]]] = OrderedDict()
        self._graphed = False
        self.model = Target(MODEL, nn.Module(), "found", MODEL, ())
        #: Whether tensors of this step may have been saved through somebody's hooks: they are not looked at then.
        self.saving_is_hooked = False
        #: Names of the states that the user marked so far, and shapes, without the batch.
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._given: dict[tuple[str, ...], str] = {}
        self._left: dict[str, tuple[Tensor, int]] = {}
        self._quiet: dict[int, tuple[int, tuple[Tensor, ...]]] = {}

    def close(self) -> None:
        """Drop every tensor."""
        self.forget()
        self._left.clear()

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._marks.clear()
        self._shapes.clear()
        self._quiet.clear()
        self._graphed = self.saving_is_hooked = self._transformed = False
        self.parted.clear()
        for _, hooked in self._under_way:
            _release(hooked)
        self._under_way.clear()

    def failed(self, error: Exception) -> None:
        """Note why a pass was not searched."""
        if isinstance(error, CannotRecordError):
            self._listener.missed(self.model, str(error))
        else:
            self._listener.failed(self.model, error)

    def transformed(self, module: nn.Module) -> None:
        """Note that a module was called inside torch.func, with values that are not seen."""
        if id(module) in self._ours:
            self._transformed = True
            self._listener.missed(self.model, IN_TRANSFORM)

    def quietly_called(self, module: nn.Module, output: Any) -> None:
        """Note what a module of the user's own returned without a graph: burn-in before the recorded steps."""
        if id(module) in self._ours and not type(module).__module__.startswith("torch.nn.modules"):
            count, _ = self._quiet.get(id(module), (0, ()))
            self._quiet[id(module)] = count + 1, tuple(value.detach() for value in tensors_in(output))

    def mark(self, name: str, state: Tensor) -> None:
        """Take a state that the user named."""
        if state.grad_fn is None:
            return
        shape = tuple(state.shape)
        known = self._shapes.setdefault(name, shape[1:])
        if not shape or shape[1:] != known:
            reason = (
                f"gradscope.state({name!r}, ...) was given shapes that differ: (B, {', '.join(map(str, known))}) and "
                f"{shape}; a state keeps its shape from step to step, but for the batch"
            )
            if not shape:
                reason = f"gradscope.state({name!r}, ...) was given a tensor without a batch axis"
            self._listener.missed(self._target(SiteInfo(name, name, "", "")), reason)
            self._marks = [mark for mark in self._marks if mark.name != name]
            return
        self._marks.append(_Mark(name, state.grad_fn._sequence_nr(), state.output_nr, shape))

    # -- a pass begins ---------------------------------------------------------------------------------------

    def begin(self, begun: Pass, called: Counter[int]) -> None:
        """Walk the graph of a pass and set hooks on the states of its recurrences."""
        hooked = _Hooked()
        self._under_way.append((begun, hooked))
        second_order = self._graphed
        self._graphed |= begun.create_graph
        if any(getattr(root, "is_sparse", False) for root in begun.roots):
            return
        graph = walk(begun.roots, self._lineage.known)
        if graph is None:
            self._listener.missed(self.model, TOO_LARGE)
            return
        ours = any(id(leaf) in self._names.parameters for leaf in graph.leaves.values())
        if not ours and not self._marks and not any(map(graph.is_call, range(len(graph.nodes)))):
            return  # a loss of another model
        self._check_known(graph)
        opaque = self._say_opaque(graph)
        if second_order and _differentiates_again(graph):
            self._say_second_order(graph)
            return
        found, misses = self._find(graph)
        scripted = {index for index, name in enumerate(graph.names) if "DifferentiableGraph" in name}
        if scripted:  # the executor hides some of the steps only: all of it, or nothing
            leaves = {graph.leaves.get(child) for index in scripted for child, _ in graph.inputs[index]}
            hidden = {self._names.parameters.get(id(leaf)) for leaf in leaves}
            found = [one for one in found if not hidden & set(anchors_of(graph, one, self._names))]
        marked = self._of_marks(graph)
        inside = {place[0] for _, one in marked for state in one.states for place in state if place is not None}
        found = [one for one in found if not any(one.level[index] for index in inside)]
        said = self._open(graph, hooked, found, marked, called)
        said += self._say_missed(graph, misses)
        if not hooked.sequences and not any(map(graph.is_call, range(len(graph.nodes)))):
            hooked.nothing = self._nothing(
                graph, begun, [*([IN_TRANSFORM] if self._transformed else []), *opaque, *said]
            )
        if begun.outer is not None:
            called.clear()  # a chunk of a checkpoint was run again for this pass

    def _find(self, graph: Graph) -> tuple[list[Recurrence], list[NearMiss]]:
        """Find the recurrences of a graph, or remember those of one of the same shape."""
        key = hash((tuple(graph.names), tuple(graph.inputs), graph.first_inner))
        if key not in self._remembered:
            self._remembered[key] = find(graph)
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]

    def _of_marks(self, graph: Graph) -> list[tuple[str, Recurrence]]:
        """Return the recurrences of marked states."""
        if not self._marks:
            return []
        at = {node._sequence_nr(): i for i, node in enumerate(graph.nodes) if not isinstance(node, KnownCall)}
        places: dict[str, list[Place]] = defaultdict(list)
        for mark in self._marks:
            call = self._lineage.known.get(mark.number)
            if mark.number in at:
                places[mark.name].append((at[mark.number], mark.place))
            elif call is not None:
                target = self._target(SiteInfo(mark.name, mark.name, "", ""))
                self._listener.missed(target, f"it is a state of {call.name.rpartition(':')[0]!r}, recorded there")
        return [(name, one) for name, marked in places.items() for one in of_marks(graph, marked)]

    def _open(
        self,
        graph: Graph,
        hooked: _Hooked,
        found: list[Recurrence],
        marked: list[tuple[str, Recurrence]],
        called: Mapping[int, int],
    ) -> list[str]:
        """Set the hooks of what was found and marked; return why some could not be."""
        said = []
        anchors = [anchors_of(graph, one, self._names) for one in found]
        steps = [one.steps for one in found]
        taken = {name for name, _ in marked} | (self._known_paths - self.parted)
        names = name_all(anchors, steps, self._names.called(called), taken)
        for path in self.parted:
            inside = [all(name.startswith(f"{path}.") for name in key) for key in anchors]
            names = [path if own else name for own, name in zip(inside, names, strict=True)]
        # A name once given stays, however often its module is called in another step.
        names = [self._given.setdefault(tuple(sorted(key)), name) for key, name in zip(anchors, names, strict=True)]
        uses: Counter[str] = Counter()
        ends: dict[int, FoundSequence] = {}
        begins: list[tuple[Recurrence, FoundSequence]] = []
        for name, one in (*marked, *zip(names, found, strict=True)):
            uses[name] += 1
            info = self._info(name, one, marked=not one.anchors)
            target = self._target(info)
            if self._listener.wanted is not None and one.anchors and not matches(info, self._listener.wanted):
                continue
            if one.anchors and not anchors_of(graph, one, self._names):
                continue  # weights of another model
            sequence = open_found(graph, one, one.level, info, uses[name], self._listener.samples)
            if sequence is None:
                continue
            if isinstance(sequence, str):
                self._listener.missed(target, sequence)
                said.append(f"{name!r} recurs {one.steps} times, but {sequence}")
                continue
            sequence.told = self._telling(target)
            sequence.done = self._done
            hook(graph, one, sequence)
            self._say_missing(graph, target, one, sequence)
            carried = self._carried(graph, one, name, sequence)
            sequence.carried = carried + sequence.skipped if carried >= 0 else -1
            if not self.saving_is_hooked and one.anchors:
                self._note_left(graph, one, name, carried)
            hooked.sequences.append(sequence)
            ends.update({place[0]: sequence for state in one.states if (place := state[-1]) is not None})
            begins.append((one, sequence))
        for one, sequence in begins:
            self._follow_on(graph, one, sequence, ends)
        return said

    def _follow_on(
        self, graph: Graph, found: Recurrence, sequence: FoundSequence, ends: dict[int, FoundSequence]
    ) -> None:
        """See whether a recurrence starts from the state that another one ended with."""
        todo = [place[0] for place in found.initial if place is not None and place[0] >= graph.first_inner]
        seen = set(todo)
        while todo and len(seen) < 256:
            index = todo.pop()
            before = ends.get(index)
            if before is not None and before is not sequence:
                before.followers.append(sequence)
                if before.carried >= 0:
                    sequence.carried = before.carried + before.steps
                return
            for child in graph.inner(index):
                if child not in seen and not graph.is_call(child):
                    seen.add(child)
                    todo.append(child)

    def _info(self, name: str, found: Recurrence, marked: bool) -> SiteInfo:
        module = self._names.modules.get(name)
        kind = "state" if marked else type(module).__name__ if module is not None else "recurrence"
        curve = next(role for role in ("cell", "hidden", *found.roles) if role in found.roles)
        how = "marked by gradscope.state" if marked else "found by data flow"
        unit = "applications in depth" if found.by_depth else "steps"
        return SiteInfo(name, name, kind, kind, curve=curve, how=f"{how}, {found.steps} {unit}")

    def _target(self, info: SiteInfo) -> Target:
        return Target(info.site, self._names.modules.get(info.site, self.model.module), "found", info.cell, (info,))

    def _telling(self, target: Target) -> Any:
        def told(error: Exception) -> None:
            if isinstance(error, CannotRecordError):
                self._listener.missed(target, str(error))
            else:
                self._listener.failed(target, error)

        return told

    def _carried(self, graph: Graph, found: Recurrence, name: str, sequence: FoundSequence) -> int:
        """Return how many steps lie behind the state a recurrence starts from; −1 where that cannot be told."""
        for place in found.initial:
            if place is not None and place[0] >= graph.first_inner:
                node = graph.nodes[place[0]]
                calls = [node] if isinstance(node, KnownCall) else self._lineage.before_edges([(node, place[1])])
                if len(calls) == 1:
                    line = calls[0].owner
                    line.followers.append(sequence)
                    return line.carried + line.steps if line.carried >= 0 else -1
                return 0
        before = None if self.saving_is_hooked else state_before(graph, found)
        if before is None:
            return 0 if found.by_depth else -1
        if not bool(before.any()):
            return 0
        steps, quiet = self._quiet.get(id(self._names.modules.get(name)), (0, ()))
        for value, count in (*[(value, steps) for value in quiet], *([self._left[name]] if name in self._left else [])):
            if value.shape == before.shape and torch.equal(value, before):
                return count
        return -1

    def _note_left(self, graph: Graph, found: Recurrence, name: str, carried: int) -> None:
        """Keep the state that a recurrence ends with, to know it again where the next window starts from it."""
        which = initial_state(found)
        value = None if which is None else value_of(graph, found.states[which][-1])
        if value is None:
            self._left.pop(name, None)
        else:
            self._left[name] = value, carried + found.steps if carried >= 0 else -1

    # -- what is said ----------------------------------------------------------------------------------------

    def _check_known(self, graph: Graph) -> None:
        """See how states go from call to call: whether they are used elsewhere, and whether rows stay in place."""
        at: dict[tuple[int, int], int] = {}
        lines: dict[int, Line] = {}
        for index in range(graph.first_inner, len(graph.nodes)):
            node = graph.nodes[index]
            if isinstance(node, KnownCall) and isinstance(node.owner, FusedSequence | CellSequence):
                at[id(node.owner), node.position] = index
                lines[id(node.owner)] = node.owner
        for key, line in lines.items():
            if len(line.calls) < 2:
                continue
            fused = isinstance(line, FusedSequence)
            mixed = False
            for position in range(len(line.calls) - 1):
                here, there = at.get((key, position)), at.get((key, position + 1))
                if here is None or there is None:
                    continue
                mixed = mixed or (fused and _used_elsewhere(graph, here, there))
                if not any(child == here for child, _ in graph.inputs[there]):
                    way = _way_between(graph, here, there)
                    change = changes_rows(graph, way, 1 if fused else 0)
                    if change == "other" or (change and fused):
                        line.unfollowed = REORDERED
            if fused:
                line.mixed = mixed

    def _say_opaque(self, graph: Graph) -> list[str]:
        """Say what is hidden in nodes that cannot be looked into."""
        said = []
        for part, reason in _OPAQUE.items():
            for index, name in enumerate(graph.names):
                if part in name and not name.startswith(CALL):
                    self._listener.missed(self._owner_of(graph, index), reason)
                    said.append(reason)
                    break
        return said

    def _owner_of(self, graph: Graph, index: int) -> Target:
        """Return the module whose weights an opaque node consumes, or the one that was scripted."""
        for child, _ in graph.inputs[index]:
            path = self._names.parameters.get(id(graph.leaves.get(child))) if child >= 0 else None
            if path:
                owner = path.rpartition(".")[0] or MODEL
                known = next((target for target in self._targets if target.path == owner), None)
                return known or self._target(SiteInfo(owner, owner, "", ""))
        return self.model

    def _say_second_order(self, graph: Graph) -> None:
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

    def _say_missed(self, graph: Graph, misses: list[NearMiss]) -> list[str]:
        """Say which weights are used again on what they made, but could not be followed."""
        said = []
        for miss in misses:
            paths = anchors_of(graph, Recurrence(miss.anchors, miss.steps, [], ()), self._names)
            if not paths:
                continue
            name = paths[0].rpartition(".")[0] or MODEL
            target = self._target(SiteInfo(name, name, "", ""))
            said.append(f"{paths[0]!r} is used {miss.steps} times in a chain, but {miss.reason}")
            remedy = "mark the state in its loop with gradscope.state to have it recorded"
            self._listener.missed(target, f"{said[-1]}; {remedy}")
        return said

    def _say_missing(self, graph: Graph, target: Target, found: Recurrence, sequence: FoundSequence) -> None:
        missing = self._listener.missing
        if not sequence.entry_axes and not found.by_depth:
            missing(
                target, "input", "what enters each step has no graph of its own: call requires_grad_() on the input"
            )
        for anchor in found.rare:
            for path in anchors_of(graph, replace(found, anchors=(anchor,)), self._names):
                self._listener.missed(target, f"{path!r}: {RARE}")
        for role in sequence.incomplete:
            missing(
                target, role, "the graph of the loss does not show it at every step, so that its lags cannot be told"
            )
        if not sequence.has_direct and "hidden" in found.roles and found.anchors:
            missing(target, "direct", "what is made of the state both leaves the loop and is fed back to it")

    def _nothing(self, graph: Graph, begun: Pass, near: list[str]) -> str:
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

    # -- a pass ends -----------------------------------------------------------------------------------------

    def _done(self, sequence: FoundSequence, task: int) -> None:
        adjoints = sequence.adjoints(task, self._listener.loss_scale())
        target = self._target(sequence.info)
        self.deliver(sequence, target, sequence.use, {sequence.info.site: adjoints}, sequence.rows, task)

    def deliver(
        self, line: Line, target: Target, use: int, parts: dict[str, Adjoints], rows: Tensor, task: int
    ) -> None:
        """Hand over the adjoints of a sequence; those of chunks of a checkpoint wait for the others."""
        piece = _Piece(line, target, use, parts, rows)
        for of, hooked in reversed(self._under_way):
            if of.task == task or (of.task == -1 and of.running()):
                if of.outer is None:
                    break
                first = next((h for p, h in self._under_way if p is of.outermost()), hooked)
                first.pieces.append(piece)
                return
        self._hand_over(piece, task)

    def _hand_over(self, piece: _Piece, task: int) -> None:
        for site, adjoints in piece.parts.items():
            after = piece.line.after(task)
            self._listener.measured(piece.target, piece.use, site, adjoints, piece.rows, piece.line.carried, after)

    def end(self, ended: Pass) -> None:
        """Take off the hooks of a pass, and put the chunks of a checkpoint in a row."""
        for position, (of, hooked) in enumerate(self._under_way):
            if of is ended:
                del self._under_way[position]
                _release(hooked)
                self._join(hooked.pieces)
                if hooked.nothing and not hooked.pieces:
                    self._listener.nothing(hooked.nothing)
                return

    def _join(self, pieces: list[_Piece]) -> None:
        by_site: dict[str, list[_Piece]] = defaultdict(list)
        for piece in pieces:
            by_site[piece.target.path].append(piece)
        for chunks in by_site.values():
            # The last chunk runs backward first.
            rows: list[list[_Piece]] = []
            for piece in reversed(chunks):
                if rows and _goes_on(rows[-1][-1], piece):
                    rows[-1].append(piece)
                else:
                    rows.append([piece])
            begins = [row[0].line.carried == 0 or isinstance(row[0].line, FoundSequence) for row in rows]
            if len(rows) > 1 and not all(begins):
                self._listener.missed(chunks[0].target, NOT_CHAINED)
                continue
            for use, row in enumerate(rows, start=1):
                parts = {site: joined([chunk.parts[site] for chunk in row]) for site in row[0].parts}
                whole = replace(row[0], parts=parts, use=use)
                if len(row) > 1 and isinstance(whole.line, FoundSequence):
                    steps = sum(chunk.line.steps for chunk in row)
                    info = replace(whole.line.info, how=f"found by data flow, {steps} steps in {len(row)} chunks")
                    whole = replace(whole, target=self._target(info))
                self._hand_over(whole, -1)


def _goes_on(earlier: _Piece, later: _Piece) -> bool:
    """Whether a chunk starts from the state that the one before left."""
    if not isinstance(earlier.line, FoundSequence):
        return earlier.line.carried >= 0 and earlier.line.carried + earlier.line.steps == later.line.carried
    for site, adjoints in earlier.parts.items():
        handed, last = later.parts[site].initial_hidden, adjoints.hidden
        if handed is None or last is None or handed.shape != last[-1].shape:
            return False
        # What the later one hands back is what arrives at the last state of the earlier one.
        if not bool(((handed.double() - last[-1].double()).abs() <= 1e-5 * last[-1].abs().max()).all()):
            return False
    return True


def _release(hooked: _Hooked) -> None:
    for sequence in hooked.sequences:
        for handle in sequence.handles:
            handle.remove()
        sequence.handles.clear()


def _differentiates_again(graph: Graph) -> bool:
    """Whether a graph holds the gradient of another: nodes that only a backward pass makes."""
    return any(name.endswith("BackwardBackward0") or "BackwardBackward" in name for name in graph.names) or any(
        name.startswith(("TanhBackwardBackward", "SigmoidBackwardBackward")) for name in graph.names
    )


def _used_elsewhere(graph: Graph, here: int, there: int) -> bool:
    """Whether a state between two calls goes anywhere but into the next call."""
    todo = [user for user, at in graph.users[here] if graph.inputs[user][at][1] in (1, 2)]
    seen: set[int] = set()
    while todo:
        index = todo.pop()
        if index == there:
            continue
        if index in seen:
            continue
        if graph.is_call(index) or not graph.users[index] or len(seen) > 64:
            return True
        seen.add(index)
        todo.extend(user for user, _ in graph.users[index])
    return False


def _way_between(graph: Graph, here: int, there: int) -> list[tuple[int, int]]:
    """Return the nodes on a shortest way from one call to the next, each with the place at which it is entered."""
    came: dict[int, tuple[int, int]] = {}
    todo = [there]
    for index in todo:
        for at, (child, _) in enumerate(graph.inputs[index]):
            if child == here:
                way = [(index, at)] if index != there else []
                while index != there:
                    above, entered = came[index]
                    if above != there:
                        way.append((above, entered))
                    index = above
                return way
            if child > here and child not in came:
                came[child] = (index, at)
                todo.append(child)
    return []
