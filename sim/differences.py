"""Differences of a tile's inputs, as the device takes and counts them, in NumPy.

This is the specification of :class:`ditto.hdl.differences.Differencer`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.sim.spatial import ring

__all__ = ["Differences", "room", "take"]

Array = NDArray[np.int64]


class Differences(NamedTuple):
    """What became of the first inputs of a tile."""

    #: Of the tile's mode, one after the other; in a spatial tile with those behind each line.
    deltas: Array
    #: What the accumulators will stand for, in place of the references.
    references: Array
    #: Of the three modes; 0 where the mode is not possible.
    dense: Array
    temporal: Array
    spatial: Array
    #: Of the zeros behind the lines, which are counted in any mode.
    behind: Array


def room(entry: dict[str, int], config: Config) -> int:
    """Return how many inputs of an entry find room: all, unless the memories are too small."""
    channels, width = entry["channels"], entry["in_width"]
    count = entry["in_height"] * width * channels
    count = min(count, max(config.reference_depth - entry["reference_base"], 0))
    if entry["spatial"] and ring(entry) > config.neighbour_depth:
        count = min(count, config.neighbour_depth)
    return count


def take(
    inputs: NDArray[Any],
    references: Array,
    entry: dict[str, int],
    mode: Mode,
    *,
    has_state: bool,
    bits: int,
) -> Differences:
    """Take the differences of the first inputs of a tile.

    Parameters
    ----------
    inputs, references
        As many of each, in order: position by position, channels in order.
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.
    mode
        Of the tile: dense, temporal or spatial.
    has_state
        Whether the entry's accumulators stand for the references.
    bits
        Width of an input.
    """
    half = 1 << bits - 1
    mask = 2 * half - 1
    q = (np.asarray(inputs, np.int64) + half & mask) - half
    zero_point = (entry["zero_point"] + half & mask) - half
    channels, width, margin = entry["channels"], entry["in_width"], entry["margin"]
    step = entry["split"] * entry["stride_x"] * channels
    line = width * channels
    place = np.arange(len(q)) % line

    dense = q - zero_point
    change = q - references
    applies = np.abs(change) > entry["threshold"]
    temporal = np.where(applies, change, 0)
    spatial = dense.copy()
    inner = place >= step
    spatial[inner] -= dense[np.flatnonzero(inner) - step]
    nears = (place >= line - step) & (place < line - step + margin * channels)
    behind = -dense[nears]

    none = np.empty(0, np.int64)
    deltas = {Mode.DENSE: dense, Mode.TEMPORAL: temporal, Mode.SPATIAL: spatial}[mode]
    if mode is Mode.SPATIAL and margin:
        parts: list[Array] = []
        for first in range(0, len(q), line):
            parts.append(spatial[first : first + line])
            if first + line <= len(q):
                # What is taken off lies up to `step` before; further to the left there is nothing.
                padded = np.concatenate([np.zeros(step, np.int64), dense[first : first + line]])
                parts.append(-padded[line:][: margin * channels])
        deltas = np.concatenate([none, *parts])
    if mode is Mode.TEMPORAL:
        q = np.where(applies, q, references)
    return Differences(
        deltas,
        q,
        dense,
        temporal if has_state else none,
        spatial if entry["spatial"] else none,
        behind if entry["spatial"] else none,
    )
