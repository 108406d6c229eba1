"""A run's curves, verdicts and figures in the tracker where the training's other numbers are.

``TensorBoard("logs").log("runs/lstm")`` during or after a training; ``WandB()`` and ``MLflow()`` likewise, each into
the run that is active there. Nothing is sent while the training runs: the run directory is what is read.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import SettingError
from gradscope.integrations.needing import needing

if TYPE_CHECKING:
    from gradscope.store import Run

#: Of a step, as far as they were recorded.
STEP_SCALARS = ("grad_norm", "grad_norm_applied", "loss", "lr")
#: Of the decay at a site at a recorded step.
DECAY_SCALARS = ("rate", "half_life", "reach")
FIGURES = ("decay", "training", "norms", "clipping")


@dataclass(frozen=True, eq=False)
class Told:
    """What a tracker is told of a run.

    Attributes
    ----------
    scalars : list of (step, dict)
        Norms and loss of the steps, and ``<site>/rate`` (log10 per step), ``<site>/half_life``, ``<site>/reach``.
    curves : dict of str to list of (lag, norm)
        Median gradient norm against lag at the end of training, per site.
    verdicts : dict of str to str
        ``vanishing``, ``preserved``, ``exploding`` or ``undetermined``, per site.
    sentences : list of str
        The answers in words, what is wrong with clipping first.
    figures : dict of str to bytes
        PNG files.
    """

    scalars: list[tuple[int, dict[str, float]]]
    curves: dict[str, list[tuple[int, float]]]
    verdicts: dict[str, str]
    sentences: list[str]
    figures: dict[str, bytes]


def tell(run: Run | str | Path, figures: bool = True) -> Told:
    """Gather what there is to tell of a run; it may still be growing."""
    from gradscope.reading.facts import gather
    from gradscope.store import open_run

    opened = open_run(run) if isinstance(run, str | Path) else run
    (facts,) = gather([opened])
    return Told(
        scalars=list(_scalars(opened)),
        curves={said.site: _curve(opened, said.site, said.quantity) for said in facts.answers},
        verdicts={said.site: said.late.verdict for said in facts.answers},
        sentences=[*facts.remarks, *(said.sentence for said in facts.answers)],
        figures=_figures(opened) if figures else {},
    )


def _scalars(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    from gradscope.reading.answers import decay_fits

    found: dict[int, dict[str, float]] = {}
    for row in run.steps().to_dict("records"):
        found.setdefault(int(row["step"]), {}).update(_finite({n: row[n] for n in STEP_SCALARS if n in row}))
    for row in decay_fits(run).to_dict("records"):
        at = {f"{row['site']}/{name}": row[name] for name in DECAY_SCALARS}
        found.setdefault(int(row["step"]), {}).update(_finite(at))
    yield from sorted((step, scalars) for step, scalars in found.items() if scalars)


def _finite(scalars: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in scalars.items() if value is not None and math.isfinite(value)}


def _curve(run: Run, site: str, quantity: str) -> list[tuple[int, float]]:
    norms = run.norms(site, quantity)
    last = norms[norms["step"] == norms["step"].max()].groupby("lag")["norm"].median()
    return [(int(lag), float(norm)) for lag, norm in last.items() if np.isfinite(norm)]


def _figures(run: Run) -> dict[str, bytes]:
    from gradscope.plots.figures import provenance
    from gradscope.report.drawing import draw
    from gradscope.report.figures import pictures_of

    pictures, _ = pictures_of([run], shown=FIGURES)
    return {picture.name: draw(picture, provenance([run])).files["png"] for picture in pictures}


class TensorBoard:
    """Tell TensorBoard: scalars against the step, curves as scalars against the lag, verdicts as text, figures.

    Parameters
    ----------
    writer : SummaryWriter or path
        Of ``torch.utils.tensorboard``, or the log directory.
    """

    def __init__(self, writer: Any) -> None:
        self._own = isinstance(writer, str | Path)
        if self._own:
            with needing("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(writer))
        self._writer = writer

    def log(self, run: Run | str | Path) -> None:
        """Write what is known of the run now."""
        told, writer = tell(run), self._writer
        for step, scalars in told.scalars:
            for name, value in scalars.items():
                writer.add_scalar(f"gradscope/{name}", value, step)
        for site, curve in told.curves.items():
            for lag, norm in curve:
                writer.add_scalar(f"gradscope/{site}/norm against lag", norm, lag)
        last = max((step for step, _ in told.scalars), default=0)
        verdicts = [f"**{site}**: {verdict}" for site, verdict in told.verdicts.items()]
        writer.add_text("gradscope/answers", "  \n".join([*verdicts, *told.sentences]), last)
        for name, png in told.figures.items():
            writer.add_image(f"gradscope/{name}", _pixels(png), last, dataformats="HWC")
        writer.flush()
        if self._own:
            writer.close()


class WandB:
    """Tell Weights & Biases, online or offline.

    Parameters
    ----------
    run : wandb run, optional
        The active one by default.
    """

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, run: Run | str | Path) -> None:
        """Log what is known of the run now."""
        with needing("wandb"):
            import wandb

        told, target = tell(run), self._run or wandb.run
        if target is None:
            raise SettingError("no W&B run is active: call wandb.init() first, or pass WandB(run)")
        target.define_metric("gradscope/step")
        target.define_metric("gradscope/*", step_metric="gradscope/step")
        for step, scalars in told.scalars:
            target.log({"gradscope/step": step, **{f"gradscope/{name}": value for name, value in scalars.items()}})
        things: dict[str, Any] = {
            f"gradscope/{site}/curve": wandb.Table(columns=["lag", "norm"], data=[list(point) for point in curve])
            for site, curve in told.curves.items()
        }
        things |= {f"gradscope/figures/{name}": wandb.Image(_pixels(png)) for name, png in told.figures.items()}
        target.log(things)
        for site, verdict in told.verdicts.items():
            target.summary[f"gradscope/{site}/verdict"] = verdict
        target.summary["gradscope/answers"] = "\n".join(told.sentences)


class MLflow:
    """Tell MLflow: metrics, the curve as a metric against the lag, verdicts as tags, figures as artifacts.

    Parameters
    ----------
    run_id : str, optional
        The active run by default.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id

    def log(self, run: Run | str | Path) -> None:
        """Log what is known of the run now."""
        with needing("mlflow"):
            import mlflow

        told = tell(run)
        active: Any = mlflow.active_run()
        if self._run_id is None and active is None:
            raise SettingError("no MLflow run is active: call mlflow.start_run() first, or pass MLflow(run_id)")
        target: Any = self._run_id or active.info.run_id
        client = mlflow.MlflowClient()
        for step, scalars in told.scalars:
            for name, value in scalars.items():
                client.log_metric(target, _name(f"gradscope/{name}"), value, step=step)
        for site, curve in told.curves.items():
            for lag, norm in curve:
                client.log_metric(target, _name(f"gradscope/{site}/norm against lag"), norm, step=lag)
        for site, verdict in told.verdicts.items():
            client.set_tag(target, _name(f"gradscope/{site}/verdict"), verdict)
        client.set_tag(target, "gradscope/answers", "\n".join(told.sentences)[:5000])
        with tempfile.TemporaryDirectory() as folder:
            for name, png in told.figures.items():
                path = Path(folder, f"{name}.png")
                path.write_bytes(png)
                client.log_artifact(target, str(path), "gradscope")


def _name(name: str) -> str:
    """MLflow takes letters, digits and ``_-. /`` in names."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _pixels(png: bytes) -> Any:
    import io

    from matplotlib import image

    return (image.imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(np.uint8)
