"""``ditto boards``, ``ditto build`` and ``ditto program``: from a board's name to a bitstream."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import (
    UsageError,
    add_config,
    config_of,
    frequency,
    natural,
    open_console,
    positive,
    values,
)

if TYPE_CHECKING:
    from ditto.fpga.bitstream import Bitstream

__all__ = ["add"]

_LOADER = "openFPGALoader"


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    _add_boards(verbs, common)
    _add_build(verbs, common)
    _add_program(verbs, common)


def _add_boards(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "boards",
        parents=[common],
        help="show the boards to build for, and how far each is proven",
        description="Show the boards to build for: what fits, and how far it is proven.",
    )
    parser.set_defaults(run=_boards)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page in Markdown")


def _add_build(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "build",
        parents=[common],
        help="build a device for a board: bitstream, report and manifest",
        description="Synthesize, place and route a device for a board with the tools of the extra "
        "fpga, and write top.bit (or .bin, .fs), report.html and manifest.json. For boards whose "
        "tools are the vendor's, write Verilog and a project instead. What was built before is "
        "kept and not built again.",
    )
    parser.set_defaults(run=_build)
    add = parser.add_argument
    add("board", metavar="BOARD", help="name of a board, see ditto boards")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add(
        "--seeds",
        type=values(natural),
        default=[1, 2, 3],
        metavar="N,...",
        help="seeds of place and route; the fastest counts (default: 1,2,3)",
    )
    add(
        "--frequency",
        type=frequency,
        metavar="MHZ",
        help="frequency of the device's clock (default: the board's)",
    )
    add("--baud", type=positive, metavar="N", help="bits per second (default: the board's)")
    add(
        "--timeout",
        type=frequency,
        default=3600.0,
        metavar="S",
        help="most seconds for each run of a tool (default: 3600)",
    )
    add(
        "--fit",
        action="store_true",
        help="find the most clusters and columns that fit and meet the clock",
    )
    add(
        "--fit-seconds",
        type=frequency,
        default=7200.0,
        metavar="S",
        help="most seconds for --fit (default: 7200)",
    )
    add_config(parser, "the board")


def _add_program(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "program",
        parents=[common],
        help="load a bitstream into a board",
        description=f"Load a bitstream into a board with {_LOADER}, which must be installed.",
    )
    parser.set_defaults(run=_program)
    parser.add_argument("board", metavar="BOARD", help="name of a board, see ditto boards")
    parser.add_argument("file", type=Path, metavar="FILE", help="bitstream of ditto build")


def _boards(options: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table

    from ditto.fpga.boards import BOARDS
    from ditto.fpga.page import page
    from ditto.fpga.proofs import Proof, proofs_of
    from ditto.host.output import OutputFile

    if options.page:
        with OutputFile(options.page) as output:
            output.write(page().encode())
        print(f"wrote {options.page}")
        return 0
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("name", "FPGA"):
        table.add_column(head, no_wrap=True)
    for head in ("MHz", "Mbit/s", "array"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("built")
    table.add_column("netlist-\nsimulated")
    for name, board in BOARDS.items():
        config = board.config
        proven = proofs_of(name)
        table.add_row(
            name,
            board.family.name,
            f"{board.frequency / 1e6:g}",
            f"{board.baud / 1e6:g}",
            f"{config.clusters} x {config.lanes} x {config.columns}",
            "yes" if Proof.BUILT in proven else "earlier" if Proof.EARLIER in proven else "-",
            "yes" if Proof.NETLIST in proven else "-",
        )
    open_console().print(table)
    print("array: clusters x lanes x columns of the default device")
    print("built: placed and routed, the clock met; earlier: before the gateware last changed")
    print("The gateware of all is simulated; none ran on hardware yet.")
    return 0


def _build(options: argparse.Namespace) -> int:
    from ditto.fpga.boards import board_of
    from ditto.fpga.tools import ToolError

    board = board_of(options.board)
    config = config_of(options, board.config)
    given = [name for name in ("clusters", "columns") if getattr(options, name) is not None]
    if options.fit and given:
        raise UsageError(f"--fit chooses the size of the array; leave out --{given[0]}")
    frequency = round(options.frequency * 1e6) if options.frequency else None
    folder: Path = options.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(f"cannot write {folder}: {error}") from error
    if board.family.is_vendor:
        return _write_project(options, config, frequency)

    from ditto.fpga.bitstream import BoardBuilder
    from ditto.fpga.largest import largest

    def make(device: Any, timeout: float) -> BoardBuilder:
        return BoardBuilder(
            options.board, device, frequency=frequency, baud=options.baud, timeout=timeout
        )

    if options.fit:
        config, bitstream = largest(make, config, options.seeds, seconds=options.fit_seconds)
        print(f"largest array: {config.clusters} x {config.lanes} x {config.columns}")
    else:
        bitstream = make(config, options.timeout).build(options.seeds)
    _write(folder, bitstream)
    return 0


def _write(folder: Path, bitstream: "Bitstream") -> None:
    """Write what was built, and say what it is."""
    from contextlib import ExitStack

    from ditto.fpga.report import render
    from ditto.host.output import OutputFile

    facts = bitstream.facts
    contents = {
        f"top{bitstream.suffix}": bitstream.data,
        "report.html": render(bitstream).encode(),
        "manifest.json": json.dumps(facts, indent=2).encode() + b"\n",
    }
    with ExitStack() as stack:
        outputs = [stack.enter_context(OutputFile(folder / name)) for name in contents]
        for output, data in zip(outputs, contents.values(), strict=True):
            output.write(data)
    for run in bitstream.runs:
        reached = ", ".join(f"{clock} {mhz:.1f} MHz" for clock, mhz in run.clocks.items())
        print(f"seed {run.seed}: {reached} of {facts['clock_hz'] / 1e6:g}")
    for seed in facts["failed_seeds"]:
        print(f"seed {seed}: not routed")
    for cell, numbers in facts["utilization"].items():
        print(f"  {cell:18}{numbers['used']:8} of {numbers['available']}")
    print(f"wrote {', '.join(str(folder / name) for name in contents)}")


def _write_project(options: argparse.Namespace, config: Any, frequency: int | None) -> int:
    """Write the project of a board whose tools are the vendor's."""
    from ditto.fpga.project import write

    folder = options.output
    files = write(options.board, config, folder, frequency=frequency, baud=options.baud)
    print(f"wrote {', '.join(str(path) for path in files)}")
    print("next, with the vendor's tools on the PATH:")
    print(f"  cd {folder} && sh build_top.sh")
    if folder / "overlay.tcl" in files:
        print(f"or, for PYNQ:\n  cd {folder} && vivado -mode batch -source overlay.tcl")
    return 0


def _program(options: argparse.Namespace) -> int:
    from ditto.fpga.boards import board_of
    from ditto.fpga.tools import MissingToolError, ToolError

    board = board_of(options.board)
    if not board.loader:
        raise ToolError(f"{_LOADER} does not know the {board.title}. {board.note}".strip())
    if not options.file.is_file():
        raise ToolError(f"there is no file {options.file}; make it by: ditto build {options.board}")
    path = shutil.which(_LOADER)
    if path is None:
        raise MissingToolError(
            f"{_LOADER} is not on the PATH; install it from your system's packages or from "
            "https://github.com/trabucayre/openFPGALoader"
        )
    words = [path, *board.loader, str(options.file)]
    try:
        status = subprocess.run(words, timeout=600).returncode
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"{_LOADER} does not work: {error}") from error
    if status:
        raise ToolError(
            f"{_LOADER} failed with status {status} (is the {board.title} connected, and may you "
            "use it?)"
        )
    print(f"loaded {options.file} into {board.title}")
    return 0
