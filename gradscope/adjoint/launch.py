"""Run the loop over the timesteps of a block: as it is on the CPU, as one captured graph on CUDA.

On CUDA a timestep is a handful of kernels that take less time than launching them does. The loop runs in buffers that
every block uses again, so the launches of one block serve all: they are captured once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Runs a body once and returns what runs the same kernels again, or None where they cannot be captured.
Capture = Callable[[Callable[[], None]], Callable[[], None] | None]

# A capture takes about as long as a block: it pays where many follow.
_WORTH_IT = 3


class Launch:
    """The loop of one backward walk.

    Parameters
    ----------
    body : callable
        ``body(steps)`` walks a block of that many timesteps, in buffers that stay the same.
    block : int
        Timesteps of a whole block: what is captured. Shorter ones run as they are.
    steps : int
        Timesteps of the whole walk.
    device : torch.device
    same : bool
        Whether every whole block is walked by the same kernels.
    """

    def __init__(
        self, body: Callable[[int], None], block: int, steps: int, device: torch.device, same: bool = True
    ) -> None:
        self._body, self._block = body, block
        self._capture = CAPTURES.get(device.type) if same and steps >= _WORTH_IT * block else None
        self._replay: Callable[[], None] | None = None

    def __call__(self, steps: int) -> None:
        """Walk a block."""
        if steps == self._block and self._replay is not None:
            self._replay()
        elif steps == self._block and self._capture is not None:
            capture, self._capture = self._capture, None
            self._replay = capture(lambda: self._body(steps))
        else:
            self._body(steps)


def _cuda(body: Callable[[], None]) -> Callable[[], None] | None:
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        body()  # the walk itself, in which cuBLAS also sets itself up
        try:
            # Not torch.cuda.graph(), which empties the caching allocator that the user's training lives on.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                body()
            finally:
                graph.capture_end()
        except RuntimeError:
            return None  # this driver or library cannot: the loop goes on as it is
        finally:
            current.wait_stream(side)
    return graph.replay


CAPTURES: dict[str, Capture] = {"cuda": _cuda}
