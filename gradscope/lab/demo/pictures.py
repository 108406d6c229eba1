"""The demo's figures: which recordings each one shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradscope.lab.sweep.story import DECAY_CAPTION, LOWEST, decay_by_threshold
from gradscope.plots import decay, gates, norm_distribution, story, sweep_loss, timescales, training
from gradscope.report.telling import Picture


def cover(runs: Sequence[Any]) -> Picture:
    """The whole answer: before training, through it by threshold, and what was learnt."""
    data = story.table(runs)
    return Picture("story", "story", story.TITLE, story.caption(data), data)


def decay_of(shown: Mapping[str, Any], when: str) -> Picture:
    """The curve of the state that describes each network, by its name, before (``"start"``) or after training."""
    data = _named(decay.table(list(shown.values()), step="first" if when == "start" else None), shown)
    title = "Decay of the gradient before training" if when == "start" else "Decay of the gradient after training"
    return Picture(f"cells_decay_{when}", "decay", title, decay.caption(data), data, {"lowest": LOWEST})


def inside(shown: Mapping[str, Any]) -> list[Picture]:
    """The way from one figure to the other, and the gates behind it."""
    found = []
    gated = {name: run for name, run in shown.items() if run.site(run.sites[0]).cell in timescales.RETAINING}
    for name, module, of in (("training", training, shown), ("timescales", timescales, gated), ("gates", gates, gated)):
        data = _named(module.table(list(of.values())), of)
        found.append(Picture(f"cells_{name}", name, module.TITLE, module.caption(data), data))
    return found


def clipping(every_seed: Sequence[Any], first_seed: Sequence[Any]) -> list[Picture]:
    """Norms of the first seed's trainings, and the decay of all of them by threshold."""
    found = []
    for name, module, runs in (
        ("sweep_loss", sweep_loss, every_seed),
        ("norm_distribution", norm_distribution, first_seed),
    ):
        data = module.table(runs)
        found.append(Picture(f"clipping_{name}", name, module.TITLE, module.caption(data), data))
    curves = decay_by_threshold(every_seed)
    title = "Decay of the gradient by threshold"
    return [*found, Picture("clipping_decay", "decay", title, DECAY_CAPTION, curves, {"lowest": LOWEST})]


def _named(data: Any, shown: Mapping[str, Any]) -> Any:
    return data.replace({"run": {run.name: name for name, run in shown.items()}})
