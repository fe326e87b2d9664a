"""Layers as a device runs them: plain convolutions and matrix products, one or more for a layer.

A device knows neither groups of channels nor transposed convolutions nor products of two
activations. The groups of a layer become parts, each with the groups that fit the columns side by
side. A transposed convolution becomes one over an image with zeros between the pixels, which cost
the array nothing. A product of two activations becomes, for each head, a part with the left operand
as items and the right one as weights, and one the other way round.

The array spends a cycle on every kernel tap, and its columns are output channels. A convolution
with one or two input channels has less than a cycle's work in most taps; one with a handful of
outputs leaves most columns idle. Both become 1x1 convolutions, exactly: a convolution is linear, so
the taps can be taken on either side of the device.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.layers import Layer, Linear, Product
from ditto.host.narrow import narrow_layer
from ditto.sim.golden import taps

__all__ = ["Lowered", "lower", "windows"]

_FEW_CHANNELS = 2
_NONZERO = 0.5  # share of deltas, about what models have
_RUN = 8  # cycles to fill and drain, about


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A part of a layer, as the device runs it.

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
    takes, makes
        The input channels of the whole layer that the part takes, and the output channels that it
        makes.
    fan
        Products that a work item is needed for.
    is_written
        Whether the weights are an activation, which is written before each run.
    is_kept
        Whether such weights are mostly the same in every step of a sample.
    """

    layer: Linear
    shape: tuple[int, ...]
    gather: NDArray[np.int64] | None = None
    scatter: NDArray[np.int64] | None = None
    takes: slice = field(default_factory=lambda: slice(None))
    makes: slice = field(default_factory=lambda: slice(None))
    fan: int
    is_written: bool = False
    is_kept: bool = False

    def deltas(self, deltas: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the deltas for the device, of shape (positions, channels), from the layer's."""
        deltas = deltas[:, self.takes]
        if self.gather is None:
            return deltas
        padded = np.append(deltas, np.zeros_like(deltas[:1]), axis=0)
        return padded[self.gather].reshape(len(self.gather), -1)

    def outputs(self, accumulators: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the part's accumulators from the device's: (output positions, outputs)."""
        if self.scatter is None:
            return accumulators
        positions, count = accumulators.shape[0], self.scatter.shape[1]
        padded = np.zeros((positions + 1, count, accumulators.shape[1] // count), np.int64)
        padded[:-1] = accumulators.reshape(positions, count, -1)
        return padded[self.scatter, np.arange(count)].sum(axis=1)


def lower(layer: Layer, shape: Sequence[Any], config: Config) -> tuple[Lowered, ...]:
    """Return the form of a layer that takes least time on a device.

    Parameters
    ----------
    layer
        The layer.
    shape
        Shape of its input tensor; for a product, of both operands.
    config
        The device.

    Returns
    -------
    tuple of Lowered
        For a product, head by head: the part whose items are the left operand, then, unless the
        right one is fixed, the part whose items are the right one.
    """
    if isinstance(layer, Product):
        return _product(layer, shape)
    layer = narrow_layer(layer, config)
    if layer.groups == 1:
        return (_lower(layer, tuple(shape), config),)
    # As many groups side by side as keep the columns busiest.
    each = layer.outputs // layer.groups
    sizes = [
        n
        for n in range(1, layer.groups + 1)
        if layer.groups % n == 0 and (n == 1 or n * each <= config.columns)
    ]

    def cycles(count: int) -> float:
        first = next(_grouped(layer, tuple(shape), config, count))
        return layer.groups // count * _cycles(first, config)

    return tuple(_grouped(layer, tuple(shape), config, min(reversed(sizes), key=cycles)))


def _cycles(part: Lowered, config: Config) -> float:
    """Estimate the cycles of a part for a choice, from the sizes alone."""
    layer = part.layer
    height, width = layer.output_image(layer.image(part.shape))
    rows = math.ceil(height * width * -(-layer.outputs // config.columns) / config.clusters)
    items = layer.taps * layer.channels * _NONZERO
    if part.gather is not None:
        items *= float((part.gather >= 0).mean())
    return rows * max(items / config.lanes, layer.taps) + _RUN


def _grouped(
    layer: Linear, shape: tuple[int, ...], config: Config, count: int
) -> Iterator[Lowered]:
    """Yield the parts with ``count`` groups in each."""
    outputs, channels = layer.outputs // layer.groups, layer.channels // layer.groups
    for first in range(0, layer.groups, count):
        makes = slice(first * outputs, (first + count) * outputs)
        takes = slice(first * channels, (first + count) * channels)
        weights = np.zeros((count * outputs, layer.taps, count * channels), np.int8)
        for i in range(count):
            rows, columns = (slice(i * n, (i + 1) * n) for n in (outputs, channels))
            weights[rows, :, columns] = layer.weights[makes][rows]
        inner = replace(
            layer,
            groups=1,
            weights=weights,
            weight_scales=layer.weight_scales[makes],
            bias=layer.bias[makes],
        )
        part = _lower(inner, (1, count * channels, *shape[2:]), config)
        yield replace(part, takes=takes, makes=makes, fan=part.fan // count)


def _lower(layer: Linear, shape: tuple[int, ...], config: Config) -> Lowered:
    """Return the form of a layer without groups."""
    same = Lowered(layer=replace(layer, axes=(-1, -1)), shape=shape, fan=layer.outputs)
    if layer.kind == "linear":
        return replace(same, shape=(layer.image(shape)[1], layer.channels))
    count, channels = layer.taps, layer.channels
    if count == 1 and not layer.is_transposed:
        return same
    point = replace(
        layer,
        kind="linear",
        kernel=(1, 1),
        stride=(1, 1),
        dilation=(1, 1),
        pads=(0, 0, 0, 0),
        spacing=(1, 1),
        tail=(0, 0),
    )
    seen = windows(layer, shape)
    if channels <= _FEW_CHANNELS and count * channels <= config.channels:
        weights = layer.weights.reshape(layer.outputs, 1, -1)
        shape = (len(seen), count * channels)
        return replace(same, layer=replace(point, weights=weights), shape=shape, gather=seen)
    few = layer.outputs * count <= config.columns and layer.stride == (1, 1)
    # Where the outputs of a transposed convolution's pixels don't overlap, none are summed.
    apart = layer.is_transposed and all(
        reach <= spacing for reach, spacing in zip(layer.reach, layer.spacing, strict=True)
    )
    if few or apart:
        spread = replace(
            point,
            weights=layer.weights.transpose(1, 0, 2).reshape(-1, 1, channels),
            weight_scales=np.tile(layer.weight_scales, count),
            bias=np.zeros(count * layer.outputs, np.int64),
        )
        shape = (math.prod(shape[2:]), channels)
        return replace(same, layer=spread, shape=shape, scatter=seen, fan=spread.outputs)
    if not layer.is_transposed:
        return same
    plain = replace(layer, spacing=(1, 1), tail=(0, 0))
    gather = _pixels(layer, shape)[:, None]
    return replace(same, layer=plain, shape=(1, channels, *layer.image(shape)), gather=gather)


def windows(layer: Linear, shape: Sequence[int]) -> NDArray[np.int64]:
    """Return the input position of every tap of every output position, or -1 where there is none.

    Returns
    -------
    array of shape (output positions, taps)
    """
    height, width = layer.image(shape)
    out_height, out_width = layer.output_image((height, width))
    # Parts of the same shape share what `taps` returns.
    tap = taps(
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
    return np.append(_pixels(layer, shape), -1)[tap] if layer.is_transposed else tap


def _pixels(layer: Linear, shape: Sequence[int]) -> NDArray[np.int64]:
    """Return the input position of every pixel that the kernel sees, or -1 for one between."""
    height, width = (1, *shape[2:])[-2:]
    pixels = np.full(layer.image(shape), -1, np.int64)
    rows = slice(0, (height - 1) * layer.spacing[0] + 1, layer.spacing[0])
    columns = slice(0, (width - 1) * layer.spacing[1] + 1, layer.spacing[1])
    pixels[rows, columns] = np.arange(height * width).reshape(height, width)
    return pixels.reshape(-1)


def _product(layer: Product, shapes: Sequence[Sequence[int]]) -> tuple[Lowered, ...]:
    """Return the parts of a product of two activations."""
    heads, rows, inner, columns = layer.sizes(shapes)
    sides = [(rows, columns), (columns, rows)][: 1 if layer.fixed else 2]
    parts = [
        Lowered(
            layer=Linear(
                name=layer.name,
                kind="linear",
                weights=np.zeros((outputs, 1, inner), np.int8),
                weight_scales=np.ones(outputs, np.float32),
                bias=np.zeros(outputs, np.int64),
                input_scale=layer.scale,
                zero_point=0,
                low=-128,
                high=127,
            ),
            shape=(positions, inner),
            fan=outputs,
            is_written=True,
            is_kept=layer.fixed,
        )
        for positions, outputs in sides
    ]
    return tuple(parts * heads)
