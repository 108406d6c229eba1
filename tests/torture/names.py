"""Names of sites, scalars, parameters, gates and runs that would steer a terminal, a spreadsheet, a page or a path."""

from __future__ import annotations

import csv
import json
import re
import shutil
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.schema import ClipEvent, Coverage, Record, SiteInfo, StepRow
from gradscope.store import RunWriter
from tests.store.conftest import META, site_record
from tests.torture.limited import Children, Ended, command, read
from tests.torture.outcome import Outcome

PROMISE = "No name in a run steers a terminal, is a formula in a CSV or markup on a page, or leads out of a directory"

_KINDS: dict[str, tuple[str, ...]] = {
    "formula": (
        "=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1+1)", "\t=1+1", "\r=1+1", "\n=1+1", "＝1+1", "＋1", "＠A",
        "=cmd|'/C calc'!A0", '=HYPERLINK("http://x","y")', "==", "+", "@", "-x", "'=1", '"=1', ";=1", ",=1",
    ),
    "terminal": (
        "\x1b[2J", "\x1b]0;title\x07", "\x1b[31mred", "\x9b2J", "\x07", "\x08\x08", "\x00", "\x7f", "a\rb",
        "a\nb", "a\tb", "\x0c", "\x1bP0;1|17/ab\x1b\\", "\x85", "\x1c", "\u2028", "\u2029",
    ),
    "direction": (
        "\u202egnp.exe", "\u202dab", "\u2066a\u2069", "\u2067a", "\u200fa", "\u061ca", "a\u200bb", "\ufeffa",
        "a\u2060b", "\xadb", "\U000e0041",
    ),
    "surrogate": (
        "\ud800", "a\udfffb", "\udc80", "\ud83d",
    ),
    "markup": (
        "<script>alert(1)</script>", "</script><script>", '" onload="x', "' onmouseover='x", "&lt;b&gt;", "]]>",
        "<!--", "{{7*7}}", "{% raw %}", "$\\frac{", "\\input{/etc/passwd}", "%s%n", "javascript:alert(1)",
        "--><script>alert(1)</script>", "--!><img src=x onerror=alert(1)>", "x' onerror='alert(1)",
    ),
    "path": (
        "../../etc/passwd", "/etc/passwd", "..", ".", "", "a//b", "C:\\x", "con", "a/../b", "~", "*", "?", "-o",
        "--help", "a\x00b", ".hidden", "a.", " ", "x" * 300, "ü" * 300, "x" * 4000, "中" * 90, "a/" * 100,
    ),
    "kind": (
        "🙂" * 20, "é", "ﷺ", "Ω≈ç√", "null", "nan", "True", "1e5", "cell", "step",
    ),
}  # fmt: skip
NAMES = {f"{kind} {number}": text for kind, texts in _KINDS.items() for number, text in enumerate(texts)}

# What may not be printed: control characters but line breaks, those of direction, halves of characters.
_STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_FORMULA = re.compile("[=+\\-@\t\r＝＋－＠]")
QUICK = ("open_run", "inspect", "validate", "export", "table")


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Write each name everywhere a run has one, and read it with every command."""
    outcome = Outcome(PROMISE, 0)
    every = list(NAMES)
    chosen = every if count is None else every[:: max(1, len(every) // count)][:count]
    with Children() as children:
        for name in chosen:
            place = scratch / "name"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            outcome.fell_short += [f"{name}: {what}" for what in attempt(NAMES[name], place, children, count is None)]
            outcome.tries += 1
    return outcome


def attempt(text: str, place: Path, children: Children, everything: bool) -> Iterator[str]:
    """What a name did that none may do."""
    write(place / "sealed", text, close=True)
    write(place / "open", text, close=False)
    for kind in ("sealed", "open"):
        run_dir, out = place / kind, place / f"{kind}-out"
        out.mkdir()
        jobs = _jobs(run_dir, out, everything)
        for name, ended in zip(jobs, children.together(list(jobs.values())), strict=True):
            yield from (f"{kind}, {name}: {what}" for what in _wrong(ended))
        yield from (f"{kind}: {what}" for what in _wrong_files(out))
    left = {path.name for path in place.iterdir()} - {"sealed", "open", "sealed-out", "open-out"}
    if left:
        yield f"wrote {sorted(left)}"


def _jobs(run_dir: Path, out: Path, everything: bool) -> dict[str, dict[str, Any]]:
    jobs = {
        "open_run": read(run_dir, shown=True),
        "inspect": command("inspect", run_dir),
        "validate": command("validate", run_dir),
        "export": command("export", run_dir, "-o", out / "csv"),
        "table": command("export", run_dir, "--table", "steps"),
    }
    if everything:
        jobs |= {
            "json": command("inspect", "--json", run_dir),
            "pack": command("pack", run_dir, "-o", out / "packed.h5"),
            "plot": command("plot", "decay", run_dir, "-o", out / "decay.svg"),
            "norms": command("plot", "norms", run_dir, "-o", out / "norms.svg"),
            "report": command("report", run_dir, "-o", out / "report"),
            "repair": command("repair", run_dir),
        }
    return jobs


def _wrong(ended: Ended) -> Iterator[str]:
    if ended.fault:
        yield ended.fault
    elif ended.code not in (0, 1):
        yield f"exit code {ended.code}: {ended.err[:200]}"
    for printed in (ended.out, ended.err):
        if found := _STEERS.search(printed):
            yield f"prints {found[0]!a} raw"


def _wrong_files(out: Path) -> Iterator[str]:
    for path in sorted(out.rglob("*")):
        if any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in str(path.relative_to(out))):
            yield f"a file is called {path.name!a}"
        if not path.resolve().is_relative_to(out.resolve()):
            yield f"a file lies outside: {path}"
        if path.suffix == ".csv":
            yield from _wrong_table(path)
        elif path.suffix in (".html", ".svg"):
            content = path.read_text("utf-8")
            if markup := _Markup.of(content):
                yield f"{path.name} has {markup}"
            if _STEERS.search(content.replace("\t", "")):
                yield f"{path.name} has what steers a terminal"
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))


class _Markup(HTMLParser):
    """What runs a script: a browser's view of it, in which comments and text are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @classmethod
    def of(cls, content: str) -> str:
        """Return the first such thing, or nothing."""
        parser = cls()
        parser.feed(content)
        parser.close()
        return next(iter(parser.found), "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            f"<{tag} {name}={value!r}>"
            for name, value in attrs
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
        ]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and "alert(1)" in data:
            self.found.append("a script of a name's")


def _wrong_table(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for text in row:
                if _STEERS.search(text) or (_FORMULA.match(text) and not _is_number(text)):
                    yield f"{path.name} has the cell {ascii(text)[:40]}"
                    return


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write(path: Path, text: str, *, close: bool) -> None:
    """A run in which everything that has a name has this one."""
    settings = {"every": 1, "labels": {"cell": text, text: text}}
    writer = RunWriter(path, type(META)(**{**vars(META), "settings": settings, "model": {"class": text, "text": text}}))
    sites = (f"{text}/l0", text)
    gates = (text, "f", "g", "o")
    writer.set_sites({site: SiteInfo(site, text, text, text, gates=gates, curve="cell", how=text) for site in sites})
    writer.set_coverage([Coverage(sites[0], "recorded", count=3), Coverage(text, "missing", text, 1)])
    writer.add_lost(text, 2)
    for step in range(3):
        data = site_record((6, 5), seed=step, quantities=("hidden", "cell", "gates"))
        writer.add_record(Record(step, 0, 100.0, dict.fromkeys(sites, data), {f"{text}.weight": 1.0, text: np.inf}))
        writer.add_step(StepRow(step, 100.0, {"loss": 1.0 / (step + 1), text: 0.5}))
        writer.add_clip(ClipEvent(step, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, 1.0, place="update", part=text[:60]))
    writer.flush()
    if close:
        writer.close()
    else:
        writer._worker.end("leave")
        writer._worker.join()
