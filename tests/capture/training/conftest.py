"""Every loop is run once for all that is asked of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import gradscope
from gradscope.capture.training.telling import GradscopeWarning
from tests.capture.training import loops_of_many_hands, loops_of_several_losses  # noqa: F401
from tests.capture.training.loops import LOOPS, Table

# Loops of which the user is told something, once.
SAYS = {
    "an_optimizer_that_was_not_given",
    "two_optimizers_that_were_not_given",
    "an_optimizer_of_another_model_given",
    "a_new_optimizer_takes_over",
    "marks_beside_an_optimizer_that_was_not_given",
    "an_optimizer_that_never_steps",
    "an_optimizer_that_never_steps_with_gradients_zeroed",
}


def run_loop(name: str, run_dir: Path | None) -> Table:
    table = Table(run_dir)
    LOOPS[name](table)
    return table


Recorded = tuple[Table, gradscope.Run]
_made: dict[str, Recorded] = {}


@pytest.fixture
def recorded(name: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A loop's table and its run; every loop is run once."""
    if name not in _made:
        folder = tmp_path_factory.mktemp("loops") / "run"
        with pytest.warns(GradscopeWarning) if name in SAYS else contextlib.nullcontext():
            table = run_loop(name, folder)
        _made[name] = (table, gradscope.open_run(folder))
    return _made[name]
