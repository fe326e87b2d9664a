"""``ditto estimate``: size and speed of a device, without building it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditto.host.cli_common import add_config, config_of, open_console

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]

_TEXTS = {
    "luts": "LUT4",
    "carries": "carry cells (CCU2C)",
    "distributed": "distributed memories",
    "comb": "places for LUTs",
    "ffs": "flip-flops",
    "brams": "block memories",
    "dsps": "multiplier blocks",
}


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "estimate",
        parents=[common],
        help="estimate size and speed of a device, without building it",
        description="Estimate what a device takes of each ECP5 and how fast it is, from a model "
        "that was fitted to builds. Block memories are exact; everything else has its error.",
    )
    parser.set_defaults(run=_estimate)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    add_config(parser)


def _estimate(options: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from rich import box
    from rich.table import Table

    from ditto.fpga.estimate import PLACES, estimate
    from ditto.fpga.parts import PARTS
    from ditto.host.output import OutputFile

    config = config_of(options)
    with ExitStack() as stack:
        file = stack.enter_context(OutputFile(options.json)) if options.json else None
        found = estimate(config)
        if file is not None:
            facts = {"configuration": asdict(config), **found.facts()}
            file.write(json.dumps(facts, indent=1).encode() + b"\n")
    table = Table(box=box.SIMPLE, pad_edge=False)
    for head in ("", "estimate", "error", *(part.name for part in PARTS.values())):
        table.add_column(head, justify="right" if head else "left")
    for name, text in _TEXTS.items():
        shares = [
            f"{found.cells[name] / part.cells[PLACES[name]]:.0%}" if name in PLACES else ""
            for part in PARTS.values()
        ]
        margin = found.margins[name]
        error = f"{margin:.1%}" if margin else "exact"
        table.add_row(text, f"{found.cells[name]:,}", error, *shares)
    table.add_row("MHz", f"{found.fmax_mhz:.1f}", f"{found.margins['fmax_mhz']:.1%}")
    table.add_row("", "", "", *(found.verdict(part) for part in PARTS.values()))
    open_console().print(table)
    print(
        "error: the largest over builds that the model had not seen; LUTs, carry cells and "
        "distributed memories share the places for LUTs"
    )
    for part in PARTS.values():
        if excess := found.exceeded(part):
            print(f"it exceeds the {part.name}, at least by: {_list(excess)}")
        elif excess := found.exceeded(part, surely=False):
            print(f"it may exceed the {part.name}, at most by: {_list(excess)}")
    for name, (low, high) in found.outside.items():
        print(
            f"warning: {name} = {getattr(config, name)} is outside of the builds that the model "
            f"was fitted to ({low}..{high}); the error may be larger"
        )
    if options.json:
        print(f"wrote {options.json}")
    return 0


def _list(cells: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {_TEXTS[name]}" for name, count in cells.items())
