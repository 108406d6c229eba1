"""What to try is chosen by what the site is and what its numbers are; every number in it is one of the raw arrays."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from gradscope.diagnostics import Entry, clip_statistics, fit_decay, suggest_threshold
from gradscope.reading.advice import clipping_now, together, what_now
from gradscope.reading.answers import advice_of, answers, clipping_now_of_run
from gradscope.reading.facts import advice_of_all, gather
from gradscope.schema import SiteInfo
from gradscope.words import number
from tests.made_runs import entering_last, make_run

LAGS = np.arange(61)


def site(cell, **options):
    gates = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}.get(cell, ())
    return SiteInfo("m/l0", "m", "M", cell, gates=gates, **options)


def falling(rate, *, seed=0, spread=0.003, n=8, **options):
    rng = np.random.default_rng(seed)
    return fit_decay(LAGS, 10 ** ((rate + rng.normal(0, spread, (n, 1))) * LAGS), **options)


VANISHING, LEVEL, GROWING = falling(-0.2), falling(-0.001), falling(0.1)


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        (
            "lstm",
            ["with T = 100 (b_f ~ log U[1, 99], b_i = −b_f; Tallec", "forget bias 1 in b_ih + b_hh"],
        ),
        ("gru", ["b_z ~ log U[1, 99]: PyTorch's z keeps the old state", "a bias of +1 for the update gate z"]),
        ("rnn_tanh", ["an orthogonal recurrent weight", "chrono initialisation (T = 100"]),
        ("rnn_relu", ["the identity as recurrent weight and no bias"]),
        ("MyCell", ["where it maps the state to itself", "where there is one"]),
    ],
)
def test_a_vanishing_gradient_is_answered_by_what_the_site_is_with_t_filled_in(cell, parts):
    (said,) = what_now(site(cell), VANISHING, VANISHING, 100)
    for part in [*parts, "if the task needs what lies that far back", "gradscope.remedies(model, closure)"]:
        assert part in said
    assert "learn" not in said.replace("learning rate", "")


def test_how_far_a_forget_bias_of_1_alone_carries_is_the_gates_own_number():
    (said,) = what_now(site("lstm"), VANISHING, VANISHING, 100)
    gate, lag = re.search(r"which alone \(f = ([\d.]+)\) is down to a tenth at lag (\d+)", said).groups()
    forget = 1 / (1 + np.exp(-1.0))
    assert gate == f"{forget:.2f}"
    assert forget ** int(lag) <= 0.1 < forget ** (int(lag) - 1)
    assert "a tenth" not in what_now(site("lstm"), VANISHING, VANISHING, 8)[0]
    assert "chrono" not in what_now(site("gru"), VANISHING, VANISHING, 2)[0]


def test_what_training_did_decides_whether_an_initialisation_is_the_answer():
    assert what_now(site("lstm"), LEVEL, LEVEL, 60) == ()
    (opened,) = what_now(site("lstm"), VANISHING, LEVEL, 60)
    assert "training opened it" in opened
    (closed,) = what_now(site("lstm"), LEVEL, VANISHING, 60)
    assert "training closed it (it was preserved at the beginning)" in closed
    assert "quantities=['activations']" in closed
    assert "activations" not in what_now(site("rnn_tanh"), LEVEL, VANISHING, 60)[0]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_growing_gradient_is_clipped_and_started_smaller(cell):
    (said,) = what_now(site(cell), GROWING, GROWING, 60)
    assert "clip the norm of the gradient, lower" in said
    assert "orthogonal" in said


def test_a_growing_gradient_is_told_the_thresholds_of_its_own_run(tmp_path):
    run = make_run(tmp_path / "run", (0.1, 0.1), cell="rnn_tanh", sites=("rnn/l0",), every=40)
    found = suggest_threshold(run.clips()["norm_before"])
    (said,) = answers(run)[0].what_now
    assert f"clip the norm of the gradient (thresholds to compare: {number(found.low)} to {number(found.high)})" in said


def test_what_could_not_be_decided_says_what_would_decide_it():
    everywhere = Entry(0.0, True, 0.5, (0.0, 60.0))
    unknown = Entry(0.0, True, float("nan"), (0.0, 60.0), known=False)
    last_only = np.zeros((4, 61))
    last_only[:, 60] = 1.0
    wide = falling(-0.018, n=4, spread=0.02)
    steps = np.repeat(np.arange(6), 8)
    rng = np.random.default_rng(0)
    differ = fit_decay(LAGS, 10 ** (rng.normal(0, 0.05, 6)[steps][:, None] * LAGS), steps=steps)
    for fit, part in (
        (falling(-0.001, entry=everywhere), "gradscope.source_target"),
        (falling(-0.001, entry=unknown), "quantities=[..., 'direct']"),
        (fit_decay(LAGS, last_only), "the loss has to read the output at the first timestep"),
        (fit_decay(LAGS[:3], np.ones((4, 3))), "record longer sequences"),
        (fit_decay(LAGS, np.zeros((4, 61))), "whether the state is detached"),
        (wide, "5 or more steps"),
        (differ, "more sequences a step (samples)"),
    ):
        assert fit.verdict == "undetermined", part
        (said,) = what_now(site("lstm", reverse=True), fit, fit, 60)
        assert part in said


def test_a_loss_at_every_step_is_answered_by_what_the_site_can_have():
    """source_target refuses a loop of the user's own, so nobody with one is sent there."""
    fit = falling(-0.001, entry=Entry(0.0, True, 0.5, (0.0, 60.0)))
    (torchs,), (own,) = what_now(site("gru"), fit, fit, 60), what_now(site("Mine", how="by data flow"), fit, fit, 60)
    assert "gradscope.snapshot of the last step's loss alone" in own
    assert torchs.startswith(own)
    assert "source_target" in torchs
    assert "source_target" not in own


# --- clipping --------------------------------------------------------------------------------------------------------


def clipped(norms, threshold):
    scale = np.minimum(1, threshold / (norms + 1e-6))
    return clip_statistics(norms, scale, (scale < 1).astype(float), kind="norm", threshold=threshold)


def advised(norms, threshold=None, **options):
    frame = pd.DataFrame({"step": 5 * np.arange(len(norms)), "norm": norms})
    clips = [] if threshold is None else [clipped(norms, threshold)]
    return clipping_now(clips, frame, suggest_threshold(norms), **options)


@pytest.mark.parametrize("seed", range(20))
def test_a_threshold_that_never_binds_or_always_does_is_named_with_the_raw_numbers(seed):
    norms = np.random.default_rng(seed).lognormal(0, 0.3, 60)
    norms[seed % 7 : seed % 7 + 2] = np.inf if seed % 2 else norms[0]
    finite = norms[np.isfinite(norms)]
    (never,) = advised(norms, 100.0)
    count, largest, low, high = re.search(
        r"100 is above every one of (\d+) finite norms \(largest ([\d.]+)\).*: ([\d.]+) to ([\d.]+)$", never
    ).groups()
    assert (int(count), largest) == (finite.size, number(finite.max()))
    found = suggest_threshold(norms)
    assert (low, high) == (number(found.low), number(found.high))
    (always,) = advised(norms, 0.01)
    assert "binds in 100% of the calls: at 0.01" in always
    assert advised(norms, float(np.median(finite))) == ()


def test_a_threshold_on_parts_of_an_update_is_not_compared_with_the_norms_of_updates():
    clips = [clip_statistics([1.0, 2.0], [1.0, 1.0], [0.0, 0.0], threshold=10.0)]
    said = [clipping_now(clips, pd.DataFrame({"step": [0, 1], "norm": [norm, norm]}), None) for norm in (2.0, 50.0)]
    assert said[0][0].startswith("your threshold never binds: 10 is above every one of 2 finite norms (largest 2.0)")
    assert said[1] == (), "of the parts nothing is known but that none was clipped; 10 is not above 50"


@pytest.mark.parametrize("seed", range(20))
def test_norms_that_jump_are_named_with_their_step_and_the_learning_rate(seed):
    norms = np.random.default_rng(seed).lognormal(0, 0.2, 60)
    norms[seed + 3] = 40.0
    (said,) = advised(norms, learning_rate=0.05)
    step, value, times = re.search(r"at step (\d+) to ([\d.]+), ([\d.]+) times the median", said).groups()
    assert int(step) == 5 * (seed + 3)
    assert value == number(norms.max())
    assert times == number(norms.max() / np.median(norms))
    assert "clip the norm (thresholds to compare" in said
    assert "lower the learning rate (now 0.05)" in said
    (binding,) = advised(norms, 5.0)
    assert "clip the norm" not in binding
    assert "lower the learning rate" in binding
    assert advised(np.full(60, 1.0)) == ()


def test_a_run_that_diverged_says_where():
    (said,) = advised(np.r_[np.ones(40), 8.0, np.full(20, np.inf)], diverged_at=205, learning_rate=1.0)
    assert "the run diverged at step 205 (the largest finite norm known is 8.0, at step 200)" in said
    assert "lower the learning rate (now 1)" in said
    assert advised(np.full(5, np.nan)) == ()


# --- of a run --------------------------------------------------------------------------------------------------------


def test_sites_with_the_same_advice_are_told_once(tmp_path):
    assert together([("a", ["x", "y"]), ("b", ["x"])]) == ["what now (a, b): x", "what now (a): y"]
    assert together([(str(i), ["x"]) for i in range(9)]) == ["what now (0, 1, 2, 3 and 5 more): x"]
    run = make_run(
        tmp_path / "run", sites=("m/l0", "m/l1"), threshold=1000.0, extra={"direct": entering_last()}, lags=40
    )
    lines = advice_of(answers(run))
    assert [line for line in lines if line.startswith("what now (m/l0, m/l1): ") and "T = 40" in line] == lines
    several = advice_of_all(gather([run, make_run(tmp_path / "other", sites=("m/l0",), threshold=None)]))
    assert sum("T = 40" in line for line in several) == 1
    assert any(line.startswith("what now (run m/l0, run m/l1, other m/l0): ") for line in several)
    (never,) = clipping_now_of_run(run)
    norms = run.clips()["norm_before"].to_numpy()
    assert f"1000 is above every one of {norms.size} finite norms (largest {number(norms.max())})" in never
