"""What a part of the torture found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How often a promise was tried, and each time that it was not kept.

    Attributes
    ----------
    promise : str
        As the table says it.
    tries : int
    fell_short : list of str
        One sentence per try that did, naming it.
    """

    promise: str
    tries: int
    fell_short: list[str] = field(default_factory=list)


def table(outcomes: Iterable[Outcome]) -> str:
    """Markdown."""
    lines = ["| promise | tries | fell short |", "|---|---|---|"]
    lines += [f"| {one.promise} | {one.tries:,} | {len(one.fell_short)} |" for one in outcomes]
    return "\n".join(lines)
