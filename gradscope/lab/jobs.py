"""The one pool: trainings one after the other, several at once, or elsewhere, with the same numbers either way."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from gradscope.errors import RunExistsError, SettingError
from gradscope.lab.engines import Engine
from gradscope.store.locking import is_being_written

Job = TypeVar("Job")
Found = TypeVar("Found")

_AT_ONCE = 2
# The number of threads and the random generator are those of a process: trainings of one wait for each other.
_ALONE = threading.Lock()


def usual_jobs() -> int:
    """Jobs at once where none are asked for: two, or one on one core. More would take a small machine's memory."""
    return min(_AT_ONCE, os.cpu_count() or 1)


def check_jobs(jobs: int) -> None:
    """Refuse a number of jobs that is none.

    Raises
    ------
    SettingError
        If ``jobs`` is below 1.
    """
    if jobs < 1:
        raise SettingError(f"jobs {jobs} must be at least 1.")


def each(
    work: Callable[[Job], Found],
    todo: Sequence[Job],
    *,
    jobs: int = 1,
    done: int = 0,
    progress: bool = True,
    engine: Engine | None = None,
) -> Iterator[Found]:
    """Do every job on one thread each, and yield what each came to, in order.

    Parameters
    ----------
    work : callable
        A function of a module, or a ``partial`` of one: it must reach another process.
    todo : sequence
        What ``work`` is called with.
    jobs : int
        Jobs at once. The numbers do not depend on it.
    done : int
        Jobs done before, for the bar.
    progress : bool
        Show a bar on stderr (none where that is no terminal).
    engine : Engine, optional
        Of :mod:`gradscope.lab.engines`; it decides how many run at once.

    Raises
    ------
    SettingError
        If ``jobs`` is below 1.
    """
    check_jobs(jobs)
    if engine is not None:
        return _counted(_elsewhere(work, todo, engine), done, done + len(todo), progress)
    found = _inside(work, todo) if jobs == 1 or len(todo) < 2 else _beside(work, todo, jobs)
    return _counted(found, done, done + len(todo), progress)


def _counted(found: Iterator[Found], done: int, total: int, progress: bool) -> Iterator[Found]:
    with tqdm(total=total, initial=done, unit="training", disable=None if progress else True) as bar:
        for one in found:
            bar.update()
            yield one


def _inside(work: Callable[[Job], Found], todo: Sequence[Job]) -> Iterator[Found]:
    for job in todo:
        with one_thread():
            found = work(job)
        yield found


def _beside(work: Callable[[Job], Found], todo: Sequence[Job], jobs: int) -> Iterator[Found]:
    # Not forked: a forked child inherits torch's thread pool in an unusable state.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads,
                             initargs=(1,)) as pool:  # fmt: skip
        try:
            yield from pool.map(work, todo)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _elsewhere(work: Callable[[Job], Found], todo: Sequence[Job], engine: Engine) -> Iterator[Found]:
    pending = engine.start(partial(alone, work), todo)
    try:
        for one in pending:
            yield one.result()
    except BaseException:
        for one in pending:
            one.cancel()
        raise


def alone(work: Callable[[Job], Found], job: Job) -> Found:
    """Do a job on one thread, and no other of this process meanwhile: a worker may run several threads."""
    with _ALONE, one_thread():
        return work(job)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: layers this small lose more by waiting for a second than they gain, and sum otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_way(run_dir: Path) -> None:
    """Remove what an interrupted training left: its weights are gone, so its record is of no use.

    Raises
    ------
    RunExistsError
        A living process is writing it.
    """
    if any(is_being_written(rank) for rank in run_dir.glob("attempt-*/rank-*")):
        raise RunExistsError(f"{run_dir} is being written by another process: wait for it.")
    shutil.rmtree(run_dir, ignore_errors=True)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Make a directory; it is removed again if what is done in it fails or is interrupted.

    Raises
    ------
    RunExistsError
        If there is one.
    """
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise RunExistsError(f"{out} exists already; nothing is overwritten. Choose another with -o.") from None
    try:
        yield out
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
