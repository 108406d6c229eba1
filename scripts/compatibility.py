"""Which versions gradscope works with: environments with the lowest or the newest of everything, and tests in each.

    scripts/test --lowest [--python 3.10] [--without-torch | --with-torch | --whole] [--record] [TEST...]
    scripts/test --newest ...

Every interpreter from 3.10 to 3.13 that is found gets two environments, which are kept: .venv-lowest-3.10-reading has
no torch, and the tests run in it that need none; .venv-lowest-3.10-recording has it. A line for each is printed, and
with --record written into docs/compatibility.md in place of an earlier one. --whole runs the whole suite, with torch,
and its lines have a block there of their own. TEST... replaces the tests that are run.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SHOWN = ("torch", "numpy", "h5py", "scipy", "pandas", "matplotlib", "seaborn", "click", "jinja2")
#: Without torch: what a reader calls. With it: adjoints known in closed form, golden values of every fused layer and
#: the launcher, which touches most private names.
TESTS = {
    "reading": (
        *(f"tests/store/test_{name}.py" for name in ("layout", "run", "sealed", "packing", "exporting", "validation")),
        *(f"tests/cli/test_{name}.py" for name in ("group", "inspect", "export", "validate", "pack", "report", "plot")),
        *(f"tests/diagnostics/test_{name}.py" for name in ("decay", "clipping", "thresholds", "bootstrap")),
        "tests/reading",
        "tests/plots/test_saving.py",
        "tests/test_package.py",
    ),
    "recording": tuple(f"tests/capture/test_{name}.py" for name in ("exact_cases", "golden", "launcher")),
    "whole": ("tests",),
}
#: The environment that each runs in.
ROOMS = {"reading": "reading", "recording": "recording", "whole": "recording"}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([\w,]+)\])?(?:>=([\w.]+))?$")


def requirements(extras: Sequence[str] = ()) -> dict[str, str]:
    """Lower bounds in setup.cfg by project, with those of some extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    for extra in extras:
        lines += config["options.extras_require"][extra].split()
    found: dict[str, str] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            raise SystemExit(f"setup.cfg: {line!r} is no lower bound.")
        name, inner, bound = match.groups()
        found |= requirements(inner.split(",")) if inner else {name: bound}
    return found


def interpreters(wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The Pythons that are there: on the path, or among pyenv's."""
    for version in wanted:
        there = shutil.which(f"python{version}")
        kept = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
        for path in filter(None, (there, *map(str, reversed(kept)))):
            # pyenv's own commands stand for versions that may not be chosen.
            if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                yield version, path
                break
        else:
            print(f"python{version}: not found here", file=sys.stderr)


def install(python: Path, bounds: str, torch: bool) -> None:
    """Fill an environment with gradscope and what it needs, at their lower bounds or at the newest."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    lowest = requirements(("test",))
    if bounds == "lowest":
        constraints = python.parents[1] / "constraints.txt"
        constraints.write_text("".join(f"{name}=={bound}\n" for name, bound in lowest.items()))
    else:
        constraints = ROOT / "constraints.txt"  # of torch the version that there is a build for the CPU of
        pip += ["--upgrade"]
    pip += ["--constraint", str(constraints)]
    if torch:
        subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)
        return
    without = [f"{name}>={bound}" for name, bound in requirements().items() if name != "torch"]
    tools = [f"{name}>={lowest[name]}" for name in ("pytest", "pytest-xdist", "hypothesis", "xarray", "h5netcdf")]
    subprocess.run([*pip, *without, *tools], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)


def versions(python: Path) -> dict[str, str]:
    """Versions of the interpreter and of what is shown of its environment."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "there = {d.name.lower(): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{'python': platform.python_version(), **{{n: there.get(n, '-') for n in {SHOWN!r}}}}}))"
    )
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(said))


def tried(python: Path, tests: Sequence[str]) -> tuple[list[str], bool]:
    """Passed, failed and skipped tests and the seconds they took; whether all went well."""
    began = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-W", "default", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout, file=sys.stderr)
    last = (done.stdout.splitlines() or [""])[-1]
    counted = {word.rstrip("s"): number for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    failed = int(counted.get("failed", 0)) + int(counted.get("error", 0))
    row = [counted.get("passed", "0"), str(failed), counted.get("skipped", "0"), f"{time.monotonic() - began:.0f}"]
    return row, done.returncode == 0


HEAD = ("python", *SHOWN, "passed", "failed", "skipped", "seconds")
WIDTHS = [max(len(name), 9) for name in HEAD]


def line(cells: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def key(row: str) -> tuple[list[int], bool]:
    """What a line is of: the Python, and whether torch was there."""
    python, torch = row.split()[:2]
    return [int(part) for part in python.split(".")[:2]], torch != "-"


def record(options: str, row: str) -> None:
    """Put a line into the page's block of these options, in place of an earlier one of the same Python."""
    text = PAGE.read_text(encoding="utf-8")
    block = re.compile(rf"(scripts/test {options}\n)(.*?)(```)", re.DOTALL)
    if not block.search(text):
        text += f"\n```text\nscripts/test {options}\n```\n"
    match = block.search(text)
    assert match is not None
    rows = [kept for kept in match[2].splitlines()[1:] if kept and key(kept) != key(row)]
    body = "\n".join([line(HEAD), *sorted([*rows, row], key=key)])
    PAGE.write_text(text[: match.start(2)] + body + "\n" + text[match.start(3) :], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--lowest", dest="bounds", action="store_const", const="lowest")
    which.add_argument("--newest", dest="bounds", action="store_const", const="newest")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: 3.10 for --lowest, else all found")
    torch = parser.add_mutually_exclusive_group()
    torch.add_argument("--without-torch", dest="parts", action="store_const", const=("reading",))
    torch.add_argument("--with-torch", dest="parts", action="store_const", const=("recording",))
    torch.add_argument("--whole", dest="parts", action="store_const", const=("whole",), help="with torch, all tests")
    parser.set_defaults(parts=("reading", "recording"))
    parser.add_argument("--record", action="store_true", help="write the lines into docs/compatibility.md")
    parser.add_argument("tests", nargs="*")
    asked = parser.parse_args()
    # The lowest versions have builds for the oldest Python only.
    wanted = asked.python or (PYTHONS[:1] if asked.bounds == "lowest" else PYTHONS)
    well = True
    print(line(HEAD), flush=True)
    for version, interpreter in interpreters(wanted):
        for part in asked.parts:
            environment = ROOT / f".venv-{asked.bounds}-{version}-{ROOMS[part]}"
            python = environment / "bin" / "python"
            if not python.exists():
                subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
            install(python, asked.bounds, torch=part != "reading")
            found, passed = tried(python, asked.tests or TESTS[part])
            row = line([*versions(python).values(), *found])
            print(row, flush=True)
            if asked.record:
                record(f"--{asked.bounds}" + " --whole" * (part == "whole"), row)
            well &= passed
    sys.exit(not well)


if __name__ == "__main__":
    main()
