"""One module per diagnostic: pure functions of arrays, numpy and scipy only."""

from __future__ import annotations

from gradscope.diagnostics.clipping import ClipStatistics, clip_statistics, norm_scale, running_share, value_clip_effect
from gradscope.diagnostics.curve import DecayCurve, decay_curve
from gradscope.diagnostics.decay import DecayFit, combine_fits, fit_decay
from gradscope.diagnostics.thresholds import (
    AdaptiveEffect,
    ThresholdEffect,
    ThresholdSuggestion,
    adaptive_table,
    suggest_threshold,
    threshold_table,
)

__all__ = [
    "AdaptiveEffect",
    "ClipStatistics",
    "DecayCurve",
    "DecayFit",
    "ThresholdEffect",
    "ThresholdSuggestion",
    "adaptive_table",
    "clip_statistics",
    "combine_fits",
    "decay_curve",
    "fit_decay",
    "norm_scale",
    "running_share",
    "suggest_threshold",
    "threshold_table",
    "value_clip_effect",
]
