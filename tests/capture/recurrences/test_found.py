"""Every recurrence is found, whatever it is written as, and its adjoints are those of the true states."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import GradscopeError, NothingToRecordError
from tests.capture.recurrences.agreement import (
    EXACT,
    Training,
    against_lag,
    assert_covered,
    error,
    matched,
    norms_of,
    reached,
    states_of,
)
from tests.capture.recurrences.cases import Case, H, Site, T, site
from tests.capture.recurrences.cells import Pair, zeros
from tests.capture.recurrences.kernels import (
    LENGTHS,
    SCRIPTED,
    Reordered,
    ReorderedLoop,
    ShrinkingGRUCell,
    ShrinkingLinears,
)
from tests.capture.recurrences.loops import TwoLinears
from tests.capture.recurrences.models import CASES
from tests.capture.recurrences.truth import note, true_adjoints

Trained = Callable[[Case, torch.dtype], Training]
every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
both_precisions = pytest.mark.parametrize("dtype", EXACT, ids=lambda dtype: str(dtype).removeprefix("torch."))


def refused(case: Case, lines: list[gradscope.schema.Coverage]) -> bool:
    """Whether coverage says why there is nothing, where that is an answer."""
    return case.refusal is not None and any(
        line.status != "recorded" and re.search(case.refusal, line.reason) for line in lines
    )


def test_there_are_enough_models() -> None:
    assert len(CASES) >= 34


@every_model
@both_precisions
def test_a_snapshot_has_the_adjoint_of_every_true_state(case: Case, dtype: torch.dtype) -> None:
    model, x = case.build(dtype), case.data(dtype)
    truth = true_adjoints(model, lambda: case.loss(model, x), case.batch_axis)
    try:
        snapshot = gradscope.snapshot(model, lambda: case.loss(model, x))
    except GradscopeError as error:
        if case.refusal is None or not re.search(case.refusal, str(error)):
            raise
        return
    if not snapshot.sites and refused(case, snapshot.coverage):
        return
    pairs = matched({name: states_of(snapshot[name]) for name in snapshot}, case, truth, EXACT[dtype])
    assert_covered(snapshot.coverage, pairs)


@every_model
@both_precisions
def test_a_run_has_the_norms_of_every_true_state(case: Case, dtype: torch.dtype, trained: Trained) -> None:
    training = trained(case, dtype)
    run = gradscope.open_run(training.run)
    assert run.lost == {}
    if not run.sites and refused(case, run.coverage):
        return
    stored = {name: norms_of(run, name, *training.truths) for name in run.sites}
    for k, adjoints in enumerate(training.truths.values()):
        found = {name: records[k] for name, records in stored.items()}
        norms = {name: {label: values for label, (_, values) in states.items()} for name, states in found.items()}
        truth = {name: against_lag(adjoint) for name, adjoint in adjoints.items()}
        truth |= {f"{name} as far as reached": against_lag(reached(adjoint)) for name, adjoint in adjoints.items()}
        pairs = matched(norms, _as_far_as_reached(case), truth, EXACT[dtype])
        for name, expected in pairs.items():
            for lags, values in found[name].values():
                # Of some states the graph does not show the last one, and nothing else is put in its place.
                assert lags[0] - expected.after in (0, 1), name
                assert lags == list(range(lags[0], lags[0] + len(values))), name
    assert_covered(run.coverage, pairs)


def _as_far_as_reached(case: Case) -> Case:
    """Against lag, a step that no graph shows is not a zero at the end."""
    sites = tuple(
        Site(
            one.names,
            {
                "|".join((*noted.split("|"), *(f"{name} as far as reached" for name in noted.split("|")))): labels
                for noted, labels in one.states.items()
            },
            one.after,
            one.known,
        )
        for one in case.sites
    )
    return replace(case, sites=sites)


# -- what needs more than one look -------------------------------------------------------------------------------------


class Stepped(nn.Module):
    """An LSTM cell of one's own, called as often as there are inputs, from a state that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = Pair(), nn.Linear(H, 1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = (zeros(x), zeros(x)) if state is None else state
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        return self.out(state[0]), state


class SteppedTorchCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, H), nn.Linear(H, 1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            note(h=state[0], c=state[1])
        return self.out(state[0]), state


class SteppedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(3, H), nn.Linear(H, 1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        for x_t in x.unbind(1):
            output, state = self.cell(x_t[None], state)
        return self.out(output[0]), state


class SteppedLoop(TwoLinears):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        h = zeros(x) if state is None else state
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
        return self.out(h), h


STEPPED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "own cell": (Stepped, "cell", "h"),
    "nn.LSTMCell": (SteppedTorchCell, "cell", "h"),
    "nn.LSTM": (SteppedLayer, "cell/l0", "cell/l0.h"),
    "loop": (SteppedLoop, "h2h", "h"),
}
stepped = pytest.mark.parametrize(("build", "name", "state"), STEPPED.values(), ids=STEPPED)


def _data(steps: int, seed: int) -> Tensor:
    return torch.randn(4, steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@stepped
def test_as_many_steps_as_there_were_calls(build: Any, name: str, state: str, tmp_path: Path) -> None:
    """The number of calls changes from one training step to the next; nothing remembered is used for another shape."""
    torch.manual_seed(0)
    model, lengths, truths = build().double(), (9, 4, 12, 9, 3), []
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        for k, steps in enumerate(lengths):
            model(_data(steps, k))[0].pow(2).mean().backward()
            recorder.step()
    for k, steps in enumerate(lengths):
        truths.append(true_adjoints(model, lambda k=k, steps=steps: model(_data(steps, k))[0].pow(2).mean())[state])
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == (name,)
    for k, steps in enumerate(lengths):
        lags, values = norms_of(run, name, k)[0]["hidden"]
        assert lags == list(range(steps))
        assert error(values, against_lag(truths[k])) < 1e-10


@pytest.mark.parametrize("detached", [Tensor.detach, lambda s: s.detach().clone()], ids=["detached", "copied"])
@stepped
def test_truncated_training_restarts_the_lag_and_counts_what_was_carried(
    build: Any, name: str, state: str, detached: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x, truths = build().double(), _data(28, 1), []
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        carried = None
        for window in x.split(7, 1):
            out, carried = model(window, carried)
            out.pow(2).mean().backward()
            carried = tuple(detached(s) for s in carried) if isinstance(carried, tuple) else detached(carried)
            recorder.step()
    carried = None
    for window in x.split(7, 1):
        kept: list[Any] = []
        truths.append(true_adjoints(model, lambda w=window, s=carried, k=kept: _windowed(model, w, s, k))[state])
        carried = kept[0]
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == (name,)
    assert run.records(name)["carried"].tolist() == [0, 7, 14, 21]
    for k, adjoint in enumerate(truths):
        lags, values = norms_of(run, name, k)[0]["hidden"]
        assert lags == list(range(7))
        assert error(values, against_lag(adjoint)) < 1e-10


def _windowed(model: nn.Module, window: Tensor, state: Any, kept: list[Any]) -> Tensor:
    out, state = model(window, state)
    kept.append(tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach())
    return out.pow(2).mean()


@stepped
def test_steps_under_no_grad_are_carried_in(build: Any, name: str, state: str, tmp_path: Path) -> None:
    """Burn-in, as R2D2 does it. Of a loop without a module nothing is seen then, and so it is not known."""
    torch.manual_seed(0)
    model, x = build().double(), _data(11, 1)
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        with torch.no_grad():
            _, carried = model(x[:, :5])
        model(x[:, 5:], carried)[0].pow(2).mean().backward()
        recorder.step()
    truth = true_adjoints(model, lambda: model(x[:, 5:], carried)[0].pow(2).mean())[state]
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == (name,)
    assert run.records(name)["carried"].tolist() in ([[5], [-1]] if name == "h2h" else [[5]])
    lags, values = norms_of(run, name, 0)[0]["hidden"]
    assert lags == list(range(6))
    assert error(values, against_lag(truth)) < 1e-10


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@both_precisions
def test_a_scripted_loop_at_its_first_call(dtype: torch.dtype) -> None:
    model, twin, x = SCRIPTED.build(dtype), SCRIPTED.build(dtype), SCRIPTED.data(dtype)
    truth = true_adjoints(twin, lambda: twin(x).pow(2).mean())
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    matched({name: states_of(snapshot[name]) for name in snapshot}, SCRIPTED, truth, EXACT[dtype])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_loop_at_its_fifth_call_without_the_optimising_executor() -> None:
    """What coverage advises for the fifth call does help, from the first call on (see test_nothing)."""
    model, twin, x = SCRIPTED.build(torch.float64), SCRIPTED.build(torch.float64), SCRIPTED.data(torch.float64)
    truth = true_adjoints(twin, lambda: twin(x).pow(2).mean())
    with torch.jit.optimized_execution(False):
        for _ in range(4):
            model(x).pow(2).mean().backward()
        snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    matched({name: states_of(snapshot[name]) for name in snapshot}, SCRIPTED, truth, 1e-10)


# -- batches that change -----------------------------------------------------------------------------------------------


def _followed(adjoint: list[Tensor], rows: list[list[int]]) -> list[list[float]]:
    """Norms of each sequence against lag, given the row that each sequence has at each of its steps."""
    return [[float(adjoint[t][row].norm()) for t, row in enumerate(own)][::-1] for own in rows]


def _stored(run: gradscope.Run, name: str) -> list[list[float]]:
    table = run.norms(name, "hidden").sort_values(["sequence", "lag"])
    return [list(group.norm) for _, group in table.groupby("sequence")]


@pytest.mark.parametrize(("build", "name"), [(ShrinkingGRUCell, "cell"), (ShrinkingLinears, "h2h")])
def test_a_batch_that_shrinks_is_followed_row_by_row_or_refused(build: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build().double(), _data(T, 2)
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())["h"]
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        model(x).pow(2).mean().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    if not run.sites:
        assert any(re.search("batch|rows", line.reason) for line in run.coverage)
        return
    assert run.sites == (name,)
    expected = _followed(list(truth), [[row] * length for row, length in enumerate(LENGTHS)])
    stored = _stored(run, name)
    assert [len(own) for own in stored] == list(LENGTHS)
    for own, true in zip(stored, expected, strict=True):
        assert own == pytest.approx(true, rel=1e-10)
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())[name]
    assert snapshot.lengths.tolist() == list(LENGTHS)
    assert error(snapshot.hidden, truth) < 1e-10


@pytest.mark.parametrize("build", [Reordered, ReorderedLoop])
def test_rows_that_change_places_are_followed_or_refused(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build().double(), _data(T, 2)
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)

    handle = model.cell.register_forward_hook(keep)
    model(x).pow(2).mean().backward()
    handle.remove()
    model.zero_grad()
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        model(x).pow(2).mean().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    if not run.sites:
        assert build is Reordered
        assert any(re.search("batch|rows", line.reason) for line in run.coverage)
        return
    rows = [[row] for row in range(4)]  # where each sequence is at each step
    for t in range(T - 1):
        order = Reordered.order(t).tolist()
        for own in rows:
            own.append(order.index(own[-1]))
    expected = _followed([s.grad for s in states], rows)
    stored = sorted(_stored(run, run.sites[0]))
    assert len(stored) == 4
    for own, true in zip(stored, sorted(expected), strict=True):
        assert own == pytest.approx(true, rel=1e-10)


class Beams(ReorderedLoop):
    """The better hypotheses go on twice, the others not at all."""

    @staticmethod
    def order(t: int) -> Tensor:
        return torch.tensor([0, 0, 1, 1])


def test_rows_that_are_repeated_and_dropped_are_refused() -> None:
    model, x = Beams().double(), _data(T, 2)
    with pytest.raises(NothingToRecordError, match="repeated or dropped"):
        gradscope.snapshot(model, lambda: model(x).pow(2).mean())


# -- an independent check of the reference -----------------------------------------------------------------------------


def test_the_reference_agrees_with_a_step_by_hand() -> None:
    """Of a two-step loop, written out: ∂L/∂h_1 = W ᵀ((1 - h_2²) ∂L/∂h_2)."""
    model = TwoLinears().double()
    x = _data(2, 5)
    adjoint = true_adjoints(model, lambda: model(x).sum())["h"]
    with torch.no_grad():
        h = torch.tanh(model.i2h(x[:, 0]) + model.h2h.bias)
        h = torch.tanh(model.i2h(x[:, 1]) + model.h2h(h))
        last = model.out.weight.sum(0).expand(4, H)
        torch.testing.assert_close(adjoint[1], last)
        torch.testing.assert_close(adjoint[0], ((1 - h**2) * last) @ model.h2h.weight)


def test_the_comparison_notices_a_wrong_name_a_wrong_value_and_a_site_too_many() -> None:
    true = {name: torch.rand(3, 2, 4, dtype=torch.float64) for name in "hc"}
    case = Case("made up", nn.Module, (site("cell", h="hidden", c="cell"),))
    matched({"cell": {"hidden": true["h"], "cell": true["c"]}}, case, true, 1e-10)
    for found in (
        {"cell": {"hidden": true["c"], "cell": true["h"]}},
        {"cell": {"hidden": true["h"] * (1 + 1e-8), "cell": true["c"]}},
        {"cell": {"hidden": true["h"]}},
        {"cell": {"hidden": true["h"], "cell": true["c"], "state_1": true["c"]}},
        {"cell": {"hidden": true["h"][1:], "cell": true["c"][1:]}},
        {"cell": {"hidden": true["h"], "cell": true["c"]}, "cell#2": {"hidden": true["h"]}},
    ):
        with pytest.raises(AssertionError, match="made up"):
            matched(found, case, true, 1e-10)
