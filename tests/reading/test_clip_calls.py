"""What is said of a run's clipping calls: what had no effect comes first, and parts are never mixed."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gradscope.reading.clip_calls import acting, norms_before, of_steps, parts
from gradscope.reading.remarks import clip_remarks
from gradscope.schema import ClipEvent


def calls(*rows: dict[str, Any]) -> pd.DataFrame:
    """Clipping calls at 1 of gradients of norm 4, as ``run.clips()`` has them."""
    plain = ClipEvent(0, "norm", 1.0, 4.0, 1.0, 0.25, 1.0, 1.0, place="update", applied=1.0, passes=1)
    return pd.DataFrame([{"attempt": 1, "rank": 0, **asdict(plain), **row} for row in rows])


def in_steps(count: int, **row: Any) -> list[dict[str, Any]]:
    return [{"step": k, **row} for k in range(count)]


def test_nothing_is_remarked_where_every_call_clipped_what_was_applied() -> None:
    assert clip_remarks(calls(*in_steps(25))) == []
    assert clip_remarks(calls()) == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("after", "25 of 25 clipping calls came after the update"),
        ("before", "25 of 25 clipping calls came before the pass of their step"),
        ("dropped", "25 of 25 clipping calls were on a gradient that was zeroed"),
        ("skipped", "25 of 25 clipping calls were in steps whose update was skipped"),
    ],
)
def test_calls_without_effect_are_counted_and_are_no_clipping(place: str, words: str) -> None:
    table = calls(*in_steps(25, place=place, effective=0))
    assert clip_remarks(table)[0].startswith(words)
    assert acting(table).empty


def test_a_count_of_calls_by_value_says_that_it_is_of_recorded_steps() -> None:
    (said,) = clip_remarks(calls(*in_steps(3, place="after", effective=0, kind="value")))
    assert said.startswith("3 of 3 clipping calls (those by value: in recorded steps) came after the update")


def test_a_call_after_the_update_saw_the_norm_that_was_applied_and_one_before_the_pass_did_not() -> None:
    assert norms_before(calls(*in_steps(3, place="after", effective=0))).norm.tolist() == [4.0] * 3
    assert norms_before(calls(*in_steps(3, place="before", effective=0))).empty


def test_clipping_of_partial_sums_is_named_with_how_often_it_ran() -> None:
    places = ("partial", "partial", "partial", "update")
    rows = [{"step": k, "place": p, "passes": n} for k in range(3) for n, p in enumerate(places, start=1)]
    (said,) = clip_remarks(calls(*rows))
    assert said.startswith("Clipping ran 4 times a step while gradients were accumulated: 9 of 12 calls")
    assert len(norms_before(calls(*rows))) == 3, "one norm a step: that of the whole sum"


def test_clipping_of_single_passes_that_the_script_combines_is_no_mistake() -> None:
    rows = [{"step": k, "place": "partial", "passes": 1} for k in range(3) for _ in range(8)]
    (said,) = clip_remarks(calls(*rows))
    assert said.startswith("Clipping ran 8 times a step, 24 of 24 calls on the gradient of a single pass")
    assert "Clip once" not in said
    assert norms_before(calls(*rows)).empty, "the norms of the parts are not those of the update"


def test_a_threshold_on_scaled_gradients_is_given_in_true_units() -> None:
    (said,) = clip_remarks(calls(*in_steps(3, loss_scale=1024.0, norm_after=1 / 1024, applied=1 / 1024)))
    assert "at a scale of 1024 the threshold 1.0 stands for 9.8e-4" in said
    assert "scaler.unscale_(optimizer)" in said


def test_an_overflowed_norm_is_named_with_its_first_step_and_how_many_updates_it_cost() -> None:
    lost = {"norm_before": math.inf, "norm_after": 0.0, "applied": 0.0, "overflow": 1}
    (said,) = clip_remarks(calls(*in_steps(2), {"step": 2, **lost}, {"step": 3, **lost}, {"step": 4}))
    assert said.startswith("2 steps, the first of them step 2, lost the update")


def test_a_gradient_that_was_changed_after_clipping_is_said() -> None:
    (said,) = clip_remarks(calls(*in_steps(4, applied=3.0)))
    assert said.startswith("4 of 4 clipping calls were not the last word")


def test_norms_of_parts_are_never_mixed() -> None:
    rows = [{"step": k, "part": p, "norm_before": n} for k in range(3) for p, n in (("enc", 0.4), ("dec, fc", 11.0))]
    table = calls(*rows)
    assert parts(table) == ("enc", "dec, fc")
    assert set(norms_before(table, "enc").norm) == {0.4}
    assert set(norms_before(table, "dec, fc").norm) == {11.0}
    assert norms_before(table).empty, "no call clipped all of them"


def test_the_second_call_of_a_step_saw_what_the_first_had_left() -> None:
    table = calls({"norm_before": 9.0}, {"norm_before": 5.0}, {"step": 1, "norm_before": 7.0})
    assert norms_before(table).norm.tolist() == [9.0, 7.0]


def test_the_clipping_of_a_step_is_what_acted_on_the_whole_gradient_that_was_applied() -> None:
    rows = [{"step": 0, "place": "partial"}, {"step": 0}, {"step": 1, "place": "after", "effective": 0}]
    rows += [{"step": 2, "part": "enc"}, {"step": 3, "place": ""}]
    assert of_steps(calls(*rows)).step.tolist() == [0, 3]
    assert of_steps(calls({"threshold": 2.0, "loss_scale": 1024.0})).threshold.tolist() == [2 / 1024]


def test_a_run_that_did_not_note_places_is_taken_as_before() -> None:
    table = calls(*in_steps(4, place="", applied=np.nan))
    assert clip_remarks(table) == []
    assert len(norms_before(table)) == len(acting(table)) == 4
