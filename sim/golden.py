"""The golden model: what a device computes and counts, bit for bit, in NumPy.

This is the specification of the gateware. :class:`Golden` has the memories and the commands of a
device and the same methods as the driver's :class:`ditto.host.device.Device`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandError, Counters, LayerEntry, Mode, Status, unpack
from ditto.sim.cycles import row_lengths, schedule
from ditto.sim.decisions import Decisions
from ditto.sim.differences import Differences, room, take
from ditto.sim.spatial import carried, may_be_spatial, stretched

__all__ = [
    "Golden",
    "Shares",
    "classify",
    "count_modes",
    "items",
    "shares",
    "split",
    "taps",
    "wrap",
]

Array = NDArray[np.int64]


def wrap(values: Array, bits: int) -> Array:
    """Wrap integers to ``bits`` bits in two's complement.

    >>> wrap(np.array([127, 128, -129]), 8).tolist()
    [127, -128, 127]
    """
    half = 1 << (bits - 1)
    return (values + half & (1 << bits) - 1) - half


def split(deltas: NDArray[Any], config: Config) -> Array:
    """Split deltas into digits, low digit first.

    Digit ``i`` stands for ``digit << b * min(i, shifts - 1)`` with ``b = digit_bits``. Digits below
    the highest shift are balanced; what is left for the highest one may take several.

    Parameters
    ----------
    deltas
        Integers in ``-max_delta..max_delta``, of any shape.
    config
        Gives ``digit_bits``, ``digits`` and ``shifts``.

    Returns
    -------
    array of shape ``deltas.shape + (digits,)``
        Digits in ``-2**(b-1)..2**(b-1) - 1``; with their shifts, they add up to the delta.

    >>> split(np.array([-1, 8, 127]), Config(digit_bits=4)).tolist()
    [[-1, 0, 0, 0], [-8, 1, 0, 0], [-1, 7, 1, 0]]
    """
    rest = np.asarray(deltas, dtype=np.int64)
    result = np.empty((*rest.shape, config.digits), dtype=np.int64)
    half = 1 << config.digit_bits - 1
    for i in range(config.digits):
        if i < config.shifts - 1:
            result[..., i] = wrap(rest, config.digit_bits)
            rest = rest - result[..., i] >> config.digit_bits
        else:
            result[..., i] = np.clip(rest, -half, half - 1)
            rest = rest - result[..., i]
    return result


def items(deltas: NDArray[Any], config: Config) -> tuple[Array, Array]:
    """Count the low and the high work items of every delta.

    >>> [count.tolist() for count in items(np.array([0, 7, 16, 17]), Config(digit_bits=4))]
    [[0, 1, 0, 1], [0, 0, 1, 1]]
    """
    taken = split(deltas, config) != 0
    if not config.skip:
        taken[:] = True
    lows = 1 if config.shifts > 1 else config.digits
    return taken[..., :lows].sum(axis=-1), taken[..., lows:].sum(axis=-1)


def classify(deltas: NDArray[Any], config: Config) -> tuple[int, int, int]:
    """Count zero deltas, narrow ones (that fit the low digit), and wide ones.

    >>> classify(np.array([0, 7, -8, 8, 16]), Config(digit_bits=4))
    (1, 2, 2)
    """
    deltas = np.asarray(deltas, dtype=np.int64)
    zero = int(np.count_nonzero(deltas == 0))
    fits = int(np.count_nonzero(wrap(deltas, config.digit_bits) == deltas))
    return zero, fits - zero, deltas.size - fits


def count_modes(differences: Differences, config: Config) -> dict[str, int]:
    """Count the work items of inputs in each mode: the counters ``digits_...``."""

    def digits(deltas: Array) -> int:
        return sum(int(count.sum()) for count in items(deltas, config))

    return {
        "digits_dense": digits(differences.dense),
        "digits_temporal": digits(differences.temporal),
        "digits_spatial": digits(differences.spatial) + digits(differences.behind),
    }


class Shares(NamedTuple):
    """What a cluster computes of an entry."""

    #: Its output positions, in order.
    positions: Array
    #: Output rows of the image without such a position, before each of them.
    gaps: Array
    #: As many after the last of them.
    rest: int


@lru_cache(maxsize=4096)
def _shares(
    clusters: int, split: int, skew: int, height: int, width: int, lead: int
) -> tuple[Shares, ...]:
    before = lead * split
    wide = before + width
    found = []
    for share in range(split):
        first = share
        positions: list[int] = []
        gaps: list[int] = []
        gap = 0
        for y in range(height):
            row = range(y * wide + first, (y + 1) * wide, split) if first < width else ()
            if row:
                positions += row
                gaps += [gap] + [0] * (len(row) - 1)
            gap = 0 if row else gap + 1
            first = (first + skew) % split
        found.append(Shares(np.array(positions, np.int64), np.array(gaps, np.int64), gap))
    return tuple(found[cluster % split] for cluster in range(clusters))


def shares(entry: dict[str, int], clusters: int, lead: int = 0) -> tuple[Shares, ...]:
    """Return what each cluster computes of the output positions of an entry.

    Cluster ``c`` computes, in output row ``y``, those with
    ``x % split == (c + skew * y) % split``.

    Parameters
    ----------
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.
    clusters
        Clusters of the device.
    lead
        Virtual rows of each line. The positions are then those of the stretched entry, see
        :func:`ditto.sim.spatial.stretched`.
    """
    names = ("split", "skew", "out_height", "out_width")
    return _shares(clusters, *(entry[name] for name in names), lead)


@lru_cache(maxsize=1024)
def _taps(key: tuple[tuple[str, int], ...]) -> Array:
    entry = dict(key)
    y = np.arange(entry["out_height"])[:, None] * entry["stride_y"] - entry["pad_top"]
    y = y + np.arange(entry["kernel_height"])[None, :] * entry["dilation_y"]
    x = np.arange(entry["out_width"])[:, None] * entry["stride_x"] - entry["pad_left"]
    x = x + np.arange(entry["kernel_width"])[None, :] * entry["dilation_x"]
    inside = ((y >= 0) & (y < entry["in_height"]))[:, None, :, None] & (
        (x >= 0) & (x < entry["in_width"])
    )[None, :, None, :]
    position = np.where(inside, y[:, None, :, None] * entry["in_width"] + x[None, :, None, :], -1)
    rows = entry["out_height"] * entry["out_width"]
    result = position.reshape(rows, entry["kernel_height"] * entry["kernel_width"])
    result.setflags(write=False)
    return result


def taps(entry: dict[str, int]) -> Array:
    """Return the input position of every kernel tap of every output position, or -1 outside.

    Parameters
    ----------
    entry
        Fields of a :class:`~ditto.hdl.protocol.LayerEntry`.

    Returns
    -------
    array of shape (output positions, taps)
    """
    return _taps(tuple(entry.items()))


class _Tile:
    """A tile of inputs.

    Parameters
    ----------
    entry
        Its number in the layer table.
    layer
        Its fields.
    mode
        Of its run.
    is_auto
        Whether the table of decisions has chosen it.
    has_state
        Whether the entry held accumulators before.
    references
        What the inputs are compared with.
    """

    def __init__(
        self,
        entry: int,
        layer: dict[str, int],
        mode: Mode,
        *,
        is_auto: bool,
        has_state: bool,
        references: Array,
    ) -> None:
        self.entry, self.layer, self.mode = entry, layer, mode
        self.is_auto, self.has_state = is_auto, has_state
        self.references = references
        self.inputs = np.empty(0, np.int64)
        #: Of the inputs that found room.
        self.differences: Differences

    @property
    def is_whole(self) -> bool:
        """Whether all inputs have come and found room, and none beyond."""
        layer = self.layer
        size = layer["in_height"] * layer["in_width"] * layer["channels"]
        return len(self.inputs) == len(self.references) == size


class Golden:
    """A device as a NumPy object: its memories, commands and counters.

    Parameters
    ----------
    config
        The device.

    Attributes
    ----------
    decisions : Decisions
        Its table of decisions.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._layers = [dict.fromkeys(unpack(LayerEntry, bytes(32)), 0)] * config.layers
        self._weights = np.zeros((config.clusters, config.weight_rows, config.columns), np.int64)
        self._accumulators = np.zeros(
            (config.clusters, config.accumulator_rows, config.columns), np.int64
        )
        self._filled: set[int] = set()
        self._deltas: Array | None = None
        self._mode = Mode.DENSE  # what the deltas are for
        self._references = np.zeros(config.reference_depth, np.int64)
        self._tile: _Tile | None = None
        self.decisions = Decisions(config.layers)

    def reset(self) -> None:
        """Forget which layers hold accumulators, the deltas, and what the decisions learned."""
        self._filled.clear()
        self._deltas = self._tile = None
        self.decisions.forget()

    def write_layers(self, first: int, entries: Sequence[dict[str, int]]) -> None:
        """Write layer-table entries, from entry ``first`` on; they then hold no accumulators."""
        self._check(first + len(entries) <= self.config.layers, Status.BAD_ADDRESS, "layer table")
        self._layers[first : first + len(entries)] = [dict(entry) for entry in entries]
        self._filled.difference_update(range(first, first + len(entries)))
        self._deltas = self._tile = None

    def write_weights(self, cluster: int, row: int, words: NDArray[Any]) -> None:
        """Write words of shape (rows, columns) into a cluster's weight bank, from ``row`` on.

        Raises
        ------
        ValueError
            If a weight is less than the device can multiply with.
        """
        config = self.config
        words = np.asarray(words)
        self._check(cluster < config.clusters, Status.BAD_COMMAND, f"cluster {cluster}")
        self._check(row + len(words) <= config.weight_rows, Status.BAD_ADDRESS, "weights")
        if words.size and words.min() < config.min_weight:
            raise ValueError(f"weights are at least {config.min_weight}, not {words.min()}")
        self._weights[cluster, row : row + len(words)] = words

    def read_accumulators(self, row: int, count: int, columns: int | None = None) -> Array:
        """Return accumulators from ``row`` on: (clusters, ``count``, first ``columns``)."""
        self._check(row + count <= self.config.accumulator_rows, Status.BAD_ADDRESS, "accumulators")
        return self._accumulators[:, row : row + count, :columns].copy()

    def write_deltas(self, entry: int, deltas: NDArray[Any], mode: Mode = Mode.DENSE) -> None:
        """Fill the difference buffer with the deltas of an entry, of shape (positions, channels).

        Those of a spatial run are :func:`ditto.sim.spatial.spatial`.

        Raises
        ------
        CommandError
            If the entry cannot run in the mode.
        """
        deltas = np.asarray(deltas, dtype=np.int64)
        self._check(entry < self.config.layers, Status.BAD_ADDRESS, f"layer {entry}")
        self._check_spatial(entry, mode)
        self._deltas, self._tile = deltas, None
        self._mode = mode

    def write_inputs(self, entry: int, inputs: NDArray[Any], mode: Mode = Mode.AUTO) -> None:
        """Fill the difference buffer with the differences of an entry's quantized inputs.

        Parameters
        ----------
        entry
            Number of the layer-table entry. It holds no accumulators until it has run.
        inputs
            Of shape (positions, channels).
        mode
            Of the run; ``AUTO`` for that of the table of decisions.

        Raises
        ------
        CommandError
            If the entry holds no accumulators, and the mode is temporal; or if the device does not
            take differences.
        """
        self.begin_inputs(entry, mode)
        self.add_inputs(inputs)

    def begin_inputs(self, entry: int, mode: Mode) -> Mode:
        """Begin a tile for :meth:`add_inputs`, see :meth:`write_inputs`; return its mode."""
        self._check(len(self._references) > 0, Status.BAD_COMMAND, "no reference buffer")
        self._check(entry < self.config.layers, Status.BAD_ADDRESS, f"layer {entry}")
        layer = self._layers[entry]
        has_state = entry in self._filled
        is_auto = mode is Mode.AUTO
        if is_auto:
            mode = self.decisions.mode(layer["decision"], has_state)
        self._deltas = self._tile = None
        self._check(mode is not Mode.AUTO, Status.BAD_LAYER, f"layer {entry}, {mode.name}")
        self._check_spatial(entry, mode)
        self._check(mode is not Mode.TEMPORAL or has_state, Status.NO_STATE, f"layer {entry}")
        self._filled.discard(entry)
        self._mode = mode
        base = layer["reference_base"]
        references = self._references[base : base + room(layer, self.config)].copy()
        self._tile = _Tile(
            entry, layer, mode, is_auto=is_auto, has_state=has_state, references=references
        )
        self.add_inputs(np.empty(0, np.int64))
        return mode

    def add_inputs(self, inputs: NDArray[Any]) -> None:
        """Take the next inputs of the tile."""
        tile = self._tile
        assert tile is not None
        tile.inputs = np.concatenate([tile.inputs, np.asarray(inputs, np.int64).ravel()])
        count = min(len(tile.inputs), len(tile.references))
        tile.differences = take(
            tile.inputs[:count],
            tile.references[:count],
            tile.layer,
            tile.mode,
            has_state=tile.has_state,
            bits=self.config.activation_bits,
        )
        base = tile.layer["reference_base"]
        self._references[base : base + count] = tile.differences.references

    def write_decisions(self, first: int, words: Sequence[int]) -> None:
        """Write words of the table of decisions, from ``first`` on."""
        self._check_decisions(first, len(words))
        self.decisions.write(first, words)

    def read_decisions(self, first: int, count: int) -> list[int]:
        """Return words of the table of decisions, from ``first`` on."""
        self._check_decisions(first, count)
        return self.decisions.words[first : first + count]

    def _check_decisions(self, first: int, count: int) -> None:
        self._check(len(self._references) > 0, Status.BAD_COMMAND, "no table of decisions")
        is_inside = first + count <= len(self.decisions.words)
        self._check(is_inside, Status.BAD_ADDRESS, "table of decisions")

    @property
    def differences(self) -> Differences | None:
        """What became of the inputs of the tile that has begun, if any."""
        return None if self._tile is None else self._tile.differences

    def run(self, entry: int, mode: Mode) -> Counters:
        """Run a layer-table entry: ``a = W * d + start``, and count. Uses the deltas up.

        A spatial run starts from what the accumulators were at the position before in the line.

        Raises
        ------
        CommandError
            If the deltas or the accumulators that the run needs are not there.
        """
        config = self.config
        self._check(entry < config.layers, Status.BAD_ADDRESS, f"layer {entry}")
        layer = self._layers[entry]
        begun, self._tile = self._tile, None
        if begun is not None:
            mode = begun.mode if mode is Mode.AUTO else mode
            is_ready = begun.entry == entry and begun.is_whole and begun.mode is mode
            self._check(is_ready, Status.NO_DELTAS, f"layer {entry}")
            self._deltas = begun.differences.deltas.reshape(-1, layer["channels"])
        elif mode is Mode.AUTO:
            mode = self._mode
        deltas, self._deltas = self._deltas, None
        is_spatial = mode is Mode.SPATIAL
        self._check_spatial(entry, mode)
        walked, lead = (stretched(layer), layer["lead"]) if is_spatial else (layer, 0)
        shape = (walked["positions"], layer["channels"])
        is_other = is_spatial != (self._mode is Mode.SPATIAL)
        if deltas is None or deltas.shape != shape or is_other:
            raise CommandError(Status.NO_DELTAS, f"layer {entry}")
        has_state = entry in self._filled or begun is not None
        self._check(mode is not Mode.TEMPORAL or has_state, Status.NO_STATE, f"layer {entry}")

        padded = np.zeros((shape[0] + 1, shape[1]), np.int64)
        padded[:-1] = deltas
        tap = taps(walked)
        windows = padded[tap].reshape(len(tap), -1).astype(np.float64)
        rows = windows.shape[1]
        for cluster, share in enumerate(shares(layer, config.clusters, lead)):
            own = windows[share.positions]
            line, x = np.divmod(share.positions, walked["out_width"])
            is_written = x >= walked["out_width"] - layer["out_width"]
            written = int(is_written.sum())
            for tile in range(layer["tiles"]):
                first = layer["weight_base"] + tile * rows
                weights = self._weights[cluster, first : first + rows].astype(np.float64)
                # Sums of products of small integers are exact in float64, and much faster.
                change = (own @ weights).astype(np.int64)
                at = slice(*(layer["accumulator_base"] + np.array([tile, tile + 1]) * written))
                if is_spatial:
                    change = carried(change, line)[is_written]
                start = self._accumulators[cluster, at] if mode is Mode.TEMPORAL else 0
                self._accumulators[cluster, at] = wrap(start + change, config.accumulator_bits)
        self._filled.add(entry)
        counters = self.count(layer, deltas, mode)
        if begun is not None:
            counters = counters._replace(**count_modes(begun.differences, config))
            if begun.is_auto:
                self.decisions.learn(
                    layer["decision"],
                    counters,
                    had_state=begun.has_state,
                    decides=bool(layer["decides"]),
                )
        return counters

    def count(
        self, layer: dict[str, int], deltas: NDArray[Any], mode: Mode = Mode.DENSE
    ) -> Counters:
        """Return the counters of a run of ``layer`` on ``deltas``, without running it.

        ``stall_link`` depends on the link and is 0 here.
        """
        config = self.config
        is_spatial = mode is Mode.SPATIAL
        walked, lead = (stretched(layer), layer["lead"]) if is_spatial else (layer, 0)
        # Items of every position, and of none outside the image.
        low, high = (np.append(count.sum(axis=1), 0) for count in items(deltas, config))
        tap = taps(walked)
        low, high = low[tap].sum(axis=1), high[tap].sum(axis=1)  # of every output position
        lengths = row_lengths(low, high, config)
        tiles = layer["tiles"]
        timings = {}
        total = busy = 0
        for cluster, share in enumerate(shares(layer, config.clusters, lead)):
            positions = share.positions
            key = cluster % layer["split"]
            if key not in timings:
                # Tiles follow each other; the empty rows at the end of one are before the next.
                gaps = np.tile(share.gaps, tiles)
                gaps[len(positions) :: max(len(positions), 1)] += share.rest
                times = np.tile(lengths[positions], tiles)
                timings[key] = schedule(times.tolist(), gaps.tolist(), tap.shape[1], config)
            total += int(low[positions].sum() + high[positions].sum()) * tiles
            busy += timings[key].busy
        each = [timings[cluster % layer["split"]].cycles for cluster in range(config.clusters)]
        cycles = max(each)
        zero, narrow, wide = classify(deltas, config)
        return Counters(
            cycles=cycles,
            items=total,
            zero=zero,
            narrow=narrow,
            wide=wide,
            stall_row=config.lanes * busy - total,
            stall_item=config.lanes * (sum(each) - busy),
            stall_cluster=config.lanes * (config.clusters * cycles - sum(each)),
            mode=mode.value,
        )

    def _check_spatial(self, entry: int, mode: Mode) -> None:
        """Refuse a spatial run of an entry that cannot have one."""
        is_possible = mode is not Mode.SPATIAL or may_be_spatial(self._layers[entry])
        self._check(is_possible, Status.BAD_LAYER, f"layer {entry}, {mode.name}")

    @staticmethod
    def _check(condition: bool, status: Status, detail: str) -> None:
        if not condition:
            raise CommandError(status, detail)
