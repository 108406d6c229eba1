"""What a report says of each run, gathered once, before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnostics import ClipStatistics, ThresholdSuggestion
from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.reading import select
from gradscope.reading.advice import together
from gradscope.reading.answers import (
    PartAdvice,
    SiteAnswer,
    advice_per_part,
    answer,
    clip_statistics_of_run,
    clipping_now_of_run,
    suggestion_of_run,
    threshold_table_of_run,
)
from gradscope.reading.counted import Reading, read_all
from gradscope.reading.norms import raw_norms
from gradscope.reading.remarks import clip_remarks, first_nonfinite
from gradscope.reading.sweeps import final_value
from gradscope.schema import Coverage, SiteInfo
from gradscope.words import clip_sentence, suggestion_sentence

#: Keys under which a model's number of parameters may have been described.
_PARAMETER_COUNTS = ("parameters", "n_parameters", "parameter_count", "num_parameters")


@dataclass(frozen=True, eq=False)
class RunFacts:
    """Everything a report says of one run, except pictures.

    ``remarks`` say what is wrong with the clipping calls or the gradients, ``what_now`` what to do about the threshold
    and about norms that jump; ``parts`` has an entry for each part of the
    parameters that was clipped by itself. ``silent`` maps sites without an answer to the reason; ``final_loss`` is None
    where no loss was logged, NaN where the run diverged, from ``diverged_at`` on; ``thresholds`` and ``suggestion`` are
    empty or None without recorded norms.
    """

    name: str
    run: Reading
    answers: tuple[SiteAnswer, ...]
    silent: dict[str, str]
    sites: dict[str, SiteInfo]
    clips: tuple[ClipStatistics, ...]
    remarks: tuple[str, ...]
    what_now: tuple[str, ...]
    parts: tuple[PartAdvice, ...]
    thresholds: pd.DataFrame
    suggestion: ThresholdSuggestion | None
    norm_source: str
    coverage: tuple[Coverage, ...]
    lost: dict[str, int]
    n_steps: int
    n_records: int
    final_loss: float | None
    diverged_at: int | None
    parameters: int | None

    @property
    def verdicts(self) -> set[str]:
        """Verdicts of all sites, at the end of the run."""
        return {found.late.verdict for found in self.answers}


def clipping_lines(found: RunFacts) -> list[str]:
    """What clipping did in a run, and which thresholds its norms suggest: whole, or by part of the parameters."""
    said = [clip_sentence(clip) for clip in found.clips]
    suggested = [(f"threshold of {one.part}: ", one.suggestion) for one in found.parts]
    if found.suggestion is not None:
        suggested.append(("threshold of all parameters: " if suggested else "threshold: ", found.suggestion))
    return said + [label + suggestion_sentence(suggestion) for label, suggestion in suggested]


def gather(runs: Sequence[Any], quantity: str | None = None) -> list[RunFacts]:
    """Facts of every run; answers of ``quantity``, or of what describes each site.

    Raises
    ------
    UnknownNameError
        No such quantity, or one without a curve.
    EmptyRunError
        No run holds a record.
    NotRecordedError
        No run has the quantity.
    """
    select.per_lag(quantity)
    facts = [_of_run(name, run, quantity) for name, run in zip(select.run_names(runs), read_all(runs), strict=True)]
    if not any(found.n_records for found in facts):
        for run in runs:
            run.require_records()
        paths = ", ".join(str(run.path) for run in runs)
        raise EmptyRunError(f"{paths}: no record, so there is nothing to report. Train at least one recorded step.")
    if quantity is not None and not any(found.answers for found in facts):
        raise select.not_recorded(runs, quantity)
    return facts


def remarks(run: Reading) -> tuple[str, ...]:
    """What is wrong with a run's clipping calls or its gradients."""
    return tuple(filter(None, (*clip_remarks(run.clip_calls()), first_nonfinite(run))))


def answers_or_reasons(run: Reading, quantity: str | None = None) -> tuple[list[SiteAnswer], dict[str, str]]:
    """The answer at every site that has one, and of the others the reason why not."""
    answers, silent = [], {}
    for site in run.sites:
        try:
            answers.append(answer(run, site, quantity))
        except (NotRecordedError, EmptyRunError) as error:
            silent[site] = str(error)
    return answers, silent


def _of_run(name: str, run: Reading, quantity: str | None) -> RunFacts:
    answers, silent = answers_or_reasons(run, quantity)
    norms = raw_norms(run)
    has_norms = bool(np.isfinite(norms["norm"].to_numpy(dtype=float)).any())
    steps = run.steps()
    final_loss, diverged = final_value(run, "loss")
    return RunFacts(
        name=name,
        run=run,
        answers=tuple(answers),
        silent=silent,
        sites={site: run.site(site) for site in run.sites},
        clips=tuple(clip_statistics_of_run(run)),
        remarks=remarks(run),
        what_now=clipping_now_of_run(run),
        parts=advice_per_part(run),
        thresholds=threshold_table_of_run(run) if has_norms else pd.DataFrame(),
        suggestion=suggestion_of_run(run) if has_norms else None,
        norm_source=str(norms["source"].iloc[0]) if len(norms) else "none",
        coverage=tuple(run.coverage),
        lost=dict(run.lost),
        n_steps=int(steps["step"].nunique()) if len(steps) else 0,
        n_records=int(run.n_records),
        final_loss=final_loss,
        diverged_at=diverged,
        parameters=_parameter_count(run.model),
    )


def _parameter_count(model: dict[str, Any]) -> int | None:
    for key in _PARAMETER_COUNTS:
        if isinstance(model.get(key), int):
            return int(model[key])
    return None


def advice_of_all(facts: Sequence[RunFacts]) -> list[str]:
    """What to try at the sites of all runs, each line once, with the runs and sites it is for."""
    several = len(facts) > 1
    return together(
        [
            (f"{found.name} {one.site}" if several else one.site, one.what_now)
            for found in facts
            for one in found.answers
        ]
    )
