"""``ditto selftest``: tests a device, and says what is wrong with it."""

import argparse
from typing import Any

from ditto.host.cli_common import add_board, add_config, natural, open_board, open_console

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "selftest",
        parents=[common],
        help="test a device: link, memories, array and counters",
        description="Measure the link to a device, and compare its memories, its array on random "
        "layers in both modes and its counters with the golden model. The exit status is 1 if "
        "anything is wrong.",
    )
    parser.set_defaults(run=_selftest)
    add_board(parser)
    parser.add_argument(
        "--rounds", type=natural, default=8, metavar="N", help="random layers (default: 8)"
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="seed of all values (default: 0)"
    )
    add_config(parser)


def _selftest(options: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table

    from ditto.host.selftest import selftest

    device = open_board(options)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("test")
    table.add_column("result")
    table.add_column("", overflow="fold")
    failed = 0
    try:
        for check in selftest(device, seed=options.seed, rounds=options.rounds):
            failed += not check.passed
            table.add_row(check.name, "passed" if check.passed else "FAILED", check.detail)
    finally:
        if table.row_count:
            open_console().print(table)
        close = getattr(device, "close", None)
        if close is not None:
            close()
    total = table.row_count
    if failed:
        print(f"{failed} of {total} tests failed: the device on {options.board} is defective")
        return 1
    print(f"all {total} tests passed on {options.board}")
    return 0
