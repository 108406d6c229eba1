"""A small training loop: what ``gradscope demo`` and ``gradscope sweep`` run."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from gradscope.errors import SettingError
from gradscope.lab.zoo.models import count_parameters
from gradscope.lab.zoo.tasks import Task

if TYPE_CHECKING:
    from gradscope.capture import Recorder

# A loss ten times the worst of "untrained" and "guessing" is not a learning curve any more.
_DIVERGED = 10.0


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes
    ----------
    steps, batch_size : int
    optimizer : str
        ``"adam"``, or ``"sgd"`` with momentum .9. Adam divides a gradient by its own size, which undoes most of what
        clipping does; the effect of a threshold shows in SGD.
    learning_rate : float
    clip : float or None
        Threshold on the 2-norm of all gradients; None trains without.
    seed : int
        Fixes the batches. The weights are the caller's.
    evaluate_every : int
        Steps between evaluations on the held-out set; the last step is always evaluated.
    """

    steps: int = 300
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    clip: float | None = None
    seed: int = 0
    evaluate_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} {getattr(self, name)} must be at least 1.")
        if self.optimizer not in ("adam", "sgd"):
            raise SettingError(f"optimizer {self.optimizer!r} must be 'adam' or 'sgd'.")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name} {value} must be a positive number.")


@dataclass(frozen=True)
class Evaluation:
    """Loss and metric on the held-out set after ``step`` optimizer steps."""

    step: int
    loss: float
    metric: float


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    ``losses`` holds the batch loss of every step; ``diverged`` is the step at which training was stopped because the
    loss was no number, or ten times that of guessing, and None otherwise.
    """

    task: str
    metric_name: str
    parameters: int
    settings: TrainSettings
    losses: list[float]
    evaluations: list[Evaluation]
    diverged: int | None
    seconds: float
    run_dir: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.evaluations[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN and infinity as None."""
        data = asdict(self)
        data["losses"] = [_finite(loss) for loss in self.losses]
        for entry in data["evaluations"]:
            entry["loss"], entry["metric"] = _finite(entry["loss"]), _finite(entry["metric"])
        return data


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate(model: nn.Module, task: Task, step: int) -> Evaluation:
    """Evaluate on the task's held-out set."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        inputs, targets = task.held_out
        outputs = model(inputs)
        result = Evaluation(step, float(task.loss(outputs, targets)), task.score(outputs, targets))
    model.train(was_training)
    return result


def train(
    model: nn.Module,
    task: Task,
    settings: TrainSettings,
    *,
    run_dir: str | Path | None = None,
    label: str = "training",
    progress: bool = True,
    **recording: Any,
) -> TrainResult:
    """Train a model on a task, recorded when ``run_dir`` is given.

    Parameters
    ----------
    model : nn.Module
        Maps ``(B, T, I)`` to the task's outputs; trained in place.
    task : Task
    settings : TrainSettings
    run_dir : path, optional
        Where to record; must not exist.
    label : str
        Shown by the progress bar on stderr (none where stderr is no terminal).
    progress : bool
        Show the bar.
    **recording
        Further arguments of :func:`gradscope.record`, such as ``every`` and ``samples``.
    """
    optimizer = _optimizer(model, settings)
    with contextlib.ExitStack() as stack:
        recorder = None
        if run_dir is not None:
            # Imported here: an unrecorded training needs no recorder.
            from gradscope.capture import record

            recorder = stack.enter_context(record(model, run_dir, optimizer=optimizer, **recording))
        bar = stack.enter_context(
            tqdm(total=settings.steps, desc=label, unit="step", disable=None if progress else True)
        )
        began = time.perf_counter()
        losses, evaluations, diverged = _steps(model, task, settings, optimizer, recorder, bar)
    return TrainResult(
        task=task.name,
        metric_name=task.metric,
        parameters=count_parameters(model),
        settings=settings,
        losses=losses,
        evaluations=evaluations,
        diverged=diverged,
        seconds=time.perf_counter() - began,
        run_dir=None if run_dir is None else str(run_dir),
    )


def _steps(
    model: nn.Module,
    task: Task,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    recorder: Recorder | None,
    bar: tqdm,
) -> tuple[list[float], list[Evaluation], int | None]:
    losses: list[float] = []
    evaluations: list[Evaluation] = []
    batches = task.batches(settings.seed, settings.batch_size)
    model.train()
    for step in range(settings.steps):
        inputs, targets = next(batches)
        loss = task.loss(model(inputs), targets)
        loss.backward()
        _clip(model, settings.clip, recorder)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        last = step == settings.steps - 1
        stop = _has_diverged(losses, task)
        scalars = {"loss": losses[-1]}
        if last or stop or (step + 1) % settings.evaluate_every == 0:
            evaluations.append(evaluate(model, task, step + 1))
            scalars |= {"held_out_loss": evaluations[-1].loss, f"held_out_{task.metric}": evaluations[-1].metric}
            bar.set_postfix_str(f"{task.metric} {evaluations[-1].metric:.3g}", refresh=False)
        if recorder is not None:
            recorder.log(**scalars)
        bar.update()
        if stop:
            return losses, evaluations, step
    return losses, evaluations, None


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate)


def _clip(model: nn.Module, threshold: float | None, recorder: Recorder | None) -> None:
    if threshold is None:
        return
    if recorder is None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), threshold)
    else:
        recorder.clip_grad_norm_(threshold)


def _has_diverged(losses: list[float], task: Task) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    return losses[-1] > _DIVERGED * max(losses[0], task.baseline_loss)
