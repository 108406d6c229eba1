"""Which sites were recorded, and why others, or quantities of theirs, were not."""

from __future__ import annotations

from collections import Counter, defaultdict

from gradscope.capture.layers.discovery import Target
from gradscope.schema import Coverage, in_order

NOT_CALLED = "it was not called, or only where no gradient is asked for (torch.no_grad())"
NO_GRADIENT = (
    "no gradient arrived at its output: backward() was not called, or the loss does not depend on it, or the pass "
    "failed, or it was asked for the gradients of other tensors"
)
FAILED = "an error inside gradscope, counted in the run's losses: please report it"


ZEROED = "its gradient was zeroed before any update (zero_grad between backward() and the update?)"
CROWDED = "of the gradients for attribution in one step only the first 64 are kept"
FORGOTTEN = "of the passes in one step whose gradients fed no update only the last 1,024 are kept"
NEVER_UPDATED = (
    "no update was seen: the optimizer never stepped; what was recorded is marked as skipped and enters no curve "
    "(leave optimizer= out to measure without training, and mark each step with recorder.step())"
)
NEVER_PASSED = (
    "no backward pass was seen, so nothing was recorded: call backward() on a loss of this model before the update, "
    "and not under torch.no_grad()"
)
OTHER_LOSS = "only passes reached it whose gradient fed no update: of another loss, for attribution"


class CoverageLedger:
    """Count, per site, the recorded steps in which it was seen and the reasons where it was not."""

    def __init__(self, targets: list[Target]) -> None:
        self._targets = targets
        self._recorded: Counter[str] = Counter()
        self._how: dict[str, str] = {}
        self._reasons: dict[str, Counter[str]] = {}
        # Of calls or passes that were not recorded in steps in which others were.
        self._asides: dict[str, Counter[str]] = {}
        self._opened: set[str] = set()
        self._missed: dict[str, dict[str, None]] = defaultdict(dict)
        self._steps = 0
        # Of the step rather than of a site.
        self._remarks: Counter[tuple[str, str]] = Counter()
        #: Bumped when a line appears that was not there before.
        self.version = 0

    def opened(self, path: str) -> None:
        """Note a forward call with a graph."""
        self._opened.add(path)

    def missed(self, path: str, reason: str, *, unless_known: bool = False) -> None:
        """Note why a call in this step is not recorded."""
        if not (unless_known and self._missed.get(path)):
            self._missed[path][reason] = None

    def remark(self, about: str, reason: str) -> None:
        """Note something that holds for the step, not for one site."""
        self.version += (about, reason) not in self._remarks
        self._remarks[about, reason] += 1

    def missing(self, path: str, quantity: str, reason: str, *, unless_known: bool = False) -> None:
        """Note why one quantity of a site is not recorded."""
        if not (unless_known and any(known.startswith(f"{quantity}: ") for known in self._missed.get(path, ()))):
            self._missed[path][f"{quantity}: {reason}"] = None

    def found(self, site: str, how: str) -> None:
        """Note how a site was found that no class told of."""
        if how:
            self._how[site] = how

    def end_step(self, seen: set[str]) -> None:
        """Close the books of one recorded step; ``seen`` are the sites it recorded."""
        self._steps += 1
        told = set()
        for target in self._targets:
            for info in target.sites:
                told.add(info.site)
                reasons = list(self._missed.get(target.path, ()))
                if info.site in seen:
                    self._count(info.site, True, "", reasons)
                else:
                    self._count(info.site, False, "; ".join(reasons) or self._reason(target.path))
        paths = {target.path for target in self._targets}
        for extra in sorted(seen - told):
            self._count(extra, True, "", list(self._missed.get(extra, ())))
            told.add(extra)
        for path, missed in self._missed.items():
            if path not in paths and path not in told:
                for reason in missed:
                    self._count(path, False, reason)
        self._opened.clear()
        self._missed.clear()

    def _reason(self, path: str) -> str:
        return NO_GRADIENT if path in self._opened else NOT_CALLED

    def _count(self, site: str, recorded: bool, reason: str, asides: list[str] | None = None) -> None:
        if recorded:
            self.version += site not in self._recorded
            self._recorded[site] += 1
            for aside in asides or ():
                counted = self._asides.setdefault(site, Counter())
                self.version += aside not in counted
                counted[aside] += 1
        else:
            reasons = self._reasons.setdefault(site, Counter())
            self.version += reason not in reasons
            reasons[reason] += 1

    def lines(self) -> list[Coverage]:
        """Return one line per site and reason."""
        lines = []
        for site in in_order(dict.fromkeys([*self._recorded, *self._reasons])):
            count, reasons = self._recorded[site], self._reasons.get(site, Counter())
            if count and not reasons:
                lines.append(Coverage(site, "recorded", self._how.get(site, ""), count))
            elif count:
                lines.append(
                    Coverage(site, "partial", f"recorded in {count} of {count + reasons.total()} steps", count)
                )
            for reason, times in (reasons + self._asides.get(site, Counter())).most_common():
                lines.append(Coverage(site, "partial" if count else "missing", reason, times))
        lines += [Coverage(about, "partial", reason, times) for (about, reason), times in self._remarks.items()]
        return lines
