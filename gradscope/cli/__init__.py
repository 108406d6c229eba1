"""The command line: each command parses, calls, prints and returns an exit code; no logic lives here.

A command is one module and one line in ``COMMANDS``. Importing this package loads none of them, so that
``gradscope report`` never pays for torch and ``gradscope record`` never pays for matplotlib.
"""

from __future__ import annotations

import gradscope
from gradscope import _mixed
from gradscope.cli.group import Entry, LazyGroup, build_main

if "open_run" not in getattr(gradscope, "__all__", ()):  # another package's __init__ stands in the place of ours
    _mixed.check(gradscope.__path__[0])

__all__ = ["COMMANDS", "Entry", "LazyGroup", "main"]

#: Command name to where it lives and what ``gradscope --help`` says of it, in the order of a user's path.
COMMANDS: dict[str, Entry] = {
    "demo": Entry("gradscope.cli.demo:demo", "Train on real data and report; nothing to prepare."),
    "record": Entry("gradscope.cli.record:record", "Run a training script, unedited, recorded."),
    "watch": Entry("gradscope.cli.watch:watch", "Follow a run in the terminal while it grows."),
    "report": Entry("gradscope.cli.report:report", "Turn runs into one page with figures, tables and verdicts."),
    "plot": Entry("gradscope.cli.plot:plot", "Draw one figure of one or more runs."),
    "sweep": Entry("gradscope.cli.sweep:sweep", "Train cell x init x length x clip threshold x seed, resumable."),
    "lab": Entry("gradscope.cli.lab:lab", "Experiments that come with gradscope: the lecture, published ones."),
    "inspect": Entry("gradscope.cli.inspect:inspect", "Show what a run holds."),
    "export": Entry("gradscope.cli.export:export", "Write a run's numbers as CSV."),
    "validate": Entry("gradscope.cli.validate:validate", "Check that a run is whole and unaltered."),
    "pack": Entry("gradscope.cli.pack:pack", "Make one file of a run, to share."),
    "repair": Entry("gradscope.cli.repair:repair", "Recover what a damaged run still holds."),
}

main = build_main(COMMANDS)
