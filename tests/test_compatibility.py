"""The lower bounds in setup.cfg are what docs/compatibility.md measured."""

from __future__ import annotations

import re

import pytest

from scripts import compatibility

PAGE = compatibility.PAGE.read_text(encoding="utf-8")


def rows(bounds: str) -> list[dict[str, str]]:
    block = re.search(rf"scripts/test --{bounds}\n(.*?)```", PAGE, re.DOTALL)[1]
    return [dict(zip(compatibility.HEAD, row.split(), strict=True)) for row in block.splitlines()[1:]]


def test_every_bound_of_a_requirement_was_installed_and_passed():
    bounds = compatibility.requirements()
    (recording,) = [row for row in rows("lowest") if row["torch"] != "-"]
    shown = {name: recording[name].split("+")[0] for name in compatibility.SHOWN}
    assert shown.keys() <= bounds.keys()
    for name, version in shown.items():
        assert version == bounds[name] or version.removesuffix(".0") == bounds[name], name


@pytest.mark.parametrize("bounds", ["lowest", "newest"])
def test_no_test_failed(bounds):
    assert rows(bounds)
    assert {row["failed"] for row in rows(bounds)} == {"0"}
    assert all(int(row["passed"]) > 100 for row in rows(bounds))


def test_bounds_are_read_with_those_of_the_extras_that_an_extra_names():
    assert compatibility.requirements(("test",)).keys() > {"torch", "pytest", "lightning", "wandb", "distributed"}


def test_a_measured_line_replaces_the_one_of_the_same_python(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n```text\nscripts/test --newest\n```\nafter\n")
    monkeypatch.setattr(compatibility, "PAGE", page)
    lines = [compatibility.line([python, torch, *["1.0"] * (len(compatibility.HEAD) - 2)])
             for python, torch in (("3.12.1", "2.13.0"), ("3.9.1", "-"), ("3.12.1", "-"), ("3.12.2", "-"))]  # fmt: skip
    for line in lines:
        compatibility.record("--newest", line)
    kept = [lines[1], lines[3], lines[0]]
    block = "\n".join(["scripts/test --newest", compatibility.line(compatibility.HEAD), *kept])
    assert page.read_text() == f"before\n```text\n{block}\n```\nafter\n"
    compatibility.record("--newest --whole", lines[0])
    added = "\n".join(["scripts/test --newest --whole", compatibility.line(compatibility.HEAD), lines[0]])
    assert page.read_text() == f"before\n```text\n{block}\n```\nafter\n\n```text\n{added}\n```\n"
