"""Twenty recordings: advice, remarks, facts and the page's own sentences, recomputed from the arrays by plain numpy."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

import gradscope
from gradscope.reading.answers import clipping_now_of_run
from gradscope.reading.facts import gather
from gradscope.reading.remarks import clip_remarks, first_nonfinite
from gradscope.report import view
from gradscope.words import number
from tests.recordings import RECORDINGS, raw_of

Runs = dict[str, gradscope.Run]


def longest(run: gradscope.Run, site: str) -> int:
    """Steps of the longest sequence, over the calls that hand its state on."""
    records, lengths = run.records(site), run.lengths(site).max(1)
    return int((lengths + records["after"].to_numpy() + records["carried"].to_numpy().clip(min=0)).max())


def norms_of(run: gradscope.Run) -> pd.DataFrame:
    """Step and norm before clipping, of the first call of each step; without calls that of the parameters."""
    calls = run.clips()
    if len(calls):
        return calls.drop_duplicates("step")[["step", "norm_before"]].set_axis(["step", "norm"], axis=1)
    table = run.parameters()
    named = [name for name in table if name not in ("step", "micro", "attempt", "rank")]
    total = np.sqrt((table[named].to_numpy(float) ** 2).sum(1))
    return pd.DataFrame({"step": table["step"], "norm": total})


def test_advice_for_a_site_names_its_length_and_what_its_gates_alone_would_carry(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        for answer in run.answers():
            said, fit = " ".join(answer.what_now), answer.late
            if chrono := re.search(r"chrono initialisation (?:with |\()T = (\d+)", said):
                told["chrono"] += 1
                assert int(chrono[1]) == longest(run, answer.site)
                # It is for what the arrays say vanishes: a factor of ten over the lags of the verdict.
                raw = raw_of(run, answer.site, answer.quantity, "late")
                low, high = fit.lag_range
                assert raw.value(high) - raw.value(low) < -0.9
            if biased := re.search(r"b_[fz] ~ log U\[1, (\d+)\]", said):
                assert int(biased[1]) == longest(run, answer.site) - 1
            if alone := re.search(r"which alone \([fz] = ([\d.]+)\) is down to a tenth at lag (\d+)", said):
                told["gate alone"] += 1
                gate = 1 / (1 + np.exp(-1.0))
                assert alone[1] == f"{gate:.2f}"
                assert gate ** int(alone[2]) <= 0.1 < gate ** (int(alone[2]) - 1)
            if "training opened it" in said or "training closed it" in said:
                told["opened or closed"] += 1
                at_end, at_start = (raw_of(run, answer.site, answer.quantity, part) for part in ("late", "early"))
                change = [each.value(fit.lag_range[1]) - each.value(fit.lag_range[0]) for each in (at_end, at_start)]
                assert change[0] > change[1] if "opened" in said else change[0] < change[1]
            if "5 or more steps" in said:
                told["more steps"] += 1
                assert len(np.unique(raw_of(run, answer.site, answer.quantity, "late").steps)) < 5
            if "longer sequences" in said:
                told["longer sequences"] += 1
                raw = raw_of(run, answer.site, answer.quantity, "late")
                assert (np.isfinite(raw.rows).sum(0) > 0).sum() < 20
    assert {"chrono", "gate alone", "longer sequences"} <= set(told), told


def test_advice_on_the_threshold_and_on_jumps_holds_the_raw_norms(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        calls, norms = run.clips(), norms_of(run)
        finite = norms[np.isfinite(norms["norm"])]
        said = " | ".join(clipping_now_of_run(run))
        if never := re.search(r"never binds: (\S+) is above every one of (\d+) finite norms \(largest (\S+)\)", said):
            told["never"] += 1
            assert finite["norm"].max() <= float(never[1])
            assert int(never[2]) == len(finite)
            assert never[3] == number(finite["norm"].max())
        if always := re.search(r"binds in (more than )?(\d+)% of the calls: at (\S+) the", said):
            told["always"] += 1
            shares = (calls["norm_before"] + 1e-6 > calls["threshold"])[np.isfinite(calls["norm_before"])].mean()
            assert shares >= 0.95
            assert abs(100 * shares - int(always[2])) <= (1 if always[1] else 0.5)
            assert float(always[3]) == calls["threshold"].iloc[0]
        if jump := re.search(r"norms jump, at step (\d+) to (\S+), (\S+) times the median", said):
            told["jump"] += 1
            top = finite.loc[finite["norm"].idxmax()]
            assert int(jump[1]) == top["step"]
            assert jump[2] == number(top["norm"])
            assert jump[3] == number(top["norm"] / finite["norm"].median())
            assert top["norm"] >= 10 * finite["norm"].median()
        if gone := re.search(r"diverged at step (\d+) \(the largest finite norm known is (\S+), at step (\d+)\)", said):
            told["diverged"] += 1
            loss = run.steps().set_index("step")["loss"]
            assert int(gone[1]) == loss.index[~np.isfinite(loss)][0]
            assert not np.isfinite(loss[int(gone[1]) :]).any()
            assert gone[2] == number(finite["norm"].max())
            assert int(gone[3]) == finite.loc[finite["norm"].idxmax(), "step"]
    assert {"never", "always", "diverged"} <= set(told), told


def test_a_caveat_stands_where_a_gradient_enters_at_most_timesteps(recorded: Runs) -> None:
    told = 0
    for run in recorded.values():
        for answer in run.answers():
            if "direct" not in run.quantities(answer.site):
                continue
            later = run.array(answer.site, "direct")[..., 1:]
            entering = (later[~np.isnan(later)] != 0).mean() if later.size else 0.0
            assert bool(answer.caveat) == (entering >= 0.5)
            above = any(site.startswith("core/l1") for site in run.sites) and answer.site.startswith("core/l0")
            assert ("layer above" in answer.caveat) == (bool(answer.caveat) and above)
            told += bool(answer.caveat)
    assert told >= 2


def test_the_facts_of_a_run_are_those_of_its_tables(recorded: Runs) -> None:
    for (name, run), found in zip(recorded.items(), gather(list(recorded.values())), strict=True):
        loss = run.steps()["loss"].to_numpy()
        assert found.n_steps == RECORDINGS[name].steps == len(loss)
        assert found.n_records == len(range(0, RECORDINGS[name].steps, RECORDINGS[name].every))
        assert found.parameters == sum(p.numel() for p in RECORDINGS[name].make().parameters())
        if np.isfinite(loss).all():
            assert found.diverged_at is None
            last = loss[-max(1, len(loss) // 20) :]
            assert found.final_loss == pytest.approx(last.mean())
        else:
            assert not np.isfinite(loss[found.diverged_at :]).any()
            assert np.isfinite(loss[: found.diverged_at]).all()
        assert clip_remarks(run.clips()) == []  # every call stood between backward and step


def test_the_page_begins_with_counts_and_ends_of_what_the_arrays_hold(recorded: Runs) -> None:
    facts = gather(list(recorded.values()))
    said = view.lead(facts)
    verdicts = Counter(answer.late.verdict for found in facts for answer in found.answers)
    assert f"Of {sum(verdicts.values())} sites:" in said
    for verdict, count in verdicts.items():
        assert f"{verdict} at {count}" in said.lower()
    left: dict[str, float] = {}
    for found in facts:
        for answer in found.answers:
            raw = raw_of(found.run.run, answer.site, answer.quantity, "late")
            known = raw.lags[np.isfinite(raw.curve)]
            gone = (np.nan_to_num(raw.norms[:, -1], nan=1.0) < 1e-300).mean() >= 0.5
            if known.size and np.isfinite(answer.late.reach):
                where = found.name + (f", {answer.site}" if len(found.answers) > 1 else "")
                left[where] = -np.inf if gone else answer.late.reach
    most, least = re.search(r"most is left in (.+?) \([^)]*\), least in (.+?) \(", said).groups()
    assert left[most] == max(left.values())
    assert left[least] == min(left.values())


def test_where_the_first_gradient_that_is_not_finite_arose_is_read_off_the_arrays(recorded: Runs) -> None:
    told = 0
    for run in recorded.values():
        found = re.search(r"at step (\d+): (\S+) \((\w+)\), (\d+) sequences, (.*)\.$", first_nonfinite(run))
        if not found:
            continue
        told += 1
        site, quantity = found[2], found[3]
        at = int(np.flatnonzero(run.records(site)["step"].to_numpy() == int(found[1]))[0])
        norms, lengths = run.array(site, quantity)[at], run.lengths(site)[at]
        bad = ~np.isfinite(norms) & (np.arange(norms.shape[1]) < lengths[:, None])
        assert int(found[4]) == bad.any(1).sum()
        lag = int(np.flatnonzero(bad.any(0))[0])
        assert found[5] == ("it comes from above, at the last step" if lag == 0 else f"it arises at lag {lag}")
    assert told
