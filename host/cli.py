"""The ``ditto`` command."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditto.hdl.config import ConfigError
from ditto.host import (
    cli_analyze,
    cli_bench,
    cli_boards,
    cli_denoise,
    cli_estimate,
    cli_generate,
    cli_identify,
    cli_policy,
    cli_quantize,
    cli_selftest,
)
from ditto.host.cli_common import BUILD, FAILED, INTERRUPTED, TOOL, USAGE, UsageError

if TYPE_CHECKING:
    pass

# Modules that take long to import are imported where they are used: `ditto -h` shall be quick.

__all__ = ["main"]


_KNOWN = (
    ("ditto.hdl.protocol", "CommandError", FAILED),
    ("ditto.host.boards", "BoardError", USAGE),
    ("ditto.host.device", "DeviceError", FAILED),
    ("ditto.host.executor", "MismatchError", FAILED),
    ("ditto.host.model", "ModelError", FAILED),
    ("ditto.host.monitor", "LimitError", FAILED),
    ("ditto.host.output", "OutputError", FAILED),
    ("ditto.host.program", "PlacementError", FAILED),
    ("ditto.host.quantize", "QuantizeError", FAILED),
    ("ditto.host.resume", "ResumeError", USAGE),
    ("ditto.host.samplers", "SamplerError", USAGE),
    ("ditto.host.transport", "LinkError", FAILED),
    ("ditto.fpga.boards", "UnknownBoardError", USAGE),
    ("ditto.fpga.clock", "ClockError", USAGE),
    ("ditto.fpga.generate", "GenerateError", FAILED),
    ("ditto.fpga.tools", "MissingToolError", TOOL),
    ("ditto.fpga.tools", "ToolError", BUILD),
    ("ditto.sim.verilate", "MissingToolError", TOOL),
    ("ditto.sim.verilate", "BuildError", BUILD),
    ("amaranth.back.verilog", "YosysError", BUILD),
)
"""Errors with a clear message: module, name and exit status; the first that fits counts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments
        The words after the program's name; those of the process if absent.

    Returns
    -------
    int
        The exit status: 0, 1 for a device or an input, 2 for wrong usage, 3 for a failed build,
        4 for a missing tool, 130 for ^C or SIGTERM.
    """
    options = _parser().parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:
        # A command of its own: `kill` leaves as little behind as ^C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ditto").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        return options.run(options)
    except KeyboardInterrupt as error:
        if options.debug:
            raise
        warnings.simplefilter("ignore")  # Amaranth's, about the modules that it didn't come to.
        print("ditto: interrupted; nothing was written", file=sys.stderr)
        _print_notes(error)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone. Python flushes once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        status = _status(error)
        if status is None or options.debug:
            raise
        print(f"ditto: {error}", file=sys.stderr)
        _print_notes(error)
        return status


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(f"ditto: {note}", file=sys.stderr)


def _status(error: Exception) -> int | None:
    """Return the exit status for an error; None if it is a bug."""
    if isinstance(error, (UsageError, ConfigError)):
        return USAGE
    for module, name, status in _KNOWN:
        # An error's module has been imported; the others need not be.
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return status
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ditto", description="Diffusion inference by temporal differences, in hardware."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="print results only")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    for add in (
        cli_quantize.add,
        cli_analyze.add,
        cli_denoise.add,
        cli_bench.add,
        cli_estimate.add,
        cli_policy.add,
        cli_generate.add,
        cli_identify.add,
        cli_boards.add,
        cli_selftest.add,
    ):
        add(verbs, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
