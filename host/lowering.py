"""Other forms of a layer that compute the same on a device, in less time.

The array spends a cycle on every kernel tap, and its columns are output channels. A convolution
with one or two input channels has less than a cycle's work in most taps; one with a handful of
outputs leaves most columns idle. Both become 1x1 convolutions, exactly: a convolution is linear, so
the taps can be taken on either side of the device.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.model import Linear
from ditto.sim.golden import taps

__all__ = ["Lowered", "lower"]

_FEW_CHANNELS = 2


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A layer as the device runs it.

    Parameters
    ----------
    layer
        What the device runs.
    shape
        Shape of its input.
    gather
        Input position of every tap of every output position, or -1 outside of the image, if the
        host gathers the taps into channels; of shape (output positions, taps).
    scatter
        The same, if the host sums the taps, which are output channels of the device.
    """

    layer: Linear
    shape: tuple[int, ...]
    gather: NDArray[np.int64] | None = None
    scatter: NDArray[np.int64] | None = None

    def deltas(self, deltas: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the deltas for the device, of shape (positions, channels)."""
        if self.gather is None:
            return deltas
        padded = np.append(deltas, np.zeros_like(deltas[:1]), axis=0)
        return padded[self.gather].reshape(len(self.gather), -1)

    def outputs(self, accumulators: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the layer's accumulators from the device's: (output positions, outputs)."""
        if self.scatter is None:
            return accumulators
        positions, count = accumulators.shape[0], self.scatter.shape[1]
        padded = np.zeros((positions + 1, count, accumulators.shape[1] // count), np.int64)
        padded[:-1] = accumulators.reshape(positions, count, -1)
        return padded[self.scatter, np.arange(count)].sum(axis=1)


def lower(layer: Linear, shape: tuple[int, ...], config: Config) -> Lowered:
    """Return the form of a layer that takes least time on a device.

    Parameters
    ----------
    layer
        The layer.
    shape
        Shape of its input tensor.
    config
        The device.
    """
    same = Lowered(layer=layer, shape=shape)
    count, channels = layer.taps, layer.channels
    if count == 1:
        return same
    height, width = layer.image(shape)
    out_height, out_width = layer.output_image((height, width))
    point = replace(
        layer, kind="linear", kernel=(1, 1), stride=(1, 1), dilation=(1, 1), pads=(0, 0, 0, 0)
    )
    windows = taps(
        {
            "in_height": height,
            "in_width": width,
            "out_height": out_height,
            "out_width": out_width,
            "kernel_height": layer.kernel[0],
            "kernel_width": layer.kernel[1],
            "stride_y": layer.stride[0],
            "stride_x": layer.stride[1],
            "dilation_y": layer.dilation[0],
            "dilation_x": layer.dilation[1],
            "pad_top": layer.pads[0],
            "pad_left": layer.pads[1],
        }
    )
    if channels <= _FEW_CHANNELS and count * channels <= config.channels:
        weights = layer.weights.reshape(layer.outputs, 1, -1)
        shape = (len(windows), count * channels)
        return Lowered(layer=replace(point, weights=weights), shape=shape, gather=windows)
    if layer.outputs * count <= config.columns and layer.stride == (1, 1):
        spread = replace(
            point,
            weights=layer.weights.transpose(1, 0, 2).reshape(-1, 1, channels),
            weight_scales=np.tile(layer.weight_scales, count),
            bias=np.zeros(count * layer.outputs, np.int64),
        )
        shape = (height * width, channels)
        return Lowered(layer=spread, shape=shape, scatter=windows)
    return same
