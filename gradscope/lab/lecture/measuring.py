"""What the lecture measures of one training: parameters, losses, and exact adjoints before and after it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.capture import clip_whatif, snapshot
from gradscope.errors import NotRecordedError
from gradscope.lab.jobs import make_way
from gradscope.lab.zoo.models import SequenceModel, build_model, count_parameters
from gradscope.lab.zoo.tasks import Task, build_task
from gradscope.lab.zoo.train import Evaluation, TrainSettings, train

Floats = NDArray[np.float64]

# The states a decay curve may be drawn of, and the part of an LSTM's that the cell path alone carries.
_QUANTITIES = ("hidden", "cell", "cell_path")
_SEQUENCES = 32
_FIRST_LAG = 5  # before it the readout's own direction dominates the slope
#: Thresholds of the per-timestep clip, as fractions of a typical element of the adjoint at lag 0.
CLIP_FRACTIONS = (1.0, 0.1, 0.01)


@torch.no_grad()
def _large_weights(core: Any) -> None:
    core.weight_hh_l0.mul_(2.0)


@torch.no_grad()
def _larger_weights(core: Any) -> None:
    core.weight_hh_l0.mul_(1.5)


@torch.no_grad()
def _pinned(core: Any) -> None:
    """Cases where ∂L/∂h says nothing: no recurrent weights, forget gates held at .98."""
    hidden = core.hidden_size
    core.weight_hh_l0.zero_()
    core.weight_ih_l0[hidden : 2 * hidden] = 0.0
    core.bias_hh_l0[hidden : 2 * hidden] = 0.0
    core.bias_ih_l0[hidden : 2 * hidden] = float(np.log(0.98 / 0.02))


def _opened(position: int) -> Callable[[Any], None]:
    """A bias of 1 more on one gate alone; torch's order is i, f, g, o."""

    @torch.no_grad()
    def edit(core: Any) -> None:
        hidden = core.hidden_size
        core.bias_ih_l0[position * hidden : (position + 1) * hidden] += 1.0

    return edit


#: Members that are no textbook's, by name: member of the zoo, and what is done to its core.
VARIANTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "rnn-gain-1.5": ("rnn-orthogonal", _larger_weights),
    "rnn-gain-2": ("rnn-orthogonal", _large_weights),
    "lstm-pinned": ("lstm", _pinned),
    **{f"lstm-{gate}-plus-1": ("lstm", _opened(position)) for position, gate in enumerate("ifgo")},
}


@dataclass(frozen=True)
class Experiment:
    """One training of the lecture; ``recorded`` keeps a run of it."""

    task: str
    model: str
    settings: TrainSettings
    length: int | None = None
    hidden_size: int = 32
    trained: bool = True
    recorded: bool = False

    @property
    def name(self) -> str:
        """Name of its run: differs wherever the experiment does."""
        clip = "" if self.settings.optimizer == "adam" else f"-sgd-clip-{self.settings.clip or 'none'}"
        return f"{self.task}-{self.model}{clip}-seed-{self.settings.seed}"

    def build(self, task: Task) -> nn.Module:
        """The model before training."""
        zoo, edit = VARIANTS.get(self.model, (self.model, None))
        model = build_model(zoo, task, self.hidden_size, seed=self.settings.seed)
        if edit is not None:
            edit(model.recurrent)
        return model


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of an experiment.

    Attributes
    ----------
    parameters, core_parameters : int
        Of the whole model; without the readout (0 where there is no recurrence).
    losses : list of float
        Batch loss of every step.
    evaluations : list of Evaluation
        On the held-out part.
    train_loss : float
        At the end, on training data as many as are held out.
    curves : dict
        (``"start"`` or ``"end"``, site, quantity) to log10 of the geometric mean norm over sequences, by lag (L,).
        The site ``""`` is the whole model, with ∂L/∂x.
    clipped : dict
        Threshold (fraction of a typical element at lag 0) to the curve with the adjoint clipped at every timestep.
    forget : dict
        ``"start"`` or ``"end"`` to mean log10 of the forget gate, per unit (H,), of an LSTM.
    main : tuple of str
        Site and quantity that describe the model.
    """

    experiment: Experiment
    parameters: int
    core_parameters: int
    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    train_loss: float = float("nan")
    diverged: int | None = None
    curves: dict[tuple[str, str, str], Floats] = field(default_factory=dict)
    clipped: dict[float, Floats] = field(default_factory=dict)
    forget: dict[str, Floats] = field(default_factory=dict)
    main: tuple[str, str] = ("", "input")

    def curve(self, when: str, site: str | None = None, quantity: str | None = None) -> Floats:
        """The curve of a site, by default of the one that describes the model; NaN throughout where unknown."""
        key = when, self.main[0] if site is None else site, self.main[1] if quantity is None else quantity
        found = self.curves.get(key)
        return np.full(2, np.nan) if found is None else found

    def reach(self, when: str, site: str | None = None, quantity: str | None = None) -> float:
        """Gradient at the furthest lag as a fraction of that at lag 0; exactly 0 where it is."""
        curve = self.curve(when, site, quantity)
        return float(10.0 ** (curve[-1] - curve[0]))

    def rate(self, when: str, site: str | None = None, quantity: str | None = None) -> float:
        """Slope of the curve, log10 per step, from lag 5 (a quarter of a short sequence) on."""
        curve = self.curve(when, site, quantity)
        first = min(_FIRST_LAG, curve.size // 4)
        lags = np.arange(first, curve.size)
        if lags.size < 2 or not np.isfinite(curve[first:]).all():
            return float("nan")
        return float(np.polyfit(lags, curve[first:], 1)[0])

    @property
    def held_out(self) -> float:
        """Held-out loss at the end; NaN where training diverged."""
        return self.evaluations[-1].loss if self.evaluations and self.diverged is None else float("nan")

    @property
    def metric(self) -> float:
        """Held-out metric at the end."""
        return self.evaluations[-1].metric if self.evaluations else float("nan")

    @property
    def last_losses(self) -> float:
        """Mean training loss of the last tenth of the steps; infinite where training diverged."""
        if self.diverged is not None:
            return float("inf")
        return float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


class Results:
    """Everything measured, by task, model and clipping threshold; values come one per seed, in the order of seeds."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self.all = list(measured)

    def of(self, task: str, model: str, clip: float | str | None = "adam") -> list[Measured]:
        """Measurements by seed; ``clip`` selects those trained by SGD with that threshold (None: without)."""
        found = [
            one for one in self.all
            if (one.experiment.task, one.experiment.model) == (task, model) and _matches(one.experiment.settings, clip)
        ]  # fmt: skip
        return sorted(found, key=lambda one: one.experiment.settings.seed)

    def values(self, task: str, model: str, value: Callable[[Measured], float], clip: Any = "adam") -> list[float]:
        """``value`` of each seed."""
        return [value(one) for one in self.of(task, model, clip)]


def _matches(settings: TrainSettings, clip: float | str | None) -> bool:
    return settings.optimizer == "adam" if clip == "adam" else settings.optimizer == "sgd" and settings.clip == clip


def run_experiment(experiment: Experiment, runs: Path | None) -> Measured:
    """Train and measure; the run, where one is kept, is ``runs / experiment.name``."""
    with torch.random.fork_rng(devices=[]):
        return _run(experiment, runs)


def _run(experiment: Experiment, runs: Path | None) -> Measured:
    task = build_task(experiment.task, experiment.length)
    model = experiment.build(task)
    curves, forget, clipped = _curves(model, task, "start"), _forget(model, task, "start"), _clipped(model, task)
    facts: dict[str, Any] = {}
    if experiment.trained:
        kept = runs is not None and experiment.recorded
        options = _recording(experiment, model) if kept else {}
        run_dir = runs / experiment.name if kept and runs is not None else None
        if run_dir is not None:
            make_way(run_dir)
        found = train(model, task, experiment.settings, run_dir=run_dir, progress=False, **options)
        facts = {"losses": found.losses, "evaluations": found.evaluations, "diverged": found.diverged}
        facts["train_loss"] = _train_loss(model, task)
        if found.diverged is None:
            curves |= _curves(model, task, "end")
            forget |= _forget(model, task, "end")
    core = getattr(model, "recurrent", None)
    return Measured(
        experiment, count_parameters(model), 0 if core is None else count_parameters(core),
        curves=curves, clipped=clipped, forget=forget, main=_main(curves, core), **facts,
    )  # fmt: skip


def _recording(experiment: Experiment, model: nn.Module) -> dict[str, Any]:
    every = max(1, experiment.settings.steps // 20)
    options: dict[str, Any] = {"every": every, "samples": min(16, experiment.settings.batch_size)}
    if not isinstance(model, SequenceModel):  # no recurrence: the gradient of what goes in
        return options | {"sites": ["layers"]}
    return options | {"quantities": "all"}


def _batch(task: Task) -> tuple[Tensor, Tensor]:
    # The same sequences for every model and moment.
    return task.draw(torch.Generator().manual_seed(2**31 + 7), _SEQUENCES)


def _curves(model: nn.Module, task: Task, when: str) -> dict[tuple[str, str, str], Floats]:
    """Adjoints in float64, of a copy: float32 would round what is far back to zero."""
    model = copy.deepcopy(model).double()
    inputs, targets = _batch(task)
    x, y = inputs.double().requires_grad_(), targets.double() if targets.is_floating_point() else targets
    (gradient,) = torch.autograd.grad(task.loss(model(x), y), x)
    found = {(when, "", "input"): _by_lag(gradient.transpose(0, 1), reverse=False)}
    if not isinstance(model, SequenceModel):
        return found
    taken = snapshot(model, lambda: task.loss(model(x.detach()), y))
    for site in taken:
        for quantity in _QUANTITIES:
            with contextlib.suppress(NotRecordedError):
                found[when, site, quantity] = _by_lag(getattr(taken[site], quantity), taken[site].info.reverse)
    return found


def _by_lag(values: Tensor, reverse: bool) -> Floats:
    """log10 of the geometric mean over sequences of the norms of ``(T, B, H)``; -inf where one is exactly zero."""
    norms = values.norm(dim=2).numpy()
    with np.errstate(divide="ignore"):
        logs = np.log10(norms if reverse else norms[::-1]).mean(axis=1)
    return np.asarray(logs, dtype=np.float64)


def _main(curves: dict[tuple[str, str, str], Floats], core: nn.Module | None) -> tuple[str, str]:
    """Site and quantity that describe a model: the lowest site's cell state where it has one."""
    sites = [(site, quantity) for _, site, quantity in curves if site]
    if core is None or not sites:
        return "", "input"
    lowest = sites[0][0]
    return lowest, "cell" if (lowest, "cell") in sites else "hidden"


def _forget(model: nn.Module, task: Task, when: str) -> dict[str, Floats]:
    core: Any = getattr(model, "recurrent", None)
    if not isinstance(core, nn.LSTM):
        return {}
    inputs, _ = _batch(task)
    weights: Any = core  # its parameters are made by name
    with torch.no_grad():
        output, _ = core(inputs)
        before = torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)
        a = nn.functional.linear(inputs, weights.weight_ih_l0, weights.bias_ih_l0)
        a = a + nn.functional.linear(before, weights.weight_hh_l0, weights.bias_hh_l0)
        a = a.chunk(4, -1)[1]  # torch's gate order: i, f, g, o
        logs = nn.functional.logsigmoid(a.double()) / np.log(10.0)
    return {when: logs.mean(dim=(0, 1)).numpy()}


def _clipped(model: nn.Module, task: Task) -> dict[float, Floats]:
    """The curve with the gate adjoints clipped at every timestep, for thresholds relative to the adjoint at lag 0."""
    core = getattr(model, "recurrent", None)
    if not isinstance(core, nn.RNN) or core.num_layers > 1 or core.bidirectional:
        return {}
    model = copy.deepcopy(model).double()
    x, y = _batch(task)
    x, y = x.double(), y.double() if y.is_floating_point() else y

    def loss() -> Tensor:
        return task.loss(model(x), y)

    unclipped = clip_whatif(model, loss, [float("inf")], samples=None).curves[0]
    typical = float(np.exp(np.log(unclipped[:, 0]).mean())) / core.hidden_size**0.5
    found = clip_whatif(model, loss, [float("inf"), *(f * typical for f in CLIP_FRACTIONS)], samples=None)
    with np.errstate(divide="ignore"):
        logs = np.log10(found.curves).mean(axis=1)
    return dict(zip((float("inf"), *CLIP_FRACTIONS), logs, strict=True))


def _train_loss(model: nn.Module, task: Task) -> float:
    inputs, targets = task.draw(torch.Generator().manual_seed(2**31 + 9), len(task.held_out[0]))
    with torch.no_grad():
        return float(task.loss(model(inputs), targets))
