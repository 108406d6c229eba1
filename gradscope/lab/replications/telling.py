"""What a replication came to: the paper's statements, our figures, whether they agree, and by how much."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from gradscope.lab.claims import Claim
from gradscope.report.summary import clean

_WIDTH = 96
_VERDICTS = {
    "confirmed": "agrees", "refined": "agrees in part", "refuted": "does not agree", "undetermined": "undecided",
}  # fmt: skip


@dataclass(frozen=True)
class Replication:
    """A paper's statements, put to our own measurements.

    Attributes
    ----------
    name : str
        What ``gradscope lab replicate`` calls it.
    paper : str
        Authors, year and title.
    claims : tuple of Claim
        The paper's statements with what was measured; what counts as agreement was fixed beforehand.
    differs : tuple of str
        Settings that differ from the paper's.
    """

    name: str
    paper: str
    claims: tuple[Claim, ...]
    differs: tuple[str, ...]

    def words(self) -> str:
        """Everything, for a terminal."""
        lines = [self.paper, _filled(f"differs from the paper: {'; '.join(self.differs)}", "  ")]
        for i, claim in enumerate(self.claims, 1):
            lines += ["", _filled(f"{i}. {claim.statement}", "   ", first="")]
            lines.append(_filled(f"{verdict(claim)}: {_lower(claim.found)}", "   "))
            lines += [_filled(line, "     ") for line in _each(claim)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are none as None."""
        return clean({
            "name": self.name,
            "paper": self.paper,
            "differs": list(self.differs),
            "statements": [
                {
                    "statement": claim.statement,
                    "verdict": verdict(claim),
                    "found": claim.found,
                    "measured": [
                        {
                            "where": one.asked.where, "what": one.asked.what, "low": one.asked.low,
                            "high": one.asked.high, "values": list(one.values), "mean": one.mean,
                            "interval": one.interval, "agrees": one.met,
                        }
                        for one in claim.answers
                    ],
                }
                for claim in self.claims
            ],
        })  # fmt: skip


def verdict(claim: Claim) -> str:
    """Whether a paper's statement was found again."""
    return _VERDICTS[claim.outcome]


def _each(claim: Claim) -> list[str]:
    """What was measured, what counts as agreement, and the interval over networks."""
    return [
        f"{' '.join(filter(None, [one.asked.what, one.asked.where]))}: {one.mean_words} ({one.interval_words}); "
        f"asked for: {one.range_words}"
        for one in claim.answers
    ]


def _filled(text: str, indent: str, first: str | None = None) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
