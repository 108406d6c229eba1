import os
import signal
import subprocess
import sys
import time

import pytest

from gradscope import open_run
from gradscope.store import RunWriter, guard
from gradscope.store import growing as growing_module
from gradscope.store.growing import Growing, changes
from tests.store.conftest import META, SITES, die, record, wait_until_sealed, write_run


def steps_of(run):
    return [] if not run.sites else run.records("lstm/l0")["step"].tolist()


def test_what_was_seen_does_not_come_again(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.set_sites(SITES)
    growing, seen = Growing(tmp_path / "run"), []
    for step in range(6):
        writer.add_record(record(step))
        if step % 2:
            writer.flush()
            seen.append(steps_of(growing.news()))
    assert seen == [[0, 1], [2, 3], [4, 5]]
    assert steps_of(growing.news()) == []
    writer.close()
    assert steps_of(growing.news()) == [], "a segment with nothing new is not read"


def test_what_was_sealed_between_two_looks_is_not_missed(tmp_path):
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    growing, seen = Growing(tmp_path / "run"), set()
    for step in range(4):
        writer.add_record(record(step))
        writer.flush()
        if step == 1:
            wait_until_sealed(writer)
        seen |= set(steps_of(growing.news()))
    writer.close()
    seen |= set(steps_of(growing.news()))
    assert seen == {0, 1, 2, 3}


def test_every_attempt_and_rank_is_followed(tmp_path):
    growing = None
    for attempt in (1, 2):
        writers = [RunWriter(tmp_path / "run", META, rank=r, world_size=2, restart=attempt > 1) for r in (0, 1)]
        for writer in writers:
            writer.add_record(record(attempt))
            writer.flush()
        growing = growing or Growing(tmp_path / "run")
        assert steps_of(growing.news()) == [attempt] * 2
        for writer in writers:
            writer.close()


def test_a_packed_run_comes_once(sealed, segment):
    growing = Growing(segment)
    assert steps_of(growing.news()) == steps_of(open_run(sealed))
    assert steps_of(growing.news()) == []


def test_changes_are_told_until_the_run_is_closed(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    actions = [writer.flush, lambda: None, lambda: writer.add_record(record(0)), writer.flush, writer.close]

    def sleep(_):
        actions.pop(0)()

    told = [(last, len(actions)) for last in changes([tmp_path / "run"], 1, sleep)]
    assert told[-1] == (True, 0)
    assert [last for last, _ in told[:-1]] == [False] * (len(told) - 1)
    assert (False, 1) in told, "the flush of a record"
    assert len(told) < 6, "nothing is told while nothing has changed"


def test_a_sealed_run_is_looked_at_once(sealed):
    assert list(changes([sealed], 1)) == [True]


def test_a_run_whose_process_died_is_given_up(tmp_path, monkeypatch):
    die(write_run(tmp_path / "run", close=False))
    monkeypatch.setattr(growing_module, "PATIENCE", 0.2)
    told = list(changes([tmp_path / "run"], 0.05))
    assert told[0] is False
    assert told[-1] is True
    assert len(told) == 2


def test_looking_opens_no_file_and_leaves_the_lock_to_the_writer(tmp_path, monkeypatch):
    writer = write_run(tmp_path / "run", close=False)
    monkeypatch.setattr(guard, "connect", lambda *_: pytest.fail("the journal was opened"))
    following = changes([tmp_path / "run"], 0)
    assert next(following) is False
    writer.close()
    assert next(following) is True


_STOPPED = """
import os, signal, sys, time
from pathlib import Path
from gradscope.store import guard, growing
load = guard.load_journal
def slowly(*arguments):
    os.kill(os.getpid(), signal.SIGTSTP)
    found = load(*arguments)
    print("read", flush=True)
    return found
guard.load_journal = slowly
growing.Growing(Path(sys.argv[1])).news()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="no job control")
def test_a_reader_is_stopped_after_the_journal_and_not_within(tmp_path):
    write_run(tmp_path / "run", close=False)
    # In a process group of its own, whose parent is outside: an orphaned one is not stopped by SIGTSTP.
    command = [sys.executable, "-c", _STOPPED, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=os.setpgrp) as reader:
        assert reader.stdout.readline() == b"read\n"
        end = time.monotonic() + 30
        while (stopped := os.waitpid(reader.pid, os.WUNTRACED | os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(reader.pid, signal.SIGKILL)
    assert os.WIFSTOPPED(stopped[1])
