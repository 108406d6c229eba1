"""Lightning's Trainer, recorded by one callback, gives the numbers of the plain loop that does the same."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope
from gradscope.capture.training.telling import GradscopeWarning
from gradscope.errors import RunExistsError
from tests.integrations.running import launched
from tests.readme import blocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")
    from gradscope.integrations.lightning import GradscopeCallback

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(24, 7, 2, generator=torch.Generator().manual_seed(1))
Y = X.sum((1, 2))[:, None]


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, recurrent: bool = True, optimizer: str = "Adam") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(2, 5, batch_first=True) if recurrent else nn.Linear(2, 5)
        self.out, self.optimizer = nn.Linear(5, 1), optimizer

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(x)
        return self.out((states[0] if isinstance(states, tuple) else states)[:, -1])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return (self(batch[0]) - batch[1]).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self.optimizer)(self.parameters(), 1e-2)


def _data() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=4)


def _fit(tmp_path: Path, callback: Any, module: Any = None, ckpt: Any = None, **options: Any) -> Any:
    settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False} | options
    settings = {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": tmp_path} | settings
    trainer = lightning.Trainer(callbacks=[callback] if callback else [], **settings)
    trainer.fit(module or Module(), _data(), ckpt_path=ckpt)
    return trainer


def _weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _plain(run: Path, parts: int = 1, clip: Any = None, bf16: bool = False) -> list[Tensor]:
    """The same training as a plain loop."""
    module = Module()
    optimizer = module.configure_optimizers()
    with gradscope.record(module, run, optimizer=optimizer, every=1) as recorder:
        total: Any = 0.0
        for k, (x, y) in enumerate(_data()):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                loss = (module(x) - y).pow(2).mean() / parts
            loss.backward()
            total = total + loss.detach()
            if k % parts == parts - 1:
                if clip:
                    clip(module.parameters())
                optimizer.step()
                optimizer.zero_grad()
                recorder.log(loss=total)
                total = 0.0
    return _weights(module)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "accumulated": ({"accumulate_grad_batches": 3}, {"parts": 3}),
    "clipped by norm": (
        {"gradient_clip_val": 0.1},
        {"clip": lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1)},
    ),
    "clipped by value, accumulated": (
        {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"parts": 2, "clip": lambda p: torch.nn.utils.clip_grad_value_(p, 0.05)},
    ),
    "in bfloat16": ({"precision": "bf16-mixed"}, {"bf16": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_callback_records_what_a_plain_loop_records(kind: str, tmp_path: Path) -> None:
    options, plainly = KINDS[kind]
    module = Module()
    _fit(tmp_path, GradscopeCallback(tmp_path / "lightning", every=1), module, **options)
    assert _same(_plain(tmp_path / "plain", **plainly), _weights(module))
    found, expected = (gradscope.open_run(tmp_path / name) for name in ("lightning", "plain"))
    assert found.lost == expected.lost == {}
    for site in expected.sites:
        columns = ["step", "micro", "skipped", "loss_scale"]
        assert found.records(site)[columns].equals(expected.records(site)[columns])
        np.testing.assert_array_equal(found.array(site, "hidden"), expected.array(site, "hidden"))
    for name, columns in (
        ("steps", ["step", "grad_norm", "grad_norm_applied", "lr", "loss"]),
        ("clips", ["step", "kind", "threshold", "norm_before", "norm_after", "place", "effective", "applied"]),
    ):
        a, b = (getattr(run, name)()[columns] for run in (found, expected))
        assert a.equals(b), name
    assert found.apart.n_records == 0


def test_recording_leaves_lightnings_training_bit_identical(tmp_path: Path) -> None:
    plain, recorded = Module(), Module()
    _fit(tmp_path, None, plain)
    _fit(tmp_path, GradscopeCallback(tmp_path / "run"), recorded)
    assert _same(_weights(plain), _weights(recorded))


def test_lbfgs_under_lightning_is_one_record_a_step_with_its_evaluations_apart(tmp_path: Path) -> None:
    _fit(tmp_path, GradscopeCallback(tmp_path / "run", every=1), Module(optimizer="LBFGS"))
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("rnn/l0").step.tolist() == list(range(6))
    assert set(run.apart.records("rnn/l0").role) == {"evaluation"}


def test_a_training_that_goes_on_from_a_checkpoint_is_a_new_attempt_with_the_steps_that_follow(tmp_path: Path) -> None:
    trainer = _fit(tmp_path, GradscopeCallback(tmp_path / "run", every=1))
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    callback = GradscopeCallback(tmp_path / "run", every=1)
    _fit(tmp_path, callback, ckpt=tmp_path / "kept.ckpt", max_epochs=2)
    records = gradscope.open_run(tmp_path / "run").records("rnn/l0")
    assert list(zip(records.attempt, records.step, strict=True)) == [(1, k) for k in range(6)] + [
        (2, k) for k in range(6, 12)
    ]


def test_an_existing_run_is_refused_before_the_first_step(tmp_path: Path) -> None:
    _fit(tmp_path, GradscopeCallback(tmp_path / "run"))
    module = Module()
    before = _weights(module)
    with pytest.raises(RunExistsError):
        _fit(tmp_path, GradscopeCallback(tmp_path / "run"), module)
    assert _same(before, _weights(module))


def test_a_model_without_recurrent_layers_trains_on_with_one_warning(tmp_path: Path) -> None:
    with pytest.warns(GradscopeWarning, match="records nothing of this training|nothing recurs"):
        _fit(tmp_path, GradscopeCallback(tmp_path / "run"), Module(recurrent=False))


def test_an_interrupted_training_leaves_a_sealed_run(tmp_path: Path) -> None:
    class Stops(Module):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 3:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    with pytest.raises(ZeroDivisionError):
        _fit(tmp_path, GradscopeCallback(tmp_path / "run", every=1), Stops())
    run = gradscope.open_run(tmp_path / "run")
    assert run.sealed
    assert run.records("rnn/l0").step.tolist() == [0, 1, 2]


def test_two_ranks_write_beside_each_other_and_agree_on_steps_and_norms(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "run"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    records = run.records("rnn/l0")
    assert sorted(zip(records["rank"], records.step, strict=True)) == [(r, k) for r in (0, 1) for k in range(3)]
    steps = run.steps().pivot(index="step", columns="rank", values="grad_norm")
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-12, err_msg="after the all-reduce there is one gradient")
    hidden = run.array("rnn/l0", "hidden")
    assert not np.array_equal(hidden[:3], hidden[3:]), "each rank has its own batch"


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.integrations.test_lightning import Module, _fit
_fit(Path({folder!r}), None, Module(), accumulate_grad_batches=2, gradient_clip_val=0.1)
"""


def test_the_launcher_records_the_same_script_with_the_same_numbers(tmp_path: Path) -> None:
    found = launched(SCRIPT, tmp_path)
    callback = GradscopeCallback(tmp_path / "called", every=1)
    _fit(tmp_path, callback, accumulate_grad_batches=2, gradient_clip_val=0.1)
    expected = gradscope.open_run(tmp_path / "called")
    np.testing.assert_array_equal(found.array("rnn/l0", "hidden"), expected.array("rnn/l0", "hidden"))
    columns = ["step", "norm_before", "place", "applied"]
    assert found.clips()[columns].equals(expected.clips()[columns])
    assert found.steps().grad_norm.equals(expected.steps().grad_norm)


def test_the_lines_of_readme_record_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", "lightning.Trainer(")
    names: dict[str, Any] = {"lightning": lightning}
    exec(compile(code, "README.md", "exec"), names)
    names["trainer"].fit_loop.max_epochs = 1
    names["trainer"].fit(Module(), _data())
    assert gradscope.open_run("runs/lightning").sites == ("rnn/l0",)
