"""``ditto identify``: shows what device is on a board."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import add_board, add_config, open_board

if TYPE_CHECKING:
    pass

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "identify",
        parents=[common],
        help="show what device is on a board",
        description="Open a device and show its parameters and memories.",
    )
    parser.set_defaults(run=_run)
    add_board(parser)
    add_config(parser)


def _run(options: argparse.Namespace) -> int:
    from ditto.hdl.protocol import NO_BUILD, VERSION

    device = open_board(options)
    config = device.config
    close = getattr(device, "close", None)
    if close is not None:
        close()
    print(f"Ditto on board {options.board}, protocol version {VERSION}")
    print(f"configuration {config.digest.hex()}, {config.multipliers} multipliers")
    build = getattr(device, "build", NO_BUILD)
    if build != NO_BUILD:
        print(f"build {build.hex()}")
    for name, value in asdict(config).items():
        print(f"  {name:18}{value:8}")
    print("memories")
    for memory in config.memories:
        size = f"{memory.count} x {memory.depth} x {memory.width} bits"
        print(f"  {memory.name:18}{size:>24}{memory.bits / 8192:10.1f} KiB")
    return 0
