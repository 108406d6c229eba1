"""Set up what takes the adjoints of a recurrence: its batch, the rows that are kept, and hooks on its states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradscope.capture.calls.found import FoundSequence
from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.prehook import Place as HookPlace
from gradscope.capture.calls.prehook import on_arrival, on_departure, on_leaf
from gradscope.capture.calls.recurrences.axes import UNBATCHED, batch_axis, changes_rows, rows_taken, way_on
from gradscope.capture.calls.recurrences.entering import tensors_of
from gradscope.capture.calls.recurrences.recurrence import UNMATCHED, Place, Recurrence
from gradscope.capture.layers.rows import sampled_rows
from gradscope.schema import SiteInfo

NO_BATCH = (
    "nothing shows which axis of its state is the batch: keep it first, h of shape (B, N), of size 1 for a "
    "single sequence"
)
NO_BATCH_IN_DEPTH = (
    "nothing shows which axis of its state is the batch, and which is time: mark the state, batch first, with "
    "gradscope.state"
)
IN_PLACE = "its state is written in place into a larger tensor: make a new tensor at each step to have it recorded"
RESIZED = "its batch changes from step to step in a way that cannot be followed (rows added, repeated or dropped)"


@dataclass(frozen=True, eq=False)
class _Laid:
    """How a state lies in its tensors: the batch axis, the shape without it, and the size of the batch at each step."""

    axis: int
    shape: tuple[int, ...]
    counts: list[int]


def open_found(
    graph: Graph, found: Recurrence, level: list[int], info: SiteInfo, use: int, samples: int | None
) -> FoundSequence | str | None:
    """Return what takes the adjoints of a recurrence; a reason where its batch cannot be followed.

    None where its state is a number, not a state of a batch: a sum of losses.
    """
    found, incomplete = _without_incomplete(found)
    first, last = _complete(found)
    if last - first < 2 and found.anchors:
        return UNMATCHED
    laid: list[_Laid] = []
    moves: list[list[Tensor | None]] = []
    for state in found.states:
        places = [place for place in state[first:last] if place is not None]
        one = _laid_out(graph, places, level, found)
        if not isinstance(one, _Laid):
            return one
        laid.append(one)
        followed = _followed(graph, places, level, one, found.ways)
        if isinstance(followed, str):
            return followed
        moves.append(followed)
    if not all(_alike_moved(moves[0], moved) for moved in moves):
        return RESIZED
    if len({one.counts[0] for one in laid}) > 1:
        return "its states disagree about the size of the batch"
    rows, whole, lengths = _rows(max((one.counts for one in laid), key=len), samples)
    moved = max(moves, key=len)
    at = _rows_at(rows, moved) if any(order is not None for order in moved) else []
    return FoundSequence(
        info=info,
        use=use,
        roles=found.roles,
        length=last - first,
        skipped=first,
        beyond=found.steps - last,
        axes=[one.axis for one in laid],
        rows=rows,
        rows_at=at,
        whole=whole and not at,
        lengths=lengths,
        shapes=[one.shape for one in laid],
        incomplete=incomplete,
    )


def _laid_out(graph: Graph, places: list[Place], level: list[int], found: Recurrence) -> _Laid | str | None:
    """Return how a state lies in its tensors; a reason where that cannot be told, None where it is a number."""
    if any(graph.names[index].startswith("CopySlices") for index, _ in places):
        return IN_PLACE
    middle = places[len(places) // 2 - 1] if len(places) > 1 else places[0]
    sizes = [graph.shape(place) for place in places]
    if not sizes[0] and found.anchors:
        return None
    axis = batch_axis(graph, middle, way_on(graph, middle, level, level[middle[0]]), level, found.by_depth)
    if axis is None:
        return NO_BATCH_IN_DEPTH if found.by_depth and len(sizes[0]) > 2 else NO_BATCH
    rest = {tuple(size[:axis] + size[axis + 1 :]) if axis >= 0 else size for size in sizes}
    if len(rest) > 1:
        return "the shape of its state changes from step to step"
    parts = (2,) if graph.nodes[middle[0]]._input_metadata[middle[1]].dtype.is_complex else ()
    return _Laid(axis, (*rest.pop(), *parts), [1 if axis == UNBATCHED else size[axis] for size in sizes])


def _rows(counts: list[int], samples: int | None) -> tuple[Tensor, bool, Tensor | None]:
    """Return the rows that are kept, whether they are all, and how long each lasts where the batch shrinks."""
    batch = counts[0]
    chosen = sampled_rows(batch, samples)
    rows = torch.tensor(chosen if chosen is not None else range(batch), device="cpu")
    lengths = None
    if counts[-1] != batch:
        lengths = (rows < torch.tensor(counts, device="cpu")[:, None]).sum(0)
    return rows, chosen is None, lengths


def _without_incomplete(found: Recurrence) -> tuple[Recurrence, tuple[str, ...]]:
    """Leave out states that the graph does not show at every step, where it shows others: their lags would be wrong."""
    whole = [i for i, state in enumerate(found.states) if None not in state]
    if whole:
        whole = [i for i, s in enumerate(found.states) if None not in (s[:-1] if i in found.unread else s)]
    if not whole or len(whole) == len(found.states):
        return found, ()
    left_out = tuple(role for i, role in enumerate(found.roles) if i not in whole)
    kept = replace(
        found,
        states=[found.states[i] for i in whole],
        roles=("hidden",) if len(whole) == 1 else tuple(found.roles[i] for i in whole),
        initial=[found.initial[i] for i in whole],
        unread=frozenset(whole.index(i) for i in found.unread if i in whole),
        direct=found.direct if found.roles and "hidden" in [found.roles[i] for i in whole] else None,
    )
    return kept, left_out


def _complete(found: Recurrence) -> tuple[int, int]:
    """Return the steps in which every state is there: those at the ends may leave none that the loss depends on."""
    needed = [state for i, state in enumerate(found.states) if i not in found.unread] or found.states
    there = [all(state[step] is not None for state in needed) for step in range(found.steps)]
    if True not in there:
        return 0, 0
    first = there.index(True)
    last = found.steps - there[::-1].index(True)
    return (first, last) if all(there[first:last]) and first <= 1 and found.steps - last <= 1 else (0, 0)


def _followed(
    graph: Graph,
    places: list[Place],
    level: list[int],
    laid: _Laid,
    ways: dict[Place, list[tuple[int, int]] | None],
) -> list[Tensor | None] | str:
    """Return, of each step but the last, which rows of a state the next step's come from; None for the same.

    A reason where they cannot be followed.
    """
    taken: list[Tensor | None] = []
    for place, now, then in zip(places, laid.counts, laid.counts[1:], strict=False):
        if laid.axis == UNBATCHED:
            taken.append(None)
            continue
        if place not in ways:
            ways[place] = way_on(graph, place, level, level[place[0]])
        way = ways[place]
        change = changes_rows(graph, way, laid.axis) if way else ""
        order = None
        if way and change == "other" and now == then == laid.counts[0] and graph.values_may_be_read:
            order = rows_taken(graph, way, laid.axis, now)
        if (change == "other" and order is None) or then > now or (then < now and change != "first"):
            return RESIZED
        taken.append(order)
    return taken if len(set(laid.counts)) == 1 or all(order is None for order in taken) else RESIZED


def _alike_moved(some: list[Tensor | None], others: list[Tensor | None]) -> bool:
    """Whether the rows of two states change places alike."""
    pairs = zip(some, others, strict=False)
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _rows_at(rows: Tensor, taken: list[Tensor | None]) -> list[Tensor]:
    """Return where the sampled sequences stand at each step, from where they stand at the first."""
    at = [rows]
    for order in taken:
        at.append(at[-1] if order is None else order.argsort()[at[-1]])
    return at


def hook(graph: Graph, found: Recurrence, sequence: FoundSequence) -> None:
    """Set the hooks of a recurrence on the nodes of its states; they are taken off at the end of the pass."""
    found, _ = _without_incomplete(found)
    by_node: dict[int, list[HookPlace]] = {}
    begins, ends = sequence.skipped, sequence.skipped + sequence.length
    for which, state in enumerate(found.states):
        for step, place in enumerate(state[begins:ends]):
            if place is not None:
                by_node.setdefault(place[0], []).append((place[1], ("state", which, step), None))
    for which, place in enumerate(found.initial):
        if (
            place is not None
            and sequence.roles[which] in ("hidden", "cell", "cell_carry")
            and _same_shape(graph, place, found, which)
        ):
            by_node.setdefault(place[0], []).append((place[1], ("initial", which, 0), None))
            sequence.initial_states = (*sequence.initial_states, which)
    if found.entries and _alike(graph, found.entries, sequence):
        tensors = tensors_of(graph, found.entries)
        for step, places in enumerate(found.entries[begins:ends]):
            for which, place in dict.fromkeys((tensors[at], place) for at, place in places.items()):
                by_node.setdefault(place[0], []).append((place[1], ("entry", which, step), None))
    for index, hooked in by_node.items():
        if index < graph.first_inner:
            sequence.handles += [on_leaf(graph.leaves[index], name, sequence) for _, name, _ in hooked]
        else:
            sequence.handles.append(on_arrival(graph.nodes[index], hooked, sequence))
    if found.direct is not None:
        sequence.has_direct = True
        hidden = found.roles.index("hidden")
        leaving: dict[int, list[HookPlace]] = {}
        for step, consumers in enumerate(found.direct[begins:ends]):
            for user, at in consumers:
                leaving.setdefault(user, []).append((at, ("direct", hidden, step), None))
        for index, sources in leaving.items():
            if not graph.is_call(index):
                sequence.handles.append(on_departure(graph.nodes[index], sources, sequence))


def _same_shape(graph: Graph, place: Place, found: Recurrence, which: int) -> bool:
    first = found.states[which][0]
    return first is not None and not graph.is_call(place[0]) and graph.shape(place) == graph.shape(first)


def _alike(graph: Graph, entries: list[dict[int, Place]], sequence: FoundSequence) -> bool:
    """Find the batch axis of what enters each step; False where it has none like the state's, or changes its shape."""
    tensors = tensors_of(graph, entries)
    axes: dict[int, int] = {}
    rest: dict[int, tuple[int, ...]] = {}
    for places in entries:
        for at, place in places.items():
            if graph.is_call(place[0]):
                return False
            shape = graph.shape(place)
            if sequence.axes[0] != UNBATCHED and len(shape) <= max(sequence.axes[0], 0):
                return False
            axis = axes.setdefault(tensors[at], _entry_axis(shape, sequence))
            alone = shape if axis == UNBATCHED else shape[:axis] + shape[axis + 1 :]
            if rest.setdefault(tensors[at], alone) != alone:
                return False
    sequence.entry_axes = [axes[number] for number in sorted(axes)]
    return bool(axes)


def _entry_axis(shape: tuple[int, ...], sequence: FoundSequence) -> int:
    if sequence.axes[0] == UNBATCHED:
        return UNBATCHED
    return 0 if len(shape) <= sequence.axes[0] + 1 else sequence.axes[0]
