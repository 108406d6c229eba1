"""Recording changes nothing: not the weights, not the generators, not the model, and it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import inspect
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import clip_grad
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import gradscope

T, B, FEATURES, H = 4, 3, 3, 4
LAYERS: dict[str, Any] = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
cells = pytest.mark.parametrize("cell", LAYERS)
_HOOK_DICTS = [name for name in vars(nn.Module()) if "hooks" in name]


class Model(nn.Module):
    def __init__(self, cell: str, **settings: Any) -> None:
        super().__init__()
        self.body = LAYERS[cell](FEATURES, H, **settings)
        self.readout = nn.Linear(H * (1 + self.body.bidirectional), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.body(x)[0][-1])


def _step(model: Model, optimizer: torch.optim.Optimizer) -> None:
    # Data from all three generators, so that one extra draw anywhere changes every later step.
    x = torch.randn(T, B, FEATURES) + float(np.random.normal()) + random.random()  # noqa: NPY002
    loss = (model(x) - x.sum(0).sum(1, keepdim=True)).pow(2).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _train(cell: str, settings: dict[str, Any], steps: int, run: Path | None, **recording: Any) -> list[Any]:
    """Train; return weights, optimizer state and the state of every generator."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    model = Model(cell, **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if run is None:
        for _ in range(steps):
            _step(model, optimizer)
    else:
        with gradscope.record(model, run, optimizer=optimizer, **recording) as recorder:
            for step in range(steps):
                _step(model, optimizer)
                recorder.log(step=step)
        assert gradscope.open_run(run).lost == {}
    numpy_state = np.random.get_state()  # noqa: NPY002
    flat = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [*model.state_dict().values(), *flat, torch.get_rng_state(), *numpy_state, random.getstate()]


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked-bidirectional-dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@cells
def test_200_recorded_steps_end_in_identical_weights(cell: str, name: str, tmp_path: Path) -> None:
    settings = CONFIGURATIONS[name]
    plain = _train(cell, settings, 200, None)
    recorded = _train(cell, settings, 200, tmp_path / "run", every=1, quantities="all", samples=2, tensors=True)
    assert len(plain) == len(recorded)
    assert all(_identical(a, b) for a, b in zip(plain, recorded, strict=True))
    run = gradscope.open_run(tmp_path / "run")
    assert len(run.records("body/l0")) == 200, "every step was recorded"
    assert not _identical(plain[0], _train(cell, settings, 1, None)[0]), "and training moved the weights"


@pytest.mark.parametrize("recording", [{"every": 7}, {"every": 1, "samples": None}], ids=["every 7th", "whole batch"])
@cells
def test_other_settings_end_in_identical_weights_too(cell: str, recording: dict[str, Any], tmp_path: Path) -> None:
    settings = {"num_layers": 3, "dropout": 0.5}
    plain = _train(cell, settings, 21, None)
    recorded = _train(cell, settings, 21, tmp_path / "run", **recording)
    assert all(_identical(a, b) for a, b in zip(plain, recorded, strict=True))


def _anatomy(model: nn.Module) -> dict[str, Any]:
    """All of a model that a tool could have tampered with."""
    return {
        "keys": list(model.state_dict()),
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "identities": [id(p) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "classes": [type(m) for m in model.modules()],
        "hooks": [dict(vars(m)[name]) for m in model.modules() for name in _HOOK_DICTS if vars(m)[name] is not None],
        "tensor hooks": [p._backward_hooks for p in model.parameters()],
    }


@cells
def test_nothing_is_attached_to_the_model_even_while_it_is_recorded(cell: str, tmp_path: Path) -> None:
    model = Model(cell, num_layers=2, dropout=0.3)
    model.body.weight_hh_l0.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    before = _anatomy(model)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, quantities="all"):
        assert _anatomy(model) == before
        _step(model, optimizer)
        assert _anatomy(model) == before
        copied = copy.deepcopy(model)
        assert _anatomy(copied)["attributes"] == before["attributes"]
        torch.save(model, tmp_path / "model.pt")
        _step(model, optimizer)
    assert _anatomy(model) == before
    assert torch.load(tmp_path / "model.pt", weights_only=False).state_dict().keys() == model.state_dict().keys()


def _installed() -> dict[str, Any]:
    """What in torch itself is replaced or registered while a recorder is open."""
    found = {name: dict(value) for name, value in vars(hooks).items() if "_hooks" in name and isinstance(value, dict)}
    found |= {
        "optimizer before": dict(_global_optimizer_pre_hooks),
        "optimizer after": dict(_global_optimizer_post_hooks),
    }
    places = {
        torch.nn.utils: ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"),
        clip_grad: ("clip_grad_norm_", "clip_grad_value_", "_clip_grads_with_norm_"),
        torch.amp.GradScaler: ("scale", "step", "unscale_", "update"),
    }
    found |= {f"{place} {name}": vars(place).get(name) for place, names in places.items() for name in names}
    return found | {"value clip": inspect.unwrap(torch.nn.utils.clip_grad_value_).__code__}


def test_torch_is_as_it_was_after_close(tmp_path: Path) -> None:
    model = Model("LSTM", num_layers=2, dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters())
    before = _installed()
    recorder = gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1)
    assert _installed() != before, "the comparison sees what is installed"
    _step(model, optimizer)
    recorder.close()
    assert _installed() == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    recorder.close()  # a second call does nothing
    assert _installed() == before


def test_two_recorders_closed_in_either_order_leave_torch_as_it_was(tmp_path: Path) -> None:
    before = _installed()
    for order in (0, 1):
        models = [Model("GRU"), Model("RNN")]
        recorders = [gradscope.record(model, tmp_path / f"run-{order}-{i}", every=1) for i, model in enumerate(models)]
        for model in models:
            model(torch.randn(T, B, FEATURES)).sum().backward()
        recorders[order].close()
        assert _installed() != before
        recorders[1 - order].close()
        assert _installed() == before
        for i, recorder in enumerate(recorders):
            assert gradscope.open_run(recorder.run_dir).n_records == 1, f"recorder {i}"


def test_an_exception_in_training_passes_through_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before = _installed()
    model = Model("LSTM")

    def training() -> None:
        with gradscope.record(model, tmp_path / "run", every=1):
            model(torch.randn(T, B, FEATURES)).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert _installed() == before
    assert gradscope.open_run(tmp_path / "run").n_records == 1


@pytest.mark.parametrize("ending", ["backward", "no backward"])
@cells
def test_no_tensor_of_the_graph_outlives_the_recorder(cell: str, ending: str, tmp_path: Path) -> None:
    model = Model(cell, num_layers=2, bidirectional=True, dropout=0.3)
    recorder = gradscope.record(model, tmp_path / "run", every=1, quantities="all", tensors=True)
    x = torch.randn(T, B, FEATURES)
    output, final = model.body(x)
    loss = output.sum()
    parts = [x, output, loss, *(final if isinstance(final, tuple) else (final,))]
    watched = [weakref.ref(part) for part in parts]
    storages = [weakref.ref(part.untyped_storage()) for part in parts]
    if ending == "backward":
        loss.backward()
    recorder.close()
    del x, output, final, loss, parts
    gc.collect()
    assert [ref() is None for ref in watched] == [True] * len(watched)
    assert [ref() is None for ref in storages] == [True] * len(storages)


@cells
def test_open_recorder_holds_no_more_tensors_after_many_steps(cell: str, tmp_path: Path) -> None:
    model = Model(cell, num_layers=2, dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    start = alive()
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, quantities="all"):
        _step(model, optimizer)
        early = alive()
        for _ in range(20):
            _step(model, optimizer)
            model(torch.randn(T, B, FEATURES))  # a forward pass that backward never follows
        assert alive() == early
    assert alive() == start
