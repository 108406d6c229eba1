"""How often in a row the same data enters: a solver that iterates between two inputs is given each of them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import pairwise

from gradscope.capture import torch_private
from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.initial import saved_of
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS

# The storage of a tensor, and where in it: two that agree are the same piece of data. No address is asked for, which
# only the CPU has.
_Identity = tuple[int, int, tuple[int, ...]]


def in_a_row(graph: Graph, orders: Iterable[Mapping[int, int]], links: int) -> int:
    """Return how many links of a chain in a row are given the same data, where it is the same number throughout; or 1.

    ``orders``: of projections of what enters, their uses by links. The same tensor, not the same values: data may
    repeat, as padding does. Where it is copied before it is used, as into a concatenation with the state, that cannot
    be told, and every link is a step.
    """
    uses = tuple((use, at) for order in orders for use, at in order.items())
    return graph.ask(partial(_in_a_row, uses, links))


def _in_a_row(uses: Iterable[tuple[int, int]], links: int, graph: Graph) -> int:
    """Answer for a graph, of uses and the links of the chain that they belong to."""
    if not graph.values_may_be_read:
        return 1
    given: dict[int, list[_Identity]] = {}
    for use, at in uses:
        given.setdefault(at, []).extend(_given_to(graph, use))
    known = sorted(at for at, data in given.items() if data)
    # What the first one is given may not be told from the state it starts from.
    if len(known) < links - 1 or known[-1] - known[0] != len(known) - 1:
        return 1
    shift = links - known[-1]
    changes = [later + shift for earlier, later in pairwise(known) if given[earlier] != given[later]]
    each = min((later - earlier for earlier, later in pairwise(changes)), default=1)
    regular = changes == list(range(1 + each, links + 1, each))
    return each if regular and links % each == 0 and links // each >= MIN_STEPS else 1


def _given_to(graph: Graph, index: int) -> list[_Identity]:
    """Tell which data without a graph an operation was given, as far as it saved it."""
    given = [saved_of(graph, index, at) for at, (child, _) in enumerate(graph.inputs[index]) if child < 0]
    values = [value for value in given if value is not None]
    return [(torch_private.storage_of(value), int(value.storage_offset()), tuple(value.shape)) for value in values]
