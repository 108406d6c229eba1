"""Which records of a run count. Sentences, figures, tables and the Python face all take it from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.errors import SettingError, UnknownNameError

#: Which records make up a part of a run: the first and last tenth (at least one), or exactly one, or all.
PARTS = ("first", "early", "late", "last", "all")
PART_SHARE = 0.1


@dataclass(frozen=True)
class Choice:
    """What of a run is looked at.

    Attributes
    ----------
    first_step, last_step : int, optional
        Both included.
    attempt : int, optional
        One attempt alone, also what a later one replaced. By default the training as it went on: a step of an attempt
        counts until a later attempt takes over.
    rank : int, optional
        One process alone. By default the sequences of all, and the scalars and clipping calls of the lowest.
    label : str, optional
        Of the backward pass, where records carry one (``pass_label``).

    Notes
    -----
    Never counted are records of a step whose update the loss scaler skipped, of a pass whose gradients were dropped
    before an update, and clipping calls that no update saw.
    """

    first_step: int | None = None
    last_step: int | None = None
    attempt: int | None = None
    rank: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.first_step is not None and self.last_step is not None and self.first_step > self.last_step:
            raise SettingError(f"first_step must not be after last_step, got {self.first_step} and {self.last_step}.")


#: What counts where nothing is asked for.
EVERYTHING = Choice()


def attempt_starts(tables: Iterable[pd.DataFrame]) -> dict[int, int]:
    """First step that each attempt holds, over all tables of a run."""
    starts: dict[int, int] = {}
    for table in tables:
        if len(table):
            for attempt, step in table.groupby("attempt")["step"].min().items():
                starts[int(attempt)] = min(int(step), starts.get(int(attempt), int(step)))
    return starts


def counting(table: pd.DataFrame, starts: Mapping[int, int], choice: Choice = EVERYTHING) -> NDArray[np.bool_]:
    """Whether each row of a table counts: the records of a site, or the steps, clips or parameters of a run.

    Parameters
    ----------
    table : DataFrame
        With ``step``, ``attempt`` and ``rank``; ``skipped``, ``dropped``, ``pass_label`` and, of clipping calls,
        ``effective`` and ``place`` count where they are there.
    starts : mapping of int to int
        From :func:`attempt_starts`.
    choice : Choice
    """
    kept = np.ones(len(table), dtype=bool)
    step, attempt = (table[name].to_numpy(dtype=np.int64) for name in ("step", "attempt"))
    if choice.attempt is not None:
        kept &= attempt == choice.attempt
    else:
        for later, start in starts.items():
            kept &= (attempt >= later) | (step < start)
    if choice.rank is not None:
        kept &= table["rank"].to_numpy() == choice.rank
    if choice.first_step is not None:
        kept &= step >= choice.first_step
    if choice.last_step is not None:
        kept &= step <= choice.last_step
    for mark in ("skipped", "dropped"):
        if mark in table:
            kept &= ~table[mark].to_numpy(dtype=bool)
    if "effective" in table:
        # A step that was skipped for its norm is told as such; a clip that the update never saw is no clip.
        kept &= (table["effective"].to_numpy() != 0) | (table["place"] == "skipped").to_numpy()
    if choice.label is not None and "pass_label" in table:
        kept &= table["pass_label"].to_numpy() == choice.label
    return kept


def lowest_rank(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each row was written by the lowest rank of its attempt: the others say the same of a common update."""
    return np.asarray(table["rank"] == table.groupby("attempt")["rank"].transform("min"), dtype=bool)


def part_of(steps: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    """Positions of the records that make up a part, given the step of each.

    Raises
    ------
    UnknownNameError
    """
    if part not in PARTS:
        raise UnknownNameError("part of a run", part, PARTS)
    distinct = np.unique(steps)  # records need not be in the order of their steps
    share = max(1, round(PART_SHARE * distinct.size))
    chosen = {"first": distinct[:1], "early": distinct[:share], "late": distinct[-share:], "last": distinct[-1:]}
    return np.flatnonzero(np.isin(steps, chosen.get(part, distinct)))
