"""What textbooks say of networks from the plain one to the GRU, with the numbers that would confirm it.

Every question was fixed before it was measured. Change one only together with the reason for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gradscope.lab.claims import Asked, Statement
from gradscope.lab.lecture.measuring import CLIP_FRACTIONS, Measured, Results

TASKS = ("sunspots", "digits")
#: Below it a gradient has vanished over the sequence, above its inverse it has exploded.
GONE = 1e-2
#: Above it a gradient is preserved over the sequence.
KEPT = 0.1
#: Differences too small to matter: a rate that changes the gradient at 60 steps back by less than a factor of two ...
SAME_RATE = 0.005
#: ... a loss within a twentieth of the other's ...
SAME_LOSS = 1.05
#: ... and a gap between two losses within a fiftieth of what guessing costs.
SAME_GAP = {"sunspots": 0.02, "digits": 0.046}

_ON = {"sunspots": "on the sunspots", "digits": "on the digits"}
_WHEN = {"start": "at initialisation", "end": "after training"}

REACH = "gradient at the first timestep over that at the last"
LOSS_RATIO = "held-out loss over that of the other, same seed"
RATE_DIFFERENCE = "difference of the decay rates, log10 per step, same seed"

_ARRIVES = "{} of the gradient arrives"
_TIMES_LOSS = "{} times the other's loss"
_RATE = "rates differ by {} decades a step"

Value = Callable[[Measured], float]
Measure = Callable[[Results], Sequence[float]]


def _asked(at: tuple[str, ...], what: str, measure: Measure, **options: Any) -> Asked:
    return Asked(" ".join(filter(None, at)), what, measure, at=at, **options)


def _reach(task: str, model: str, when: str, name: str = "", **bounds: float) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        return results.values(task, model, lambda m: m.reach(when))

    return _asked((name, _WHEN[when], _ON[task]), REACH, measure, log=True, reads=_ARRIVES, **bounds)


def _over(a: float, b: float) -> float:
    """a / b; a gradient may be exactly zero, and nothing is known of zero over zero."""
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.inf
    return a / b


def _pairs(results: Results, task: str, models: tuple[str, str], value: Value) -> list[tuple[float, float]]:
    one, other = (results.values(task, model, value) for model in models)
    return list(zip(one, other, strict=True))


def _loss(task: str, models: tuple[str, str], below: float, name: str = "", margin: float = 0.0) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        return [_over(a, b) for a, b in _pairs(results, task, models, lambda m: m.held_out)]

    return _asked((name, _ON[task]), LOSS_RATIO, measure, high=below, log=True, margin=margin, reads=_TIMES_LOSS)


def _faster(task: str, models: tuple[str, str], when: str, name: str = "", site: str | None = None) -> Asked:
    """The first decays faster than the second: its rate is more negative."""

    def measure(results: Results) -> Sequence[float]:
        first = results.values(task, models[0], lambda m: m.rate(when, site, "hidden" if site else None))
        return [a - b for a, b in zip(first, results.values(task, models[1], lambda m: m.rate(when)), strict=True)]

    at = (name, _WHEN[when], _ON[task])
    return _asked(at, RATE_DIFFERENCE, measure, high=0.0, margin=SAME_RATE, reads=_RATE)


def _slower(task: str, models: tuple[str, str], when: str, name: str = "") -> Asked:
    """The first decays more slowly than the second: its rate is less negative."""

    def measure(results: Results) -> Sequence[float]:
        return [a - b for a, b in _pairs(results, task, models, lambda m: m.rate(when))]

    at = (name, _WHEN[when], _ON[task])
    return _asked(at, RATE_DIFFERENCE, measure, low=0.0, margin=SAME_RATE, reads=_RATE)


def _parameters(models: tuple[str, str], low: float, high: float, where: str, core: bool = True) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        def count(m: Measured) -> float:
            return m.core_parameters if core else m.parameters

        return [_over(a, b) for a, b in _pairs(results, "sunspots", models, count)]

    what = "parameters of the recurrent layer, ratio" if core else "parameters, ratio"
    return _asked((where,), what, measure, low=low, high=high, log=True, reads="{} times as many")


def _input_share(task: str, model: str, position: float, name: str) -> Asked:
    """∂L/∂x at a position of the sequence (0 the first timestep) over that at the last."""

    def value(m: Measured) -> float:
        curve = m.curve("start", "", "input")
        return float(10.0 ** (curve[round((1 - position) * (curve.size - 1))] - curve[0]))

    what = "gradient of the input there over that at the last timestep"
    return _asked((name, _ON[task]), what, lambda r: r.values(task, model, value), low=KEPT, log=True, reads=_ARRIVES)


def _hidden_over_cell(model: str, name: str) -> Asked:
    def value(m: Measured) -> float:
        return _over(m.reach("start", quantity="hidden"), m.reach("start", quantity="cell"))

    what, reads = "reach of ∂L/∂h over reach of ∂L/∂c", "∂L/∂h shows {} of the reach"
    return _asked((name, _ON["digits"]), what, lambda r: r.values("digits", model, value), low=1 / 3, high=3,
                  reads=reads)  # fmt: skip


def _gate_alone(gate: str, name: str) -> Asked:
    """What a bias of 1 more on this gate alone does to the rate, over what it does on the forget gate."""

    def change(results: Results, one: str) -> list[float]:
        return [a - b for a, b in _pairs(results, "digits", (f"lstm-{one}-plus-1", "lstm"), lambda m: m.rate("start"))]

    def measure(results: Results) -> Sequence[float]:
        return [_over(a, b) for a, b in zip(change(results, gate), change(results, "f"), strict=True)]

    what = "change of the decay rate by a bias of 1 more, over that by a bias of 1 more on the forget gate, same seed"
    return _asked((name,), what, measure, low=-0.5, high=0.5, reads="{} times the change by the forget gate")


def _cell_path(model: str, when: str, name: str) -> Asked:
    def value(m: Measured) -> float:
        site, middle = m.main[0], m.curve(when).size // 2
        share = m.curve(when, site, "cell_path")[middle] - m.curve(when, site, "cell")[middle]
        return float(10.0**share)

    what = "∂L/∂c along the cell path alone over ∂L/∂c, half-way back"
    return _asked((name, _WHEN[when], _ON["digits"]), what, lambda r: r.values("digits", model, value), low=0.5,
                  log=True, reads="the cell path alone carries {}")  # fmt: skip


def _forget_predicts(model: str, name: str) -> Asked:
    def value(m: Measured) -> float:
        predicted = float(m.forget["start"].mean())
        return m.rate("start") / predicted

    what = "measured rate over mean log10 of the forget gate"
    return _asked((name, _ON["digits"]), what, lambda r: r.values("digits", model, value), low=0.5, high=2.0,
                  reads="measured over predicted: {}")  # fmt: skip


def _gap(task: str) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        return [a - b for a, b in _pairs(results, task, ("gru", "lstm"), lambda m: m.held_out - m.train_loss)]

    what = "gap of the GRU minus gap of the LSTM, same seed"
    return _asked((_ON[task],), what, measure, high=0.0, margin=SAME_GAP[task], reads="the gap differs by {}")


def _learns(model: str, name: str) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        return results.values("digits", model, lambda m: m.metric)

    return _asked((name,), "held-out accuracy (guessing: .10)", measure, high=0.2, reads="held-out accuracy {}")


def _clip_loss(threshold: float) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        def value(m: Measured) -> float:
            return min(m.last_losses, 10.0)

        clipped = results.values("sunspots", "rnn-gain-2", value, threshold)
        free = results.values("sunspots", "rnn-gain-2", value, None)
        return [_over(a, b) for a, b in zip(clipped, free, strict=True)]

    what = "training loss at the end (10, if diverged) over that without clipping, same seed"
    return _asked((f"at threshold {threshold:g}",), what, measure, high=1.0, log=True, margin=SAME_LOSS,
                  reads="{} times the loss without clipping")  # fmt: skip


def _clip_reach(threshold: float) -> Asked:
    def measure(results: Results) -> Sequence[float]:
        clipped = results.values("digits", "rnn", lambda m: m.reach("end"), threshold)
        free = results.values("digits", "rnn", lambda m: m.reach("end"), None)
        return [_over(a, b) for a, b in zip(clipped, free, strict=True)]

    what = "reach after training over that without clipping, same seed"
    return _asked((f"by norm clipping at {threshold:g}",), what, measure, low=10.0, log=True,
                  reads="{} times what reaches back without")  # fmt: skip


def _timestep_clip(model: str, fraction: float, low: float, high: float, clip: float | str | None) -> Asked:
    def value(m: Measured) -> float:
        return float(10.0 ** (m.clipped[fraction][-1] - m.clipped[math.inf][-1]))

    def measure(results: Results) -> Sequence[float]:
        return results.values("sunspots", model, value, clip)

    where = f"by clipping every timestep at {fraction:g} of the adjoint's size at lag 0"
    what = "gradient at the first timestep over that without the clip"
    return _asked((where,), what, measure, low=low, high=high, log=True, reads="{} times what reaches back without")


#: Chapter to its statements.
TEXTBOOK: dict[str, tuple[Statement, ...]] = {
    "window": (
        Statement(
            "A recurrent network needs fewer parameters than a fully connected one over the same window.",
            (_parameters(("rnn", "window"), 0.0, 1.0, "for an RNN and a window of 60 months", core=False),
             _parameters(("lstm", "window"), 0.0, 1.0, "for an LSTM of the same width", core=False)),
        ),
        Statement(
            "A recurrent network predicts sequences better than a fully connected one.",
            tuple(_loss(task, (model, "window"), 1.0, name, SAME_LOSS) for task in TASKS
                  for model, name in (("rnn", "for the RNN"), ("lstm", "for the LSTM"), ("gru", "for the GRU"))),
        ),
        Statement(
            "Through a fully connected network every timestep has the same short path to the loss.",
            tuple(_reach(task, "window", when, low=KEPT, high=1 / KEPT) for task in TASKS for when in _WHEN),
        ),
    ),
    "rnn": (
        Statement(
            "The gradient of a plain RNN vanishes.",
            tuple(_reach(task, "rnn", when, high=GONE) for task in TASKS for when in _WHEN),
        ),
        Statement(
            "An orthogonal recurrent matrix keeps the gradient's norm.",
            tuple(_reach(task, "rnn-orthogonal", when, low=KEPT) for task in TASKS for when in _WHEN),
        ),
        Statement(
            "Where the gradient vanishes at initialisation, training stays at guessing.",
            tuple(_learns(m, name) for m, name in (("rnn", "for the RNN"), ("lstm", "for the LSTM"),
                  ("lstm-forget1", "for the LSTM with forget bias 1"), ("gru", "for the GRU"))),
        ),
    ),
    "depth": (
        Statement(
            "Stacking recurrent layers makes the gradient vanish faster along time.",
            tuple(_faster("sunspots", ("rnn-stacked", "rnn"), when, f"in the {level} layer", f"recurrent/l{i}")
                  for when in _WHEN for i, level in enumerate(("lower", "upper"))),
        ),
        Statement(
            "Reading in both directions gives the first timestep a short path to the loss.",
            (_input_share("digits", "rnn-bidirectional", 0.0, "at the first timestep"),
             _input_share("sunspots", "rnn-bidirectional", 0.0, "at the first timestep"),
             _input_share("digits", "rnn-bidirectional", 0.5, "at the middle timestep"),
             _input_share("sunspots", "rnn-bidirectional", 0.5, "at the middle timestep")),
        ),
    ),
    "lstm": (
        Statement(
            "An LSTM preserves the gradient.",
            tuple(_reach("digits", model, when, name, low=KEPT) for model, name in (
                ("lstm", "by default"), ("lstm-forget1", "with forget bias 1"),
                ("lstm-chrono", "with chrono initialisation")) for when in _WHEN),
        ),
        Statement(
            "A forget bias of 1 lets the gradient reach further back.",
            tuple(_slower(task, ("lstm-forget1", "lstm"), when) for task in TASKS for when in _WHEN),
        ),
        Statement(
            "Of the gates of an LSTM, the forget gate alone decides how fast the gradient decays: opening another "
            "changes the rate by less than half of what opening the forget gate does.",
            tuple(_gate_alone(gate, name) for gate, name in (
                ("i", "for the input gate"), ("g", "for the candidate"), ("o", "for the output gate"))),
        ),
        Statement(
            "∂L/∂h shows how far back an LSTM's gradient reaches.",
            (_hidden_over_cell("lstm", "by default"),
             _hidden_over_cell("lstm-forget1", "with forget bias 1"),
             _hidden_over_cell("lstm-chrono", "with chrono initialisation"),
             _hidden_over_cell("lstm-pinned", "without recurrent weights and with forget gates held at .98")),
        ),
        Statement(
            "The gradient of an LSTM travels along the cell path: a product of forget gates.",
            (_cell_path("lstm", "start", "by default"), _cell_path("lstm", "end", "by default"),
             _cell_path("lstm-forget1", "start", "with forget bias 1"),
             _cell_path("lstm-chrono", "start", "with chrono initialisation")),
        ),
        Statement(
            "The average forget gate tells how fast the gradient decays.",
            (_forget_predicts("lstm", "by default"),
             _forget_predicts("lstm-forget1", "with forget bias 1"),
             _forget_predicts("lstm-chrono", "with chrono initialisation")),
        ),
    ),
    "variants": (
        Statement(
            "Peepholes let the gradient reach further back.",
            tuple(_slower(task, ("peephole", "lstm"), when) for task in TASKS for when in _WHEN),
        ),
        Statement(
            "Coupling the forget gate to the input gate saves a quarter of the recurrent layer.",
            (_parameters(("coupled", "peephole"), 0.70, 0.80, "against the LSTM with peepholes"),
             _parameters(("coupled", "lstm"), 0.70, 0.80, "against torch's LSTM with its two biases")),
        ),
        Statement(
            "Coupled gates predict as well as an LSTM (at most a tenth worse).",
            tuple(_loss(task, ("coupled", "lstm"), 1.1) for task in TASKS),
        ),
    ),
    "gru": (
        Statement(
            "A GRU has three quarters of the parameters of an LSTM.",
            (_parameters(("gru", "lstm"), 0.749, 0.751, "in the recurrent layer"),),
        ),
        Statement(
            "A GRU predicts as well as an LSTM (at most a tenth worse).",
            tuple(_loss(task, ("gru", "lstm"), 1.1) for task in TASKS),
        ),
        Statement(
            "With fewer parameters, a GRU has the smaller gap between training and held-out loss.",
            tuple(_gap(task) for task in TASKS),
        ),
        Statement(
            "The gradient of a GRU reaches further back than that of an LSTM.",
            tuple(_slower(task, ("gru", "lstm"), when) for task in TASKS for when in _WHEN),
        ),
        Statement(
            "A recurrence that is linear in its state preserves the gradient.",
            tuple(_reach(task, model, "start", name, low=KEPT) for model, name in
                  (("lru", "for the LRU"), ("mingru", "for the minGRU")) for task in TASKS),
        ),
    ),
    "clipping": (
        Statement(
            "Recurrent weights that are too large make the gradient explode.",
            tuple(_reach(task, model, "start", name, low=1 / GONE) for model, name in
                  (("rnn-gain-1.5", "for singular values of 1.5"), ("rnn-gain-2", "for singular values of 2"))
                  for task in TASKS),
        ),
        Statement(
            "Clipping the norm tames an exploding gradient: training ends at a lower loss.",
            tuple(_clip_loss(threshold) for threshold in (10.0, 1.0, 0.1)),
        ),
        Statement(
            "Clipping every timestep tames an exploding adjoint.",
            tuple(_timestep_clip("rnn-gain-2", f, 0.0, 0.1, None) for f in CLIP_FRACTIONS),
        ),
        Statement(
            "Clipping brings a vanished gradient back.",
            (*(_clip_reach(threshold) for threshold in (1.0, 0.1)),
             *(_timestep_clip("rnn", f, 10.0, math.inf, "adam") for f in CLIP_FRACTIONS[1:])),
        ),
    ),
}  # fmt: skip
