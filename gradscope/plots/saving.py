"""Writing a figure: the same bytes for the same input, its data as CSV beside it, its provenance inside."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.figure import Figure

from gradscope._version import __version__
from gradscope.errors import SettingError, UnknownNameError
from gradscope.legible import cells

FORMATS = ("pdf", "pgf", "png", "svg")

#: Rows of a table that are text at once.
_CSV_ROWS = 50_000


def save(
    figure: Figure,
    path: str | os.PathLike[str],
    *,
    data: pd.DataFrame | None = None,
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    dpi: int = 300,
) -> list[Path]:
    """Write ``figure`` to ``path`` (format from its suffix) and ``data`` to the CSV of the same name.

    Parameters
    ----------
    figure : Figure
        Drawn and saved inside :func:`gradscope.plots.style.use`, which fixes fonts and ids.
    path : path
        Ends in .pdf, .svg, .png or .pgf. An existing file is replaced, in one piece.
    data : DataFrame, optional
        The table behind the figure.
    title : str
        For the file's metadata.
    provenance : mapping, optional
        What the figure was made from; must be JSON. Written into the metadata; dates would make bytes differ.
    dpi : int
        Of PNG files, and of rasterised parts of the others.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    SettingError, UnknownNameError
        A suffix that is missing or unknown; a directory that does not exist.
    """
    path = Path(path)
    suffix = path.suffix[1:].lower()
    if not suffix:
        raise SettingError(f"{path}: the file name needs a suffix that says the format: {', '.join(FORMATS)}.")
    if suffix not in FORMATS:
        raise UnknownNameError("figure format", suffix, FORMATS)
    if not path.parent.is_dir():
        raise SettingError(f"{path}: the directory {path.parent} does not exist; create it first.")
    replace_file(path, render(figure, suffix, title=title, provenance=provenance, dpi=dpi))
    written = [path]
    if data is not None:
        table = path.with_suffix(".csv")
        replace_file(table, csv_bytes(data))
        written.append(table)
    return written


def write_csv(data: pd.DataFrame, path: Path) -> None:
    """:func:`csv_bytes` into a file, some rows at a time."""
    with open(path, "wb") as file:
        for start in range(0, max(len(data), 1), _CSV_ROWS):
            file.write(csv_bytes(data.iloc[start : start + _CSV_ROWS], header=start == 0))


def csv_bytes(data: pd.DataFrame, *, header: bool = True) -> bytes:
    """``data`` as CSV: full precision, ``inf`` and ``nan`` spelled out, newlines the same on every platform."""
    return (
        cells(data)
        .to_csv(index=False, header=header, na_rep="nan", lineterminator="\n")
        .encode("utf-8", "surrogateescape")
    )


def render(
    figure: Figure,
    suffix: str,
    *,
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    dpi: int = 300,
) -> bytes:
    """The bytes of ``figure`` as pdf, pgf, png or svg. See :func:`save`."""
    metadata = _metadata(suffix, title, provenance)
    with _left_in_place(figure):
        if suffix == "pgf":
            return _pgf(figure, metadata)
        buffer = io.BytesIO()
        # savefig's metadata must not hold keys a format does not know: it warns about each.
        figure.savefig(buffer, format=suffix, metadata=metadata, dpi=dpi)
        return buffer.getvalue()


@contextmanager
def _left_in_place(figure: Figure) -> Iterator[None]:
    """Put axes back to where they stood: a layout that begins where one ended differs from it in the last digit, which
    is enough for other ids in SVG.
    """
    stood = [(ax, ax.get_position(original=True), ax.get_position(), ax.get_in_layout()) for ax in figure.axes]
    try:
        yield
    finally:
        for ax, original, active, in_layout in stood:
            ax.set_position(original, which="original")
            ax.set_position(active, which="active")
            ax.set_in_layout(in_layout)  # a position that is set takes axes out of the layout


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp keeps others out; a figure is an ordinary file
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _metadata(suffix: str, title: str, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    maker = f"gradscope {__version__}"
    # ASCII: PNG text and PDF strings of other characters depend on the reader.
    source = json.dumps(dict(provenance or {}), sort_keys=True, default=str)
    title = title.encode("ascii", "backslashreplace").decode()
    if suffix == "pdf":
        dates = {"CreationDate": None, "ModDate": None}
        return {
            "Title": title,
            "Creator": maker,
            "Producer": f"matplotlib {matplotlib.__version__}",
            "Subject": source,
        } | dates
    if suffix == "svg":
        return {"Title": title, "Creator": maker, "Description": source, "Date": None}
    if suffix == "png":
        return {"Title": title, "Software": maker, "Description": source}
    return {"Title": title, "Creator": maker, "Subject": source}


class _Pgf(RendererPgf):
    """PGF without a TeX installation: text is measured by matplotlib, and TeX's own characters in names are escaped."""

    def __init__(self, figure: Figure, file: IO[str]) -> None:
        super().__init__(figure, file)
        self._measure = FigureCanvasAgg(figure).get_renderer()

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        return self._measure.get_text_width_height_descent(s, prop, ismath)

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, *args: Any, **kwargs: Any
    ) -> None:
        super().draw_text(gc, x, y, tex(s), prop, angle, *args, **kwargs)


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "…": r"\ldots{}",
    "\u200a": "",
} | {c: f"\\{c}" for c in "&%#_{}"}


def tex(text: str) -> str:
    """A matplotlib label as TeX: what is between unescaped dollar signs stays mathematics, the rest is literal."""
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0:  # a lone dollar sign is no mathematics
        parts = [text.replace("$", r"\$").replace(r"\\$", r"\$")]
    literal = [_literal(part) if i % 2 == 0 else f"${part}$" for i, part in enumerate(parts)]
    return "".join(literal)


def _literal(text: str) -> str:
    return r"\$".join("".join(_TEX.get(c, c) for c in part) for part in text.split(r"\$"))


def _pgf(figure: Figure, metadata: Mapping[str, Any]) -> bytes:
    text = io.StringIO()
    width, height = figure.get_size_inches()
    dpi, canvas = figure.dpi, figure.canvas
    text.write("".join(f"%% {key}: {value}\n" for key, value in metadata.items()))
    text.write("%% Needs \\usepackage{pgf}; include with \\input{<this file>}\n")
    text.write("\\begingroup\n\\makeatletter\n\\begin{pgfpicture}\n")
    text.write(f"\\pgfpathrectangle{{\\pgfpointorigin}}{{\\pgfqpoint{{{width:f}in}}{{{height:f}in}}}}\n")
    text.write("\\pgfusepath{use as bounding box, clip}\n")
    try:
        figure.dpi = 72
        figure.draw(_Pgf(figure, text))  # all vectors: a raster part would need a file of its own
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    text.write("\\end{pgfpicture}\n\\makeatother\n\\endgroup\n")
    return text.getvalue().encode()
