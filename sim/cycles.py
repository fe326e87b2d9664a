"""The cycle model: how long a run takes, exactly, from its work items.

The sequencer walks the kernel taps of each output row ahead of the lanes, one tap a cycle, and
holds at most ``list_depth`` taps of rows that are not finished. The lanes start a row when its last
tap has come through and the previous row is done, and spend a cycle on each work item of the
busiest lane.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config

__all__ = ["LIST_LATENCY", "RUN_LATENCY", "Timing", "row_lengths", "schedule"]

LIST_LATENCY = 3
"""Cycles from the walk over a row's last tap to the lanes' start with the row."""

RUN_LATENCY = 5
"""Cycles from the last work item of a run until its accumulators have been written."""


class Timing(NamedTuple):
    """Cycles of a run, and those of them in which a row was at work."""

    cycles: int
    busy: int


def row_lengths(work: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cycles of each output row from its work items, of shape (rows, lanes).

    A row takes as long as its busiest lane, and one cycle if there is nothing to do.
    """
    return np.maximum(work.max(axis=1), 1)


def schedule(lengths: NDArray[np.int64], taps: int, config: Config) -> Timing:
    """Return the timing of a run.

    Parameters
    ----------
    lengths
        Cycles of each row, in order.
    taps
        Kernel taps.
    config
        The device.
    """
    ahead = config.list_depth // taps
    walked = 0  # cycle of the row's last tap
    done: list[int] = []  # cycle of each row's last work item
    for row, length in enumerate(lengths.tolist()):
        freed = done[row - ahead] if row >= ahead else 0
        walked = max(walked, freed) + taps
        done.append(max(done[-1] if done else 0, walked + LIST_LATENCY) + length)
    return Timing(cycles=done[-1] + RUN_LATENCY, busy=int(lengths.sum()))
