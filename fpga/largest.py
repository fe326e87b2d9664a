"""Finds the largest array that fits a board and meets its clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ditto.fpga.bitstream import Bitstream, BoardBuilder, TimingError
from ditto.fpga.build import DoesNotFitError
from ditto.fpga.tools import TimeLimitError, ToolError
from ditto.hdl.config import Config

__all__ = ["largest", "ladder"]


def ladder(config: Config) -> list[Config]:
    """Return devices that differ from one in the size of the array, small ones first.

    Columns grow first, as they cost least; beyond 16 of them further clusters do.
    """
    sizes = [(1, columns) for columns in (2, 4, 6, 8, 10, 12, 14, 16)]
    sizes += [(clusters, 16) for clusters in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)]
    return [replace(config, clusters=clusters, columns=columns) for clusters, columns in sizes]


def largest(
    make: Callable[[Config, float], BoardBuilder],
    config: Config,
    seeds: Sequence[int],
    *,
    seconds: float,
) -> tuple[Config, Bitstream]:
    """Find and build the largest array of a device that fits and meets its clock.

    How much fits is found by halving, with synthesis alone. From there, the next smaller array is
    tried until the clock is met. Each gets at most half of the time that is left.

    Parameters
    ----------
    make
        Makes a builder of a device, given the most seconds for a run of a tool.
    config
        The device; its clusters and columns do not count.
    seeds
        Seeds to build with.
    seconds
        Time for all of it.

    Raises
    ------
    ToolError
        If not even the smallest array fits and meets the clock, or the time is over before.
    """
    end = time.monotonic() + seconds
    steps = ladder(config)
    low, high = 0, len(steps)  # steps[:low] fit, steps[high:] do not
    reason: ToolError | None = None
    while low < high:
        middle = (low + high) // 2
        try:
            make(steps[middle], _left(end, seconds)).utilization()
            low = middle + 1
        except (DoesNotFitError, TimeLimitError) as error:
            high, reason = middle, error
    for step in reversed(steps[:low]):
        try:
            return step, make(step, _left(end, seconds) / 2 / len(seeds)).build(seeds)
        except (DoesNotFitError, TimingError, TimeLimitError) as error:
            reason = error
    assert reason is not None
    raise reason


def _left(end: float, seconds: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeLimitError(
            f"no array was found in {seconds:g} s; give more time by --fit-seconds, or name the "
            "size of the array"
        )
    return left
