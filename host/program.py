"""Placement of a model's layers on a device: layer table, weights, accumulators."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from amaranth.lib.data import Layout
from numpy.typing import NDArray

from ditto.hdl.config import Config, ConfigError
from ditto.hdl.protocol import CommandHeader, LayerEntry, size, unpack
from ditto.host.device import CRC_BYTES, Accelerator
from ditto.host.layers import Layer, Linear, Product
from ditto.host.lowering import Lowered, lower, windows
from ditto.host.narrow import Rest, narrow_layer
from ditto.sim.golden import shares
from ditto.sim.spatial import edges, has_room, may_be_spatial

__all__ = ["Band", "Part", "Placement", "PlacementError", "Program", "suggest"]


class PlacementError(Exception):
    """A layer or a model that does not fit a device."""


class Band(NamedTuple):
    """Some output rows of a part, with the input rows that they need: one layer-table entry."""

    #: Number of the layer-table entry.
    number: int
    #: Fields of the entry.
    entry: dict[str, int]
    #: Input positions, from the first to before the last.
    inputs: slice
    #: Output positions that this band computes.
    outputs: slice
    #: Whether the device takes the differences of its inputs.
    takes_inputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where a part of a layer is on a device.

    Parameters
    ----------
    lowered
        What the device runs.
    split
        Shares into which the output positions are split.
    tiles
        Column tiles of a cluster.
    states
        For each state that is kept, the entries that compute it, in order.
    """

    lowered: Lowered
    split: int
    tiles: int
    states: tuple[tuple[Band, ...], ...]

    @property
    def bands(self) -> tuple[Band, ...]:
        """The entries of the first state."""
        return self.states[0]

    def inputs(self, deltas: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the inputs for a device that takes differences, from the layer's dense deltas."""
        zero_point = self.bands[0].entry["zero_point"]
        # Where the layer's image has no input, there is the zero point.
        return self.lowered.deltas(deltas) + (zero_point ^ 0x80) - 0x80

    def copies(self, config: Config) -> int:
        """Return how often a work item of one output position is worked off."""
        return config.clusters // self.split * self.tiles

    def weight_words(self, config: Config) -> int:
        """Return the words of its weights in all clusters."""
        layer = self.lowered.layer
        return config.clusters * self.tiles * layer.taps * layer.channels

    def words(self, weights: NDArray[Any], config: Config) -> NDArray[np.int64]:
        """Lay out weights of shape (outputs, taps, channels): (clusters, rows, columns)."""
        groups = config.clusters // self.split
        # (output channel, tap, channel) -> (group, tile, tap and channel, column)
        flat = weights.reshape(len(weights), -1)
        padded = np.zeros((groups * self.tiles * config.columns, flat.shape[1]), np.int64)
        padded[: len(flat)] = flat
        block = padded.reshape(groups, self.tiles, config.columns, -1).transpose(0, 1, 3, 2)
        # Clusters with the same output channels hold the same weights.
        return block.reshape(groups, -1, config.columns).repeat(self.split, axis=0)

    def write(self, device: Accelerator, state: int, weights: NDArray[Any]) -> None:
        """Write weights of shape (outputs, taps, channels) into a device."""
        base = self.states[state][0].entry["weight_base"]
        for cluster, words in enumerate(self.words(weights, device.config)):
            device.write_weights(cluster, base, words)

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


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a layer is on a device.

    Parameters
    ----------
    layer
        The layer.
    shape
        Shape of its input tensor; of both operands if it is a product.
    parts
        What the device computes of it, see :func:`ditto.host.lowering.lower`.
    rest
        What the host adds to the sums, if the device's weights leave something out.
    """

    layer: Layer
    shape: tuple[Any, ...]
    parts: tuple[Part, ...]
    rest: Rest | None = None

    @property
    def bands(self) -> tuple[Band, ...]:
        """All entries of a state."""
        return tuple(band for part in self.parts for band in part.bands)

    @property
    def may_be_spatial(self) -> bool:
        """Whether the layer can have spatial runs: all of its entries can."""
        return all(band.entry["spatial"] for band in self.bands)

    def of_product(self, head: int, side: int) -> Part:
        """Return the part of a product whose items are the left (0) or right (1) operand."""
        assert isinstance(self.layer, Product)
        return self.parts[head if self.layer.fixed else 2 * head + side]


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

    @property
    def inputs(self) -> int:
        """Inputs of all bands, of each of which the device holds a reference."""
        if self.lowered.is_written:
            return 0
        layer = self.lowered.layer
        width = 1 if layer.is_pointwise else layer.image(self.lowered.shape)[1]
        return sum(cut.end_in - cut.first_in for cut in self.cuts) * width * layer.channels

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


class _Rows(NamedTuple):
    """Words of every weight bank that a layer's parts need."""

    #: Weights that are loaded once.
    constant: int
    #: Activations that stay, for each state.
    kept: int
    #: Activations that are written before each run: all of them in the same place.
    shared: int

    @classmethod
    def of(cls, plans: Iterable[_Plan]) -> "_Rows":
        """Add up the parts of a layer."""
        constant = kept = shared = 0
        for plan in plans:
            if not plan.lowered.is_written:
                constant += plan.weight_rows
            elif plan.lowered.is_kept:
                kept += plan.weight_rows
            else:
                shared = max(shared, plan.weight_rows)
        return cls(constant, kept, shared)


class Program:
    """A model's layers, placed on a device.

    Parameters
    ----------
    layers
        The layers.
    shapes
        Shape of the input tensor of each; of both operands for a product.
    config
        The device.
    states
        Samples whose state is kept side by side, with the same weights: 2 for guidance.

    Attributes
    ----------
    layers : tuple of Placement
        Where each layer is.
    weight_rows, accumulator_rows, entries, references : int
        What the program takes of each memory.
    decisions : int
        How many decisions the device has for it: one for each state of a layer with constant
        weights. 0 if the host takes differences.

    Raises
    ------
    PlacementError
        If the layers do not fit the device, with what is needed of every memory.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        shapes: Sequence[tuple[Any, ...]],
        config: Config,
        *,
        states: int = 1,
    ) -> None:
        self.config = config
        self.states = states
        _check(layers, shapes, config, states)
        plans = [
            [_plan(part, config) for part in lower(layer, shape, config)]
            for layer, shape in zip(layers, shapes, strict=True)
        ]
        self.weight_rows = self.accumulator_rows = self.entries = 0
        self.references = self.decisions = 0
        shared = max((_Rows.of(own).shared for own in plans), default=0)
        self._shared = 0
        self.weight_rows = shared
        self.layers = tuple(
            Placement(
                layer=layer,
                shape=shape,
                parts=self._parts(layer, own),
                rest=_rest(layer, shape, config),
            )
            for layer, shape, own in zip(layers, shapes, plans, strict=True)
        )

    def write_table(self, device: Accelerator, threshold: int = 0) -> None:
        """Write the layer table to a device; no entry then holds accumulators.

        Parameters
        ----------
        device
            The device.
        threshold
            Largest magnitude of the deltas that a device which takes them itself does not apply.
        """
        parts = [part for placement in self.layers for part in placement.parts]
        bands = [band for part in parts for state in part.states for band in state]
        # No delta is larger than the largest.
        threshold = min(threshold, self.config.max_delta)
        device.write_layers(
            0, [b.entry | {"threshold": threshold} if b.takes_inputs else b.entry for b in bands]
        )

    def load(self, device: Accelerator, threshold: int = 0) -> None:
        """Write layer table, see :meth:`write_table`, and weights to a device."""
        config = self.config
        device.reset()
        parts = [part for placement in self.layers for part in placement.parts]
        self.write_table(device, threshold)
        weights = np.zeros((config.clusters, self.weight_rows, config.columns), np.int64)
        for part in parts:
            if not part.lowered.is_written:
                words = part.words(part.lowered.layer.weights, config)
                base = part.bands[0].entry["weight_base"]
                weights[:, base : base + words.shape[1]] = words
        for cluster in range(config.clusters):
            device.write_weights(cluster, 0, weights[cluster])

    def _parts(self, layer: Layer, plans: Sequence[_Plan]) -> tuple[Part, ...]:
        """Place the parts of a layer, each state with a decision if the device decides."""
        parts = tuple(self._part(plan) for plan in plans)
        if not self.config.reference_depth or not isinstance(layer, Linear):
            return parts
        states: list[list[tuple[Band, ...]]] = [[] for _ in parts]
        for state in range(self.states):
            for number, part in enumerate(parts):
                bands = [self._with_references(layer, band) for band in part.states[state]]
                if number == len(parts) - 1:
                    bands[-1].entry["decides"] = 1
                states[number].append(tuple(bands))
            self.decisions += 1
        return tuple(
            replace(part, states=tuple(own)) for part, own in zip(parts, states, strict=True)
        )

    def _with_references(self, layer: Linear, band: Band) -> Band:
        """Give a band its place in the reference buffer, and what differences need."""
        half = 1 << self.config.activation_bits - 1
        is_signed = layer.low >= -half and layer.high < half
        entry = band.entry | {
            "reference_base": self.references,
            "decision": self.decisions,
            # Inputs become signed numbers where they are not.
            "zero_point": layer.zero_point - (0 if is_signed else layer.low + half) & 0xFF,
        }
        _check_fields(layer, entry)
        self.references += entry["positions"] * entry["channels"]
        return band._replace(entry=entry, takes_inputs=True)

    def _part(self, plan: _Plan) -> Part:
        """Place a part: constant weights once, activations as weights for each state."""
        lowered = plan.lowered
        bases = []
        for state in range(self.states):
            if lowered.is_written and not lowered.is_kept:
                bases.append(self._shared)
            elif state and not lowered.is_written:
                bases.append(bases[0])
            else:
                bases.append(self.weight_rows)
                self.weight_rows += plan.weight_rows
        return Part(
            lowered=lowered,
            split=plan.split,
            tiles=plan.tiles,
            states=tuple(tuple(self._bands(plan, base)) for base in bases),
        )

    def _edges(self, entry: dict[str, int]) -> dict[str, int]:
        """Return what makes an entry spatial, if its lines fit with what is behind them."""
        margin, lead = edges(entry)
        spatial = {"spatial": 1, "margin": margin, "lead": lead}
        whole = entry | spatial
        is_possible = max(margin, lead) < 16 and may_be_spatial(whole)
        return spatial if is_possible and has_room(whole, self.config) else {}

    def _bands(self, plan: _Plan, weight_base: int) -> list[Band]:
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
            entry = unpack(LayerEntry, bytes(size(LayerEntry))) | {
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
                "weight_base": weight_base,
                "accumulator_base": self.accumulator_rows,
                "split": plan.split,
                "skew": skew,
            }
            entry |= self._edges(entry) if not plan.lowered.is_written else {}
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


def _plan(lowered: Lowered, config: Config) -> _Plan:
    """Lay out how a part goes through a device."""
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


def suggest(
    layers: Sequence[Layer],
    shapes: Sequence[tuple[Any, ...]],
    config: Config,
    *,
    states: int = 1,
) -> Config:
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
        return replace(
            config, **{need.name: need.value for need in _needs(layers, shapes, config, states)}
        )
    except ConfigError as error:
        raise PlacementError(f"no device takes these layers: {error}") from error


class _Need(NamedTuple):
    """What some layers need of a parameter, and the layer that needs most of it."""

    name: str
    value: int
    layer: str
    share: int


_SUMS = {"weight_rows", "accumulator_rows", "layers", "reference_depth"}


def _needs(
    layers: Sequence[Layer], shapes: Sequence[tuple[Any, ...]], config: Config, states: int
) -> list[_Need]:
    """Return what the layers need of each parameter but clusters, lanes, columns and digits."""
    given = list(zip(layers, shapes, strict=True))
    lowered = [lower(layer, shape, config) for layer, shape in given]
    header = size(CommandHeader) + CRC_BYTES
    least_depth = config.item_depth
    result: list[_Need] = []

    def need(name: str, shares: Sequence[int], least: int = 0) -> int:
        share = max(shares)
        value = max(sum(shares) if name in _SUMS else share, least, Config.least(name))
        result.append(_Need(name, value, layers[shares.index(share)].name, share))
        return value

    def each(what: Callable[[Linear, Any], int]) -> list[int]:
        """Return the most that the parts of each layer need."""
        return [max(what(part.layer, part.shape) for part in parts) for parts in lowered]

    activation_bits = need(
        "activation_bits",
        [max(map(int.bit_length, _spans(layer))) for layer in layers],
        config.activation_bits,
    )
    weight_bits = need("weight_bits", [_weight_bits(layer) for layer in layers], config.weight_bits)
    config = replace(
        config,
        activation_bits=activation_bits,
        weight_bits=weight_bits,
        accumulator_bits=max(config.accumulator_bits, activation_bits + 1 + weight_bits),
        item_depth=max(config.item_depth, config.channels * 9),
    )
    need(
        "accumulator_bits",
        [_largest(layer, shape, config).bit_length() + 1 for layer, shape in given],
        activation_bits + 1 + weight_bits,
    )
    word = -(-config.columns * weight_bits // 8)
    need("frame_bytes", [header + word] * len(given), config.frame_bytes)
    need("list_depth", each(lambda layer, shape: layer.taps), config.list_depth)
    channels = need("channels", each(lambda layer, shape: layer.channels))
    # The difference buffer takes at least one output row of every layer.
    positions = need("positions", each(_least_positions), config.positions)
    item_depth = need(
        "item_depth",
        each(lambda layer, shape: _least_positions(layer, shape) * layer.channels * config.digits),
        max(least_depth, channels * config.digits),
    )
    config = replace(config, positions=positions, item_depth=item_depth, channels=channels)
    plans = [
        [_plan(part, config) for part in lower(layer, shape, config)] for layer, shape in given
    ]
    rows = [_Rows.of(own) for own in plans]
    shared = [own.shared for own in rows]
    # One place for all: the layer that needs most of it is the one that counts.
    most = shared.index(max(shared))
    need(
        "weight_rows",
        [
            own.constant + own.kept * states + (own.shared if i == most else 0)
            for i, own in enumerate(rows)
        ],
    )
    need(
        "accumulator_rows",
        [states * sum(sum(plan.words(config)) for plan in own) for own in plans],
    )
    need("layers", [states * sum(len(plan.cuts) for plan in own) for own in plans])
    if config.reference_depth:
        need("reference_depth", [states * sum(plan.inputs for plan in own) for own in plans])
    return result


def _spans(layer: Layer) -> list[int]:
    """Return the sizes of the ranges of a layer's quantized operands."""
    operands = [layer] if isinstance(layer, Linear) else [layer.left, layer.right]
    return [operand.high - operand.low for operand in operands]


def _weight_bits(layer: Layer) -> int:
    """Return the bits of the weights that a layer needs; what is beyond 8 the host adds."""
    if isinstance(layer, Linear):
        extreme = max(int(layer.weights.max()), ~int(layer.weights.min()))
        return min(extreme.bit_length() + 1, 8)
    return max(map(int.bit_length, _spans(layer)))


def _largest(layer: Layer, shape: tuple[Any, ...], config: Config) -> int:
    """Return the largest magnitude of the sums that a device has of a layer."""
    if isinstance(layer, Product):
        return layer.largest(shape)
    return narrow_layer(layer, config).largest


def _rest(layer: Layer, shape: tuple[Any, ...], config: Config) -> Rest | None:
    """Return what the host adds to a layer's sums; None if nothing."""
    if isinstance(layer, Product):
        return None  # it depends on the operands
    narrow = narrow_layer(layer, config)
    return None if narrow is layer else Rest(layer, narrow, windows(layer, shape))


def _least_positions(layer: Linear, shape: tuple[int, ...]) -> int:
    """Return the input positions that any one output row needs."""
    _, width, outputs = _rows(layer, shape)
    rows = (_cut(layer, shape, i, i + 1) for i in range(outputs))
    return max(cut.end_in - cut.first_in for cut in rows) * width


def _check(
    layers: Sequence[Layer], shapes: Sequence[tuple[Any, ...]], config: Config, states: int
) -> None:
    """Refuse layers that do not fit a device."""
    needs = _needs(layers, shapes, config, states)
    short = [n for n in needs if n.value > getattr(config, n.name)]
    if not short:
        return
    causes = "; ".join(
        f"{n.name} = {getattr(config, n.name)}, but {n.value} "
        + (f"are needed, {n.share} of them by layer {n.layer}" if n.name in _SUMS else "")
        + (f"is needed by layer {n.layer}" if n.name not in _SUMS else "")
        for n in short
    )
    options = " ".join(f"--{n.name.replace('_', '-')} {n.value}" for n in short)
    what = "the model" if states == 1 else f"the model with {states} states of every layer"
    raise PlacementError(
        f"{what} does not fit the device: it has {causes} (a device with {options} would do)"
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
        cuts = []
        for i in range(count):
            cut = _cut(layer, shape, rows * i // count, rows * (i + 1) // count)
            if (cut.end_in - cut.first_in) * width > room:
                break  # most often the first: looking at all bands would take a time of rows**2
            cuts.append(cut)
        else:
            return cuts
    raise AssertionError("one output row fits, which was checked")
