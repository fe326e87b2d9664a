"""Placement of a model's layers on a device: layer table, weights, accumulators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from amaranth.lib.data import Layout
from numpy.typing import NDArray

from ditto.hdl.config import Config, ConfigError
from ditto.hdl.protocol import CommandHeader, LayerEntry, size
from ditto.host.device import CRC_BYTES, Accelerator
from ditto.host.lowering import Lowered, lower
from ditto.host.model import Linear
from ditto.sim.golden import shares

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
    lowered
        What the device runs.
    split
        Shares into which the output positions are split.
    tiles
        Column tiles of a cluster.
    bands
        The entries that compute it, in order.
    """

    layer: Linear
    shape: tuple[int, ...]
    lowered: Lowered
    split: int
    tiles: int
    bands: tuple[Band, ...]

    def copies(self, config: Config) -> int:
        """Return how often a work item of one output position is worked off."""
        return config.clusters // self.split * self.tiles

    def read(self, device: Accelerator, band: Band) -> NDArray[np.int64]:
        """Read the device's accumulators of a band: (output positions, outputs)."""
        config = device.config
        parts = shares(band.entry, config.clusters)
        most = max(len(part.positions) for part in parts)
        outputs = self.lowered.layer.outputs
        columns = min(outputs, config.columns)
        words = device.read_accumulators(band.entry["accumulator_base"], self.tiles * most, columns)
        count = band.outputs.stop - band.outputs.start
        real = -(-outputs // config.columns)
        result = np.empty((count, real * columns), np.int64)
        for cluster, part in enumerate(parts):
            own = len(part.positions)
            for tile in range(self.tiles):
                column = (cluster // self.split * self.tiles + tile) * columns
                if column < real * columns:
                    values = words[cluster, tile * own : (tile + 1) * own]
                    result[part.positions, column : column + columns] = values
        return result[:, :outputs]


class _Cut(NamedTuple):
    """Output rows of a band and the input rows they touch."""

    first_out: int
    end_out: int
    first_in: int
    end_in: int
    pad_top: int


class _Plan(NamedTuple):
    """How a layer goes through a device."""

    lowered: Lowered
    cuts: list[_Cut]
    #: Size of the output image of each cut.
    images: list[tuple[int, int]]
    #: Skew of the shares of each cut.
    skews: list[int]
    split: int
    tiles: int

    @property
    def weight_rows(self) -> int:
        """Words of every weight bank."""
        return self.tiles * self.lowered.layer.taps * self.lowered.layer.channels

    def words(self, config: Config) -> list[int]:
        """Return the words that each cut takes of every accumulator buffer."""
        entries = (
            {"out_height": image[0], "out_width": image[1], "split": self.split, "skew": skew}
            for image, skew in zip(self.images, self.skews, strict=True)
        )
        return [
            self.tiles * max(len(part.positions) for part in shares(entry, config.clusters))
            for entry in entries
        ]


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
        plans = [_plan(layer, shape, config) for layer, shape in zip(layers, shapes, strict=True)]
        self.weight_rows = self.accumulator_rows = self.entries = 0
        placements = []
        for layer, shape, plan in zip(layers, shapes, plans, strict=True):
            placements.append(
                Placement(
                    layer=layer,
                    shape=shape,
                    lowered=plan.lowered,
                    split=plan.split,
                    tiles=plan.tiles,
                    bands=tuple(self._bands(plan)),
                )
            )
            self.weight_rows += plan.weight_rows
        self.layers = tuple(placements)

    def load(self, device: Accelerator) -> None:
        """Write layer table and weights to a device."""
        config = self.config
        device.reset()
        device.write_layers(0, [band.entry for p in self.layers for band in p.bands])
        weights = np.zeros((config.clusters, self.weight_rows, config.columns), np.int64)
        for placement in self.layers:
            layer, tiles = placement.lowered.layer, placement.tiles
            base = placement.bands[0].entry["weight_base"]
            groups = config.clusters // placement.split
            # (output channel, tap, channel) -> (group, tile, tap and channel, column)
            padded = np.zeros((groups * tiles * config.columns, layer.taps * layer.channels), int)
            padded[: layer.outputs] = layer.weights.reshape(layer.outputs, -1)
            block = padded.reshape(groups, tiles, config.columns, -1).transpose(0, 1, 3, 2)
            words = block.reshape(groups, -1, config.columns)
            # Clusters with the same output channels hold the same weights.
            weights[:, base : base + words.shape[1]] = words.repeat(placement.split, axis=0)
        for cluster in range(config.clusters):
            device.write_weights(cluster, 0, weights[cluster])

    def _bands(self, plan: _Plan) -> list[Band]:
        layer = plan.lowered.layer
        height, width = layer.image(plan.lowered.shape)
        if layer.is_pointwise:  # every position for itself: rows don't matter
            height, width = height * width, 1
        bands = []
        parts = zip(plan.cuts, plan.images, plan.skews, plan.words(self.config), strict=True)
        for cut, image, skew, words in parts:
            rows_in = cut.end_in - cut.first_in
            image_in = (1, rows_in) if layer.is_pointwise else (rows_in, width)
            out_width = 1 if layer.is_pointwise else image[1]
            entry = {
                "in_height": image_in[0],
                "in_width": image_in[1],
                "positions": image_in[0] * image_in[1],
                "channels": layer.channels,
                "out_height": image[0],
                "out_width": image[1],
                "kernel_height": layer.kernel[0],
                "kernel_width": layer.kernel[1],
                "stride_y": layer.stride[0],
                "stride_x": layer.stride[1],
                "dilation_y": layer.dilation[0],
                "dilation_x": layer.dilation[1],
                "pad_top": cut.pad_top,
                "pad_left": layer.pads[1],
                "tiles": plan.tiles,
                "weight_base": self.weight_rows,
                "accumulator_base": self.accumulator_rows,
                "split": plan.split,
                "skew": skew,
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
            self.accumulator_rows += words
        return bands


def _plan(layer: Linear, shape: tuple[int, ...], config: Config) -> _Plan:
    """Lay out how a layer goes through a device."""
    lowered = lower(layer, shape, config)
    inner = lowered.layer
    room = min(config.positions, config.item_depth // (inner.channels * config.digits))
    cuts = _cuts(inner, lowered.shape, room)
    out_width = inner.output_image(inner.image(lowered.shape))[1]
    images = [
        (1, cut.end_out - cut.first_out)
        if inner.is_pointwise
        else (cut.end_out - cut.first_out, out_width)
        for cut in cuts
    ]
    real = -(-inner.outputs // config.columns)

    def rows(split: int) -> tuple[int, int]:
        """Return the rows of the busiest cluster."""
        tiles = -(-real // (config.clusters // split))
        return sum(-(-h * w // split) for h, w in images) * tiles, split

    splits = [split for split in range(1, config.clusters + 1) if config.clusters % split == 0]
    split = min(splits, key=rows)
    skews = [
        _skew(inner, lowered.shape, cut, image, split)
        for cut, image in zip(cuts, images, strict=True)
    ]
    return _Plan(lowered, cuts, images, skews, split, -(-real // (config.clusters // split)))


def _skew(
    layer: Linear, shape: tuple[int, ...], cut: _Cut, image: tuple[int, int], split: int
) -> int:
    """Return the skew that gives the busiest share of a cut least to do.

    How much an output position will have to do is not known: about as much as it has taps inside
    the input image, and up to twice of that towards its middle, where images change most.
    """
    height, width = image
    if height == 1 or split == 1:
        return 0
    size_in, size_out = layer.image(shape), layer.output_image(layer.image(shape))
    rows, columns = (
        _inside(layer, axis, start + np.arange(count), size_in[axis])
        for axis, start, count in ((0, cut.first_out, height), (1, 0, width))
    )
    hills = [
        np.sin(np.pi * (start + np.arange(count) + 0.5) / size)
        for start, count, size in zip((cut.first_out, 0), image, size_out, strict=True)
    ]
    work = np.outer(rows, columns) * (1 + np.outer(*hills))
    y, x = np.indices(image)

    def busiest(skew: int) -> float:
        loads = np.bincount((x - skew * y).ravel() % split, work.ravel(), split)
        return round(float(loads.max()), 6)

    return min(*range(1, split), 0, key=busiest)


def _inside(layer: Linear, axis: int, at: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return how many taps of some output rows (columns) are inside the input image."""
    first = at * layer.stride[axis] - layer.pads[axis]
    tap = first[:, None] + np.arange(layer.kernel[axis]) * layer.dilation[axis]
    return ((tap >= 0) & (tap < size)).sum(axis=1)


def suggest(layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config) -> Config:
    """Return the smallest device of a configuration's array that takes some layers.

    Clusters, lanes, columns and digits stay. The memories become as deep and the accumulators as
    wide as the layers need. The difference buffer (``positions``, ``item_depth``) grows where not
    even one output row of a layer fits; otherwise it stays, and bigger layers go through it in
    bands.

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
    """Return what the layers need of each parameter but clusters, lanes, columns and digits."""
    given = list(zip(layers, shapes, strict=True))
    pairs = [
        (low.layer, low.shape) for low in (lower(layer, shape, config) for layer, shape in given)
    ]
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
    need(
        "accumulator_bits",
        [layer.largest.bit_length() + 1 for layer in layers],
        activation_bits + 1 + weight_bits,
    )
    config = replace(
        config,
        activation_bits=activation_bits,
        weight_bits=weight_bits,
        accumulator_bits=max(config.accumulator_bits, activation_bits + 1 + weight_bits),
        item_depth=max(config.item_depth, config.channels * 9),
    )
    word = -(-config.columns * weight_bits // 8)
    need("frame_bytes", [header + word] * len(pairs), config.frame_bytes)
    need("list_depth", [layer.taps for layer in layers], config.list_depth)
    channels = need("channels", [layer.channels for layer, _ in pairs])
    # The difference buffer takes at least one output row of every layer.
    least = []
    for layer, shape in pairs:
        _, width, outputs = _rows(layer, shape)
        row = (_cut(layer, shape, i, i + 1) for i in range(outputs))
        least.append(max(cut.end_in - cut.first_in for cut in row) * width)
    positions = need("positions", least, config.positions)
    items = [n * layer.channels * config.digits for n, (layer, _) in zip(least, pairs, strict=True)]
    item_depth = need("item_depth", items, max(config.item_depth, channels * config.digits))
    config = replace(config, positions=positions, item_depth=item_depth, channels=channels)
    plans = [_plan(layer, shape, config) for layer, shape in given]
    need("weight_rows", [plan.weight_rows for plan in plans])
    need("accumulator_rows", [sum(plan.words(config)) for plan in plans])
    need("layers", [len(plan.cuts) for plan in plans])
    return result


def _check(layers: Sequence[Linear], shapes: Sequence[tuple[int, ...]], config: Config) -> None:
    """Refuse layers that do not fit a device."""
    for layer in layers:
        least = -(1 << config.weight_bits - 1)
        if config.is_packed and (layer.weights == least).any():
            raise PlacementError(
                f"layer {layer.name} has a weight of {least}, but the device's "
                f"packed multipliers take {config.min_weight} and more; quantize the weights "
                f"symmetrically, or use a device with --multiplier lut"
            )
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
