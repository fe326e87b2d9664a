"""``ditto generate``: writes the Verilog of a device."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import add_config, config_of

if TYPE_CHECKING:
    pass

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "generate",
        parents=[common],
        help="write the Verilog of a device",
        description="Write the Verilog of a device for any board, and a JSON manifest beside it: "
        "parameters, ports, memory map, versions, hash. A file *.il is written as RTLIL, which "
        "Yosys maps to fewer memories.",
    )
    parser.set_defaults(run=_run)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, *.v or *.il",
    )
    parser.add_argument(
        "--target",
        choices=["any", "ecp5"],
        default="any",
        help="FPGAs it is for: with ecp5, adders use that family's carry cells (default: any)",
    )
    parser.add_argument(
        "--interface",
        choices=["bytes", "axi"],
        default="bytes",
        help="a byte stream each way, or AXI4-Lite registers and AXI4-Streams (default: bytes)",
    )
    add_config(parser)


def _run(options: argparse.Namespace) -> int:
    config = config_of(options)
    from ditto.fpga.ecp5 import Ecp5
    from ditto.fpga.generate import write

    platform = Ecp5() if options.target == "ecp5" else None
    verilog, manifest = write(config, options.output, platform, axi=options.interface == "axi")
    print(f"wrote {verilog} and {manifest}")
    return 0
