"""What recording costs, as a ratio to the plain training step: one process, one thread, interleaved, medians.

And, with ``--reading``, what reading what was recorded takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from scripts.benchmark.holding import COLUMNS as HOLDING_COLUMNS
from scripts.benchmark.holding import holding_row, measure_holding
from scripts.benchmark.memory import memory, peak, peak_table, peaks
from scripts.benchmark.models import CONFIGS, KINDS, WRITTEN
from scripts.benchmark.peers import COLUMNS, measure, peers_row
from scripts.benchmark.reading import COLUMNS as READING_COLUMNS
from scripts.benchmark.reading import ROWS, measure_reading, reading_row
from scripts.benchmark.tables import begin_table, processor
from scripts.benchmark.worth import COLUMNS as WORTH_COLUMNS
from scripts.benchmark.worth import SHORT_CUTS, measure_worth, worth_row
from scripts.benchmark.written import (
    AUTO_COLUMNS,
    FOR_AUTO,
    WRITTEN_COLUMNS,
    auto_row,
    measure_auto,
    measure_written,
    traced,
    written_row,
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--written", choices=WRITTEN, nargs="*", help="measure recorded steps; all rows without names")
    parser.add_argument("--auto", choices=WRITTEN, nargs="*", help="measure trainings with every='auto'")
    parser.add_argument("--worth", choices=SHORT_CUTS, nargs="*", help="measure what each short cut of recording saves")
    parser.add_argument("--peers", choices=KINDS, nargs="*", help="measure what one would use instead")
    parser.add_argument("--memory", type=int, nargs="?", const=10_000, help="over so many recorded steps")
    parser.add_argument("--holding", type=float, nargs="?", const=200.0, help="with so many MB of records")
    commands = sorted({row.name for row in ROWS})
    parser.add_argument("--reading", choices=commands, nargs="*", help="measure what reads large runs; not by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of the runs of --reading, times their full size")
    parser.add_argument("--runs", type=Path, help="where those are kept, and taken from; a temporary directory")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--config", choices=CONFIGS, help="other sizes than a row's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --written, --auto and --peers")
    parser.add_argument("--json", type=Path, help="write every measured value here")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--trace", nargs=2, metavar=("WAY", "CONFIG"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak or options.trace:
        print(json.dumps(peak(*options.peak) if options.peak else traced(*options.trace)))
        return
    parts = (
        options.written,
        options.auto,
        options.worth,
        options.peers,
        options.memory,
        options.holding,
        options.reading,
    )
    if all(part is None for part in parts):
        options.written, options.auto, options.worth, options.peers = [], [], [], []
        options.memory, options.holding = 10_000, 200.0
    on = f"{torch.cuda.get_device_name()} beside " if options.device == "cuda" else ""
    print(f"{on}{processor()}, torch {torch.__version__}, Python {platform.python_version()}, one thread", flush=True)
    everything: dict[str, Any] = {}
    if options.written is not None:
        begin_table(WRITTEN_COLUMNS)
        for way in options.written or WRITTEN:
            found = everything[way] = measure_written(
                way, options.repetitions, config=options.config, device=options.device
            )
            print(written_row(way, found, options.config), flush=True)
    if options.auto is not None:
        begin_table(AUTO_COLUMNS)
        for way in options.auto or FOR_AUTO:
            auto = everything[f"auto {way}"] = measure_auto(
                way, options.repetitions, config=options.config, device=options.device
            )
            print(auto_row(way, auto, options.config), flush=True)
    if options.worth is not None:
        begin_table(WORTH_COLUMNS)
        for name in options.worth or SHORT_CUTS:
            for way in SHORT_CUTS[name].ways:
                worth = everything[f"worth {name}, {way}"] = measure_worth(
                    name, way, options.repetitions, options.config
                )
                print(worth_row(name, way, worth, options.config), flush=True)
    if options.peers is not None:
        begin_table(("layer", "(B, T, H, I)", "plain step", *COLUMNS.values(), "repetitions"))
        config = options.config or "c1"
        for kind in options.peers or KINDS:
            found = everything[kind] = measure(kind, config, options.repetitions, options.device)
            print(peers_row(kind, config, found), flush=True)
    if options.memory is not None:
        print(flush=True)
        for how in ("fixed", "lengths", "stepped"):
            grown = everything[f"memory {how}"] = memory(options.memory, how=how)
            print(f"Memory over {grown['steps']} recorded steps, {how}: {grown['growth_mb']:+.1f} MB", flush=True)
        everything["peaks"] = peaks()
        print("\n" + peak_table(everything["peaks"]))
    if options.holding is not None:
        begin_table(HOLDING_COLUMNS)
        for tensors in (False, True):
            held = everything[f"holding {'tensors' if tensors else 'norms'}"] = measure_holding(
                options.holding, tensors
            )
            print(holding_row(held), flush=True)
    if options.reading is not None:
        begin_table(READING_COLUMNS)
        rows = [row for row in ROWS if row.name in (options.reading or commands)]
        for row, costs, result in measure_reading(rows, options.scale, options.runs):
            everything[f"reading {row.name} {row.made}"] = {"cpu": costs.cpu, "mib": costs.mib, "result": result}
            print(reading_row(row, costs, result), flush=True)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    sys.exit(main())
