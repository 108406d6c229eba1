"""Gradients that were dropped before any update: a step that the script skipped, or a part of one to come.

A script that skips an update and one that clips the gradients of single sequences before it sums them do the same at
first: pass, clip, ``zero_grad``. As long as no update has told which of the two it is, such iterations are kept as
attempts within one step.
"""

from __future__ import annotations

from gradscope.capture.training.gradients import PassNote

#: Passes that are kept while nothing tells what their gradients were for.
UNDECIDED = 1024


class Attempts:
    """Tell the steps that a script skips from gradients that it drops for another reason.

    Attributes
    ----------
    prepared : bool
        Whether the script has done with the gradient what one does before an update, since the last one dropped.
    gathers : bool
        Whether its updates use what it made of gradients that it had dropped.
    """

    def __init__(self) -> None:
        self.prepared = self.gathers = False
        self._usual: int | None = None
        self._told = False
        self._open: list[list[PassNote]] = []
        self._kept = 0

    def is_one(self, dropped: list[PassNote]) -> bool:
        """Whether a gradient that was dropped had been meant for an update: made ready, or all of a usual step's."""
        if self.gathers:
            return False
        if self._usual is None:
            return self.prepared
        # Fewer than usual are the rest of an accumulation that was given up, at the end of an epoch for instance.
        return len(dropped) == self._usual or (self.prepared and len(dropped) > self._usual)

    def keep(self, dropped: list[PassNote]) -> bool:
        """Keep these passes until an update tells what they were; whether that can still be awaited."""
        self._told = self._told or self._kept + len(dropped) > UNDECIDED
        if not self._told:
            self._open.append(dropped)
            self._kept += len(dropped)
        return not self._told

    def gather(self) -> None:
        """Take note that dropped gradients came back in an update."""
        self.gathers = True
        self.take()

    def take(self) -> list[list[PassNote]]:
        """Return the passes of every iteration that was kept, and keep them no more."""
        kept, self._open, self._kept = self._open, [], 0
        return kept

    def end_step(self, fed: int | None, skipped: bool) -> None:
        """Take the end of a step: how many passes fed it, None where others did not."""
        self._told = self._told or not skipped
        self._usual = fed if not skipped else self._usual
        self.prepared = False
