"""What is advised of every loop that clips, against the norms that the loop computed by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gradscope
from gradscope.diagnostics import thresholds
from gradscope.reading.answers import clipping_now_of_run
from gradscope.reading.remarks import clip_remarks
from tests.capture.training.conftest import Recorded, run_loop
from tests.capture.training.loops import LOOPS, Table

CLIPPING = [name for name in LOOPS if run_loop(name, None).clips]
loops = pytest.mark.parametrize("name", CLIPPING)

WITHOUT_EFFECT = {
    "after": "came after the update",
    "before": "came before the pass of their step",
    "dropped": "were on a gradient that was zeroed before any update",
    "skipped": "were in steps whose update was skipped",
}
# What is said after those: of updates that were lost, scaled gradients, and parts of a sum.
SUMS = "Clipping ran 3 times a step while gradients were accumulated:"
SINGLE = "Clipping ran 3 times a step, {} calls on the gradient of a single pass"
BESIDE = {
    "a_norm_that_overflows": "Step 2 lost the update",
    "a_loss_scale_left_in_while_clipping": "4 of 4 clipping calls were on gradients still multiplied by the loss scale",
    "accumulation_with_a_clip_of_every_partial_sum": f"{SUMS} 4 of 6 calls",
    "an_accumulation_given_up_at_the_end_of_an_epoch": f"{SUMS} 8 of 14 calls",
    "sequences_clipped_by_torch_one_by_one_and_summed": SINGLE.format("6 of 6"),
    "sequences_clipped_by_torch_one_by_one_zeroed_before_each": SINGLE.format("6 of 6"),
    "sequences_clipped_by_torch_one_by_one_in_tensors_that_are_kept": SINGLE.format("6 of 6"),
    "conflicting_gradients_clipped_each_and_added_into_zeros": SINGLE.format("9 of 9"),
}


def _norms(table: Table) -> NDArray[np.float64]:
    """The norms before clipping, one a step: of the calls on what was applied, else of the gradients themselves."""
    parts = list(dict.fromkeys(table.parts))
    part = "" if len(parts) > 1 else parts[0]
    calls = zip(table.clips, table.parts, strict=True)
    first: dict[int, float] = {}
    for (step, place, before), of in calls:
        if place in ("update", "after") and of == part:
            first.setdefault(step, before)
    norms = list(first.values()) or [step.raw for step in table.steps]
    return np.array([norm for norm in norms if math.isfinite(norm)])


@loops
def test_thresholds_are_advised_from_the_norms_before_clipping(
    name: str, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, run = recorded
    norms = _norms(table)
    few = run.suggest_threshold()
    assert (few.n, few.low, few.high) == (len(norms), None, None), "a handful of steps is too little to go by"
    monkeypatch.setattr(thresholds, "MIN_NORMS", 1)
    found = run.suggest_threshold()
    median, last, mean = np.median(norms), np.percentile(norms, 99), norms.mean()
    assert (found.n, found.median, found.mean) == (
        len(norms),
        pytest.approx(median, rel=1e-5),
        pytest.approx(mean, rel=1e-5),
    )
    # Within half to ten times the mean (Pascanu et al. 2013), where the two ranges meet.
    meet = max(median, mean / 2) < min(last, 10 * mean)
    low, high = (max(median, mean / 2), min(last, 10 * mean)) if meet else (median, last)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


@loops
def test_calls_without_effect_are_said_first_and_counted(name: str, recorded: Recorded) -> None:
    table, run = recorded
    places = [place for _, place, _ in table.clips]
    said = clip_remarks(run.clips())
    by_value = " (those by value: in recorded steps)" if (run.clips().kind == "value").any() else ""
    expected = [
        f"{places.count(place)} of {len(places)} clipping calls{by_value} {words}"
        for place, words in WITHOUT_EFFECT.items()
        if place in places
    ]
    if name in BESIDE:
        expected.append(BESIDE[name])
    assert len(said) == len(expected), said
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)


def test_a_scale_that_was_left_in_is_said_with_what_the_threshold_stands_for(tmp_path: Path) -> None:
    run_loop("a_loss_scale_left_in_while_clipping", tmp_path / "run")
    (said,) = clip_remarks(gradscope.open_run(tmp_path / "run").clips())
    scale, threshold, stands_for = re.search(
        r"at a scale of (\S+) the threshold (\S+) stands for (\S+)\.", said
    ).groups()
    # The loop multiplies its loss by 1024 and clips at .1.
    assert [float(scale), float(threshold)] == [1024, 0.1]
    assert float(stands_for) == pytest.approx(0.1 / 1024, rel=0.05)


@pytest.mark.parametrize("from_step", [0, 2, 4])
def test_a_gradient_changed_behind_the_clip_is_said_with_how_often_and_from_when(
    from_step: int, tmp_path: Path
) -> None:
    table, changed = Table(tmp_path / "run"), []
    optimizer = table.sgd()
    with table.recorded(optimizer):
        for k in range(5):
            optimizer.zero_grad()
            table.backward()
            torch.nn.utils.clip_grad_norm_(table.model.parameters(), 0.1)
            clipped = table.norm()
            if k >= from_step:
                table.model.out.bias.grad.mul_(3.0)
            changed.append(abs(table.norm() - clipped) > 0.01 * clipped)
            optimizer.step()
    (said,) = clip_remarks(gradscope.open_run(tmp_path / "run").clips())
    assert said.startswith(f"{sum(changed)} of 5 clipping calls were not the last word")
    assert said.endswith(f"first at step {changed.index(True)}.")


@loops
def test_a_threshold_that_never_or_always_binds_is_said_with_the_largest_norm(name: str, recorded: Recorded) -> None:
    table, run = recorded
    rows = run.clips()
    told = [line for line in clipping_now_of_run(run) if line.startswith("your threshold")]
    whole = [
        before * row.loss_scale > row.threshold
        for row, (_, place, before), part in zip(rows.itertuples(), table.clips, table.parts, strict=True)
        if place in ("update", "partial") and not part and row.kind == "norm" and math.isfinite(before)
    ]
    statistics = next((one for one in run.clipping() if one.kind == "norm" and not one.part), None)
    assert (statistics is None) == (not whole)
    if statistics is None:
        assert not told
        return
    share = np.mean(whole)
    assert statistics.fraction_clipped == pytest.approx(share)
    if share == 0 and not math.isinf(min(statistics.thresholds)):
        (line,) = told
        assert (
            f"never binds: {statistics.thresholds[0]:g} is above every one of {len(_norms(table))} finite norms" in line
        )
    elif share == 1:
        (line,) = told
        assert "binds in 100% of the calls" in line
    else:
        assert not told
