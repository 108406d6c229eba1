"""What was measured under each initialisation, as a table, a sentence and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope import reasons
from gradscope.capture.probes.initialisations import NotTried
from gradscope.diagnostics import DecayFit
from gradscope.errors import SettingError
from gradscope.words import number, tried_sentence

if TYPE_CHECKING:
    import pandas as pd

#: The model with the parameters it came with.
AS_IT_IS = "as it is"
#: Columns as they are printed: of the gradient at the first step, as a fraction of that where it enters.
_HEAD = ("initialisation", "state", "∂L/∂x", "half-life", "verdict")


@dataclass(frozen=True, eq=False)
class Tried:
    """One initialisation at one site: what it lets through.

    Attributes
    ----------
    name, site, quantity, source, code : str
        ``code`` does the same to ``model`` for good; empty for the model as it is.
    fits, input_fits : tuple of DecayFit
        One per draw: of the state (``quantity``), and of ∂L/∂x_t through the site; no ``input_fits`` where no input
        of the site has a gradient.
    losses : tuple of float
    """

    name: str
    site: str
    quantity: str
    source: str
    code: str
    fits: tuple[DecayFit, ...]
    input_fits: tuple[DecayFit, ...]
    losses: tuple[float, ...]

    @property
    def reach(self) -> float:
        """Gradient at the first step as a fraction of where it enters; geometric mean over the draws."""
        return _geometric([_reach(fit) for fit in self.fits])

    @property
    def input_reach(self) -> float:
        """∂L/∂x at the first step as a fraction of where it enters; NaN where it is not known."""
        return _geometric([_reach(fit) for fit in self.input_fits])

    @property
    def verdict(self) -> str:
        """Verdict of all draws, or ``differs by draw``."""
        found = {fit.verdict for fit in self.fits}
        return found.pop() if len(found) == 1 else "differs by draw"

    def row(self) -> dict[str, Any]:
        """Return the numbers as a row of :attr:`Remedies.table`."""
        reaches = [_reach(fit) for fit in self.fits]
        return {
            "site": self.site,
            "initialisation": self.name,
            "quantity": self.quantity,
            "reach": self.reach,
            "reach_lo": min(reaches),
            "reach_hi": max(reaches),
            "input_reach": self.input_reach,
            "input_first": _geometric([_first_norm(fit) for fit in self.input_fits]),
            "rate": float(np.mean([fit.rate for fit in self.fits])),
            "half_life": _mean([fit.half_life for fit in self.fits]),
            "verdict": self.verdict,
            "loss": float(np.mean(self.losses)),
            "draws": len(self.fits),
            "source": self.source,
            "code": self.code,
        }


@dataclass(frozen=True, eq=False)
class Remedies:
    """What each initialisation would let through before any training; ``print`` says it, ``plot()`` draws it.

    Attributes
    ----------
    tried : tuple of Tried
        Site by site; the one whose gradient at the first step is nearest to where it enters first.
    not_tried : tuple of NotTried
        What does not fit a site, and why.
    lengths : dict of str to int
        Steps of the longest sequence that runs through each site, other calls included: the T of the chrono
        initialisation.
    steps : dict of str to int
        Those of them that are the site's own.

    Examples
    --------
    >>> import torch, gradscope
    >>> rnn, x = torch.nn.RNN(2, 16), torch.randn(60, 4, 2)
    >>> found = gradscope.remedies(rnn, lambda: rnn(x)[0][-1].square().mean(), draws=1)
    >>> found.sites, found.lengths
    (('model/l0',), {'model/l0': 60})
    >>> found.table.columns[:4].tolist()
    ['site', 'initialisation', 'quantity', 'reach']
    >>> figure = found.plot()
    """

    tried: tuple[Tried, ...]
    not_tried: tuple[NotTried, ...]
    lengths: dict[str, int]
    steps: dict[str, int]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.lengths)

    @property
    def table(self) -> pd.DataFrame:
        """One row per site and initialisation, in the order of ``tried``.

        ``reach``: the state's gradient at the first step as a fraction of that where it enters, with its smallest and
        largest draw; ``input_reach``: the same of ∂L/∂x_t; ``input_first``: ‖∂L/∂x_1‖ itself; then ``rate`` (log10 per
        step), ``half_life``, ``verdict``, ``loss``, ``draws``, ``source`` and ``code``.
        """
        import pandas as pd

        return pd.DataFrame([one.row() for one in self.tried])

    def code(self, name: str, site: str | None = None) -> str:
        """Return the code that gives ``model`` an initialisation for good, at one site or all it fits.

        Raises
        ------
        SettingError
            It was not tried there.
        """
        found = [one for one in self.tried if one.name == name and one.code and site in (None, one.site)]
        if not found:
            names = dict.fromkeys(one.name for one in self.tried if one.code and site in (None, one.site))
            raise SettingError(
                f"{name!r} was not tried{f' at {site}' if site else ''}: {', '.join(names) or 'nothing'}."
            )
        return "\n".join(f"# {one.site}: {one.name} ({one.source})\n{one.code}" for one in found)

    def plot(self, ax: Any = None, *, site: str | None = None) -> Any:
        """Draw the decay curve of every initialisation, one panel a site.

        Returns
        -------
        Figure, or Axes where ``ax`` was given
        """
        from gradscope.plots import remedies as picture

        return picture.show(self, ax, site=site)

    def __str__(self) -> str:
        return "\n\n".join([*map(self._of_site, self.sites), *self._left_out()])

    def __repr__(self) -> str:
        return f"<Remedies: {len(self.tried)} measured at {', '.join(self.sites)}>"

    def _of_site(self, site: str) -> str:
        head = _HEAD
        rows = [head, *(_shown(one) for one in self.tried if one.site == site)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        best = self._best(site)
        code = [] if best is None else ["", f"  {best.name}:", *(f"    {line}" for line in best.code.splitlines())]
        return "\n".join([f"{self.sentence(site)}.", *(f"  {line}" for line in lines), *code])

    def sentence(self, site: str) -> str:
        """Return what was found at a site, in a sentence."""
        here = [one for one in self.tried if one.site == site]
        before = next(one for one in here if one.name == AS_IT_IS)
        best = self._best(site)
        own, whole = self.steps[site], self.lengths[site]
        where = f"{site} ({before.quantity}), {f'{own} steps' if own == whole else f'{own} of {whole} steps'}"
        if self._alone(before):
            return f"{where}: no initialisation can be compared here: {before.fits[0].reason}"
        reached = None if best is None else (best.name, best.reach)
        return tried_sentence(where, before.reach, before.input_reach, reached, len(here) - 1, _short(before.fits[0]))

    def _best(self, site: str) -> Tried | None:
        here = [one for one in self.tried if one.site == site]
        before = next(one for one in here if one.name == AS_IT_IS)
        return None if here[0] is before or self._alone(before) else here[0]

    @staticmethod
    def _alone(before: Tried) -> bool:
        """Whether what reaches the first step says nothing of the recurrence: it enters everywhere, or there alone."""
        return before.fits[0].cause in (reasons.ONE_STEP, reasons.ENTERS)

    def _left_out(self) -> list[str]:
        lines = [f"  {one.site}: {one.name}: {one.reason}" for one in self.not_tried]
        return ["\n".join(["Not tried:", *lines])] if lines else []

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in (*_HEAD, "code"))
        parts = []
        for site in self.sites:
            rows = "".join(_html_row(one) for one in self.tried if one.site == site)
            parts.append(f"<p>{escape(self.sentence(site))}.</p><table><tr>{head}</tr>{rows}</table>")
        return "".join([*parts, *(f"<pre>{escape(text)}</pre>" for text in self._left_out())])


def _html_row(one: Tried) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in _shown(one))
    return f"<tr>{cells}<td><pre>{escape(one.code)}</pre></td></tr>"


def _reach(fit: DecayFit) -> float:
    """What reaches the first step; 0 where it can no longer be represented there, inf where it is not finite."""
    if fit.lost_from is not None:
        return 0.0
    beyond = fit.curve.n_nonfinite[fit.curve.last + 1 :]
    return float("inf") if beyond.any() else fit.reach


def _short(fit: DecayFit) -> int | None:
    """The lag that the numbers are of, where most sequences are too short for the first step of the longest."""
    curve = fit.curve
    beyond = slice(curve.last + 1, None)
    ended = not (curve.n_zero + curve.n_below_normal + curve.n_nonfinite)[beyond].any()
    return fit.last_lag if ended and curve.last + 1 < curve.lags.size else None


def _geometric(values: Sequence[float]) -> float:
    if not values:
        return float("nan")
    with np.errstate(divide="ignore"):
        return float(10 ** np.mean(np.log10(values)))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else float("nan")


def _first_norm(fit: DecayFit) -> float:
    return float(10.0 ** fit.curve.log10[fit.curve.last]) if fit.last_lag is not None else float("nan")


def _shown(one: Tried) -> tuple[str, ...]:
    half = _mean([fit.half_life for fit in one.fits])
    known = one.input_reach == one.input_reach
    return (
        one.name,
        number(one.reach),
        number(one.input_reach) if known else "–",
        f"{number(half)} steps" if half == half else "–",
        one.verdict,
    )
