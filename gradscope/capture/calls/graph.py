"""The autograd graph below a loss, walked once, as plain lists in forward order.

Calls of known layers stand in it as one node each: the walk steps over what is inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import Parameter

Answer = TypeVar("Answer")

#: Graphs with more nodes are not searched.
NODE_LIMIT = 200_000


@dataclass(eq=False)
class KnownCall:
    """A forward call of a layer whose inside is known. Held by the hooks on its outputs, and freed with the graph.

    Attributes
    ----------
    name : str
        Which layer it is a call of.
    made : dict of (int, int) to int
        Its outputs, by the sequence number of the node that made them and their place there: 0 for the outputs of all
        timesteps, 1 and 2 for the states it leaves.
    input_edges, state_edges : tuple of (node, int)
        The tensors it was given, as far as they have a graph.
    owner : object
        What keeps the numbers of this call.
    position : int
        Which call of ``owner`` it is.
    """

    name: str
    made: dict[tuple[int, int], int]
    input_edges: tuple[tuple[Any, int], ...]
    state_edges: tuple[tuple[Any, int], ...]
    owner: Any = None
    position: int = 0


class Known(Protocol):
    """Finds the known call that a node made an output of, by the node's sequence number."""

    def get(self, number: int) -> KnownCall | None:
        """Return the call, if there is one."""
        ...

    def __len__(self) -> int: ...


@dataclass(eq=False)
class Graph:
    """Nodes in forward order, leaves first.

    Attributes
    ----------
    nodes : list
        Autograd nodes, and known calls.
    names : list of str
    inputs : list of tuple of (int, int)
        Of each node, the tensors it consumed: index of the node that made it and its place among that node's outputs;
        −1 where there is nothing to differentiate.
    users : list of list of (int, int)
        Of each node, who consumes its outputs, and at which place.
    leaves : dict of int to Tensor
    first_inner : int
        Index of the first node that is not a leaf.
    of_weights : list of bool
        Whether a tensor is computed of parameters alone: transposed, normalised, multiplied with each other.
    values_may_be_read : bool
        Whether saved tensors may be looked at: not where somebody's hooks would unpack them.
    asked : list
        What was asked of the nodes themselves, and the answers.
    """

    nodes: list[Any]
    names: list[str]
    inputs: list[tuple[tuple[int, int], ...]]
    leaves: dict[int, Tensor]
    first_inner: int
    users: list[list[tuple[int, int]]] = field(default_factory=list)
    of_weights: list[bool] = field(default_factory=list)
    values_may_be_read: bool = True
    asked: list[tuple[Callable[[Graph], Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.users = [[] for _ in self.nodes]
        for index, consumed in enumerate(self.inputs):
            for place, (child, _) in enumerate(consumed):
                if child >= 0:
                    self.users[child].append((index, place))
        made = self.of_weights = [isinstance(leaf, Parameter) for leaf in self.leaves.values()]
        for index in range(self.first_inner, len(self.nodes)):
            made.append(self._made_of_weights(index, made))

    def _made_of_weights(self, index: int, made: list[bool]) -> bool:
        """Whether a node computes a weight of weights; a mask may take part, but nothing with a batch."""
        consumed = self.inputs[index]
        for child, _ in consumed:  # as in nearly all nodes
            if child >= 0 and not made[child]:
                return False
        name = self.names[index]
        if name.startswith(("Embedding", "Expand", "Repeat", CALL)):
            return False
        if all(child >= 0 and made[child] for child, _ in consumed):
            return True
        masks = name.startswith(("MulBackward", "DivBackward", "AddBackward", "SubBackward"))
        weights = [(child, nr) for child, nr in consumed if child >= 0]
        return masks and len(weights) == 1 and made[weights[0][0]] and self.shape((index, 0)) == self.shape(weights[0])

    @property
    def form(self) -> int:
        """Number the form of a graph: what the nodes are called, and what each consumes."""
        axes = tuple([leaf.dim() for leaf in self.leaves.values()])
        return hash((tuple(self.names), tuple(self.inputs), tuple(self.of_weights), self.first_inner, axes))

    def ask(self, question: Callable[[Graph], Answer]) -> Answer:
        """Answer what the form of a graph does not tell, and note it: another of the same form may answer otherwise."""
        answer = question(self)
        self.asked.append((question, answer))
        return answer

    def shape(self, place: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        if place[0] < self.first_inner:
            return tuple(self.leaves[place[0]].shape)
        return tuple(self.nodes[place[0]]._input_metadata[place[1]].shape)

    def inner(self, index: int) -> tuple[int, ...]:
        """Return the nodes that made what a node consumed, without leaves."""
        first = self.first_inner
        return tuple([child for child, _ in self.inputs[index] if child >= first])

    def is_call(self, index: int) -> bool:
        """Whether a node stands for a call of a known layer."""
        return self.names[index].startswith(CALL)


#: Begins the name of a node that stands for a call of a known layer.
CALL = "call:"


def root_nodes(roots: Iterable[Any]) -> list[Any]:
    """Return the nodes that made the roots of a backward pass."""
    found = []
    for root in roots:
        if isinstance(root, Tensor):
            if root.requires_grad:
                found.append(root.grad_fn if root.grad_fn is not None else get_gradient_edge(root).node)
        else:
            found.append(root.node)
    return found


def walk(roots: Iterable[Any], known: Known | None = None, limit: int = NODE_LIMIT) -> Graph | None:
    """Walk the graph below ``roots``; None where it has more than ``limit`` nodes.

    Parameters
    ----------
    roots : iterable
        Tensors or gradient edges.
    known : mapping, optional
        Calls to step over, by the sequence numbers of the nodes that made their outputs.
    limit : int
    """
    if known is not None and not known:
        known = None
    edges: dict[Any, tuple[tuple[Any, int], ...]] = {}
    order: dict[Any, int] = {}
    calls: dict[Any, KnownCall] = {}
    ends = root_nodes(roots)
    todo = [*ends]
    while todo:
        node = todo.pop()
        if node in edges or node in calls:
            continue
        number = node._sequence_nr()
        call = None if known is None else known.get(number)
        if call is None:
            order[node] = number
            following = edges[node] = node.next_functions
        else:
            calls[node] = call
            order[call] = max(number, order.get(call, 0))
            following = edges[call] = (*call.input_edges, *call.state_edges)
        for child, _ in following:
            if child is not None:
                todo.append(child)
        if len(edges) > limit:
            return None
    names = {node: CALL + node.name if isinstance(node, KnownCall) else node.name() for node in edges}
    _without_whole_slices(edges, names, set(ends))
    _look_through(edges, names)
    leaves = [node for node in edges if names[node] == _LEAF]
    held = set(leaves)
    inner = sorted((node for node in edges if node not in held), key=order.__getitem__)
    for ordered in (inner, None):
        graph = _ordered(leaves, ordered or _sorted(inner, held, edges, calls), edges, calls, names)
        if graph is not None:
            return graph
    return None


# Name of the node at which the gradient of a leaf arrives.
_LEAF = "torch::autograd::AccumulateGrad"


def _without_whole_slices(
    edges: dict[Any, tuple[tuple[Any, int], ...]], names: Mapping[Any, str], kept: set[Any]
) -> None:
    """Let who reads a slice that leaves nothing out read what it is of: older torch makes one of every ``:``."""
    whole = {
        (node, 0): consumed[0]
        for node, consumed in edges.items()
        if names[node].startswith("SliceBackward") and node not in kept and _is_whole(node)
    }
    if not whole:
        return
    for node, consumed in edges.items():
        if any(edge in whole for edge in consumed):
            edges[node] = tuple([_followed(whole, edge) for edge in consumed])
    for node, _ in whole:
        del edges[node]


def _is_whole(node: Any) -> bool:
    try:
        sizes = node._saved_self_sym_sizes
        size = sizes[from_zero(node._saved_dim, len(sizes))]
        return _span(node, size) == (0, size)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _look_through(edges: dict[Any, tuple[tuple[Any, int], ...]], names: Mapping[Any, str]) -> None:
    """Let who takes one part of what was put together read that part itself: ``torch.stack((h, c))`` then ``state[0]``.

    A part that is taken goes; so does what was put together, where nobody uses it whole.
    """
    parts: dict[tuple[Any, int], tuple[Any, int]] = {}
    together = {node for node, name in names.items() if name.startswith(_TOGETHER)}
    if not together:
        return
    for node, consumed in edges.items():
        if len(consumed) != 1:
            continue
        source = consumed[0][0]
        if source not in together or isinstance(node, KnownCall):
            continue
        members = taken(node, source, edges[source])
        parts.update({(node, nr): part for nr, part in members.items()})
    if not parts:
        return
    heads = {node for node, _ in parts}
    uses: dict[Any, int] = dict.fromkeys(heads, 0) | {edges[node][0][0]: 0 for node in heads}
    for node, consumed in edges.items():
        for child, _ in consumed:
            if child in heads:
                consumed = edges[node] = tuple([_followed(parts, edge) for edge in consumed])
                break
        for child, _ in consumed:
            if child in uses:
                uses[child] += 1
    for node in heads:
        if not uses[node]:
            ((source, _),) = edges.pop(node)
            uses[source] -= 1
            if not uses[source]:
                for child, _ in edges.pop(source, ()):
                    if child in uses:
                        uses[child] -= 1


# What puts tensors together.
_TOGETHER = ("StackBackward", "CatBackward")


def _followed(parts: dict[tuple[Any, int], tuple[Any, int]], edge: tuple[Any, int]) -> tuple[Any, int]:
    while edge in parts:
        edge = parts[edge]
    return edge


def taken(node: Any, source: Any, members: tuple[tuple[Any, int], ...]) -> dict[int, tuple[Any, int]]:
    """Return which members a node takes out of what was put together, by its outputs; none where not whole ones."""
    kind, of = node.name().rstrip("0123456789"), source.name().rstrip("0123456789")
    try:
        if of == "StackBackward" and kind in ("SelectBackward", "UnbindBackward"):
            axes = len(source._input_metadata[0].shape)
            if from_zero(node._saved_dim, axes) != from_zero(source._saved_dim, axes):
                return {}
            if kind == "UnbindBackward":
                return {nr: member for nr, member in enumerate(members) if member[0] is not None}
            index = from_zero(node._saved_index, len(members))
            return {0: members[index]} if members[index][0] is not None else {}
        if of == "CatBackward" and kind in ("SplitBackward", "SplitWithSizesBackward", "SliceBackward"):
            return _pieces(node, kind, source, members)
    except (AttributeError, IndexError, RuntimeError):
        pass
    return {}


def _pieces(node: Any, kind: str, source: Any, members: tuple[tuple[Any, int], ...]) -> dict[int, tuple[Any, int]]:
    shape = source._input_metadata[0].shape
    axis = from_zero(source._saved_dim, len(shape))
    if from_zero(node._saved_dim, len(shape)) != axis or any(child is None for child, _ in members):
        return {}
    begins, at = {}, 0
    for child, nr in members:
        size = child._input_metadata[nr].shape[axis] if not hasattr(child, "variable") else child.variable.shape[axis]
        begins[at, size], at = (child, nr), at + size
    if kind == "SliceBackward":
        span = _span(node, shape[axis])
        piece = None if span is None else begins.get((span[0], span[1] - span[0]))
        return {} if piece is None else {0: piece}
    if kind == "SplitBackward":
        each = int(node._saved_split_size)
        sizes = [min(each, shape[axis] - start) for start in range(0, shape[axis], each)]
    else:
        sizes = [int(size) for size in node._saved_split_sizes]
    found, at = {}, 0
    for nr, size in enumerate(sizes):
        if (at, size) in begins:
            found[nr] = begins[at, size]
        at += size
    return found if len(found) == len(sizes) else {}


def _span(node: Any, size: int) -> tuple[int, int] | None:
    """Where a slice of an axis begins and ends; None of one that leaves out some between."""
    end = size if node._saved_end is None else min(int(node._saved_end), size)
    return (int(node._saved_start or 0), end) if int(node._saved_step) == 1 else None


def from_zero(value: Any, size: int) -> int:
    """Return a saved axis or index as a number from 0: torch keeps negative ones as large unsigned numbers."""
    number = int(value)
    return (number - 2**64 if number >= 2**63 else number) % size


def _ordered(
    leaves: list[Any],
    inner: list[Any],
    edges: dict[Any, tuple[tuple[Any, int], ...]],
    calls: dict[Any, KnownCall],
    names: Mapping[Any, str],
) -> Graph | None:
    """Number the nodes; None where one would come before what it consumed."""
    nodes = [*leaves, *inner]
    index = {node: i for i, node in enumerate(nodes)}
    inputs = []
    for i, node in enumerate(nodes):
        consumed = []
        for child, nr in edges[node]:
            if child is None:
                consumed.append((-1, 0))
                continue
            if child in calls:
                call = calls[child]
                at, nr = index[call], call.made.get((child._sequence_nr(), nr), 0)
            else:
                at = index[child]
            if at >= i:
                return None
            consumed.append((at, nr))
        inputs.append(tuple(consumed))
    short = [names[node] if isinstance(node, KnownCall) else names[node].rpartition("::")[2] for node in nodes]
    return Graph(nodes, short, inputs, {index[leaf]: leaf.variable for leaf in leaves}, len(leaves))


def _sorted(
    inner: list[Any], leaves: set[Any], edges: dict[Any, tuple[tuple[Any, int], ...]], calls: dict[Any, KnownCall]
) -> list[Any]:
    """Sort by data flow alone, where threads or rebased views have mixed up the sequence numbers."""
    done: set[Any] = set(leaves)
    result = []
    for start in inner:
        stack = [start]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            children = [calls.get(child, child) for child, _ in edges[node] if child is not None]
            waiting = [child for child in children if child not in done]
            if waiting:
                stack.extend(waiting)
            else:
                done.add(node)
                result.append(node)
                stack.pop()
    return result
