"""Which sites were recorded, and why others were not."""

from __future__ import annotations

from collections import Counter

from gradscope.capture.layers.discovery import Target
from gradscope.schema import Coverage

NOT_CALLED = "it was not called"
NO_GRADIENT = "no gradient arrived at its output: the loss does not depend on it"


ZEROED = "its gradient was zeroed before any update (zero_grad between backward() and the update?)"
OTHER_LOSS = "only passes reached it whose gradient fed no update: of another loss, for attribution"


class CoverageLedger:
    """Count, per site, the recorded steps in which it was seen and the reasons where it was not."""

    def __init__(self, targets: list[Target]) -> None:
        self._targets = targets
        self._recorded: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        # Of calls or passes that were not recorded in steps in which others were.
        self._asides: dict[str, Counter[str]] = {}
        self._opened: set[str] = set()
        self._missed: dict[str, str] = {}
        # Of the step rather than of a site.
        self._remarks: Counter[tuple[str, str]] = Counter()
        #: Bumped when a line appears that was not there before.
        self.version = 0

    def opened(self, path: str) -> None:
        """Note a forward call with a graph."""
        self._opened.add(path)

    def missed(self, path: str, reason: str, *, unless_known: bool = False) -> None:
        """Note why a call in this step is not recorded."""
        if not (unless_known and path in self._missed):
            self._missed[path] = reason

    def remark(self, about: str, reason: str) -> None:
        """Note something that holds for the step, not for one site."""
        self.version += (about, reason) not in self._remarks
        self._remarks[about, reason] += 1

    def end_step(self, seen: set[str]) -> None:
        """Close the books of one recorded step; ``seen`` are the sites it recorded."""
        for target in self._targets:
            for info in target.sites:
                aside = self._missed.get(target.path, "")
                self._count(info.site, info.site in seen, self._reason(target.path), aside)
        for extra in seen - {info.site for target in self._targets for info in target.sites}:
            self._count(extra, True, "")
        self._opened.clear()
        self._missed.clear()

    def _reason(self, path: str) -> str:
        return self._missed.get(path) or (NO_GRADIENT if path in self._opened else NOT_CALLED)

    def _count(self, site: str, recorded: bool, reason: str, aside: str = "") -> None:
        if recorded:
            self.version += site not in self._recorded
            self._recorded[site] += 1
            if aside:
                asides = self._asides.setdefault(site, Counter())
                self.version += aside not in asides
                asides[aside] += 1
        else:
            reasons = self._reasons.setdefault(site, Counter())
            self.version += reason not in reasons
            reasons[reason] += 1

    def lines(self) -> list[Coverage]:
        """Return one line per site and reason."""
        lines = []
        for site in dict.fromkeys([*self._recorded, *self._reasons]):
            count, reasons = self._recorded[site], self._reasons.get(site, Counter())
            if count and not reasons:
                lines.append(Coverage(site, "recorded", "", count))
            elif count:
                lines.append(
                    Coverage(site, "partial", f"recorded in {count} of {count + reasons.total()} steps", count)
                )
            for reason, times in (reasons + self._asides.get(site, Counter())).most_common():
                lines.append(Coverage(site, "partial" if count else "missing", reason, times))
        lines += [Coverage(about, "partial", reason, times) for (about, reason), times in self._remarks.items()]
        return lines
