"""Put the chunks of a checkpoint in a row: each is run again for a backward pass of its own inside the user's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gradscope.adjoint import Adjoints
from gradscope.capture.calls.found import FoundSequence
from gradscope.capture.calls.sequence import Line, joined
from gradscope.capture.layers.discovery import Target

NOT_CHAINED = "the chunks of its checkpoint could not be put in a row: pass use_reentrant=False to checkpoint"


@dataclass(eq=False)
class Piece:
    """What one sequence left in one pass."""

    line: Line
    target: Target
    use: int
    parts: dict[str, Adjoints]
    rows: Tensor


def by_module(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return the pieces of each module, in the order in which they arrived."""
    found: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.target.path].append(piece)
    return list(found.values())


def in_rows(chunks: Sequence[Piece]) -> list[list[Piece]] | None:
    """Return the chunks of each sequence, in forward order; None where it cannot be told which follows which."""
    rows: list[list[Piece]] = []
    # The last chunk runs backward first.
    for piece in reversed(chunks):
        if rows and _goes_on(rows[-1][-1], piece):
            rows[-1].append(piece)
        else:
            rows.append([piece])
    begins = [row[0].line.carried == 0 or isinstance(row[0].line, FoundSequence) for row in rows]
    return None if len(rows) > 1 and not all(begins) else rows


def whole(row: Sequence[Piece], use: int) -> Piece:
    """Return the sequence that the chunks of a row make together."""
    parts = {site: joined([chunk.parts[site] for chunk in row]) for site in row[0].parts}
    made = replace(row[0], parts=parts, use=use)
    if len(row) > 1 and isinstance(made.line, FoundSequence):
        steps = sum(chunk.line.steps for chunk in row)
        info = replace(made.line.info, how=f"found by data flow, {steps} steps in {len(row)} chunks")
        made = replace(made, target=replace(made.target, sites=(info,)))
    return made


def _goes_on(earlier: Piece, later: Piece) -> bool:
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
