"""Twenty recordings: tables, captions and what `watch` prints, recomputed from the arrays by plain numpy."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

import gradscope
from gradscope import plots
from gradscope.cli.watch import _line
from gradscope.reading.answers import threshold_table_of_run
from gradscope.reading.facts import gather
from gradscope.reading.watching import Watch
from gradscope.report import view
from gradscope.words import correlation, number, percent, signed
from tests.recordings import RECORDINGS, Raw, raw_of

Runs = dict[str, gradscope.Run]


def entered(raw: Raw) -> int:
    """The first lag with a gradient in at least half of the sequences that have one anywhere."""
    active = np.isfinite(raw.rows)
    return int(np.flatnonzero(2 * active.sum(0) >= active.any(1).sum())[0])


def lost(raw: Raw) -> bool:
    """Whether the gradient is zero, or too small for a number, at the end of most sequences."""
    present = ~np.isnan(raw.norms[:, -1])
    return bool(present.any() and (raw.norms[present, -1] < 1e-300).mean() > 0.5)


def horizon(raw: Raw, share: float) -> float:
    """The first lag behind the entry where the curve is below a share of it."""
    curve, first = raw.curve, entered(raw)
    below = np.flatnonzero(curve[first:] < curve[first] + np.log10(share))
    return float(raw.lags[first + below[0]]) if below.size else np.nan


def test_every_row_of_a_comparison_is_what_the_arrays_hold(recorded: Runs) -> None:
    table = gradscope.compare(list(recorded.values())).set_index(["run", "site"])
    told: Counter[str] = Counter()
    for run in recorded.values():
        for answer in run.answers():
            row, raw = table.loc[(run.name, answer.site)], raw_of(run, answer.site, answer.quantity, "late")
            assert row["quantity"] == answer.quantity
            if not np.isnan(row["rate"]):
                assert row["n_steps"] == np.unique(raw.steps).size
                told["rate"] += 1
                line = raw.slope(row["lag_lo"], row["lag_hi"])
                assert row["rate"] == pytest.approx(line.slope, rel=1e-6, abs=1e-9)
                assert row["r2"] == pytest.approx(line.rvalue**2, abs=1e-6)
            if not np.isnan(row["half_life"]):
                told["half-life"] += 1
                assert row["half_life"] == pytest.approx(-np.log10(2) / row["rate"], rel=1e-9)
            if np.isfinite(row["reach"]) and not np.isnan(row["last_lag"]):
                told["reach"] += 1
                curve = raw.curve
                last = curve[raw.lags == row["last_lag"]][0] - curve[entered(raw)]
                assert np.log10(row["reach"]) == pytest.approx(last, abs=1e-6)
            if not np.isnan(row["horizon"]):
                told["horizon"] += 1
                assert row["horizon"] == horizon(raw, answer.late.horizon_fraction)
    assert {"rate", "half-life", "reach", "horizon"} <= set(told), told


def test_the_table_of_the_page_prints_those_numbers(recorded: Runs) -> None:
    facts = gather(list(recorded.values()))
    rows = iter(view.comparison(facts).rows)
    for found in facts:
        losses = found.run.run.steps()["loss"].to_numpy()
        for answer in found.answers:
            name, site, verdict, left, half, rate, horizon_cell, loss, parameters = next(rows)
            raw = raw_of(found.run.run, answer.site, answer.quantity, "late")
            assert (name.text, site.text, verdict.text) == (found.name, answer.site, answer.late.verdict)
            if lost(raw):
                assert left.text == "0"
            elif left.text != "–":
                last = answer.late.last_lag
                assert left.text == number(10 ** (raw.value(last) - raw.curve[entered(raw)]))
            if half.text != "–":
                slope = raw.slope(*answer.late.lag_range).slope
                assert float(half.text) == pytest.approx(-np.log10(2) / slope, rel=0.06)
            if rate.text != "–":
                line = raw.slope(*answer.late.lag_range)
                assert float(rate.text.replace("−", "-")) == pytest.approx(line.slope, abs=5.1e-5)
                low, high = answer.late.lag_range
                assert rate.small[-1] == f"R² {correlation(line.rvalue**2)}, lags {low}–{high}"
            if horizon_cell.text not in ("–", "beyond"):
                assert float(horizon_cell.text) == horizon(raw, answer.late.horizon_fraction)
            ended = losses[-max(1, len(losses) // 20) :].mean()
            assert loss.text == (number(ended, 3) if np.isfinite(losses).all() else "diverged")
            assert (
                parameters.text == f"{sum(p.numel() for p in RECORDINGS[names(recorded, found)].make().parameters()):,}"
            )


def names(recorded: Runs, found) -> str:
    return next(name for name, run in recorded.items() if run.path == found.run.path)


def test_what_other_thresholds_would_have_done_is_counted_in_the_raw_norms(recorded: Runs) -> None:
    told = 0
    for run in recorded.values():
        calls = run.clips()
        if not len(calls):
            continue
        norms = calls.drop_duplicates("step")["norm_before"].to_numpy()
        norms = norms[np.isfinite(norms)]
        for row in threshold_table_of_run(run).itertuples():
            told += 1
            # torch divides by the norm plus 1e-6.
            scale = (
                np.minimum(1.0, row.threshold / (norms + 1e-6)) if np.isfinite(row.threshold) else np.ones(norms.size)
            )
            assert row.clipped == pytest.approx((scale < 1).mean())
            assert row.n == norms.size
            shown = [row.scale_p05, row.scale_p50, row.scale_p95]
            np.testing.assert_allclose(shown, np.quantile(scale, [0.05, 0.5, 0.95]), rtol=1e-6)
            assert row.norm_max == pytest.approx((norms * scale).max(), rel=1e-6)
    assert told > 50


def test_a_line_of_watch_says_what_its_step_holds(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        calls, losses = run.clips(), run.steps().set_index("step")["loss"]
        before = -1
        for arrival in Watch(run.path).look(most=3).arrivals:
            step, said = arrival.step, _line(arrival)
            records = run.records(run.sites[0])["step"].to_numpy()
            before = int(records[records < step].max(initial=-1))
            assert said.startswith(f"step {step:>5}")
            if np.isfinite(losses[step]):
                told["loss"] += 1
                assert f"  loss {number(losses[step])}" in said
            between = calls[(calls["step"] > before) & (calls["step"] <= step)]
            if len(between):
                told["clipped"] += 1
                share = percent((between["clipped"] > 0).mean())
                assert f"clipped {share} of {len(between)} call" in said
            for site, quantity, fit in arrival.fits[:4]:
                raw = of_step(run, site, quantity, step)
                part = re.search(
                    rf"{re.escape(site)} \({quantity}\): (\S+) at lag (\d+)(?:, (\S+) per step)?, (\w+)", said
                )
                if part is None:
                    assert f"{site} ({quantity}): nothing finite" in said
                    assert not np.isfinite(raw.rows).any()
                    continue
                told["reach"] += 1
                assert part[1] == number(10 ** (raw.value(int(part[2])) - raw.curve[entered(raw)]))
                if part[3]:
                    told["rate"] += 1
                    assert part[3] == signed(raw.slope(*fit.lag_range).slope)
    assert {"loss", "clipped", "reach", "rate"} <= set(told), told


def of_step(run: gradscope.Run, site: str, quantity: str, step: int) -> Raw:
    records = run.records(site)
    at = np.flatnonzero(records["step"].to_numpy() == step)
    norms = run.array(site, quantity)[at].reshape(-1, run.array(site, quantity).shape[2])
    logs = np.full(norms.shape, np.nan)
    good = np.isfinite(norms) & (norms > 1e-300)
    logs[good] = np.log10(norms[good])
    after = int(records["after"].to_numpy()[at].max())
    return Raw(after + np.arange(norms.shape[1]), logs, norms, np.full(len(norms), step), None, None)


# --- captions ---------------------------------------------------------------------------------------------------------


def caption(kind: str, runs: list[gradscope.Run]) -> tuple[str, pd.DataFrame]:
    data = plots.load(kind).table(runs)
    return plots.load(kind).caption(data), data


def test_captions_hold_the_numbers_of_the_arrays(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        answers = {answer.site: answer for answer in run.answers()}
        said, _ = caption("comparison", [run])
        for half in re.findall(r"([\d.e]+) steps(?=[,.])", said.partition("Longest half-lives:")[2]):
            told["half-life"] += 1
            own = [
                -np.log10(2) / raw_of(run, site, one.quantity, "late").slope(*one.late.lag_range).slope
                for site, one in answers.items()
                if one.late.half_life is not None
            ]
            assert any(float(half) == pytest.approx(value, rel=0.06) for value in own)
        assert "over sequences" not in said  # it is over the recorded steps, where there are several
        calls = run.clips()
        if len(calls):
            told["clipping"] += 1
            norms = calls.drop_duplicates("step")["norm_before"].to_numpy()
            finite = norms[np.isfinite(norms)]
            said, _ = caption("norms", [run])
            assert f"Median {number(np.median(finite))}, largest {number(finite.max())}." in said
            assert f"({calls['step'].min()} to {calls['step'].max()})" in said
            if (calls["kind"] == "norm").all():
                threshold = calls["threshold"].iloc[0]
                assert f"threshold c ({threshold:g})" in said
                said, _ = caption("clipping", [run])
                share = percent((finite + 1e-6 > threshold).mean())
                assert f"Clipped in training: {run.name} {share} at {threshold:g}." in said
                assert f"from {finite.size} recorded norms" in said
        said, _ = caption("decay", [run])
        for site, shown, lag in re.findall(r"(\S+) ([\d.e-]+) at lag (\d+)", said.partition("What is left:")[2]):
            matching = [one for one in answers.values() if site in (one.site, one.site.rpartition("/")[2], run.name)]
            told["left"] += 1
            own = []
            for one in matching or answers.values():
                raw = raw_of(run, one.site, one.quantity, "late")
                first, last = raw.steps.min(), raw.steps.max()
                assert f", step {last}." in said if first == last else f", steps {first} to {last}." in said
                if int(lag) in raw.lags and np.isfinite(raw.rows).any():
                    own.append(10 ** (raw.value(int(lag)) - raw.curve[np.isfinite(raw.curve)][0]))
            assert any(float(shown) == pytest.approx(value, rel=0.5 if "e" in shown else 0.06) for value in own), said
    assert {"half-life", "clipping", "left"} <= set(told), told
