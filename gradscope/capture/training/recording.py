"""``gradscope.record``: check what was asked for, then record; all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.capture.training.faults import described
from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.settings import Settings
from gradscope.errors import GradscopeError, InternalError


def record(
    model: nn.Module,
    run_dir: str | Path,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    every: int | str = 10,
    budget: float = 0.02,
    samples: int | None = 8,
    quantities: Sequence[str] | str | None = None,
    sites: Sequence[str] | str | None = None,
    tensors: bool = False,
    durability: str = "default",
    restart: bool = False,
    first_step: int = 0,
    labels: Mapping[str, Any] | None = None,
) -> Recorder:
    """Record the adjoints of an unmodified model while it trains.

    Steps 0, ``every``, 2·``every`` ... are recorded. Training with recording is bit-identical to training without.

    Parameters
    ----------
    model : nn.Module
        Any model with recurrent layers. Nothing is attached to it; it can be copied and saved meanwhile.
    run_dir : path
        Directory of the run; it must not exist (see ``restart``).
    optimizer : torch.optim.Optimizer or sequence of them, optional
        Its steps are counted; any object that holds one will do. Several make one step together: it ends when each has
        stepped, or with the next forward pass where they take turns. Without one, whichever optimizer updates the
        model's parameters is followed, and an update by hand is seen from their having changed after a pass;
        ``recorder.step()`` after each update says it outright.
    every : int or "auto"
        Record one step in ``every``. With ``"auto"`` the interval is chosen from the first two recorded steps and
        looked at again after each later one, so that recording costs at most ``budget`` of the training, from the first
        step on; it is written into the run (``settings["chosen_every"]``). About .1 ms of every step, recorded or not,
        tells the steps apart: no interval keeps that within the budget where a step takes a few milliseconds.
    budget : float
        Only with ``every="auto"``.
    samples : int or None
        Sequences of the batch to record, evenly spaced; sequences do not mix, so a subset is exact. None for all.
    quantities : str or sequence of str, optional
        Of ``gradscope.schema.QUANTITIES``; ``hidden``, ``cell``, ``input`` and ``direct`` by default, or ``"all"``.
    sites : str or sequence of str, optional
        Sites, module paths or patterns; every recurrent layer by default. The path of any other module records the
        gradient of its input.
    tensors : bool
        Keep the full tensors (float32) beside the norms.
    durability : {"default", "full"}
        ``default`` survives a crash of the process, ``full`` also a power cut at any moment.
    restart : bool
        Add a new attempt to an existing run directory.
    first_step : int
        Number of the first step, for a training that goes on from a checkpoint.
    labels : mapping of str to str, int, float, bool or None, optional
        What tells this training from others, such as ``{"init": "chrono", "seed": 3}``; figures of several runs name
        and group them by it (``gradscope.plots.story``).

    Returns
    -------
    Recorder
        A context manager; leaving it seals the run. Without ``with``, keep it for as long as the training lasts and
        call its ``close()``: a recorder that nothing holds any more is closed at once, and says so.

    Raises
    ------
    SettingError, UnknownNameError, NothingToRecordError, RunExistsError
        At once, before anything is written.
    RunError
        The disk refuses.
    InternalError
        A fault of gradscope's own. Whatever is raised, nothing is left behind.

    Examples
    --------
    >>> import torch, gradscope
    >>> lstm = torch.nn.LSTM(2, 8)
    >>> optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    >>> with gradscope.record(lstm, "runs/lstm", optimizer=optimizer, every=2) as recorder:
    ...     for _ in range(4):
    ...         loss = lstm(torch.randn(20, 4, 2))[0][-1].square().mean()
    ...         loss.backward()
    ...         norm = recorder.clip_grad_norm_(1.0)
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         recorder.log(loss=loss)
    >>> recorder.records_written
    2
    """
    try:
        settings, targets = Settings.checked(
            model,
            run_dir=run_dir,
            optimizer=optimizer,
            every=every,
            budget=budget,
            samples=samples,
            quantities=quantities,
            sites=sites,
            tensors=tensors,
            durability=durability,
            restart=restart,
            first_step=first_step,
            labels=labels,
        )
        return Recorder(model, settings, targets)
    except GradscopeError:
        raise
    except Exception as error:
        raise InternalError(f"recording could not begin ({described(error)}): please report this") from error
