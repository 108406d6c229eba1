"""Many sites of one run are told together, by verdict, with the numbers of the arrays."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.reading.facts import gather
from gradscope.report import groups, view
from tests.made_runs import make_run

SITES = tuple(f"encoder.rnn/l{i}" for i in range(8))


def falling(rates, lags=40):
    """One array for each site in turn."""
    curves = iter([10.0 ** (rate * np.arange(lags)) for rate in rates])
    return lambda record: np.broadcast_to(next(curves), (6, lags)).copy()


@pytest.fixture
def run(tmp_path):
    rates = [-0.1] + [-0.12] * 4 + [-0.2] + [0.1] * 2
    return make_run(tmp_path / "deep", (0.0,), sites=SITES, cell="gru", norms=falling(rates))


def test_a_verdict_is_said_once_with_how_many_sites_have_it(run):
    (facts,) = gather([run])
    first, second = (words for words, _ in groups.grouped(facts.answers))
    assert first == (
        "6 of 8 sites (rnn/l0, rnn/l1, ...): vanishing, half-lives of 1.5 to 3.0 steps. Of the gradient where it "
        "enters 2e-8 (rnn/l5) to 1e-4 (rnn/l0) is left at the last lag."
    )
    assert second.startswith("2 of 8 sites (rnn/l6, rnn/l7): exploding. Of the gradient where it enters 7943")


def test_the_page_tells_groups_and_folds_the_sites(run):
    (box,), _ = view.boxes(gather([run]))
    assert len(box.groups) == 2
    assert [said.site for said in box.said] == list(SITES)


def test_a_few_sites_are_told_one_by_one(tmp_path):
    run = make_run(tmp_path / "shallow", sites=SITES[: groups.MANY], cell="gru")
    (box,), _ = view.boxes(gather([run]))
    assert box.groups == ()


def test_short_sequences_give_their_reason_once(tmp_path):
    run = make_run(tmp_path / "short", (-0.1, -0.1), sites=SITES, cell="gru", lags=3)
    (facts,) = gather([run])
    ((words, more),) = groups.grouped(facts.answers)
    assert words.startswith("All 8 sites: no verdict: too few lags: 3 of at least 5. Of the gradient")
    assert more.startswith("At step 0: ")


def test_sites_whose_numbers_differ_have_their_cause_in_common(tmp_path):
    lengths = iter([2, 3] * 4)
    curve = lambda record: np.ones((6, next(lengths)))  # noqa: E731
    run = make_run(tmp_path / "short", (0.0,), sites=SITES, cell="gru", norms=curve)
    (facts,) = gather([run])
    ((words, _),) = groups.grouped(facts.answers)
    assert words.startswith("All 8 sites: no verdict: too few lags. Of the gradient where it enters")
