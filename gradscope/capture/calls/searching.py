"""Look for recurrences at the start of every backward pass, and hand over what arrived at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gradscope.adjoint import Adjoints
from gradscope.capture.calls.between_calls import check_known
from gradscope.capture.calls.chunks import NOT_CHAINED, Piece, by_module, in_rows, rows_of_windows, whole
from gradscope.capture.calls.found import FoundSequence
from gradscope.capture.calls.graph import Graph, walk
from gradscope.capture.calls.home import Home
from gradscope.capture.calls.lineage import Lineage
from gradscope.capture.calls.listening import Listener
from gradscope.capture.calls.marked import MarkedStates
from gradscope.capture.calls.opening import hook, open_found
from gradscope.capture.calls.passes import Pass
from gradscope.capture.calls.recurrences.memory import Memory
from gradscope.capture.calls.recurrences.naming import anchors_of, name_all
from gradscope.capture.calls.recurrences.recurrence import Recurrence
from gradscope.capture.calls.saying import IN_TRANSFORM, TOO_LARGE, Saying
from gradscope.capture.calls.sequence import Line
from gradscope.capture.calls.windows import Windows, follow_on
from gradscope.capture.host import brought
from gradscope.capture.layers.discovery import Names, Target, matches


@dataclass(eq=False)
class _Hooked:
    """What was set up for one pass."""

    sequences: list[FoundSequence] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    #: Windows of a loop that start from each other's detached states, with the pass they arrived in.
    windows: list[tuple[Piece, int]] = field(default_factory=list)
    nothing: str = ""


class Search:
    """Finds recurrences in the graphs of the step being recorded."""

    def __init__(self, names: Names, targets: list[Target], listener: Listener, lineage: Lineage, home: Home) -> None:
        self._names, self._listener, self._lineage, self._home = names, listener, lineage, home
        # A black box is no recurrence: what recurs in it may bear its name.
        known = [t for t in targets if t.adapter is None or t.adapter.step is not None]
        self._known_paths = {info.site for target in known for info in target.sites}
        #: Layers whose calls of this step are left to data flow: their states part and go two ways.
        self.parted: set[str] = set()
        self._transformed = False
        self._ours = {id(module) for module in names.modules.values()}
        self._saying = Saying(names, targets, listener)
        self._marked = MarkedStates(listener, self._saying, lineage)
        self._windows = Windows(names, lineage)
        self._under_way: list[tuple[Pass, _Hooked]] = []
        self._memory = Memory()
        self._graphed = False
        #: Whether tensors of this step may have been saved through somebody's hooks: they are not looked at then.
        self.saving_is_hooked = False
        self._given: dict[tuple[str, ...], str] = {}
        #: Names of recurrences that fail every time; empty for the search itself.
        self._left_out: set[str] = set()

    def leave_out(self, target: Target) -> None:
        """Open the recurrence of this name no more, or search no more where it stands for the model."""
        self._left_out.add("" if target is self._saying.model else target.path)

    def close(self) -> None:
        """Drop every tensor."""
        self.forget()
        self._windows.close()

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._marked.forget()
        self._windows.forget()
        self._graphed = self.saving_is_hooked = self._transformed = False
        self.parted.clear()
        for _, hooked in self._under_way:
            _release(hooked)
        self._under_way.clear()

    def failed(self, error: Exception) -> None:
        """Note why a pass was not searched."""
        self._saying.failed(error)

    def transformed(self, module: nn.Module) -> None:
        """Note that a module was called inside torch.func, with values that are not seen."""
        if id(module) in self._ours:
            self._transformed = True

    def quietly_called(self, module: nn.Module, output: Any) -> None:
        """Note what a module of the user's own returned without a graph: burn-in before the recorded steps."""
        if id(module) in self._ours:
            self._windows.quietly_called(module, output)

    def mark(self, name: str, state: Tensor) -> None:
        """Take a state that the user named."""
        if self._home.here:
            self._marked.mark(name, state)

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        self._listener.harmed(doing, error)

    # -- a pass begins ---------------------------------------------------------------------------------------

    def begin(self, begun: Pass, called: Counter[int]) -> None:
        """Walk the graph of a pass and set hooks on the states of its recurrences."""
        if "" in self._left_out:
            return
        hooked = _Hooked()
        self._under_way.append((begun, hooked))
        self._set_up(begun, hooked, called)
        if self._transformed and not hooked.sequences:  # vmap alone leaves a graph in which a loop is found
            self._saying.of_model(IN_TRANSFORM)

    def _set_up(self, begun: Pass, hooked: _Hooked, called: Counter[int]) -> None:
        """Look at the graph of a pass: what is in it, and what cannot be recorded of it."""
        second_order = self._graphed
        self._graphed |= begun.create_graph
        if any(getattr(root, "is_sparse", False) for root in begun.roots):
            return
        graph = walk(begun.roots, self._lineage.known)
        if graph is None:
            self._saying.of_model(TOO_LARGE)
            return
        ours = any(id(leaf) in self._names.parameters for leaf in graph.leaves.values())
        if not ours and not self._marked and not _has_calls(graph):
            return  # a loss of another model
        graph.values_may_be_read = not self.saving_is_hooked
        check_known(graph)
        said = self._saying.opaque(graph)
        if second_order and (
            _differentiates_again(graph) or self._saying.inside_of_layers(graph, self._memory.find(graph)[1])
        ):
            self._saying.second_order(graph)
            return
        said += self._search(graph, hooked, called)
        if not hooked.sequences and not _has_calls(graph):
            hooked.nothing = self._saying.nothing(graph, begun, [*([IN_TRANSFORM] if self._transformed else []), *said])
        if begun.outer is not None:
            called.clear()  # a chunk of a checkpoint was run again for this pass

    def _search(self, graph: Graph, hooked: _Hooked, called: Mapping[int, int]) -> list[str]:
        """Set the hooks of what recurs in a graph; return why some could not be."""
        self._windows.begin()
        found, misses = self._memory.find(graph)
        found = self._without_scripted(graph, found)
        marked = self._marked.recurrences(graph)
        inside = {place[0] for _, one in marked for state in one.states for place in state if place is not None}
        found = [one for one in found if not any(one.level[index] for index in inside)]
        named = [*marked, *zip(self._name(graph, found, marked, called), found, strict=True)]
        return self._open_all(graph, hooked, named) + self._saying.missed(graph, misses)

    def _without_scripted(self, graph: Graph, found: list[Recurrence]) -> list[Recurrence]:
        """Leave out what TorchScript's executor hides some of the steps of: all of it, or nothing."""
        scripted = {index for index, name in enumerate(graph.names) if "DifferentiableGraph" in name}
        if not scripted:
            return found
        leaves = {graph.leaves.get(child) for index in scripted for child, _ in graph.inputs[index]}
        hidden = {self._names.parameters.get(id(leaf)) for leaf in leaves}
        return [one for one in found if not hidden & set(anchors_of(graph, one, self._names))]

    def _name(
        self,
        graph: Graph,
        found: list[Recurrence],
        marked: list[tuple[str, Recurrence]],
        called: Mapping[int, int],
    ) -> list[str]:
        """Name what was found; a name once given stays, however often its module is called in another step."""
        anchors = [anchors_of(graph, one, self._names) for one in found]
        steps = [one.steps for one in found]
        taken = {name for name, _ in marked} | (self._known_paths - self.parted)
        names = name_all(anchors, steps, self._names.called(called), taken)
        for path in self.parted:
            inside = [all(name.startswith(f"{path}.") for name in key) for key in anchors]
            names = [path if own else name for own, name in zip(inside, names, strict=True)]
        return [self._given.setdefault(tuple(sorted(key)), name) for key, name in zip(anchors, names, strict=True)]

    def _open_all(self, graph: Graph, hooked: _Hooked, named: Sequence[tuple[str, Recurrence]]) -> list[str]:
        """Set the hooks of what was found and marked; return why some could not be."""
        said = []
        uses: Counter[str] = Counter()
        ends: dict[int, FoundSequence] = {}
        begins: list[tuple[Recurrence, FoundSequence]] = []
        for name, one in named:
            uses[name] += 1
            sequence = self._open(graph, name, one, uses[name])
            if isinstance(sequence, str):
                said.append(f"{name!r} recurs {one.steps} times, but {sequence}")
            elif sequence is not None:
                uses[name] -= sequence.before is not None
                hooked.sequences.append(sequence)
                ends.update({place[0]: sequence for state in one.states if (place := state[-1]) is not None})
                begins.append((one, sequence))
        for one, sequence in begins:
            follow_on(graph, one, sequence, ends)
        return said

    def _open(self, graph: Graph, name: str, found: Recurrence, use: int) -> FoundSequence | str | None:
        """Set the hooks of one recurrence; return why that could not be, or None where it is not wanted."""
        weights = anchors_of(graph, found, self._names) if found.anchors else []
        info = replace(self._saying.info(name, found), weights=tuple(weights))
        target = self._saying.target(info)
        if self._listener.wanted is not None and found.anchors and not matches(info, self._listener.wanted):
            return None
        if (found.anchors and not weights) or target.path in self._left_out:
            return None  # weights of another model, or what fails every time
        sequence = open_found(graph, found, found.level, info, use, self._listener.samples)
        if isinstance(sequence, str):
            self._listener.missed(target, sequence)
        if not isinstance(sequence, FoundSequence):
            return sequence
        sequence.told = self._saying.failing(target)
        sequence.done, sequence.marked = self._done, not found.anchors
        hook(graph, found, sequence)
        self._saying.missing(graph, target, found, sequence)
        carried = self._windows.carried(graph, found, name, sequence, seen=not self.saving_is_hooked)
        sequence.carried = carried + sequence.skipped if carried >= 0 else -1
        if not self.saving_is_hooked and found.anchors:
            self._windows.note_left(graph, found, name, sequence, carried)
        return sequence

    # -- a pass ends -----------------------------------------------------------------------------------------

    def _done(self, sequence: FoundSequence, task: int) -> None:
        adjoints = sequence.adjoints(task, self._listener.loss_scale())
        target = self._saying.target(sequence.info)
        self.deliver(sequence, target, sequence.use, {sequence.info.site: adjoints}, sequence.rows, task)

    def deliver(
        self, line: Line, target: Target, use: Any, parts: dict[str, Adjoints], rows: Tensor, task: int
    ) -> None:
        """Hand over the adjoints of a sequence; those of chunks of a checkpoint wait for the others."""
        piece = Piece(line, target, use, parts, rows)
        for of, hooked in reversed(self._under_way):
            if of.task == task or (of.task == -1 and of.running()):
                if of.outer is None:
                    if isinstance(line, FoundSequence) and (line.before is not None or line.goes_on):
                        hooked.windows.append((piece, task))
                        return
                    break
                first = next((h for p, h in self._under_way if p is of.outermost()), hooked)
                given = tuple(brought(g) for g in of.root_gradients if isinstance(g, Tensor) and g.dim())
                piece = replace(piece, given=given, scale=self._listener.loss_scale())
                first.pieces.append(piece)
                return
        self._hand_over(piece, task)

    def _hand_over(self, piece: Piece, task: int, last: Line | None = None) -> None:
        for site, adjoints in piece.parts.items():
            after = (last or piece.line).after(task)
            self._listener.measured(piece.target, piece.use, site, adjoints, piece.rows, piece.line.carried, after)

    def end(self, ended: Pass) -> None:
        """Take off the hooks of a pass, and put the chunks of a checkpoint in a row."""
        for position, (of, hooked) in enumerate(self._under_way):
            if of is ended:
                del self._under_way[position]
                _release(hooked)
                self._join(hooked.pieces)
                for row, task in rows_of_windows(hooked.windows):
                    self._hand_over(whole(row, row[0].use), task, row[-1].line)
                if hooked.nothing and not hooked.pieces:
                    self._listener.nothing(hooked.nothing)
                return

    def _join(self, pieces: list[Piece]) -> None:
        for chunks in by_module(pieces):
            rows = in_rows(chunks)
            if rows is None:
                self._listener.missed(chunks[0].target, NOT_CHAINED)
                continue
            for use, row in enumerate(rows, start=1):
                self._hand_over(whole(row, use), -1)


def _release(hooked: _Hooked) -> None:
    for sequence in hooked.sequences:
        for handle in sequence.handles:
            handle.remove()
        sequence.handles.clear()


def _has_calls(graph: Graph) -> bool:
    return any(map(graph.is_call, range(len(graph.nodes))))


def _differentiates_again(graph: Graph) -> bool:
    """Whether a graph holds the gradient of another: nodes that only a backward pass makes."""
    return any("BackwardBackward" in name for name in graph.names)
