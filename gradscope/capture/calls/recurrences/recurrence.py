"""What was found: a recurrence, or weights that came close to marking one, and why they could not be followed."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Fewer steps than this cannot be told from ordinary reuse.
MIN_STEPS = 3

#: A tensor: index of the node that made it, and its place among that node's outputs.
Place = tuple[int, int]


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
    entries : list of dict of int to (int, int)
        Of each step, the tensors that enter from outside the loop, by the same numbers; empty where there are none.
    initial : list of (int, int) or None
        Of each state, the tensor that stands in its place before the first step.
    direct : list of list of (int, int)
        Of each step, who consumes the hidden state outside of the loop, and at which place. None where what is made of
        the state both leaves the loop and is fed back.
    shared_input : bool
        Whether what enters a step enters others as well, so that no share of its gradient belongs to one.
    by_depth : bool
        Whether the steps are applications in depth: nothing enters from outside after the first.
    level : list of int
        The step of every node of the graph; 0 for those beside the recurrence.
    rare : tuple of int
        Weights that take part in some of the steps only: what they alone make is not followed.
    passing : tuple of int
        Weights that make what goes on to a later step beside the states, and is not followed.
    unread : frozenset of int
        States that nothing but the next step reads: the last one, which has none, is in no graph, and its adjoint is 0.
    ways : dict
        Of states, the way to the next step; found once for all graphs of the same shape.
    """

    anchors: tuple[int, ...]
    steps: int
    states: list[list[Place | None]]
    roles: tuple[str, ...]
    entries: list[dict[int, Place]] = field(default_factory=list)
    initial: list[Place | None] = field(default_factory=list)
    direct: list[list[Place]] | None = None
    shared_input: bool = False
    by_depth: bool = False
    level: list[int] = field(default_factory=list, repr=False)
    rare: tuple[int, ...] = ()
    passing: tuple[int, ...] = ()
    unread: frozenset[int] = frozenset()
    ways: dict[Place, list[tuple[int, int]] | None] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class NearMiss:
    """Weights that are used again on what they made, in a way that could not be followed, and why."""

    anchors: tuple[int, ...]
    steps: int
    reason: str
    marks: frozenset[int] = frozenset()


UNMATCHED = "its steps cannot be matched: the operations between them differ from step to step"
RARE = "it takes part in some of the steps only, and what it alone makes is not followed"
PASSING = (
    "what {} makes goes on from step to step beside the recorded states, and is not followed: mark it in its loop with "
    "gradscope.state to have it recorded"
)
BRANCHED = "its uses form a tree, not one chain of steps"
DISTINCT = "each step has weights of its own"
