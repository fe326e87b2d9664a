"""Options for policies, memory and monitoring, and the verb ``policies``."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditto.host.program import Program
    from ditto.host.session import OnStep
    from ditto.sim.memory import Memory

__all__ = ["add_memory", "add_policy", "memory_of", "monitored"]

# As in cli.py, what takes long to import is imported where it is used.


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that chooses modes, and of what is told about it."""
    add = parser.add_argument
    add(
        "--policy",
        choices=("dense", "temporal", "defo", "adaptive", "oracle"),
        default="temporal",
        help="what each layer's step starts from: zero (dense), the step before (temporal), the "
        "one that took fewer cycles in the first two steps (defo), the one that the latest digits "
        "speak for (adaptive), the best in hindsight (oracle); all give the same image (default: "
        "temporal)",
    )
    add(
        "--monitor",
        type=Path,
        metavar="JSONL",
        help="write a line for each layer of each step: mode, counts, cycles, stalls",
    )
    add(
        "--max-wide",
        type=_percent,
        metavar="PERCENT",
        help="stop if more of a step's temporal deltas are wide",
    )
    add_memory(parser)


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the options of the memory model."""
    add = parser.add_argument
    add(
        "--memory",
        choices=("chip", "sdram-state", "sdram"),
        default="chip",
        help="what to count waits for: nothing, all is on chip (default); the state between steps "
        "in one 16-bit SDRAM; inputs, weights and outputs in it, too",
    )
    add(
        "--bandwidth",
        type=_positive,
        metavar="BYTES",
        help="bytes that the SDRAM moves in a cycle (default: 2)",
    )


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in 0..100")
    return value / 100


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def memory_of(options: argparse.Namespace) -> "Memory":
    """Return the memory that the options describe."""
    from ditto.sim.memory import MEMORIES

    memory = MEMORIES[options.memory]
    return memory if options.bandwidth is None else memory.with_bandwidth(options.bandwidth)


def monitored(
    stack: ExitStack, options: argparse.Namespace, program: "Program", then: "OnStep"
) -> "OnStep":
    """Return what is called after each step: what the options ask for, and something else."""
    from ditto.host.monitor import Monitor
    from ditto.host.output import OutputError

    if options.monitor is None and options.max_wide is None:
        return then
    lines = None
    if options.monitor is not None:
        try:
            lines = stack.enter_context(options.monitor.open("w", encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"cannot write {options.monitor}: {error.strerror}") from error
    monitor = Monitor(program, lines=lines, max_wide=options.max_wide)

    def both(sample: int, step: int, timestep: int, runs: Any) -> None:
        then(sample, step, timestep, runs)
        monitor(sample, step, timestep, runs)

    return both
