"""Weights that are wider than a device takes: what it takes of them, and the rest, on the host.

A device has weights of 8 bits or less, and where two products share a multiplier block, not the
least of them. A quantizer with zero points makes weights of up to 9 bits, and so does an activation
that is a weight. What is left out is nearly always one number for all weights of an output, whose
product with the inputs is a multiple of their sum; elsewhere a few weights differ by 1. So the host
adds it, exactly and for little.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.layers import Linear, Quantization

__all__ = ["Rest", "narrow_activation", "narrow_layer", "times"]


def narrow_layer(layer: Linear, config: Config) -> Linear:
    """Return a layer with weights that a device takes, as near as can be."""
    low, high = config.min_weight, (1 << config.weight_bits - 1) - 1
    weights = layer.weights.astype(np.int64)
    least, most = weights.min(axis=(1, 2)), weights.max(axis=(1, 2))
    if least.min() >= low and most.max() <= high:
        return layer
    middle = (least + most + 1) // 2
    shift = np.where(most > high, most - high, np.where(least < low, least - low, 0))
    shift = np.where(most - least > high - low, middle, shift)
    narrow = np.clip(weights - shift[:, None, None], low, high)
    return replace(layer, weights=narrow.astype(np.int8))


class Rest:
    """What a device's weights leave out of a layer.

    Parameters
    ----------
    layer
        The layer.
    narrow
        The same with the weights that the device has.
    windows
        Input position of every tap of every output position, or -1.
    """

    def __init__(self, layer: Linear, narrow: Linear, windows: NDArray[np.int64]) -> None:
        rest = layer.weights.astype(np.int64) - narrow.weights
        self._layer = layer
        self._windows = windows
        self._common = np.array([_common(own) for own in rest])
        other = rest - self._common[:, None, None]
        self._outputs, self._taps, self._channels = np.nonzero(other)
        self._others = other[self._outputs, self._taps, self._channels]
        self._channels += self._outputs // (layer.outputs // layer.groups) * rest.shape[2]

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what is to be added to the sums: (output positions, outputs).

        Parameters
        ----------
        values
            ``q - zero_point``, of shape (positions, channels).
        """
        groups = self._layer.groups
        padded = np.append(values, np.zeros_like(values[:1]), axis=0)
        of_group = padded.reshape(len(padded), groups, -1).sum(axis=2)[self._windows].sum(axis=1)
        result = of_group.repeat(self._layer.outputs // groups, axis=1) * self._common
        seen = padded[self._windows[:, self._taps], self._channels] * self._others
        np.add.at(result.T, self._outputs, seen.T)
        return result


def narrow_activation(
    operand: NDArray[np.int64], given: Quantization, config: Config
) -> NDArray[np.int64]:
    """Return the weights that stand for a quantized operand, as near as can be.

    They are the operand around the middle of its range.
    """
    return np.maximum(operand - (given.low + given.high + 1) // 2, config.min_weight)


def times(deltas: NDArray[np.int64], rest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``deltas @ rest`` where nearly all elements of ``rest`` are the same number."""
    common = _common(rest)
    other = rest - common
    used = other.any(axis=1)
    return deltas.sum(axis=1, keepdims=True) * common + deltas[:, used] @ other[used]


def _common(values: NDArray[np.int64]) -> int:
    """Return the most frequent of some values."""
    if (values == values.flat[0]).all():
        return int(values.flat[0])
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])
