"""Le, Jaitly & Hinton 2015: rectified linear units that start from the identity, on the adding problem, by length.

The adding problem, with the LSTM and the tanh network beside which the paper puts its IRNN.
"""

from __future__ import annotations

import numpy as np

from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications import adding_problem
from gradscope.lab.replications.adding_problem import Size
from gradscope.lab.replications.telling import Replication

FULL = Size(lengths=(15, 30), looked_at=(150, 400), units=64, steps=2000, seeds=4)
QUICK = Size(lengths=(6, 8), looked_at=(8, 12), units=8, steps=6, seeds=2)
#: As the paper compares them: identity, tanh, and an LSTM whose forget gate starts open.
MODELS = {"IRNN": "irnn", "tanh": "rnn", "LSTM": "lstm-forget1"}
_RATE = 1e-3


def measure(size: Size) -> dict[str, list[float]]:
    """One value per seed of everything that is asked."""
    found = adding_problem.measure(MODELS, size, _RATE)
    ratios = {
        f"over {other} {length}": adding_problem.over(found, "IRNN", other, length)
        for other in ("tanh", "LSTM")
        for length in size.lengths
    }
    return found | ratios


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the paper."""
    size = QUICK if quick else FULL
    guessing, longest = "{} of the error of guessing", size.looked_at[-1]
    ratio = "{} times its error"
    statements = (
        Statement(
            "Started from the identity, a network of rectified linear units keeps the error derivatives constant "
            "backwards in time.",
            tuple(_asked(f"reach IRNN {t}", _REACH, 0.5, 2.0, _ARRIVES, f"at length {t}") for t in size.looked_at),
        ),
        Statement(
            f"In a tanh network, and in an LSTM with a forget bias of 1, they are gone: at length {longest} less than "
            "1e-6 arrives.",
            tuple(_asked(f"reach {name} {longest}", _REACH, -np.inf, 1e-6, _ARRIVES, f"in the {name} network")
                  for name in ("tanh", "LSTM")),
        ),
        Statement(
            "The IRNN learns the adding problem (half the error of guessing, or less).",
            tuple(_asked(f"error IRNN {t}", "held-out error over that of guessing", -np.inf, 0.5, guessing,
                         f"at length {t}") for t in size.lengths),
        ),
        Statement(
            "It learns it where a tanh network does not (at most half its error).",
            tuple(_asked(f"over tanh {t}", "held-out error over that of the tanh network, same seed", -np.inf, 0.5,
                         ratio, f"at length {t}") for t in size.lengths),
        ),
        Statement(
            "It learns it as well as an LSTM (at most twice its error).",
            tuple(_asked(f"over LSTM {t}", "held-out error over that of the LSTM, same seed", -np.inf, 2.0, ratio,
                         f"at length {t}") for t in size.lengths),
        ),
    )  # fmt: skip
    measured = measure(size)
    return Replication(
        name="le",
        paper="Le, Jaitly & Hinton 2015, A simple way to initialize recurrent networks of rectified linear units",
        claims=tuple(statement.put_to(measured) for statement in statements),
        differs=(
            f"lengths {size.lengths[0]} and {size.lengths[-1]}, in the paper 150 to 400, which are looked at before "
            f"training only; {size.steps:,} steps, in the paper far more",
            f"{size.units} units (the paper: 100), {size.seeds} networks, batches of 32 (16); Adam at .001, clipping "
            "at 1 for all (the paper: stochastic gradient descent, rate and threshold chosen for each)",
            "a mark in each half of a sequence, as in Arjovsky et al. 2016 (the paper: at any two timesteps); fresh "
            "sequences throughout, 512 held out (the paper: 100,000 to learn from, 10,000 held out)",
            "as in the paper: the identity, input weights of standard deviation .001, no bias; the paper's numbers are "
            "those of a reproduction of the same year, the adding example of Knet; its lengths were not checked",
        ),
    )


_REACH = "the gradient at the first timestep over that at the last, before training"
_ARRIVES = "{} of the gradient arrives"


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str = "") -> Asked:
    return Asked(where, what, lambda found: found[key], low, high, log=True, reads=reads, at=(where,))
