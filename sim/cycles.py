"""The cycle model: how long a run takes, exactly, from its work items.

A cluster's sequencer walks the kernel taps of its output rows, one tap a cycle, and holds at most
``list_depth`` taps of rows that are not finished, of which each counts as two at least. It has
walked that far before the run begins. The lanes start a row when its last tap has come through and
the previous row is done.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config

__all__ = ["LIST_LATENCY", "RUN_LATENCY", "START_LATENCY", "Timing", "row_lengths", "schedule"]

LIST_LATENCY = 7
"""Cycles from the walk over a row's last tap to the lanes' start with the row."""

START_LATENCY = 1
"""Cycles from the start of a run to the first work item."""

RUN_LATENCY = 7
"""Cycles from the last work item of a run until its accumulators have been written."""


class Timing(NamedTuple):
    """Cycles of a cluster's run, and those of them in which a row was at work."""

    cycles: int
    busy: int


def row_lengths(
    low: NDArray[np.int64], high: NDArray[np.int64], config: Config
) -> NDArray[np.int64]:
    """Return the cycles of output rows with so many low and high items.

    Of two lanes, the second takes the high items and then low ones off the first, until both have
    as many. A row takes one cycle if there is nothing to do.
    """
    if config.lanes == 1:
        return np.maximum(low + high, 1)
    helped = np.maximum(low - high, 0) // 2
    # The second is through no later than the first if it had helped.
    return np.maximum(np.maximum(low - helped, high), 1)


def schedule(lengths: Sequence[int], gaps: Sequence[int], taps: int, config: Config) -> Timing:
    """Return the timing of a cluster's run.

    Parameters
    ----------
    lengths
        Cycles of each of its rows, in order.
    gaps
        Output rows of the image without a position of the cluster, before each of its rows.
    taps
        Kernel taps.
    config
        The device.
    """
    if not len(lengths):
        return Timing(0, 0)
    ahead = config.rows_ahead(taps)
    walked = 0  # cycle of the row's last tap
    ended = START_LATENCY
    done: list[int] = []  # cycle of each row's last work item
    for row, (length, gap) in enumerate(zip(lengths, gaps, strict=True)):
        if row >= ahead:
            # Up to here the sequencer had walked before the run.
            skipped = gap if row > ahead else 0
            walked = max(walked + skipped, done[row - ahead]) + taps
            ended = max(ended, walked + LIST_LATENCY)
        ended += length
        done.append(ended)
    return Timing(cycles=ended + RUN_LATENCY, busy=sum(lengths))
