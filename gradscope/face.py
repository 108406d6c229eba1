"""A run as one holds it in Python: what :class:`gradscope.store.Run` reads, with its answers and figures.

Everything but the store is imported when it is asked for: opening a run stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope import store
from gradscope.errors import GradscopeError, SettingError
from gradscope.legible import legible

if TYPE_CHECKING:
    import pandas as pd
    import xarray

    from gradscope.diagnostics import ClipStatistics, DecayFit, ThresholdSuggestion
    from gradscope.reading.answers import SiteAnswer


def open_run(path: str | Path, *, budget: float | None = None) -> Run:
    """Open a run to read it: a run directory, also while it grows, or a packed ``.h5`` file.

    What is read is the run at this moment; open it again to see what came later.

    Parameters
    ----------
    path : str or Path
        What was passed to ``gradscope.record``, or the file that ``gradscope pack`` wrote.
    budget : float, optional
        How many times what a stranger's run may cost this one may, for its size on disk; by default the environment
        variable ``GRADSCOPE_BUDGET``, else 1.

    Raises
    ------
    RunNotFoundError, RunDamagedError, SchemaVersionError, UnsafeFileError

    See Also
    --------
    compare : Several runs in one table.

    Examples
    --------
    The run that :func:`gradscope.record` has in its example:

    >>> import gradscope
    >>> run = gradscope.open_run("runs/lstm")
    >>> run.sites
    ('model/l0',)
    """
    run = store.open_run(path, budget=budget)
    return Run(run.path, run.header, run.parts, sealed=run.sealed)


class Run(store.Run):
    """Records of one training, as `open_run` returns them. ``print(run)`` says how far back the gradient reaches.

    Answers and figures take the records that count (``gradscope.reading``); ``array``, ``norms``, ``records`` and
    the tables hold everything that was written.

    Examples
    --------
    >>> import gradscope
    >>> run = gradscope.open_run("runs/lstm")
    >>> run.quantities("model/l0")
    ('hidden', 'cell', 'input', 'direct')
    >>> run.array("model/l0", "cell").shape  # (record, sequence, lag)
    (2, 4, 20)
    >>> run.norms("model/l0", "cell").columns[:4].tolist()
    ['step', 'sequence', 'lag', 'norm']
    >>> fit = run.decay("model/l0")
    >>> fit.verdict
    'vanishing'
    >>> [clip.calls for clip in run.clipping()]
    [4]
    >>> run.steps()["loss"].size
    4
    >>> figure = run.plot("decay")
    """

    def answers(self) -> list[SiteAnswer]:
        """How far back the gradient reaches at every site, at the beginning and at the end."""
        from gradscope.reading.answers import answers

        return answers(self)

    def decay(
        self,
        site: str | None = None,
        quantity: str | None = None,
        part: str = "late",
        *,
        step: int | None = None,
        **options: Any,
    ) -> DecayFit:
        """Fit the decay of the gradient at a site.

        Parameters
        ----------
        site : str, optional
            May be left out where the run has one.
        quantity : str, optional
            By default the one that describes the site: the cell state of an LSTM, else the hidden state.
        part : {"first", "early", "late", "last", "all"}
            ``early`` and ``late`` are the first and last tenth of the recorded steps.
        step : int, optional
            One recorded step instead of a part.
        **options
            ``lag_range``, ``confidence``, ``resamples``, ``seed`` and ``horizon_fraction`` of
            :func:`gradscope.fit_decay`.

        Raises
        ------
        UnknownNameError, NotRecordedError, EmptyRunError, SettingError
        """
        from gradscope.reading.answers import pooled_fit

        return pooled_fit(self, self._one(site), quantity, part if step is None else step, **options)

    def clipping(self) -> list[ClipStatistics]:
        """What clipping did, one entry for each kind that was called."""
        from gradscope.reading.answers import clip_statistics_of_run

        return clip_statistics_of_run(self)

    def suggest_threshold(self) -> ThresholdSuggestion:
        """Clipping thresholds worth comparing, from the run's own gradient norms."""
        from gradscope.reading.answers import suggestion_of_run

        return suggestion_of_run(self)

    def what_now(self) -> list[str]:
        """What to try at the sites, with their sequences' length filled in, and what to do about the threshold."""
        return self._advice(self.answers())

    def plot(self, kind: str = "decay", *, ax: Any = None, **options: Any) -> Any:
        """Draw one figure of this run.

        Parameters
        ----------
        kind : str
            A key of ``gradscope.plots.PLOTS`` that is drawn from runs.
        ax : matplotlib Axes, optional
            Drawn there; by default in a figure of its own, with as many panels as it needs.
        **options
            Of the figure's ``table`` and ``draw``: ``site``, ``quantity``, ``step``, ``relative`` ...

        Returns
        -------
        Figure, which a notebook shows; or the Axes that was given
        """
        from gradscope.plots.figures import plot_runs

        return plot_runs(kind, [self], ax=ax, **options)

    def to_xarray(self, site: str | None = None) -> xarray.Dataset:
        """What was recorded at a site, as an xarray Dataset over ``record``, ``sequence``, ``lag`` ...

        Raises
        ------
        SettingError
            xarray is not installed, or several sites and none named.
        """
        try:
            import xarray
        except ImportError as error:
            raise SettingError("to_xarray needs xarray: pip install xarray.") from error
        from gradscope.reading import read
        from gradscope.schema import DATASETS

        reading, site = read(self), self._one(site)
        records = reading.records(site)
        columns = {name: ("record", records[name].to_numpy()) for name in ("step", "micro", "attempt", "rank")}
        arrays = {name: (("record", *DATASETS[name]), reading.array(site, name)) for name in self.datasets(site)}
        arrays["length"] = (("record", "sequence"), reading.lengths(site))
        gates = self.site(site).gates
        named = {"gate": list(gates)} if gates and any("gate" in dims for dims, _ in arrays.values()) else {}
        return xarray.Dataset(arrays, {**columns, **named}, {"site": site, "run": self.name})

    def _one(self, site: str | None) -> str:
        """The site, or the run's only one."""
        if site is not None:
            return site
        if not self.sites:
            self.require_records()
        if len(self.sites) != 1:
            raise SettingError(f"the run has {len(self.sites)} sites; say which: {', '.join(self.sites) or 'none'}.")
        return self.sites[0]

    def __str__(self) -> str:
        said = [f"  {legible(line)}" for line in self._said()]  # first: it reads all in one go
        return "\n".join([repr(self).strip("<>"), *said])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(legible(line))}</li>" for line in self._said())
        return f"<div><b>{escape(repr(self).strip('<>'))}</b><ul>{items}</ul></div>"

    def _advice(self, found: list[SiteAnswer]) -> list[str]:
        from gradscope.reading.answers import advice_of, clipping_now_of_run

        return [*advice_of(found), *(f"what now (clipping): {line}" for line in clipping_now_of_run(self))]

    def _said(self) -> list[str]:
        from gradscope.reading import read
        from gradscope.reading.facts import answers_or_reasons, remarks
        from gradscope.words import NO_CURVE, clip_sentence, verdict_first

        try:
            reading = read(self)
            if not self.sites:
                self.require_records()
            found, silent = answers_or_reasons(reading)
            said = list(remarks(reading))  # first what stands in the way of the rest
            said += [verdict_first(one.late.verdict, one.sentence) for one in found]
            if not found:
                said += [f"no answer: {why}" for why in silent.values()] or [NO_CURVE]
            said += [clip_sentence(clip) for clip in self.clipping()]
            return [*said, *self._advice(found)]
        except GradscopeError as error:  # a run without records is printed all the same
            return [str(error)]


def compare(runs: store.Run | str | Path | Sequence[store.Run | str | Path]) -> pd.DataFrame:
    """Several runs in one table: how far back the gradient reaches at the end of training.

    Parameters
    ----------
    runs : Run or path, or sequence of them
        The files of a path are opened once.

    Returns
    -------
    DataFrame
        One row per run and site: ``run, site, quantity``, then the numbers of the fit (``rate, lo, hi, half_life,
        reach, verdict, reason`` ...). A run without a curve has one row, which says so.

    Examples
    --------
    >>> import gradscope
    >>> gradscope.compare(["runs/lstm"])[["run", "site", "quantity", "verdict"]]
        run      site quantity    verdict
    0  lstm  model/l0     cell  vanishing
    """
    import pandas as pd

    from gradscope.diagnostics import fit_decay
    from gradscope.reading import read_all
    from gradscope.reading.answers import answers, fit_row
    from gradscope.reading.select import run_names
    from gradscope.words import NO_CURVE

    given = [runs] if isinstance(runs, store.Run | str | Path) else list(runs)
    readings = read_all(given)
    rows = []
    for name, run in zip(run_names(readings), readings, strict=True):
        found = [{"site": said.site, "quantity": said.quantity, **fit_row(said.late)} for said in answers(run)]
        nothing = {"site": "", "quantity": "", **fit_row(fit_decay([], [])), "reason": NO_CURVE}
        rows += [{"run": name, **row} for row in found or [nothing]]
    return pd.DataFrame(rows)
