"""Compare what was found with what is true, and say where they differ."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import GradscopeError
from tests.capture.recurrences.cases import Case, Site
from tests.capture.recurrences.truth import true_adjoints

Truth = Mapping[str, Tensor]

#: Of the largest value of its own timestep.
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
STEPS = 5
NUMBERED = tuple(f"state_{k}" for k in range(1, 9))


def states_of(site: gradscope.capture.SiteSnapshot) -> dict[str, Tensor]:
    """Return every state of a snapshot's site under the quantity it is called."""
    found = {}
    for name in ("hidden", "cell", *NUMBERED):
        try:
            found[name] = site.state(int(name[6:])) if name in NUMBERED else getattr(site, name)
        except GradscopeError:
            continue
    return found


def norms_of(run: gradscope.Run, site: str, *steps: int) -> list[dict[str, tuple[list[int], Tensor]]]:
    """Return the lags and the norms (lag, sequence) of every state, for the record of each of these steps."""
    found: list[dict[str, tuple[list[int], Tensor]]] = [{} for _ in steps]
    for name in run.quantities(site):
        if name not in ("hidden", "cell", *NUMBERED):
            continue
        table = run.norms(site, name)
        assert set(table.micro) == {0}, "one backward pass is one record"
        for states, step in zip(found, steps, strict=True):
            norms = table[table.step == step].pivot(index="lag", columns="sequence", values="norm").sort_index()
            states[name] = list(norms.index), torch.tensor(norms.to_numpy())
    return found


def against_lag(adjoint: Tensor) -> Tensor:
    """Return the norms (lag, sequence) of an adjoint (T, B, \\*state) of sequences of full length."""
    return torch.linalg.vector_norm(adjoint.flatten(2), dim=2).flip(0)


def reached(adjoint: Tensor) -> Tensor:
    """Leave out last steps from which nothing goes to the loss: no graph tells that they were made."""
    steps = len(adjoint)
    while steps and not adjoint[steps - 1].any():
        steps -= 1
    return adjoint[:steps]


def error(found: Tensor, true: Tensor) -> float:
    """Return the largest error at any step, relative to the largest true value of that step."""
    if true.is_complex() and not found.is_complex():  # real and imaginary parts side by side
        true = torch.view_as_real(true)
    if _without_ones(found) != _without_ones(true):
        return float("inf")
    distance, scale = (t.flatten(1).abs().amax(1) for t in (found.reshape(true.shape) - true, true))
    return float(torch.where(scale > 0, distance / scale, distance * float("inf")).nan_to_num(0.0, posinf=1e300).max())


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape, without axes of length 1 in the state."""
    return (*tensor.shape[:2], *(size for size in tensor.shape[2:] if size > 1))


def allowed(label: str, labels: Iterable[str]) -> bool:
    return ("state" if label in NUMBERED else label) in labels


def disagreement(found: Mapping[str, Tensor], site: Site, truth: Truth, exact: float) -> str:
    """Say how a site's states differ from the true ones; empty where they agree."""
    left, wrong = dict(found), []
    for noted, labels in site.states.items():
        errors = {
            (label, name): min(error(left[label], truth[name]), error(left[label], reached(truth[name])))
            for label in left
            for name in noted.split("|")
        }
        best = min(errors, key=lambda key: errors[key], default=None)
        if best is None or errors[best] > exact:
            if "absent" in labels:
                continue
            shapes = {label: tuple(values.shape) for label, values in found.items()}
            shape = tuple(truth[noted.split("|")[0]].shape)
            wrong.append(
                f"{noted} {shape} is none of {shapes}" + (f" (best: {best} {errors[best]:.1e})" if best else "")
            )
        elif not allowed(best[0], labels):
            wrong.append(f"{best[1]} is called {best[0]}, not {' or '.join(labels)}")
            del left[best[0]]
        else:
            del left[best[0]]
    if left:
        wrong.append(f"besides: {sorted(left)}")
    return "; ".join(wrong)


def matched(found: Mapping[str, Mapping[str, Tensor]], case: Case, truth: Truth, exact: float) -> dict[str, Site]:
    """Pair the sites found with the true ones, one to one; fail with all that is known where they do not pair."""
    pairs: dict[str, Site] = {}
    said = []
    for site in case.sites:
        named = [name for name in found if any(fnmatch(name, pattern) for pattern in site.names)]
        reasons = {name: disagreement(found[name], site, truth, exact) for name in named}
        good = [name for name in named if not reasons[name] and name not in pairs]
        if len(good) == 1:
            pairs[good[0]] = site
        else:
            said.append(f"{site.names} {dict(site.states)}: matched by {good or 'none'}; {reasons}")
    extra = sorted(set(found) - set(pairs))
    if said or extra:
        raise AssertionError(f"{case.name}: {said or ''} found {sorted(found)}, of which not expected: {extra}")
    return pairs


def assert_covered(coverage: Iterable[gradscope.schema.Coverage], pairs: Mapping[str, Site]) -> None:
    """Every site is said to be recorded, a found one by data flow, and nothing to be missing."""
    lines = list(coverage)
    assert not [line for line in lines if line.status == "missing"]
    for name, site in pairs.items():
        own = [line for line in lines if line.site == name]
        assert own, f"no line for {name}"
        assert own[0].status == "recorded"
        if not site.known:
            assert "data flow" in own[0].reason, own


def train(
    case: Case, dtype: torch.dtype, run: Path | None, look_at: Sequence[int] = (), steps: int = STEPS
) -> tuple[list[Tensor], dict[int, Truth]]:
    """Train by SGD, recorded or not; return the weights, and the truth at some steps."""
    model, truths = case.build(dtype), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = None
    if run is not None:
        recorder = gradscope.record(model, run, optimizer=optimizer, every=1, samples=None, tensors=False)
    for step in range(steps):
        x = case.data(dtype, seed=step)
        if step in look_at:
            twin = copy.deepcopy(model)
            truths[step] = true_adjoints(twin, lambda twin=twin, x=x: case.loss(twin, x), case.batch_axis)
        case.loss(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    if recorder is not None:
        recorder.close()
    return [p.detach().clone() for p in model.parameters()], truths


@dataclass(frozen=True)
class Training:
    """The same five steps alone and recorded."""

    alone: list[Tensor]
    recorded: list[Tensor]
    #: Of the first step and of the last, when what was found at the first is remembered.
    truths: dict[int, Truth]
    run: Path
    #: Whether the generator went on as without recording.
    same_generator: bool

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, run: Path) -> Training:
        alone, truths = train(case, dtype, None, look_at=(0, STEPS - 1))
        generator = torch.get_rng_state()
        recorded, _ = train(case, dtype, run)
        return cls(alone, recorded, truths, run, torch.equal(generator, torch.get_rng_state()))


def unharmed(model: nn.Module) -> bool:
    """Whether no module carries a hook."""
    tables = [name for name in vars(nn.Module()) if "hooks" in name and "_load" not in name]
    return not any(getattr(m, name, None) for m in model.modules() for name in tables)
