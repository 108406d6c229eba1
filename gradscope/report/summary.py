"""``summary.json``: the report's numbers for programs.

Layout (keys sorted; a number that does not exist or is not finite is ``null``)::

    {"schema": "gradscope-report", "schema_version": "1.0", "gradscope_version": ...,
     "figures": {name: {"caption", "files": [path, ...]}},
     "not_shown": {name: reason},
     "runs": [{"name", "path", "created_at", "sealed", "records", "steps", "parameters", "final_loss", "diverged_at",
               "settings",
               "sites": [{"site", "cell", "quantity", "sentence", "caveat", "what_now": [...], "early": FIT,
                          "late": FIT}],
               "silent": {site: reason}, "clipping": [{"sentence", ...}], "thresholds": [...], "suggestion": {...},
               "coverage": [{"site", "status", "reason", "count"}], "lost": {reason: count}}],
     "told": [{"title", "text": [...]}],                                 (only where a story was told)
     "claims": [{"chapter", "statement", "outcome", "sentence",          (only where a story was told)
                 "answers": [{"where", "what", "low", "high", "values", "mean", "interval", "met"}]}]}

    FIT = {"steps": [first, last], "rate" and "interval" (log10 per step), "interval_reason", "r2", "half_life",
           "half_life_interval", "half_life_reason", "horizon", "horizon_fraction", "lag_range", "last_lag", "reach",
           "n_sequences", "n_steps", "unit", "verdict", "reason", "lost_from", "n_zero", "n_below_normal",
           "n_nonfinite"}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gradscope._version import __version__
from gradscope.diagnostics import DecayFit
from gradscope.reading.facts import RunFacts
from gradscope.words import clip_sentence

SCHEMA, SCHEMA_VERSION = "gradscope-report", "1.0"

_FIT_FIELDS = (
    "rate", "interval", "r2", "half_life", "half_life_interval", "half_life_reason", "horizon", "horizon_fraction",
    "lag_range", "last_lag", "reach", "n_sequences", "n_steps", "unit", "interval_reason", "verdict", "reason",
    "lost_from", "n_zero", "n_below_normal", "n_nonfinite",
)  # fmt: skip


def summarise(
    facts: Sequence[RunFacts], figures: Mapping[str, Any] | None = None, not_shown: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The summary as plain JSON values."""
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "gradscope_version": __version__,
        "figures": dict(figures or {}),
        "not_shown": dict(not_shown or {}),
        "runs": [_run(found) for found in facts],
    }
    cleaned: dict[str, Any] = clean(summary)
    return cleaned


def to_text(summary: Mapping[str, Any]) -> str:
    """The summary as JSON text, keys sorted, so that equal reports are equal files."""
    return json.dumps(summary, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _run(found: RunFacts) -> dict[str, Any]:
    return {
        "name": found.name,
        "path": str(found.run.path),
        "created_at": found.run.meta.created_at,
        "sealed": bool(found.run.sealed),
        "records": found.n_records,
        "steps": found.n_steps,
        "parameters": found.parameters,
        "final_loss": found.final_loss,
        "diverged_at": found.diverged_at,
        "settings": found.run.settings,
        "sites": [_site(found, said) for said in found.answers],
        "silent": found.silent,
        "clipping": [{"sentence": clip_sentence(clip), **asdict(clip)} for clip in found.clips],
        "remarks": list(found.remarks),
        "what_now": list(found.what_now),
        "parts": [
            {"part": one.part, "thresholds": one.thresholds.to_dict("records"), "suggestion": asdict(one.suggestion)}
            for one in found.parts
        ],
        "thresholds": found.thresholds.to_dict("records"),
        "suggestion": None if found.suggestion is None else asdict(found.suggestion),
        "coverage": [line.to_json() for line in found.coverage],
        "lost": found.lost,
    }


def _site(found: RunFacts, said: Any) -> dict[str, Any]:
    return {
        "site": said.site,
        "cell": found.sites[said.site].cell,
        "quantity": said.quantity,
        "sentence": said.sentence,
        "caveat": said.caveat,
        "what_now": list(said.what_now),
        "early": {"steps": list(said.early_steps), **fit_numbers(said.early)},
        "late": {"steps": list(said.late_steps), **fit_numbers(said.late)},
    }


def fit_numbers(fit: DecayFit) -> dict[str, Any]:
    """A fit's numbers, without its arrays."""
    return {name: getattr(fit, name) for name in _FIT_FIELDS}


def clean(value: Any) -> Any:
    """Plain JSON: numpy scalars as numbers, tuples as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        # A lone surrogate (an undecodable byte of a path) is no valid JSON text for many readers.
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
    return str(value)
