from __future__ import annotations

import pytest

from gradscope import store
from gradscope.errors import RunDamagedError, RunNotFoundError
from gradscope.store.nearby import runs_near
from tests.made_runs import make_run


@pytest.fixture
def folder(tmp_path):
    for name in ("runs/lstm", "runs/gru", "runs/seeds/lstm-0"):
        make_run(tmp_path / name).close()
    store.pack(tmp_path / "runs" / "gru", tmp_path / "runs" / "shared.h5")
    (tmp_path / "runs" / "figures").mkdir()
    return tmp_path


@pytest.mark.parametrize("opens", [store.open_run, store.validate, store.repair])
def test_a_wrong_path_is_answered_with_the_runs_nearby_those_most_like_it_first(folder, opens):
    with pytest.raises(RunNotFoundError, match=r"there is no run at '.*lsmt'\. Runs nearby: '.*runs/lstm', ") as error:
        opens(folder / "runs" / "lsmt")
    assert str(error.value).endswith(" (and 1 more).")


def test_a_folder_of_runs_is_answered_with_what_it_holds(folder):
    with pytest.raises(RunNotFoundError, match=r"neither a sealed segment nor a journal.*Runs nearby: .*runs/"):
        store.open_run(folder / "runs")


def test_a_file_that_is_no_run_is_not_called_a_damaged_one(folder):
    script = folder / "train.py"
    script.write_text("import torch")
    with pytest.raises(RunNotFoundError, match=r"train.py' is no run: give the directory .* Runs nearby: .*runs/"):
        store.open_run(script)
    cut = folder / "runs" / "shared"  # of another name, and truncated: it was a run
    cut.write_bytes((folder / "runs" / "shared.h5").read_bytes()[:3000])
    with pytest.raises(RunDamagedError):
        store.open_run(cut)


def test_runs_are_directories_with_attempts_and_packed_files_never_a_runs_own_segments(folder):
    found = {run.relative_to(folder).as_posix() for run in runs_near(folder / "nothing" / "here")}
    assert found == {"runs/lstm", "runs/gru", "runs/seeds/lstm-0", "runs/shared.h5"}


def test_where_no_run_is_near_the_message_names_none(tmp_path):
    with pytest.raises(RunNotFoundError, match=r"there is no run at '[^']*x'\.$"):
        store.open_run(tmp_path / "x")


def test_links_are_not_followed_and_a_large_folder_is_not_searched_to_its_end(folder, tmp_path):
    (folder / "runs" / "round").symlink_to(folder / "runs")
    assert len(runs_near(folder / "x")) == 4
    crowded = tmp_path / "crowded"
    crowded.mkdir()
    for i in range(2100):
        (crowded / f"{i}").mkdir()
    make_run(crowded / "0" / "deep").close()
    assert runs_near(crowded / "x") in ([], [crowded / "0" / "deep"])
