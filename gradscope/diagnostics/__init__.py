"""One module per diagnostic: pure functions of arrays, numpy and scipy only."""

from __future__ import annotations

from gradscope.diagnostics.curve import DecayCurve, decay_curve
from gradscope.diagnostics.decay import DecayFit, combine_fits, fit_decay

__all__ = ["DecayCurve", "DecayFit", "combine_fits", "decay_curve", "fit_decay"]
