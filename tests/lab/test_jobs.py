from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from gradscope.errors import RunExistsError, SettingError
from gradscope.lab.jobs import each, new_directory, usual_jobs


def facts(job, offset):
    """What a job sees of its place; of a module, so that it reaches another process."""
    return job + offset, os.getpid(), torch.get_num_threads()


def fail(job):
    raise ValueError(f"job {job}")


def interrupted_in(out):
    with new_directory(out):
        (out / "file").write_text("half")
        raise KeyboardInterrupt


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_answers_come_in_order_each_from_one_thread(jobs, two_threads):
    found = list(each(partial(facts, offset=10), [3, 1, 2], jobs=jobs, progress=False))
    assert [answer for answer, _, _ in found] == [13, 11, 12]
    assert {threads for _, _, threads in found} == {1}
    assert (os.getpid() in {process for _, process, _ in found}) is (jobs == 1)
    assert torch.get_num_threads() == 2


def test_a_single_job_needs_no_second_process():
    ((_, process, _),) = each(partial(facts, offset=0), [1], jobs=2, progress=False)
    assert process == os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_failure_of_a_job_is_its_own(jobs, two_threads):
    with pytest.raises(ValueError, match="job 5"):
        list(each(fail, [5, 6], jobs=jobs, progress=False))
    assert torch.get_num_threads() == 2


def test_no_job_at_once_is_refused_before_anything_is_done():
    with pytest.raises(SettingError, match="jobs 0 must be at least 1"):
        each(fail, [1], jobs=0)


def test_the_usual_number_of_jobs_is_a_small_machines(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usual_jobs() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usual_jobs() == 1


def test_a_directory_is_kept_by_success_only(tmp_path):
    with new_directory(tmp_path / "kept" / "deep") as out:
        (out / "file").write_text("mine")
    assert (tmp_path / "kept" / "deep" / "file").exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted_in(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    with pytest.raises(RunExistsError, match="exists already"), new_directory(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept" / "deep" / "file").exists()
