from __future__ import annotations

import math

import pytest

from gradscope.lab.claims import Asked, Claim, Statement, number


def answer(values, low=-math.inf, high=math.inf, log=False, where="here"):
    return Asked(where, "size", lambda results: results[where], low, high, log).put_to({where: values})


def test_the_interval_over_seeds_is_students():
    # t(.975, 2) = 4.302653, from printed tables
    low, high = answer([1.0, 2.0, 3.0]).interval
    assert low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)


def test_a_ratio_is_averaged_in_its_logarithm():
    found = answer([0.01, 1.0, 100.0], log=True)
    assert found.mean == pytest.approx(1.0)
    low, high = found.interval
    assert low * high == pytest.approx(1.0)
    assert high == pytest.approx(10 ** (4.302653 * 2 / math.sqrt(3)), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "met"),
    [
        ([0.1, 0.11, 0.12], True),
        ([2.0, 2.1, 2.2], False),
        ([0.5, 1.0, 1.5], None),
        ([0.1], None),
        ([0.1, math.nan, 0.1], None),
        ([0.1, math.inf, 0.1], None),
        ([], None),
        ([0.0, 0.0], True),
        ([1.0, 1.0], False),
    ],
)
def test_a_question_is_met_only_by_the_whole_interval(values, met):
    assert answer(values, high=1.0).met is met


def test_a_gradient_of_exactly_zero_is_below_any_positive_number_and_above_none():
    assert answer([0.0, 0.0], high=1e-300, log=True).met is True
    assert answer([0.0, 0.0], low=1e-300, log=True).met is False
    assert answer([0.0, 1e-9], high=1e-2, log=True).met is None


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ("yy", "confirmed"),
        ("nn", "refuted"),
        ("yn", "refined"),
        ("yno", "refined"),
        ("yo", "refined"),
        ("no", "refuted"),
        ("o", "undetermined"),
        ("oo", "undetermined"),
    ],
)
def test_the_outcome_follows_from_the_answers(answers, outcome):
    values = {"y": [0.5, 0.5], "n": [2.0, 2.0], "o": [0.5, 2.0]}
    claim = Claim("so it is", tuple(answer(values[kind], high=1.0) for kind in answers))
    assert claim.outcome == outcome
    assert claim.sentence.startswith(outcome.capitalize())


@pytest.mark.parametrize(
    ("values", "options", "met", "same"),
    [
        ([-0.001, 0.001, 0.0], {"low": 0.0, "margin": 0.01}, False, True),
        ([-0.001, 0.001, 0.0], {"low": 0.0}, None, False),
        ([-0.05, 0.05, 0.0], {"low": 0.0, "margin": 0.01}, None, False),
        ([0.98, 1.0, 1.02], {"high": 1.0, "margin": 1.1, "log": True}, False, True),
        ([0.8, 1.0, 1.2], {"high": 1.0, "margin": 1.1, "log": True}, None, False),
        # decided by the bound alone, however close
        ([0.001, 0.001, 0.001], {"low": 0.0, "margin": 0.01}, True, False),
        ([-0.001, -0.001, -0.001], {"low": 0.0, "margin": 0.01}, False, False),
    ],
)
def test_an_interval_within_the_margin_decides_that_there_is_no_difference(values, options, met, same):
    asked = Asked("here", "size", lambda _: values, **options)
    found = asked.put_to({})
    assert (found.met, found.same) == (met, same)


def test_other_numbers_give_another_sentence():
    asked = tuple(Asked(where, "size", lambda r, where=where: r[where], high=1.0) for where in ("early", "late"))
    statement = Statement("it is small", asked)
    refined = statement.put_to({"early": [0.5, 0.5], "late": [3.0, 3.0]})
    assert refined.sentence == "Refined. Holds early (0.5); does not hold late (3)."
    confirmed = statement.put_to({"early": [0.5, 0.5], "late": [0.25, 0.25]})
    assert confirmed.sentence == "Confirmed. Holds early (0.5) and late (0.25)."
    still_open = statement.put_to({"early": [0.5, 0.5], "late": [0.5, 2.0]})
    assert still_open.found.startswith("Holds early (0.5); is open late (1.25; ")


def grid(values, **options):
    """A claim over who x when x on, from (who, when, on) to values."""
    asked = [Asked(" ".join(at), "size", lambda r, at=at: r[at], at=at, high=1.0, **options) for at in values]
    return Statement("it is small", tuple(asked)).put_to(values)


WHEN, ON = ("before", "after"), ("on A", "on B")


def test_conditions_that_do_not_matter_are_not_named():
    small, large = [0.5, 0.5], [3.0, 3.0]
    by_moment = grid({("", when, on): small if when == "before" else large for when in WHEN for on in ON})
    assert by_moment.found == "Holds before (0.5); does not hold after (3)."
    by_data = grid({("", when, on): small if on == "on A" else large for when in WHEN for on in ON})
    assert by_data.found == "Holds on A (0.5); does not hold on B (3)."
    one_of_four = {("", when, on): small for when in WHEN for on in ON} | {("", "after", "on B"): large}
    assert grid(one_of_four).found == "Holds before (0.5) and after on A (0.5); does not hold after on B (3)."
    assert grid({("", when, on): small for when in WHEN for on in ON}).found == "Holds (0.5)."


def test_what_all_conditions_share_is_said_and_the_unit_once():
    found = grid(
        {(who, "before", "on A"): value for who, value in (("X", [0.1, 0.1]), ("Y", [0.2, 0.2]), ("Z", [5.0, 5.0]))},
        reads="{} arrives",
    ).found
    assert (
        found == "Holds X before on A (0.1 arrives) and Y before on A (0.2); does not hold Z before on A (5 arrives)."
    )


def test_a_number_below_zero_has_a_minus_not_a_hyphen():
    assert [number(v) for v in (-0.00642, -4.7e-4)] == ["−0.00642", "−4.7e-4"]


def test_numbers_are_short_and_zero_is_zero():
    assert [number(v) for v in (0.0, 1.5, 10.0, 2910.4, 2.34567e-13, 12345.6, math.inf, math.nan)] == [
        "0", "1.5", "10", "2910", "2.3e-13", "1.2e4", "infinity", "no number",
    ]  # fmt: skip
