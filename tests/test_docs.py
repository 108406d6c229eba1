"""What the documents show runs, and prints what they say it prints; every link inside them leads somewhere."""

import importlib.util
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
import xarray
from click.testing import CliRunner
from torch import nn, randn

import gradscope
from gradscope.cli import main
from gradscope.lab import engines
from gradscope.lab.sweep import trials
from gradscope.store.packing import pack
from tests import pages
from tests.made_runs import make_run

#: Pages whose code is run by a test of its own, here or in test_gallery.
CHECKED_APART = {"science.md", "format.md", "gallery/README.md"}
PROGRAMS = [(page, i) for page in pages.PROGRAMS for i in range(len(pages.programs(page)))]


def test_no_other_page_shows_code():
    shown = {str(page.relative_to(pages.DOCS)) for page in pages.DOCS.rglob("*.md") if "```python" in page.read_text()}
    assert shown == {*pages.PROGRAMS, *CHECKED_APART}


@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::transformers", "ignore:::accelerate")
@pytest.mark.parametrize(("page", "number"), PROGRAMS)
def test_a_page_prints_what_it_shows(page, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = pages.programs(page)[number]
    lacking = [block.needs for block in program if block.needs and not importlib.util.find_spec(block.needs)]
    if lacking:
        pytest.skip(f"{lacking[0]} is not installed")
    assert program
    for block, printed in pages.run(program):
        assert block.shown is None or pages.same(block.shown, printed), f"{block.code}\nprints\n{printed}"


@pytest.mark.parametrize("notebook", pages.NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_it_shows(notebook, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    stored = pages.outputs(nbformat.read(pages.DOCS / notebook, as_version=4))
    found = pages.outputs(pages.executed(notebook, tmp_path))
    assert sum(bool(words) for _, _, words in stored) > 4
    for (tags, kinds, shown), (_, kinds_now, printed) in zip(stored, found, strict=True):
        assert kinds == kinds_now
        # What a training ends with is another number on another machine.
        assert "trained" in tags or pages.same(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("half-life 1.5 steps", "half-life 1.6 steps", True),
        ("half-life 1.5 steps", "half-life 1.7 steps", False),
        ("4e-08 arrives", "5e-8 arrives", True),
        ("4e-8 arrives", "4e-9 arrives", False),
        ("−0.25", "0.25", False),
        ("lstm/l0 (cell)", "lstm/l0 (hidden)", False),
    ],
)
def test_numbers_may_differ_by_one_in_the_last_digit_shown_and_words_not_at_all(shown, printed, alike):
    assert pages.same(shown, printed) is alike


def test_the_code_of_the_science_page_runs():
    (block,) = [block for block in pages.blocks("science.md") if block.language == "python"]
    names: dict = {}
    exec(block.code, names)
    assert names["fit"].verdict == "vanishing"
    assert names["fit"].half_life == pytest.approx(6.58, abs=0.01)


def test_the_code_of_the_format_page_opens_a_packed_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"lstm": nn.LSTM(2, 3)})})
    with gradscope.record(model, "run", every=1, samples=2) as recorder:
        model["encoder"]["lstm"](randn(7, 2, 2))[0].sum().backward()
        recorder.step()
    pack("run", "run.h5")
    (block,) = [block for block in pages.blocks("format.md") if block.language == "python"]
    with eval(block.code, {"xarray": xarray}) as site:
        assert site["cell"].shape == (1, 2, 7)


def test_the_commands_for_more_machines_ask_for_what_the_page_says(tmp_path, monkeypatch):
    """Without the machines: that a cluster trains what it is given is for tests/lab/test_engines.py."""
    monkeypatch.chdir(tmp_path)
    make_run("runs/ddp")
    asked = []
    for name, place in (("engine_of", engines), ("run_sweep", trials), ("run_cell", trials)):
        monkeypatch.setattr(
            place, name, lambda *given, name=name, **_: asked.append((name, *given[1:])) or nullcontext()
        )
    monkeypatch.setattr("gradscope.cli.sweep._told", lambda *_: None)
    monkeypatch.setattr(trials, "done_table", lambda *_: asked.append(("done_table",)) or [])
    text = pages.text("machines.md").replace("\\\n", "")
    commands = re.findall(r"^\$ gradscope (.*?)(?: +#.*)?$", text, re.MULTILINE)
    printed = []
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
        assert done.exit_code == 0, f"{command}: {done.output}"
        printed.append(done.stdout)
    out = Path("clip-digits")
    assert asked == [
        ("engine_of", "tcp://10.0.0.5:8786", False, (), None),
        ("run_sweep", out),
        ("engine_of", None, True, ("slurm_partition=short", "timeout_min=30"), 20),
        ("run_sweep", out),
        ("run_cell", out, 7),
        ("done_table",),
    ]
    assert "lists 25 cells" in text
    assert len(printed[2].splitlines()) == 25


def test_every_link_inside_leads_to_a_file():
    """Also where nobody builds the site, which checks headings as well."""
    for page in (*pages.DOCS.rglob("*.md"), *pages.DOCS.parent.glob("*.md")):
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)#?([^)\s]*)", prose)
        lost = [link for link, heading in links if not _leads(page.parent / link, heading)]
        assert not lost, f"{page}: {lost}"


def _leads(path: Path, heading: str) -> bool:
    """Whether there is such a file, with such a heading."""
    if not path.exists() or not heading:
        return path.exists()
    headings = re.findall("^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in headings}


def test_every_page_is_on_the_site():
    listed = set(re.findall(r"^(?:.* <)?(\w[\w/]*)>?$", pages.text("index.md"), re.MULTILINE))
    listed |= {f"api/{name}" for name in re.findall(r"^(\w+)$", pages.text("api/index.md"), re.MULTILINE)}
    there = {str(page.relative_to(pages.DOCS).with_suffix("")) for page in pages.DOCS.rglob("*.md")} - {"index"}
    assert there <= listed
    assert all(list(pages.DOCS.glob(f"{name}.*")) for name in listed)
