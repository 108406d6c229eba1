"""Faults inside the recorder: counted by what it was doing, told once, and an end to a part that goes on failing."""

from __future__ import annotations

#: So many faults of one part, without a recorded step in which it worked, and it is switched off.
IN_A_ROW = 10
#: So many different reasons are kept apart in a run; what comes later is counted together.
REASONS = 30
_TEXT = 200
OTHER = "other faults"


class Faults:
    """What has failed, by what was being done."""

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}
        self._lately: set[str] = set()
        self._reasons: dict[tuple[str, str], str] = {}
        self._off: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def __contains__(self, doing: str) -> bool:
        """Whether this is switched off."""
        return doing in self._off

    def reason(self, doing: str, error: BaseException) -> str:
        """Return what a fault is counted as: the first of its kind stands for those that differ in detail."""
        kind = (doing, type(error).__name__)
        if kind not in self._reasons:
            if len(self._reasons) >= REASONS:
                return OTHER
            self._reasons[kind] = f"{doing}: {described(error)}"
        return self._reasons[kind]

    def take(self, doing: str) -> bool:
        """Count a fault; whether it is the one that switches the part off."""
        self._lately.add(doing)
        self._in_a_row[doing] = self._in_a_row.get(doing, 0) + 1
        if self._in_a_row[doing] < IN_A_ROW or doing in self._off:
            return False
        self._off.add(doing)
        return True

    def step_over(self) -> None:
        """Take the end of a recorded step: what has not failed in it starts anew."""
        if self._in_a_row:
            self._in_a_row = {doing: count for doing, count in self._in_a_row.items() if doing in self._lately}
            self._lately.clear()


def described(error: BaseException) -> str:
    """An error's type and text, bounded; its text may itself fail."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text[:_TEXT]}"
