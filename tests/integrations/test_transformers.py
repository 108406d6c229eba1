"""The Hugging Face Trainer, recorded by one callback, gives the numbers of the plain loop that does the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import gradscope
from tests.integrations.running import launched, on_two_ranks
from tests.readme import blocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from gradscope.integrations.transformers import GradscopeCallback

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(24, 7, 2, generator=torch.Generator().manual_seed(1))
Y = X.sum((1, 2))[:, None]


class Data(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": X[i], "labels": Y[i]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.out(self.rnn(x)[0][:, -1])
        return {"loss": (y - labels).pow(2).mean(), "logits": y}


def _trainer(tmp_path: Path, callback: Any, model: nn.Module, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "num_train_epochs": 1,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "adamw_torch", "max_grad_norm": 0.1,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(**settings | options)
    callbacks = [callback] if callback else []

    class InOrder(transformers.Trainer):  # type: ignore[misc,name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Data())

    return InOrder(model=model, args=arguments, train_dataset=Data(), callbacks=callbacks)


NORM, VALUE = torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_


def _plain(
    run: Path, parts: int = 1, clip: Any = NORM, limit: float = 0.1, bf16: bool = False, epochs: int = 1
) -> Model:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    with gradscope.record(model, run, optimizer=optimizer, every=1):
        for k, batch in enumerate([*DataLoader(Data(), batch_size=4)] * epochs):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch)["loss"] / parts
            loss.backward()
            if k % parts == parts - 1:
                clip(model.parameters(), limit)
                optimizer.step()
                optimizer.zero_grad()
    return model


def _compare(found: gradscope.Run, expected: gradscope.Run) -> None:
    assert found.lost == expected.lost == {}
    columns = ["step", "micro", "skipped", "loss_scale"]
    for site in expected.sites:
        assert found.records(site)[columns].equals(expected.records(site)[columns])
        np.testing.assert_allclose(found.array(site, "cell"), expected.array(site, "cell"), rtol=1e-6)
    clips = [run.clips() for run in (found, expected)]
    # Without a limit the Trainer clips at infinity, for the norm that it logs.
    a, b = (of[np.isfinite(of.threshold)].reset_index(drop=True) for of in clips)
    assert a[["step", "kind"]].equals(b[["step", "kind"]])
    for one, other, listed in (
        (found.steps(), expected.steps(), ["step", "grad_norm", "grad_norm_applied"]),
        (a, b, ["threshold", "norm_before", "norm_after", "applied"]),
    ):
        np.testing.assert_allclose(one[listed], other[listed], rtol=1e-6)
    assert set(found.clips().place) == {"update"}
    assert found.apart.n_records == 0


class ClipsValues(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
    """The Trainer clips by norm only; elements are clipped by a callback, just before the update."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        VALUE(kwargs["model"].parameters(), 0.05)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipped by norm": ({}, {}),
    "accumulated": ({"gradient_accumulation_steps": 3}, {"parts": 3}),
    "clipped by value": ({"max_grad_norm": 0.0}, {"clip": VALUE, "limit": 0.05}),
    "in bfloat16": ({"bf16": True}, {"bf16": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_callback_records_what_a_plain_loop_records(kind: str, tmp_path: Path) -> None:
    options, plainly = KINDS[kind]
    model = Model()
    trainer = _trainer(tmp_path, GradscopeCallback(tmp_path / "trainer", every=1), model, **options)
    if kind == "clipped by value":
        trainer.add_callback(ClipsValues)
    trainer.train()
    plain = _plain(tmp_path / "plain", **plainly)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    found = gradscope.open_run(tmp_path / "trainer")
    _compare(found, gradscope.open_run(tmp_path / "plain"))
    assert found.steps().loss.notna().all(), "the losses that the Trainer logs are the run's"


def test_recording_leaves_the_trainers_training_bit_identical(tmp_path: Path) -> None:
    plain, recorded = Model(), Model()
    _trainer(tmp_path, None, plain).train()
    _trainer(tmp_path, GradscopeCallback(tmp_path / "run"), recorded).train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recorded.parameters(), strict=True))


def test_a_training_that_goes_on_from_a_checkpoint_is_a_new_attempt_with_the_steps_that_follow(tmp_path: Path) -> None:
    _trainer(tmp_path, GradscopeCallback(tmp_path / "run", every=1), Model(), save_strategy="epoch").train()
    later = _trainer(tmp_path, GradscopeCallback(tmp_path / "run", every=1), Model(), num_train_epochs=2)
    later.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    run = gradscope.open_run(tmp_path / "run")
    records = run.records("rnn/l0")
    expected = [(1, k) for k in range(6)] + [(2, k) for k in range(6, 12)]
    assert list(zip(records.attempt, records.step, strict=True)) == expected
    _plain(tmp_path / "plain", epochs=2)
    _compare(run, gradscope.open_run(tmp_path / "plain"))


def test_two_ranks_write_beside_each_other_and_agree_on_steps_and_norms(tmp_path: Path) -> None:
    run = on_two_ranks("transformers", tmp_path)
    records = run.records("rnn/l0")
    assert sorted(zip(records["rank"], records.step, strict=True)) == [(r, k) for r in (0, 1) for k in range(3)]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.integrations.test_transformers import Model, _trainer
_trainer(Path({folder!r}), None, Model(), gradient_accumulation_steps=2).train()
"""


def test_the_launcher_records_the_same_script_with_the_same_numbers(tmp_path: Path) -> None:
    found = launched(SCRIPT, tmp_path)
    _plain(tmp_path / "plain", parts=2)
    _compare(found, gradscope.open_run(tmp_path / "plain"))


def test_the_lines_of_readme_record_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", "transformers.Trainer(")
    args = transformers.TrainingArguments(output_dir="out", report_to=[], use_cpu=True, num_train_epochs=1)
    names: dict[str, Any] = {"transformers": transformers, "model": Model(), "args": args, "data": Data()}
    exec(compile(code, "README.md", "exec"), names)
    names["trainer"].train()
    assert gradscope.open_run("runs/trainer").sites == ("rnn/l0",)
