"""Find recurrences in an autograd graph by data flow alone: no name, class or position of an argument is looked at.

A weight that is used again on what it made before marks a recurrence: each use begins a step. What crosses from one
step to the next, taken as the smallest set of tensors that separates them, is the state. Where nothing trainable lies
in the chain, the uses of an input projection number the steps instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from gradscope.capture.calls.cut import smallest_cut
from gradscope.capture.calls.graph import Graph

#: Fewer steps than this cannot be told from ordinary reuse.
MIN_STEPS = 3

#: A tensor: index of the node that made it, and its place among that node's outputs.
Place = tuple[int, int]

#: Operations that rearrange a tensor without computing anything: a state is looked for below them.
REARRANGES = (
    *("CatBackward", "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "TransposeBackward", "TBackward"),
    *("PermuteBackward", "SqueezeBackward", "UnsqueezeBackward", "ExpandBackward", "CloneBackward", "ToCopyBackward"),
    *("SelectBackward", "SliceBackward", "UnbindBackward", "SplitBackward", "SplitWithSizesBackward", "ChunkBackward"),
    *("AliasBackward", "NativeDropoutBackward", "IndexSelectBackward", "IndexBackward", "AsStridedBackward"),
    *("NarrowBackward", "StackBackward", "ContiguousBackward"),
)

# Products with a weight: where a state enters one of these, it is the hidden state.
_PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear", "Convolution", "Mv", "Addmv", "Dot", "Addbmm", "Embedding")

_SLICES = ("SelectBackward", "UnbindBackward", "SliceBackward", "SplitBackward", "SplitWithSizesBackward", "Narrow")

# What a sum over timesteps is made of.
_ADDS = (
    *("AddBackward", "SubBackward", "ViewBackward", "SumBackward", "MeanBackward", "SqueezeBackward", "CloneBackward"),
    *("CopySlices", "IndexPutBackward", "SelectScatterBackward", "SliceScatterBackward", "CatBackward"),
)


@dataclass(eq=False)
class Recurrence:
    """A recurrence that was found.

    Attributes
    ----------
    anchors : tuple of int
        Indices of the leaves, sources or calls whose uses mark the steps.
    steps : int
    states : list of list of (int, int) or None
        Of each state, the tensor at every step; None where the graph has none.
    roles : tuple of str
        ``hidden``, ``cell``, or ``state_1`` ... where that cannot be told.
    entries : list of list of (int, int)
        Of each step, the tensors that enter from outside the loop, in the same order; empty where there are none.
    initial : list of (int, int) or None
        Of each state, the tensor that stands in its place before the first step.
    direct : list of list of (int, int)
        Of each step, who consumes the hidden state outside of the loop, and at which place. None where what is made of
        the state both leaves the loop and is fed back.
    by_depth : bool
        Whether the steps are applications in depth: nothing enters from outside after the first.
    level : list of int
        The step of every node of the graph; 0 for those beside the recurrence.
    rare : tuple of int
        Weights that take part in some of the steps only: what they alone make is not followed.
    """

    anchors: tuple[int, ...]
    steps: int
    states: list[list[Place | None]]
    roles: tuple[str, ...]
    entries: list[list[Place]] = field(default_factory=list)
    initial: list[Place | None] = field(default_factory=list)
    direct: list[list[Place]] | None = None
    by_depth: bool = False
    level: list[int] = field(default_factory=list, repr=False)
    rare: tuple[int, ...] = ()


@dataclass(frozen=True)
class NearMiss:
    """Weights that are used again on what they made, in a way that could not be followed, and why."""

    anchors: tuple[int, ...]
    steps: int
    reason: str
    marks: frozenset[int] = frozenset()


UNMATCHED = "its steps cannot be matched: the operations between them differ from step to step"
RARE = "it takes part in some of the steps only, and what it alone makes is not followed"
BRANCHED = "its uses form a tree, not one chain of steps"
DISTINCT = "each step has weights of its own"


@dataclass(frozen=True, eq=False)
class _Anchor:
    """Something that is used several times, and where."""

    index: int
    uses: frozenset[int]
    parts: int = 0


@dataclass(eq=False)
class _Steps:
    """The nodes of a graph, numbered by the step they belong to; 0 for what comes before or beside."""

    graph: Graph
    anchors: tuple[_Anchor, ...]
    level: list[int]
    marks: frozenset[int]
    last: int
    starts: frozenset[int] = frozenset()
    rare: tuple[int, ...] = ()
    at: dict[int, list[int]] = field(default_factory=dict)
    reaches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Collect the nodes of every step, and find how far on each node leads."""
        level, users = self.level, self.graph.users
        at = defaultdict(list)
        for index in range(self.graph.first_inner, len(level)):
            if level[index]:
                at[level[index]].append(index)
        self.at = dict(at)
        reaches = [0] * len(level)
        for index in range(len(level) - 1, self.graph.first_inner - 1, -1):
            if level[index] == 0:
                continue
            found = 0
            for user, _ in users[index]:
                reached = reaches[user]
                if user in self.marks and level[user] > reached:
                    reached = level[user]
                found = max(found, reached)
            reaches[index] = found
        self.reaches = reaches

    def lives(self, index: int) -> bool:
        """Whether what a node makes is used by a later step."""
        return self.reaches[index] > self.level[index] > 0

    def marked(self, step: int) -> list[int]:
        """Return where a step begins, in forward order."""
        starts = self.starts or self.marks
        return [index for index in self.at.get(step, ()) if index in starts]


def find(graph: Graph) -> tuple[list[Recurrence], list[NearMiss]]:
    """Find every recurrence of a graph, and what came close to being one."""
    found: list[Recurrence] = []
    misses: list[NearMiss] = []
    taken: set[int] = set()
    chains, beside = _chains(graph, _weights(graph))
    for steps in _groups(graph, chains, beside):
        _settle(steps, found, misses, taken)
    for steps in _numbered_by_input(graph, [a for a in beside if a.index < graph.first_inner], taken):
        _settle(steps, found, misses, taken)
    sources = [anchor for anchor in _sources(graph) if not anchor.uses & taken]
    chains, beside = _chains(graph, sources) if sources else ([], [])
    for steps in (*_groups(graph, chains, []), *_numbered_by_input(graph, beside, taken)):
        # The parts of one tensor are no timesteps where they do not lead to a state at each.
        if not steps.marks & taken and _shows_all(_recurrence(steps)):
            if max(anchor.parts for anchor in steps.anchors) > steps.last:
                misses.append(NearMiss(tuple(a.index for a in steps.anchors), steps.last, UNMATCHED))
            else:
                _settle(steps, found, [], taken)
    misses = [miss for miss in misses if not miss.marks & taken_by(found, graph)]
    return _unique(found), misses


def _settle(steps: _Steps, found: list[Recurrence], misses: list[NearMiss], taken: set[int]) -> None:
    """Find the states of numbered steps; note what the recurrence takes up, so that nothing is found twice."""
    graph = steps.graph
    taken.update(index for index in range(graph.first_inner, len(steps.level)) if steps.lives(index))
    taken.update(steps.marks)
    taken.update(steps.at.get(steps.last, ()) if not steps.starts else ())
    anchors = tuple(anchor.index for anchor in steps.anchors)
    if all(graph.is_call(anchor) for anchor in anchors):
        return
    result = _recurrence(steps)
    if isinstance(result, str):
        misses.append(NearMiss(anchors, steps.last, result, steps.marks))
    elif result is not None:
        found.append(result)
        taken.update(_below_last(steps, result))


def _shows_all(found: Recurrence | str | None) -> bool:
    return isinstance(found, Recurrence) and all(None not in state[:-1] for state in found.states)


def taken_by(found: list[Recurrence], graph: Graph) -> set[int]:
    """Return the nodes between the first and the last state of recurrences."""
    inside: set[int] = set()
    for one in found:
        last = max(place[0] for state in one.states for place in state if place is not None)
        inside.update(index for index in range(graph.first_inner, last + 1) if one.level[index])
    return inside


def _below_last(steps: _Steps, found: Recurrence) -> set[int]:
    """Return the nodes of the last step that make its states."""
    todo = [state[-1][0] for state in found.states if state[-1] is not None]
    seen = set(todo)
    while todo:
        for child in steps.graph.inner(todo.pop()):
            if child not in seen and steps.level[child] == steps.last:
                seen.add(child)
                todo.append(child)
    return seen


def _unique(found: list[Recurrence]) -> list[Recurrence]:
    """Keep one of several that found the same tensors: the one with the most steps, then with the fewest states."""
    kept: list[Recurrence] = []
    seen: set[Place] = set()
    for one in sorted(found, key=lambda r: (-r.steps, len(r.states))):
        places = {place for state in one.states for place in state if place is not None}
        if not places & seen:
            kept.append(one)
            seen |= places
    return sorted(kept, key=lambda r: min(p for state in r.states for p in state if p is not None))


# -- what is used several times ------------------------------------------------------------------------------------


def _weights(graph: Graph) -> list[_Anchor]:
    """Return weights with at least three uses, and known layers with as many calls."""
    found, calls = [], defaultdict(list)
    for index, users in enumerate(graph.users):
        if graph.is_call(index):
            calls[graph.names[index]].append(index)
        elif users and graph.of_weights[index] and (index < graph.first_inner or len(users) >= MIN_STEPS):
            found.append(_Anchor(index, _effective_uses(graph, index)))
    found += [_Anchor(members[0], frozenset(members)) for members in calls.values()]
    return [anchor for anchor in found if len(anchor.uses) >= MIN_STEPS]


def _sources(graph: Graph) -> list[_Anchor]:
    """Return tensors that are cut into timesteps."""
    found = []
    for index in range(len(graph.nodes)):
        if graph.of_weights[index]:
            continue
        sliced = sum(graph.names[user].startswith(_SLICES) for user, _ in graph.users[index])
        parted = graph.names[index].startswith(("Unbind", "Split"))
        if sliced >= MIN_STEPS or (parted and len(graph.users[index]) >= MIN_STEPS):
            found.append(_one_use_a_slice(graph, index))
    return [anchor for anchor in found if len(anchor.uses) >= MIN_STEPS]


def _one_use_a_slice(graph: Graph, index: int) -> _Anchor:
    """Return the uses of the slices of a tensor; none where they are not so many slices as links of a chain."""
    slices = {_which_slice(graph, index, user, at) for user, at in graph.users[index]}
    uses = frozenset(use for use in _effective_uses(graph, index) if not graph.names[use].startswith("Stack"))
    level = _levels(graph, [dict.fromkeys(uses, 1)], add=True)[:, 0]
    return _Anchor(index, uses if int(level.max()) <= len(slices) + 1 else frozenset(), len(slices))


def _which_slice(graph: Graph, index: int, user: int, at: int) -> tuple[object, ...]:
    """Tell the slices of a tensor apart; the same one may be taken twice."""
    if not graph.names[user].startswith(_SLICES):
        return "output", graph.inputs[user][at][1]
    saved = [getattr(graph.nodes[user], f"_saved_{name}", None) for name in ("dim", "index", "start", "end")]
    return ("slice", *saved) if saved[1:] != [None] * 3 else ("slice", user)


def _effective_uses(graph: Graph, index: int) -> frozenset[int]:
    """Return the nodes at which something meets something else: past slices, transposes, 1 − z."""
    found, todo, seen = set(), [user for user, _ in graph.users[index]], set()
    inputs, names, users = graph.inputs, graph.names, graph.users
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        consumed = inputs[node]
        alone = len(consumed) == 1 or sum(child >= 0 for child, _ in consumed) == 1
        if (alone and not names[node].startswith(_PRODUCTS)) or graph.of_weights[node]:
            todo.extend([user for user, _ in users[node]])
        else:
            found.add(node)
    return frozenset(found)


# -- steps ---------------------------------------------------------------------------------------------------------


def _levels(graph: Graph, marked: Sequence[dict[int, int]], add: bool) -> np.ndarray:
    """Return, per node and set of marks, the longest chain of marks at or below it; or the largest number."""
    level = np.zeros((len(graph.nodes), len(marked)), dtype=np.int32)
    at: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for column, numbers in enumerate(marked):
        for index, number in numbers.items():
            at[index].append((column, number))
    first = graph.first_inner
    for index in range(first, len(graph.nodes)):
        below = [child for child, _ in graph.inputs[index] if child >= first]
        row = level[index]
        if len(below) == 1:
            row[:] = level[below[0]]
        elif below:
            level[below].max(axis=0, out=row)
        for column, number in at.get(index, ()):
            row[column] = row[column] + 1 if add else max(row[column], number)
    return level


def _chains(graph: Graph, anchors: list[_Anchor]) -> tuple[list[tuple[_Anchor, np.ndarray]], list[_Anchor]]:
    """Separate anchors whose uses depend on each other, each with its levels, from those used side by side."""
    level = _levels(graph, [dict.fromkeys(anchor.uses, 1) for anchor in anchors], add=True)
    deepest = level.max(axis=0)
    chains: list[tuple[_Anchor, np.ndarray]] = []
    beside: list[_Anchor] = []
    split: list[_Anchor] = []
    for column, anchor in enumerate(anchors):
        if deepest[column] < MIN_STEPS:
            beside.append(anchor)
        elif _only_adds_up(graph, anchor, level[:, column]):
            continue
        elif sum(level[use, column] == 1 for use in anchor.uses) >= MIN_STEPS:
            split += [replace(a, uses=_in_chain(graph, a)) for a in _separate(graph, anchor)]
        elif len(anchor.uses) > deepest[column]:
            split.extend(_separate(graph, anchor))
        else:
            chains.append((anchor, level[:, column]))
    if split:
        level = _levels(graph, [dict.fromkeys(anchor.uses, 1) for anchor in split], add=True)
        chains += [(a, level[:, column]) for column, a in enumerate(split) if level[:, column].max() >= MIN_STEPS]
    return chains, beside


def _separate(graph: Graph, anchor: _Anchor) -> Iterator[_Anchor]:
    """Separate independent sequences that run through the same weights."""
    parent = {use: use for use in anchor.uses}

    def root(use: int) -> int:
        while parent[use] != use:
            use = parent[use]
        return use

    nothing: frozenset[int] = frozenset()
    nearest: dict[int, frozenset[int]] = {}
    for index in range(graph.first_inner, len(graph.nodes)):
        below = [found for child in graph.inner(index) if (found := nearest.get(child, nothing))]
        union = below[0] if len(below) == 1 else frozenset().union(*below)
        if index in anchor.uses:
            for use in union:
                parent[root(use)] = root(index)
            union = frozenset((index,))
        if union:
            nearest[index] = union
    sequences = defaultdict(set)
    for use in anchor.uses:
        sequences[root(use)].add(use)
    for uses in sequences.values():
        yield replace(anchor, uses=frozenset(uses))


def _only_adds_up(graph: Graph, anchor: _Anchor, level: np.ndarray) -> bool:
    """Whether the uses of an anchor do nothing but add up: the losses, or the outputs, of all timesteps."""
    if not all(graph.names[use].startswith(_ADDS) for use in anchor.uses):
        return False
    later = [use for use in anchor.uses if level[use] > 1]
    return bool(later) and set(later) <= _accumulators(graph, level, set(anchor.uses))


def _in_chain(graph: Graph, anchor: _Anchor) -> frozenset[int]:
    """Leave out uses beside the chain: a weight, or a slice of a source, that meets the input as well as the state."""
    level = _levels(graph, [dict.fromkeys(anchor.uses, 1)], add=True)[:, 0]
    first = [use for use in anchor.uses if level[use] == 1]
    common = Counter(graph.names[use] for use in first)
    return anchor.uses - {use for use in first if len(first) >= MIN_STEPS and common[graph.names[use]] >= MIN_STEPS}


def _groups(graph: Graph, chains: list[tuple[_Anchor, np.ndarray]], beside: list[_Anchor]) -> Iterator[_Steps]:
    """Join anchors whose uses alternate: they belong to the same step of one recurrence."""
    waiting = list(range(len(chains)))
    uses = [np.fromiter(anchor.uses, dtype=np.int64) for anchor, _ in chains]

    def alternate(a: int, b: int) -> bool:
        here, there = chains[a][1][uses[b]], chains[b][1][uses[a]]
        return all(len(set(at[at > 0].tolist())) >= 2 for at in (here, there))

    while waiting:
        group = [waiting.pop(0)]
        for member in group:
            joined = [other for other in waiting if alternate(member, other)]
            waiting = [other for other in waiting if other not in joined]
            group += joined
        yield _number(graph, [chains[member] for member in group], beside)


def _number(graph: Graph, group: list[tuple[_Anchor, np.ndarray]], beside: list[_Anchor]) -> _Steps:
    """Number the steps of a group of anchors, as often as something enters from outside, where that is seen."""
    longest = {id(anchor): int(level.max()) for anchor, level in group}
    # A weight that is used several times a step may make a longer chain than there are steps.
    single = [anchor for anchor, _ in group if longest[id(anchor)] == len(anchor.uses)] or [
        anchor for anchor, _ in group
    ]
    lengths = [longest[id(anchor)] for anchor in single]
    most = max(lengths)
    finest = next(level for anchor, level in group if longest[id(anchor)] == most)
    marks = frozenset(use for anchor, _ in group for use in anchor.uses)
    entering = [(other, e) for other in beside if (e := _entered_at(graph, other, finest, marks)) is not None]
    counts = [len(other.uses) for other, _ in entering if most % len(other.uses) == 0]
    # What is used less often numbers the steps only where it is used evenly: once every so many uses of the others.
    even = [count for count in lengths if most % count == 0]
    steps = max(counts) if counts else most if _data_enters_each(graph, finest, most) else min(even)
    # Several applications may make up one step: those of a solver between two inputs.
    chosen = [(anchor, level) for anchor, level in group if longest[id(anchor)] % steps == 0]
    numbered = [-(-level // (longest[id(anchor)] // steps)) for anchor, level in chosen]
    numbered += _of_inputs(graph, [order for _, order in entering if len(order) == steps])
    level = np.minimum(np.max(numbered, axis=0), steps)
    # Where a step begins again and again, only its first use is a mark.
    exact = [anchor for anchor, _ in chosen if longest[id(anchor)] == steps]
    uses = {use for anchor in exact for use in anchor.uses}
    for anchor, _ in chosen if not exact else ():
        uses |= set(anchor.uses)
    anchors = tuple(exact or [anchor for anchor, _ in chosen])
    starts = frozenset(_first_of_each_step(uses, level)) if not exact else frozenset()
    rare = tuple(a.index for a, _ in group if a not in [c for c, _ in chosen] and len(a.uses) < steps - 1)
    return _Steps(graph, anchors, level.tolist(), frozenset(uses), steps, starts, rare)


def _data_enters_each(graph: Graph, level: np.ndarray, last: int) -> bool:
    """Whether data without a graph enters at every link of a chain: no solver that iterates between two inputs."""
    entered = set()
    for index in range(graph.first_inner, len(graph.nodes)):
        gathers = level[index] and graph.names[index].startswith(("Cat", "Stack"))
        if gathers and any(child < 0 for child, _ in graph.inputs[index]):
            entered.add(int(level[index]))
    return len(entered) >= last - 1


def _of_inputs(graph: Graph, orders: list[dict[int, int]]) -> list[np.ndarray]:
    """Return the levels by the uses of input projections; of those in a row, by the last one."""
    level = _levels(graph, orders, add=False)
    last = [
        column
        for column in range(len(orders))
        if not any(
            level[use, column]
            for other in range(len(orders))
            if other != column
            for use in orders[other].keys() - orders[column].keys()
        )
    ]
    return [level[:, column] for column in last]


def _first_of_each_step(uses: set[int], level: np.ndarray) -> Iterator[int]:
    seen = set()
    for use in sorted(uses):
        if level[use] not in seen:
            seen.add(level[use])
            yield use


def _entered_at(graph: Graph, other: _Anchor, level: np.ndarray, marks: frozenset[int]) -> dict[int, int] | None:
    """Number the uses of a projection by the steps that what they make enters; None where that is not one by one.

    The first step has no past, and the last nothing after it: what enters them may be seen a step early or not at all.
    """
    if len(other.uses) < MIN_STEPS or any(level[use] for use in other.uses):
        return None
    for at_marks in (False, True):
        entered = {use: _enters(graph, use, level, marks if at_marks else None) for use in other.uses}
        unseen = [use for use, at in entered.items() if at is None]
        if len(unseen) > 1:
            continue
        order = sorted(entered, key=lambda use: (entered[use] is None, entered[use], use))
        inner = [entered[use] for use in (order[1:-1] if len(order) > MIN_STEPS else order)]
        strides = {later - earlier for earlier, later in pairwise(inner) if earlier is not None and later is not None}
        if strides == {int(level.max()) // len(order)}:
            return {use: position for position, use in enumerate(order, start=1)}
    return None


def _enters(graph: Graph, use: int, level: np.ndarray, marks: frozenset[int] | None) -> int | None:
    """Return the first level at which what a node makes joins a chain, or one of its marks; None if it never does."""
    todo, seen, first = [use], {use}, None
    while todo and len(seen) < 256:
        for user, _ in graph.users[todo.pop()]:
            if user in seen:
                continue
            seen.add(user)
            joins = level[user] if marks is None else user in marks
            if joins:
                first = int(level[user]) if first is None else min(first, int(level[user]))
            else:
                todo.append(user)
    return first


def _numbered_by_input(graph: Graph, beside: list[_Anchor], taken: set[int]) -> Iterator[_Steps]:
    """Number steps by the uses of input projections, where nothing trainable lies in the chain."""
    if not beside:
        return
    level = _levels(graph, [{use: i + 1 for i, use in enumerate(sorted(a.uses))} for a in beside], add=False)
    waiting = sorted(range(len(beside)), key=lambda column: -min(beside[column].uses))
    # The last in forward order is the deepest: what it explains is not part of those before.
    while waiting:
        column = waiting.pop(0)
        together, of = [column], level[:, column]
        joins = _chained_joins(graph, of, taken)
        for other in list(waiting):
            # Two gates of one step: neither depends on the other, and they meet in the same places.
            a, b = beside[column], beside[other]
            if len(a.uses) == len(b.uses) and not level[min(a.uses), other] and not level[min(b.uses), column]:
                both = np.maximum(of, level[:, other])
                more = _chained_joins(graph, both, taken)
                alone = _chained_joins(graph, level[:, other], taken)
                if joins and more and (alone & joins or _take_turns(graph, joins, alone)):
                    together.append(other)
                    waiting.remove(other)
                    joins, of = more, both
        if len({int(of[index]) for index in joins}) >= MIN_STEPS - 1:
            last = int(max(of[index] for index in joins))
            chosen = tuple(beside[member] for member in together)
            starts = frozenset(use for anchor in chosen for use in anchor.uses)
            yield _Steps(graph, chosen, np.minimum(of, last).tolist(), frozenset(joins), last, starts)


def _take_turns(graph: Graph, some: set[int], others: set[int]) -> bool:
    """Whether what is made at some places leads to the others, and back."""
    some, others = some - others, others - some
    if not some or not others:
        return False
    middle = sorted(some)[len(some) // 2]
    there = _next_of(graph, middle, others)
    return there is not None and _next_of(graph, there, some) is not None


def _next_of(graph: Graph, start: int, wanted: set[int]) -> int | None:
    todo, seen = deque([start]), {start}
    while todo and len(seen) < 256:
        for user, _ in graph.users[todo.popleft()]:
            if user in wanted:
                return user
            if user not in seen:
                seen.add(user)
                todo.append(user)
    return None


def _chained_joins(graph: Graph, level: np.ndarray, taken: set[int]) -> set[int]:
    """Return the nodes at which what an earlier step made meets the next one, sums apart."""
    numbered = np.flatnonzero(level >= 2).tolist()
    joins = {index for index in numbered if index not in taken and _joins(graph, level, index)}
    return joins - _accumulators(graph, level, joins)


def _joins(graph: Graph, level: np.ndarray, index: int) -> bool:
    """Whether a node brings together the step before and this one."""
    below = [int(level[child]) for child in graph.inner(index)]
    return len(below) > 1 and max(below) == level[index] and level[index] - 1 in below


def _accumulators(graph: Graph, level: np.ndarray, joins: set[int]) -> set[int]:
    """Return the joins that only add up: from one step to the next nothing but sums."""
    found = set()
    for index in joins:
        todo, seen = [index], {index}
        while todo and graph.names[index].startswith(_ADDS):
            for child in graph.inner(todo.pop()):
                if child in joins and level[child] < level[index]:
                    found.add(index)
                    # The first of a chain of sums has none before it.
                    found.add(child)
                elif child not in seen and graph.names[child].startswith(_ADDS):
                    seen.add(child)
                    todo.append(child)
    return found


# -- states --------------------------------------------------------------------------------------------------------


def _recurrence(steps: _Steps) -> Recurrence | str | None:
    """Find the states of numbered steps; a reason where they cannot be followed, None where there is nothing."""
    if _has_own_weights(steps):
        return DISTINCT
    if _branches(steps):
        return BRANCHED
    steps_as_given = steps
    template = _template(steps)
    for uses in range(2, 7) if template is None and not steps.starts else ():
        # The weight may be used several times a step, one upon the other.
        if steps.last % uses == 0 and steps.last // uses >= MIN_STEPS:
            steps = _grouped(steps, uses)
            template = _template(steps)
            if template is not None:
                break
            steps = steps_as_given
    if template is None:
        return UNMATCHED
    middle, places = template
    places = [_below_rearrangements(steps, place, middle) for place in places]
    places = list(dict.fromkeys(places))
    places = [place for place in places if not steps.graph.is_call(place[0])]
    if not places:
        return None
    followed = [state for place in places if (state := _follow(steps, middle, place)) is not None]
    if len(followed) < len(places):
        return UNMATCHED
    states = sorted(followed, key=lambda state: next(place for place in state if place is not None))
    found = Recurrence(tuple(a.index for a in steps.anchors), steps.last, states, _roles(steps, middle, states))
    entries = _entries(steps, states)
    return replace(
        found,
        entries=entries,
        initial=[_initial(steps, state) for state in states],
        direct=_direct(steps, found),
        by_depth=not _something_enters(steps) and not _something_leaves(steps),
        level=steps.level,
        rare=steps.rare,
    )


def _grouped(steps: _Steps, uses: int) -> _Steps:
    """Make one step of several."""
    level = [-(-number // uses) for number in steps.level]
    starts = frozenset(_first_of_each_step(set(steps.marks), np.array(level)))
    return _Steps(steps.graph, steps.anchors, level, steps.marks, steps.last // uses, starts)


def _has_own_weights(steps: _Steps) -> bool:
    """Whether steps use leaves on the state's path that no other step uses: layers in a row, not a recurrence."""
    graph, with_own = steps.graph, 0
    for step in range(2, steps.last):
        for index in steps.at.get(step, ()):
            if not steps.lives(index):
                continue
            leaves = {c for c, _ in graph.inputs[index] if 0 <= c < graph.first_inner}
            leaves |= {
                c
                for k in graph.inner(index)
                if steps.level[k] == 0
                for c, _ in graph.inputs[k]
                if 0 <= c < graph.first_inner
            }
            if any(_is_matrix(graph, leaf) and _serves_one_step(steps, leaf) for leaf in leaves):
                with_own += 1
                break
    return with_own >= 2


def _is_matrix(graph: Graph, leaf: int) -> bool:
    return graph.of_weights[leaf] and graph.leaves[leaf].dim() > 1


def _serves_one_step(steps: _Steps, leaf: int) -> bool:
    """Whether a weight is used in a single step, however it is rearranged before."""
    graph, todo, seen, served = steps.graph, [leaf], set(), set()
    while todo:
        for user, _ in graph.users[todo.pop()]:
            if user in seen:
                continue
            seen.add(user)
            if graph.of_weights[user]:
                todo.append(user)
            else:
                served.add(user)
        if len(served) > 1:
            return False
    return True


def _branches(steps: _Steps) -> bool:
    """Whether fewer and fewer uses meet, as in a tree."""
    counts = [len(steps.marked(step)) for step in range(1, steps.last + 1)]
    shrinks = all(later <= earlier for earlier, later in pairwise(counts))
    return shrinks and counts[0] >= 2 * counts[-1] and len(set(counts)) > 2


def _template(steps: _Steps) -> tuple[int, list[Place]] | None:
    """Return a step in the middle and the tensors that cross from it to the next, where the step after agrees."""
    names = steps.graph.names

    def gathers(index: int) -> bool:
        return names[index].startswith(("CatBackward", "StackBackward"))

    order = sorted(range(2, max(steps.last - 1, 3)), key=lambda step: abs(step - steps.last // 2))
    # Two steps in a row must agree: to the letter, else in their operations, which matching by paths may do with.
    cuts: dict[int, list[Place]] = {}
    exact: dict[int, tuple[tuple[str, int, int], ...]] = {}
    for step in order[:8]:
        cut = sorted(smallest_cut(steps.graph, steps.at.get(step, []), steps.level, steps.lives, gathers))
        marked = steps.marked(step)
        if not cut or not marked:
            continue
        cuts[step] = cut
        exact[step] = tuple((names[index], nr, index - marked[0]) for index, nr in cut)
        if steps.last <= MIN_STEPS + 1 or exact[step] in (exact.get(step - 1), exact.get(step + 1)):
            return step, cut
    for step, cut in cuts.items():
        operations = sorted(names[index] for index, _ in cut)
        for other in (step - 1, step + 1):
            if other in cuts and operations == sorted(names[index] for index, _ in cuts[other]):
                return step, cut
    return None


def _below_rearrangements(steps: _Steps, place: Place, step: int) -> Place:
    """Follow a tensor down to where it was computed, as long as it is merely rearranged."""
    graph = steps.graph
    while graph.names[place[0]].startswith(REARRANGES):
        below = [(c, nr) for c, nr in graph.inputs[place[0]] if c >= graph.first_inner and steps.level[c] == step]
        if len(below) != 1:
            break
        place = below[0]
    return place


def _follow(steps: _Steps, middle: int, place: Place) -> list[Place | None] | None:
    """Return the tensor that stands in a state's place at every step; None where the last steps are mixed up."""
    while True:
        match = _Match(steps, middle, place)
        found = [place if step == middle else match.at(step) for step in range(1, steps.last + 1)]
        if match.confused:
            return None
        below = _scaled(steps, place, middle)
        if found[-1] is not None or below is None:
            return found
        # α·h is only made where there is a next step: the state is h.
        place = below


def _scaled(steps: _Steps, place: Place, step: int) -> Place | None:
    """Return what a tensor is a multiple of, by a constant, where that is a single tensor of the same step."""
    graph = steps.graph
    if not graph.names[place[0]].startswith(("Mul", "Div", "Neg", "Rsub", *_PRODUCTS)):
        return None
    below = [(c, nr) for c, nr in graph.inputs[place[0]] if c >= 0]
    if len(below) == 1 and below[0][0] >= graph.first_inner and steps.level[below[0][0]] == step:
        return below[0]
    return None


class _Match:
    """Recognise a tensor of one step in another: by the operations since the step began, or on the way to it."""

    def __init__(self, steps: _Steps, step: int, place: Place) -> None:
        self._steps, self._place = steps, place
        self.confused = False
        first = steps.marked(step)
        self._from = max((mark for mark in first if mark <= place[0]), default=first[0])
        self._nth = first.index(self._from)
        self._marks = len(first)
        names = steps.graph.names
        self._window = names[self._from : place[0] + 1]
        self._path = self._way(step)

    def at(self, step: int) -> Place | None:
        """Return the tensor of a step that stands in the place of the one looked for; None if that cannot be told."""
        marks, graph = self._steps.marked(step), self._steps.graph
        if step == self._steps.last and (unlike := self._unlike(step)):
            # Of fewer, it may be another that is missing; of more, the last steps cannot be told apart.
            self.confused = unlike > 0
            return None
        if len(marks) == self._marks:
            start = marks[self._nth]
            end = start + len(self._window)
            if graph.names[start:end] == self._window and self._fits(end - 1, step):
                return end - 1, self._place[1]
        found = {end for mark in marks for end in self._up(mark)}
        fitting = [end for end in found if self._fits(end, step)]
        return (fitting[0], self._place[1]) if len(fitting) == 1 else None

    def _unlike(self, step: int) -> int:
        """Return how many more nodes of this kind a step has than the one that is known."""
        return len(self._alike(step)) - len(self._alike(self._steps.level[self._place[0]]))

    def _alike(self, step: int) -> list[int]:
        kind = self._kind(self._place[0])
        return [index for index in self._steps.at.get(step, ()) if self._kind(index) == kind]

    def _fits(self, index: int, step: int) -> bool:
        """Whether a node makes of its step what the one that is looked for makes; the first step has no past."""
        return self._steps.level[index] == step and (step == 1 or self._kind(index) == self._kind(self._place[0]))

    def _kind(self, index: int, depth: int = 2) -> tuple[object, ...]:
        """Return what a node does, to what, and with which weights."""
        graph = self._steps.graph
        consumed: list[object] = []
        for child, _ in graph.inputs[index]:
            if child >= 0 and graph.of_weights[child]:
                consumed.append(self._weight(child))
            elif child < graph.first_inner or not depth or self._steps.level[child] != self._steps.level[index]:
                consumed.append("")
            else:
                consumed.append(self._kind(child, depth - 1))
        return (graph.names[index], *consumed)

    def _weight(self, index: int) -> int:
        graph = self._steps.graph
        while index >= graph.first_inner:
            index = graph.inputs[index][0][0]
        return index

    def _way(self, step: int) -> list[tuple[str, int]]:
        """Return names and places from a mark of the step up to the tensor, along a shortest path."""
        graph, steps = self._steps.graph, self._steps
        came: dict[int, tuple[int, int] | None] = {self._place[0]: None}
        todo, marks = [self._place[0]], set(steps.marked(step))
        for index in todo:
            if index in marks:
                way = []
                while (above := came[index]) is not None:
                    index, place = above
                    way.append((graph.names[index], place))
                return way
            for place, (child, _) in enumerate(graph.inputs[index]):
                if child >= graph.first_inner and child not in came and steps.level[child] == step:
                    came[child] = (index, place)
                    todo.append(child)
        return []

    def _up(self, mark: int) -> list[int]:
        """Follow the way up from a mark; in the first step, where nothing comes before, it may begin further up."""
        graph = self._steps.graph
        for begun in range(len(self._path) + 1):
            begins = graph.names[self._from] if begun == 0 else self._path[begun - 1][0]
            if graph.names[mark] != begins:
                continue
            ends = [mark]
            for name, place in self._path[begun:]:
                ends = [u for end in ends for u, at in graph.users[end] if at == place and graph.names[u] == name]
            if ends:
                return ends
        return []


def _roles(steps: _Steps, middle: int, states: list[list[Place | None]]) -> tuple[str, ...]:
    """Tell the state that enters the recurrent weight from the one that is carried past it, or number them."""
    if len(states) == 1:
        return ("hidden",)
    here = [state[middle - 1] for state in states]
    entering = [_enters_weight(steps, place, middle, here) for place in here]
    if sum(entering) == 1 and len(states) == 2:
        return tuple("hidden" if enters else "cell" for enters in entering)
    roles, number = [], 0
    for enters in entering:
        if enters and sum(entering) == 1:
            roles.append("hidden")
        else:
            number += 1
            roles.append(f"state_{number}")
    return tuple(roles)


def _enters_weight(steps: _Steps, place: Place | None, step: int, states: list[Place | None]) -> bool:
    """Whether a state meets a product with a weight first thing in the next step, not by way of another state."""
    if place is None:
        return False
    graph, todo, seen = steps.graph, [place], {place}
    while todo:
        index, nr = todo.pop()
        for user, at in graph.users[index]:
            if graph.inputs[user][at][1] != nr:
                continue
            if user in steps.marks and steps.level[user] > step:
                if graph.names[user].startswith(_PRODUCTS) or graph.is_call(user):
                    return True
            elif steps.level[user] == step:
                made = {(user, graph.inputs[other][place][1]) for other, place in graph.users[user]} - seen
                made -= {state for state in states if state is not None}
                seen |= made
                todo.extend(made)
    return False


# -- what enters and leaves -----------------------------------------------------------------------------------------


def _something_enters(steps: _Steps) -> bool:
    """Whether anything but weights enters a step in the middle: data without a graph, or a tensor from outside."""
    graph = steps.graph
    for index in steps.at.get(steps.last // 2 + 1, ()):
        for child, _ in graph.inputs[index]:
            if child >= graph.first_inner and steps.level[child] == 0 and not graph.of_weights[child]:
                return True
            if child < 0 and graph.names[index].startswith((*_PRODUCTS, "Cat", "Stack", "Mkldnn", "Cudnn")):
                return True
    return False


def _something_leaves(steps: _Steps) -> bool:
    """Whether what a step in the middle makes is used anywhere but in the next step."""
    middle = steps.at.get(steps.last // 2, ())
    return any(
        not steps.lives(user) and user not in steps.marks
        for index in middle
        if steps.lives(index)
        for user, _ in steps.graph.users[index]
    )


def _entries(steps: _Steps, states: list[list[Place | None]]) -> list[list[Place]]:
    """Return what enters each step from outside the loop and belongs to it alone: ∂L/∂x_t is taken there."""
    graph, level, first = steps.graph, steps.level, steps.graph.first_inner
    after = _after_states(steps, states)
    owner = [0] * len(graph.nodes)
    for index in range(len(graph.nodes) - 1, -1, -1):
        if not level[index]:
            serves = {level[u] + (u in after) if level[u] else owner[u] for u, _ in graph.users[index]}
            owner[index] = serves.pop() if len(serves) == 1 else 0

    def owned(place: Place) -> int:
        """Return the one step that a tensor from outside the loop serves; 0 for several."""
        index, nr = place
        if owner[index] or not graph.names[index].startswith(("Unbind", "Split")):
            return owner[index]
        takers = [user for user, at in graph.users[index] if graph.inputs[user][at][1] == nr]
        serves = {level[user] + (user in after) if level[user] else owner[user] for user in takers}
        return serves.pop() if len(serves) == 1 else 0

    by_step: dict[int, dict[tuple[str, ...], Place]] = defaultdict(dict)
    for index in range(first, len(graph.nodes)):
        step = level[index] + (index in after)
        if not level[index]:
            # The first step has no past to be told by.
            if owner[index] != 1:
                continue
            step = 1
        for child, nr in graph.inputs[index]:
            if 0 <= child < first and not graph.of_weights[child] and owner[child] == step:
                by_step[step].setdefault((graph.names[index], "leaf"), (child, nr))
            elif child >= first and level[child] == 0 and owned((child, nr)) == step:
                for way, place in _outermost(graph, (child, nr), owned, step):
                    by_step[step].setdefault((graph.names[index], *way), place)
    counted = range(2, steps.last + 1)
    common = set.intersection(*[set(by_step[step]) for step in counted]) if steps.last > 1 else set()
    entries = []
    for step in range(1, steps.last + 1):
        chosen = sorted(common & set(by_step[step]), key=lambda way: by_step[2][way])
        entries.append(list(dict.fromkeys(by_step[step][way] for way in chosen)))
    return entries if common else []


def _after_states(steps: _Steps, states: list[list[Place | None]]) -> set[int]:
    """Return the nodes that stand between the states of a step and the beginning of the next."""
    graph, found = steps.graph, set()
    for step in range(1, steps.last + 1):
        todo = [state[step - 1] for state in states]
        nodes = [place[0] for place in todo if place is not None]
        while nodes:
            for user, _ in graph.users[nodes.pop()]:
                if steps.level[user] == step and user not in found:
                    found.add(user)
                    nodes.append(user)
        found -= {place[0] for place in todo if place is not None}
    return found


def _outermost(
    graph: Graph, place: Place, owned: Callable[[Place], int], step: int
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Follow a tensor down through nodes that serve one step only; yield the last ones, but for rearranged weights."""
    todo: list[tuple[tuple[str, ...], Place]] = [((graph.names[place[0]],), place)]
    seen: set[Place] = set()
    while todo:
        way, (index, nr) = todo.pop()
        if (index, nr) in seen or len(seen) > 64:
            continue
        seen.add((index, nr))
        deeper = [(c, n) for c, n in graph.inputs[index] if c >= graph.first_inner and owned((c, n)) == step]
        if deeper:
            todo.extend(((*way, graph.names[c]), (c, n)) for c, n in deeper)
        elif not graph.of_weights[index]:
            yield way, (index, nr)


def _initial(steps: _Steps, state: list[Place | None]) -> Place | None:
    """Return the tensor that enters the first step where the state enters the second."""
    graph, first = steps.graph, state[0]
    if first is None or steps.last < 2:
        return None
    marks = steps.marked(1), steps.marked(2)
    if not marks[0] or not marks[1]:
        return None
    for user, at in graph.users[first[0]]:
        if graph.inputs[user][at][1] != first[1]:
            continue
        before = user - marks[1][0] + marks[0][0]
        if not graph.first_inner <= before < len(graph.nodes):
            continue
        ends = sorted((before, marks[0][0])), sorted((user, marks[1][0]))
        if graph.names[ends[0][0] : ends[0][1] + 1] == graph.names[ends[1][0] : ends[1][1] + 1]:
            place = graph.inputs[before][at] if at < len(graph.inputs[before]) else (-1, 0)
            if place[0] >= 0 and steps.level[place[0]] == 0:
                return place
    return None


def _direct(steps: _Steps, found: Recurrence) -> list[list[Place]] | None:
    """Return who consumes the hidden state outside of the loop; None if that cannot be told from what is fed back."""
    if "hidden" not in found.roles:
        return None
    graph = steps.graph
    states = {place for state in found.states for place in state if place is not None}
    hidden = found.states[found.roles.index("hidden")]
    result = []
    for step, place in enumerate(hidden, start=1):
        if place is None:
            return None
        outside, todo, seen = [], [], set()
        for user, at in graph.users[place[0]]:
            if graph.inputs[user][at][1] != place[1]:
                continue
            if step < found.steps and (steps.lives(user) or (user in steps.marks and steps.level[user] > step)):
                todo.append(user)
            else:
                outside.append((user, at))
        # Whatever is fed back must not leave the loop on its own.
        while todo:
            index = todo.pop()
            if index in seen or steps.level[index] > step:
                continue
            seen.add(index)
            if any((index, nr) in states for nr in range(2)):
                continue
            for user, _ in graph.users[index]:
                inside = steps.lives(user) or (user in steps.marks and steps.level[user] > step)
                if not inside and step < found.steps:
                    return None
                todo.append(user)
        result.append(outside)
    return result


def of_marks(graph: Graph, marked: Sequence[Place]) -> list[Recurrence]:
    """Return the sequences of a state that the user marked, each in the order of the graph."""
    by_node = {place[0]: place for place in marked}
    sequences = list(_separate(graph, _Anchor(-1, frozenset(by_node))))
    found = []
    for sequence in sorted(sequences, key=lambda s: min(s.uses)):
        places = [by_node[index] for index in sorted(sequence.uses)]
        level = _levels(graph, [dict.fromkeys(sequence.uses, 1)], add=True)[:, 0].tolist()
        found.append(Recurrence((), len(places), [list(places)], ("hidden",), initial=[None], level=level))
    return found
