"""Put parts of a sequence in a row: chunks of a checkpoint, each with a pass of its own, and detached windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    use: Any
    parts: dict[str, Adjoints]
    rows: Tensor
    #: What the pass began from, as gradients of the outputs of its chunk, and what the loss was multiplied with.
    given: tuple[Tensor, ...] = ()
    scale: float = 1.0


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
    return None if len(rows) > 1 and not all(_may_begin(row[0].line) for row in rows) else rows


def _may_begin(line: Line) -> bool:
    """Whether the first chunk that is known of a sequence can be its first."""
    return not line.marked if isinstance(line, FoundSequence) else line.carried == 0


def rows_of_windows(windows: Sequence[tuple[Piece, int]]) -> list[tuple[list[Piece], int]]:
    """Return the windows of each sequence in the order in which they start from each other, with their pass."""
    after = {id(line.before): piece for piece, _ in windows if isinstance(line := piece.line, FoundSequence)}
    here = {id(piece.line) for piece, _ in windows}
    rows = []
    for piece, task in windows:
        if isinstance(piece.line, FoundSequence) and id(piece.line.before) not in here:
            row = [piece]
            while id(row[-1].line) in after:
                row.append(after[id(row[-1].line)])
            rows.append((row, task))
    return rows


def whole(row: Sequence[Piece], use: int) -> Piece:
    """Return the sequence that the parts of a row make together."""
    parts = {site: joined([chunk.parts[site] for chunk in row]) for site in row[0].parts}
    made = replace(row[0], parts=parts, use=use)
    if len(row) > 1 and isinstance(made.line, FoundSequence):
        steps = sum(chunk.line.steps for chunk in row)
        parted = "windows" if made.line.goes_on else "chunks"
        info = replace(made.line.info, how=f"found by data flow, {steps} steps in {len(row)} {parted}")
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
        # What the later one hands back is what the earlier one is given for its last state, or all that arrives there.
        if not any(_equal(handed, of) for of in (last[-1], *_for_states(earlier, handed))):
            return False
    return True


def _equal(handed: Tensor, given: Tensor) -> bool:
    given = given.double()
    return bool(((handed.double() - given).abs() <= 1e-5 * given.abs().max()).all())


def _for_states(piece: Piece, like: Tensor) -> Iterator[Tensor]:
    """Yield what a chunk was given for outputs that have the shape of a state, of the rows that are recorded."""
    for given in piece.given:
        for axis in range(given.dim()):
            if axis <= 1 and given.shape[axis] > int(piece.rows.max()):
                of_rows = given.index_select(axis, piece.rows).squeeze() / piece.scale
                if of_rows.shape == like.squeeze().shape:
                    yield of_rows.reshape(like.shape)
        if given.squeeze().shape == like.squeeze().shape:
            yield given.reshape(like.shape) / piece.scale
