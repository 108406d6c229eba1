"""A run as CSV files, for programs that read nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import RunError, SettingError, UnknownNameError
from gradscope.legible import cells, file_name
from gradscope.schema import CLIPS_GROUP, DATASETS, PARAMETERS_GROUP, QUANTITIES, STEPS_GROUP
from gradscope.store.budget import Budget
from gradscope.store.layout import group_of, rank_directories
from gradscope.store.placing import new_directory
from gradscope.store.run import Run

if TYPE_CHECKING:
    import pandas as pd

#: Tables of a run that belong to no site.
RUN_TABLES = (STEPS_GROUP, CLIPS_GROUP, PARAMETERS_GROUP)
#: Tables of one site.
SITE_TABLES = ("norms", "records")


def table(run: Run, name: str, site: str | None = None, quantity: str | None = None) -> pd.DataFrame:
    """One table of a run by its name.

    Parameters
    ----------
    run : Run
    name : str
        ``steps``, ``clips``, ``parameters``, ``norms`` or ``records``.
    site : str, optional
        For ``norms`` and ``records``; may be left out where there is only one.
    quantity : str, optional
        For ``norms``; by default the quantity whose decay describes the site.

    Raises
    ------
    UnknownNameError, SettingError, NotRecordedError, EmptyRunError
    """
    if name in RUN_TABLES:
        frame: pd.DataFrame = getattr(run, name)()
        return frame
    if name not in SITE_TABLES:
        raise UnknownNameError("table", name, (*RUN_TABLES, *SITE_TABLES))
    run.require_records()
    if site is None:
        if len(run.sites) != 1:
            raise SettingError(f"the run has {len(run.sites)} sites; say whose {name}: {', '.join(run.sites)}.")
        site = run.sites[0]
    if name == "records":
        return run.records(site)
    quantity = quantity or run.site(site).curve
    _check_lines(run, [(site, quantity)] if quantity in run.datasets(site) else [])
    return run.norms(site, quantity)


def export(run: Run, out: str | Path) -> list[Path]:
    """Write every table of a run as CSV into a new directory, complete or not at all.

    ::

        steps.csv  clips.csv  parameters.csv
        sites/<module path>/<suffix>/records.csv  cell.csv  hidden.csv ...   one tidy table per dataset

    Whole tensors are left out: they stay in HDF5.

    Parameters
    ----------
    run : Run
    out : str or Path
        Created.

    Returns
    -------
    list of Path
        The files, in the order above.

    Raises
    ------
    RunExistsError
        There is something at ``out``.
    RunError
        The disk refuses.
    """
    out = Path(out)
    try:
        with run.opened():
            _check_lines(run, [(site, dataset) for site in run.sites for dataset in _norm_datasets(run, site)])
            with new_directory(out) as whole:
                files = [path.relative_to(whole) for path in _write_all(run, whole)]
    except OSError as error:
        raise RunError(f"cannot write {str(out)!r}: {error.strerror or error}. Nothing was left there.") from error
    return [out / file for file in files]


def _write_all(run: Run, folder: Path) -> list[Path]:
    written = [_write(getattr(run, name)(), folder / f"{name}.csv") for name in RUN_TABLES]
    for site in run.sites:
        # The group's name is escaped: no site can lead out of the directory.
        home = folder.joinpath(*map(file_name, group_of(site).split("/")))
        written.append(_write(run.records(site), home / "records.csv"))
        for dataset in _norm_datasets(run, site):
            written.append(_append(run.norms_in_pieces(site, dataset), home / f"{dataset}.csv"))
    return written


def _check_lines(run: Run, datasets: Iterable[tuple[str, str]]) -> None:
    """Spend what the lines will cost before one is written: zeros take no room in a file, and as long as any number."""
    budget = (
        Budget.of(file for rank in rank_directories(run.path) for file in rank.files())
        if run.path.is_dir()
        else (Budget.of([run.path.resolve()]))
    )
    for site, dataset in datasets:
        lengths, dims = run.lengths(site), DATASETS[dataset]
        extent = {dim: max(part.extent(site).get(dim, 1) for part in run.parts if site in part.sites()) for dim in dims}
        others = math.prod(size for dim, size in extent.items() if dim not in ("sequence", "lag", "time"))
        inside = lengths if "sequence" in dims else lengths.max(axis=1, initial=0)
        along = int(inside.sum()) if {"lag", "time"} & set(dims) else len(lengths)
        budget.take("lines", others * along, run.path)


def _norm_datasets(run: Run, site: str) -> list[str]:
    recorded = {name for part in run.parts if site in part.sites() for name in part.datasets(site)}
    norms = {name for quantity in QUANTITIES.values() for name in quantity.datasets}
    return [name for name in DATASETS if name in recorded & norms]


def _append(frames: Iterator[pd.DataFrame], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        for i, frame in enumerate(frames):
            cells(frame).to_csv(file, index=False, na_rep="nan", header=i == 0)
    return path


def _write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells(frame).to_csv(path, index=False, na_rep="nan")
    return path
