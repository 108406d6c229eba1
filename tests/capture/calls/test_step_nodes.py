"""Adjoints taken from autograd's own nodes: what a replay would give, and a replay at every surprise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.adjoint import Keep
from gradscope.capture.calls.home import Home
from gradscope.capture.calls.watcher import Watcher
from gradscope.capture.layers.discovery import discover, names_in
from tests.unrolled import unroll

T, B, ROWS = 11, 12, [0, 2, 3, 5, 6, 8, 9, 11]
KINDS = {
    "RNN": nn.RNN,
    "ReLU RNN": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "GRU": nn.GRU,
}


@pytest.fixture
def no_replay(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let nothing of a GRU be replayed; an RNN always is."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("kind", "GRU") != "GRU":
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("replayed")

    monkeypatch.setattr("gradscope.capture.calls.fused.stack_adjoints", refuse)


def _loss(output: Tensor, h_n: Tensor, kind: str) -> Tensor:
    time = output.flatten(2)
    return {
        "last": lambda: time[-1].pow(2).sum(),
        "every": lambda: time.pow(2).mean(),
        "state": lambda: (h_n * torch.linspace(-1, 1, h_n.numel(), dtype=h_n.dtype).view_as(h_n)).sum(),
        "middle": lambda: time[4].sum() + 0.1 * h_n.sum(),
    }[kind]()


def _record(module: nn.RNNBase, x: Tensor, loss: str, path: Path, **options: Any) -> gradscope.store.Run:
    given = x.transpose(0, 1) if module.batch_first else x
    with gradscope.record(module, path, every=1, **options) as recorder:
        output, h_n = module(given)
        _loss(output.transpose(0, 1) if module.batch_first else output, h_n, loss).backward()
        recorder.step()
    run = gradscope.open_run(path)
    assert run.lost == {}
    return run


def _by_lag(values: Tensor, reverse: bool) -> np.ndarray:
    norms = values.norm(dim=2).T.numpy()
    return norms if reverse else norms[:, ::-1]


@pytest.mark.usefixtures("no_replay")
@pytest.mark.parametrize("loss", ["last", "every", "state", "middle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"num_layers": 3, "bidirectional": True, "bias": False}, {"num_layers": 2}],
    ids=["plain", "batch first", "deep", "two layers"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_site_equals_the_unrolled_network(
    kind: str, options: dict[str, Any], dtype: torch.dtype, loss: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](3, 6, **options).to(dtype)
    x = torch.randn(T, B, 3, dtype=dtype)
    run = _record(module, x, loss, tmp_path / "run")
    reference = unroll(module, x)
    reference.differentiate(_loss(reference.output, reference.h_n, loss))
    exact = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert [site.split("/")[1] for site in run.sites] == list(reference.sites)
    for suffix, site in reference.sites.items():
        for quantity in ("hidden", "input", "direct"):
            if quantity in site.gradients:
                expected = _by_lag(site.gradients[quantity][:, ROWS], suffix.endswith("reverse"))
                found = run.array(f"model/{suffix}", quantity)[0]
                np.testing.assert_allclose(found, expected, **exact, err_msg=f"{suffix} {quantity}")


@pytest.mark.usefixtures("no_replay")
def test_dropout_between_the_layers_needs_no_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.GRU(3, 6, num_layers=2, dropout=0.5).double()
    x = torch.randn(T, B, 3, dtype=torch.float64)
    _record(module, x, "every", tmp_path / "run", samples=None)
    assert set(gradscope.open_run(tmp_path / "run").sites) == {"model/l0", "model/l1"}


@pytest.mark.usefixtures("no_replay")
def test_the_loss_scale_is_divided_out(tmp_path: Path) -> None:
    module, x = nn.GRU(3, 6), torch.randn(T, B, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        scaler.scale(module(x)[0][-1].sum()).backward()
        recorder.step()
    reference = unroll(module, x)
    reference.differentiate(reference.output[-1].sum())
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, _by_lag(reference.sites["l0"].gradients["hidden"], False), rtol=1e-4)


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_where_float32_runs_out_a_replay_goes_on(kind: str, bidirectional: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](2, 16, bidirectional=bidirectional)
    x = torch.randn(300, 3, 2)
    with gradscope.record(module, tmp_path / "run", every=1) as recorder:
        for _ in range(3):  # the second and third know how far it is worth while to watch
            output, h_n = module(x)
            (output[-1].sum() + h_n.pow(2).sum()).backward()
            recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    taken = gradscope.snapshot(module, lambda: (lambda o, h: o[-1].sum() + h.pow(2).sum())(*module(x)))
    for site in run.sites:
        expected = _by_lag(taken[site].hidden, site.endswith("reverse"))
        assert expected.min() < 1e-45, "beyond what float32 can hold"
        entering = _by_lag(taken[site].input, site.endswith("reverse"))
        for record in range(3):
            for quantity, truth in (("hidden", expected), ("input", entering)):
                found = run.array(site, quantity)[record]
                np.testing.assert_allclose(np.log10(found), np.log10(truth), atol=1e-3, err_msg=quantity)


@pytest.mark.usefixtures("no_replay")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_shares_of_both_directions_add_up_to_the_gradient_of_the_input(
    kind: str, batch_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](3, 6, bidirectional=True, batch_first=batch_first).double()
    x = torch.randn(*((B, T) if batch_first else (T, B)), 3, dtype=torch.float64, requires_grad=True)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None, tensors=True) as recorder:
        output, h_n = module(x)
        (output.pow(2).sum() + h_n.sin().sum()).backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    forward, backward = (run.array(f"model/{suffix}", "input_tensor")[0] for suffix in ("l0", "l0_reverse"))
    assert x.grad is not None
    expected = (x.grad if batch_first else x.grad.transpose(0, 1)).numpy()
    np.testing.assert_allclose(forward[:, ::-1] + backward, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "all but the output layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_no_gradient_itself_has_one_all_the_same(kind: str, frozen: str, tmp_path: Path) -> None:
    """A frozen projection of data is no node of the graph: ∂L/∂x_t is replayed then."""
    torch.manual_seed(0)
    module, x = KINDS[kind](3, 6).double(), torch.randn(T, B, 3, dtype=torch.float64)
    for name, parameter in module.named_parameters():
        if name == frozen or (frozen.startswith("all") and name != "bias_hh_l0"):
            parameter.requires_grad_(False)
    run = _record(module, x, "last", tmp_path / "run", samples=None)
    reference = unroll(module, x)
    reference.differentiate(reference.output[-1].pow(2).sum())
    for quantity in ("hidden", "input"):
        expected = _by_lag(reference.sites["l0"].gradients[quantity], False)
        np.testing.assert_allclose(run.array("model/l0", quantity)[0], expected, rtol=1e-10, err_msg=quantity)


@pytest.mark.usefixtures("no_replay")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_state_has_its_gradient_too(kind: str, bias: bool, bidirectional: bool) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](3, 6, num_layers=2, bias=bias, bidirectional=bidirectional).double()
    x = torch.randn(T, B, 3, dtype=torch.float64)
    h0 = torch.randn(2 * (1 + bidirectional), B, 6, dtype=torch.float64)

    class Listening:
        samples, precise, keep = 4, False, Keep(gates=False, input=True)
        found: ClassVar[dict[str, Tensor | None]] = {}

        def opened(self, target: Any) -> int:
            return 1

        def began(self) -> None:
            return

        def missing(self, target: Any, quantity: str, reason: str) -> None:
            return

        def measured(
            self, target: Any, use: int, site: str, adjoints: Any, rows: Tensor, carried: int, after: int = 0
        ) -> None:
            self.found[site] = adjoints.initial_hidden

        def missed(self, target: Any, reason: str) -> None:
            raise AssertionError(reason)

        def failed(self, target: Any, error: Exception) -> None:
            raise error

        def loss_scale(self) -> float:
            return 1.0

    watcher = Watcher(discover(module), Listening(), names_in(module), Home(module.parameters()))
    watcher.start()
    module(x, h0)[0].pow(3).sum().backward()
    watcher.close()
    given = h0.clone().requires_grad_()
    expected = torch.autograd.grad(module(x, given)[0].pow(3).sum(), given)[0][:, [1, 4, 7, 10]]
    for found, reference in zip(Listening.found.values(), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-13)


def test_a_pass_that_leaves_timesteps_out_is_replayed(tmp_path: Path) -> None:
    """autograd.grad for one input runs only the nodes on the way to it; the others are not 0 for that."""
    torch.manual_seed(0)
    module = nn.GRU(3, 6).double().requires_grad_(False)
    pieces = [torch.randn(B, 3, dtype=torch.float64, requires_grad=True) for _ in range(T)]
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        torch.autograd.grad(module(torch.stack(pieces))[0][-1].sum(), pieces[7])
        recorder.step()
    x = torch.stack(pieces).detach()
    reference = unroll(module, x.requires_grad_())
    reference.differentiate(reference.output[-1].sum())
    found = gradscope.open_run(tmp_path / "run").apart.array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, _by_lag(reference.sites["l0"].gradients["hidden"], False), rtol=1e-10)


@pytest.mark.parametrize("quantities", ["all", ("hidden", "gates")])
def test_quantities_that_follow_from_the_gates_are_replayed(quantities: Any, tmp_path: Path) -> None:
    module, x = nn.GRU(3, 6).double(), torch.randn(T, B, 3, dtype=torch.float64)
    run = _record(module, x, "last", tmp_path / "run", quantities=quantities)
    assert np.isfinite(run.array("model/l0", "gates")[0]).all()


def test_an_output_edited_in_place_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(3, 6).double(), torch.randn(T, B, 3, dtype=torch.float64)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        output, _ = module(x)
        output.mul_(2.0)
        output[-1].sum().backward()
        recorder.step()
    reference = unroll(module, x)
    reference.differentiate(2 * reference.output[-1].sum())
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, _by_lag(reference.sites["l0"].gradients["hidden"], False), rtol=1e-10)


def test_a_model_made_double_after_it_faded_is_replayed_in_double(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(2, 16), torch.randn(300, 3, 2)
    with gradscope.record(module, tmp_path / "run", every=1) as recorder:
        for _ in range(2):
            module(x)[0][-1].sum().backward()
            recorder.step()
        module.double()
        module(x.double())[0][-1].sum().backward()
        recorder.step()
    reference = unroll(module, x.double())
    reference.differentiate(reference.output[-1].sum())
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[2]
    np.testing.assert_allclose(found, _by_lag(reference.sites["l0"].gradients["hidden"], False), rtol=1e-10)
