"""The lecture's figures: which measurements each one shows, as tables for :mod:`gradscope.plots`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnostics import decay_curve
from gradscope.lab.claims import Claim
from gradscope.lab.lecture.measuring import CLIP_FRACTIONS, Results
from gradscope.lab.lecture.trainings import EXPLODING_CLIPS
from gradscope.plots import decay, evidence, learning
from gradscope.plots import gates as gates_plot
from gradscope.plots import timescales as timescales_plot
from gradscope.report.telling import Picture

_WHEN = {"start": "at initialisation", "end": "after training"}

#: The zoo in two figures: fourteen lines are too many for one.
_FAMILIES = {
    "plain": ("window", "rnn", "rnn-orthogonal", "irnn", "rnn-stacked", "rnn-bidirectional"),
    "gated": ("lstm", "lstm-forget1", "lstm-chrono", "peephole", "coupled", "gru", "mingru", "lru"),
}


def cover(results: Results) -> Picture:
    """The members a course begins with, before training: what most statements are about."""
    lines = _plain("rnn", "rnn-orthogonal", "lstm", "lstm-forget1", "lstm-chrono", "gru", "lru")
    return _curves(results, "cover", "Before training: how much of the gradient gets how far back, on the digits",
                   "digits", lines, "start")  # fmt: skip


def zoo(results: Results) -> list[Picture]:
    """Every network's curve on the digits."""
    titles = {"plain": "Networks without gates", "gated": "Networks with gates, and the LRU"}
    return [
        _curves(results, f"zoo_{family}_{when}", f"{titles[family]}, on the digits {_WHEN[when]}", "digits",
                _plain(*models), when)
        for family, models in _FAMILIES.items()
        for when in _WHEN
    ]  # fmt: skip


def _decay(
    results: Results, task: str, lines: Sequence[tuple[str, str, str, str]], when: str, clip: Any = "adam"
) -> pd.DataFrame:
    """A curve over seeds per line: (name, model, site, quantity), empty for those that describe the model."""
    frames = []
    for name, model, site, quantity in lines:
        measured = [(one, one.curve(when, site or None, quantity or None)) for one in results.of(task, model, clip)]
        found = [(one, curve) for one, curve in measured if np.isfinite(curve[0])]
        if found:
            at, shown = found[0][0].main
            frames.append(_curve_rows([curve for _, curve in found], name, site or at, quantity or shown))
    return pd.concat(frames, ignore_index=True)


def _curve_rows(curves: Sequence[np.ndarray], name: str, site: str, quantity: str) -> pd.DataFrame:
    norms = 10.0 ** np.array(curves)
    curve = decay_curve(np.arange(norms.shape[1]), norms)
    return decay.curve_frame(curve, {"run": name, "site": site or "inputs", "quantity": quantity, "step": 0}, 0.999)


def _caption(results: Results, task: str, more: str = "") -> str:
    seeds = len(results.of(task, "rnn"))
    return (
        f"Geometric mean over 32 sequences and {seeds} seeds, relative to lag 0; band, where there is room for one: "
        f"lowest to highest seed. Triangles on the lower edge: exactly zero in most seeds.{' ' if more else ''}{more}"
    )


def _curves(
    results: Results, name: str, title: str, task: str, lines: Sequence[tuple[str, str, str, str]], when: str,
    more: str = "",
) -> Picture:  # fmt: skip
    return Picture(name, "decay", title, _caption(results, task, more), _decay(results, task, lines, when))


def _plain(*models: str) -> list[tuple[str, str, str, str]]:
    return [(model, model, "", "") for model in models]


def _losses(results: Results, name: str, task: str, models: Sequence[str], guess: float) -> Picture:
    found = {model: results.of(task, model) for model in models}
    data = learning.table(
        {model: [(one.losses, {e.step: e.loss for e in one.evaluations}) for one in of] for model, of in found.items()}
    )
    line = "Dotted line: guessing the mean of training, on training data." if task == "sunspots" else (
        "Dotted line: guessing."
    )  # fmt: skip
    caption = f"{learning.caption(data)} {line}"
    return Picture(name, "learning", f"Training and held-out loss on the {task}", caption, data, {"guess": guess})


_GUESS = {"sunspots": 1.0, "digits": float(np.log(10))}


def _window(results: Results) -> list[Picture]:
    models = ("window", "rnn", "lstm", "gru")
    inputs = [(model, model, "", "input") for model in models]
    return [
        *(_losses(results, f"loss_{task}", task, models, _GUESS[task]) for task in _GUESS),
        Picture("inputs", "decay", "Gradient of the input, on the digits after training", _caption(results, "digits"),
                _decay_of_inputs(results, "digits", inputs)),
    ]  # fmt: skip


def _decay_of_inputs(results: Results, task: str, lines: Sequence[tuple[str, str, str, str]]) -> pd.DataFrame:
    frames = [
        _curve_rows([one.curves["end", "", "input"] for one in results.of(task, model) if one.diverged is None],
                    name, "", "input")
        for name, model, *_ in lines
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _rnn(results: Results) -> list[Picture]:
    models = _plain("rnn", "rnn-orthogonal", "irnn")
    title = "Three recurrent matrices on the sunspots"
    return [_curves(results, f"rnn_{when}", f"{title}, {_WHEN[when]}", "sunspots", models, when) for when in _WHEN]


def _depth(results: Results) -> list[Picture]:
    stacked = [
        ("one layer", "rnn", "", ""),
        ("stacked, lower", "rnn-stacked", "recurrent/l0", "hidden"),
        ("stacked, upper", "rnn-stacked", "recurrent/l1", "hidden"),
    ]
    frames = [
        _curve_rows([one.curves["start", "", "input"] for one in results.of("digits", model)], model, "", "input")
        for model in ("rnn", "rnn-bidirectional")
    ]
    more = "Lag counts back from the last timestep: the first one is on the right."
    return [
        _curves(results, "stacked", "One layer and two, on the sunspots at initialisation", "sunspots", stacked,
                "start"),
        Picture("bidirectional", "decay", "Gradient of the input, one direction and two, on the digits",
                _caption(results, "digits", more), pd.concat(frames, ignore_index=True)),
    ]  # fmt: skip


def _lstm(results: Results) -> list[Picture]:
    members = ("lstm", "lstm-forget1", "lstm-chrono")
    both = [
        (name, model, "recurrent/l0", quantity)
        for name, model in (("as initialised", "lstm"), ("chrono", "lstm-chrono"), ("gates held at .98", "lstm-pinned"))
        for quantity in ("cell", "hidden")
    ]
    paths = [(model, model, "recurrent/l0", quantity) for model in members for quantity in ("cell", "cell_path")]
    title = "Three initialisations of the LSTM on the digits"
    return [
        *(_curves(results, f"lstm_{when}", f"{title}, {_WHEN[when]}", "digits", _plain(*members), when)
          for when in _WHEN),
        _curves(results, "hidden_or_cell", "Hidden state and cell state, at initialisation", "digits", both, "start"),
        _curves(results, "cell_path", "Cell path alone and in total, at initialisation", "digits", paths, "start"),
    ]  # fmt: skip


def gates(runs: Sequence[Any]) -> list[Picture]:
    """Gate adjoints and retention times of the recorded LSTMs; none without such runs."""
    chosen = [
        run for run in runs if any("gates" in run.quantities(s) and run.site(s).cell == "lstm" for s in run.sites)
    ]
    if not chosen:
        return []
    adjoints, times = gates_plot.table(chosen), timescales_plot.table(chosen)
    return [
        Picture("gate_adjoints", "gates", "Gate adjoints after training, first seed", gates_plot.caption(adjoints),
                adjoints),
        Picture("retention", "timescales", "Retention times of the forget gates after training, first seed",
                timescales_plot.caption(times), times),
    ]  # fmt: skip


def _variants(results: Results) -> list[Picture]:
    models = _plain("lstm", "peephole", "coupled")
    title = "LSTM, peepholes and coupled gates on the sunspots"
    return [
        *(_curves(results, f"variants_{when}", f"{title}, {_WHEN[when]}", "sunspots", models, when) for when in _WHEN),
        _losses(results, "loss_variants", "digits", ("lstm", "peephole", "coupled"), _GUESS["digits"]),
    ]


def _gru(results: Results) -> list[Picture]:
    models = _plain("lstm", "gru", "mingru", "lru")
    title = "LSTM, GRU, minGRU and LRU on the digits"
    return [
        *(_curves(results, f"gru_{when}", f"{title}, {_WHEN[when]}", "digits", models, when) for when in _WHEN),
        _losses(results, "loss_gru", "sunspots", ("lstm", "gru", "mingru", "lru"), _GUESS["sunspots"]),
    ]


def _clipping(results: Results) -> list[Picture]:
    rows = []
    for clip in EXPLODING_CLIPS:
        for seed, one in enumerate(results.of("sunspots", "rnn-gain-2", clip)):
            head = {"run": f"clip {clip}, seed {seed}", "threshold": np.inf if clip is None else clip}
            gone = one.diverged if one.diverged is not None else len(one.losses)
            steps = np.arange(len(one.losses))
            rows.append(pd.DataFrame({**head, "step": steps, "value": one.losses, "diverged": steps >= gone}))
    caption = (
        "Batch loss of an RNN whose recurrent matrix has all singular values at 2, on the sunspots, SGD with "
        "momentum at 0.05: median over seeds, band from the lowest to the highest."
    )
    losses = pd.concat(rows, ignore_index=True).assign(metric="loss")
    return [
        Picture("clipped_training", "sweep_loss", "Norm clipping where the gradient explodes", caption, losses),
        _clipped(results, "clipped_exploding", "rnn-gain-2", None, "Clipping every timestep where it explodes"),
        _clipped(results, "clipped_vanishing", "rnn", "adam", "Clipping every timestep where it vanishes"),
    ]


def _clipped(results: Results, name: str, model: str, clip: Any, title: str) -> Picture:
    found = results.of("sunspots", model, clip)
    frames = [
        _curve_rows([one.clipped[fraction] for one in found],
                    "no clip" if np.isinf(fraction) else f"clip at {fraction:g}", "recurrent/l0", "hidden")
        for fraction in (np.inf, *CLIP_FRACTIONS)
    ]  # fmt: skip
    caption = _caption(results, "sunspots", "Thresholds as fractions of the adjoint's typical element at lag 0.")
    return Picture(name, "decay", title, caption, pd.concat(frames, ignore_index=True))


#: Chapter to its figures.
OF_CHAPTER: dict[str, Callable[[Results], list[Picture]]] = {
    "window": _window,
    "rnn": _rnn,
    "depth": _depth,
    "lstm": _lstm,
    "variants": _variants,
    "gru": _gru,
    "clipping": _clipping,
}


def of_claims(key: str, claims: Sequence[Claim]) -> list[Picture]:
    """What was asked for a chapter's statements, and what was measured."""
    parts = evidence.parts(evidence.table(claims))
    names = [f"evidence_{key}", *(f"evidence_{key}_{number}" for number in range(2, len(parts) + 1))]
    title = "What was asked, and what was measured"
    return [
        Picture(name, "evidence", title, evidence.caption(part), part) for name, part in zip(names, parts, strict=True)
    ]
