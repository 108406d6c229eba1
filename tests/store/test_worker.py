"""Nothing of what the store does holds the thread that records."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gradscope import open_run
from gradscope.errors import RunError
from gradscope.store import RunWriter, sealer, validate
from gradscope.store import worker as worker_module
from gradscope.store.journal import Journal
from gradscope.store.worker import DROPPED
from tests.store.conftest import META, record, wait_until, wait_until_sealed, write_run


@pytest.fixture
def gate(monkeypatch):
    """Shut: every commit waits until it is set."""
    event, append = threading.Event(), Journal.append

    def wait_and_append(self, rows, info):
        assert event.wait(60)
        append(self, rows, info)

    event.set()
    monkeypatch.setattr(Journal, "append", wait_and_append)
    yield event
    event.set()


def test_recording_goes_on_while_a_commit_is_stuck(tmp_path, gate):
    writer = RunWriter(tmp_path / "run", META)
    gate.clear()
    for step in range(3 * worker_module.FLUSH_ENTRIES):
        writer.add_record(record(step))
    assert open_run(tmp_path / "run").n_records == 0
    gate.set()
    writer.close()
    assert open_run(tmp_path / "run").n_records == 3 * worker_module.FLUSH_ENTRIES


def test_a_disk_that_is_too_slow_drops_with_a_count_and_holds_nobody(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_WAITING_BYTES", 20_000)
    writer = RunWriter(tmp_path / "run", META)
    gate.clear()
    for step in range(100):
        writer.add_record(record(step))
    assert "too slow" in str(writer.trouble)
    gate.set()
    writer.close()
    run = open_run(tmp_path / "run")
    assert 0 < run.n_records < 100
    assert run.lost == {DROPPED: 100 - run.n_records}


def test_recording_goes_on_while_sealing_is_stuck(tmp_path, monkeypatch):
    go = tmp_path / "go"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.01)\n"
    monkeypatch.setattr(sealer, "_CODE", wait + sealer._CODE)
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    writer.add_record(record(0))
    writer.flush()
    wait_until(lambda: writer._worker._sealer.running)
    for step in range(1, 100):
        writer.add_record(record(step))
    writer.flush()
    assert writer._worker._sealer.running
    assert not list((tmp_path / "run").rglob("segment-*.h5"))
    assert open_run(tmp_path / "run").n_records == 100
    go.touch()
    writer.close()
    assert len(list((tmp_path / "run").rglob("segment-*.h5"))) == 2
    assert open_run(tmp_path / "run").records("lstm/l0")["step"].tolist() == list(range(100))
    assert validate(tmp_path / "run") == []


def test_a_sealing_process_that_dies_costs_nothing_and_is_not_tried_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(sealer, "_CODE", "raise SystemExit(1)")
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    for step in range(5):
        writer.add_record(record(step))
        writer.flush()
        wait_until(lambda: not writer._worker._sealer.running)
    assert writer._worker._sealer._failures == sealer.MAX_FAILURES
    writer.close()
    assert open_run(tmp_path / "run").n_records == 5
    assert validate(tmp_path / "run") == []


def test_a_sealing_process_that_dies_before_it_tells_leaves_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(sealer, "_CODE", sealer._CODE + "os._exit(1)\n")
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    writer.add_record(record(0))
    writer.flush()
    wait_until_sealed(writer)
    (writer.path / ".segment-00002.h5.99.tmp").write_bytes(b"half")
    writer.add_record(record(1))
    writer.flush()
    wait_until_sealed(writer)
    writer.close()
    assert open_run(tmp_path / "run").records("lstm/l0")["step"].tolist() == [0, 1]
    assert validate(tmp_path / "run") == []


def test_a_fault_in_the_thread_ends_it_with_everything_committed_and_hangs_nobody(tmp_path, monkeypatch):
    def fail(self, *, wait=False):
        if not wait:
            raise KeyError("a bug")

    writer = RunWriter(tmp_path / "run", META)
    for step in range(5):
        writer.add_record(record(step))
    monkeypatch.setattr(sealer.Sealer, "ended", fail)  # what is added once the thread has ended is lost, and counted
    for _ in range(worker_module._FAULTS):  # one may be no more: it goes on
        writer._worker.flush()
    writer._worker.join(60)
    assert writer._worker.ended
    with pytest.raises(RunError, match=r"KeyError: 'a bug'\. Please report"):
        writer.flush()
    writer.close()
    assert open_run(tmp_path / "run").n_records == 5


def test_sealing_needs_nothing_of_the_directory_or_environment_it_is_in(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not the module that was meant')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    writer = RunWriter("run", META, seal_bytes=1)
    writer.add_record(record(0))
    writer.flush()
    wait_until_sealed(writer)
    writer.close()
    assert open_run("run").n_records == 1


def test_no_thread_and_no_process_is_left_after_close_or_when_the_writer_is_dropped(tmp_path):
    for close in (True, False):
        writer = write_run(tmp_path / str(close), close=close, seal_bytes=1)
        thread = writer._worker.thread
        del writer
        gc.collect()
        wait_until(lambda thread=thread: not thread.is_alive())
        assert open_run(tmp_path / str(close)).sealed == close
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gradscope")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_nothing_of_a_growing_run_is_mapped_into_memory(tmp_path):
    """A mapped file that somebody truncates ends the process by SIGBUS."""
    writer = write_run(tmp_path / "run", close=False)
    open_run(tmp_path / "run")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    for path in writer.path.glob("journal.sqlite-*"):
        os.truncate(path, 0)
    writer.add_record(record(3))
    writer.close()
    assert open_run(tmp_path / "run").n_records == 4


def test_flush_and_close_may_be_called_by_a_signal_handler_wherever_it_comes(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    added, seen, inside = [], [], []

    def flush(_number, _frame):
        if len(inside) == 3:
            return  # reading may take longer than the timer waits: handlers would interrupt each other for ever
        inside.append(1)
        writer.flush()
        seen.append((len(added), open_run(tmp_path / "run").n_records))
        inside.pop()

    before = signal.signal(signal.SIGALRM, flush)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        end = time.monotonic() + 60
        while len(seen) < 30 and time.monotonic() < end:
            writer.add_record(record(len(added)))
            added.append(1)
            if len(added) % 10 == 0:
                writer.flush()
        with writer._worker.lock:  # while the interrupted thread is inside
            signal.raise_signal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, lambda *_: writer.close())
        writer.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) >= 30
    assert all(stored >= put for put, stored in seen)
    assert open_run(tmp_path / "run").records("lstm/l0")["step"].tolist() == list(range(len(added)))
    assert validate(tmp_path / "run") == []


def test_several_threads_may_add_flush_and_close(tmp_path):
    writer = RunWriter(tmp_path / "run", META)

    def work(first):
        for step in range(first, first + 100):
            writer.add_record(record(step))
            if step % 20 == 0:
                writer.flush()

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    closing = [threading.Thread(target=writer.close) for _ in range(3)]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
    assert sorted(open_run(tmp_path / "run").records("lstm/l0")["step"]) == list(range(400))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_is_inside_neither_hangs_nor_writes(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with writer._worker.lock:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        try:
            writer.add_record(record(9))
            writer.add_lost("a bug", 1)
            writer.flush()
            writer.close()
        finally:
            os._exit(0)
    leave.set()
    thread.join()
    try:
        wait_until(lambda: os.waitpid(child, os.WNOHANG)[0] == child)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    writer.add_record(record(3))
    writer.close()
    run = open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == [0, 1, 2, 3]
    assert run.lost == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forks_between_two_commits(tmp_path, monkeypatch):
    """SQLite's mutexes would stay locked in the child, which may read a data set of its own with it."""
    inside, append = [], Journal.append

    def slowly(self, rows, info):
        inside.append(1)
        time.sleep(0.02)
        append(self, rows, info)
        inside.clear()

    monkeypatch.setattr(Journal, "append", slowly)
    monkeypatch.setattr("gradscope.store.writer._FORK_SECONDS", 60)
    writer = RunWriter(tmp_path / "run", META)
    for step in range(20):
        for _ in range(worker_module.FLUSH_ENTRIES):
            writer.add_record(record(step))
        wait_until(lambda: inside)
        child = os.fork()
        if child == 0:
            os._exit(len(inside))
        assert os.waitpid(child, 0)[1] == 0
    writer.close()
    assert open_run(tmp_path / "run").n_records == 20 * worker_module.FLUSH_ENTRIES


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "raise ValueError", "os.kill(os.getpid(), 2)"])
def test_an_interpreter_that_ends_without_close_keeps_every_record(tmp_path, ending):
    code = (
        "import os, sys\nfrom gradscope.store import RunWriter\nfrom tests.store.conftest import META, record\n"
        f"writer = RunWriter({str(tmp_path / 'run')!r}, META)\n"
        f"for step in range(10): writer.add_record(record(step))\n{ending}\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    expected = {"pass": 0, "raise SystemExit(3)": 3, "raise ValueError": 1}.get(ending, -signal.SIGINT)
    assert done.returncode == expected, done.stderr
    assert open_run(tmp_path / "run").n_records == 10
    assert validate(tmp_path / "run") == []


def test_a_path_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = RunWriter("run", META, seal_bytes=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for step in range(2):
        writer.add_record(record(step))
        writer.flush()
    wait_until_sealed(writer)
    writer.close()
    assert open_run(tmp_path / "run").n_records == 2
    assert not list((tmp_path / "elsewhere").iterdir())
