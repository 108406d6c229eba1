"""Trainings on other machines: engines that exist, behind one face.

An engine starts every job at once and hands back what each will come to, an object with ``result()`` and ``cancel()``.
Where and when a job runs, and what happens when a machine is lost, is the engine's own business: Dask gives the jobs of
a worker that died to another one, Slurm leaves them to be asked for again. All machines need the same file system and
an environment with gradscope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gradscope.errors import RunError, SettingError

#: How long a scheduler may take to answer, seconds.
_ANSWER = 10
#: How long a job of Slurm may take where nothing else is asked for, minutes.
_TIMEOUT_MIN = 60


class Pending(Protocol):
    """A job that was started."""

    def result(self) -> Any: ...

    def cancel(self) -> Any: ...


class Engine(Protocol):
    """What runs jobs somewhere."""

    def start(self, work: Callable[[Any], Any], todo: Sequence[Any]) -> Sequence[Pending]: ...


@dataclass(frozen=True)
class _Dask:
    client: Any

    def start(self, work: Callable[[Any], Any], todo: Sequence[Any]) -> Sequence[Pending]:
        # pure=False: the same training asked for again is another training.
        return [self.client.submit(work, job, pure=False) for job in todo]


@dataclass(frozen=True)
class _Submitit:
    executor: Any

    def start(self, work: Callable[[Any], Any], todo: Sequence[Any]) -> Sequence[Pending]:
        return list(self.executor.map_array(work, todo))  # one job array


@contextmanager
def on_dask(address: str) -> Iterator[Engine]:
    """The workers of a Dask scheduler, ``tcp://host:8786`` as ``dask scheduler`` prints it.

    The trainings of a worker that dies are given to another; what it had finished is not trained again.

    Raises
    ------
    SettingError
        ``distributed`` is not installed, or no scheduler answers.
    RunError
        A training took the workers down with it, several times over, or the scheduler is gone.
    """
    try:
        from distributed import Client
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError as error:
        raise _not_installed("--dask", "dask", error) from error
    try:
        client = Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is one as well
        raise SettingError(
            f"no Dask scheduler answers at {address!r}: give the address that 'dask scheduler' prints ({error})."
        ) from error
    with client:
        try:
            yield _Dask(client)
        except (KilledWorker, CommClosedError, CancelledError) as error:
            raise RunError(f"Dask lost a training: {error} What is finished stays.") from error


@contextmanager
def on_submitit(folder: Path, cluster: str = "slurm", **options: Any) -> Iterator[Engine]:
    """The job array of a cluster that submitit knows: ``slurm``, or ``local`` for processes of this machine.

    Parameters
    ----------
    folder : Path
        For the logs and pickles of the jobs; every machine must see it.
    cluster : str
    **options
        Of ``submitit.AutoExecutor.update_parameters``: ``timeout_min``, ``slurm_partition``, ``mem_gb`` ...

    Raises
    ------
    SettingError
        submitit is not installed, there is no such cluster here, or no such option.
    RunError
        A job failed, or the cluster ended it.
    """
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ModuleNotFoundError as error:
        raise _not_installed("--slurm", "slurm", error) from error
    try:
        executor = AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "gradscope", "timeout_min": _TIMEOUT_MIN, **options})
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise SettingError(
            f"submitit has no cluster {cluster!r} with {options or 'its defaults'} here: {error}"
        ) from error
    try:
        yield _Submitit(executor)
    except (FailedJobError, UncompletedJobError) as error:
        raise RunError(f"a job failed ({_reason(str(error))}); its log is in {str(folder)!r}.") from error


def engine_of(
    out: Path, dask: str | None = None, slurm: bool = False, options: Sequence[str] = (), jobs: int | None = None
) -> AbstractContextManager[Engine | None]:
    """The engine that a command was asked for; None for the processes of this machine.

    Slurm's logs go beside ``out``, to ``OUT-slurm``: they outlive what fails. ``jobs`` is how many it runs at once.

    Raises
    ------
    SettingError
        Both, or an option of Slurm that is not ``KEY=VALUE`` or has no Slurm.
    """
    if dask is not None and slurm:
        raise SettingError("give either --dask or --slurm.")
    if options and not slurm:
        raise SettingError("--slurm-option goes with --slurm.")
    if dask is not None:
        return on_dask(dask)
    if not slurm:
        return nullcontext()
    wrong = [option for option in options if not all(option.partition("="))]
    if wrong:
        raise SettingError(f"--slurm-option takes KEY=VALUE, as timeout_min=120, not {wrong[0]!r}.")
    given: dict[str, Any] = {} if jobs is None else {"slurm_array_parallelism": jobs}
    for key, _, value in (option.partition("=") for option in options):
        given[key] = int(value) if value.isdigit() else value
    return on_submitit(out.with_name(f"{out.name}-slurm"), **given)


def _reason(told: str) -> str:
    """The last line of the trace that submitit wraps in rules, or what it says without one."""
    parts = told.split("-" * 22)
    return parts[1].strip().splitlines()[-1] if len(parts) > 2 else told.splitlines()[0]


def _not_installed(option: str, extra: str, error: ModuleNotFoundError) -> SettingError:
    return SettingError(
        f"{option} needs {error.name}, which is not installed: python -m pip install 'gradscope-rnn[{extra}]'"
    )
