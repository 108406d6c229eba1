"""Draw every figure of docs/gallery from scratch: train, record, measure, and run what the gallery shows.

The gallery's page is written here as well, so what it shows beside a picture is what made the picture.
"""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

import gradscope
from gradscope import plots
from gradscope.cli import main as command
from gradscope.lab.zoo.models import MODELS, SequenceModel, build_model
from gradscope.lab.zoo.tasks import Task, build_task
from gradscope.lab.zoo.train import TrainResult, TrainSettings, train
from gradscope.plots import figures

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
#: Colours kept in a picture: enough for every shade of a colour map, at a third of the bytes.
COLOURS = 200


@dataclass(frozen=True)
class Entry:
    """A picture of the gallery: what is run for it, and what to see in it."""

    kind: str
    code: str
    words: str

    @property
    def file(self) -> str:
        """File name of the picture."""
        return f"{self.kind}.png"

    @property
    def is_command(self) -> bool:
        """Whether a shell command draws it, otherwise lines of Python do."""
        return self.code.startswith("gradscope ")


ENTRIES = (
    Entry(
        "story",
        "gradscope plot story runs/untrained/* runs/clipping/* -o story.png",
        "Digits read pixel by pixel. (a) Before training the gradient of the first pixel has vanished in all three "
        "cells as torch initialises them; open gates keep it, in the LSTM and in the GRU. (b, c) An RNN by SGD at "
        "four thresholds: where the threshold lets training go decides what arrives later, and what is learnt.",
    ),
    Entry(
        "decay",
        "gradscope plot decay runs/initial/* -o decay.png",
        "Five networks before any training, on the adding problem with 100 steps. PyTorch's default LSTM and GRU lose "
        "the gradient almost as fast as a tanh RNN; a forget bias of 1 keeps more of it, the chrono initialisation "
        "most.",
    ),
    Entry(
        "training",
        "gradscope plot training runs/digits/lstm runs/digits/gru -o training.png",
        "How the path of the gradient opens while an LSTM and a GRU learn digits that they read pixel by pixel.",
    ),
    Entry(
        "comparison",
        "gradscope plot comparison runs/initial/* -o comparison.png",
        "Size, loss and half-life of the same five, still untrained. No half-life is quoted where there is no decay or "
        "where it is not a straight line.",
    ),
    Entry(
        "learning",
        "module = plots.load('learning')\n"
        "table = module.table({name: [(r.losses, {e.step: e.loss for e in r.evaluations})] for name, r in results})\n"
        "figures.write(module, table, 'learning.png', style='neurips')",
        "Three networks that read digits pixel by pixel: training and held-out loss.",
    ),
    Entry(
        "gates",
        "gradscope plot gates runs/digits/lstm -o gates.png",
        "Through which gates of the LSTM the gradient arrives, and how far back.",
    ),
    Entry(
        "timescales",
        "gradscope plot timescales 'runs/initial/LSTM' 'runs/initial/LSTM chrono' -o timescales.png",
        "How long the units of an LSTM retain what they hold, by default and after the chrono initialisation.",
    ),
    Entry(
        "weight",
        "gradscope plot weight runs/digits/rnn runs/digits/gru -o weight.png",
        "From which timesteps the gradient of the recurrent weights comes.",
    ),
    Entry(
        "norms",
        "gradscope plot norms runs/clipping/0.5-seed0 -o norms.png",
        "Gradient norm at every step, the clipping threshold, and the loss.",
    ),
    Entry(
        "clipping",
        "gradscope plot clipping runs/clipping/0.5-seed0 -o clipping.png",
        "What any other threshold would have done to the same gradients.",
    ),
    Entry(
        "sweep_loss",
        "gradscope plot sweep_loss runs/clipping/* -o sweep_loss.png",
        "An RNN on the digits, by SGD with momentum .9 at four thresholds and three seeds each.",
    ),
    Entry("sweep_metric", "gradscope plot sweep_metric runs/clipping/* -o sweep_metric.png", "Where they ended."),
    Entry(
        "norm_distribution",
        "gradscope plot norm_distribution runs/clipping/* -o norm_distribution.png",
        "The norms that were clipped.",
    ),
    Entry(
        "map",
        "gradscope plot map runs/untrained/* --rows cell --columns init --metric reach -o map.png",
        "What arrives at the first pixel before any training, by cell and initialisation: geometric mean over three "
        "seeds with its interval.",
    ),
    Entry(
        "whatif",
        "measured = gradscope.clip_whatif(rnn, lambda: criterion(rnn(x), y), [float('inf'), 1e-3, 1e-4, 1e-5])\n"
        "module = plots.load('whatif')\n"
        "figures.write(module, module.table(measured), 'whatif.png', style='neurips')",
        "Another kind of clipping: with the adjoint clipped at every timestep (Graves 2013), the decay itself changes.",
    ),
    Entry(
        "source_target",
        "measured = gradscope.source_target(forecaster, lambda: error(forecaster(months[:, :-1]), months[:, 1:]))\n"
        "module = plots.load('source_target')\n"
        "figures.write(module, module.table(measured), 'source_target.png', style='neurips')",
        "An LSTM that forecasts each next month of the sunspot series: on which months before each forecast depends.",
    ),
    Entry(
        "connectivity",
        "gradscope plot connectivity probes/forecasts.npz --target 10 --target 25 --target 46 -o connectivity.png",
        "The same measurement, kept by `measured.save(path)`: which months three of the forecasts look at.",
    ),
    Entry(
        "spectrum",
        "measured = gradscope.spectrum(models['LSTM chrono'], inputs)\n"
        "module = plots.load('spectrum')\n"
        "figures.write(module, module.table(measured), 'spectrum.png', style='neurips')",
        "One number per lag hides that directions fare differently. Of this LSTM's joint state the cells keep their "
        "gradient over the whole sequence, the hidden half is lost: its singular values fall below what float64 holds.",
    ),
    Entry(
        "lyapunov",
        "measured = {name: gradscope.spectrum(model, inputs) for name, model in models.items()}\n"
        "module = plots.load('lyapunov')\n"
        "figures.write(module, module.table(measured), 'lyapunov.png', style='neurips')",
        "Growth rates of all directions of the state, per step, for the networks of the first figure.",
    ),
    Entry(
        "dynamics",
        "gradscope plot dynamics probes/training-*.npz -o dynamics.png",
        "The forecaster through its training, from spectra saved every 50 steps with `spectrum.save(path, step=...)`.",
    ),
)

INITIAL = {
    "RNN": "rnn", "LSTM": "lstm", "LSTM forget bias 1": "lstm-forget1", "LSTM chrono": "lstm-chrono", "GRU": "gru",
}  # fmt: skip


def initial() -> dict[str, Any]:
    """Record the first step of five networks on the adding problem; ``models`` are the same, untrained."""
    task = build_task("adding", 100)
    for name, model in INITIAL.items():
        settings = TrainSettings(steps=1, batch_size=32)
        _train(build_model(model, task), task, settings, f"initial/{name}", every=1, samples=None)
    inputs, _ = task.draw(torch.Generator().manual_seed(0), 8)
    return {"models": {name: build_model(model, task) for name, model in INITIAL.items()}, "inputs": inputs}


def untrained() -> dict[str, Any]:
    """Record the first step of three cells at three initialisations on the digits, over three seeds."""
    task = build_task("digits")
    for name in ("rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru", "gru-chrono"):
        for seed in range(3):
            settings = TrainSettings(steps=1, seed=seed)
            cell, init = MODELS[name]
            labels = {"cell": cell, "init": init, "seed": seed}
            model = build_model(name, task, seed=seed)
            _train(model, task, settings, f"untrained/{name}-seed{seed}", quantities=("input",), labels=labels)
    return {}


def digits() -> dict[str, Any]:
    """Train three networks on the digits."""
    task = build_task("digits")
    settings = TrainSettings(steps=300, learning_rate=3e-3, clip=1.0, evaluate_every=25)
    models = {name: build_model(name, task) for name in ("rnn", "lstm", "gru")}
    results = [(name, _train(model, task, settings, f"digits/{name}")) for name, model in models.items()]
    x, y = task.draw(torch.Generator().manual_seed(0), 32)
    return {"results": results, "rnn": models["rnn"], "x": x, "y": y, "criterion": task.loss}


def clipping() -> dict[str, Any]:
    """Train an RNN by SGD with momentum .9 at four thresholds: Adam divides by the gradient's size."""
    task = build_task("digits")
    for clip in (0.05, 0.5, 5.0, None):
        for seed in range(3):
            settings = TrainSettings(steps=200, optimizer="sgd", learning_rate=0.1, clip=clip, seed=seed)
            name = f"clipping/{'none' if clip is None else clip}-seed{seed}"
            labels = {"cell": "rnn", "init": "default", "seed": seed, "chance_loss": task.baseline_loss}
            model = build_model("rnn", task, seed=seed)
            _train(model, task, settings, name, quantities=("hidden", "input"), labels=labels)
    return {}


def forecaster() -> dict[str, Any]:
    """Train an LSTM that forecasts every next month, so that there is one loss per timestep."""
    task = build_task("sunspots", 48)
    torch.manual_seed(0)
    model = SequenceModel(nn.LSTM(1, 32, batch_first=True), 32, 1, every_step=True)
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    Path("probes").mkdir()
    months, _ = task.draw(torch.Generator().manual_seed(1), 16)
    for step in range(301):
        if step % 50 == 0:
            gradscope.spectrum(model, months).save(f"probes/training-{step:03}.npz", step=step)
        months_of, _ = task.draw(draws, 64)
        error(model(months_of[:, :-1]), months_of[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = gradscope.source_target(model, lambda: error(model(months[:, :-1]), months[:, 1:]))
    measured.save("probes/forecasts.npz")
    return {"forecaster": model, "months": months, "error": error}


def error(forecast: Tensor, months: Tensor) -> Tensor:
    """Squared error per timestep and sequence, (T, B)."""
    return (forecast - months).square().squeeze(-1).T


def _train(
    model: nn.Module, task: Task, settings: TrainSettings, name: str, *, every: int = 10, samples: int | None = 16,
    quantities: Any = "all", labels: dict[str, Any] | None = None,
) -> TrainResult:  # fmt: skip
    run_dir = Path("runs") / name
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    recording = {"every": every, "samples": samples, "quantities": quantities, "labels": labels}
    return train(model, task, settings, run_dir=run_dir, label=name, **recording)


def draw(entry: Entry, measured: dict[str, Any]) -> None:
    """Run what the gallery shows for this figure, in the current directory."""
    if entry.is_command:
        arguments = [path for word in shlex.split(entry.code)[1:] for path in (sorted(glob.glob(word)) or [word])]
        command([*arguments], standalone_mode=False)
    else:
        exec(entry.code, {"gradscope": gradscope, "plots": plots, "figures": figures, **measured})


def slim(drawn: Path, kept: Path) -> None:
    """Copy a picture with fewer colours, and without the time of the recording: drawn again it is the same file."""
    with Image.open(drawn) as image:
        told = PngInfo()
        for key in ("Title", "Software"):
            told.add_text(key, image.info[key])
        image.convert("RGB").quantize(COLOURS).save(kept, optimize=True, pnginfo=told, dpi=image.info["dpi"])


def page() -> str:
    """The gallery's README."""
    parts = [INTRODUCTION]
    for entry in ENTRIES:
        title = plots.load(entry.kind).TITLE
        language = "bash" if entry.is_command else "python"
        parts.append(f"## {title}\n\n![{title}]({entry.file})\n\n{entry.words}\n\n```{language}\n{entry.code}\n```")
    return "\n\n".join([*parts, CLOSING]) + "\n"


INTRODUCTION = """# Gallery

Every figure here is made from scratch by `scripts/paper_figures`, by the lines that stand beside it. Each gives a PNG,
PDF, SVG or PGF by the ending of its file, the data as CSV beside it, and what it was made from in its metadata.
`--style` (in Python `style=`) sets the width and text of a paper: aaai, iclr, icml, icml2, ieee, ieee2, jmlr, neurips.
A run is recorded as the [README](../../README.md) shows.

Where the figure is of a measurement on demand, it takes three lines of Python, after

```python
import gradscope
from gradscope import plots
from gradscope.plots import figures
```"""

CLOSING = """## What textbooks say

The figures `evidence` and further ones of `learning` are drawn by `gradscope lab lecture`, in its report."""


def main() -> None:
    """Draw the gallery into ``docs/gallery`` or the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=GALLERY, help="folder to write to [docs/gallery]")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        measured = {**initial(), **untrained(), **digits(), **clipping(), **forecaster()}
        for entry in ENTRIES:
            draw(entry, measured)
            slim(Path(entry.file), out / entry.file)
        os.chdir(out)
    (out / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
