"""Spatial differences: the specification of a mode that the gateware does not have yet.

The accumulators stay in their register from one output position to the next of the same line, and
a run adds ``W * d`` with ``d`` the difference of the inputs from those under the window before. A
line begins with a dense position, so no state is needed, and none is left. Where a window reaches
beyond the image, there are zeros to take differences from.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["spatial"]


def spatial(values: NDArray[Any], entry: dict[str, int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the deltas of a spatial run, and which of them each output position reads.

    Parameters
    ----------
    values
        Inputs of a layer-table entry without their zero point, of shape (..., positions, channels).
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.

    Returns
    -------
    deltas : array of shape (..., count, channels)
        The inputs themselves, for the first position of each line; as many differences; a zero.
    index : array of shape (output positions, taps)
        The deltas that each output position reads. A cluster computes every ``split``-th position
        of an image's line, so the first ``split`` positions of a line are dense.
    """
    height, width = entry["in_height"], entry["in_width"]
    out_height, out_width = entry["out_height"], entry["out_width"]
    kernel_height, kernel_width = entry["kernel_height"], entry["kernel_width"]
    shift = entry["split"] * entry["stride_x"]

    x = np.arange(out_width)[:, None] * entry["stride_x"] - entry["pad_left"]
    x = x + np.arange(kernel_width)[None, :] * entry["dilation_x"]
    y = np.arange(out_height)[:, None] * entry["stride_y"] - entry["pad_top"]
    y = y + np.arange(kernel_height)[None, :] * entry["dilation_y"]
    left, right = entry["pad_left"], max(int(x.max()) + 1 - width, 0)
    wide = left + width + right

    lead = values.shape[:-2]
    channels = values.shape[-1]
    image = values.reshape(*lead, height, width, channels)
    margins = [(0, 0)] * len(lead) + [(0, 0), (left, right), (0, 0)]
    padded = np.pad(image, margins)
    changes = padded.copy()
    if shift < wide:
        changes[..., shift:, :] -= padded[..., :-shift, :]
    flat = (*lead, height * wide, channels)
    zero = np.zeros((*lead, 1, channels), values.dtype)
    deltas = np.concatenate([padded.reshape(flat), changes.reshape(flat), zero], axis=-2)

    inside = ((y >= 0) & (y < height))[:, None, :, None]
    at = y[:, None, :, None] * wide + (x + left)[None, :, None, :]
    first = np.arange(out_width) < entry["split"]
    at = np.where(first[None, :, None, None], at, at + height * wide)
    index = np.where(inside, at, 2 * height * wide)
    return deltas, index.reshape(out_height * out_width, kernel_height * kernel_width)
