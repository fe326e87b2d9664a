"""Spatial differences: what a spatial run reads, and the rows that it walks.

The accumulators stay in their register from one output position to the next of the same line, and
a run adds ``W * d`` with ``d`` the difference of the inputs from those under the window before. No
state is needed, and none is read. A cluster computes every ``split``-th position of a line, so its
windows move by ``split * stride_x`` columns.

A line begins at zero, with a window that lies left of the image as a whole. Its ``lead`` first rows
are virtual: they accumulate and are not written. Behind each line of the image there are ``margin``
positions, where windows leave it: what they covered before is taken off again.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import MOST_LEAD

__all__ = ["carried", "edges", "has_room", "may_be_spatial", "ring", "spatial", "stretched"]


def may_be_spatial(entry: dict[str, int]) -> bool:
    """Whether a device runs a layer-table entry in spatial mode.

    Parameters
    ----------
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.
    """
    lead_x = entry["lead"] * entry["split"] * entry["stride_x"]
    return bool(entry["spatial"]) and lead_x <= MOST_LEAD


def ring(entry: dict[str, int]) -> int:
    """Return how many latest inputs of an entry spatial differences need."""
    return min(entry["split"] * entry["stride_x"], entry["in_width"]) * entry["channels"]


def has_room(entry: dict[str, int], config: Config) -> bool:
    """Whether a device has room for the lines of an entry with their margins, and its neighbours.

    Parameters
    ----------
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.
    config
        The device. One without a reference buffer holds no neighbours and needs none.
    """
    positions = stretched(entry)["positions"]
    items = positions * entry["channels"] * config.digits
    fits = positions <= config.positions and items <= config.item_depth
    return fits and (not config.reference_depth or ring(entry) <= config.neighbour_depth)


def edges(entry: dict[str, int]) -> tuple[int, int]:
    """Return the ``margin`` and the ``lead`` of a layer-table entry.

    Parameters
    ----------
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.
    """
    shift = entry["split"] * entry["stride_x"]
    # The last column that the window of output position 0 reaches.
    reach = (entry["kernel_width"] - 1) * entry["dilation_x"] - entry["pad_left"]
    last = (entry["out_width"] - 1) * entry["stride_x"] + reach
    margin = min(shift, max(last + 1 - entry["in_width"], 0))
    lead = max(-(-(reach - entry["stride_x"] + 1) // shift), 0)
    return margin, lead


def spatial(values: NDArray[Any], entry: dict[str, int]) -> NDArray[Any]:
    """Return the deltas of a spatial run, line by line of the image, each with its margin.

    Parameters
    ----------
    values
        Inputs of a layer-table entry without their zero point, of shape (..., positions, channels).
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.

    Returns
    -------
    array of shape (..., positions of the stretched entry, channels)
        See :func:`stretched`.
    """
    height, width, margin = entry["in_height"], entry["in_width"], entry["margin"]
    shift = entry["split"] * entry["stride_x"]
    ahead, channels = values.shape[:-2], values.shape[-1]
    image = values.reshape(*ahead, height, width, channels)
    none = [(0, 0)] * (len(ahead) + 1)
    deltas = np.pad(image, [*none, (0, margin), (0, 0)])
    deltas[..., shift:, :] -= image[..., : max(width + margin - shift, 0), :]
    return deltas.reshape(*ahead, height * (width + margin), channels)


def stretched(entry: dict[str, int]) -> dict[str, int]:
    """Return an entry as a spatial run walks it.

    Lines of the input image have their margin, and ``lead * split`` output positions are before
    each line of the output image.
    """
    before = entry["lead"] * entry["split"]
    width = entry["in_width"] + entry["margin"]
    return entry | {
        "in_width": width,
        "positions": entry["positions"] + entry["in_height"] * entry["margin"],
        "out_width": entry["out_width"] + before,
        "pad_left": entry["pad_left"] + before * entry["stride_x"],
    }


def carried(changes: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up what each row of a walk changes, along each line.

    Parameters
    ----------
    changes
        Of shape (rows, columns).
    lines
        Line of each row, ascending.
    """
    sums = np.cumsum(changes, axis=0)
    first = np.searchsorted(lines, lines)
    return sums - (sums - changes)[first]
