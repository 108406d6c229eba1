from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest

from gradscope.report.page import _environment, breakable, prose
from gradscope.report.summary import clean
from gradscope.report.svg import inline
from gradscope.report.tables import Cell, Column, Table
from gradscope.report.view import Box, Said, _evidence, lead, loss, losses


def test_text_is_escaped_and_control_characters_are_visible():
    template = _environment().from_string("{{ name }}")
    assert template.render(name="<a href='x'>\x00") == r"&lt;a href=&#39;x&#39;&gt;\x00"


def test_numbers_do_not_break_at_their_minus_sign():
    assert prose("is 3e-9 of that") == 'is <span class="n">3e-9</span> of that'
    assert prose("by −4.7e-4 a step") == 'by <span class="n">−4.7e-4</span> a step'


def test_a_name_breaks_between_its_parts_but_not_within_a_number():
    assert breakable("encoder.layers/l0_reverse") == "encoder.<wbr>layers/<wbr>l0_<wbr>reverse"
    assert breakable("rnn-sgd-clip-0.05") == "rnn-sgd-clip-0.05"
    assert breakable("layers.0.rnn") == "layers.<wbr>0.<wbr>rnn"


def test_tables_refuse_rows_of_another_length():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("Numbers", (Column("a"), Column("b")), ((Cell("1"),),))


def test_a_diverged_loss_says_so():
    assert loss(float("inf")) == "diverged"
    assert loss(float("nan")) == "diverged"
    assert loss(None) == "–"


def test_json_has_no_number_that_is_not_finite():
    assert clean({"a": (1.0, float("nan")), "b": [float("-inf")], "c": "\udc80"}) == {
        "a": [1.0, None],
        "b": [None],
        "c": r"\udc80",
    }


def test_two_inlined_figures_share_no_id():
    svg = (
        b'<?xml version="1.0"?><svg xmlns="x" viewBox="0 0 72 36"><metadata>m</metadata><style>*{a:b}</style>'
        b'<defs><path id="p1"/></defs><g clip-path="url(#p1)"><use xlink:href="#p1"/></g></svg>'
    )
    one, two = inline(svg, "figure-1", "One"), inline(svg, "figure-2", "Two & more")
    ids = re.findall(r'\bid="([^"]+)"', one + two)
    assert ids == ["figure-1", "figure-1-p1", "figure-2", "figure-2-p1"]
    assert 'href="#figure-1-p1"' in one
    assert "url(#figure-2-p1)" in two
    assert "#figure-1 *{" in one
    assert "metadata" not in one
    assert 'aria-label="Two &amp; more"' in two


def test_only_sealed_runs_that_count_no_loss_are_said_to_have_lost_nothing():
    def facts(*, sealed, lost):
        return SimpleNamespace(name="r", lost=lost, run=SimpleNamespace(sealed=sealed))

    def said(*found):
        return [line["words"] for line in losses(found)]

    assert said(facts(sealed=True, lost={})) == ["Nothing was lost."]
    assert "Nothing was lost." not in said(facts(sealed=True, lost={}), facts(sealed=False, lost={}))
    assert "Nothing was lost." not in said(facts(sealed=True, lost={"the disk": 30}))


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["undetermined"] * 3, "None of 3 sites has a verdict"),
        (["vanishing"] * 3, "All 3 sites: vanishing"),
        (["vanishing", "exploding", "vanishing"], "Of 3 sites: vanishing at 2, exploding at 1"),
    ],
)
def test_a_verdict_that_all_sites_have_is_not_counted(verdicts, said):
    late = [SimpleNamespace(verdict=verdict, reach=math.nan) for verdict in verdicts]
    assert lead([SimpleNamespace(answers=[SimpleNamespace(late=one) for one in late])]) == f"{said}."


@pytest.mark.parametrize(("rows", "more"), [(60, None), (61, "1 more rows"), (100, "40 more rows")])
def test_print_stops_a_very_long_table_and_says_so(rows, more):
    template = _environment().from_string('{% import "parts.html" as parts %}{{ parts.table(one) }}')
    drawn = template.render(one=Table("Numbers", (Column("a"),), ((Cell("1"),),) * rows))
    assert drawn.count("<tr>") == rows + 1  # all on the page
    assert (' long"' in drawn) is (more is not None)
    assert more is None or f'<p class="printed">{more} are on the page' in drawn


@pytest.mark.parametrize("printed", [True, False])
def test_sites_of_a_folded_run_stay_folded_in_print_and_are_said_to(printed):
    template = _environment().from_string('{% import "parts.html" as parts %}{{ parts.box(one, printed=printed) }}')
    sites = tuple(Said(f"l{i}", "words.", "", "") for i in range(8))
    box = Box("run-7", "r", "vanishing", sites, groups=(Said("", "All 8 sites.", "", ""),))
    drawn = template.render(one=box, printed=printed)
    assert ('class="unprinted"' in drawn) is not printed
    assert ("are on the page, and in summary.json" in drawn) is not printed


def test_an_interval_without_ends_is_left_out_and_one_with_one_end_has_a_sign_for_the_other():
    known = {"r2": math.nan, "lag_range": None, "rate": -0.3}
    ends = [(-math.inf, math.inf), (-math.inf, 0.25), (-0.5, -0.25)]
    said = [_evidence(SimpleNamespace(interval=interval, **known))[0] for interval in ends]
    assert said == ["", "(−∞ to +0.2500)", "(−0.5000 to −0.2500)"]


def test_a_rate_that_thousands_of_steps_make_count_has_its_digits():
    fit = SimpleNamespace(interval=(-0.000312, 0.000091), r2=math.nan, lag_range=None, rate=-0.000114)
    assert _evidence(fit)[0] == "(−0.000312 to +0.000091)"
