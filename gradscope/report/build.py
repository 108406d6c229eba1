"""Writing a report directory, all of it or nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import RunExistsError, SettingError
from gradscope.plots.figures import provenance
from gradscope.plots.saving import write_csv
from gradscope.reading import read_all
from gradscope.reading.facts import RunFacts, gather
from gradscope.report import figures, page, story, summary
from gradscope.report.drawing import Drawn, draw
from gradscope.report.telling import Picture, Story

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
    runs: Sequence[Run | Reading | str | Path],
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
    runs : sequence of Run or path
        From :func:`gradscope.open_run`, or :func:`gradscope.reading.read` for a choice of their records. The files of
        a path are opened once, those of a run that is open already a second time.
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
    readings = read_all(runs)
    facts = gather(readings, quantity)
    made_from = provenance(readings)
    with _building(out) as folder:
        chapters = [] if told is None else [_drawn(picture, made_from, folder) for picture in told.pictures]
        pictures, missing = figures.pictures_of(readings, sweep=sweep, shown=shown, quantity=quantity)
        for found in facts:
            found.run.forget()  # all is gathered; of a thousand runs this is most of what is held
        pictures.reverse()
        drawn = [_drawn(pictures.pop(), made_from, folder) for _ in range(len(pictures))]
        listed = _listed([*chapters, *drawn])
        html = page.render(facts, drawn, missing, title, told, chapters)
        (folder / "index.html").write_bytes(html.encode("utf-8", "backslashreplace"))
        numbers = summary.summarise(facts, listed, missing)
        if told is not None:
            numbers["told"] = summary.clean(story.words(told))
            numbers["claims"] = summary.clean(story.numbers(told))
        (folder / "summary.json").write_text(summary.to_text(numbers), encoding="utf-8", newline="\n")
        files = [name for one in listed.values() for name in one["files"]] + ["index.html", "summary.json"]
        if replace and (out / "index.html").is_file():
            _replace(folder, out, files)
        else:
            _place(folder, out)
    return ReportPaths(
        directory=out,
        index=out / "index.html",
        summary=out / "summary.json",
        figures=tuple(out / name for name in files if name.startswith("figures/")),
        data=tuple(out / name for name in files if name.startswith("data/")),
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


def _drawn(picture: Picture, made_from: Mapping[str, Any], folder: Path) -> Drawn:
    """Draw a picture and write its files; kept of it is what the page shows."""
    one = draw(picture, made_from)
    for kind, content in one.files.items():
        path = folder / "figures" / f"{one.name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    table = folder / "data" / f"{one.name}.csv"
    table.parent.mkdir(exist_ok=True)
    write_csv(one.data, table)
    return dataclasses.replace(one, files=dict.fromkeys(one.files, b""), data=one.data.iloc[:0])


def _listed(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """What the summary says of each figure."""
    return {
        figure.name: {
            "caption": figure.caption,
            "files": [*(f"figures/{figure.name}.{kind}" for kind in figure.files), f"data/{figure.name}.csv"],
            **({"data": figure.thinned} if figure.thinned else {}),
        }
        for figure in drawn
    }


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` to write in; what is left there at the end goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(folder: Path, out: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)  # mkdtemp keeps others out; a report is to be shared
    if out.is_dir():
        out.rmdir()  # empty, as checked; renaming onto a directory fails on some systems
    folder.rename(out)


def _replace(folder: Path, out: Path, files: Sequence[str]) -> None:
    """Move files over those of an earlier report, the page after what it shows; what is no longer there goes."""
    for name in files:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(folder / name, out / name)
    for beside in ("figures", "data"):
        for path in (out / beside).glob("*"):
            if f"{beside}/{path.name}" not in files and path.is_file():
                path.unlink()
