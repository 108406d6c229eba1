"""Writing a report directory, all of it or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import RunExistsError, SettingError
from gradscope.plots.figures import provenance
from gradscope.plots.saving import csv_bytes
from gradscope.reading.facts import RunFacts, gather
from gradscope.report import figures, page, story, summary
from gradscope.report.drawing import Drawn, draw
from gradscope.report.telling import Story

if TYPE_CHECKING:
    from gradscope.reading import Reading
    from gradscope.store import Run


@dataclass(frozen=True, eq=False)
class ReportPaths:
    """Where a report was written, and what it says.

    Attributes
    ----------
    directory, index, summary : Path
        The report, its page, and its numbers as JSON.
    figures, data : tuple of Path
        Every figure as PDF, PNG and SVG; the CSV behind each.
    facts : tuple of RunFacts
        What the page says of each run.
    """

    directory: Path
    index: Path
    summary: Path
    figures: tuple[Path, ...]
    data: tuple[Path, ...]
    facts: tuple[RunFacts, ...]

    @property
    def verdicts(self) -> set[str]:
        """Verdicts of all sites of all runs, at the end of training."""
        return {verdict for found in self.facts for verdict in found.verdicts}


def build_report(
    runs: Sequence[Run | Reading],
    out: str | os.PathLike[str],
    *,
    title: str = "",
    sweep: bool = False,
    told: Story | None = None,
    shown: Sequence[str] | None = None,
    quantity: str | None = None,
    replace: bool = False,
) -> ReportPaths:
    """Write a report of one or more runs: ``index.html``, ``figures/``, ``data/``, ``summary.json``.

    The page needs no network, and says the same without its script. Everything is written beside ``out`` first and
    renamed at the end, so nothing half-written is left behind.

    Parameters
    ----------
    runs : sequence of Run
        From :func:`gradscope.open_run`, or :func:`gradscope.reading.read` for a choice of their records.
    out : path
        Must not exist, or be an empty directory.
    title : str, optional
        Heading of the page.
    sweep : bool
        The runs differ in their clipping threshold and seed only: show loss, final metric and norms by threshold.
    told : Story, optional
        Chapters to stand before the runs; see :mod:`gradscope.report.telling`.
    shown : sequence of str, optional
        File names of the figures to draw, such as ``["comparison", "norms"]``; by default all that the data allow.
    quantity : str, optional
        Of which sentences, table and curves speak; by default what describes each site.
    replace : bool
        Write over an earlier report at ``out``, file by file, the page last: each file is there whole at any moment.

    Returns
    -------
    ReportPaths

    Raises
    ------
    SettingError
        No run was given.
    RunExistsError
        ``out`` exists and is not empty.
    EmptyRunError
        No run holds a record.
    UnknownNameError, NotRecordedError
        No such quantity; no run has it.
    """
    out = Path(out)
    if not runs:
        raise SettingError("no run to report: pass at least one.")
    if not replace:
        check_free(out)
    facts = gather(runs, quantity)
    made_from = provenance(runs)
    chapters = [] if told is None else [draw(picture, made_from) for picture in told.pictures]
    pictures, missing = figures.pictures_of(runs, sweep=sweep, shown=shown, quantity=quantity)
    for found in facts:
        found.run.forget()  # all that is said and drawn is gathered; of a thousand runs this is most of what is held
    drawn = [draw(picture, made_from) for picture in pictures]
    files = _contents([*chapters, *drawn])
    html = page.render(facts, drawn, missing, title, told, chapters)
    files["index.html"] = html.encode("utf-8", "backslashreplace")
    numbers = summary.summarise(facts, _listed([*chapters, *drawn]), missing)
    if told is not None:
        numbers["told"] = summary.clean(story.words(told))
        numbers["claims"] = summary.clean(story.numbers(told))
    files["summary.json"] = summary.to_text(numbers).encode()
    (_replace if replace and (out / "index.html").is_file() else _write)(out, files)
    written = [out / name for name in files]
    return ReportPaths(
        directory=out,
        index=out / "index.html",
        summary=out / "summary.json",
        figures=tuple(path for path in written if path.parent.name == "figures"),
        data=tuple(path for path in written if path.parent.name == "data"),
        facts=tuple(facts),
    )


def check_free(out: Path) -> None:
    """Refuse a place where something is, before any work is done.

    Raises
    ------
    RunExistsError
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise RunExistsError(f"{out} exists already; nothing is overwritten. Choose another directory or remove it.")


def _contents(drawn: Sequence[Drawn]) -> dict[str, bytes]:
    """The files of the figures: relative name to bytes."""
    files: dict[str, bytes] = {}
    for figure in drawn:
        files |= {f"figures/{figure.name}.{kind}": content for kind, content in figure.files.items()}
        files[f"data/{figure.name}.csv"] = csv_bytes(figure.data)
    return files


def _listed(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """What the summary says of each figure."""
    return {
        figure.name: {
            "caption": figure.caption,
            "files": [*(f"figures/{figure.name}.{kind}" for kind in figure.files), f"data/{figure.name}.csv"],
        }
        for figure in drawn
    }


def _write(out: Path, files: dict[str, bytes]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", dir=out.parent))
    try:
        for name, content in files.items():
            path = building / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        mask = os.umask(0)
        os.umask(mask)
        building.chmod(0o777 & ~mask)  # mkdtemp keeps others out; a report is to be shared
        if out.is_dir():
            out.rmdir()  # empty, as checked; renaming onto a directory fails on some systems
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _replace(out: Path, files: dict[str, bytes]) -> None:
    """Write over the files of an earlier report; ``index.html`` and ``summary.json`` come last in ``files``."""
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_bytes(content)
        beside.replace(path)
    for folder in ("figures", "data"):
        for path in (out / folder).glob("*"):
            if f"{folder}/{path.name}" not in files and path.is_file():
                path.unlink()
