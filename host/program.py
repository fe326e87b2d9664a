"""Placement of a model's layers on a device: layer table, weights, biases, accumulators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from amaranth.lib.data import Layout

from ditto.hdl.config import Config, ConfigError
from ditto.hdl.protocol import CommandHeader, LayerEntry, size
from ditto.host.device import CRC_BYTES, Accelerator
from ditto.host.model import Linear

__all__ = ["Band", "Placement", "PlacementError", "Program", "suggest"]


class PlacementError(Exception):
    """A layer or a model that does not fit a device."""


class Band(NamedTuple):
    """Some output rows of a layer, with the input rows that they need: one layer-table entry."""

    #: Number of the layer-table entry.
    number: int
    #: Fields of the entry.
    entry: dict[str, int]
    #: Input positions, from the first to before the last.
    inputs: slice
    #: Output positions of the layer that this band computes.
    outputs: slice


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a layer is on a device.

    Parameters
    ----------
    layer
        The layer.
    shape
        Shape of its input tensor.
    tiles
        Column tiles: ``ceil(output channels / columns)``.
    bands
        The entries that compute it, in order.
    """

    layer: Linear
    shape: tuple[int, ...]
    tiles: int
    bands: tuple[Band, ...]


class _Cut(NamedTuple):
    """Output rows of a band and the input rows they touch."""

    first_out: int
    end_out: int
    first_in: int
    end_in: int
    pad_top: int


class Program:
    """A model's layers, placed on a device.

    Parameters
    ----------
    layers
        The layers.
    shapes
        Shape of the input tensor of each.
    config
        The device.

    Attributes
    ----------
    layers : tuple of Placement
        Where each layer is.
    weight_rows, accumulator_rows, entries : int
        What the program takes of each memory.

    Raises
    ------
    PlacementError
        If the layers do not fit the device, with what is needed of every memory.
    """

    def __init__(
        self, layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config
    ) -> None:
        self.config = config
        _check(layers, shapes, config)
        self.weight_rows = self.accumulator_rows = self.entries = 0
        placements = []
        # Biases lie together at the start of the accumulator buffer.
        bias_base = 0
        self.accumulator_rows = sum(_tiles(layer, config) for layer in layers)
        for layer, shape in zip(layers, shapes, strict=True):
            tiles = _tiles(layer, config)
            placements.append(
                Placement(
                    layer=layer,
                    shape=shape,
                    tiles=tiles,
                    bands=tuple(self._bands(layer, shape, tiles, bias_base)),
                )
            )
            self.weight_rows += tiles * layer.taps * _channel_rows(layer, config)
            bias_base += tiles
        self.layers = tuple(placements)

    def load(self, device: Accelerator) -> None:
        """Write layer table, weights and biases to a device."""
        config = self.config
        device.reset()
        device.write_layers(0, [band.entry for p in self.layers for band in p.bands])
        weights = np.zeros((config.lanes, self.weight_rows, config.columns), np.int64)
        biases = []
        for placement in self.layers:
            layer, tiles = placement.layer, placement.tiles
            base = placement.bands[0].entry["weight_base"]
            rows = _channel_rows(layer, config)
            # (output channel, tap, channel) -> (tile, column, tap, channel row, lane)
            padded = np.zeros((tiles * config.columns, layer.taps, rows * config.lanes), np.int64)
            padded[: layer.outputs, :, : layer.channels] = layer.weights
            split = padded.reshape(tiles, config.columns, layer.taps, rows, config.lanes)
            # -> (lane, tile, tap, channel row, column)
            block = split.transpose(4, 0, 2, 3, 1).reshape(config.lanes, -1, config.columns)
            weights[:, base : base + block.shape[1]] = block
            bias = np.zeros(tiles * config.columns, np.int64)
            bias[: layer.outputs] = layer.bias
            biases.append(bias.reshape(tiles, config.columns))
        for bank in range(config.lanes):
            device.write_weights(bank, 0, weights[bank])
        device.write_accumulators(0, np.concatenate(biases))

    def _bands(
        self, layer: Linear, shape: tuple[int, ...], tiles: int, bias_base: int
    ) -> list[Band]:
        config = self.config
        height, width = layer.image(shape)
        out_width = layer.output_image((height, width))[1]
        if layer.is_pointwise:  # every position for itself: rows don't matter
            height, width, out_width = height * width, 1, 1
        bands = []
        items = _channel_rows(layer, config) * config.digits
        room = min(config.positions, config.item_depth // items)
        for cut in _cuts(layer, shape, room):
            rows_in, rows_out = cut.end_in - cut.first_in, cut.end_out - cut.first_out
            image = (rows_in, width, rows_out, out_width)
            if layer.is_pointwise:
                image = (1, rows_in, 1, rows_out)
            entry = {
                "in_height": image[0],
                "in_width": image[1],
                "positions": image[0] * image[1],
                "channels": layer.channels,
                "channel_rows": _channel_rows(layer, config),
                "out_height": image[2],
                "out_width": image[3],
                "kernel_height": layer.kernel[0],
                "kernel_width": layer.kernel[1],
                "stride_y": layer.stride[0],
                "stride_x": layer.stride[1],
                "dilation_y": layer.dilation[0],
                "dilation_x": layer.dilation[1],
                "pad_top": cut.pad_top,
                "pad_left": layer.pads[1],
                "tiles": tiles,
                "weight_base": self.weight_rows,
                "accumulator_base": self.accumulator_rows,
                "bias_base": bias_base,
                "reserved": 0,
            }
            bands.append(
                Band(
                    number=self.entries,
                    entry=entry,
                    inputs=slice(cut.first_in * width, cut.end_in * width),
                    outputs=slice(cut.first_out * out_width, cut.end_out * out_width),
                )
            )
            _check_fields(layer, entry)
            self.entries += 1
            self.accumulator_rows += tiles * image[2] * image[3]
        return bands


def suggest(layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config) -> Config:
    """Return the smallest device of a configuration's array that takes some layers.

    Lanes, columns and digits stay. The memories become as deep and the accumulators as wide as the
    layers need. The difference buffer (``positions``, ``item_depth``) grows where not even one
    output row of a layer fits; otherwise it stays, and bigger layers go through it in bands.

    Raises
    ------
    PlacementError
        If there is none.
    """
    try:
        return replace(config, **{need.name: need.value for need in _needs(layers, shapes, config)})
    except ConfigError as error:
        raise PlacementError(f"no device takes these layers: {error}") from error


class _Need(NamedTuple):
    """What some layers need of a parameter, and the layer that needs most of it."""

    name: str
    value: int
    layer: str
    share: int


_SUMS = {"weight_rows", "accumulator_rows", "layers"}


def _needs(
    layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config
) -> list[_Need]:
    """Return what the layers need of each parameter, but lanes, columns and digits."""
    pairs = list(zip(layers, shapes, strict=True))
    header = size(CommandHeader) + CRC_BYTES
    result: list[_Need] = []

    def need(name: str, shares: Sequence[int], least: int = 0) -> int:
        share = max(shares)
        value = max(sum(shares) if name in _SUMS else share, least, Config.least(name))
        result.append(_Need(name, value, layers[shares.index(share)].name, share))
        return value

    ranges = [(layer.high - layer.low).bit_length() for layer in layers]
    activation_bits = need("activation_bits", ranges, config.activation_bits)
    extremes = [max(int(w.max()), ~int(w.min())) for w in (layer.weights for layer in layers)]
    weight_bits = need("weight_bits", [e.bit_length() + 1 for e in extremes], config.weight_bits)
    bits = need(
        "accumulator_bits",
        [layer.largest.bit_length() + 1 for layer in layers],
        activation_bits + 1 + weight_bits,
    )
    config = replace(
        config,
        activation_bits=activation_bits,
        weight_bits=weight_bits,
        accumulator_bits=max(config.accumulator_bits, activation_bits + 1 + weight_bits),
        item_depth=max(config.item_depth, config.channel_rows * 9),
    )
    word = -(-config.columns * max(weight_bits, bits) // 8)
    need("frame_bytes", [header + word] * len(pairs), config.frame_bytes)
    need("list_depth", [layer.taps for layer in layers], config.list_depth)
    rows = [_channel_rows(layer, config) for layer in layers]
    need("channel_rows", rows)
    # The difference buffer takes at least one output row of every layer.
    least = []
    for layer, shape in pairs:
        _, width, outputs = _rows(layer, shape)
        row = (_cut(layer, shape, i, i + 1) for i in range(outputs))
        least.append(max(cut.end_in - cut.first_in for cut in row) * width)
    positions = need("positions", least, config.positions)
    items = [n * r * config.digits for n, r in zip(least, rows, strict=True)]
    item_depth = need("item_depth", items, config.item_depth)
    tiles = [_tiles(layer, config) for layer in layers]
    need(
        "weight_rows",
        [t * layer.taps * r for t, layer, r in zip(tiles, layers, rows, strict=True)],
    )
    images = [layer.output_image(layer.image(shape)) for layer, shape in pairs]
    need("accumulator_rows", [t * (h * w + 1) for t, (h, w) in zip(tiles, images, strict=True)])
    room = [min(positions, item_depth // (r * config.digits)) for r in rows]
    need(
        "layers",
        [len(_cuts(layer, shape, n)) for (layer, shape), n in zip(pairs, room, strict=True)],
    )
    return result


def _check(layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config) -> None:
    """Refuse layers that do not fit a device."""
    short = [n for n in _needs(layers, shapes, config) if n.value > getattr(config, n.name)]
    if not short:
        return
    causes = "; ".join(
        f"{n.name} = {getattr(config, n.name)}, but {n.value} "
        + (f"are needed, {n.share} of them by layer {n.layer}" if n.name in _SUMS else "")
        + (f"is needed by layer {n.layer}" if n.name not in _SUMS else "")
        for n in short
    )
    options = " ".join(f"--{n.name.replace('_', '-')} {n.value}" for n in short)
    raise PlacementError(
        f"the model does not fit the device: it has {causes} (a device with {options} would do)"
    )


def _check_fields(layer: Linear, entry: dict[str, int]) -> None:
    """Refuse a layer whose sizes do not fit the fields of a layer-table entry."""
    for name, field in Layout.cast(LayerEntry):
        if not 0 <= entry[str(name)] < 1 << field.width:
            raise PlacementError(
                f"layer {layer.name} has {name} = {entry[str(name)]}, but a layer-table entry "
                f"holds at most {(1 << field.width) - 1}"
            )


def _tiles(layer: Linear, config: Config) -> int:
    return -(-layer.outputs // config.columns)


def _channel_rows(layer: Linear, config: Config) -> int:
    return -(-layer.channels // config.lanes)


def _rows(layer: Linear, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return input rows, their width, and output rows; a position is a row if pointwise."""
    height, width = layer.image(shape)
    if layer.is_pointwise:
        return height * width, 1, height * width
    return height, width, layer.output_image((height, width))[0]


def _cut(layer: Linear, shape: tuple[int, ...], first: int, end: int) -> _Cut:
    """Describe the band of output rows ``first..end - 1``."""
    height, _, _ = _rows(layer, shape)
    reach = (layer.kernel[0] - 1) * layer.dilation[0] + 1
    top = first * layer.stride[0] - layer.pads[0]
    bottom = (end - 1) * layer.stride[0] - layer.pads[0] + reach
    return _Cut(first, end, max(top, 0), min(bottom, height), max(-top, 0))


def _cuts(layer: Linear, shape: tuple[int, ...], room: int) -> list[_Cut]:
    """Cut a layer into the fewest bands of almost equal height that fit ``room`` positions."""
    _, width, rows = _rows(layer, shape)
    for count in range(1, rows + 1):
        edges = [rows * i // count for i in range(count + 1)]
        cuts = [_cut(layer, shape, a, b) for a, b in zip(edges, edges[1:], strict=False)]
        if all((cut.end_in - cut.first_in) * width <= room for cut in cuts):
            return cuts
    raise AssertionError("one output row fits, which was checked")
