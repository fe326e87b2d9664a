"""Cycles of a model's layers on a device, for the deltas of many samples at once.

The same cycle model as :meth:`ditto.sim.golden.Golden.count`, vectorized over samples.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.layers import Linear, Product
from ditto.host.program import Part, Placement
from ditto.sim.cycles import LIST_LATENCY, RUN_LATENCY, START_LATENCY, row_lengths
from ditto.sim.golden import items, shares, taps
from ditto.sim.spatial import spatial, stretched

__all__ = ["LayerCosts", "ProductCosts", "count_items"]

_REACH = 512  # deltas are -511..511, whatever the types of the operands
_HIGH = 16  # bits below the count of high items


@lru_cache(maxsize=64)
def _table(config: Config) -> NDArray[np.int32]:
    top = config.max_delta
    low, high = items(np.arange(-top, top + 1), config)
    table = np.zeros(2 * _REACH, np.int32)
    table[_REACH - top : _REACH + top + 1] = low + (high << _HIGH)
    return table


def _all(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of low and high items."""
    return (counts & (1 << _HIGH) - 1) + (counts >> _HIGH)


def count_items(deltas: NDArray[Any], config: Config) -> int:
    """Return the work items of deltas of -511..511, of shape (positions, channels)."""
    counts = _table(config)[deltas + np.int16(_REACH)].sum(axis=-1, dtype=np.int64)
    return int(_all(counts).sum())


class _Costs:
    """Counts the cycles of the parts of a layer.

    Parameters
    ----------
    placement
        The layer on the device.
    config
        The device.
    """

    def __init__(self, placement: Placement, config: Config) -> None:
        self._placement = placement
        self._config = config
        self._items = _table(config)

    def _part(
        self, part: Part, deltas: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cycles and the nonzero digits of a run of a part, by sample.

        Parameters
        ----------
        part
            The part.
        deltas
            Those of its layer, of shape (samples, positions, channels).
        """
        own = self._items[deltas[..., part.lowered.takes] + np.int16(_REACH)]
        counts = own.sum(axis=-1, dtype=np.int64)
        cycles, digits = np.zeros((2, len(deltas)), np.int64)
        if part.lowered.gather is not None:
            counts = _pad(counts)[:, part.lowered.gather].sum(axis=-1)
        for band in part.bands:
            own = counts[:, band.inputs]
            cycles += self._band(band.entry, _pad(own)[:, taps(band.entry)].sum(axis=-1))
            digits += _all(own).sum(axis=-1)
        return cycles, digits

    def _band(
        self, entry: dict[str, int], rows: NDArray[np.int64], lead: int = 0
    ) -> NDArray[np.int64]:
        """Return the cycles of output rows with so many items, of shape (samples, rows).

        Those of a spatial run have their ``lead``, see :func:`ditto.sim.golden.shares`.
        """
        tap_count = entry["kernel_height"] * entry["kernel_width"]
        lengths = row_lengths(rows & (1 << _HIGH) - 1, rows >> _HIGH, self._config)
        result = np.zeros(len(rows), np.int64)
        for share in shares(entry, self._config.clusters, lead)[: entry["split"]]:
            tiles, count = entry["tiles"], len(share.positions)
            gaps = np.tile(share.gaps, tiles)
            gaps[count :: max(count, 1)] += share.rest
            own = np.tile(lengths[:, share.positions], tiles)
            result = np.maximum(result, _schedule(own, gaps.tolist(), tap_count, self._config))
        return result


class LayerCosts(_Costs):
    """Counts the cycles of a layer with constant weights."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        assert isinstance(placement.layer, Linear)
        self._layer = placement.layer
        #: Whether the layer can have spatial runs.
        self.may_be_spatial = placement.may_be_spatial

    def cycles(self, deltas: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the cycles of a run for each of some samples.

        Parameters
        ----------
        deltas
            Of shape (samples, ...): the samples' input tensors as the model has them.
        """
        return self.count(deltas)[0]

    def count(self, deltas: NDArray[np.int16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cycles and the nonzero digits of a run for each of some samples.

        Parameters
        ----------
        deltas
            As for :meth:`cycles`.
        """
        values = self._by_position(deltas)
        cycles, digits = np.zeros((2, len(deltas)), np.int64)
        for part in self._placement.parts:
            for total, own in zip((cycles, digits), self._part(part, values), strict=True):
                total += own
        return cycles, digits

    def _by_position(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return tensors of the model as (samples, positions, channels)."""
        layer = self._layer
        values = np.moveaxis(values, 1 if layer.kind == "conv" else layer.axes[0], -1)
        return values.reshape(len(values), -1, layer.channels)

    def spatial(self, values: NDArray[np.int16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cycles of a spatial run, and the digits of its differences, by sample.

        Parameters
        ----------
        values
            Of shape (samples, ...): the samples' input tensors without their zero point.
        """
        values = self._by_position(values)
        cycles, digits = np.zeros((2, len(values)), np.int64)
        for part in self._placement.parts:
            own = values[..., part.lowered.takes]
            gather = part.lowered.gather
            if gather is not None:
                padded = np.concatenate([own, np.zeros_like(own[:, :1])], axis=1)
                own = padded[:, gather].reshape(len(own), len(gather), -1)
            for band in part.bands:
                entry = band.entry
                deltas = spatial(own[:, band.inputs], entry)
                counts = self._items[deltas + np.int16(_REACH)].sum(axis=-1, dtype=np.int64)
                rows = _pad(counts)[:, taps(stretched(entry))].sum(axis=-1)
                cycles += self._band(entry, rows, entry["lead"])
                digits += _all(counts).sum(axis=-1)
        return cycles, digits


class ProductCosts(_Costs):
    """Counts the cycles of a product of two activations."""

    #: Cycles by changes where the product is placed for a right operand that stays as it is.
    IMPOSSIBLE = 1 << 40

    def dense(
        self, left: NDArray[np.int16], right: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cycles and the nonzero digits for each of some samples.

        The operand with which there are fewer cycles gives the items.

        Parameters
        ----------
        left, right
            Of shapes (samples, ..., rows, inner size) and (samples, ..., inner size, columns).
        """
        ways = [np.sum(self._side(left, 0), axis=-1)]
        if not self._is_fixed:
            ways.append(np.sum(self._side(right, 1), axis=-1))
        cycles, digits = np.moveaxis(np.array(ways), 1, 0)
        best = cycles.argmin(axis=0)[None]
        return np.take_along_axis(cycles, best, 0)[0], np.take_along_axis(digits, best, 0)[0]

    def changes(
        self, left: NDArray[np.int16], right: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cycles of both runs by changes, and their nonzero digits.

        Parameters
        ----------
        left, right
            The changes of the operands. Without one, there is no run.
        """
        cycles, digits = np.zeros((2, len(left)), np.int64)
        for side, values in enumerate((left, right)):
            moved = values.any(axis=(-2, -1)).reshape(len(values), -1)
            if side and self._is_fixed:
                return np.where(moved.any(axis=1), self.IMPOSSIBLE, cycles), digits
            own = self._side(values, side)
            cycles += (own[0] * moved).sum(axis=1)
            digits += own[1].sum(axis=1)
        return cycles, digits

    @property
    def _is_fixed(self) -> bool:
        assert isinstance(self._placement.layer, Product)
        return self._placement.layer.fixed

    def _side(
        self, values: NDArray[np.int16], side: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return cycles and digits of the runs with an operand as items: (samples, heads)."""
        if side:
            values = np.swapaxes(values, -2, -1)
        heads = values.reshape(len(values), -1, *values.shape[-2:])
        runs = [
            self._part(self._placement.of_product(head, side), heads[:, head])
            for head in range(heads.shape[1])
        ]
        cycles, digits = (np.stack(own, axis=1) for own in zip(*runs, strict=True))
        return cycles, digits


def _pad(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add a position without items, for taps outside of the image."""
    return np.concatenate([counts, np.zeros_like(counts[:, :1])], axis=1)


def _schedule(
    lengths: NDArray[np.int64], gaps: Sequence[int], taps: int, config: Config
) -> NDArray[np.int64]:
    """Do what :func:`ditto.sim.cycles.schedule` does, for rows of shape (samples, rows)."""
    if not len(gaps):
        return np.zeros(len(lengths), np.int64)
    ahead = config.rows_ahead(taps)
    if len(gaps) <= ahead:
        return lengths.sum(axis=1) + START_LATENCY + RUN_LATENCY
    columns = np.ascontiguousarray(lengths.T)
    done = np.empty_like(columns)
    ended = np.full(len(lengths), START_LATENCY, np.int64)
    walked = np.zeros_like(ended)
    for row, gap in enumerate(gaps):
        if row >= ahead:
            skipped = gap if row > ahead else 0
            walked = np.maximum(walked + skipped, done[row - ahead]) + taps
            ended = np.maximum(ended, walked + LIST_LATENCY)
        ended = ended + columns[row]
        done[row] = ended
    return ended + RUN_LATENCY
