"""One module per diagnostic: pure functions of arrays, numpy and scipy only.

``gradscope.reading`` applies them to a recorded run, and ``gradscope.words`` says what they found.
"""

from __future__ import annotations

from gradscope.diagnostics.cell_path import cell_path_share
from gradscope.diagnostics.clipping import ClipStatistics, clip_statistics, norm_scale, running_share, value_clip_effect
from gradscope.diagnostics.consistency import direction_consistency
from gradscope.diagnostics.curve import DecayCurve, decay_curve
from gradscope.diagnostics.decay import DecayFit, combine_fits, fit_decay
from gradscope.diagnostics.difference import MeanDifference, compare_means, compare_rates
from gradscope.diagnostics.entry import Entry, find_entry, unknown_entry
from gradscope.diagnostics.gates import (
    Saturation,
    TimescaleSummary,
    saturation,
    summarise_timescales,
    timescale,
    timescale_of_log,
)
from gradscope.diagnostics.law import LawComparison, compare_laws
from gradscope.diagnostics.lyapunov import LyapunovSpectrum, lyapunov_exponents
from gradscope.diagnostics.noise import NoiseScale, noise_scale
from gradscope.diagnostics.ratio import one_step_ratio
from gradscope.diagnostics.spectrum import SpectrumBand, spectrum_band
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
    "Entry",
    "LawComparison",
    "LyapunovSpectrum",
    "MeanDifference",
    "NoiseScale",
    "Saturation",
    "SpectrumBand",
    "ThresholdEffect",
    "ThresholdSuggestion",
    "TimescaleSummary",
    "adaptive_table",
    "cell_path_share",
    "clip_statistics",
    "combine_fits",
    "compare_laws",
    "compare_means",
    "compare_rates",
    "decay_curve",
    "direction_consistency",
    "find_entry",
    "fit_decay",
    "lyapunov_exponents",
    "noise_scale",
    "norm_scale",
    "one_step_ratio",
    "running_share",
    "saturation",
    "spectrum_band",
    "suggest_threshold",
    "summarise_timescales",
    "threshold_table",
    "timescale",
    "timescale_of_log",
    "unknown_entry",
    "value_clip_effect",
]
