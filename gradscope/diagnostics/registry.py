"""Which diagnostics there are, and what has to be recorded for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic: where its function lives, what it needs from a run, and what it says.

    ``needs`` are quantities to record (any one is enough where ``any_of``); empty where it needs something else, which
    ``source`` then names.
    """

    name: str
    function: str
    summary: str
    needs: tuple[str, ...] = ()
    any_of: bool = False
    source: str = "sites"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(importlib.import_module(f"gradscope.diagnostics.{module}"), name)
        return function(*args, **kwargs)

    def missing(self, quantities: tuple[str, ...]) -> tuple[str, ...]:
        """Quantities that would have to be recorded as well."""
        lacking = tuple(name for name in self.needs if name not in quantities)
        return () if self.any_of and len(lacking) < len(self.needs) else lacking


_CURVES = ("hidden", "cell", "input")

DIAGNOSTICS: dict[str, Diagnostic] = {
    diagnostic.name: diagnostic
    for diagnostic in (
        Diagnostic("decay", "decay:fit_decay", "rate, half-life and verdict of a decay curve", _CURVES, any_of=True),
        Diagnostic("law", "law:compare_laws", "exponential against power-law decay", _CURVES, any_of=True),
        Diagnostic("clipping", "clipping:clip_statistics", "what clipping did", source="clips"),
        Diagnostic("thresholds", "thresholds:threshold_table", "what other thresholds would have done", source="clips"),
        Diagnostic("suggestion", "thresholds:suggest_threshold", "thresholds worth comparing", source="clips"),
        Diagnostic("timescale", "gates:timescale_of_log", "how long each unit retains", ("activations",)),
        Diagnostic("ratio", "ratio:one_step_ratio", "Ω, the norm's change in one step", ("hidden", "recurrent")),
        Diagnostic("cell_path", "cell_path:cell_path_share", "share of the cell path alone", ("cell", "cell_path")),
        Diagnostic("consistency", "consistency:direction_consistency", "agreement across the batch", ("consistency",)),
        Diagnostic("noise", "noise:noise_scale", "gradient noise scale", source="two batch sizes"),
        Diagnostic("spectrum", "spectrum:spectrum_band", "singular values of Jacobians", source="jacobians"),
        Diagnostic("lyapunov", "lyapunov:lyapunov_exponents", "Lyapunov spectrum", source="jacobians"),
    )
}
