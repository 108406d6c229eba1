import numpy as np
import pytest

from gradscope.errors import UnknownNameError
from gradscope.reading.answers import pooled_fit
from gradscope.reading.watching import Watch
from gradscope.schema import ClipEvent, Record, RunMeta, StepRow
from gradscope.store import RunWriter, open_run
from tests.made_runs import decaying, make_run, site_info, site_record

SITE = "lstm/l0"


def begin(path):
    writer = RunWriter(path, RunMeta("", "0", "0", {}, {}))
    writer.set_sites({SITE: site_info(SITE, "lstm")})
    return writer


def add(writer, step, clipped=(), rate=-0.2):
    values = decaying(rate, seed=step)
    writer.add_record(Record(step, 0, 0.0, {SITE: site_record({"cell": values}, *values.shape)}))
    writer.add_step(StepRow(step, 0.0, {"loss": 1.0 / (1 + step)}))
    for share in clipped:
        writer.add_clip(ClipEvent(step, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, share))


def test_a_step_says_what_the_run_says_of_it(tmp_path):
    run = make_run(tmp_path / "run", (-0.2, -0.1, -0.05))
    arrivals = Watch(tmp_path / "run").look().arrivals
    assert [one.step for one in arrivals] == [0, 10, 20]
    clips, losses = run.clips(), run.steps().set_index("step")["loss"]
    for one, low in zip(arrivals, (-1, 0, 10), strict=True):
        (site, quantity, fit) = one.fits[0]
        expected = pooled_fit(run, SITE, part=one.step)
        assert (site, quantity, fit.rate, fit.verdict) == (SITE, "cell", expected.rate, expected.verdict)
        between = clips[(clips["step"] > low) & (clips["step"] <= one.step)]
        assert (one.calls, one.clipped) == (len(between), between["clipped"].mean())
        assert one.loss == losses[one.step]


def test_what_arrives_in_pieces_adds_up(tmp_path):
    """A clipping call may be committed before its step's record, or after it."""
    writer = begin(tmp_path / "run")
    watch = Watch(tmp_path / "run")
    add(writer, 0, (1.0,))
    writer.flush()
    first = watch.look()
    writer.add_clip(ClipEvent(1, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, 0.0))
    writer.flush()
    assert watch.look().arrivals == ()
    add(writer, 2)
    writer.flush()
    second = watch.look()
    writer.add_clip(ClipEvent(2, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, 1.0))
    add(writer, 4, (1.0, 1.0))
    writer.close()
    third = watch.look()
    shown = [(one.step, one.calls, one.clipped) for news in (first, second, third) for one in news.arrivals]
    assert shown == [(0, 1, 1.0), (2, 1, 0.0), (4, 3, 1.0)]


@pytest.mark.parametrize("seals", [False, True])
def test_what_a_step_logs_and_clips_after_a_flush_in_its_middle_is_told_with_the_next(tmp_path, seals):
    """Also where the step's entries come a second time, with the segment in which they were sealed."""
    writer = begin(tmp_path / "run")
    watch = Watch(tmp_path / "run")
    same = ClipEvent(0, "norm", 1.0, 0.5, 0.5, 1.0, 1.0, 0.0)  # two calls that change nothing are the same twice
    values = decaying(-0.2)
    writer.add_record(Record(0, 0, 0.0, {SITE: site_record({"cell": values}, *values.shape)}))
    writer.add_step(StepRow(0, 0.0, {"grad_norm": 2.0}))
    writer.add_clip(same)
    writer.flush()
    (first,) = watch.look().arrivals
    assert (first.calls, np.isnan(first.loss)) == (1, True)
    writer.add_clip(same)
    writer.add_clip(ClipEvent(0, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, 1.0))
    writer.add_step(StepRow(0, 0.0, {"loss": 0.75}))
    if not seals:
        writer.flush()
        assert watch.look().arrivals == ()
    writer.add_record(Record(2, 0, 0.0, {SITE: site_record({"cell": values}, *values.shape)}))
    if seals:
        writer.close()
    else:
        writer.flush()
    (second,) = watch.look().arrivals
    assert (second.step, second.calls, second.clipped, second.loss) == (2, 2, 0.5, 0.75)
    if not seals:
        writer.close()
        assert watch.look().arrivals == ()


def test_of_many_steps_the_last_are_looked_at(tmp_path):
    make_run(tmp_path / "run", [-0.1] * 9, every=1)
    news = Watch(tmp_path / "run").look(most=2)
    assert (news.earlier, [one.step for one in news.arrivals]) == (7, [7, 8])
    assert [one.calls for one in news.arrivals] == [1, 1]


def test_a_new_attempt_is_told_from_its_beginning(tmp_path):
    writer = begin(tmp_path / "run")
    for step in (0, 10):
        add(writer, step)
    writer.close()
    watch = Watch(tmp_path / "run")
    assert len(watch.look().arrivals) == 2
    again = RunWriter(tmp_path / "run", RunMeta("", "0", "0", {}, {}), restart=True)
    again.set_sites({SITE: site_info(SITE, "lstm")})
    add(again, 5)
    again.close()
    assert [(one.attempt, one.step) for one in watch.look().arrivals] == [(2, 5)]
    assert open_run(tmp_path / "run").n_records == 3


def test_a_diverged_run_and_one_without_the_quantity_are_told_too(tmp_path):
    make_run(tmp_path / "run", (-0.2, -0.1), diverges_at=1)
    arrivals = Watch(tmp_path / "run").look().arrivals
    assert np.isnan(arrivals[1].loss)
    assert arrivals[1].fits[0][2].verdict == "undetermined"
    assert Watch(tmp_path / "run", "input").look().arrivals[0].fits == ()
    with pytest.raises(UnknownNameError):
        Watch(tmp_path / "run", "weight")
