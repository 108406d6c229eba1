"""Tallec & Ollivier 2018: chrono initialisation against a forget bias of 1, on the adding task, against its length."""

from __future__ import annotations

import numpy as np

from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications import adding_problem
from gradscope.lab.replications.adding_problem import Size
from gradscope.lab.replications.telling import Replication

FULL = Size(lengths=(30, 60), looked_at=(30, 120, 480), units=64, steps=800, seeds=5)
QUICK = Size(lengths=(8, 12), looked_at=(8, 12), units=8, steps=6, seeds=2)
INITS = {"chrono": "lstm-chrono", "bias 1": "lstm-forget1"}
_RATE = 3e-3


def measure(size: Size) -> dict[str, list[float]]:
    """One value per seed of everything that is asked."""
    found = adding_problem.measure(INITS, size, _RATE)
    ratios = {f"ratio {length}": adding_problem.over(found, "chrono", "bias 1", length) for length in size.lengths}
    return found | ratios


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the paper."""
    size = QUICK if quick else FULL
    first, last = "∂L/∂c at the first timestep over that at the last, before training", "of the gradient arrives"
    held_out, guessing = "held-out error over that of guessing", "{} of the error of guessing"
    longest = size.looked_at[-1]
    statements = (
        Statement(
            "With biases spread over the task's length the gradient reaches its beginning, whatever the length.",
            tuple(_asked(f"reach chrono {t}", first, 0.01, np.inf, f"{{}} {last}", f"at length {t}")
                  for t in size.looked_at),
        ),
        Statement(
            f"With a constant forget bias of 1 it does not: at length {longest} less than 1e-6 arrives.",
            (_asked(f"reach bias 1 {longest}", first, -np.inf, 1e-6, f"{{}} {last}"),),
        ),
        Statement(
            "Chrono initialisation learns the adding task (half the error of guessing, or less).",
            tuple(_asked(f"error chrono {t}", held_out, -np.inf, 0.5, guessing, f"at length {t}")
                  for t in size.lengths),
        ),
        Statement(
            "It learns it better than a forget bias of 1 in the same number of steps (half its error, or less).",
            tuple(_asked(f"ratio {t}", "held-out error over that with a forget bias of 1, same seed", -np.inf, 0.5,
                         "{} of the error with bias 1", f"at length {t}") for t in size.lengths),
        ),
    )  # fmt: skip
    measured = measure(size)
    return Replication(
        name="tallec",
        paper="Tallec & Ollivier 2018, Can recurrent neural networks warp time?",
        claims=tuple(statement.put_to(measured) for statement in statements),
        differs=(
            f"lengths {size.lengths[0]} to {size.lengths[-1]}, shorter than in the paper, and {size.steps} steps each",
            f"{size.units} units, batches of 32, Adam at .003 with clipping at 1, {size.seeds} networks",
        ),
    )


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str = "") -> Asked:
    return Asked(where, what, lambda found: found[key], low, high, log=True, reads=reads, at=(where,))
