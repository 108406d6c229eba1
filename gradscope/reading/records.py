"""Which records of a run count."""

from __future__ import annotations

import pandas as pd


def last_attempt(frame: pd.DataFrame) -> pd.DataFrame:
    """Rank 0 (or the lowest there is), each step from its last attempt: a restart repeats steps."""
    if not len(frame) or "attempt" not in frame:
        return frame
    frame = frame[frame["rank"] == frame["rank"].min()]
    return frame[frame["attempt"] == frame.groupby("step")["attempt"].transform("max")]
