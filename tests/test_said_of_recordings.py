"""Twenty recordings of small models: every sentence is recomputed from the stored arrays by plain numpy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

import gradscope
from gradscope.reading.answers import clip_statistics_of_run, suggestion_of_run
from gradscope.reading.remarks import first_nonfinite
from gradscope.words import clip_sentence, correlation, number
from tests.recordings import Raw, raw_of


def _times(words: str) -> float:
    return 1.0 if words == "as large as" else float(words.split()[0])


AMOUNT = r"(as large as|[\d.e+-]+ times|[\d.e-]+ of)"


def _same(shown: str, log10: float) -> None:
    """A printed ratio is the raw one, to the digits that were printed."""
    value, raw = _times(shown), 10**log10
    assert value == pytest.approx(raw, rel=0.5 if not 1e-3 <= raw < 1e4 else 0.06), (shown, raw)


# --- one check per kind of sentence ----------------------------------------------------------------------------------


def _reach(raw: Raw, said: str) -> bool:
    found = re.search(
        rf"the gradient reaching (\d+) steps? back is {AMOUNT} that at (the last step|lag (\d+), where)", said
    )
    if not found:
        return False
    last, entry = int(found[1]), int(found[4] or 0)
    _same(found[2], raw.value(last) - raw.value(entry))
    active = np.isfinite(raw.rows).sum(0) * 2 >= np.isfinite(raw.rows).any(1).sum()
    assert last == raw.lags[active].max()
    if entry and raw.direct is not None and raw.hidden is not None:  # nothing before it, or most of it comes from above
        at = int(np.flatnonzero(raw.lags == entry)[0])
        above = (raw.direct[:, at] >= 0.5 * raw.hidden[:, at]).mean() >= 0.5
        assert above or (raw.norms[:, :at] == 0).mean() > 0.5 or not np.isfinite(raw.rows[:, :at]).any()
    return True


def _half_life(raw: Raw, said: str, fit: gradscope.DecayFit) -> bool:
    found = re.search(r"half-life ([\d.e]+) steps?(?: \(([\d.e]+)–([\d.e]+)\))?, R² ([>.\d]+)", said)
    if not found:
        return False
    line = raw.slope(*fit.lag_range)
    assert float(found[1]) == pytest.approx(-np.log10(2) / line.slope, rel=0.06)
    assert found[4] == correlation(line.rvalue**2)
    if found[2]:
        assert float(found[2]) <= float(found[1]) <= float(found[3])
        if fit.unit == "step":
            slopes = raw.step_slopes(*fit.lag_range)
            arm = stats.t.ppf(0.975, len(slopes) - 1) * stats.sem(slopes)
            bounds = [-np.log10(2) / (line.slope + sign * arm) for sign in (-1, 1)]
            if bounds[1] > 0:
                assert [float(found[2]), float(found[3])] == pytest.approx(bounds, rel=0.12)
    halves = np.array_split(np.arange(fit.lag_range[0], fit.lag_range[1] + 1), 2)
    early, late = (raw.slope(half[0], half[-1] + (half[0] == fit.lag_range[0])).slope for half in halves)
    assert max(early / late, late / early) < 1.65  # one half-life for both halves
    return True


def _preserved(raw: Raw, said: str) -> bool:
    found = re.search(
        rf"preserved over lags (\d+)–(\d+), at lag (\d+) {AMOUNT} that at lag (\d+), within a factor", said
    )
    if not found:
        return False
    low, high = int(found[1]), int(found[2])
    assert (int(found[3]), int(found[5])) == (high, low)
    _same(found[4], raw.value(high) - raw.value(low))
    inside = (raw.lags >= low) & (raw.lags <= high)
    assert np.ptp(raw.curve[inside]) < 1
    return True


def _growing(raw: Raw, said: str) -> bool:
    found = re.search(
        rf"growing over lags (\d+)–(\d+), at lag \d+ {AMOUNT} that at lag \d+, by a factor of ([\d.]+)"
        r"(?: \(([\d.]+)–([\d.]+)\))? per step, R² ([>.\d]+)", said,
    )  # fmt: skip
    if not found:
        return False
    low, high = int(found[1]), int(found[2])
    _same(found[3], raw.value(high) - raw.value(low))
    line = raw.slope(low, high)
    assert float(found[4]) == pytest.approx(10**line.slope, rel=0.006)
    assert found[7] == correlation(line.rvalue**2)
    return True


def _bent(raw: Raw, said: str) -> bool:
    found = re.search(
        rf"vanishing over lags (\d+)–(\d+), at lag \d+ {AMOUNT} that at lag \d+, no half-life \((.*?)\)", said
    )
    if not found:
        return False
    low, high = int(found[1]), int(found[2])
    _same(found[3], raw.value(high) - raw.value(low))
    assert raw.value(high) - raw.value(low) <= -0.99
    told = re.search(
        r"it gets (\w+) with distance, a half-life of ([\d.e+]+) steps over lags (\d+)–(\d+), ([\d.e+]+)", found[4]
    )
    if told:
        early, late = raw.slope(low, int(told[4])).slope, raw.slope(int(told[4]), high).slope
        assert [float(told[2]), float(told[5])] == pytest.approx([np.log10(0.5) / s for s in (early, late)], rel=0.06)
        assert told[1] == ("faster" if late < early else "slower")
    return True


def _unreached(raw: Raw, said: str) -> bool:
    found = re.search(r"no gradient arrives yet at lags? (\d+)(?:–(\d+))?", said)
    if not found:
        return False
    first, last = int(found[1]), int(found[2] or found[1])
    inside = (raw.lags >= first) & (raw.lags <= last)
    assert np.nanmax(np.where(inside, raw.norms, 0)) == 0
    return True


def _one_step(raw: Raw, said: str) -> bool:
    found = re.search(r"only one step of this recurrence is reached by a gradient \(lag (\d+)\)", said)
    if not found:
        return False
    assert raw.lags[(np.nan_to_num(raw.norms) > 0).any(0)].tolist() == [int(found[1])]
    return True


def _entering(raw: Raw, said: str) -> bool:
    found = re.search(
        r"(grows|level) over lags (\d+)–(\d+), but a gradient enters from above at most steps(.*?up to lag (\d+))?",
        said,
    )
    if not found:
        return False
    assert raw.direct is not None
    assert (np.nan_to_num(raw.direct[:, 1:]) > 0).mean() >= 0.5
    change = raw.value(int(found[3])) - raw.value(int(found[2]))
    assert change >= 1 if found[1] == "grows" else abs(change) < 1
    if found[5]:
        at = int(found[5])
        share = (raw.direct >= 0.5 * raw.hidden).mean(0) >= 0.5
        assert share[raw.lags == at]
        assert not share[raw.lags > at].any()
    return True


def _differ(raw: Raw, said: str) -> bool:
    found = re.search(
        r"the (\d+) recorded steps differ: over lags (\d+)–(\d+) their lines change by (\S+) to (\S+) dec", said
    )
    if not found:
        return False
    low, high = int(found[2]), int(found[3])
    changes = raw.step_slopes(low, high) * (high - low)
    assert int(found[1]) == changes.size
    assert [float(found[4]), float(found[5])] == pytest.approx([changes.min(), changes.max()], rel=0.06)
    return True


def _close(raw: Raw, said: str) -> bool:
    found = re.search(
        r"over lags (\d+)–(\d+) the line changes by (\S+) decades(?: \((\S+) to (\S+)\))?, too close", said
    )
    if not found:
        return False
    low, high = int(found[1]), int(found[2])
    assert float(found[3]) == pytest.approx(raw.slope(low, high).slope * (high - low), rel=0.06)
    return True


def _no_change(raw: Raw, said: str) -> bool:
    found = re.search(r"the interval of the rate includes no change at all over lags (\d+)–(\d+)", said)
    return found is not None


def _turns(raw: Raw, said: str) -> bool:
    found = re.search(r"the curve falls and rises over lags (\d+)–(\d+)", said)
    if not found:
        return False
    inside = (raw.lags >= int(found[1])) & (raw.lags <= int(found[2]))
    assert np.ptp(raw.curve[inside]) >= 1
    assert abs(raw.value(int(found[2])) - raw.value(int(found[1]))) < 1
    return True


def _few(raw: Raw, said: str) -> bool:
    found = re.search(r"too few lags: (\d+) of at least 5", said)
    if not found:
        return False
    assert (np.isfinite(raw.rows).sum(0) > 0).sum() >= int(found[1])
    return True


def _lone(raw: Raw, said: str) -> bool:
    found = re.search(r"no interval:? ?\(?(a single sequence|one step, whose (\d+) sequences share)", said)
    if not found:
        return False
    assert np.unique(raw.steps).size == 1
    assert len(raw.rows) == int(found[2] or 1)
    return True


def _nowhere(raw: Raw, said: str) -> bool:
    if "no gradient that can be represented gets further back than the last step" not in said:
        return False
    assert ((raw.norms[:, 1:] == 0).mean(0) >= 0.5).all()
    return True


def _lost(raw: Raw, said: str) -> bool:
    found = re.search(r"zero,? or too small to be represented,? from lag (\d+) on", said)
    if not found:
        return False
    gone = (raw.norms < 1e-300).mean(0)
    assert (gone[raw.lags >= int(found[1])] >= 0.5).all()
    assert (gone[raw.lags == int(found[1]) - 1] <= 0.5).all()
    return True


_CHECKS = (
    _reach, _preserved, _growing, _bent, _unreached, _one_step, _entering, _differ, _close, _no_change, _turns, _few,
    _lone, _nowhere, _lost,
)  # fmt: skip


def _checks(raw: Raw, said: str, fit: gradscope.DecayFit) -> Iterator[str]:
    if _half_life(raw, said, fit):
        yield "half-life"
    for check in _CHECKS:
        if check(raw, said):
            yield check.__name__.strip("_")


def test_every_sentence_of_twenty_recordings_is_what_the_arrays_hold(recorded: dict[str, gradscope.Run]) -> None:
    assert len(recorded) == 20
    seen: Counter[str] = Counter()
    for name, run in recorded.items():
        for answer in run.answers():
            for part, fit in (("early", answer.early), ("late", answer.late)):
                raw = raw_of(run, answer.site, answer.quantity, part)
                kinds = list(_checks(raw, str(fit), fit))
                assert kinds, f"{name}, {answer.site}: no check for {fit}"
                seen.update(kinds)
                # The sentence names both ends of the run, each with its own steps.
                steps = sorted(set(raw.steps.tolist()))
                span = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]}–{steps[-1]}"
                assert span in answer.sentence
                assert str(fit) in answer.sentence
    kinds = {"half-life", "reach", "preserved", "growing", "bent", "unreached", "one_step", "entering", "few", "lone"}
    assert not kinds - set(seen), "a kind of sentence that no recording has is not tested"


def test_what_clipping_did_in_them_is_what_was_recorded_call_by_call(recorded: dict[str, gradscope.Run]) -> None:
    kinds = Counter()
    for run in recorded.values():
        calls = run.clips()
        for statistics in clip_statistics_of_run(run):
            kinds[statistics.kind] += 1
            mine = calls[calls["kind"] == statistics.kind]
            norms, scale = mine["norm_before"].to_numpy(), mine["scale"].to_numpy()
            finite = np.isfinite(norms)
            changed = finite & (mine["clipped"].to_numpy() > 0)
            if statistics.kind == "norm":
                np.testing.assert_array_equal(changed, finite & (norms + 1e-6 > mine["threshold"].to_numpy()))
            said = clip_sentence(statistics)
            share = 100 * changed.sum() / finite.sum()
            shown = re.search(r"changed (less than|more than)? ?(\d+)% of (\d+) calls?", said)
            assert shown is not None, said
            assert int(shown[3]) == finite.sum()
            assert abs(share - int(shown[2])) <= (1 if shown[1] else 0.5)
            if changed.any():
                factor = re.search(r"by a median factor of ([\d.e-]+\d)", said)
                assert factor is not None
                assert factor[1] == number(float(np.median(scale[changed])))
    assert set(kinds) == {"norm", "value"}


def test_suggested_thresholds_would_have_clipped_in_them_what_is_said(recorded: dict[str, gradscope.Run]) -> None:
    told = 0
    for run in recorded.values():
        calls = run.clips()
        if len(calls) < 20:
            continue
        norms = calls.drop_duplicates("step")["norm_before"].to_numpy()
        norms = norms[np.isfinite(norms)]
        found = suggestion_of_run(run)
        shown = re.search(
            r"Thresholds from (\S+) to (\S+) would have clipped (\d+)% down to (\d+)% of this run's (\d+)", found.words
        )
        assert shown is not None
        shares = [100 * np.mean(norms + 1e-6 > bound) for bound in (found.low, found.high)]
        assert [int(shown[3]), int(shown[4])] == pytest.approx(shares, abs=0.5)
        assert int(shown[5]) == norms.size
        told += 1
    assert told >= 10


def test_where_a_run_diverged_is_where_its_arrays_do(recorded: dict[str, gradscope.Run]) -> None:
    told = 0
    for run in recorded.values():
        said, first = first_nonfinite(run), np.inf
        for site in run.sites:
            values, lengths = run.array(site, "hidden"), run.lengths(site)[..., None]
            bad = (~np.isfinite(values) & (np.arange(values.shape[2]) < lengths)).any((1, 2))
            first = min([first, *run.records(site)["step"].to_numpy()[bad]])
        if said:
            told += 1
            at = re.search(r"The first recorded gradient that is not finite is at step (\d+)", said)
            assert at is not None
            assert int(at[1]) == first
        else:
            assert first == np.inf
    assert told
