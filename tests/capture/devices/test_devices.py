"""On any device the numbers are those of the CPU, made of copies to the host alone: see ``standin``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture import host
from gradscope.capture.layers import adapters
from gradscope.capture.probes.snapshot import Snapshot
from gradscope.errors import NotRecordedError
from gradscope.schema import DATASETS
from tests.capture.devices.models import MODELS, NAMED, Leaky, build
from tests.capture.devices.standin import OURS, RefusedError, device
from tests.capture.recurrences.models import CASES

QUANTITIES = ("hidden", "cell", "cell_carry", "input", "gates", "direct", "weight", "initial_hidden", "initial_cell")

every_kind = pytest.mark.parametrize("name", MODELS)
every_device = pytest.mark.parametrize("kind", ["xpu", "mps"])


@pytest.fixture(autouse=True)
def _adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_REGISTRY", dict(adapters._REGISTRY))
    gradscope.register_adapter(Leaky)


def _tensor(site: Any, quantity: str) -> Tensor | None:
    try:
        return getattr(site, quantity)  # type: ignore[no-any-return]
    except NotRecordedError:
        return None


def assert_same(found: Snapshot, expected: Snapshot, rtol: float) -> None:
    assert set(found) == set(expected)
    assert found.coverage == expected.coverage
    for name, site in expected.items():
        assert (found[name].carried, found[name].after) == (site.carried, site.after)
        for quantity in QUANTITIES:
            here, there = _tensor(found[name], quantity), _tensor(site, quantity)
            assert (here is None) == (there is None), (name, quantity)
            if here is not None and there is not None:
                torch.testing.assert_close(here, there, rtol=rtol, atol=1e-16, msg=f"{name} {quantity}")
        for here, there in zip(found[name].states, site.states, strict=True):
            torch.testing.assert_close(here, there, rtol=rtol, atol=0)


@every_kind
def test_a_snapshot_is_the_cpus(name: str) -> None:
    model, x = build(name, torch.float64)
    expected = gradscope.snapshot(model, lambda: model(x), sites=NAMED.get(name))
    with device() as machine:
        machine.model(model)
        x = machine.tensor(x)
        found = gradscope.snapshot(model, lambda: model(x), sites=NAMED.get(name))
        assert machine.copied
    assert_same(found, expected, rtol=1e-9)


# cuDNN hides what is called with weights of nobody's; what makes h and c at once shows no total of c.
_HIDDEN = {"FunctionalWholeSequence", "PrivateFunctionalLSTMCell"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for name, case in CASES.items() if name not in _HIDDEN], ids=lambda case: case.name
)
def test_what_data_flow_finds_is_the_cpus(case: Any) -> None:
    model, x = case.build(torch.float64), case.data(torch.float64)
    expected = _snapshot(case, model, x)
    with device() as machine:
        machine.model(model)
        found = _snapshot(case, model, machine.tensor(x))
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert_same(found, expected, rtol=1e-9)


def test_a_cell_state_that_one_operation_makes_with_h_is_its_carry() -> None:
    torch.manual_seed(3)
    cell, x = nn.LSTMCell(3, 5).double(), torch.randn(9, 4, 3, dtype=torch.float64)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(cell.parameters())

        def forward(self, x: Tensor) -> Tensor:
            h = c = x.new_zeros(4, 5)
            for x_t in x:
                h, c = torch._VF.lstm_cell(x_t, (h, c), *self.weights)
            return h.pow(2).sum()

    stepped = _Stepped(cell)
    expected = gradscope.snapshot(stepped, lambda: stepped(x))["cell"]
    loop = Loop()
    with device() as machine:
        machine.model(loop)
        given = machine.tensor(x)
        taken = gradscope.snapshot(loop, lambda: loop(given))
    (found,) = taken.values()
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(found.cell_carry, expected.cell_carry, rtol=1e-9, atol=1e-16)
    with pytest.raises(NotRecordedError, match="one operation makes it and the hidden state"):
        _ = found.cell


class _Stepped(nn.Module):
    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for x_t in x:
            state = self.cell(x_t, state)
        assert state is not None
        return state[0].pow(2).sum()


def _snapshot(case: Any, model: nn.Module, x: Tensor) -> Snapshot | str:
    torch.manual_seed(1)
    try:
        return gradscope.snapshot(model, lambda: case.loss(model, x))
    except gradscope.errors.NothingToRecordError as reason:
        return str(reason)


# -- training ------------------------------------------------------------------------------------------------------


def _train(name: str, run_dir: Path, kind: str | None, **options: Any) -> tuple[Any, list[Tensor]]:
    model, x = build(name, torch.float32)
    if kind is not None:
        with device(kind) as machine:
            return _trained(name, run_dir, machine.model(model), machine.tensor(x), **options)
    return _trained(name, run_dir, model, x, **options)


def _trained(name: str, run_dir: Path, model: nn.Module, x: Tensor, **options: Any) -> tuple[Any, list[Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    options = {"samples": 3, "every": 2, "quantities": "all"} | options
    with gradscope.record(model, run_dir, optimizer=optimizer, sites=NAMED.get(name), **options) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    weights = [getattr(p, "raw", p).detach() for p in model.parameters()]
    return gradscope.open_run(run_dir), weights


@every_device
@every_kind
def test_a_run_is_the_cpus(name: str, kind: str, tmp_path: Path) -> None:
    expected, weights = _train(name, tmp_path / "cpu", None)
    found, moved = _train(name, tmp_path / "device", kind)
    for ours, theirs in zip(moved, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert found.lost == {}
    assert found.coverage == expected.coverage
    assert found.sites == expected.sites
    for site in expected.sites:
        assert found.quantities(site) == expected.quantities(site)
        np.testing.assert_array_equal(found.rows(site)[0], expected.rows(site)[0])
        for quantity in set(expected.quantities(site)) & DATASETS.keys():
            here, there = found.array(site, quantity), expected.array(site, quantity)
            np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-7, err_msg=quantity)


def test_training_is_bit_identical_with_and_without_recording(tmp_path: Path) -> None:
    def train(record: bool) -> list[Tensor]:
        model, x = build("GRU of two layers", torch.float32)
        with device() as machine:
            machine.model(model)
            x = machine.tensor(x)
            optimizer = torch.optim.Adam(model.parameters())
            observed = gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=2) if record else None
            with observed or nullcontext():
                for _ in range(6):
                    optimizer.zero_grad()
                    model(x).backward()
                    optimizer.step()
            return [parameter.raw.clone() for parameter in model.parameters()]  # type: ignore[attr-defined]

    for plain, recorded in zip(train(record=False), train(record=True), strict=True):
        assert torch.equal(plain, recorded)


@pytest.mark.parametrize("name", ["LSTM of three layers", "GRUCell", "loop", "windows of a layer"])
def test_nothing_waits_for_the_device_between_recorded_steps(name: str, tmp_path: Path) -> None:
    model, x = build(name, torch.float32)
    with device() as machine:
        machine.model(model)
        x = machine.tensor(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=4, samples=3) as recorder:
            for step in range(8):
                before = len(machine.waits)
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                loss = model(x)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                recorder.log(loss=loss.detach())
                if step % 4:
                    assert machine.waits[before:] == [], step
                else:
                    assert machine.waits[before:]


def test_weights_are_copied_once_a_step_and_again_where_they_changed(tmp_path: Path) -> None:
    model, x = build("LSTM by step", torch.float32)
    with device() as machine:
        machine.model(model)
        x = machine.tensor(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def copied_in(*changes: bool) -> int:
            machine.copied.clear()
            for change in changes:
                for parameter in model.parameters() if change else ():
                    parameter.detach().mul_(0.9)
                model(x).backward()
            optimizer.step()
            return sum(storage in weights for storage in machine.copied)

        with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, samples=3):
            assert copied_in(False) == copied_in(False) == len(weights)
            assert copied_in(False, False) == len(weights)
            assert copied_in(False, True) == 2 * len(weights)


# -- the stand-in itself -------------------------------------------------------------------------------------------


def _as_gradscope(code: str, **names: Any) -> Any:
    exec(compile(code, f"{OURS}/capture/somewhere.py", "exec"), names)
    return names["y"]


def test_the_device_refuses_what_gradscope_asks_but_views_and_copies() -> None:
    with device() as machine:
        x = machine.tensor(torch.arange(6.0).reshape(2, 3))
        assert (x + x).device.type == "xpu"
        assert _as_gradscope("y = x[1:].T.detach()", x=x).shape == (3, 1)
        assert _as_gradscope("y = x.cpu()", x=x).tolist() == [[0, 1, 2], [3, 4, 5]]
        asked = [
            "y = x + x",
            "y = x.index_select(0, x.long())",
            "y = bool(x.any())",
            "y = x.double()",
            "y = x.clone()",
            "y = torch.zeros_like(x)",
            "y = torch.zeros(2, device='xpu')",
            "y = x.data_ptr()",
            "y = x.sum().item()",
        ]
        for code in asked:
            with pytest.raises(RefusedError):
                _as_gradscope(code, x=x, torch=torch)
        assert len(machine.refused) == len(asked) - 1
        machine.refused.clear()


def test_what_is_copied_without_waiting_comes_late() -> None:
    with device() as machine:
        x = machine.tensor(torch.ones(2))
        room = _as_gradscope(
            "y = torch.empty(2, pin_memory=True, device='cpu').copy_(x, non_blocking=True)", x=x, torch=torch
        )
        assert bool(room.isnan().all())
        x.mul_(2)
        torch.xpu.current_stream("xpu").synchronize()
        assert room.tolist() == [1, 1]


def test_a_copy_that_another_thread_begins_meanwhile_is_still_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[Any, object] = {}
    monkeypatch.setattr(host, "_under_way", there)
    waits: list[bool] = []

    class Stream:
        def synchronize(self) -> None:
            waits.append(self in there)  # whoever asks now waits as well
            if len(waits) == 1:
                there[self] = object()  # as another thread's copy does

    there[Stream()] = object()
    host.wait()
    assert len(there) == 1
    host.wait()
    assert (waits, there) == ([True, True], {})


def test_what_is_made_for_the_host_has_to_say_so() -> None:
    with device() as machine:
        with pytest.raises(RefusedError, match="zeros"):
            _as_gradscope("y = torch.zeros(2)", torch=torch)
        machine.refused.clear()


def test_a_device_without_float64_refuses_it() -> None:
    with device("mps") as machine:
        x = machine.tensor(torch.ones(2))
        with pytest.raises(RefusedError, match="float64"):
            x.double()
