import numpy as np
import pandas as pd
import pytest

from gradscope.errors import SettingError, UnknownNameError
from gradscope.reading import PARTS, Choice, part_of
from gradscope.reading.records import attempt_starts, counting, lowest_rank


def table(rows, **columns):
    frame = pd.DataFrame(rows, columns=["attempt", "rank", "step"])
    return frame.assign(**columns)


#: A run that died after step 40 and went on from a checkpoint at 25, on another grid; two ranks.
RESTARTED = table(
    [(a, r, s) for a, steps in ((1, (0, 10, 20, 30, 40)), (2, (25, 35, 45))) for r in (0, 1) for s in steps]
)
STARTS = attempt_starts([RESTARTED])


def steps(kept, frame=RESTARTED):
    return sorted(set(frame["step"][kept]))


def test_an_attempt_counts_until_the_next_one_takes_over():
    assert STARTS == {1: 0, 2: 25}
    assert steps(counting(RESTARTED, STARTS)) == [0, 10, 20, 25, 35, 45]


def test_a_start_from_scratch_replaces_everything_before():
    frame = table([(1, 0, 0), (1, 0, 10), (2, 0, 0)])
    assert counting(frame, attempt_starts([frame])).tolist() == [False, False, True]


def test_a_table_without_a_row_of_the_new_attempt_knows_of_it_from_the_others():
    site = table([(1, 0, 20), (1, 0, 30)])
    assert counting(site, attempt_starts([site, RESTARTED])).tolist() == [True, False]


def test_ranks_count_together_or_one_alone():
    assert counting(RESTARTED, STARTS).sum() == 12
    assert set(RESTARTED["rank"][counting(RESTARTED, STARTS, Choice(rank=1))]) == {1}
    assert set(RESTARTED["rank"][lowest_rank(RESTARTED)]) == {0}


def test_what_was_asked_for_narrows_what_counts():
    assert steps(counting(RESTARTED, STARTS, Choice(attempt=1))) == [0, 10, 20, 30, 40]
    assert steps(counting(RESTARTED, STARTS, Choice(first_step=10, last_step=35))) == [10, 20, 25, 35]
    with pytest.raises(SettingError, match="must not be after"):
        Choice(first_step=3, last_step=2)


@pytest.mark.parametrize("mark", ["skipped", "dropped"])
def test_a_step_whose_update_never_happened_does_not_count(mark):
    frame = table([(1, 0, 0), (1, 0, 1)], **{mark: [True, False]})
    assert counting(frame, {1: 0}).tolist() == [False, True]


def test_a_clip_that_no_update_saw_does_not_count_unless_the_step_was_skipped():
    frame = table([(1, 0, step) for step in range(4)], effective=[1, 0, 0, 1], place=["update", "after", "skipped", ""])
    assert counting(frame, {1: 0}).tolist() == [True, False, True, True]


def test_a_label_chooses_a_pass_where_records_carry_one():
    frame = table([(1, 0, 0), (1, 0, 0)], pass_label=["critic", "actor"])
    assert counting(frame, {1: 0}, Choice(label="actor")).tolist() == [False, True]
    assert counting(frame, {1: 0}).all()


def test_parts_are_the_first_and_last_tenth_of_the_steps():
    at = np.arange(20)[::-1]  # in any order
    chosen = {part: sorted(at[part_of(at, part)].tolist()) for part in PARTS}
    assert chosen == {"first": [0], "early": [0, 1], "late": [18, 19], "last": [19], "all": list(range(20))}
    with pytest.raises(UnknownNameError, match="Did you mean 'early'"):
        part_of(at, "earl")
